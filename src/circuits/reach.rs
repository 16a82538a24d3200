//! Which attention patterns can a head of a given width produce? The exact construction, and the closest pattern otherwise.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis, Zip, s};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::blas::product;
use super::circle::{centred_log, soften};
use super::factored::{Factored, shape};
use super::lapack;
use super::spectrum::gaussian;
use crate::error::{Error, Result};
use crate::lbfgs::{Stop, minimise};

/// How much attention goes to the wrong keys? For each query, the total variation distance between its two rows,
/// `1/2 sum_key |p - q|`: 0 if they are equal, 1 if they share no key.
///
/// # Errors
/// If the shapes differ.
///
/// ```
/// use headscope::circuits::misplaced;
/// use ndarray::array;
/// assert_eq!(misplaced(&array![[0.5, 0.5]].view(), &array![[0.75, 0.25]].view())?, array![0.25]);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn misplaced(pattern: &ArrayView2<'_, f64>, other: &ArrayView2<'_, f64>) -> Result<Array1<f64>> {
    if pattern.dim() != other.dim() {
        return Err(shape("other pattern", format!("{:?}", pattern.dim()), other));
    }
    Ok((other - pattern).mapv(|difference| difference.abs() / 2.0).sum_axis(Axis(1)))
}

/// Which logits of rank at most `width` give a pattern? The truncated singular value decomposition of `log P (I - 11^T / n)`.
///
/// The softmax ignores a constant added to all logits of a query, so these logits give P exactly if the width is at least the
/// rank of that matrix, which is below the number of keys ([`logit_spectrum`](super::logit_spectrum)). For a smaller width they
/// are closest to the logits of P, but not those whose pattern is closest to P: see [`closest_logits`].
///
/// # Shapes
/// `pattern`: `[query, key]`, with weights above 0 and rows that sum to 1.
///
/// # Errors
/// If the width is 0, the pattern has a weight that is not above 0 or a row that does not sum to 1, or LAPACK fails.
pub fn pattern_logits(pattern: &ArrayView2<'_, f64>, width: usize) -> Result<Factored> {
    if width == 0 {
        return Err(Error::argument("width", "at least 1", width));
    }
    let (u, sigma, vt) = lapack::svd(&centred_log(pattern)?)?;
    let kept = width.min(sigma.len());
    let roots = sigma.slice(s![..kept]).mapv(f64::sqrt);
    Factored::new(&u.slice(s![.., ..kept]) * &roots, &vt.slice(s![..kept, ..]) * &roots.insert_axis(Axis(1)))
}

/// Which weights give a head these logits? `W_Q = X^+ A` and `W_K = X^+ B^T` for logits `A B`, so that
/// `X W_Q W_K^T X^T = A B` exactly if the inputs X have linearly independent rows (Bhojanapalli et al. 2020, theorem 1, from
/// which this construction differs only in the choice of logits).
///
/// # Shapes
/// `inputs`: `[position, d_model]`; every position is a query and a key. Returns W_Q and W_K, `[d_model, width]`.
///
/// # Errors
/// If there is not one input for each query and each key, or LAPACK fails.
pub fn queries_and_keys(inputs: &ArrayView2<'_, f64>, logits: &Factored) -> Result<[Array2<f64>; 2]> {
    let n = inputs.nrows();
    if (logits.nrows(), logits.ncols()) != (n, n) {
        return Err(shape("inputs", format!("[{} = {}, d_model]", logits.nrows(), logits.ncols()), inputs));
    }
    let inverse = lapack::inverse(&inputs.to_owned())?;
    Ok([product(&inverse.view(), &logits.left()), product(&inverse.view(), &logits.right().t())])
}

/// How are logits sought that give a pattern?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Search {
    /// Maximum number of steps of L-BFGS in each of the two stages.
    pub steps: usize,
}

impl Default for Search {
    fn default() -> Self {
        Self { steps: 500 }
    }
}

/// Which logits of the same rank as `start` give a pattern as close as possible to the given one?
///
/// From `start`, L-BFGS lowers the mean over queries of `KL(p | q)`, and then that of the total variation distance
/// ([`misplaced`]), over both factors. The problem is not convex: the distance found is an upper bound on the smallest one.
///
/// # Errors
/// If the shapes of the logits and the pattern differ, or the pattern is not one.
///
/// ```
/// use headscope::circuits::{Search, attention, closest_logits, misplaced, pattern_logits};
/// use ndarray::array;
/// let pattern = array![[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6]];
/// let start = pattern_logits(&pattern.view(), 1)?;
/// let closest = closest_logits(&pattern.view(), &start, &Search::default())?;
/// let mean = |logits| Ok::<f64, headscope::Error>(misplaced(&pattern.view(), &attention(logits)?.view())?.sum() / 3.0);
/// assert!(mean(&closest)? < mean(&start)? && mean(&closest)? > 0.01); // but not with rank 1
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn closest_logits(pattern: &ArrayView2<'_, f64>, start: &Factored, search: &Search) -> Result<Factored> {
    let mut logits = start.clone();
    for distance in [Distance::Divergence, Distance::Misplaced] {
        let goal = Goal::new(pattern.view(), None, distance)?;
        logits = goal.approach(&logits, search.steps)?;
    }
    Ok(logits)
}

