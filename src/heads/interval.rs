//! How sure is a head's score, given that other prompts could have been drawn? Bootstrap intervals over prompts.

use ndarray::{Array1, ArrayView2, Axis};

use crate::error::Result;
use crate::stats::{BootstrapMethod, BootstrapOptions, Interval, bootstrap_columns, bootstrap_ratios};

/// Options for the intervals over prompts.
pub(super) struct Intervals {
    /// The number of resamples; 0 for no intervals.
    pub resamples: usize,
    pub level: f64,
    pub seed: u64,
}

impl Intervals {
    /// Checks that the options allow an interval, if one is requested.
    pub(super) fn validate(&self) -> Result<()> {
        self.options().map_or(Ok(()), |options| options.validate())
    }

    fn options(&self) -> Option<BootstrapOptions> {
        let (resamples, level, method) = (self.resamples, self.level, BootstrapMethod::Percentile);
        (resamples > 0).then_some(BootstrapOptions { resamples, level, method })
    }

    /// Intervals for the mean of each column of `[prompt, column]`; missing values are NaN.
    pub(super) fn means(&self, values: ArrayView2<f64>) -> Result<Vec<Option<Interval>>> {
        match self.options() {
            Some(options) => bootstrap_columns(values, &options, self.seed),
            None => Ok(vec![None; values.ncols()]),
        }
    }

    /// The interval for sum(above) / sum(below) over prompts.
    pub(super) fn ratio(&self, above: Array1<f64>, below: Array1<f64>) -> Result<Option<Interval>> {
        let Some(options) = self.options() else { return Ok(None) };
        let [above, below] = [above, below].map(|values| values.insert_axis(Axis(1)));
        Ok(bootstrap_ratios(above.view(), below.view(), &options, self.seed)?.pop().flatten())
    }
}
