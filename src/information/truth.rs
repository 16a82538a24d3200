//! Does an estimator find the truth? Distributions with known information, after Czyż et al. 2023, "Beyond Normal".

use ndarray::{Array1, Array2};
use ndarray_linalg::{Cholesky, UPLO};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{ChiSquared, Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use statrs::function::gamma::{digamma, ln_gamma};

use super::gaussian_information;
use crate::error::{Error, Result};
use crate::stats::normal_cdf;

/// A distribution of pairs (x, y) with known mutual information. Mapping each variable separately does not change it, but makes
/// it harder to estimate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub enum Truth {
    /// Two standard normal numbers.
    Normal {
        /// Their correlation.
        rho: f64,
    },
    /// As `Normal`, each mapped by the normal distribution function: uniform marginals.
    NormalCdf {
        /// The correlation before the map.
        rho: f64,
    },
    /// As `Normal`, each mapped by sign(x) |x|^1.5: longer tails.
    HalfCube {
        /// The correlation before the map.
        rho: f64,
    },
    /// As `Normal`, each mapped by asinh: shorter tails.
    Asinh {
        /// The correlation before the map.
        rho: f64,
    },
    /// As `NormalCdf`, with x rolled up in the plane.
    SwissRoll {
        /// The correlation before the map.
        rho: f64,
    },
    /// x uniform from 0 to 1, y = x plus uniform noise from -eps to eps.
    UniformNoise {
        /// eps.
        noise: f64,
    },
    /// 2n standard normal numbers, n for each variable, with the same correlation between any two.
    Dense {
        /// Dimensions of each variable.
        n: usize,
        /// The correlation.
        rho: f64,
    },
    /// 2n standard normal numbers, n for each variable, of which only two pairs are correlated.
    TwoPairs {
        /// Dimensions of each variable, 2 or more.
        n: usize,
        /// The correlation of a pair.
        rho: f64,
    },
    /// 2n uncorrelated numbers, n for each variable, with a common Student tail: they share how far out they lie.
    Student {
        /// Dimensions of each variable.
        n: usize,
        /// Degrees of freedom.
        nu: usize,
    },
}

