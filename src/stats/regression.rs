//! How well do some variables predict another? Least squares, judged on samples that it has not seen.

use ndarray::{Array1, Array2, ArrayView2, Axis, concatenate};
use ndarray_linalg::SVD;

use super::check_sample;
use crate::error::{Error, Result};
use crate::workers::on_one_thread;

/// Directions in which the variables vary less than this, relative to the largest, count as constant.
const CONSTANT: f64 = 1e-10;

/// Which share of the variance of `y` does a linear regression on `x` predict? The predicted R^2 (Allen 1974), from 1
/// downwards: 0 if the predictions are no better than the mean, and below 0 if they are worse.
///
/// Each sample is predicted from all others: with residuals `e` and the diagonal `h` of the hat matrix, its error is
/// `e_i / (1 - h_i)`. The share is `1 - sum_i (e_i / (1 - h_i))^2 / sum_i (y_i - mean of the others)^2`. Unlike the R^2
/// of a fit it does not grow with variables that predict nothing. An intercept is added.
///
/// # Shapes
/// `x`: `[sample, variable]`; `y`: one number for each sample. Powers and products of a variable are variables too.
///
/// # Errors
/// If there are fewer than three samples, the numbers of samples differ, a value is not finite, y is constant, or a
/// sample cannot be predicted since it alone determines a coefficient.
///
/// ```
/// use headscope::stats::predicted_r2;
/// use ndarray::array;
/// let x = array![[0.0], [1.0], [2.0], [3.0], [4.0]];
/// assert!((predicted_r2(&x.view(), &[1.0, 3.0, 5.0, 7.0, 9.0])? - 1.0).abs() < 1e-12);
/// assert!(predicted_r2(&x.view(), &[1.0, -1.0, 0.0, -1.0, 1.0])? < 0.0); // a line predicts no parabola
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn predicted_r2(x: &ArrayView2<'_, f64>, y: &[f64]) -> Result<f64> {
    check(x, y, 3)?;
    let n = y.len();
    let mean = super::mean(y);
    let basis = basis(x)?;
    let y = Array1::from_iter(y.iter().map(|y| y - mean));
    let residuals = &y - basis.dot(&basis.t().dot(&y));
    let leverages = basis.mapv(|value| value * value).sum_axis(Axis(1));
    if let Some(sample) = leverages.iter().position(|leverage| 1.0 - leverage < CONSTANT) {
        let found = format!("sample {sample}, without which a coefficient is not determined");
        return Err(Error::argument("x", "samples that can be predicted from the others", found));
    }
    let unseen: f64 = residuals.iter().zip(&leverages).map(|(e, h)| (e / (1.0 - h)).powi(2)).sum();
    // The mean of the others is off by n / (n - 1) of the deviation from the mean of all.
    let all: f64 = y.iter().map(|y| (y * n as f64 / (n as f64 - 1.0)).powi(2)).sum();
    if all == 0.0 {
        return Err(Error::argument("y", "values that differ", "a constant"));
    }
    Ok(1.0 - unseen / all)
}

/// By how much does `y` change with each variable, the others held constant? The slopes of the least-squares regression of `y`
/// on `x` with an intercept; the smallest ones if variables depend on each other.
///
/// # Shapes
/// `x`: `[sample, variable]`; `y`: one number for each sample. One slope for each variable.
///
/// # Errors
/// If there are fewer than two samples, the numbers of samples differ, or a value is not finite.
///
/// ```
/// use headscope::stats::slopes;
/// use ndarray::array;
/// let x = array![[0.0, 1.0], [1.0, 1.0], [2.0, 0.0], [3.0, 0.0]];
/// let found = slopes(&x.view(), &[2.0, 5.0, 7.0, 10.0])?; // 3 x0 + x1 + 1
/// assert!((found[0] - 3.0).abs() < 1e-12 && (found[1] - 1.0).abs() < 1e-12);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn slopes(x: &ArrayView2<'_, f64>, y: &[f64]) -> Result<Vec<f64>> {
    check(x, y, 2)?;
    let mean = super::mean(y);
    let y = Array1::from_iter(y.iter().map(|y| y - mean));
    let Directions { u, sigma, vt, scales } = Directions::of(x)?;
    let slopes = vt.t().dot(&(u.t().dot(&y) / sigma));
    Ok(slopes.iter().zip(scales).map(|(slope, scale)| if scale > 0.0 { slope / scale } else { 0.0 }).collect())
}

fn check(x: &ArrayView2<'_, f64>, y: &[f64], least: usize) -> Result<()> {
    check_sample("y", y, least)?;
    if x.nrows() != y.len() || x.ncols() == 0 {
        return Err(Error::argument("x", format!("[{}, at least 1]", y.len()), format!("{:?}", x.dim())));
    }
    match x.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, &found)) => Err(Error::NotFinite { at: "x".to_owned(), index, found }),
        None => Ok(()),
    }
}

/// The directions in which variables vary, after each was centred and scaled to norm 1.
struct Directions {
    /// `[sample, direction]`
    u: Array2<f64>,
    sigma: Array1<f64>,
    /// `[direction, variable]`
    vt: Array2<f64>,
    /// The norms of the centred variables.
    scales: Vec<f64>,
}

