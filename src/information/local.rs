//! How much does KSG miss under strong dependence? The local non-uniformity correction.

use ndarray::{Array1, Array2};
use ndarray_linalg::{Eigh, UPLO};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::neighbour::mean_over;
use crate::error::{Error, Result};

/// Threshold of the log ratio of volumes, below which a neighbourhood counts as slanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Corner {
    log_ratio: f64,
}

impl Corner {
    /// The 0.5 % quantile for uniform neighbourhoods of `k` points in `d` dimensions, found by drawing 4000 of them (Gao, Ver
    /// Steeg & Galstyan 2015, section 4.3).
    pub fn new(k: usize, d: usize) -> Result<Self> {
        if k <= d {
            let expected = format!("more than the {d} dimensions of x and y together, for the local correction");
            return Err(Error::argument("k", expected, k));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut ratios = vec![];
        for _ in 0..4000 {
            let around = Array2::from_shape_simple_fn((k, d), || rng.random_range(-1.0..1.0));
            ratios.push(log_ratio(&around)?);
        }
        ratios.sort_by(f64::total_cmp);
        Ok(Self { log_ratio: ratios[ratios.len() / 200] })
    }
}

/// `-<ln(slanted volume / upright volume)>` over the samples with a slanted neighbourhood.
pub(super) fn correction(joint: &Array2<f64>, k: usize, corner: Corner) -> Result<f64> {
    let d = joint.ncols();
    let rows = joint.as_slice().unwrap_or_default();
    let mean = mean_over(joint, |tree, point, row, scratch| {
        tree.nearest(point, row, k, scratch);
        let around = Array2::from_shape_fn((k, d), |(i, c)| rows[scratch.best[i].1 as usize * d + c] - point[c]);
        match log_ratio(&around) {
            Ok(ratio) if ratio < corner.log_ratio => -ratio,
            Ok(_) => 0.0,
            Err(_) => f64::NAN,
        }
    });
    if mean.is_finite() {
        return Ok(mean);
    }
    Err(Error::argument(
        "x, y",
        "neighbours that span a volume, for the local correction",
        "copies, or points on a line",
    ))
}

/// ln of the volume of the box along the points' principal axes relative to the axis-aligned box.
fn log_ratio(around: &Array2<f64>) -> Result<f64> {
    let failed = |reason| Error::argument("x, y", "neighbours with principal axes", reason);
    let (_, axes) = around.t().dot(around).eigh(UPLO::Lower).map_err(failed)?;
    let reach = |points: &Array2<f64>| -> f64 {
        let far = |column: ndarray::ArrayView1<f64>| column.iter().fold(0.0_f64, |far, value| far.max(value.abs()));
        points.columns().into_iter().map(|column| far(column).ln()).collect::<Array1<f64>>().sum()
    };
    Ok(reach(&around.dot(&axes)) - reach(around))
}