/// Does a head find a pattern by itself? W_Q and W_K of the given width are drawn at random and trained by L-BFGS on the mean
/// over queries of `KL(p | q)`, for inputs that stay as they are. Returns the logits `X W_Q W_K^T X^T`.
///
/// Entries of W_Q and W_K are drawn with variance `1 / (d_model sqrt(width))`, so that for inputs of unit variance the logits
/// have unit variance too, as in an untrained model.
///
/// # Shapes
/// `pattern`: `[query, key]`; `inputs`: `[position, d_model]`, where every position is a query and a key.
///
/// # Errors
/// If the shapes do not match, the width is 0, or the pattern is not one.
pub fn trained_logits(
    pattern: &ArrayView2<'_, f64>,
    inputs: &ArrayView2<'_, f64>,
    width: usize,
    search: &Search,
    seed: u64,
) -> Result<Factored> {
    let d_model = inputs.ncols();
    let scale = (d_model as f64 * (width as f64).sqrt()).sqrt().recip();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut draw = |shape| gaussian(shape, &mut rng) * scale;
    let start = Factored::new(draw((d_model, width)), draw((width, d_model)))?;
    let trained =
        Goal::new(pattern.view(), Some(inputs.view()), Distance::Divergence)?.approach(&start, search.steps)?;
    Factored::new(product(inputs, &trained.left()), product(&trained.right(), &inputs.t()))
}

/// A distance between two patterns, as a mean over queries.
#[derive(Clone, Copy)]
enum Distance {
    /// `sum p ln(p / q)`
    Divergence,
    /// `1/2 sum sqrt((p - q)^2 + s^2)`: the total variation distance, but smooth.
    Misplaced,
}

/// Differences of this size, divided by the number of keys, count as smooth.
const SMOOTH: f64 = 1e-4;
/// Where L-BFGS stops: the largest component of the gradient.
const FLAT: f64 = 1e-10;

/// The pattern to be produced, and how far from it a pattern is.
struct Goal<'a> {
    pattern: ArrayView2<'a, f64>,
    /// If given, queries and keys are linear maps of these inputs; otherwise they are free.
    inputs: Option<ArrayView2<'a, f64>>,
    distance: Distance,
}

impl<'a> Goal<'a> {
    fn new(pattern: ArrayView2<'a, f64>, inputs: Option<ArrayView2<'a, f64>>, distance: Distance) -> Result<Self> {
        if let Some(found) = pattern.iter().find(|weight| !(0.0..=1.0).contains(*weight)) {
            return Err(Error::argument("pattern", "weights between 0 and 1", found));
        }
        if let Some(found) = pattern.sum_axis(Axis(1)).iter().find(|sum| (**sum - 1.0).abs() > 1e-4) {
            return Err(Error::argument("pattern", "rows that sum to 1", found));
        }
        if let Some(inputs) = inputs.filter(|inputs| pattern.dim() != (inputs.nrows(), inputs.nrows())) {
            return Err(shape("inputs", format!("[{}, d_model]", pattern.nrows()), &inputs));
        }
        Ok(Self { pattern, inputs, distance })
    }

    /// Lowers the distance from `start`.
    fn approach(&self, start: &Factored, steps: usize) -> Result<Factored> {
        let (rows, columns) = self.inputs.map_or(self.pattern.dim(), |inputs| (inputs.ncols(), inputs.ncols()));
        if (start.nrows(), start.ncols()) != (rows, columns) {
            return Err(shape("start", format!("[{rows}, {columns}]"), &start.left()));
        }
        let width = start.width();
        let flat: Vec<f64> = start.left().iter().chain(start.right().iter()).copied().collect();
        let stop = Stop { steps, tolerance: FLAT };
        let end = minimise(flat, stop, |point, gradient| self.value(point, width, gradient), |_| true);
        let (left, right) = end.split_at(rows * width);
        let matrix = |values: &[f64], shape| Array2::from_shape_vec(shape, values.to_vec());
        let wrong = |reason| Error::argument("start", "factors of the pattern's shape", reason);
        Factored::new(matrix(left, (rows, width)).map_err(wrong)?, matrix(right, (width, columns)).map_err(wrong)?)
    }

