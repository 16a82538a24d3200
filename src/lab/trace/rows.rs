//! How do all measurements fit into one table? As rows with shared key columns.

use ndarray::{ArrayView2, Axis};
use serde::{Deserialize, Serialize};

use super::division::{participation, specialisation};
use super::probe::Probe;
use super::weights::CIRCUITS;
use crate::circuits;
use crate::error::Result;
use crate::intervene::Ablation;
use crate::table::{Keys, Observation, Provenance, Table};

/// A measurement of heads during training. Each yields rows with the columns `layer, head, task, step, seed` where they
/// apply, and `from_head` if rows are about pairs of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// `loss` and `accuracy` of each task, on held-out sequences.
    Losses,
    /// `shapley` of each head and task (mean ablation), the layer's `specialisation`, and the `participation_ratio` of
    /// the layer's heads for each task and, without a task, for all tasks together.
    Shapley,
    /// `role` of each head and kind of dependency (as `task`), with that of uniform attention as `baseline`.
    Roles,
    /// `jensen_shannon` of each pair of heads of a layer.
    Patterns,
    /// `cka` between the outputs of each pair of heads of a layer.
    Written,
    /// `query_overlap`, `key_overlap`, `value_overlap`, `write_overlap` of each pair of heads of a layer.
    Overlaps,
    /// `effective_rank` of each head's circuits (`site` is `qk` or `ov`).
    Ranks,
    /// `gradient_norm` and `gradient_share` of each head and task; `gradient_cosine` of each pair of tasks (as `a x b`)
    /// in a head, and of each pair of heads of a layer.
    Gradients,
    /// `interference` of each head of a layer (`from_head`) with each head.
    Interference,
}

impl Quantity {
    /// All quantities.
    pub const ALL: [Self; 9] = [
        Self::Losses,
        Self::Shapley,
        Self::Roles,
        Self::Patterns,
        Self::Written,
        Self::Overlaps,
        Self::Ranks,
        Self::Gradients,
        Self::Interference,
    ];
}

impl Probe {
    /// Measures the given quantities and returns one sorted table.
    ///
    /// ```
    /// use headscope::lab::trace::{Probe, Quantity, held_out};
    /// use headscope::lab::{Language, language::Repeats};
    /// use headscope::model::Model;
    /// let language = Language::Repeats(Repeats::default());
    /// let probe = Probe::new(&[Model::load("induction")?], &language, &held_out(&language, 16, &[0])?)?;
    /// let table = probe.table(&[Quantity::Losses, Quantity::Roles])?;
    /// assert_eq!(table.columns(), ["layer", "head", "task", "metric", "value", "baseline"]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If a quantity cannot be measured on these models.
    pub fn table(&self, quantities: &[Quantity]) -> Result<Table> {
        let options = serde_json::json!({"what": "trace", "quantities": quantities, "model": self.model.config(),
            "rows": self.batches.first().map_or(0, |batch| batch.samples.len())});
        let model = self.model.origin().name.clone();
        let headscope = env!("CARGO_PKG_VERSION").to_owned();
        Table::new(self.observations(quantities)?, Provenance { headscope, model, options, ..Provenance::default() })
    }

    /// Measures the given quantities and returns rows.
    ///
    /// # Errors
    /// If a quantity cannot be measured on these models.
    pub fn observations(&self, quantities: &[Quantity]) -> Result<Vec<Observation>> {
        let mut rows = Rows { probe: self, all: vec![] };
        for quantity in quantities {
            match quantity {
                Quantity::Losses => rows.losses()?,
                Quantity::Shapley => rows.shapley()?,
                Quantity::Roles => rows.roles()?,
                Quantity::Patterns => rows.pairs("jensen_shannon", |layer| self.pattern_distance(layer))?,
                Quantity::Written => rows.pairs("cka", |layer| self.cka(layer))?,
                Quantity::Overlaps => rows.overlaps()?,
                Quantity::Ranks => rows.ranks()?,
                Quantity::Gradients => rows.gradients()?,
                Quantity::Interference => rows.interference()?,
            }
        }
        Ok(rows.all)
    }
}

/// Accumulates rows.
struct Rows<'a> {
    probe: &'a Probe,
    all: Vec<Observation>,
}

fn number(n: usize) -> Option<u32> {
    u32::try_from(n).ok()
}

fn of_head(layer: usize, head: usize) -> Keys {
    Keys { layer: number(layer), head: number(head), ..Keys::default() }
}

fn of_pair(layer: usize, from: usize, head: usize) -> Keys {
    Keys { from_head: number(from), ..of_head(layer, head) }
}

