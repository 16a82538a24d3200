//! How do the learning coefficients of heads change while roles emerge?

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::measure::Asked;
use super::row;
use crate::error::Result;
use crate::lab::llc::{Heads, LlcOptions};
use crate::table::Observation;

/// How learning coefficients are estimated, and whose role is looked at beside them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Complexity {
    /// The sampler.
    pub sampler: LlcOptions,
    /// Number of batches on which the loss is taken in turn.
    pub batches: usize,
    /// Sequences in each batch.
    pub rows: usize,
}

/// The attention of a head to the sources of the first task, by which the head with that role is chosen.
const ATTENTION: &str = "attention_to_source";

impl Asked<'_> {
    /// `llc` of each head, and its attention to the sources of the first task.
    pub(super) fn complexity(&self, options: &Complexity) -> Result<Vec<Observation>> {
        // The last two batches are those of other measurements.
        let batch = |number: usize| {
            let of = |seed: &u64| self.language.batch(options.rows, *seed, u64::MAX - 2 - number as u64);
            self.seeds.iter().map(of).collect::<Result<Vec<_>>>()
        };
        let batches = (0..options.batches).map(batch).collect::<Result<Vec<_>>>()?;
        let heads = Heads::of(self.model.with_parameters(tch::Tensor::detach), self.language, &batches)?;
        let roles = self.other.roles()?;
        let first = self.tasks.first().map(|info| info.name.as_str());
        let kind = roles.kinds.iter().position(|kind| Some(kind.as_str()) == first);
        let mut rows = vec![];
        for layer in 0..self.layers {
            for head in 0..self.heads {
                for (run, value) in heads.llc(layer, head, &options.sampler, self.seeds)?.into_iter().enumerate() {
                    let mut of_head = |metric, value| {
                        let mut row = self.detail(run, metric, (layer, head, 0), value);
                        row.keys.task = None;
                        rows.push(row);
                    };
                    of_head("llc", value);
                    if let Some(kind) = kind {
                        of_head(ATTENTION, roles.attention[[run, layer, head, kind]]);
                    }
                }
            }
        }
        Ok(rows)
    }
}

/// What the rows of a training run, with `llc` and the attention to sources by seed, layer, head and step, say about the head
/// that ends with the role: the one that attends most to the sources after the last step.
///
/// Rows by seed and step: `llc_role`, its learning coefficient, and `llc_others`, the mean of the other heads of its layer.
/// Rows by seed, after the last step: `llc_rise_over_others`, how much more its learning coefficient rose since the first
/// record than the mean of the others did, over the mean of the layer after the last step.
pub(super) fn rises(rows: &[Observation]) -> Vec<Observation> {
    let mut courses: BTreeMap<u64, BTreeMap<u32, Layers>> = BTreeMap::new();
    for row in rows {
        let keys = &row.keys;
        let (Some(seed), Some(step), Some(layer), Some(head)) = (keys.seed, keys.step, keys.layer, keys.head) else {
            continue;
        };
        if !["llc", ATTENTION].contains(&row.metric.as_str()) {
            continue;
        }
        let known = courses.entry(seed).or_default().entry(step).or_default().entry((layer, head)).or_default();
        *(if row.metric == "llc" { &mut known.llc } else { &mut known.attention }) = row.value;
    }
    courses.into_iter().flat_map(|(seed, course)| of_run(seed, &course)).collect()
}

/// What is known of a head at a step.
#[derive(Clone, Copy, Default)]
struct Known {
    llc: f64,
    attention: f64,
}

/// The heads by layer and number.
type Layers = BTreeMap<(u32, u32), Known>;

fn of_run(seed: u64, course: &BTreeMap<u32, Layers>) -> Vec<Observation> {
    let most = |heads: &Layers| {
        let known = heads.iter().filter(|(_, known)| !known.attention.is_nan());
        known.max_by(|a, b| a.1.attention.total_cmp(&b.1.attention)).map(|(place, _)| *place)
    };
    let Some((&last, Some(role))) = course.last_key_value().map(|(step, heads)| (step, most(heads))) else {
        return vec![];
    };
    let at = |heads: &Layers| {
        let layer = heads.range((role.0, 0)..=(role.0, u32::MAX));
        let (own, others): (Vec<_>, Vec<_>) =
            layer.map(|(place, known)| (*place, known.llc)).partition(|(place, _)| *place == role);
        let mean = others.iter().map(|(_, llc)| llc).sum::<f64>() / others.len() as f64;
        (own.first().map_or(f64::NAN, |(_, llc)| *llc), mean, others.len() as f64)
    };
    let mut rows = vec![];
    for (&step, heads) in course {
        let (own, others, _) = at(heads);
        rows.extend(
            [("llc_role", own), ("llc_others", others)].map(|(metric, value)| row(seed, step as usize, metric, value)),
        );
    }
    if let Some((_, first)) = course.first_key_value() {
        let ((own, others, n), (was, others_were, _)) = (at(&course[&last]), at(first));
        let mean = (own + n * others) / (n + 1.0);
        let rise = ((own - was) - (others - others_were)) / mean;
        rows.push(row(seed, last as usize, "llc_rise_over_others", rise));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of one run of one layer: for each step, the coefficient and the attention of each head.
    fn rows(steps: &[[(f64, f64); 3]]) -> Vec<Observation> {
        let mut rows = vec![];
        for (step, heads) in steps.iter().enumerate() {
            for (head, (llc, attention)) in heads.iter().enumerate() {
                for (metric, value) in [("llc", *llc), (ATTENTION, *attention)] {
                    let mut row = row(3, 10 * step, metric, value);
                    (row.keys.layer, row.keys.head) = (Some(1), u32::try_from(head).ok());
                    rows.push(row);
                }
            }
        }
        rows
    }

    fn value(found: &[Observation], metric: &str, step: u32) -> Option<f64> {
        found.iter().find(|row| row.metric == metric && row.keys.step == Some(step)).map(|row| row.value)
    }

    #[test]
    fn the_rise_of_the_head_with_the_role_is_told_from_that_of_the_others() {
        // Head 2 ends with the role and rises by 6, the others by 1 and 3.
        let found = rises(&rows(&[[(1.0, 0.9), (1.0, 0.1), (2.0, 0.0)], [(2.0, 0.2), (4.0, 0.1), (8.0, 0.8)]]));
        assert_eq!((value(&found, "llc_role", 0), value(&found, "llc_role", 10)), (Some(2.0), Some(8.0)));
        assert_eq!(value(&found, "llc_others", 10), Some(3.0));
        assert_eq!(value(&found, "llc_rise_over_others", 10), Some((6.0 - 2.0) / (14.0 / 3.0)));
        let same = rises(&rows(&[[(1.0, 0.0); 3], [(3.0, 0.1), (3.0, 0.2), (3.0, 0.3)]]));
        assert_eq!(value(&same, "llc_rise_over_others", 10), Some(0.0), "all rise alike");
        let less = rises(&rows(&[[(1.0, 0.0); 3], [(1.0, 0.9), (3.0, 0.2), (5.0, 0.3)]]));
        assert_eq!(value(&less, "llc_rise_over_others", 10), Some(-1.0));
    }
}
