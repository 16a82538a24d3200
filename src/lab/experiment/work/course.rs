//! At which steps is a run measured, and had its loss stopped falling when training ended?

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Steps between two records of the excess loss: close enough to interpolate when a run reaches a given loss.
const EVERY: usize = 20;

/// The first of the steps spaced by [`Spacing::Geometric`], as a share of the last.
const FIRST: f64 = 1.0 / 64.0;

/// How the steps at which a run is measured are spaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Evenly, from step 0 to the last.
    #[default]
    Even,
    /// Step 0, then from a 64th of the steps to the last, each a constant multiple of the one before: dense where
    /// models learn fastest.
    Geometric,
}

impl Spacing {
    /// Whether this is the spacing of declarations that name none.
    pub(super) fn is_even(&self) -> bool {
        *self == Self::Even
    }

    /// At most `records` steps, which include 0 and `last`; short runs have fewer different ones.
    pub(super) fn steps(self, records: usize, last: usize) -> BTreeSet<usize> {
        let gaps = records.saturating_sub(1).max(1);
        let step = |record: usize| match self {
            Self::Even => last * record / gaps,
            Self::Geometric if record == 0 => 0,
            Self::Geometric => {
                let left = (gaps - record) as f64 / (gaps - 1).max(1) as f64;
                (last as f64 * FIRST.powf(left)).round() as usize
            }
        };
        (0..=gaps).map(step).collect()
    }
}

/// The steps at which only the excess loss is recorded.
pub(super) fn loss_steps(last: usize) -> impl Iterator<Item = usize> {
    (0..=last).step_by(EVERY)
}

/// An excess loss as recorded between measurements: to 4 decimals, far below any difference of interest, so that
/// tables stay small.
pub(super) fn rounded(excess: f64) -> f64 {
    (excess * 1e4).round() / 1e4
}

/// By how much the excess loss changes over the last tenth of the steps: its mean over the last fortieth against that over
/// the fortieth before the last tenth begins; NaN if either has no record. `course`: step and excess loss.
pub(super) fn late_change(course: &[(usize, f64)], last: usize) -> f64 {
    let mean = |from: usize| {
        let inside = |step: usize| from * last < 40 * step && 40 * step <= (from + 1) * last;
        let losses: Vec<f64> = course.iter().filter(|(step, _)| inside(*step)).map(|(_, loss)| *loss).collect();
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    (mean(39) - mean(35)).abs()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Both spacings begin at 0 and end at the last step, and have as many steps as asked for if there are that many.
    #[test]
    fn records_reach_from_the_first_step_to_the_last() {
        for last in [0, 1, 7, 600, 4001] {
            for records in 2..20 {
                let even = Spacing::Even.steps(records, last);
                let old: BTreeSet<usize> = (0..records).map(|record| last * record / (records - 1)).collect();
                assert_eq!(even, old);
                let dense = Spacing::Geometric.steps(records, last);
                assert!(dense.len() <= records && (last < 4000 || dense.len() == records), "{dense:?}");
                assert_eq!((dense.first(), dense.last()), (Some(&0), Some(&last)));
            }
        }
        let steps: Vec<usize> = Spacing::Geometric.steps(8, 6400).into_iter().collect();
        assert_eq!(steps, [0, 100, 200, 400, 800, 1600, 3200, 6400]);
    }

    /// A loss that falls by the same amount in every step changes by that amount times a tenth of the steps; one that
    /// has stopped falling does not change, whatever it did before; without enough records nothing is known.
    #[test]
    fn a_late_change_is_that_of_the_last_tenth() {
        let course =
            |loss: &dyn Fn(f64) -> f64| loss_steps(4000).map(|step| (step, loss(step as f64))).collect::<Vec<_>>();
        assert!((late_change(&course(&|step| 1.0 - step / 4000.0), 4000) - 0.1).abs() < 1e-12);
        assert_eq!(late_change(&course(&|step| if step <= 3500.0 { 1.0 } else { 0.2 }), 4000), 0.0);
        assert!((late_change(&course(&|step| if step <= 3600.0 { 1.0 } else { 0.25 }), 4000) - 0.75).abs() < 1e-12);
        assert!(late_change(&[(0, 1.0), (50, 0.5), (100, 0.2)], 100).is_nan());
    }
}
