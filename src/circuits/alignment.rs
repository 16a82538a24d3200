//! Do the heads of a layer read and write the same directions, more than chance would have it? Alignment of what they use.

use std::collections::BTreeMap;

use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::blas::product;
use super::factored::Factored;
use super::heads::{Circuits, HeadWeights, Offset};
use super::subspace::rotated;
use crate::error::Result;
use crate::table::{Keys, Observation, Table};

/// A side on which a head meets the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// What its queries read.
    Queries,
    /// What its keys read.
    Keys,
    /// What its values read.
    Values,
    /// What it writes.
    Writes,
}

impl Side {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Queries, Self::Keys, Self::Values, Self::Writes];

    /// The name of the alignment on this side in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Queries => "query_alignment",
            Self::Keys => "key_alignment",
            Self::Values => "value_alignment",
            Self::Writes => "write_alignment",
        }
    }

    /// The head that owns what is used on this side: query heads share the keys and values of their key/value head.
    fn owner(self, head: &HeadWeights) -> usize {
        match self {
            Self::Keys | Self::Values => head.kv_head,
            Self::Queries | Self::Writes => head.head,
        }
    }

    /// The head's circuit, turned so that its right side is this one.
    fn circuit(self, head: &HeadWeights, offset: Offset) -> Result<Factored> {
        Ok(match self {
            Self::Queries => head.qk(offset)?.transpose(),
            Self::Keys => head.qk(offset)?,
            Self::Values => head.ov()?.transpose(),
            Self::Writes => head.ov()?,
        })
    }
}

impl Circuits {
    /// Do the heads of a layer use the same directions of the residual stream? A row per layer and [`Side`]: the mean
    /// alignment over its pairs of heads, with `baseline` for heads rotated at random and `z_score` the distance from it.
    ///
    /// What a head reads or writes is weighted by how much passes. With X its circuit (`W_Q R W_K^T` or `W_V W_O`), queries
    /// and values read the stream by `M = X X^T`, keys and outputs by `M = X^T X`, `[d_model, d_model]`. The alignment of two
    /// heads is the cosine `<M_a, M_b> / (|M_a| |M_b|)` (kernel alignment, Cristianini et al. 2001): 0 if they use orthogonal
    /// directions, 1 if they use the same ones in the same proportions. It does not depend on the basis of queries, keys and
    /// z, in which the single matrices `W_Q` to `W_O` are arbitrary. Heads that share a key/value head count as one for keys
    /// and values, with the sum of their M.
    ///
    /// The null: every head is rotated at random in the stream (Haar), so that all spectra stay. Then an alignment has mean
    /// `tr M_a tr M_b / (d_model |M_a| |M_b|)` and a variance known exactly ([`rotated`]), and those of two pairs are
    /// uncorrelated, even if they have a head in common. `value / baseline` is 1 by chance, below 1 where heads avoid each
    /// other's directions, above 1 where they share them. Where a LayerNorm is folded in, all heads lack one direction, which
    /// makes it `d_model / (d_model - 1)` by chance.
    ///
    /// A norm's weights are common to all heads of a layer: with norms folded in
    /// ([`CircuitOptions::fold_norms`](crate::heads::CircuitOptions)) they are a part of what is shared, otherwise not.
    /// The value is missing if fewer than two heads of the layer have weights other than zero.
    ///
    /// ```
    /// use headscope::circuits::Offset;
    /// use headscope::heads::CircuitOptions;
    /// use headscope::model::Model;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let table = model.circuits(&CircuitOptions::default())?.alignments(Offset::At(0))?;
    /// assert_eq!(table.columns(), ["layer", "metric", "value", "baseline", "z_score"]);
    /// assert_eq!(table.len(), 3 * 4); // layers, sides
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If weights are not finite or the offset makes no sense.
    pub fn alignments(&self, offset: Offset) -> Result<Table> {
        let layers: Vec<&[HeadWeights]> = self.heads().chunk_by(|a, b| a.layer == b.layer).collect();
        let cells: Vec<(&[HeadWeights], Side)> =
            layers.iter().flat_map(|heads| Side::ALL.map(|side| (*heads, side))).collect();
        let row = |&(heads, side): &(&[HeadWeights], Side)| alignment_row(heads, side, offset);
        let rows = cells.par_iter().map(row).collect::<Result<Vec<_>>>()?;
        Table::new(rows, self.provenance(json!({"alignment": Side::ALL, "offset": offset}), None))
    }
}

/// The row of a layer, given its heads.
fn alignment_row(heads: &[HeadWeights], side: Side, offset: Offset) -> Result<Observation> {
    let used = used(heads, side, offset)?;
    let pairs = (0..used.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
    let (mut n, mut value, mut mean, mut variance) = (0.0, 0.0, 0.0, 0.0);
    for (a, b) in pairs.map(|(i, j)| (&used[i], &used[j])) {
        let unit = |used: &Used| [used.trace / used.norm, 1.0];
        let (expected, deviation) = rotated(unit(a), unit(b), a.w.nrows() as f64);
        n += 1.0;
        value += a.cosine(b);
        mean += expected;
        variance += deviation * deviation;
    }
    let z_score = (value - mean) / variance.sqrt();
    Ok(Observation {
        keys: Keys { layer: heads.first().and_then(|head| u32::try_from(head.layer).ok()), ..Keys::default() },
        metric: side.name().to_owned(),
        value: value / n, // 0 / 0 = NaN is the missing value
        baseline: Some(mean / n).filter(|mean| mean.is_finite()),
        // If rotations change nothing, the deviation is rounding alone.
        z_score: Some(z_score).filter(|z| z.is_finite() && variance.sqrt() > 1e-12 * n),
        ..Observation::default()
    })
}

/// `M = W C W^T`: what a head uses of the stream, as W, `[d_model, k]`, and a symmetric C, `[k, k]`.
struct Used {
    w: Array2<f64>,
    c: Array2<f64>,
    trace: f64,
    norm: f64,
}

/// What the heads of a layer use, without those whose weights are zero; one entry for each owner.
fn used(heads: &[HeadWeights], side: Side, offset: Offset) -> Result<Vec<Used>> {
    let mut owners: BTreeMap<usize, (Array2<f64>, Array2<f64>)> = BTreeMap::new();
    for head in heads {
        let circuit = side.circuit(head, offset)?;
        let c = product(&circuit.left().t(), &circuit.left());
        let sum = |(_, sum): &mut (Array2<f64>, Array2<f64>)| *sum += &c;
        owners.entry(side.owner(head)).and_modify(sum).or_insert_with(|| (circuit.right().t().to_owned(), c.clone()));
    }
    let all = owners.into_values().map(|(w, c)| Used::new(w, c));
    Ok(all.filter(|used| used.norm > 0.0).collect())
}

impl Used {
    fn new(w: Array2<f64>, c: Array2<f64>) -> Self {
        let weighted = product(&c.view(), &product(&w.t(), &w.view()).view());
        let (trace, norm) = (weighted.diag().sum(), (&weighted * &weighted.t()).sum().max(0.0).sqrt());
        Self { w, c, trace, norm }
    }

    /// `tr(C_a K C_b K^T)` over both norms, with `K = W_a^T W_b`.
    fn cosine(&self, other: &Self) -> f64 {
        let inner = product(&self.w.t(), &other.w.view());
        let (left, right) = (product(&self.c.view(), &inner.view()), product(&inner.view(), &other.c.view()));
        ((&left * &right).sum() / (self.norm * other.norm)).clamp(0.0, 1.0)
    }
}
