//! Do heads attend to the same tokens as other heads?

use ndarray::Array3;
use tch::{Kind, Tensor};

use super::probe::{Probe, array};
use crate::error::{Error, Result};
use crate::model::Site;

impl Probe {
    /// How differently do the heads of a layer attend? The Jensen-Shannon divergence between the patterns of every pair
    /// of heads, divided by ln 2: from 0 (identical) to 1 (disjoint keys). Averaged over the positions at which
    /// predictions are made and which have more than one key.
    ///
    /// # Shapes
    /// `[run, head, head]`; NaN if a run has no such position.
    ///
    /// # Errors
    /// If there is no such layer.
    pub fn pattern_distance(&self, layer: usize) -> Result<Array3<f64>> {
        self.check_layer(layer)?;
        let run = self.record([Site::Pattern(layer)])?;
        let pattern = self.held.pick(&run.get(Site::Pattern(layer))?.transpose(1, 2)); // [run * place, 1, head, key]
        let pattern = self.by_run(&pattern).transpose(1, 2); // [run, head, place, key]
        let heads = pattern.size()[1];
        let choice = self.by_run(&self.held.positions_of_places().unsqueeze(1)).gt(0);
        let counts = self.held.predicted() * choice.to_kind(pattern.kind());
        let share = (&counts / counts.sum_dim_intlist([1i64].as_slice(), true, None::<Kind>)).unsqueeze(-1);
        let entropy = |p: &Tensor| -(p.clamp_min(1e-37).log() * p).sum_dim_intlist([3i64].as_slice(), false, None);
        let own = entropy(&pattern); // [run, head, place]
        let mut rows = vec![];
        for head in 0..heads {
            let between = entropy(&((&pattern + pattern.narrow(1, head, 1)) * 0.5));
            let apart = (between - (&own + own.narrow(1, head, 1)) * 0.5).clamp_min(0.0) / 2f64.ln();
            rows.push(apart.f_bmm(&share).map_err(Error::torch("comparing patterns"))?.squeeze_dim(2).clamp_max(1.0));
        }
        array(&Tensor::stack(&rows, 1), "distances of patterns")
    }
}
