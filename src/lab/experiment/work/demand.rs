//! Is it the demand per head or the width of heads that decides how models divide their work? A grid of models in one
//! cell, and which of the two predicts held-out models better.

use std::collections::BTreeMap;

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::training::Training;
use super::{Computed, row};
use crate::error::{Error, Result};
use crate::file;
use crate::lab::language::{Language, Tasks};
use crate::stats::{predicted_r2, slopes};
use crate::table::Observation;

/// Models with every number of tasks, number of heads and width, one of each per seed.
///
/// Rows about single models name it in `set`, such as `tasks4-heads2-width16`: all measurements of whole runs after the
/// last step. They are details, like rows about single heads.
///
/// Rows by seed, for each of the `explained` metrics: the share of its variance over the seed's models that quadratic
/// regressions predict for models left out one at a time ([`predicted_r2`]), where the metric is defined:
/// `METRIC_r2_demand`, from the logarithm of tasks per head; `METRIC_r2_width`, from that of d_head; `METRIC_r2_tasks`
/// and `METRIC_r2_heads`, from those of the numbers; `METRIC_r2_both`, from demand and width with their product; and
/// `METRIC_demand_over_width`, the first minus the second. Also `METRIC_per_demand` and `METRIC_per_width`, by how much the
/// metric rises with each doubling of tasks per head and of d_head, the other held constant. NaN if the metric is defined in
/// fewer than half of the models.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Demand {
    /// How each model is trained; its language lists all tasks, the first of which are used, and its number of heads and
    /// d_head are replaced.
    pub base: Training,
    /// Numbers of tasks.
    pub tasks: Vec<usize>,
    /// Numbers of heads.
    pub heads: Vec<usize>,
    /// Values of d_head.
    pub widths: Vec<usize>,
    /// The metrics to be explained.
    pub explained: Vec<String>,
}

/// One model of the grid.
#[derive(Debug, Clone, Copy)]
struct Size {
    tasks: usize,
    heads: usize,
    width: usize,
}

/// The variables of a regression, as logarithms to base 2.
type Variables = fn(Size) -> Vec<f64>;

/// The regressions, by the end of the metric's name.
const REGRESSIONS: [(&str, Variables); 5] = [
    ("r2_demand", |size| quadratic(&[size.demand()])),
    ("r2_width", |size| quadratic(&[size.width()])),
    ("r2_tasks", |size| quadratic(&[(size.tasks as f64).log2()])),
    ("r2_heads", |size| quadratic(&[(size.heads as f64).log2()])),
    ("r2_both", |size| quadratic(&[size.demand(), size.width()])),
];

impl Size {
    fn name(self) -> String {
        format!("tasks{}-heads{}-width{}", self.tasks, self.heads, self.width)
    }

    fn demand(self) -> f64 {
        (self.tasks as f64 / self.heads as f64).log2()
    }

    fn width(self) -> f64 {
        (self.width as f64).log2()
    }
}

/// The variables, their squares, and their products.
fn quadratic(variables: &[f64]) -> Vec<f64> {
    let products = variables.iter().enumerate().flat_map(|(i, a)| variables[i..].iter().map(move |b| a * b));
    variables.iter().copied().chain(products).collect()
}

impl Demand {
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Computed> {
        let Language::Tasks(all) = &self.base.language else {
            return Err(Error::argument("demand", "a language of tasks", "another"));
        };
        let least = |values: &[usize]| values.iter().copied().min().unwrap_or(0);
        let most = self.tasks.iter().copied().max().unwrap_or(0);
        if [&self.tasks, &self.heads, &self.widths].iter().any(|values| least(values) == 0) || most > all.tasks.len() {
            let expected = format!("tasks, heads and widths, each at least 1, of at most {} tasks", all.tasks.len());
            let found = format!("{:?}, {:?}, {:?}", self.tasks, self.heads, self.widths);
            return Err(Error::argument("demand", expected, found));
        }
        let mut rows = vec![];
        let mut hashes: BTreeMap<u64, String> = BTreeMap::new();
        let mut models: Vec<(Size, Vec<Observation>)> = vec![];
        for size in self.sizes() {
            let computed = self.training(size, all).compute(seeds)?;
            for (seed, hash) in computed.parameters {
                hashes.entry(seed).or_default().push_str(&hash);
            }
            let mut own = at_the_end(computed.rows);
            own.iter_mut().for_each(|row| row.keys.set = Some(size.name()));
            rows.extend(own.iter().cloned());
            models.push((size, own));
        }
        for metric in &self.explained {
            for &seed in seeds {
                rows.extend(self.explained(metric, seed, &models));
            }
        }
        let parameters = hashes.into_iter().map(|(seed, all)| (seed, file::sha256(all.as_bytes()))).collect();
        Ok(Computed { rows, parameters, read: vec![] })
    }

    fn sizes(&self) -> Vec<Size> {
        let mut all = vec![];
        for &tasks in &self.tasks {
            for &heads in &self.heads {
                all.extend(self.widths.iter().map(|&width| Size { tasks, heads, width }));
            }
        }
        all
    }

