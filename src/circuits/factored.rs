//! What can be known of a product of two thin matrices, without forming it?

use std::ops::Range;

use ndarray::{ArcArray2, Array1, Array2, ArrayView2, Axis, concatenate, s};
use ndarray_linalg::c64;

use super::blas::product;
use super::lapack::{self, ThinQr, frobenius};
use super::spectrum::random_frame;
use super::svd::Svd;
use crate::error::{Error, Result};

/// The matrix `A B` of `[m, n]`, kept as A, `[m, k]`, and B, `[k, n]`.
///
/// The circuits of a head are such products, `W_Q W_K^T` and `W_V W_O`, of rank d_head at most. All methods work on the factors
/// and never form the `[m, n]` product. Row vectors are on the left, as in `x A B`.
///
/// ```
/// use headscope::circuits::Factored;
/// use ndarray::array;
/// let product = Factored::new(array![[1.0], [2.0]], array![[3.0, 4.0]])?; // [[3, 4], [6, 8]], of rank 1
/// assert_eq!(product.trace()?, 11.0);
/// assert!((product.norm()? - 125f64.sqrt()).abs() < 1e-12);
/// let svd = product.svd()?;
/// assert!((svd.sigma[0] - 125f64.sqrt()).abs() < 1e-12 && svd.sigma.len() == 1);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Factored {
    left: ArcArray2<f64>,
    right: ArcArray2<f64>,
}

impl Factored {
    /// The product of `left`, `[m, k]`, and `right`, `[k, n]`. Factors can be shared between products.
    ///
    /// # Errors
    /// If the inner widths differ, an axis is empty, or a value is not finite.
    pub fn new(left: impl Into<ArcArray2<f64>>, right: impl Into<ArcArray2<f64>>) -> Result<Self> {
        let (left, right) = (left.into(), right.into());
        if left.is_empty() || right.is_empty() || left.ncols() != right.nrows() {
            return Err(shape("right factor", format!("[{}, at least 1]", left.ncols().max(1)), &right.view()));
        }
        for (at, matrix) in [("left factor", &left), ("right factor", &right)] {
            check_finite(at, &matrix.view())?;
        }
        Ok(Self { left, right })
    }

