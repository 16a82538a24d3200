//! Where does a head attend, and what does it move? The circuits of its weights.

use std::sync::Arc;

use ndarray::{ArcArray1, ArcArray2, Array1, Array2, ArrayView2, Axis, concatenate};
use rayon::prelude::*;

use super::factored::{Factored, shape};
use crate::error::{Error, Result};
use crate::table::Provenance;

/// How many positions a query is after its key, in models with rotary positions: `W_Q R W_K^T` depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Offset {
    /// This many positions. At 0 there is no rotation, and content alone decides.
    At(i64),
    /// The mean over offsets 0 to n - 1: the part of the circuit that does not depend on the offset. It is the constant closest
    /// to the circuits at all of these offsets.
    Mean(u32),
}

impl Default for Offset {
    fn default() -> Self {
        Self::At(0)
    }
}

/// The weights of a query head and of its key/value head; row vectors are on the left.
#[derive(Debug, Clone)]
pub struct HeadWeights {
    /// Its layer.
    pub layer: usize,
    /// Its index in the layer.
    pub head: usize,
    /// The key/value head that it uses.
    pub kv_head: usize,
    /// `[d_model, d_head]`
    pub w_q: ArcArray2<f64>,
    /// `[d_model, d_head]`
    pub w_k: ArcArray2<f64>,
    /// `[d_model, d_head]`
    pub w_v: ArcArray2<f64>,
    /// `[d_head, d_model]`
    pub w_o: ArcArray2<f64>,
    /// `[d_head]`; zeros if the model has none.
    pub b_q: ArcArray1<f64>,
    /// `[d_head]`; zeros if the model has none.
    pub b_k: ArcArray1<f64>,
    /// `[d_head]`; zeros if the model has none.
    pub b_v: ArcArray1<f64>,
    /// With rotary positions: the angle in radians by which each pair (i, i + d_head / 2) rotates per position.
    pub rotary: Option<Arc<[f64]>>,
}

impl HeadWeights {
    /// Where does the head attend? `W_Q R W_K^T`; the score before scaling is `x_q W_Q R W_K^T x_k^T`. R rotates by the angles
    /// of the offset, and is 1 without rotary positions.
    ///
    /// # Errors
    /// If the shapes of the weights do not match, or the offset is a mean over none.
    pub fn qk(&self, offset: Offset) -> Result<Factored> {
        // Without rotary positions there is no rotation, and the product shares the head's weights.
        let w_q = match &self.rotary {
            None if offset != Offset::Mean(0) => self.w_q.clone(),
            _ => self.turned(&self.w_q.view(), offset)?.into_shared(),
        };
        Factored::new(w_q, self.w_k.clone().reversed_axes())
    }

    /// [`HeadWeights::qk`] with the biases, over `[x, 1]`: `[d_model + 1, d_model + 1]`. The last column adds the same to the
    /// score of every key, which the softmax cancels.
    ///
    /// # Errors
    /// As [`HeadWeights::qk`].
    pub fn qk_with_bias(&self, offset: Offset) -> Result<Factored> {
        let q = concatenate![Axis(0), self.w_q, self.b_q.view().insert_axis(Axis(0))];
        let k = concatenate![Axis(0), self.w_k, self.b_k.view().insert_axis(Axis(0))];
        Factored::new(self.turned(&q.view(), offset)?, k.reversed_axes())
    }

    /// What does every query add to the score of key x, whatever the query? `b_Q R W_K^T x^T`, as a direction of the stream,
    /// `[d_model]`.
    ///
    /// # Errors
    /// As [`HeadWeights::qk`].
    pub fn key_bias(&self, offset: Offset) -> Result<Array1<f64>> {
        let b_q = self.b_q.view().insert_axis(Axis(0));
        Ok(self.turned(&b_q, offset)?.dot(&self.w_k.t()).remove_axis(Axis(0)))
    }

