//! How alike are heads, in what they read, what they write, and what they do with it?

use ndarray::{Array2, CowArray};
use rayon::prelude::*;

use super::dendrogram::{Dendrogram, Linkage};
use super::factored::Factored;
use super::heads::{Circuit, Circuits, HeadWeights, Offset};
use super::inner::{Tiled, gram};
use super::subspace::{Subspace, random_overlap};
use crate::error::Result;

/// What to compare between two heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Overlap of the subspaces from which queries are read: the columns of `W_Q`.
    QueryOverlap,
    /// Overlap of the subspaces from which keys are read: the columns of `W_K`.
    KeyOverlap,
    /// Overlap of the subspaces from which values are read: the columns of `W_V`.
    ValueOverlap,
    /// Overlap of the subspaces that are written to: the rows of `W_O`.
    WriteOverlap,
    /// Frobenius cosine of the QK circuits.
    QkCosine,
    /// Frobenius cosine of the OV circuits.
    OvCosine,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::QueryOverlap, Self::KeyOverlap, Self::ValueOverlap, Self::WriteOverlap, Self::QkCosine, Self::OvCosine];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::QueryOverlap => "query_overlap",
            Self::KeyOverlap => "key_overlap",
            Self::ValueOverlap => "value_overlap",
            Self::WriteOverlap => "write_overlap",
            Self::QkCosine => "qk_cosine",
            Self::OvCosine => "ov_cosine",
        }
    }

    /// Whether heads that share a key/value head are equal in this by construction.
    pub(super) fn is_of_kv_head(self) -> bool {
        matches!(self, Self::KeyOverlap | Self::ValueOverlap)
    }
}

/// A measure between all pairs of heads.
#[derive(Debug, Clone, PartialEq)]
pub struct Similarity {
    /// What was compared.
    pub measure: Measure,
    /// Overlaps from 0 to 1, cosines from -1 to 1, `[head, head]`; NaN for heads whose weights are zero.
    pub value: Array2<f64>,
    /// The z-score of the value over random rotations of one of the two heads, `[head, head]`.
    pub z_score: Array2<f64>,
}

impl Similarity {
    /// Which heads belong together? The tree that merges the heads, most similar first, by the distance `1 - value`. Heads
    /// whose weights are zero are at the largest distance from all others.
    ///
    /// # Errors
    /// If there is no head.
    pub fn dendrogram(&self, linkage: Linkage) -> Result<Dendrogram> {
        let distances = self.value.mapv(|value| if value.is_nan() { 1.0 } else { (1.0 - value).max(0.0) });
        Dendrogram::new(&distances.view(), linkage)
    }
}

impl Circuits {
    /// How alike are all pairs of heads? Overlaps of subspaces are `|Q1^T Q2|_F^2 / k`, which is k / d for random ones. Cosines
    /// of circuits are `<A, B> / (|A| |B|)`, with mean 0 and standard deviation 1 / d if both sides of one circuit are rotated
    /// at random.
    ///
    /// QK circuits are taken at `offset`. All pairs come from one matrix product, computed tile by tile.
    ///
    /// # Errors
    /// If weights are not finite or LAPACK fails.
    pub fn similarity(&self, measure: Measure, offset: Offset) -> Result<Similarity> {
        match measure {
            Measure::QkCosine => self.cosines(measure, Circuit::Qk(offset)),
            Measure::OvCosine => self.cosines(measure, Circuit::Ov),
            _ => self.overlaps(measure),
        }
    }

    fn overlaps(&self, measure: Measure) -> Result<Similarity> {
        // A head whose weights are zero has no span.
        let spans: Vec<Option<Subspace>> =
            self.heads().par_iter().map(|head| span(head, measure)).collect::<Result<_>>()?;
        let projector = |span: &Option<Subspace>| {
            let basis = match span {
                Some(span) => span.basis().to_owned(),
                None => Array2::zeros((self.d_model(), 1)),
            };
            Tiled { right: CowArray::from(basis.t().to_owned()), left: CowArray::from(basis) }
        };
        let projectors: Vec<Tiled<'_>> = spans.iter().map(projector).collect();
        let products = gram(&projectors, true);
        let dims: Vec<usize> = spans.iter().map(|span| span.as_ref().map_or(0, Subspace::dim)).collect();
        let small = |i: usize, j: usize| dims[i].min(dims[j]);
        let value = Array2::from_shape_fn(products.dim(), |(i, j)| match small(i, j) {
            0 => f64::NAN,
            k => (products[[i, j]] / k as f64).clamp(0.0, 1.0),
        });
        let z_score = Array2::from_shape_fn(products.dim(), |(i, j)| match small(i, j) {
            0 => f64::NAN,
            _ => {
                let (mean, deviation) = random_overlap(dims[i], dims[j], self.d_model());
                if deviation > 1e-12 { (value[[i, j]] - mean) / deviation } else { f64::NAN }
            }
        });
        Ok(Similarity { measure, value, z_score })
    }

    fn cosines(&self, measure: Measure, circuit: Circuit) -> Result<Similarity> {
        let products = self.all(circuit)?;
        let tiles: Vec<Tiled<'_>> = products.iter().map(tiled).collect();
        let inner = gram(&tiles, false);
        let norms = inner.diag().mapv(|square| square.max(0.0).sqrt());
        let value = Array2::from_shape_fn(inner.dim(), |(i, j)| {
            let cosine = inner[[i, j]] / (norms[i] * norms[j]);
            if cosine.is_finite() { cosine.clamp(-1.0, 1.0) } else { f64::NAN }
        });
        let z_score = &value * self.d_model() as f64;
        Ok(Similarity { measure, value, z_score })
    }
}

/// A product as it is.
fn tiled(product: &Factored) -> Tiled<'_> {
    Tiled { left: CowArray::from(product.left()), right: CowArray::from(product.right()) }
}

/// The subspace that a head reads from or writes to; `None` if its weights are zero.
fn span(head: &HeadWeights, measure: Measure) -> Result<Option<Subspace>> {
    let matrix = match measure {
        Measure::QueryOverlap => head.w_q.view(),
        Measure::KeyOverlap => head.w_k.view(),
        Measure::ValueOverlap => head.w_v.view(),
        _ => head.w_o.t(),
    };
    match matrix.iter().all(|&value| value == 0.0) {
        true => Ok(None),
        false => Subspace::span(&matrix).map(Some),
    }
}
