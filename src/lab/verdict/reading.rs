//! When in training is a metric read?

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The training step at which a metric is read.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// At the last step of each run.
    #[default]
    End,
    /// Where the run's `excess_loss` first falls to this value: cells are compared at equal loss. Both the step and the
    /// metric are interpolated linearly between records. (The [first rule](super::first) takes the first recorded step at
    /// or below it.)
    AtExcessLoss(f64),
    /// The mean over the steps until the run's `excess_loss` first falls to this value, or over all steps if it never
    /// does: the area under the records, joined by lines, over the length.
    MeanUntilExcessLoss(f64),
}

impl Reading {
    /// Reads a metric recorded at `steps` from a run with the given losses; `None` if the run never reaches the loss, or
    /// the metric is missing there.
    pub(in crate::lab) fn of(self, steps: &BTreeMap<u32, f64>, losses: Option<&BTreeMap<u32, f64>>) -> Option<f64> {
        let value = match self {
            Self::End => steps.last_key_value().map(|(_, value)| *value),
            Self::AtExcessLoss(most) => interpolated(steps, crossing(losses?, most)?),
            Self::MeanUntilExcessLoss(most) => {
                let last = steps.last_key_value().map(|(step, _)| f64::from(*step));
                mean_until(steps, losses.and_then(|losses| crossing(losses, most)).or(last)?)
            }
        };
        value.filter(|value| value.is_finite())
    }
}

/// The step, between records, at which a course first falls to `level`.
fn crossing(course: &BTreeMap<u32, f64>, level: f64) -> Option<f64> {
    let mut before: Option<(f64, f64)> = None;
    for (&step, &value) in course.iter().filter(|(_, value)| value.is_finite()) {
        let step = f64::from(step);
        if value <= level {
            return Some(before.map_or(step, |(then, was)| then + (step - then) * (was - level) / (was - value)));
        }
        before = Some((step, value));
    }
    None
}

/// The value of a course at a step between its records.
fn interpolated(course: &BTreeMap<u32, f64>, step: f64) -> Option<f64> {
    let below = course.range(..=step.floor() as u32).next_back();
    let above = course.range(step.ceil() as u32..).next();
    match (below, above) {
        (Some((&a, &x)), Some((&b, &y))) if b > a => {
            let share = (step - f64::from(a)) / f64::from(b - a);
            // At a record itself, a neighbour that is missing does not matter.
            Some(if share == 0.0 {
                x
            } else if share == 1.0 {
                y
            } else {
                x + (y - x) * share
            })
        }
        (Some((_, &x)), _) | (None, Some((_, &x))) => Some(x),
        (None, None) => None,
    }
}

/// The mean of a course over the steps up to `end`; records that are missing are passed over.
fn mean_until(steps: &BTreeMap<u32, f64>, end: f64) -> Option<f64> {
    let known: BTreeMap<u32, f64> =
        steps.iter().filter(|(_, value)| value.is_finite()).map(|(step, value)| (*step, *value)).collect();
    let mut points: Vec<(f64, f64)> =
        known.range(..=end.floor() as u32).map(|(step, value)| (f64::from(*step), *value)).collect();
    points.push((end, interpolated(&known, end)?));
    let area: f64 = points.windows(2).map(|pair| (pair[1].0 - pair[0].0) * (pair[0].1 + pair[1].1) / 2.0).sum();
    let length = end - points[0].0;
    if length > 0.0 { Some(area / length) } else { points.last().map(|(_, value)| *value) }
}

impl fmt::Display for Reading {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => write!(out, "at the end"),
            Self::AtExcessLoss(most) => write!(out, "at excess loss {most}"),
            Self::MeanUntilExcessLoss(most) => write!(out, "mean until excess loss {most}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_interpolated_at_the_step_where_the_loss_is_reached() {
        let losses = BTreeMap::from([(0, 1.0), (20, 0.8), (40, 0.4), (60, 0.45), (80, 0.1)]);
        let metric = BTreeMap::from([(0, 0.0), (30, 3.0), (50, 7.0), (80, f64::NAN)]);
        let at = |level| Reading::AtExcessLoss(level).of(&metric, Some(&losses));
        assert_eq!(at(0.5), Some(4.0)); // the loss is .5 at step 35
        assert_eq!(at(1.0), Some(0.0));
        assert_eq!(at(0.05), None, "never reached");
        assert_eq!(at(0.2), None, "the metric is missing at the end");
        let mean = |level| Reading::MeanUntilExcessLoss(level).of(&metric, Some(&losses));
        assert_eq!(mean(0.5), Some((30.0 * 1.5 + 5.0 * 3.5) / 35.0));
        assert_eq!(mean(1.0), Some(0.0), "at the first record");
        assert_eq!(mean(0.0), Some((30.0 * 1.5 + 20.0 * 5.0 + 30.0 * 7.0) / 80.0), "never reached: all steps");
        assert_eq!(Reading::End.of(&metric, None), None);
        assert_eq!(Reading::AtExcessLoss(0.5).of(&metric, None), None, "no losses");
    }
}