impl Rows<'_> {
    fn push(&mut self, run: usize, keys: Keys, metric: &str, value: f64, baseline: Option<f64>) {
        let keys = Keys { step: self.probe.step.and_then(number), seed: self.probe.seeds[run], ..keys };
        self.all.push(Observation { keys, metric: metric.to_owned(), value, baseline, ..Observation::default() });
    }

    fn layers(&self) -> usize {
        self.probe.model.config().n_layers
    }

    fn task(&self, task: usize) -> Option<String> {
        self.probe.tasks.get(task).cloned()
    }

    fn losses(&mut self) -> Result<()> {
        let losses = self.probe.losses()?;
        for ((run, task), _) in losses.count.indexed_iter().filter(|(_, count)| **count > 0.0) {
            let keys = Keys { task: self.task(task), ..Keys::default() };
            self.push(run, keys.clone(), "loss", losses.loss[[run, task]], None);
            self.push(run, keys, "accuracy", losses.accuracy[[run, task]], None);
        }
        Ok(())
    }

    fn shapley(&mut self) -> Result<()> {
        for layer in 0..self.layers() {
            let phi = self.probe.shapley(layer, Ablation::Mean)?;
            for ((run, head, task), &value) in phi.indexed_iter() {
                let keys = Keys { task: self.task(task), ..of_head(layer, head) };
                self.push(run, keys, "shapley", value, None);
            }
            for (run, phi) in phi.axis_iter(Axis(0)).enumerate() {
                self.division(run, layer, phi)?;
            }
        }
        Ok(())
    }

    /// Indices of how a layer's heads divide the work; undefined ones are omitted.
    fn division(&mut self, run: usize, layer: usize, phi: ArrayView2<'_, f64>) -> Result<()> {
        let keys = Keys { layer: number(layer), ..Keys::default() };
        if let Some(value) = specialisation(phi)? {
            self.push(run, keys.clone(), "specialisation", value, None);
        }
        let all = (None, phi.sum_axis(Axis(1)));
        let each = phi.axis_iter(Axis(1)).enumerate().map(|(task, phi)| (self.task(task), phi.to_owned()));
        for (task, phi) in std::iter::once(all).chain(each).collect::<Vec<_>>() {
            if let Some(value) = participation(&phi.to_vec())? {
                self.push(run, Keys { task, ..keys.clone() }, "participation_ratio", value, None);
            }
        }
        Ok(())
    }

    fn roles(&mut self) -> Result<()> {
        let roles = self.probe.roles()?;
        for ((run, layer, head, kind), &value) in roles.attention.indexed_iter() {
            let keys = Keys { task: Some(roles.kinds[kind].clone()), ..of_head(layer, head) };
            self.push(run, keys, "role", value, Some(roles.uniform[[run, kind]]));
        }
        Ok(())
    }

    /// One row for each pair of heads of a layer.
    fn pairs(&mut self, metric: &str, of: impl Fn(usize) -> Result<ndarray::Array3<f64>>) -> Result<()> {
        for layer in 0..self.layers() {
            for ((run, from, head), &value) in of(layer)?.indexed_iter().filter(|((_, from, head), _)| from < head) {
                self.push(run, of_pair(layer, from, head), metric, value, None);
            }
        }
        Ok(())
    }

    fn overlaps(&mut self) -> Result<()> {
        use circuits::Measure::{KeyOverlap, QueryOverlap, ValueOverlap, WriteOverlap};
        let heads = self.probe.model.config().n_heads;
        for measure in [QueryOverlap, KeyOverlap, ValueOverlap, WriteOverlap] {
            let all = self.probe.weight_similarity(measure)?;
            for ((run, a, b), &value) in all.indexed_iter().filter(|((_, a, b), _)| a < b && a / heads == b / heads) {
                self.push(run, of_pair(a / heads, a % heads, b % heads), measure.name(), value, None);
            }
        }
        Ok(())
    }

    fn ranks(&mut self) -> Result<()> {
        for ((run, layer, head, circuit), &value) in self.probe.ranks()?.indexed_iter() {
            let keys = Keys { site: Some(CIRCUITS[circuit].to_owned()), ..of_head(layer, head) };
            self.push(run, keys, "effective_rank", value, None);
        }
        Ok(())
    }

    fn gradients(&mut self) -> Result<()> {
        let gradients = self.probe.gradients()?;
        for (name, values) in [("gradient_norm", &gradients.norm), ("gradient_share", &gradients.share)] {
            for ((run, layer, head, task), &value) in values.indexed_iter() {
                self.push(run, Keys { task: self.task(task), ..of_head(layer, head) }, name, value, None);
            }
        }
        for (place, &value) in gradients.task_cosine.indexed_iter() {
            let (run, layer, head, a, b) = place;
            if a < b {
                let task = self.task(a).zip(self.task(b)).map(|(a, b)| format!("{a} x {b}"));
                self.push(run, Keys { task, ..of_head(layer, head) }, "gradient_cosine", value, None);
            }
        }
        for ((run, layer, from, head), &value) in gradients.head_cosine.indexed_iter() {
            if from < head {
                self.push(run, of_pair(layer, from, head), "gradient_cosine", value, None);
            }
        }
        Ok(())
    }

    fn interference(&mut self) -> Result<()> {
        for layer in 0..self.layers() {
            for ((run, from, head), &value) in self.probe.interference(layer)?.indexed_iter() {
                self.push(run, of_pair(layer, from, head), "interference", value, None);
            }
        }
        Ok(())
    }
}
