//! Is a mean above or below a threshold? Student's t, with an interval whose level is the test's.

use statrs::distribution::{ContinuousCDF, StudentsT};

use super::{Interval, check_probability, check_sample, mean, variance};
use crate::error::{Error, Result};

/// An estimate with its standard error: what a t-test and a t-interval are made of.
///
/// ```
/// use headscope::stats::Student;
/// let effect = Student::of_mean(&[0.31, 0.28, 0.35, 0.30, 0.33, 0.29])?;
/// assert!(effect.p_above(0.1) < 0.001 && effect.p_below(0.1) > 0.999);
/// assert!(effect.interval(0.01)?.low > 0.1); // exactly if p_above(0.1) < 0.01
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Student {
    estimate: f64,
    error: f64,
    student: StudentsT,
}

impl Student {
    /// The mean of independent values.
    ///
    /// # Errors
    /// If there are fewer than two, or one is not finite.
    pub fn of_mean(values: &[f64]) -> Result<Self> {
        check_sample("values", values, 2)?;
        let n = values.len() as f64;
        Self::new(mean(values), (variance(values) / n).sqrt(), n - 1.0)
    }

    pub(super) fn new(estimate: f64, error: f64, freedom: f64) -> Result<Self> {
        let student = StudentsT::new(0.0, 1.0, freedom)
            .map_err(|reason| Error::argument("values", "a spread that a t-test can use", reason))?;
        Ok(Self { estimate, error, student })
    }

    /// The estimate.
    pub fn estimate(&self) -> f64 {
        self.estimate
    }

    /// One-sided p-value for the null hypothesis that the mean is at most `threshold`. If all values are equal, it is 0
    /// or 1.
    pub fn p_above(&self, threshold: f64) -> f64 {
        self.one_sided(self.estimate - threshold)
    }

    /// One-sided p-value for the null hypothesis that the mean is at least `threshold`.
    pub fn p_below(&self, threshold: f64) -> f64 {
        self.one_sided(threshold - self.estimate)
    }

    fn one_sided(&self, distance: f64) -> f64 {
        match self.error > 0.0 {
            true => self.student.sf(distance / self.error),
            false => f64::from(u8::from(distance <= 0.0)),
        }
    }

    /// The interval each of whose bounds has the one-sided level `alpha`, so its level is 1 - 2 alpha: the lower bound
    /// lies above a threshold exactly if [`Student::p_above`] is below alpha.
    ///
    /// # Errors
    /// If alpha is not between 0 and 0.5.
    pub fn interval(&self, alpha: f64) -> Result<Interval> {
        check_probability("alpha", alpha)?;
        if alpha >= 0.5 {
            return Err(Error::argument("alpha", "less than 0.5", alpha));
        }
        let half = self.error * self.student.inverse_cdf(1.0 - alpha);
        let Self { estimate, .. } = *self;
        Ok(Interval { estimate, low: estimate - half, high: estimate + half, level: 1.0 - 2.0 * alpha })
    }
}