    /// The training of one model.
    fn training(&self, size: Size, all: &Tasks) -> Training {
        let language = Language::Tasks(Tasks { tasks: all.tasks[..size.tasks].to_vec(), ..all.clone() });
        let mut training = Training { language, ..self.base.clone() };
        let model = &mut training.model;
        (model.n_heads, model.n_kv_heads, model.d_head) = (size.heads, size.heads, size.width);
        (model.vocab, model.n_positions) = (training.language.vocab(), training.language.positions());
        training
    }

    /// How well a seed's models with and without a variable explain the metric.
    fn explained(&self, metric: &str, seed: u64, models: &[(Size, Vec<Observation>)]) -> Vec<Observation> {
        let value = |rows: &[Observation]| {
            let own = rows.iter().find(|row| row.metric == metric && row.keys.seed == Some(seed));
            own.map(|row| row.value).filter(|value| value.is_finite())
        };
        let (sizes, values): (Vec<Size>, Vec<f64>) =
            models.iter().filter_map(|(size, rows)| Some((*size, value(rows)?))).unzip();
        let enough = 2 * values.len() >= models.len();
        let r2 = |variables: Variables| {
            let rows: Vec<Vec<f64>> = sizes.iter().map(|size| variables(*size)).collect();
            let x = Array2::from_shape_fn((rows.len(), rows.first().map_or(0, Vec::len)), |(i, j)| rows[i][j]);
            predicted_r2(&x.view(), &values).ok().filter(|_| enough).unwrap_or(f64::NAN)
        };
        let slopes = slopes_of(&sizes, &values).filter(|_| enough).unwrap_or([f64::NAN; 2]);
        let shares = REGRESSIONS.map(|(name, variables)| (name, r2(variables)));
        let more =
            [("demand_over_width", shares[0].1 - shares[1].1), ("per_demand", slopes[0]), ("per_width", slopes[1])];
        let named = |(name, value): (&str, f64)| row(seed, self.base.train.steps, &format!("{metric}_{name}"), value);
        shares.into_iter().chain(more).map(named).collect()
    }
}

/// The slopes of a metric by demand and by width, each for a doubling.
fn slopes_of(sizes: &[Size], values: &[f64]) -> Option<[f64; 2]> {
    let x = Array2::from_shape_fn((sizes.len(), 2), |(i, j)| if j == 0 { sizes[i].demand() } else { sizes[i].width() });
    slopes(&x.view(), values).ok()?.try_into().ok()
}

/// The measurements of whole runs after the last step.
fn at_the_end(rows: Vec<Observation>) -> Vec<Observation> {
    let last = rows.iter().filter_map(|row| row.keys.step).max();
    let whole = |row: &Observation| row.keys.head.is_none() && row.keys.layer.is_none() && row.keys.task.is_none();
    rows.into_iter().filter(|row| row.keys.step == last && whole(row)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::lab::experiment::{Experiment, Grid, Work};

    /// The regressions on a metric that is a function of a model's size, over the grid of E13.
    fn explained(of: impl Fn(Size) -> f64) -> BTreeMap<String, f64> {
        let experiment = Experiment::named("E13", Grid::Full).unwrap();
        let Work::Demand(demand) = &experiment.cells[0].work else { unreachable!() };
        let model = |size| (size, vec![row(1, 0, "division", of(size))]);
        let models: Vec<_> = demand.sizes().into_iter().map(model).collect();
        let rows = demand.explained("division", 1, &models);
        rows.into_iter().map(|row| (row.metric, row.value)).collect()
    }

    #[test]
    fn what_follows_the_demand_is_explained_by_the_demand() {
        let found = explained(|size| 1.0 / (1.0 + size.demand().powi(2)) + 0.001 * size.width());
        assert!(found["division_r2_demand"] > 0.5 && found["division_r2_width"] < 0.01, "{found:?}");
        assert!(found["division_demand_over_width"] > 0.5);
        let linear = explained(|size| size.demand());
        assert!((linear["division_r2_demand"] - 1.0).abs() < 1e-9 && linear["division_r2_heads"] < 0.9);
        assert!((linear["division_per_demand"] - 1.0).abs() < 1e-9 && linear["division_per_width"].abs() < 1e-9);
    }

    #[test]
    fn what_follows_the_width_is_explained_by_the_width() {
        let found = explained(|size| size.width().powi(2));
        assert!((found["division_r2_width"] - 1.0).abs() < 1e-9 && found["division_r2_demand"] < 0.01, "{found:?}");
        assert!(found["division_demand_over_width"] < -0.9);
    }

    #[test]
    fn noise_is_explained_by_nothing() {
        let mut noise = crate::stats::shuffled(&(0..1000).collect::<Vec<_>>(), 4).into_iter();
        let noise = std::cell::RefCell::new(&mut noise);
        let found = explained(|_| f64::from(noise.borrow_mut().next().unwrap()));
        assert!(found.iter().filter(|(name, _)| name.contains("_r2_")).all(|(_, r2)| *r2 < 0.1), "{found:?}");
    }

    #[test]
    fn a_metric_that_most_models_lack_is_not_explained() {
        let found = explained(|size| if size.tasks == 4 { size.width() } else { f64::NAN });
        assert!(found.values().all(|value| value.is_nan()));
        let some = explained(|size| if size.heads > 1 { size.width() } else { f64::NAN });
        assert!((some["division_r2_width"] - 1.0).abs() < 1e-9, "with one head there is nothing to divide");
    }
}
