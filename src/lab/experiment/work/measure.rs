//! What is measured of the models in a cell?

use super::row;
use super::training::Measurement;
use crate::circuits::Measure as Weights;
use crate::error::Result;
use crate::intervene::Ablation;
use crate::lab::language::{Batch, Language, TaskInfo};
use crate::lab::trace::{Division, Losses, Probe, division, participation};
use crate::lab::verdict::EXCESS_LOSS;
use crate::model::Model;
use crate::table::Observation;
use ndarray::{Array3, Axis, s};

/// Minimum effect of a layer for an index of its division to be meaningful, in nats.
const LEAST: f64 = 0.1;

/// The inputs of a measure.
pub(super) struct Asked<'a> {
    pub probe: &'a Probe,
    /// The same models on other sequences.
    pub other: &'a Probe,
    /// The models, stacked.
    pub model: &'a Model,
    pub language: &'a Language,
    pub batches: &'a [Batch],
    pub tasks: &'a [TaskInfo],
    /// The weight of each task in the training loss; none if they are equal.
    pub weights: &'a [f64],
    pub seeds: &'a [u64],
    pub step: usize,
    pub layers: usize,
    /// The layer whose heads are measured.
    pub layer: usize,
    pub heads: usize,
    pub width: usize,
}

/// Values measured before training, for measures that are relative to them.
#[derive(Default)]
pub(super) struct Start {
    cka: Vec<f64>,
}

