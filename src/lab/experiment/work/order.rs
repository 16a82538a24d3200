//! Is what lowers the loss most learned first? The initial rates of descent beside the order in which tasks are learned.

use std::collections::BTreeMap;

use super::measure::Asked;
use super::row;
use crate::error::Result;
use crate::lab::language::TaskInfo;
use crate::stats::spearman;
use crate::table::Observation;

/// A task counts as learned once this share of its learnable loss, chance minus floor, is gone.
const LEARNED: f64 = 0.5;

impl Asked<'_> {
    /// Before training: `initial_rate` of each task, the rate at which its loss falls in the first step.
    pub(super) fn initial_rates(&self) -> Result<Vec<Observation>> {
        if self.step > 0 {
            return Ok(vec![]);
        }
        let rates = self.probe.descent(self.other, self.weights)?;
        let of = |((run, task), &rate): ((usize, usize), &f64)| {
            let mut row = self.of_run(run, "initial_rate", rate);
            row.keys.task = self.tasks.get(task).map(|info| info.name.clone());
            row
        };
        Ok(rates.indexed_iter().map(of).collect())
    }
}

/// What the rows of a training run, with `loss` and `initial_rate` by seed and task, say about the order of learning.
///
/// Rows by seed and task: `learned_at`, the step at which half of the task's learnable loss is gone, interpolated
/// between records; NaN if that never happens. Rows by seed: `order_correlation`, Spearman's correlation over tasks of
/// `initial_rate` with the order of learning, 1 if the task that falls fastest at first is learned first and so on;
/// tasks that are never learned share the last place. Tasks with a weight of 0 are left out; NaN if no order is left.
pub(super) fn order(rows: &[Observation], tasks: &[TaskInfo], weights: &[f64]) -> Vec<Observation> {
    let mut courses: BTreeMap<(u64, &str), BTreeMap<u32, f64>> = BTreeMap::new();
    let mut rates: BTreeMap<(u64, &str), f64> = BTreeMap::new();
    let mut last = 0;
    for row in rows {
        let (Some(seed), Some(task), Some(step)) = (row.keys.seed, row.keys.task.as_deref(), row.keys.step) else {
            continue;
        };
        match row.metric.as_str() {
            "loss" => drop(courses.entry((seed, task)).or_default().insert(step, row.value)),
            "initial_rate" => drop(rates.insert((seed, task), row.value)),
            _ => continue,
        }
        last = last.max(step);
    }
    let mut found = vec![];
    let seeds: std::collections::BTreeSet<u64> = courses.keys().map(|(seed, _)| *seed).collect();
    for seed in seeds {
        let (mut falls, mut places) = (vec![], vec![]);
        for (number, info) in tasks.iter().enumerate() {
            let Some(course) = courses.get(&(seed, info.name.as_str())) else { continue };
            let at = learned_at(course, info);
            let mut row = row(seed, last as usize, "learned_at", at.unwrap_or(f64::NAN));
            row.keys.task = Some(info.name.clone());
            found.push(row);
            let rate = rates.get(&(seed, info.name.as_str()));
            if let (Some(rate), true) = (rate, weights.get(number).is_none_or(|weight| *weight > 0.0)) {
                falls.push(*rate);
                places.push(-at.unwrap_or(f64::INFINITY));
            }
        }
        let correlation = spearman(&falls, &places).unwrap_or(f64::NAN);
        found.push(row(seed, last as usize, "order_correlation", correlation));
    }
    found
}

/// The step at which a task counts as learned, interpolated.
fn learned_at(course: &BTreeMap<u32, f64>, info: &TaskInfo) -> Option<f64> {
    let threshold = info.floor + (1.0 - LEARNED) * (info.chance - info.floor);
    let mut before: Option<(f64, f64)> = None;
    for (&step, &loss) in course {
        let now = (f64::from(step), loss);
        if loss <= threshold {
            let Some(then) = before else { return Some(now.0) };
            return Some(then.0 + (now.0 - then.0) * (then.1 - threshold) / (then.1 - now.1));
        }
        before = Some(now);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn infos() -> Vec<TaskInfo> {
        let info = |name: &str| TaskInfo { name: name.to_owned(), chance: 2.0, floor: 0.0 };
        ["a", "b", "c"].map(info).to_vec()
    }

    /// Rows of one run: the initial rate of each task, and its loss at steps 0, 10, 20, ...
    fn rows(tasks: [(f64, [f64; 4]); 3]) -> Vec<Observation> {
        let mut rows = vec![];
        for ((rate, losses), info) in tasks.into_iter().zip(infos()) {
            let steps = losses.into_iter().enumerate().map(|(record, loss)| ("loss", 10 * record, loss));
            for (metric, step, value) in steps.chain([("initial_rate", 0, rate)]) {
                let mut row = row(5, step, metric, value);
                row.keys.task = Some(info.name.clone());
                rows.push(row);
            }
        }
        rows
    }

    fn value(found: &[Observation], metric: &str, task: Option<&str>) -> f64 {
        let own = found.iter().find(|row| row.metric == metric && row.keys.task.as_deref() == task);
        own.map_or(f64::INFINITY, |row| row.value)
    }

    /// The fastest first, the order reversed, and one task that is never learned.
    #[test]
    fn the_order_of_learning_is_compared_with_the_rates() {
        let early = [2.2, 0.2, 0.1, 0.1];
        let late = [2.0, 1.8, 1.2, 0.2];
        let never = [2.0, 1.9, 1.8, 1.7];
        let found = |tasks| order(&rows(tasks), &infos(), &[]);
        let same = found([(3.0, early), (2.0, late), (1.0, never)]);
        assert!((value(&same, "learned_at", Some("a")) - 6.0).abs() < 1e-12, "2.2 to 0.2 passes 1 at 0.6 of the way");
        assert!((value(&same, "learned_at", Some("b")) - 22.0).abs() < 1e-12);
        assert!(value(&same, "learned_at", Some("c")).is_nan());
        assert_eq!(value(&same, "order_correlation", None), 1.0);
        let reversed = found([(1.0, early), (2.0, late), (3.0, never)]);
        assert_eq!(value(&reversed, "order_correlation", None), -1.0);
        let other = found([(2.0, early), (3.0, late), (1.0, never)]);
        assert!((value(&other, "order_correlation", None) - 0.5).abs() < 1e-12);
        let none = found([(3.0, never), (2.0, never), (1.0, never)]);
        assert!(value(&none, "order_correlation", None).is_nan(), "nothing is learned: there is no order");
    }

    #[test]
    fn a_task_that_is_not_in_the_loss_has_no_place_in_the_order() {
        let tasks = [(3.0, [2.0, 0.0, 0.0, 0.0]), (2.0, [2.0, 2.0, 0.0, 0.0]), (9.0, [2.0; 4])];
        let found = order(&rows(tasks), &infos(), &[1.0, 1.0, 0.0]);
        assert_eq!(value(&found, "order_correlation", None), 1.0);
        assert!(value(&found, "learned_at", Some("c")).is_nan(), "but it is seen not to be learned");
        let counted = order(&rows(tasks), &infos(), &[]);
        assert_eq!(value(&counted, "order_correlation", None), -0.5);
    }
}
