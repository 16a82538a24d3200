//! What does a lower rank of heads cost the model?

use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::circuits::CircuitOptions;
use crate::circuits::{Factored, TruncationError};
use crate::error::{Error, Result};
use crate::intervene::{Ablation, Metric, Sweep, Variant};
use crate::model::{Action, Edit, Model, Site, Tokens};
use crate::table::{Keys, Observation, Table};

/// The circuit to truncate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Where heads attend: `W_Q W_K^T`, truncated through the keys.
    Qk,
    /// What heads move: `W_V W_O`, truncated through z.
    Ov,
}

impl Cut {
    /// The name of the circuit in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qk => "qk",
            Self::Ov => "ov",
        }
    }
}

/// What to truncate, to which ranks, and what to measure.
#[derive(Debug, Clone)]
pub struct TruncationOptions {
    /// The circuit.
    pub cut: Cut,
    /// The ranks, from 1 to below `d_head`; by default the powers of two in this range.
    pub ranks: Vec<usize>,
    /// Whether to truncate all heads at once instead of one at a time.
    pub together: bool,
    /// Keeps random directions, drawn with this seed, instead of the best ones: a control.
    pub random: Option<u64>,
    /// The metric; by default the loss or, in a model without logits, how far its embedding moves.
    pub metric: Option<Metric>,
}

impl Default for TruncationOptions {
    fn default() -> Self {
        Self { cut: Cut::Qk, ranks: vec![], together: false, random: None, metric: None }
    }
}

impl TruncationOptions {
    /// The ranks for heads of this width.
    fn ranks(&self, width: usize) -> Result<Vec<usize>> {
        let below = 1..width;
        let wrong = |found: String| Error::argument("ranks", format!("ranks from 1 to below d_head = {width}"), found);
        if let Some(rank) = self.ranks.iter().find(|rank| !below.contains(rank)) {
            return Err(wrong(rank.to_string()));
        }
        let usual = (0..usize::BITS).map(|power| 1 << power).take_while(|rank| below.contains(rank));
        let ranks: Vec<usize> = if self.ranks.is_empty() { usual.collect() } else { self.ranks.clone() };
        if ranks.is_empty() {
            Err(wrong("none: a head of one dimension has no lower rank".to_owned()))
        } else {
            Ok(ranks)
        }
    }
}

/// What does the model lose when a head has a lower rank? Every head (for QK, every key/value head) is truncated in
/// turn to each rank below its width, and the metric is measured on `tokens`. Two rows for each, with the rank as
/// `component`:
///
/// - the metric, such as `loss`: `value` with the truncation, `baseline` without. If all heads are truncated at once,
///   the row names no head.
/// - `truncation_error`: the relative distance from the original weights in the Frobenius norm ([`TruncationError`]).
///   With random directions, it is larger than the minimum for the rank.
///
/// For OV, z is multiplied by the P of [`Factored::inner_truncation`], so that `W_V W_O` becomes the nearest matrix of
/// the rank (Eckart & Young 1936). For QK, the keys are multiplied by the P of
/// [`Circuits::keys_for_queries`](crate::circuits::Circuits::keys_for_queries), which is best for all query heads that
/// read them together and, with rotary positions, for all offsets in the prompts. The biases of keys and values are
/// kept. The norms are folded into the weights. One sweep computes all variants.
///
/// ```
/// use headscope::heads::{TruncationOptions, truncation_costs};
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat sat on the mat", "a dog ran in the park"])?;
/// let options = TruncationOptions { ranks: vec![1, 4], together: true, ..TruncationOptions::default() };
/// let table = truncation_costs(&model, &tokens, &options)?;
/// assert_eq!(table.columns(), ["component", "metric", "value", "unit", "baseline"]);
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// If a rank is not between 1 and `d_head` - 1, a token or the metric does not fit the model, or LAPACK fails.
pub fn truncation_costs(model: &Model, tokens: &Tokens, options: &TruncationOptions) -> Result<Table> {
    model.one_sequence("truncated heads")?;
    let ranks = options.ranks(model.config().d_head)?;
    let cuts = cuts(model, tokens, options, &ranks)?;
    let logits = model.config().has_logits();
    let usual = if logits { Metric::Loss } else { Metric::EmbeddingDistance };
    let sweep = Sweep::ablate(model, tokens, Ablation::Zero).metric(options.metric.clone().unwrap_or(usual));
    let variants: Vec<Variant> = match options.together {
        true => ranks.iter().map(|&rank| together(&cuts, rank)).collect(),
        false => cuts.iter().map(|cut| Variant { keys: cut.keys(), edits: cut.edits() }).collect(),
    };
    let sweep = cuts.iter().fold(sweep.variants(variants), |sweep, cut| {
        let sweep = sweep.with_tensor(&cut.key(), cut.site, &cut.map);
        sweep.with_tensor(&cut.shift_key(), cut.site, &cut.shift)
    });
    let measured = sweep.run()?;
    let mut rows = measured.rows()?;
    rows.extend(errors(&cuts, options.together, &ranks));
    let what = serde_json::json!({"what": "truncation costs", "cut": options.cut, "ranks": ranks,
        "together": options.together, "sweep": measured.provenance().options});
    Table::new(rows, model.provenance(what, options.random)?)
}