    /// The distance for the factors in `point`, and its gradient.
    fn value(&self, point: &[f64], width: usize, gradient: &mut [f64]) -> f64 {
        let (rows, columns) = self.inputs.map_or(self.pattern.dim(), |inputs| (inputs.ncols(), inputs.ncols()));
        let (left, right) = point.split_at(rows * width);
        let (by_left, by_right) = gradient.split_at_mut(rows * width);
        let factors = (
            ArrayView2::from_shape((rows, width), left),
            ArrayView2::from_shape((width, columns), right),
            ArrayViewMut2::from_shape((rows, width), by_left),
            ArrayViewMut2::from_shape((width, columns), by_right),
        );
        let (Ok(left), Ok(right), Ok(mut by_left), Ok(mut by_right)) = factors else { return f64::NAN };
        let (queries, keys) = match self.inputs {
            Some(x) => (product(&x, &left), product(&right, &x.t())),
            None => (left.to_owned(), right.to_owned()),
        };
        let mut pattern = product(&queries.view(), &keys.view());
        soften(&mut pattern);
        let (distance, by_logits) = self.distance(pattern);
        let (by_queries, by_keys) = (product(&by_logits.view(), &keys.t()), product(&queries.t(), &by_logits.view()));
        match self.inputs {
            Some(x) => {
                by_left.assign(&product(&x.t(), &by_queries.view()));
                by_right.assign(&product(&by_keys.view(), &x));
            }
            None => {
                by_left.assign(&by_queries);
                by_right.assign(&by_keys);
            }
        }
        distance
    }

    /// The distance of a pattern from the one to be produced, and its gradient with respect to the logits.
    fn distance(&self, mut found: Array2<f64>) -> (f64, Array2<f64>) {
        let (queries, smooth) = (found.nrows() as f64, SMOOTH / found.ncols() as f64);
        let mut distance = 0.0;
        for (mut q, p) in found.rows_mut().into_iter().zip(self.pattern.rows()) {
            match self.distance {
                Distance::Divergence => Zip::from(&mut q).and(&p).for_each(|q, &p| {
                    // 0 ln 0 is 0, and a weight that underflows counts as the smallest number.
                    distance += if p > 0.0 { p * (p / q.max(f64::MIN_POSITIVE)).ln() } else { 0.0 };
                    *q -= p;
                }),
                Distance::Misplaced => {
                    let far = |q: f64, p: f64| (q - p).hypot(smooth);
                    let slope = |q: f64, p: f64| (q - p) / far(q, p) / 2.0;
                    distance += Zip::from(&q).and(&p).fold(0.0, |sum, &q, &p| sum + far(q, p) / 2.0);
                    let mean = Zip::from(&q).and(&p).fold(0.0, |sum, &q, &p| sum + q * slope(q, p));
                    Zip::from(&mut q).and(&p).for_each(|q, &p| *q *= slope(*q, p) - mean);
                }
            }
        }
        found /= queries;
        (distance / queries, found)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Both distances, with and without inputs, beside central differences.
    #[test]
    fn gradients_are_those_of_the_distances() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let (n, width, d_model, h) = (5, 2, 7, 1e-5);
        let mut pattern = gaussian((n, n), &mut rng);
        soften(&mut pattern);
        let inputs = gaussian((n, d_model), &mut rng);
        for distance in [Distance::Divergence, Distance::Misplaced] {
            for inputs in [None, Some(inputs.view())] {
                let goal = Goal::new(pattern.view(), inputs, distance).unwrap();
                let numbers = 2 * width * inputs.map_or(n, |inputs| inputs.ncols());
                let point = gaussian((1, numbers), &mut rng).into_raw_vec_and_offset().0;
                let mut gradient = vec![0.0; numbers];
                goal.value(&point, width, &mut gradient);
                for (i, found) in gradient.iter().enumerate() {
                    let at = |by: f64| {
                        let mut moved = point.clone();
                        moved[i] += by;
                        goal.value(&moved, width, &mut vec![0.0; numbers])
                    };
                    let expected = (at(h) - at(-h)) / (2.0 * h);
                    // The error is h^2 times a third derivative of order one, and rounding over h.
                    assert!((found - expected).abs() < 1e-8 * (1.0 + expected.abs()), "{i}: {found} {expected}");
                }
            }
        }
    }
}
