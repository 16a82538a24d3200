//! What is an activation on average over the prompts of a reference?

use std::collections::BTreeMap;

use tch::Tensor;

use crate::error::{Error, Result};
use crate::site::{Axis, Site};
use crate::tensors::wide;
use crate::text::Tokens;

/// The mean over prompts, `[1, ..]`, without padding; a position that no prompt reaches is an error.
pub(super) fn mean_over_prompts(site: Site, x: &Tensor, valid: Option<&Tensor>) -> Result<Tensor> {
    let mut means = Means::default();
    means.add(site, x, valid);
    means.finish(None, 0)?.remove(&site).ok_or_else(|| Error::NotTapped { site, tapped: vec![] })
}

/// Means over the prompts of several runs.
#[derive(Default)]
pub(crate) struct Means {
    /// The sum over the prompts so far, `[1, ..]`, and their number at each position.
    sums: BTreeMap<Site, (Tensor, Tensor)>,
}

impl Means {
    /// Adds prompts: what `site` holds, and which positions are real tokens if some are padded.
    pub(crate) fn add(&mut self, site: Site, x: &Tensor, valid: Option<&Tensor>) {
        let kind = wide(x.kind());
        let sum = |x: &Tensor| x.sum_dim_intlist([0i64].as_slice(), true, kind);
        let mut shape = vec![1i64; x.dim()];
        shape[0] = x.size()[0];
        let axis = site.axes().iter().position(|axis| axis.is_of_positions()).unwrap_or(1);
        shape[axis] = x.size()[axis];
        let (total, count) = match valid {
            Some(valid) => {
                let real = valid.view(shape.as_slice());
                (sum(&x.where_self(&real, &x.zeros_like())), sum(&real.to_kind(kind)))
            }
            None => (sum(x), sum(&Tensor::ones(shape, (kind, x.device())))),
        };
        let so_far = match self.sums.remove(&site) {
            Some((t, c)) => (t + total, c + count),
            None => (total, count),
        };
        self.sums.insert(site, so_far);
    }

    /// The means at the first positions, as many as `tokens` has; the first layers may be those of an encoder.
    ///
    /// # Errors
    /// If a position is padding in every prompt.
    pub(crate) fn finish(self, tokens: Option<&Tokens>, encoder_layers: usize) -> Result<BTreeMap<Site, Tensor>> {
        let mean = |(site, (sum, count)): (Site, (Tensor, Tensor))| {
            let [sum, count] = [sum, count].map(|x| match tokens {
                Some(tokens) => first_positions(site, &x, tokens, encoder_layers),
                None => x,
            });
            let uncovered = i64::try_from(count.eq(0.0).any()).map_err(Error::torch("counting reference positions"))?;
            if uncovered != 0 {
                let expected = "a reference with a prompt at every position".to_owned();
                return Err(Error::Edit { site, expected, found: "only padding at some position".into() });
            }
            Ok((site, sum / count))
        };
        self.sums.into_iter().map(mean).collect()
    }
}

/// What `site` holds at the first positions, as queries and as keys, as many as `tokens` has; all of it where there are fewer.
pub(super) fn first_positions(site: Site, x: &Tensor, tokens: &Tokens, encoder_layers: usize) -> Tensor {
    let axes = site.axes().into_iter().enumerate();
    let axes = axes.filter(|(_, axis)| axis.is_of_positions() || axis.is_of_keys());
    let n = |axis: Axis| match axis {
        Axis::SourceKey => tokens.source().unwrap_or(tokens).positions(),
        _ => site.side(encoder_layers, tokens).positions(),
    };
    axes.fold(x.shallow_clone(), |x, (i, axis)| x.narrow(i as i64, 0, x.size()[i].min(n(axis) as i64)))
}
