//! Do the heads of a layer stand in for each other? What each costs alone, beside what all cost together.

use std::collections::BTreeMap;

use serde_json::json;

use crate::error::{Error, Result};
use crate::intervene::{Ablation, Metric, Sweep, Variant};
use crate::model::{Model, Site, Tokens};
use crate::table::{Keys, Observation, Table};

/// Options of [`redundancy`].
#[derive(Debug, Clone)]
pub struct RedundancyOptions<'a> {
    /// The layers; by default all.
    pub layers: Vec<usize>,
    /// What replaces an absent head.
    pub ablation: Ablation,
    /// The prompts that a mean is taken over; by default those measured.
    pub reference: Option<&'a Tokens>,
    /// The metrics, measured on the same runs.
    pub metrics: Vec<Metric>,
    /// The smallest effect of a whole layer, in units of each metric, for its redundancy to be meaningful: the ratio of two
    /// effects that are hardly there is noise.
    pub least: f64,
}

impl Default for RedundancyOptions<'_> {
    fn default() -> Self {
        Self { layers: vec![], ablation: Ablation::Mean, reference: None, metrics: vec![Metric::Loss], least: 0.01 }
    }
}

/// Do the heads of a layer stand in for each other? With m the metric, `D_h = m(without h) - m` the effect of ablating head
/// h alone, and D that of ablating all H heads of the layer together, the layer's redundancy is
///
/// ```text
/// R = 1 - (D_1 + ... + D_H) / D, limited to 0..1
/// ```
///
/// It is the share of the joint effect that single ablations miss: 0 if the effects add up, as those of independent heads do,
/// and also where heads need each other, so that each alone costs more than its share; 1 if no single head is missed although
/// together they are, because any of them does what the others do (backup heads, Wang et al. 2022). Since Shapley values sum to
/// D ([`shapley`](crate::intervene::shapley)), R compares single ablations with them, at H + 1 runs rather than 2^H. An overlap
/// of effects need not be a duplicate: heads that raise the same logit further than matters overlap, too.
///
/// The loss on a text is noisy: in a model of many layers, a few hundred tokens do not show what one layer's heads are good for.
/// [`Metric::Kl`] does. It is how much the loss would rise on average if the next tokens were drawn from the unchanged model's
/// own predictions. Small changes of the output cost their square there, so that H copies, each doing the H-th part of the
/// work, have R = 1 - 1/H, and heads with uncorrelated effects have R = 0.
///
/// Per layer and metric (named in column `method`) one row `redundancy`, missing if |D| is below
/// [`RedundancyOptions::least`]; one row of the metric for all heads together, and one for each head: `value` with the
/// ablation, `baseline` without.
///
/// ```
/// use headscope::heads::{RedundancyOptions, redundancy};
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat sat on the mat", "a dog ran in the park"])?;
/// let table = redundancy(&model, &tokens, &RedundancyOptions { layers: vec![1, 2], ..Default::default() })?;
/// assert_eq!(table.len(), 2 * (1 + 1 + 4)); // per layer: redundancy, all heads, each of four heads
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// See also [`Circuits::alignments`](crate::circuits::Circuits::alignments), which asks the weights.
///
/// # Errors
/// If a layer does not exist or is named twice, `least` is not a number above 0, there is no metric, or a metric or the tokens
/// do not fit the model.
pub fn redundancy(model: &Model, tokens: &Tokens, options: &RedundancyOptions<'_>) -> Result<Table> {
    let layers = layers(model, options)?;
    let mut sweep = Sweep::ablate(model, tokens, options.ablation).metrics(options.metrics.clone());
    if let Some(reference) = options.reference {
        sweep = sweep.reference(reference);
    }
    let heads = model.config().n_heads;
    let number = |n: usize| u32::try_from(n).ok();
    let variant = |layer: usize, head: Option<usize>| {
        let of = head.map_or_else(|| (0..heads).collect(), |head| vec![head]);
        let keys = Keys { layer: number(layer), head: head.and_then(number), ..Keys::default() };
        Variant { keys, edits: vec![sweep.edit(Site::Z(layer)).heads(of)] }
    };
    let each = |layer: usize| [None].into_iter().chain((0..heads).map(Some)).map(move |head| (layer, head));
    let variants = layers.iter().flat_map(|&layer| each(layer)).map(|(layer, head)| variant(layer, head)).collect();
    let measured = sweep.variants(variants).run()?;
    let mut rows = of_layers(&measured.rows()?, options.least);
    rows.extend(measured.rows()?);
    let what = json!({"what": "redundancy", "least": options.least, "sweep": measured.provenance().options});
    Table::new(rows, model.provenance(what, measured.provenance().seed)?)
}

fn layers(model: &Model, options: &RedundancyOptions<'_>) -> Result<Vec<usize>> {
    let n_layers = model.config().n_layers;
    let mut layers = options.layers.clone();
    layers.sort_unstable();
    layers.dedup();
    let exist = layers.last().is_none_or(|&last| last < n_layers);
    if layers.len() < options.layers.len() || !exist {
        let expected = format!("layers below {n_layers}, each once");
        return Err(Error::argument("layers", expected, format!("{:?}", options.layers)));
    }
    if !(options.least.is_finite() && options.least > 0.0) {
        return Err(Error::argument("least", "a finite number above 0", options.least));
    }
    Ok(if layers.is_empty() { (0..n_layers).collect() } else { layers })
}

/// The rows of redundancy, from the effects of single heads (rows with a head) and of all (rows without).
fn of_layers(measured: &[Observation], least: f64) -> Vec<Observation> {
    // By layer and metric: the sum of the effects of single heads, and the effect of all.
    let mut effects: BTreeMap<(Option<u32>, &str), [f64; 2]> = BTreeMap::new();
    for row in measured {
        let which = usize::from(row.keys.head.is_none());
        let sums = effects.entry((row.keys.layer, row.metric.as_str())).or_default();
        sums[which] += row.value - row.baseline.unwrap_or(f64::NAN);
    }
    let row = |((layer, metric), [alone, all]): ((Option<u32>, &str), [f64; 2])| Observation {
        keys: Keys { layer, method: Some(metric.to_owned()), ..Keys::default() },
        metric: "redundancy".to_owned(),
        value: if all.abs() >= least { (1.0 - alone / all).clamp(0.0, 1.0) } else { f64::NAN },
        ..Observation::default()
    };
    effects.into_iter().map(row).collect()
}