    /// A, `[m, k]`.
    pub fn left(&self) -> ArrayView2<'_, f64> {
        self.left.view()
    }

    /// B, `[k, n]`.
    pub fn right(&self) -> ArrayView2<'_, f64> {
        self.right.view()
    }

    /// The number of rows m of the product.
    pub fn nrows(&self) -> usize {
        self.left.nrows()
    }

    /// The number of columns n of the product.
    pub fn ncols(&self) -> usize {
        self.right.ncols()
    }

    /// The inner width k, an upper bound on the rank.
    pub fn width(&self) -> usize {
        self.left.ncols()
    }

    /// `(A B)^T = B^T A^T`
    #[must_use]
    pub fn transpose(&self) -> Self {
        Self { left: self.right.clone().reversed_axes(), right: self.left.clone().reversed_axes() }
    }

    /// `(A B)(C D)`, with the smaller of the two inner widths.
    ///
    /// # Errors
    /// If the number of rows of `other` is not n.
    pub fn times(&self, other: &Self) -> Result<Self> {
        if self.ncols() != other.nrows() {
            return Err(shape("other factor's left", format!("[{}, k]", self.ncols()), &other.left()));
        }
        let inner = product(&self.right(), &other.left());
        match self.width() <= other.width() {
            true => Self::new(self.left.clone(), product(&inner.view(), &other.right())),
            false => Self::new(product(&self.left(), &inner.view()), other.right.clone()),
        }
    }

    /// `A B + C D`, with the factors side by side: the inner widths add up.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn plus(&self, other: &Self) -> Result<Self> {
        self.same_shape(other)?;
        let left = concatenate![Axis(1), self.left, other.left];
        Self::new(left, concatenate![Axis(0), self.right, other.right])
    }

    /// `factor A B`
    ///
    /// # Errors
    /// If `factor` is not finite.
    pub fn scaled(&self, factor: f64) -> Result<Self> {
        Self::new(&self.left * factor, self.right.clone())
    }

    /// `x A B` for each row of `x`, `[.., m]`.
    ///
    /// # Errors
    /// If `x` does not have m columns.
    pub fn apply(&self, x: &ArrayView2<'_, f64>) -> Result<Array2<f64>> {
        if x.ncols() != self.nrows() {
            return Err(shape("x", format!("[any, {}]", self.nrows()), x));
        }
        Ok(product(&product(x, &self.left()).view(), &self.right()))
    }

    /// A range of rows of the product, `[row, n]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if a row does not exist.
    pub fn rows(&self, range: Range<usize>) -> Result<Array2<f64>> {
        in_range("rows", "row", &range, self.nrows())?;
        Ok(product(&self.left.slice(s![range, ..]), &self.right()))
    }

    /// A range of columns of the product, `[m, column]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if a column does not exist.
    pub fn columns(&self, range: Range<usize>) -> Result<Array2<f64>> {
        in_range("columns", "column", &range, self.ncols())?;
        Ok(product(&self.left(), &self.right.slice(s![.., range])))
    }

    /// A row of the product, `[n]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the row does not exist.
    pub fn row(&self, index: usize) -> Result<Array1<f64>> {
        Ok(self.rows(index..index.saturating_add(1))?.remove_axis(Axis(0)))
    }

    /// A column of the product, `[m]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if the column does not exist.
    pub fn column(&self, index: usize) -> Result<Array1<f64>> {
        Ok(self.columns(index..index.saturating_add(1))?.remove_axis(Axis(1)))
    }

    /// The trace, `sum_ij A_ij B_ji`.
    ///
    /// # Errors
    /// If the product is not square.
    pub fn trace(&self) -> Result<f64> {
        self.square()?;
        Ok((&self.left * &self.right.t()).sum())
    }

    /// The Frobenius norm `|A B|_F = |R_A R_B^T|_F`.
    ///
    /// # Errors
    /// If LAPACK fails.
    pub fn norm(&self) -> Result<f64> {
        Ok(frobenius(&self.core()?.1))
    }

    /// The inner product `<A B, C D> = tr((A^T C)(D B^T))`.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn dot(&self, other: &Self) -> Result<f64> {
        self.same_shape(other)?;
        let lefts = product(&self.left.t(), &other.left.view());
        let rights = product(&self.right.view(), &other.right.t());
        Ok((&lefts * &rights).sum())
    }

    /// The Frobenius cosine `<A B, C D> / (|A B| |C D|)`, from -1 to 1; NaN if either is zero.
    ///
    /// # Errors
    /// If the shapes differ.
    pub fn cosine(&self, other: &Self) -> Result<f64> {
        let cosine = self.dot(other)? / (self.norm()? * other.norm()?);
        Ok(if cosine.is_finite() { cosine.clamp(-1.0, 1.0) } else { f64::NAN })
    }

    /// The eigenvalues that can differ from zero, those of `B A`, `[k, k]`, in descending order of magnitude.
    ///
    /// # Errors
    /// If the product is not square, or LAPACK fails.
    pub fn eigenvalues(&self) -> Result<Vec<c64>> {
        self.square()?;
        let small = match self.width() <= self.nrows() {
            true => product(&self.right(), &self.left()),
            false => product(&self.left(), &self.right()), // of its own size, which is the smaller one here
        };
        let mut values = lapack::eigenvalues(&small)?.to_vec();
        values.sort_by(|a, b| b.norm().total_cmp(&a.norm()).then(b.im.total_cmp(&a.im)));
        Ok(values)
    }

    /// The singular value decomposition. With `A = Q_A R_A`, `B^T = Q_B R_B` and `R_A R_B^T = U S V^T`, the singular vectors
    /// are `Q_A U` and `Q_B V`. Takes `O((m + n) k^2 + k^3)` operations.
    ///
    /// # Errors
    /// If LAPACK fails.
    pub fn svd(&self) -> Result<Svd> {
        let ([a, b], core) = self.core()?;
        let (u, sigma, vt) = lapack::svd(&core)?;
        Ok(Svd { u: a.q_times(&u.view()), sigma, v: b.q_times(&vt.t()) })
    }

    /// The min(m, n, k) singular values, in descending order.
    ///
    /// # Errors
    /// If LAPACK fails.
    pub fn singular_values(&self) -> Result<Array1<f64>> {
        lapack::singular_values(&self.core()?.1)
    }

    /// The rank: the number of singular values above 1e-9 of the largest, which rounding does not explain.
    ///
    /// # Errors
    /// If LAPACK fails.
    pub fn rank(&self) -> Result<usize> {
        let sigma = self.singular_values()?;
        Ok(sigma.iter().filter(|&&value| value > 1e-9 * sigma[0]).count())
    }

    /// The nearest matrix of rank `rank` (Eckart & Young 1936). The squared error is `sum_(i > rank) sigma_i^2` in the
    /// Frobenius norm; the error is sigma_(rank + 1) in the spectral norm.
    ///
    /// # Errors
    /// If `rank` is 0, or LAPACK fails.
    pub fn truncated(&self, rank: usize) -> Result<Self> {
        self.svd()?.truncated(rank)
    }

    /// The matrix P, `[k, k]`, for which `A P B` equals [`Factored::truncated`]: A and B keep their values, and P limits what
    /// passes between them. This lowers the rank of a head while it runs: for `A B = W_V W_O`, multiply z by P.
    ///
    /// `P = R_A^+ U_r S_r V_r^T (R_B^T)^+`, with `R_A R_B^T = U S V^T`. If the columns of A are independent, it is the
    /// projection `R_A^-1 U_r U_r^T R_A`.
    ///
    /// # Errors
    /// If `rank` is 0, or LAPACK fails.
    pub fn inner_truncation(&self, rank: usize) -> Result<Array2<f64>> {
        let ([a, b], core) = self.core()?;
        let (u, sigma, vt) = lapack::svd(&core)?;
        let cut = Svd { u, sigma, v: vt.reversed_axes() }.truncated(rank)?;
        let left = product(&lapack::inverse(&a.r)?.view(), &cut.left());
        Ok(product(&left.view(), &product(&cut.right(), &lapack::inverse(&b.r)?.t()).view()))
    }

    /// A control for [`Factored::inner_truncation`]: the matrix P, `[k, k]`, for which `A P B` keeps `rank` random directions,
    /// drawn uniformly from those that A writes to.
    ///
    /// # Errors
    /// If `rank` is not from 1 to the smaller of k and m, or LAPACK fails.
    pub fn random_inner_truncation(&self, rank: usize, seed: u64) -> Result<Array2<f64>> {
        let a = ThinQr::new(self.left.view())?;
        let kept = random_frame(a.r.nrows(), rank, seed)?;
        let left = product(&lapack::inverse(&a.r)?.view(), &kept.view());
        Ok(product(&left.view(), &product(&kept.t(), &a.r.view()).view()))
    }

    /// The QR decompositions of A and B^T, and `R_A R_B^T`.
    fn core(&self) -> Result<([ThinQr<'_>; 2], Array2<f64>)> {
        let (a, b) = (ThinQr::new(self.left.view())?, ThinQr::new(self.right.t())?);
        let core = product(&a.r.view(), &b.r.t());
        Ok(([a, b], core))
    }

    fn square(&self) -> Result<()> {
        match self.nrows() == self.ncols() {
            true => Ok(()),
            false => Err(shape("product", format!("[{0}, {0}]", self.nrows()), &self.right())),
        }
    }

    fn same_shape(&self, other: &Self) -> Result<()> {
        if (self.nrows(), self.ncols()) == (other.nrows(), other.ncols()) {
            return Ok(());
        }
        let found = vec![other.nrows() as i64, other.ncols() as i64];
        Err(Error::Shape { at: "other".into(), expected: format!("[{}, {}]", self.nrows(), self.ncols()), found })
    }
}

/// An [`Error::Shape`] for a matrix.
pub(super) fn shape(at: &str, expected: String, found: &ArrayView2<'_, f64>) -> Error {
    Error::Shape { at: at.to_owned(), expected, found: vec![found.nrows() as i64, found.ncols() as i64] }
}

/// Fails at the first value that is not finite.
pub(super) fn check_finite(at: &str, matrix: &ArrayView2<'_, f64>) -> Result<()> {
    // One pass in memory order, before looking for the index.
    let whole = matrix.as_slice_memory_order();
    if whole.is_some_and(|values| values.iter().fold(true, |all, value| all & value.is_finite())) {
        return Ok(());
    }
    match matrix.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        Some((index, &found)) => Err(Error::NotFinite { at: at.to_owned(), index, found }),
        None => Ok(()),
    }
}

fn in_range(at: &str, axis: &'static str, range: &Range<usize>, limit: usize) -> Result<()> {
    match range.start <= range.end && range.end <= limit {
        true => Ok(()),
        false => Err(Error::OutOfRange {
            at: at.to_owned(),
            axis,
            found: range.end.saturating_sub(1).max(range.start) as i64,
            limit: limit as i64,
        }),
    }
}
