//! How are effects estimated from gradients, and reported beside exact ones?

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayView1};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{Engine, Outcome, Setup};
use crate::error::{Error, Result};
use crate::intervene::metric::{Metric, Output};
use crate::model::{Joins, Pass, Past, Program, Site};
use crate::stats::{pearson, spearman};
use crate::table::{Agreement, Keys, Observation, Provenance, Table};

/// How to estimate the effects of a sweep, or of paths, from gradients.
///
/// Below, a are the activations of the unchanged run, a' those of a variant, and m is the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimate {
    /// Attribution patching (Nanda 2023): `(a' - a) . dm/da` at the unchanged run. Exact if the metric is linear in a;
    /// otherwise the error is of second order in the change. One forward and one backward pass for all variants.
    Attribution,
    /// Integrated gradients (Sundararajan et al. 2017): `(a' - a) . (mean of dm/da at a + (k - 1/2)/steps (a' - a))`, k
    /// from 1 to `steps`, with the whole site moving. Accounts for saturation. One pass per site and step.
    IntegratedGradients {
        /// Number of steps.
        steps: usize,
    },
    /// AtP* (Kramár et al. 2024): attribution patching with two corrections. Queries and keys are evaluated through the
    /// softmax, `(pattern' - pattern) . dm/dpattern`. And gradients are taken L times, each time blocked at one of the
    /// L layers, so that direct and indirect effects cannot cancel in all of them. The effect is a magnitude per
    /// prompt: `1/(L - 1)` times the sum of `|estimate|` over the blocked layers.
    AtpStar,
}

impl Estimate {
    /// The name in column `method`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attribution => "attribution",
            Self::IntegratedGradients { .. } => "integrated_gradients",
            Self::AtpStar => "atp_star",
        }
    }

    /// Whether the estimated effects have a sign. AtP* gives magnitudes.
    pub fn is_signed(self) -> bool {
        self != Self::AtpStar
    }

    pub(super) fn check(self, metric: &Metric) -> Result<()> {
        if matches!(self, Self::IntegratedGradients { steps: 0 }) {
            return Err(Error::argument("steps", "at least 1", 0));
        }
        if metric.is_relative() || matches!(metric, Metric::Rank(_) | Metric::Accuracy) {
            return Err(Error::argument("metric", "one with a gradient at the unchanged run", metric.name()));
        }
        Ok(())
    }
}

/// Gradients of each prompt's metric, by site. A site that does not affect the metric has none.
pub(in crate::intervene) type Gradients = BTreeMap<Site, Tensor>;

/// One forward and backward pass: the activations that the program records, and the gradients of a metric there.
pub(in crate::intervene) fn back(
    setup: &Setup<'_>,
    engine: &Engine<'_>,
    program: &Program,
    joins: &Joins<'_>,
    metric: usize,
) -> Result<(BTreeMap<Site, Tensor>, Gradients)> {
    let Setup { model, tokens, .. } = *setup;
    let config = model.config();
    tch::with_grad(|| {
        let pass = Pass::over(model, program, tokens.positions(), model.hidden_padding(tokens), Past::None);
        let mut pass = pass.with_types(tokens.types(model.device())).with_source(tokens);
        let resid = pass.residual(joins, config.n_layers)?;
        let logits = program.goes_past(config.n_layers - 1, model);
        let logits = logits.then(|| pass.logits(&resid)).transpose()?;
        let end = Output { logits, ..Output::whole(&resid) };
        let total = engine.reader.values_of(metric, &end)?.sum(Kind::Double);
        let (taps, _) = pass.into_records();
        let found = backward(&total, &taps.values().collect::<Vec<_>>())?;
        let gradients = taps.keys().copied().zip(found).filter(|(_, gradient)| gradient.defined()).collect();
        Ok((taps.into_iter().map(|(site, value)| (site, value.detach())).collect(), gradients))
    })
}

/// The gradients of a scalar.
pub(in crate::intervene) fn backward(total: &Tensor, inputs: &[&Tensor]) -> Result<Vec<Tensor>> {
    Tensor::f_run_backward(&[total], inputs, false, false).map_err(Error::torch("the gradient of the metric"))
}

