//! Which heads read what other heads write? Composition scores, compared with random rotations.

use ndarray::{Array2, CowArray};
use rayon::prelude::*;

use super::blas::product;
use super::factored::{Factored, shape};
use super::inner::{Tiled, inner_products};
use super::subspace::rotated;
use crate::error::Result;

/// The input of the later head through which it reads the earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Composition {
    /// Its queries: `W_OV1 W_QK2`.
    Q,
    /// Its keys: `W_OV1 W_QK2^T`.
    K,
    /// Its values: `W_OV1 W_OV2`.
    V,
}

impl Composition {
    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_composition",
            Self::K => "k_composition",
            Self::V => "v_composition",
        }
    }
}

/// Composition scores of writers with readers; NaN for pairs that were not asked for or have a zero circuit.
#[derive(Debug, Clone, PartialEq)]
pub struct CompositionScores {
    /// `|X Y|_F / (|X|_F |Y|_F)`, from 0 to 1, `[from, to]`.
    pub value: Array2<f64>,
    /// The z-score of the squared score: its distance from the mean over rotations of the stream between the two heads, which
    /// keep both spectra, in standard deviations, `[from, to]`.
    pub z_score: Array2<f64>,
    /// The root mean square of the score over these rotations, `1 / sqrt(d)`.
    pub random: f64,
}

/// How much of what each writer X writes does each reader Y read? `C = |X Y|_F / (|X|_F |Y|_F)` (Elhage et al. 2021), with X
/// the OV circuit of the writer and Y what the reader does with it, for row vectors.
///
/// All scores come from one matrix product, `|X Y|^2 = <X^T X, Y Y^T>`; the Gram matrices are formed tile by tile.
///
/// If the stream between the two is rotated at random, `|X U Y|^2` has mean `|X|^2 |Y|^2 / d` and a variance that depends on
/// both spectra, known exactly ([`rotated`]): circuits of few dimensions vary more. The z-scores are those of the squares. In
/// trained models most are large, because heads share directions of outliers: compare them with each other.
///
/// Reader j is paired with the first `until(j)` writers; `until` must not decrease.
///
/// # Shapes
/// X: `[any, d_model]`; Y: `[d_model, any]`.
///
/// # Errors
/// If the widths of the stream differ.
///
/// ```
/// use headscope::circuits::{Factored, composition};
/// use ndarray::array;
/// // A writer that writes along the first axis of three, and readers of the first and of the second axis.
/// let writer = Factored::new(array![[1.0], [0.0], [0.0]], array![[1.0, 0.0, 0.0]])?;
/// let reads = |axis: usize| {
///     let column = ndarray::Array2::from_shape_fn((3, 1), |(row, _)| f64::from(u8::from(row == axis)));
///     Factored::new(column, array![[0.0, 0.0, 1.0]])
/// };
/// let scores = composition(&[writer], &[reads(0)?, reads(1)?], |_| 1)?;
/// assert!((scores.value[[0, 0]] - 1.0).abs() < 1e-12 && scores.value[[0, 1]].abs() < 1e-12);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn composition(
    writers: &[Factored],
    readers: &[Factored],
    until: impl Fn(usize) -> usize + Sync,
) -> Result<CompositionScores> {
    let d = writers.first().map_or(0, Factored::ncols);
    if let Some(wrong) = writers.iter().find(|x| x.ncols() != d) {
        return Err(shape("writer", format!("[any, {d}]"), &wrong.right()));
    }
    if let Some(wrong) = readers.iter().find(|y| y.nrows() != d) {
        return Err(shape("reader", format!("[{d}, any]"), &wrong.left()));
    }
    let x: Vec<Gram<'_>> = writers.par_iter().map(Gram::of_columns).collect();
    let turned: Vec<Factored> = readers.iter().map(Factored::transpose).collect();
    let y: Vec<Gram<'_>> = turned.par_iter().map(Gram::of_columns).collect();
    let (x, xs): (Vec<_>, Vec<_>) = x.into_iter().map(|gram| (gram.moments, gram.tiled)).unzip();
    let (y, ys): (Vec<_>, Vec<_>) = y.into_iter().map(|gram| (gram.moments, gram.tiled)).unzip();
    let products = inner_products(&xs, &ys, true, &until);
    let wanted = |i: usize, j: usize| i < until(j) && x[i][0] > 0.0 && y[j][0] > 0.0;
    let square = |i: usize, j: usize| (products[[i, j]] / (x[i][0] * y[j][0])).clamp(0.0, 1.0);
    let value = |(i, j)| if wanted(i, j) { square(i, j).sqrt() } else { f64::NAN };
    let z_score = |(i, j): (usize, usize)| {
        let unit = |[trace, squares]: [f64; 2]| [1.0, squares / (trace * trace)];
        let (mean, deviation) = rotated(unit(x[i]), unit(y[j]), d as f64);
        // If rotations change nothing, the deviation is rounding alone.
        if wanted(i, j) && deviation > 1e-12 { (square(i, j) - mean) / deviation } else { f64::NAN }
    };
    let shape = (xs.len(), ys.len());
    Ok(CompositionScores {
        value: Array2::from_shape_fn(shape, value),
        z_score: Array2::from_shape_fn(shape, z_score),
        random: (d as f64).sqrt().recip(),
    })
}

/// `X^T X = B^T (A^T A) B` of a product X = A B, as two thin factors.
struct Gram<'a> {
    tiled: Tiled<'a>,
    /// Its trace and squared Frobenius norm.
    moments: [f64; 2],
}

impl<'a> Gram<'a> {
    fn of_columns(circuit: &'a Factored) -> Self {
        let (left, right) = (circuit.left(), circuit.right());
        let weighted = product(&product(&left.t(), &left).view(), &right);
        // tr (S B B^T) and tr (S B B^T S B B^T), S = A^T A.
        let small = product(&weighted.view(), &right.t());
        let moments = [small.diag().sum(), (&small * &small.t()).sum()];
        Self { tiled: Tiled { left: CowArray::from(right.reversed_axes()), right: CowArray::from(weighted) }, moments }
    }
}

impl CompositionScores {
    /// Which pairs are made for each other, rather than strong with everyone? The residuals of the z-scores after fitting one
    /// number per writer and one per reader, in robust standard deviations (1.4826 times the median magnitude), `[from, to]`.
    ///
    /// Fitted by median polish (Tukey 1977): row and column medians are subtracted in turn.
    #[must_use]
    pub fn selective(&self) -> Array2<f64> {
        let mut rest = self.z_score.clone();
        for _ in 0..10 {
            for mut row in rest.rows_mut() {
                let middle = median(row.iter().copied());
                row -= middle;
            }
            for mut column in rest.columns_mut() {
                let middle = median(column.iter().copied());
                column -= middle;
            }
        }
        let scale = 1.4826 * median(rest.iter().map(|value| value.abs()));
        rest.mapv(|value| if scale > 0.0 { value / scale } else { f64::NAN })
    }
}

/// The median of the finite values; 0 if there are none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}