/// One head (for QK, a key/value head) truncated to one rank.
struct OneCut {
    site: Site,
    layer: usize,
    head: usize,
    rank: usize,
    cut: Cut,
    /// `[d_head, d_head]`.
    map: Tensor,
    /// Preserves the bias, `[d_head]`.
    shift: Tensor,
    /// The squared norms of what was lost and of the original.
    squares: [f64; 2],
}

impl OneCut {
    fn keys(&self) -> Keys {
        let number = |n: usize| u32::try_from(n).ok();
        let (head, kv_head) = match self.cut {
            Cut::Ov => (number(self.head), None),
            Cut::Qk => (None, number(self.head)),
        };
        Keys { layer: number(self.layer), head, kv_head, component: number(self.rank), ..Keys::default() }
    }

    fn key(&self) -> String {
        format!("head {} to rank {}", self.head, self.rank)
    }

    fn shift_key(&self) -> String {
        format!("bias of {}", self.key())
    }

    fn edits(&self) -> Vec<Edit> {
        let map = Action::Map { key: self.key() };
        let shift = Action::Add { key: self.shift_key(), alpha: 1.0 };
        [map, shift].map(|action| Edit::new(self.site, action).head(self.head)).to_vec()
    }
}

/// All truncations, head by head and rank by rank.
fn cuts(model: &Model, tokens: &Tokens, options: &TruncationOptions, ranks: &[usize]) -> Result<Vec<OneCut>> {
    let config = model.config();
    let folded = model.circuits(&CircuitOptions::default())?;
    // The biases as they are added to keys and values: the norms' biases are part of the input and must not be folded
    // in.
    let plain = model.circuits(&CircuitOptions { fold_norms: false, centre_writing: false })?;
    let offsets = u32::try_from(tokens.positions()).unwrap_or(u32::MAX);
    let heads = if options.cut == Cut::Qk { config.n_kv_heads } else { config.n_heads };
    let mut cuts = vec![];
    for (layer, head) in (0..config.n_layers).flat_map(|layer| (0..heads).map(move |head| (layer, head))) {
        let (site, product, bias) = match options.cut {
            Cut::Ov => (Site::Z(layer), folded.head(layer, head)?.ov()?, plain.head(layer, head)?.b_v.to_vec()),
            Cut::Qk => {
                let reader = head * (config.n_heads / config.n_kv_heads);
                let bias = plain.head(layer, reader)?.b_k.to_vec();
                (Site::K(layer), folded.keys_for_queries(layer, head, offsets)?, bias)
            }
        };
        let norm = product.norm()?;
        for &rank in ranks.iter().filter(|_| norm > 0.0) {
            let (map, lost) = cut_to(&product, rank, options.random, (layer * heads + head) as u64)?;
            let bias = ndarray::Array1::from(bias.clone());
            let shift = (&bias - &bias.dot(&map)).to_vec();
            let values: Vec<f64> = map.iter().copied().collect();
            cuts.push(OneCut {
                site,
                layer,
                head,
                rank,
                cut: options.cut,
                map: Tensor::from_slice(&values).view([config.d_head as i64; 2]),
                shift: Tensor::from_slice(&shift),
                squares: [lost * lost, norm * norm],
            });
        }
    }
    if cuts.is_empty() {
        return Err(Error::argument("model", "a head whose circuit is not zero", "none"));
    }
    Ok(cuts)
}

/// The matrix between the factors, and the resulting error of the product.
fn cut_to(product: &Factored, rank: usize, random: Option<u64>, head: u64) -> Result<(Array2<f64>, f64)> {
    let Some(seed) = random else {
        let sigma = product.singular_values()?.to_vec();
        return Ok((product.inner_truncation(rank)?, TruncationError::of(&sigma, rank)?.frobenius));
    };
    let map = product.random_inner_truncation(rank, seed.wrapping_add(head.wrapping_mul(1_000_003)))?;
    let rest = Array2::<f64>::eye(map.nrows()) - &map;
    let lost = Factored::new(product.left().dot(&rest), product.right().to_owned())?.norm()?;
    Ok((map, lost))
}

/// All heads truncated to a rank at once.
fn together(cuts: &[OneCut], rank: usize) -> Variant {
    let edits = cuts.iter().filter(|cut| cut.rank == rank).flat_map(OneCut::edits).collect();
    Variant { keys: Keys { component: u32::try_from(rank).ok(), ..Keys::default() }, edits }
}

/// The rows about the weights.
fn errors(cuts: &[OneCut], all: bool, ranks: &[usize]) -> Vec<Observation> {
    let row = |keys: Keys, [lost, whole]: [f64; 2]| Observation {
        keys,
        metric: "truncation_error".to_owned(),
        value: (lost / whole).sqrt(),
        ..Observation::default()
    };
    if !all {
        return cuts.iter().map(|cut| row(cut.keys(), cut.squares)).collect();
    }
    let of_rank = |&rank: &usize| {
        let squares = cuts.iter().filter(|cut| cut.rank == rank).map(|cut| cut.squares);
        let sum = squares.fold([0.0, 0.0], |sum, squares| [sum[0] + squares[0], sum[1] + squares[1]]);
        row(Keys { component: u32::try_from(rank).ok(), ..Keys::default() }, sum)
    };
    ranks.iter().map(of_rank).collect()
}
