//! What if the batch does not fit into memory? Compute it in parts, one after another, and join their values.

use ndarray::{Array2, Axis, concatenate};

use super::Variant;
use crate::error::{Error, Result};
use crate::intervene::metric::Metric;
use crate::model::{ModelConfig, Tokens};

/// Prompts computed together: `first..first + n` of a batch of `of`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::intervene) struct Part {
    pub first: usize,
    pub n: usize,
    pub of: usize,
}

impl Part {
    /// All prompts of a batch.
    pub(in crate::intervene) fn whole(batch: usize) -> Self {
        Self { first: 0, n: batch, of: batch }
    }

    /// Splits a batch into the fewest parts of at most `most` prompts, of about equal size.
    pub(in crate::intervene) fn at_most(most: usize, batch: usize) -> Vec<Self> {
        let n = batch.div_ceil(batch.div_ceil(most.clamp(1, batch)));
        (0..batch).step_by(n).map(|first| Self { first, n: n.min(batch - first), of: batch }).collect()
    }

    /// The part's prompts, padded like the whole batch.
    pub(in crate::intervene) fn tokens(self, tokens: &Tokens) -> Result<Tokens> {
        if self.n == self.of { Ok(tokens.clone()) } else { tokens.select(&self.prompts()) }
    }

    /// Whether this is the last part.
    pub(in crate::intervene) fn is_last(self) -> bool {
        self.first + self.n == self.of
    }

    pub(in crate::intervene) fn prompts(self) -> Vec<usize> {
        (self.first..self.first + self.n).collect()
    }

    /// The variants restricted to the part's prompts. A variant that changes only other prompts has no edit left.
    pub(in crate::intervene) fn variants(self, variants: &[Variant]) -> Vec<Variant> {
        if self.n == self.of {
            return variants.to_vec();
        }
        let here = |variant: &Variant| {
            let mut variant = variant.clone();
            variant.edits.retain_mut(|edit| match &mut edit.at.prompts {
                Some(prompts) => {
                    prompts.retain(|prompt| (self.first..self.first + self.n).contains(prompt));
                    prompts.iter_mut().for_each(|prompt| *prompt -= self.first);
                    !prompts.is_empty()
                }
                None => true,
            });
            variant
        };
        variants.iter().map(here).collect()
    }

    /// The metrics for the part's prompts.
    pub(in crate::intervene) fn metrics(self, metrics: &[Metric]) -> Result<Vec<Metric>> {
        if self.n == self.of {
            return Ok(metrics.to_vec());
        }
        metrics.iter().map(|metric| metric.of_prompts(self.first, self.n, self.of)).collect()
    }
}

/// Fails if an edit names a prompt that does not exist. Parts cannot check this: each sees only its own prompts.
pub(in crate::intervene) fn check_prompts(variants: &[Variant], config: &ModelConfig, tokens: &Tokens) -> Result<()> {
    for edit in variants.iter().flat_map(|variant| &variant.edits).filter(|edit| edit.at.prompts.is_some()) {
        edit.site.check(config)?;
        edit.at.check(edit.site, &edit.site.shape_for(config, tokens))?;
    }
    Ok(())
}

/// Joins the values of the parts, `[variant, cell]` each, along the cells of the whole batch.
pub(in crate::intervene) fn side_by_side(parts: &[Array2<f64>]) -> Result<Array2<f64>> {
    let views: Vec<_> = parts.iter().map(Array2::view).collect();
    concatenate(Axis(1), &views).map_err(|_| Error::Shape {
        at: "metric".into(),
        expected: "as many variants in every part of the batch".into(),
        found: parts.iter().map(|part| part.nrows() as i64).collect(),
    })
}
