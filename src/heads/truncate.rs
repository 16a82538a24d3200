//! What a lower rank of heads costs the model.

use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::circuits::{Factored, TruncationError};
use crate::error::{Error, Result};
use crate::intervene::{Ablation, Metric, Sweep, Variant};
use crate::model::{Action, CircuitOptions, Edit, Model, Site, Tokens};
use crate::table::{Keys, Observation, Table};

/// Which circuit is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Where heads attend: `W_Q W_K^T`, through their keys.
    Qk,
    /// What they move: `W_V W_O`, through what they gather.
    Ov,
}

impl Cut {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qk => "qk",
            Self::Ov => "ov",
        }
    }
}

/// What is cut, to which ranks, and what is measured.
#[derive(Debug, Clone)]
pub struct TruncationOptions {
    /// The circuit.
    pub cut: Cut,
    /// The ranks, from 1 to below the heads' width; where none is named, the powers of two among them.
    pub ranks: Vec<usize>,
    /// Whether all heads are cut at once, in place of one at a time.
    pub together: bool,
    /// Random directions are kept in place of the best ones, drawn with this seed: a control.
    pub random: Option<u64>,
    /// What is measured; the loss, and in a model without logits how far its embedding moves, unless said otherwise.
    pub metric: Option<Metric>,
}

impl Default for TruncationOptions {
    fn default() -> Self {
        Self { cut: Cut::Qk, ranks: vec![], together: false, random: None, metric: None }
    }
}

impl TruncationOptions {
    /// The ranks to which heads of this width are cut.
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

/// What does the model lose when a head has a lower rank? Every head (or, for QK, every key/value head) is cut in turn to each
/// rank below its width, and the metric measured on `tokens`; two rows each, `component` is how many components are kept:
///
/// - the metric, such as `loss`: `value` with the cut, `baseline` without; where all are cut at once, no head is named.
/// - `truncation_error`: how far the weights are from what they were, relative and in the Frobenius norm
///   ([`TruncationError`]; with random directions it is larger than the best that a rank can do).
///
/// OV: z is multiplied by the P of [`Factored::inner_truncation`], so that `W_V W_O` becomes the nearest matrix of the rank
/// (Eckart & Young 1936). QK: keys are, by that of [`Circuits::keys_for_queries`](crate::circuits::Circuits::keys_for_queries); all query heads that read them are served at
/// once, and with rotary positions all offsets that the prompts have. The biases of keys and values stay. Weights are taken with
/// the norms folded in. One sweep computes all variants.
///
/// ```
/// use headscope::heads::{TruncationOptions, truncation_costs};
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat sat on the mat", "a dog ran in the park"])?;
/// let options = TruncationOptions { ranks: vec![1, 4], together: true, ..TruncationOptions::default() };
/// let table = truncation_costs(&model, &tokens, &options)?;
/// assert_eq!(table.columns(), ["component", "metric", "value", "baseline"]);
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// Where a rank is not from 1 to below the heads' width, a token or the metric does not fit the model, or LAPACK fails.
pub fn truncation_costs(model: &Model, tokens: &Tokens, options: &TruncationOptions) -> Result<Table> {
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

/// One head (a key/value head for QK) cut to one rank.
struct OneCut {
    site: Site,
    layer: usize,
    head: usize,
    rank: usize,
    cut: Cut,
    /// `[d_head, d_head]`.
    map: Tensor,
    /// What keeps the bias as it was, `[d_head]`.
    shift: Tensor,
    /// The squares of what was lost and of what there was.
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

/// All cuts, rank by rank and head by head.
fn cuts(model: &Model, tokens: &Tokens, options: &TruncationOptions, ranks: &[usize]) -> Result<Vec<OneCut>> {
    let config = model.config();
    let folded = model.circuits(&CircuitOptions::default())?;
    // What is added to keys and values as they are: the norms' biases are part of what is read.
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

/// The matrix between the factors, and how far the product then is from what it was.
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

/// All heads cut to a rank at once.
fn together(cuts: &[OneCut], rank: usize) -> Variant {
    let edits = cuts.iter().filter(|cut| cut.rank == rank).flat_map(OneCut::edits).collect();
    Variant { keys: Keys { component: u32::try_from(rank).ok(), ..Keys::default() }, edits }
}

/// The rows about weights.
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
