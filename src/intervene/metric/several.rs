//! How are several metrics read from one pass? Those that read the same rows of logits share them.

use tch::{Kind, Tensor};

use super::{Metric, Output, Readout};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::text::Tokens;
use crate::workers::readable;

/// What one value is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::intervene) struct Cell {
    /// The number of its metric.
    pub metric: usize,
    pub prompt: usize,
    /// With one value per token, the token's position.
    pub token: Option<usize>,
}

/// Metrics bound to a model, a batch and its unchanged run.
pub(in crate::intervene) struct Readouts<'a> {
    all: Vec<Readout<'a>>,
}

readable!(Readouts<'a> { all; });

impl<'a> Readouts<'a> {
    /// Binds `metrics` as [`Readout::new`] does; with `per_token`, each has a value for every token.
    pub(in crate::intervene) fn new(
        model: &'a Model,
        metrics: &'a [Metric],
        tokens: &Tokens,
        base: &Output,
        values: usize,
        per_token: bool,
    ) -> Result<Self> {
        let bind = |metric| Readout::new(model, metric, tokens, base, values)?.per_token(per_token);
        Ok(Self { all: metrics.iter().map(bind).collect::<Result<_>>()? })
    }

    /// What each value of [`Readouts::read`] is of, metric by metric.
    pub(in crate::intervene) fn cells(&self) -> Result<Vec<Cell>> {
        let mut cells = vec![];
        for (metric, readout) in self.all.iter().enumerate() {
            cells.extend(readout.cells()?.into_iter().map(|(prompt, token)| Cell { metric, prompt, token }));
        }
        Ok(cells)
    }

    /// The one position of each prompt that the metrics read, counted from `first`, `[batch]`. `None` if they read more
    /// than one.
    pub(in crate::intervene) fn wanted(&self, first: i64) -> Option<Tensor> {
        let mut wanted = self.all.iter().map(|readout| readout.wanted(first));
        // All read the last one, if they read one.
        let one = wanted.next().flatten();
        one.filter(|_| wanted.all(|other| other.is_some()))
    }

    /// The number of positions unembedded for one copy of the batch, from `first` on.
    pub(in crate::intervene) fn unembedded(&self, first: i64) -> usize {
        self.together().iter().map(|group| group[0].1.unembedded(first)).sum()
    }

    /// The values of one metric, `[n, cell]`, on the model's device, attached to the graph if there is one.
    pub(in crate::intervene) fn values_of(&self, metric: usize, output: &Output) -> Result<Tensor> {
        Ok(Readout::values_of(&[&self.all[metric]], output)?.remove(0))
    }

    /// The readouts with their numbers, grouped by the rows of logits that they share.
    fn together(&self) -> Vec<Vec<(usize, &Readout<'a>)>> {
        let mut groups: Vec<Vec<(usize, &Readout<'a>)>> = vec![];
        for (number, readout) in self.all.iter().enumerate() {
            match groups.iter_mut().find(|group| group[0].1.shares_rows(readout)) {
                Some(group) => group.push((number, readout)),
                None => groups.push(vec![(number, readout)]),
            }
        }
        groups
    }

    /// The metrics of each stacked copy of the batch, `[n, cell]`, as float64 on the CPU; see [`Readouts::cells`].
    pub(in crate::intervene) fn read(&self, output: &Output) -> Result<Tensor> {
        let mut found: Vec<(usize, Tensor)> = vec![];
        for group in self.together() {
            let (numbers, readouts): (Vec<usize>, Vec<&Readout<'a>>) = group.into_iter().unzip();
            found.extend(numbers.into_iter().zip(Readout::values_of(&readouts, output)?));
        }
        found.sort_by_key(|(number, _)| *number);
        let found: Vec<Tensor> = found.into_iter().map(|(_, values)| values.to_kind(Kind::Double)).collect();
        Ok(Tensor::f_cat(&found, 1).map_err(Error::torch("reading metrics"))?.to_device(tch::Device::Cpu))
    }
}