    /// What does the head move? `W_V W_O`.
    ///
    /// # Errors
    /// If the shapes of the weights do not match.
    pub fn ov(&self) -> Result<Factored> {
        Factored::new(self.w_v.clone(), self.w_o.clone())
    }

    /// What does the head write wherever it attends? `b_V W_O`, `[d_model]`, since the attention weights sum to 1.
    pub fn ov_bias(&self) -> Array1<f64> {
        self.b_v.dot(&self.w_o)
    }

    /// How much of the circuit does not depend on the offset? `|mean of W_QK|_F^2 / mean of |W_QK|_F^2` over offsets 0 to n -
    /// 1, from 0 to 1; 1 without rotary positions, NaN for a zero circuit.
    ///
    /// # Errors
    /// As [`HeadWeights::qk`].
    pub fn position_free_share(&self, n: u32) -> Result<f64> {
        let mean = self.qk(Offset::Mean(n))?.norm()?;
        if self.rotary.is_none() {
            return Ok(if mean > 0.0 { 1.0 } else { f64::NAN });
        }
        let squares = (0..n).map(|offset| Ok(self.qk(Offset::At(offset.into()))?.norm()?.powi(2)));
        let squares = squares.sum::<Result<f64>>()? / f64::from(n);
        Ok(if squares > 0.0 { (mean * mean / squares).min(1.0) } else { f64::NAN })
    }

    /// `q R`, for queries in rows, `[any, d_head]`.
    pub(super) fn turned(&self, q: &ArrayView2<'_, f64>, offset: Offset) -> Result<Array2<f64>> {
        if offset == Offset::Mean(0) {
            return Err(Error::argument("offset", "a mean over at least one", 0));
        }
        if let Offset::Mean(n) = offset {
            crate::take::at_most("offset", n as usize, MOST_OFFSETS, "the circuit at one offset")?;
        }
        let Some(frequencies) = &self.rotary else { return Ok(q.to_owned()) };
        let half = frequencies.len();
        if q.ncols() != 2 * half {
            return Err(shape("w_q", format!("[d_model, {}]", 2 * half), q));
        }
        let mut turned = q.to_owned();
        for (i, frequency) in frequencies.iter().enumerate() {
            let (cos, sin) = turn(*frequency, offset);
            let (a, b) = (q.column(i), q.column(i + half));
            turned.column_mut(i).assign(&(&a * cos - &b * sin));
            turned.column_mut(i + half).assign(&(&b * cos + &a * sin));
        }
        Ok(turned)
    }
}

/// The largest number of offsets that are averaged: more than any context has.
const MOST_OFFSETS: usize = 1 << 24;

/// The cosine and sine of the angle, or their means over the offsets.
fn turn(frequency: f64, offset: Offset) -> (f64, f64) {
    match offset {
        Offset::At(positions) => {
            let (sin, cos) = (frequency * positions as f64).sin_cos();
            (cos, sin)
        }
        Offset::Mean(n) => {
            let angles = (0..n).map(|position| (frequency * f64::from(position)).sin_cos());
            let (sin, cos) = angles.fold((0.0, 0.0), |sum, (sin, cos)| (sum.0 + sin, sum.1 + cos));
            (cos / f64::from(n), sin / f64::from(n))
        }
    }
}

/// A circuit of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Circuit {
    /// Where it attends: `W_Q W_K^T`.
    Qk(Offset),
    /// What it moves: `W_V W_O`.
    Ov,
}

/// All heads of a model, sorted by layer and index.
#[derive(Debug, Clone)]
pub struct Circuits {
    heads: Vec<HeadWeights>,
    provenance: Provenance,
}