impl Directions {
    fn of(x: &ArrayView2<'_, f64>) -> Result<Self> {
        // Standardised, so that the units of a variable do not decide whether it counts as constant.
        let (mut variables, mut scales) = (x.to_owned(), vec![]);
        for mut variable in variables.columns_mut() {
            variable -= variable.sum() / variable.len() as f64;
            let scale = variable.iter().map(|value| value * value).sum::<f64>().sqrt();
            if scale > 0.0 {
                variable /= scale;
            }
            scales.push(scale);
        }
        let (u, sigma, vt) =
            on_one_thread(|| variables.svd(true, true)).map_err(Error::linear_algebra("a regression"))?;
        let (Some(u), Some(vt)) = (u, vt) else { return Err(Error::argument("x", "singular vectors", "none")) };
        let largest = sigma.iter().copied().fold(0.0, f64::max);
        let kept: Vec<usize> = (0..sigma.len()).filter(|&i| sigma[i] > CONSTANT * largest).collect();
        let (u, vt, sigma) = (u.select(Axis(1), &kept), vt.select(Axis(0), &kept), sigma.select(Axis(0), &kept));
        Ok(Self { u, sigma, vt, scales })
    }
}

/// An orthonormal basis of the variables and the intercept, `[sample, direction]`.
fn basis(x: &ArrayView2<'_, f64>) -> Result<Array2<f64>> {
    let n = x.nrows();
    let one = Array2::from_elem((n, 1), (n as f64).sqrt().recip());
    let u = Directions::of(x)?.u;
    concatenate(Axis(1), &[one.view(), u.view()]).map_err(|reason| Error::argument("x", "a matrix", reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;
    use rand::Rng;

    /// By the definition: every sample predicted by the normal equations of all others.
    fn one_by_one(x: &Array2<f64>, y: &[f64]) -> f64 {
        let n = y.len();
        let (mut unseen, mut all) = (0.0, 0.0);
        for left in 0..n {
            let others: Vec<usize> = (0..n).filter(|&i| i != left).collect();
            let own: Vec<f64> = others.iter().map(|&i| y[i]).collect();
            let rows = x.select(Axis(0), &others);
            // One variable: slope and intercept in closed form.
            let mean_x = rows.column(0).sum() / own.len() as f64;
            let mean_y = own.iter().sum::<f64>() / own.len() as f64;
            let (mut xy, mut xx) = (0.0, 0.0);
            for (x, y) in rows.column(0).iter().zip(&own) {
                xy += (x - mean_x) * (y - mean_y);
                xx += (x - mean_x).powi(2);
            }
            let predicted = mean_y + xy / xx * (x[[left, 0]] - mean_x);
            unseen += (y[left] - predicted).powi(2);
            all += (y[left] - mean_y).powi(2);
        }
        1.0 - unseen / all
    }

    #[test]
    fn every_sample_is_predicted_from_the_others() -> Result<()> {
        for seed in 0..20 {
            let mut rng = crate::stats::stream(seed, 0);
            let n = rng.random_range(3..12);
            let x = Array2::from_shape_simple_fn((n, 1), || rng.random_range(-5.0..5.0));
            let y: Vec<f64> = x.column(0).iter().map(|x| 2.0 * x + rng.random_range(-4.0..4.0)).collect();
            let (found, expected) = (predicted_r2(&x.view(), &y)?, one_by_one(&x, &y));
            assert!((found - expected).abs() < 1e-9 * (1.0 + expected.abs()), "{found} {expected}");
        }
        Ok(())
    }

    #[test]
    fn units_and_copies_of_a_variable_change_nothing() -> Result<()> {
        let mut rng = crate::stats::stream(1, 0);
        let x = Array2::from_shape_simple_fn((9, 2), || rng.random_range(-1.0..1.0));
        let y: Vec<f64> = x.rows().into_iter().map(|x| x[0] - x[1] + rng.random_range(-0.1..0.1)).collect();
        let plain = predicted_r2(&x.view(), &y)?;
        let mut other = ndarray::concatenate![Axis(1), x, x.column(0).insert_axis(Axis(1))];
        other.column_mut(0).mapv_inplace(|value| 1e6 * value + 3.0);
        assert!((predicted_r2(&other.view(), &y)? - plain).abs() < 1e-9);
        Ok(())
    }

    /// Of two variables that are the same, each has half of the slope; a constant has none.
    #[test]
    fn slopes_of_copies_are_shared() -> Result<()> {
        let x = ndarray::array![[0.0, 0.0, 5.0], [1.0, 2.0, 5.0], [2.0, 4.0, 5.0]];
        let found = slopes(&x.view(), &[1.0, 3.0, 5.0])?;
        assert!((found[0] - 1.0).abs() < 1e-12 && (found[1] - 0.5).abs() < 1e-12 && found[2] == 0.0, "{found:?}");
        Ok(())
    }

    #[test]
    fn what_cannot_be_predicted_says_so() {
        let line = ndarray::array![[0.0], [0.0], [1.0]];
        assert!(predicted_r2(&line.view(), &[0.0, 1.0, 2.0]).is_err()); // the last sample alone has the slope
        let even = ndarray::array![[0.0], [1.0], [2.0]];
        assert!(predicted_r2(&even.view(), &[1.0, 1.0, 1.0]).is_err());
        assert!(predicted_r2(&even.view(), &[1.0, f64::NAN, 1.0]).is_err());
        assert!(predicted_r2(&even.view(), &[1.0, 2.0]).is_err());
    }
}
