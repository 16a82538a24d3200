//! What does a circuit lose when its rank is lowered, by its weights?

use ndarray::{Array2, Axis, concatenate};
use rayon::prelude::*;
use serde_json::json;

use super::factored::Factored;
use super::heads::{Circuit, Circuits, HeadWeights, Offset};
use super::lapack::ThinQr;
use super::spectrum::{Null, NullOptions, null_spectra};
use crate::error::{Error, Result};
use crate::table::{Keys, Observation, Table};

/// How far from a matrix is the nearest one of a given rank? The singular values tell (Eckart & Young 1936).
///
/// ```
/// use headscope::circuits::TruncationError;
/// let error = TruncationError::of(&[4.0, 2.0, 2.0, 1.0], 1)?;
/// assert_eq!((error.frobenius, error.relative, error.spectral), (3.0, 0.6, 2.0));
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TruncationError {
    /// `|W - W_r|_F = sqrt(sum_(i > r) sigma_i^2)`
    pub frobenius: f64,
    /// `|W - W_r|_F / |W|_F`, from 0 to 1; NaN if W is zero.
    pub relative: f64,
    /// `|W - W_r|_2 = sigma_(r + 1)`
    pub spectral: f64,
}

impl TruncationError {
    /// The errors at rank `rank`, from singular values in descending order.
    ///
    /// # Errors
    /// If there is no singular value, or they are not finite, not descending, or negative.
    pub fn of(sigma: &[f64], rank: usize) -> Result<Self> {
        let descends = sigma.windows(2).all(|pair| pair[0] >= pair[1]) && sigma.last().is_some_and(|last| *last >= 0.0);
        if !descends || !sigma[0].is_finite() {
            let expected = "finite singular values, at least one, descending and none below 0";
            return Err(Error::argument("sigma", expected, format!("{sigma:?}")));
        }
        let square = |values: &[f64]| values.iter().map(|value| value * value).sum::<f64>();
        let rest = &sigma[rank.min(sigma.len())..];
        let frobenius = square(rest).sqrt();
        let relative = frobenius / square(sigma).sqrt();
        Ok(Self { frobenius, relative, spectral: rest.first().copied().unwrap_or(0.0) })
    }
}

impl Circuits {
    /// How much of each head's circuit is lost at each rank? A row per head and rank (`component`: how many are kept) with
    /// `truncation_error`, the relative Frobenius error of the nearest matrix of that rank ([`TruncationError`]). `baseline` is
    /// the mean over random matrices, and `z_score` the distance from it in their standard deviations: negative if the head
    /// uses fewer dimensions than its shape provides.
    ///
    /// # Errors
    /// If there is no rank, one is not between 1 and the width of the heads, the options do not validate, weights are not
    /// finite, or LAPACK fails.
    pub fn truncation(&self, circuit: Circuit, ranks: &[usize], options: &NullOptions) -> Result<Table> {
        options.validate()?;
        if ranks.is_empty() {
            return Err(Error::argument("ranks", "at least one", "none"));
        }
        let width = self.heads().first().map_or(0, |head| head.w_q.ncols());
        if let Some(rank) = ranks.iter().find(|rank| !(1..=width).contains(rank)) {
            return Err(Error::argument("ranks", format!("ranks from 1 to d_head = {width}"), rank));
        }
        let products = self.all(circuit)?;
        // Normal factors depend only on the shape, which all heads share.
        let shared = match options.null {
            Null::Gaussian => products.first().map(|first| null_spectra(first, options)).transpose()?,
            Null::Shuffled => None,
        };
        let rows = products.par_iter().zip(self.heads()).map(|(product, head)| {
            let own = shared.is_none().then(|| null_spectra(product, options)).transpose()?;
            let sigma = product.singular_values()?.to_vec();
            let Some(null) = own.as_ref().or(shared.as_ref()) else { return Ok(vec![]) };
            ranks.iter().map(|&rank| row(head, &sigma, null, rank)).collect::<Result<Vec<_>>>()
        });
        let rows = rows.collect::<Result<Vec<_>>>()?.concat();
        let what = json!({"truncation": circuit, "ranks": ranks, "null": options});
        Table::new(rows, self.provenance(what, Some(options.seed)))
    }

    /// Which directions of its keys does a key/value head need? `W_K B` in factors, with B standing for all queries that read
    /// the keys. [`Factored::inner_truncation`] of it is the matrix P of a given rank for which keys `k P` change the scores
    /// least.
    ///
    /// B holds, side by side, `(W_Q R)^T` of every query head of the group at every offset from 0 to `offsets` - 1. W_Q
    /// includes its bias as a further row, since that too decides where the head attends. The error is then the sum over all of
    /// these. Without rotary positions, biases and groups it is `W_K W_Q^T`. B is not formed; a factor with the same Gram
    /// matrix takes its place.
    ///
    /// # Errors
    /// If the key/value head does not exist, `offsets` is 0, weights are not finite, or LAPACK fails.
    pub fn keys_for_queries(&self, layer: usize, kv_head: usize, offsets: u32) -> Result<Factored> {
        let group: Vec<&HeadWeights> =
            self.heads().iter().filter(|head| (head.layer, head.kv_head) == (layer, kv_head)).collect();
        let Some(first) = group.first() else {
            let limit = self.heads().iter().map(|head| head.kv_head + 1).max().unwrap_or(0) as i64;
            self.head(layer, 0)?; // the layer is there
            return Err(Error::OutOfRange { at: "circuits".into(), axis: "kv_head", found: kv_head as i64, limit });
        };
        if offsets == 0 {
            return Err(Error::argument("offsets", "at least 1", offsets));
        }
        let offsets = if first.rotary.is_some() { offsets } else { 1 };
        let mut readers: Vec<Array2<f64>> = vec![];
        for head in &group {
            let with_bias = concatenate![Axis(0), head.w_q, head.b_q.view().insert_axis(Axis(0))];
            let r = ThinQr::new(with_bias.view())?.r;
            for offset in 0..offsets {
                readers.push(head.turned(&r.view(), Offset::At(offset.into()))?.reversed_axes());
            }
        }
        let views: Vec<_> = readers.iter().map(Array2::view).collect();
        let wrong = |_| Error::argument("heads", "query heads of one width in a group", views.len());
        let all = ndarray::concatenate(Axis(1), &views).map_err(wrong)?;
        Factored::new(first.w_k.clone(), all)
    }
}

fn row(head: &HeadWeights, sigma: &[f64], null: &Array2<f64>, rank: usize) -> Result<Observation> {
    let number = |n: usize| u32::try_from(n).ok();
    let keys = Keys { layer: number(head.layer), head: number(head.head), component: number(rank), ..Keys::default() };
    let value = TruncationError::of(sigma, rank)?.relative;
    let of_draw = |draw: ndarray::ArrayView1<'_, f64>| Ok(TruncationError::of(&draw.to_vec(), rank)?.relative);
    let draws = null.rows().into_iter().map(of_draw).collect::<Result<Vec<f64>>>()?;
    let mean = draws.iter().sum::<f64>() / draws.len() as f64;
    let squares = draws.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    let deviation = (squares / (draws.len() as f64 - 1.0)).sqrt();
    Ok(Observation {
        keys,
        metric: "truncation_error".to_owned(),
        value,
        baseline: Some(mean).filter(|mean| mean.is_finite()),
        z_score: Some((value - mean) / deviation).filter(|z| z.is_finite()),
        ..Observation::default()
    })
}
