//! Do heads write the same thing? Similarity of head outputs.

use ndarray::Array3;
use tch::{Kind, Tensor};

use super::probe::{Probe, array};
use crate::error::{Error, Result};
use crate::heads::DEAD;
use crate::model::Site;

impl Probe {
    /// How similar are the outputs of a layer's heads? Linear CKA of z W_O at the positions at which predictions are
    /// made, from 0 to 1 (equal up to rotation, scale and shift); see [`linear_cka`](crate::heads::linear_cka). It
    /// increases with d_head even in untrained models, so compare it with its value before training.
    ///
    /// # Shapes
    /// `[run, head, head]`; NaN for a head whose output is constant.
    ///
    /// # Errors
    /// If there is no such layer.
    pub fn cka(&self, layer: usize) -> Result<Array3<f64>> {
        self.check_layer(layer)?;
        let torch = || Error::torch("comparing what heads write");
        let run = self.record([Site::Z(layer)])?;
        let z = self.by_run(&self.held.pick(run.get(Site::Z(layer))?)).to_kind(Kind::Double); // [run, place, head, d_head]
        let (heads, width) = (z.size()[2], z.size()[3]);
        let counts = self.held.predicted().to_kind(Kind::Double).unsqueeze(-1).unsqueeze(-1);
        let sum = |x: &Tensor| x.sum_dim_intlist([1i64].as_slice(), true, None::<Kind>);
        let mean = sum(&(&z * &counts)) / sum(&counts);
        // [run, head, d_head, head, d_head]
        let products = |x: &Tensor| {
            let x = (x * &counts).flatten(2, 3);
            let all = x.transpose(1, 2).f_bmm(&x).map_err(torch())?;
            Ok::<_, Error>(all.view([-1, heads, width, heads, width]))
        };
        let (moving, whole) = (products(&(&z - mean))?, products(&z)?);
        let w = self.w_o(layer)?;
        let gram = w.f_matmul(&w.transpose(2, 3)).map_err(torch())?; // [run, head, d_head, d_head]
        // |(z W)^T (z' W')|_F^2 = <C, G C G'>, where C is the product of the two heads' z.
        let cross = moving.transpose(2, 3); // [run, head, head, d_head, d_head]
        let mapped = gram.unsqueeze(2).f_matmul(&cross).and_then(|x| x.f_matmul(&gram.unsqueeze(1)));
        let squares = (cross * mapped.map_err(torch())?).sum_dim_intlist([3i64, 4].as_slice(), false, None::<Kind>);
        let own = squares.diagonal(0, 1, 2).clamp_min(0.0).sqrt();
        let value = (squares / (own.unsqueeze(1) * own.unsqueeze(2))).clamp(0.0, 1.0);
        // |z W|_F^2 = <C, G>, where C is the product of a head's z with itself.
        let size = |products: &Tensor| {
            let own = products.diagonal(0, 1, 3).movedim_int(-1, 1);
            (own * &gram).sum_dim_intlist([2i64, 3].as_slice(), false, None::<Kind>).clamp_min(0.0).sqrt()
        };
        let dead = size(&moving).le_tensor(&(size(&whole) * DEAD));
        let dead = dead.unsqueeze(1).logical_or(&dead.unsqueeze(2));
        array(&value.masked_fill(&dead, f64::NAN), "CKA")
    }
}
