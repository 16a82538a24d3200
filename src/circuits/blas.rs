//! How fast is a matrix product on one thread? As fast as the BLAS that comes with LAPACK; heads and tiles run in parallel
//! instead.

use std::ffi::{c_char, c_int};

use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};

use crate::workers::on_one_thread;

/// Products with fewer multiplications are not worth the call.
const SMALL: usize = 4096;

unsafe extern "C" {
    /// `C <- alpha op(A) op(B) + beta C`, column-major. The build script links the library that provides it.
    fn dgemm_(
        transpose_a: *const c_char,
        transpose_b: *const c_char,
        m: *const c_int,
        n: *const c_int,
        k: *const c_int,
        alpha: *const f64,
        a: *const f64,
        lda: *const c_int,
        b: *const f64,
        ldb: *const c_int,
        beta: *const f64,
        c: *mut f64,
        ldc: *const c_int,
    );
}

/// `A B`
pub(super) fn product(a: &ArrayView2<'_, f64>, b: &ArrayView2<'_, f64>) -> Array2<f64> {
    let mut c = Array2::zeros((a.nrows(), b.ncols()));
    add_product(1.0, a, b, 0.0, &mut c.view_mut());
    c
}

/// `C <- alpha A B + beta C`. With beta = 0, C is not read.
///
/// Panics if the shapes do not match, as ndarray's own product does.
pub(super) fn add_product(
    alpha: f64,
    a: &ArrayView2<'_, f64>,
    b: &ArrayView2<'_, f64>,
    beta: f64,
    c: &mut ArrayViewMut2<'_, f64>,
) {
    let (m, k, n) = (a.nrows(), a.ncols(), b.ncols());
    let (left, right, out) = (Layout::of(a), Layout::of(b), Layout::of(&c.view()).filter(|layout| !layout.columns));
    match (left, right, out) {
        (Some(left), Some(right), Some(out)) if m * k * n >= SMALL && k == b.nrows() && c.dim() == (m, n) => {
            let size = |n: usize| n as c_int; // a layout fits
            let (alpha, beta) = (&raw const alpha, &raw const beta);
            // The BLAS is column-major and so computes C^T = B^T A^T.
            // SAFETY: the layouts describe how the three views lie in memory, their shapes were checked to match, and nothing
            // else refers to C, which is borrowed mutably.
            on_one_thread(|| unsafe {
                dgemm_(
                    right.transposition(),
                    left.transposition(),
                    &size(n),
                    &size(m),
                    &size(k),
                    alpha,
                    b.as_ptr(),
                    &right.leading,
                    a.as_ptr(),
                    &left.leading,
                    beta,
                    c.as_mut_ptr(),
                    &out.leading,
                );
            });
        }
        _ => general_mat_mul(alpha, a, b, beta, c),
    }
}

/// The memory layout of a matrix whose rows or columns are contiguous.
struct Layout {
    /// Whether the columns are contiguous.
    columns: bool,
    /// The stride from one of them to the next.
    leading: c_int,
}

impl Layout {
    /// `None` if neither is contiguous, an axis is empty, or a number is too large for the BLAS.
    fn of(matrix: &ArrayView2<'_, f64>) -> Option<Self> {
        let ((m, n), strides) = (matrix.dim(), matrix.strides());
        let fits = |stride: isize, least: usize| c_int::try_from(stride).ok().filter(|&s| s as usize >= least);
        if m == 0 || n == 0 || c_int::try_from(m.max(n)).is_err() {
            return None;
        }
        // The stride along an axis of length 1 is arbitrary.
        let rows = if m == 1 { Some(n as c_int) } else { fits(strides[0], n) };
        let columns = if n == 1 { Some(m as c_int) } else { fits(strides[1], m) };
        match (rows, columns) {
            (Some(leading), _) if n == 1 || strides[1] == 1 => Some(Self { columns: false, leading }),
            (_, Some(leading)) if m == 1 || strides[0] == 1 => Some(Self { columns: true, leading }),
            _ => None,
        }
    }

    fn transposition(&self) -> *const c_char {
        if self.columns { c"T".as_ptr() } else { c"N".as_ptr() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::s;

    /// Every layout gives ndarray's own product, including single rows and columns and every second one.
    #[test]
    fn products_of_all_layouts() {
        let filled = |m: usize, n: usize| Array2::from_shape_fn((m, n), |(i, j)| ((i * 37 + j * 11) % 19) as f64 - 9.0);
        for (m, k, n) in [(20, 30, 25), (1, 100, 50), (100, 50, 1), (80, 1, 70), (1, 5000, 1), (2, 3, 2)] {
            let (wide, high) = (filled(m, 2 * k), filled(2 * k, n));
            let (turned, other) = (filled(k, m), filled(n, k));
            let lefts = [wide.slice(s![.., ..k]), turned.t(), wide.slice(s![.., ..;2])];
            let rights = [high.slice(s![k.., ..]), other.t(), high.slice(s![..;2, ..])];
            for (a, b) in lefts.iter().flat_map(|a| rights.iter().map(move |b| (a, b))) {
                assert_eq!(product(a, b), a.dot(b), "{m} {k} {n}");
                let mut whole = filled(m + 1, n + 2);
                let (mut own, expected) = (whole.clone(), a.dot(b) * 2.0 - whole.slice(s![1.., 1..=n]));
                add_product(2.0, a, b, -1.0, &mut own.slice_mut(s![1.., 1..=n]));
                whole.slice_mut(s![1.., 1..=n]).assign(&expected);
                assert_eq!(own, whole, "{m} {k} {n}");
            }
        }
        let mut missing = Array2::from_elem((8, 8), f64::NAN);
        add_product(1.0, &filled(8, 80).view(), &filled(80, 8).view(), 0.0, &mut missing.view_mut());
        assert_eq!(missing, filled(8, 80).dot(&filled(80, 8)));
    }
}