impl Circuits {
    /// From the weights of the heads of the model that `provenance` describes. See also [`Model::circuits`].
    ///
    /// [`Model::circuits`]: crate::model::Model::circuits
    ///
    /// # Errors
    /// If there is no head, or the shapes of the heads differ.
    pub fn new(mut heads: Vec<HeadWeights>, provenance: Provenance) -> Result<Self> {
        heads.sort_by_key(|head| (head.layer, head.head));
        let Some(first) = heads.first() else { return Err(Error::argument("heads", "at least one", 0)) };
        let d_model = first.w_q.nrows();
        for head in &heads {
            let at = |name: &str| format!("{name} of head {}.{}", head.layer, head.head);
            let d_head = head.w_q.ncols();
            for (name, w) in [("w_q", &head.w_q), ("w_k", &head.w_k), ("w_v", &head.w_v)] {
                if w.dim() != (d_model, d_head) {
                    return Err(shape(&at(name), format!("[{d_model}, {d_head}]"), &w.view()));
                }
            }
            if head.w_o.dim() != (d_head, d_model) {
                return Err(shape(&at("w_o"), format!("[{d_head}, {d_model}]"), &head.w_o.view()));
            }
            for (name, b) in [("b_q", &head.b_q), ("b_k", &head.b_k), ("b_v", &head.b_v)] {
                if b.len() != d_head {
                    let found = vec![b.len() as i64];
                    return Err(Error::Shape { at: at(name), expected: format!("[{d_head}]"), found });
                }
            }
        }
        Ok(Self { heads, provenance })
    }

    /// The heads, sorted by layer and index.
    pub fn heads(&self) -> &[HeadWeights] {
        &self.heads
    }

    /// One head.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if it does not exist.
    pub fn head(&self, layer: usize, head: usize) -> Result<&HeadWeights> {
        let found = self.heads.iter().find(|found| (found.layer, found.head) == (layer, head));
        found.ok_or_else(|| {
            let layers = self.heads.last().map_or(0, |last| last.layer + 1);
            let heads = self.heads.iter().map(|head| head.head + 1).max().unwrap_or(0);
            let (axis, found, limit) = if layer < layers { ("head", head, heads) } else { ("layer", layer, layers) };
            Error::OutOfRange { at: "circuits".into(), axis, found: found as i64, limit: limit as i64 }
        })
    }

    /// A circuit of every head.
    ///
    /// # Errors
    /// If weights are not finite or the offset makes no sense.
    pub fn all(&self, circuit: Circuit) -> Result<Vec<Factored>> {
        let of_head = |head: &HeadWeights| match circuit {
            Circuit::Qk(offset) => head.qk(offset),
            Circuit::Ov => head.ov(),
        };
        self.heads.par_iter().map(of_head).collect()
    }

    /// The width of the residual stream.
    pub fn d_model(&self) -> usize {
        self.heads[0].w_q.nrows()
    }

    /// The provenance of a result computed with `options`.
    pub(super) fn provenance(&self, options: serde_json::Value, seed: Option<u64>) -> Provenance {
        let mut provenance = self.provenance.clone();
        let both = serde_json::json!({"weights": provenance.options, "what": options});
        (provenance.options, provenance.seed) = (both, seed);
        provenance
    }

    /// How many heads are in layers before that of head `index`.
    pub(super) fn before(&self, index: usize) -> usize {
        let layer = self.heads[index].layer;
        self.heads.partition_point(|head| head.layer < layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn a_quarter_turn() -> Result<()> {
        let eye = ArcArray2::eye(2);
        let none = ArcArray1::zeros(2);
        let head = HeadWeights {
            layer: 0,
            head: 0,
            kv_head: 0,
            w_q: eye.clone(),
            w_k: eye.clone(),
            w_v: eye.clone(),
            w_o: eye,
            b_q: none.clone(),
            b_k: none.clone(),
            b_v: none,
            rotary: Some(Arc::from([std::f64::consts::FRAC_PI_2])),
        };
        let turned = head.qk(Offset::At(1))?.rows(0..2)?;
        assert!((turned - array![[0.0, 1.0], [-1.0, 0.0]]).iter().all(|error| error.abs() < 1e-15));
        let whole = head.qk(Offset::Mean(4))?;
        assert!(whole.norm()? < 1e-15 && head.position_free_share(4)? < 1e-15);
        Ok(())
    }
}