impl Truth {
    /// The distributions of the validation.
    pub fn all() -> Vec<Self> {
        let rho = 0.75;
        let mut all = vec![
            Self::Normal { rho },
            Self::NormalCdf { rho },
            Self::HalfCube { rho },
            Self::Asinh { rho },
            Self::SwissRoll { rho },
            Self::UniformNoise { noise: 0.1 },
            Self::UniformNoise { noise: 0.75 },
        ];
        all.extend([2, 3, 5, 25, 50].map(|n| Self::Dense { n, rho: 0.5 }));
        all.extend([2, 5, 25].map(|n| Self::TwoPairs { n, rho: 0.8 }));
        all.extend([(1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (5, 2), (5, 3)].map(|(n, nu)| Self::Student { n, nu }));
        all
    }

    /// The mutual information of x and y, in nats.
    ///
    /// # Errors
    /// If a parameter makes no sense.
    pub fn information(&self) -> Result<f64> {
        self.validate()?;
        match *self {
            Self::Normal { rho }
            | Self::NormalCdf { rho }
            | Self::HalfCube { rho }
            | Self::Asinh { rho }
            | Self::SwissRoll { rho } => Ok(-0.5 * (1.0 - rho * rho).ln()),
            Self::UniformNoise { noise: e } if e <= 0.5 => Ok(e - (2.0 * e).ln()),
            Self::UniformNoise { noise: e } => Ok(1.0 / (4.0 * e)),
            Self::TwoPairs { rho, .. } => Ok(-(1.0 - rho * rho).ln()),
            Self::Dense { n, .. } => {
                let halves = [(0..n).collect::<Vec<_>>(), (n..2 * n).collect()];
                gaussian_information(self.covariance(n).view(), &halves[0], &halves[1], &[])
            }
            Self::Student { n, nu } => Ok(2.0 * student_entropy(n, nu) - student_entropy(2 * n, nu)),
        }
    }

    /// Draws `n` samples of x and y, each \[sample, dimension\].
    ///
    /// # Errors
    /// If a parameter makes no sense.
    pub fn sample(&self, n: usize, seed: u64) -> Result<(Array2<f64>, Array2<f64>)> {
        self.validate()?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        if let Self::UniformNoise { noise } = *self {
            let x = Array2::from_shape_simple_fn((n, 1), || rng.random::<f64>());
            let y = x.mapv(|x| x + rng.random_range(-noise..noise));
            return Ok((x, y));
        }
        let d = self.dimensions();
        let failed =
            |reason| Error::argument("rho", "a correlation for which the covariance is positive definite", reason);
        let factor = self.covariance(d).cholesky(UPLO::Lower).map_err(failed)?;
        let mut rows =
            Array2::from_shape_simple_fn((n, 2 * d), || rng.sample::<f64, _>(StandardNormal)).dot(&factor.t());
        if let Self::Student { nu, .. } = *self {
            let chi = ChiSquared::new(nu as f64).map_err(|reason| Error::argument("nu", "1 or more", reason))?;
            rows.rows_mut().into_iter().for_each(|mut row| row /= (chi.sample(&mut rng) / nu as f64).sqrt());
        }
        let (x, y) = (rows.slice(ndarray::s![.., ..d]).to_owned(), rows.slice(ndarray::s![.., d..]).to_owned());
        Ok(match self {
            Self::NormalCdf { .. } => (x.mapv(normal_cdf), y.mapv(normal_cdf)),
            Self::HalfCube { .. } => (x.mapv(half_cube), y.mapv(half_cube)),
            Self::Asinh { .. } => (x.mapv(f64::asinh), y.mapv(f64::asinh)),
            Self::SwissRoll { .. } => (roll(&x.column(0).mapv(normal_cdf)), y.mapv(normal_cdf)),
            _ => (x, y),
        })
    }

    /// Dimensions of y, and of x except for `SwissRoll`, where x has 2.
    pub fn dimensions(&self) -> usize {
        match *self {
            Self::Dense { n, .. } | Self::TwoPairs { n, .. } | Self::Student { n, .. } => n,
            _ => 1,
        }
    }

    fn validate(&self) -> Result<()> {
        let below_one = |rho: f64| rho.abs() < 1.0;
        let (ok, expected) = match *self {
            Self::Normal { rho }
            | Self::NormalCdf { rho }
            | Self::HalfCube { rho }
            | Self::Asinh { rho }
            | Self::SwissRoll { rho } => (below_one(rho), "|rho| below 1"),
            Self::UniformNoise { noise } => (noise > 0.0 && noise.is_finite(), "noise above 0"),
            Self::Dense { n, rho } => (n >= 1 && (0.0..1.0).contains(&rho), "n of 1 or more, rho from 0 to below 1"),
            Self::TwoPairs { n, rho } => (n >= 2 && below_one(rho), "n of 2 or more, |rho| below 1"),
            Self::Student { n, nu } => (n >= 1 && nu >= 1, "n and nu of 1 or more"),
        };
        if ok { Ok(()) } else { Err(Error::argument("truth", expected, self)) }
    }

    /// The covariance of the Gaussian numbers from which x and y are made.
    fn covariance(&self, d: usize) -> Array2<f64> {
        let mut covariance = Array2::eye(2 * d);
        match *self {
            Self::Dense { rho, .. } => covariance.mapv_inplace(|value| if value == 0.0 { rho } else { value }),
            Self::TwoPairs { rho, .. } => (0..2).for_each(|i| {
                covariance[[i, d + i]] = rho;
                covariance[[d + i, i]] = rho;
            }),
            Self::Normal { rho }
            | Self::NormalCdf { rho }
            | Self::HalfCube { rho }
            | Self::Asinh { rho }
            | Self::SwissRoll { rho } => {
                covariance[[0, 1]] = rho;
                covariance[[1, 0]] = rho;
            }
            Self::UniformNoise { .. } | Self::Student { .. } => {}
        }
        covariance
    }
}

impl std::fmt::Display for Truth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Normal { rho } => write!(f, "normal, rho {rho}"),
            Self::NormalCdf { rho } => write!(f, "normal distribution function, rho {rho}"),
            Self::HalfCube { rho } => write!(f, "half-cube, rho {rho}"),
            Self::Asinh { rho } => write!(f, "asinh, rho {rho}"),
            Self::SwissRoll { rho } => write!(f, "Swiss roll, rho {rho}"),
            Self::UniformNoise { noise } => write!(f, "uniform noise {noise}"),
            Self::Dense { n, rho } => write!(f, "dense {n} x {n}, rho {rho}"),
            Self::TwoPairs { n, rho } => write!(f, "two pairs {n} x {n}, rho {rho}"),
            Self::Student { n, nu } => write!(f, "Student {n} x {n}, nu {nu}"),
        }
    }
}

fn half_cube(x: f64) -> f64 {
    x.signum() * x.abs().powf(1.5)
}

/// Rolls up a line from 0 to 1.
fn roll(line: &Array1<f64>) -> Array2<f64> {
    let angle = |u: f64| 1.5 * std::f64::consts::PI * (1.0 + 2.0 * u);
    Array2::from_shape_fn((line.len(), 2), |(row, axis)| {
        let angle = angle(line[row]);
        angle * if axis == 0 { angle.cos() } else { angle.sin() } / 21.0
    })
}

/// The entropy of Student's distribution in `d` dimensions with unit scale.
fn student_entropy(d: usize, nu: usize) -> f64 {
    let (d, nu) = (d as f64, nu as f64);
    let both = (nu + d) / 2.0;
    ln_gamma(nu / 2.0) - ln_gamma(both)
        + d / 2.0 * (nu * std::f64::consts::PI).ln()
        + both * (digamma(both) - digamma(nu / 2.0))
}
