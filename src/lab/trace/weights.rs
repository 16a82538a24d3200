//! What do the heads' weights say? The ranks of their circuits, and the overlaps of what they read and write.

use ndarray::{Array3, Array4};
use rayon::prelude::*;

use super::probe::Probe;
use crate::circuits::{Circuit, Circuits, Measure, Offset, Ranks};
use crate::error::{Error, Result};
use crate::heads::CircuitOptions;

/// The circuits of a head, in the order of the last axis of [`Probe::ranks`].
pub const CIRCUITS: [&str; 2] = ["qk", "ov"];

impl Probe {
    /// How many dimensions does a head use to attend, and to move information? Effective ranks of W_Q W_K^T (at offset
    /// 0) and W_V W_O, between 1 and d_head; see [`Ranks`].
    ///
    /// # Shapes
    /// `[run, layer, head, circuit]`, circuits in the order of [`CIRCUITS`]; NaN for a head whose weights are 0.
    ///
    /// # Errors
    /// If weights are not finite, or LAPACK fails.
    pub fn ranks(&self) -> Result<Array4<f64>> {
        let config = self.model.config();
        let each = |circuits: &Circuits| {
            let mut ranks = vec![];
            for circuit in [Circuit::Qk(Offset::At(0)), Circuit::Ov] {
                for product in circuits.all(circuit)? {
                    let sigma = product.singular_values()?.to_vec();
                    let dead = sigma.iter().all(|&value| value == 0.0);
                    ranks.push(if dead { f64::NAN } else { Ranks::of(&sigma)?.effective });
                }
            }
            Ok(ranks)
        };
        let all = self.of_each(each)?;
        let shape = (self.runs(), config.n_layers, config.n_heads, CIRCUITS.len());
        let heads = config.n_layers * config.n_heads;
        let at = |(run, layer, head, circuit)| {
            let all: &Vec<f64> = &all[run];
            all[circuit * heads + layer * config.n_heads + head]
        };
        Ok(Array4::from_shape_fn(shape, at))
    }

    /// How similar are the weights of each pair of heads? See [`Measure`]. The expected overlap of random subspaces is
    /// d_head / d_model.
    ///
    /// # Shapes
    /// `[run, head, head]`, with heads numbered layer * heads + head; NaN for a head whose weights are 0.
    ///
    /// # Errors
    /// If weights are not finite, or LAPACK fails.
    pub fn weight_similarity(&self, measure: Measure) -> Result<Array3<f64>> {
        let all = self.of_each(|circuits| circuits.similarity(measure, Offset::At(0)))?;
        let heads = self.model.config().n_layers * self.model.config().n_heads;
        Ok(Array3::from_shape_fn((all.len(), heads, heads), |(run, a, b)| all[run].value[[a, b]]))
    }

    /// Applies `each` to the circuits of every model.
    fn of_each<T: Send>(&self, each: impl Fn(&Circuits) -> Result<T> + Send + Sync) -> Result<Vec<T>> {
        let of = |run| self.model.unstacked(run).circuits(&CircuitOptions::default());
        let all = (0..self.runs()).map(of).collect::<Result<Vec<Circuits>>>()?;
        all.par_iter().map(each).collect::<Result<Vec<T>, Error>>()
    }
}