impl Asked<'_> {
    /// Observations of the losses.
    pub(super) fn losses(&self, losses: &Losses) -> Vec<Observation> {
        let mut rows = vec![];
        for (run, &seed) in self.seeds.iter().enumerate() {
            for (task, info) in self.tasks.iter().enumerate().filter(|(task, _)| losses.count[[run, *task]] > 0.0) {
                for (metric, values) in [("loss", &losses.loss), ("accuracy", &losses.accuracy)] {
                    let mut row = row(seed, self.step, metric, values[[run, task]]);
                    row.keys.task = Some(info.name.clone());
                    rows.push(row);
                }
            }
            rows.push(row(seed, self.step, EXCESS_LOSS, excess(losses, self.tasks, run)));
        }
        rows
    }

    /// Observations of one measure.
    pub(super) fn measure(&self, measure: Measurement, start: &mut Start) -> Result<Vec<Observation>> {
        match measure {
            Measurement::Division => self.division(),
            Measurement::Patterns => self.patterns(),
            Measurement::Written => self.written(start),
            Measurement::Overlaps => self.overlaps(),
            Measurement::Gradients => self.gradients(),
            Measurement::Others(task) => self.others(task),
            Measurement::Roles => self.roles(),
            Measurement::Information => self.information(),
            Measurement::Truncated => self.truncated(),
            Measurement::Norms => self.norms(),
            Measurement::Order => self.initial_rates(),
            Measurement::Complexity(options) => self.complexity(&options),
        }
    }

    /// An observation about a whole run.
    pub(super) fn of_run(&self, run: usize, metric: &str, value: f64) -> Observation {
        row(self.seeds[run], self.step, metric, value)
    }

    /// An observation about a head and a task.
    pub(super) fn detail(
        &self,
        run: usize,
        metric: &str,
        (layer, head, task): (usize, usize, usize),
        value: f64,
    ) -> Observation {
        let mut row = row(self.seeds[run], self.step, metric, value);
        row.keys.layer = u32::try_from(layer).ok();
        row.keys.head = u32::try_from(head).ok();
        row.keys.task = self.tasks.get(task).map(|info| info.name.clone());
        row
    }

    fn division(&self) -> Result<Vec<Observation>> {
        let phi = self.probe.shapley(self.layer, Ablation::Mean)?;
        let mut rows = vec![];
        for (run, &seed) in self.seeds.iter().enumerate() {
            let own = phi.index_axis(Axis(0), run);
            for ((head, task), &value) in own.indexed_iter() {
                rows.push(self.detail(run, "shapley", (self.layer, head, task), value));
            }
            let total = own.sum() / self.tasks.len() as f64;
            let divides = total >= LEAST;
            let found = if divides { division(own)? } else { None };
            let index = |of: fn(Division) -> f64| found.map_or(f64::NAN, of);
            let shares = own.columns().into_iter().map(|column| participation(&column.to_vec()));
            let shares: Vec<f64> = shares.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
            let share = (divides && !shares.is_empty()).then(|| shares.iter().sum::<f64>() / shares.len() as f64);
            let all = [
                ("total_effect", total),
                ("specialisation", index(|found| found.specialisation)),
                ("specialisation_null", index(|found| found.concentration)),
                ("division", index(|found| found.division)),
                ("participation", share.unwrap_or(f64::NAN)),
            ];
            rows.extend(all.map(|(metric, value)| row(seed, self.step, metric, value)));
        }
        Ok(rows)
    }

    fn patterns(&self) -> Result<Vec<Observation>> {
        let mut rows = vec![];
        for layer in 0..self.layers {
            let apart = over_pairs(&self.probe.pattern_distance(layer)?);
            if layer == self.layer {
                rows.extend(self.of_runs("pattern_divergence", &apart));
            }
            if self.layers > 1 {
                let mut own = self.of_runs("pattern_divergence_by_layer", &apart);
                own.iter_mut().for_each(|row| row.keys.task = Some(format!("layer {layer}")));
                rows.extend(own);
            }
        }
        Ok(rows)
    }

    fn written(&self, start: &mut Start) -> Result<Vec<Observation>> {
        let cka = over_pairs(&self.probe.cka(self.layer)?);
        if start.cka.is_empty() {
            start.cka.clone_from(&cka);
        }
        let gain = cka.iter().zip(&start.cka).map(|(now, then)| (now - then) / (1.0 - then));
        let gain: Vec<f64> = gain.collect();
        Ok([self.of_runs("cka", &cka), self.of_runs("cka_gain", &gain)].concat())
    }

    fn overlaps(&self) -> Result<Vec<Observation>> {
        let first = self.layer * self.heads;
        let of = |measure: Weights| {
            let all = self.probe.weight_similarity(measure)?;
            let layer = all.slice(s![.., first..first + self.heads, first..first + self.heads]).to_owned();
            Ok(self.of_runs(measure.name(), &over_pairs(&layer)))
        };
        let subspaces = [Weights::QueryOverlap, Weights::KeyOverlap, Weights::ValueOverlap, Weights::WriteOverlap];
        Ok(subspaces.map(of).into_iter().collect::<Result<Vec<_>>>()?.concat())
    }

    fn norms(&self) -> Result<Vec<Observation>> {
        let mut squares = vec![0.0; self.seeds.len()];
        for name in ["w_q", "w_k", "w_v", "w_o"] {
            let own = self.probe.squared_norms(&format!("blocks.{}.{name}", self.layer))?;
            squares.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
        }
        let norms: Vec<f64> = squares.into_iter().map(f64::sqrt).collect();
        Ok(self.of_runs("weight_norm", &norms))
    }

    fn gradients(&self) -> Result<Vec<Observation>> {
        let share = self.probe.gradients()?.share;
        let share = share.index_axis(Axis(1), self.layer);
        let row = |((run, head, task), &value): ((usize, usize, usize), &f64)| {
            self.detail(run, "gradient_share", (self.layer, head, task), value)
        };
        Ok(share.indexed_iter().map(row).collect())
    }

    fn others(&self, task: usize) -> Result<Vec<Observation>> {
        let phi = self.probe.shapley(self.layer, Ablation::Mean)?;
        let phi = phi.mapv(|value| value.max(0.0));
        let norm = self.probe.gradients()?.norm;
        let energy = norm.index_axis(Axis(1), self.layer).mapv(|norm| norm * norm);
        let share = |of: &Array3<f64>, run: usize, least: f64| {
            let others = of.slice(s![run, 1.., ..]);
            let all = others.sum();
            if all >= least * self.tasks.len() as f64 { others.column(task).sum() / all } else { f64::NAN }
        };
        let name = self.tasks.get(task).map(|info| info.name.clone());
        // The sub-game in which head 0 is present: what the others add to it together.
        let others = (1..self.heads).collect();
        let losses = self.probe.losses_without(self.layer, &[others, vec![]], Ablation::Mean)?;
        let added = |run: usize| {
            let gains: Vec<f64> =
                (0..self.tasks.len()).map(|task| (losses[[run, 0, task]] - losses[[run, 1, task]]).max(0.0)).collect();
            let all: f64 = gains.iter().sum();
            if all >= LEAST * self.tasks.len() as f64 { gains[task] / all } else { f64::NAN }
        };
        let of_run = |(run, &seed): (usize, &u64)| {
            let found = [
                ("others_share", share(&phi, run, LEAST)),
                ("others_gradient_share", share(&energy, run, 0.0)),
                ("others_added_share", added(run)),
            ];
            found.map(|(metric, value)| {
                let mut row = row(seed, self.step, metric, value);
                row.keys.task = name.clone();
                row
            })
        };
        Ok(self.seeds.iter().enumerate().flat_map(of_run).collect())
    }

    /// Observations about each run.
    pub(super) fn of_runs(&self, metric: &str, values: &[f64]) -> Vec<Observation> {
        self.seeds.iter().zip(values).map(|(&seed, &value)| row(seed, self.step, metric, value)).collect()
    }
}

/// Excess loss of a run: the mean over tasks of (loss - floor) / (chance - floor).
pub(super) fn excess(losses: &Losses, tasks: &[TaskInfo], run: usize) -> f64 {
    let known =
        tasks.iter().enumerate().filter(|(task, info)| losses.count[[run, *task]] > 0.0 && info.chance > info.floor);
    let shares: Vec<f64> =
        known.map(|(task, info)| (losses.loss[[run, task]] - info.floor) / (info.chance - info.floor)).collect();
    shares.iter().sum::<f64>() / shares.len() as f64
}

/// Mean over pairs of distinct heads of `[run, head, head]`, ignoring NaN; NaN if there is no pair.
fn over_pairs(matrix: &Array3<f64>) -> Vec<f64> {
    let mean = |own: ndarray::ArrayView2<f64>| {
        let pairs = own.indexed_iter().filter(|((a, b), value)| a < b && !value.is_nan());
        let (sum, n) = pairs.fold((0.0, 0.0), |(sum, n), (_, value)| (sum + value, n + 1.0));
        sum / n
    };
    matrix.outer_iter().map(mean).collect()
}
