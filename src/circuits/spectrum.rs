//! How many dimensions does a matrix use? Ranks of its spectrum, compared with random matrices.

use ndarray::{Array2, ArrayView2};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::factored::Factored;
use super::lapack::ThinQr;
use crate::error::{Error, Result};

/// How many dimensions does a matrix use? Three counts, each from 1 to the rank, and equal to the rank if all nonzero singular
/// values are equal.
///
/// ```
/// use headscope::circuits::Ranks;
/// let ranks = Ranks::of(&[2.0, 2.0, 2.0, 0.0])?;
/// assert!((ranks.effective - 3.0).abs() < 1e-12 && ranks.stable == 3.0 && ranks.participation == 3.0);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranks {
    /// `exp H(sigma / sum sigma)`, with H the entropy (Roy & Vetterli 2007).
    pub effective: f64,
    /// `|W|_F^2 / sigma_1^2` (Rudelson & Vershynin 2007).
    pub stable: f64,
    /// `(sum sigma^2)^2 / sum sigma^4`.
    pub participation: f64,
}

impl Ranks {
    /// The counts from singular values in any order.
    ///
    /// # Errors
    /// If there are none, one is negative or not finite, or all are zero.
    pub fn of(sigma: &[f64]) -> Result<Self> {
        if let Some((index, &found)) = sigma.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            return Err(Error::NotFinite { at: "singular values".into(), index, found });
        }
        let largest = sigma.iter().copied().fold(0.0, f64::max);
        if let Some(found) = sigma.iter().find(|&&value| value < 0.0) {
            return Err(Error::argument("sigma", "singular values, none below 0", found));
        }
        if largest == 0.0 {
            return Err(Error::argument("sigma", "a singular value above 0", "none"));
        }
        // In units of the largest, so that squares do not overflow.
        let sigma: Vec<f64> = sigma.iter().map(|value| value / largest).filter(|&value| value > 0.0).collect();
        let power = |exponent: i32| sigma.iter().map(|value| value.powi(exponent)).sum::<f64>();
        let (sum, squares) = (power(1), power(2));
        let entropy: f64 = sigma.iter().map(|value| value / sum).map(|p| -p * p.ln()).sum();
        Ok(Self { effective: entropy.exp(), stable: squares, participation: squares * squares / power(4) })
    }

    /// The three counts with their names.
    pub(super) fn named(self) -> [(&'static str, f64); 3] {
        [("effective_rank", self.effective), ("participation_ratio", self.participation), ("stable_rank", self.stable)]
    }
}

/// What to compare a spectrum with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Null {
    /// Factors of the same shape with independent normal entries.
    #[default]
    Gaussian,
    /// The entries of the factors themselves, each factor's in random order.
    Shuffled,
}

/// How to draw the null distribution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct NullOptions {
    /// What to draw.
    pub null: Null,
    /// How many to draw.
    pub draws: usize,
    /// The seed.
    pub seed: u64,
}

impl Default for NullOptions {
    fn default() -> Self {
        Self { null: Null::default(), draws: 20, seed: 0 }
    }
}

impl NullOptions {
    /// # Errors
    /// If there are fewer than two draws.
    pub fn validate(&self) -> Result<()> {
        match self.draws {
            0 | 1 => Err(Error::argument("draws", "at least 2", self.draws)),
            _ => Ok(()),
        }
    }
}

/// What spectrum would a head have by chance? The spectra of random products like `product`, `[draw, component]`, scaled to its
/// Frobenius norm.
///
/// A spectrum that falls faster uses fewer dimensions than its shape explains or, with [`Null::Shuffled`], than the
/// distribution of its entries explains: that is structure in the weights.
///
/// # Errors
/// If the options do not [validate](NullOptions::validate), or LAPACK fails.
///
/// ```
/// use headscope::circuits::{Factored, NullOptions, null_spectra, random_frame};
/// let product = Factored::new(random_frame(20, 4, 0)?, random_frame(20, 4, 1)?.reversed_axes())?;
/// let null = null_spectra(&product, &NullOptions::default())?;
/// assert!(null.column(0).iter().all(|largest| *largest > 1.0)); // random factors are less even than frames
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn null_spectra(product: &Factored, options: &NullOptions) -> Result<Array2<f64>> {
    options.validate()?;
    let width = product.left().ncols();
    crate::take::fits(
        "draws",
        options.draws,
        size_of::<f64>() * (width + product.left().len() + product.right().len()),
    )?;
    let norm = product.norm()?;
    let draw = |number: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        rng.set_stream(number as u64);
        let mut like = |factor: ArrayView2<'_, f64>| match options.null {
            Null::Gaussian => gaussian(factor.dim(), &mut rng),
            Null::Shuffled => shuffled(&factor, &mut rng),
        };
        let drawn = Factored::new(like(product.left()), like(product.right()))?;
        let sigma = drawn.singular_values()?;
        let own = sigma.iter().map(|value| value * value).sum::<f64>().sqrt();
        Ok(sigma.mapv(|value| if own > 0.0 { value * norm / own } else { 0.0 }))
    };
    let spectra = (0..options.draws).into_par_iter().map(draw).collect::<Result<Vec<_>>>()?;
    let width = spectra.first().map_or(0, |first| first.len());
    Ok(Array2::from_shape_fn((options.draws, width), |(draw, i)| spectra[draw][i]))
}

/// Independent standard normal entries.
pub(super) fn gaussian(shape: (usize, usize), rng: &mut ChaCha8Rng) -> Array2<f64> {
    Array2::from_shape_simple_fn(shape, || StandardNormal.sample(rng))
}

/// What is a random subspace? An orthonormal frame drawn uniformly (Haar): `k` random orthogonal directions in `d` dimensions,
/// `[d, k]`. For k = d it is a random rotation or reflection.
///
/// # Errors
/// If `k` is 0 or more than `d`.
///
/// ```
/// use headscope::circuits::random_frame;
/// let frame = random_frame(5, 2, 0)?;
/// let gram = frame.t().dot(&frame);
/// assert!((gram - ndarray::Array2::<f64>::eye(2)).iter().all(|value| value.abs() < 1e-12));
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn random_frame(d: usize, k: usize, seed: u64) -> Result<Array2<f64>> {
    if k == 0 || k > d {
        return Err(Error::argument("k", format!("from 1 to d = {d}"), k));
    }
    let drawn = gaussian((d, k), &mut ChaCha8Rng::seed_from_u64(seed));
    let qr = ThinQr::new(drawn.view())?;
    // Q is uniform only if the diagonal of R is positive (Mezzadri 2007).
    let signs = qr.r.diag().mapv(f64::signum);
    Ok(qr.into_q() * &signs)
}

fn shuffled(matrix: &ArrayView2<'_, f64>, rng: &mut ChaCha8Rng) -> Array2<f64> {
    let mut values: Vec<f64> = matrix.iter().copied().collect();
    values.shuffle(rng);
    let mut values = values.into_iter();
    Array2::from_shape_simple_fn(matrix.dim(), || values.next().unwrap_or_default())
}