impl Outcome<'_> {
    /// The numbers of the variants with the `n` largest effects, `[variant, cell]`: by the magnitude of the first
    /// metric's mean.
    pub(in crate::intervene) fn largest(&self, effects: &Array2<f64>, n: usize) -> Vec<usize> {
        let size: Vec<f64> = effects.outer_iter().map(|effect| self.sum(effect, |effect| effect).abs()).collect();
        let mut largest: Vec<usize> = (0..size.len()).collect();
        largest.sort_by(|&a, &b| size[b].total_cmp(&size[a]));
        largest.truncate(n);
        largest
    }

    /// The sum of what `size` makes of the first metric's effects.
    fn sum(&self, effects: ArrayView1<'_, f64>, size: impl Fn(f64) -> f64) -> f64 {
        effects.iter().zip(&self.cells).filter(|(_, cell)| cell.metric == 0).map(|(&effect, _)| size(effect)).sum()
    }

    /// The table of estimated `effects`, `[variant, cell]`, with the `exact` values of the variants `numbers`.
    pub(in crate::intervene) fn estimated(
        &self,
        estimate: Estimate,
        keys: &[Keys],
        effects: &Array2<f64>,
        numbers: &[usize],
        exact: &Array2<f64>,
        mut provenance: Provenance,
    ) -> Result<Table> {
        let keys = |number: usize, method: &str| Keys { method: Some(method.to_owned()), ..keys[number].clone() };
        let mut rows = vec![];
        for (number, effect) in effects.outer_iter().enumerate() {
            let values: Vec<f64> = effect.iter().zip(&self.baseline).map(|(effect, base)| base + effect).collect();
            let estimated = self.rows(&keys(number, estimate.name()), &values)?;
            rows.extend(estimated.into_iter().map(|row| if estimate.is_signed() { row } else { magnitude(row) }));
        }
        for (&number, values) in numbers.iter().zip(exact.outer_iter()) {
            rows.extend(self.rows(&keys(number, "exact"), &values.to_vec())?);
        }
        if !numbers.is_empty() {
            provenance.options["what"]["agreement"] = self.agreement(estimate, numbers, effects, exact);
        }
        Table::new(rows, provenance)
    }

    /// Pearson and Spearman correlation between estimated and exact effects of some variants on the first metric, of
    /// magnitudes if that is what the estimate gives; null if either is constant.
    fn agreement(
        &self,
        estimate: Estimate,
        numbers: &[usize],
        effects: &Array2<f64>,
        exact: &Array2<f64>,
    ) -> serde_json::Value {
        let size = |effect: f64| if estimate.is_signed() { effect } else { effect.abs() };
        let estimates: Vec<f64> = numbers.iter().map(|&number| self.sum(effects.row(number), size)).collect();
        let baseline = ArrayView1::from(&self.baseline);
        let exact: Vec<f64> = exact.outer_iter().map(|values| self.sum((&values - &baseline).view(), size)).collect();
        let (pearson, spearman) = (pearson(&estimates, &exact).ok(), spearman(&estimates, &exact).ok());
        let (variants, magnitudes) = (exact.len(), !estimate.is_signed());
        serde_json::json!(Agreement { variants, pearson, spearman, magnitudes })
    }
}

/// A row whose effect is a magnitude: value is its distance from a baseline of 0, and the metric says so.
fn magnitude(mut row: Observation) -> Observation {
    let base = row.baseline.unwrap_or(0.0);
    let flip = if row.value < base { -1.0 } else { 1.0 };
    row.value = flip * (row.value - base);
    let size = |value: f64| flip * (value - base);
    (row.low, row.high) = match (row.low.map(size), row.high.map(size)) {
        (Some(low), Some(high)) => (Some(low.min(high)), Some(low.max(high))),
        none => none,
    };
    row.baseline = Some(0.0);
    row.metric = format!("{} (magnitude of the effect)", row.metric);
    row
}
