//! How do batches become tensors for the forward pass, and how are losses read from the logits?

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::language::{Batch, Sample};
use crate::error::{Error, Result};
use crate::model::{Joins, Model, Pass, Past, Program, Tokens};
use crate::tensors::log_softmax;

/// The batches of one or more runs, all with the same number of rows, concatenated along the rows.
pub(in crate::lab) struct Prepared {
    pub tokens: Tokens,
    /// Token ids, `[run * row, position]`.
    pub ids: Tensor,
    pub runs: i64,
    /// The positions at which predictions are made.
    pub places: Predicted,
    /// The range of tokens that the predictions choose from, as first and number: no other logits are computed.
    pub columns: (i64, i64),
    groups: Vec<Choice>,
    /// Number of predictions, `[run, task]`.
    pub count: Tensor,
}

/// The places, that is (row, position) pairs, at which predictions are made; places are numbered within each run.
pub(in crate::lab) enum Predicted {
    /// One position of each row, `[run * row]`.
    One(Tensor),
    /// Every position of every row.
    All,
    /// Some positions, `[run * place]`, numbered `row * positions + position` over all rows. Runs with fewer places are
    /// padded with the first position of their first row.
    Some(Tensor),
}

/// Predictions that choose from the same range of tokens.
struct Choice {
    /// First column and number of columns.
    columns: (i64, i64),
    /// Place within the run, `[run, prediction]`.
    place: Tensor,
    /// The correct token, counted from the first column, `[run, prediction]`.
    token: Tensor,
    /// At each prediction's task, 1 over the run's number of predictions for the task; 0 elsewhere.
    /// `[run, prediction, task]`.
    weight: Tensor,
}

/// A prediction: run, place within the run, token and task.
type Prediction = (usize, i64, i64, usize);

impl Prepared {
    /// Prepares the batches of one or more runs.
    ///
    /// # Errors
    /// If there is no batch, or the numbers of rows differ.
    pub(in crate::lab) fn new(batches: &[Batch], tasks: usize, kind: Kind, device: Device) -> Result<Self> {
        let samples: Vec<&[Sample]> = batches.iter().map(|batch| batch.samples.as_slice()).collect();
        let rows = samples.iter().flat_map(|samples| samples.iter().map(|sample| sample.tokens.clone()));
        Self::of_rows(rows.collect(), &samples, tasks, kind, device)
    }

    /// Prepares samples and consumes their tokens.
    ///
    /// # Errors
    /// As for [`Prepared::new`].
    pub(in crate::lab) fn owning(
        mut batches: Vec<Vec<Sample>>,
        tasks: usize,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let rows = batches.iter_mut().flatten().map(|sample| std::mem::take(&mut sample.tokens)).collect();
        let samples: Vec<&[Sample]> = batches.iter().map(Vec::as_slice).collect();
        Self::of_rows(rows, &samples, tasks, kind, device)
    }

    /// Prepares samples whose tokens are `rows`.
    fn of_rows(rows: Vec<Vec<i64>>, batches: &[&[Sample]], tasks: usize, kind: Kind, device: Device) -> Result<Self> {
        let each = batches.first().map_or(0, |samples| samples.len());
        if let Some(other) = batches.iter().find(|samples| samples.len() != each || each == 0) {
            return Err(Error::argument("batches", format!("{each} rows in each, at least 1"), other.len()));
        }
        let tokens = Tokens::owning(rows)?;
        let ids = tokens.ids(device);
        let (places, number) = places(batches, tokens.positions(), device);
        let mut groups: BTreeMap<(i64, i64), Vec<Prediction>> = BTreeMap::new();
        let mut count = vec![0.0; batches.len() * tasks];
        for (run, samples) in batches.iter().enumerate() {
            for (row, sample) in samples.iter().enumerate() {
                for target in &sample.targets {
                    let columns = (target.choices.start, target.choices.end - target.choices.start);
                    let place = number.get(run, row, target.position);
                    groups.entry(columns).or_default().push((run, place, target.token - columns.0, target.task));
                    count[run * tasks + target.task] += 1.0;
                }
            }
        }
        let first = groups.keys().map(|(start, _)| *start).min().unwrap_or(0);
        let end = groups.keys().map(|(start, n)| start + n).max().unwrap_or(1);
        let group = |((start, n), all): ((i64, i64), Vec<Prediction>)| {
            Choice::new((start - first, n), &all, batches.len(), tasks, &count, (kind, device))
        };
        let groups = groups.into_iter().map(group).collect();
        let count = Tensor::from_slice(&count).to_kind(kind).to_device(device).view([batches.len() as i64, -1]);
        Ok(Self { tokens, ids, runs: batches.len() as i64, places, columns: (first, end - first), groups, count })
    }

    /// Number of positions in the longest row.
    pub(in crate::lab) fn positions(&self) -> i64 {
        self.ids.size()[1]
    }

    /// The position to read in each row, `[run * row]`, if there is exactly one per row.
    pub(in crate::lab) fn wanted(&self) -> Option<Tensor> {
        match &self.places {
            Predicted::One(wanted) => Some(wanted.shallow_clone()),
            _ => None,
        }
    }

    /// The logits that predictions read, `[run * place, 1, column]`, or `[run * row, position, column]` if all
    /// positions are read.
    pub(in crate::lab) fn logits(&self, model: &Model, program: &Program) -> Result<Tensor> {
        let mut pass = Pass::over(model, program, self.tokens.positions(), None, Past::None).only(self.wanted());
        let x = pass.residual(&Joins::whole(self.ids.shallow_clone()), model.config().n_layers)?;
        let x = match &self.places {
            Predicted::Some(_) => self.pick(&x),
            _ => x,
        };
        pass.some_logits(&x, self.columns)
    }

    /// Selects the places: `[run * row, position, ..]` to `[run * place, 1, ..]`. If all positions are read, every
    /// position of `x` is a place.
    pub(in crate::lab) fn pick(&self, x: &Tensor) -> Tensor {
        let flat = |index: &Tensor| x.flatten(0, 1).index_select(0, index).unsqueeze(1);
        match &self.places {
            Predicted::All => x.flatten(0, 1).unsqueeze(1),
            Predicted::Some(index) => flat(index),
            Predicted::One(wanted) => {
                let rows = Tensor::arange(wanted.size()[0], (Kind::Int64, wanted.device()));
                flat(&(rows * x.size()[1] + wanted))
            }
        }
    }

    /// [`Prepared::pick`] from what a pass that was asked for [`Prepared::wanted`] has computed: of some values only the
    /// wanted positions.
    pub(in crate::lab) fn pick_computed(&self, x: &Tensor) -> Tensor {
        match &self.places {
            Predicted::One(_) if x.size()[1] == 1 => x.shallow_clone(),
            _ => self.pick(x),
        }
    }

    /// 1 at the places where a prediction is made, 0 elsewhere: `[run, place]`.
    pub(in crate::lab) fn predicted(&self) -> Tensor {
        let places = match &self.places {
            Predicted::One(wanted) => wanted.numel(),
            Predicted::All => self.ids.numel(),
            Predicted::Some(index) => index.numel(),
        };
        let none = Tensor::zeros([self.runs, places as i64 / self.runs], (self.count.kind(), self.count.device()));
        let there = |group: &Choice| group.weight.sum_dim_intlist([2i64].as_slice(), false, None::<Kind>);
        let sum = self.groups.iter().fold(none, |sum, group| sum.scatter_add(1, &group.place, &there(group)));
        sum.gt(0.0).to_kind(self.count.kind())
    }

    /// [`Prepared::pick`] for rows ordered by run and then by variant, for the case that some positions are read.
    pub(in crate::lab) fn pick_variants(&self, x: &Tensor, variants: i64) -> Tensor {
        let Predicted::Some(index) = &self.places else { return x.shallow_clone() };
        let each = self.ids.numel() as i64 / self.runs;
        let numbers = |n: i64| Tensor::arange(n, (Kind::Int64, index.device()));
        let own = index.view([self.runs, 1, -1]) + numbers(self.runs).view([-1, 1, 1]) * (each * (variants - 1));
        let own = own + numbers(variants).view([1, -1, 1]) * each;
        x.flatten(0, 1).index_select(0, &own.flatten(0, 2)).unsqueeze(1)
    }

    /// The position within its row of each place, `[run * place]`.
    pub(in crate::lab) fn positions_of_places(&self) -> Tensor {
        let all = Tensor::arange(self.positions(), (Kind::Int64, self.ids.device()));
        self.pick(&all.unsqueeze(0).expand_as(&self.ids)).squeeze_dim(1)
    }

    /// Mean loss of each task in nats, `[run, variant, task]`. Rows of `logits` are ordered by run, variant and place.
    /// 0 if a task has no prediction.
    pub(in crate::lab) fn losses(&self, logits: &Tensor, variants: i64) -> Result<Tensor> {
        self.sum(logits, variants, |group, read| {
            let width = group.columns.1;
            let index = (&group.place * width + &group.token).unsqueeze(1);
            let index = index.expand([self.runs, variants, index.size()[2]], false);
            let log = log_softmax(read)?;
            log.flatten(2, 3).f_gather(2, &index, false)?.f_neg()
        })
    }

    /// Accuracy on each task, the share of predictions whose target has the largest logit, `[run, variant, task]`.
    pub(in crate::lab) fn accuracies(&self, logits: &Tensor, variants: i64) -> Result<Tensor> {
        self.sum(logits, variants, |group, read| {
            let shape = [self.runs, variants, group.place.size()[1]];
            let of = |x: &Tensor| x.unsqueeze(1).expand(shape, false);
            let best = read.argmax(-1, false).f_gather(2, &of(&group.place), false)?;
            Ok(best.eq_tensor(&of(&group.token)).to_kind(read.kind()))
        })
    }

    /// The mean over each task's predictions of what `each` computes from a group's logits,
    /// `[run, variant, prediction]`.
    fn sum(
        &self,
        logits: &Tensor,
        variants: i64,
        each: impl Fn(&Choice, &Tensor) -> Result<Tensor, tch::TchError>,
    ) -> Result<Tensor> {
        let logits = logits.view([self.runs, variants, -1, self.columns.1]);
        let mut sum: Option<Tensor> = None;
        for group in &self.groups {
            let read = logits.narrow(3, group.columns.0, group.columns.1);
            let values = each(group, &read).and_then(|values| values.f_bmm(&group.weight));
            let values = values.map_err(Error::torch("a loss"))?;
            sum = Some(match sum {
                Some(sum) => sum + values,
                None => values,
            });
        }
        let none = || Error::argument("batches", "something to predict", "nothing");
        sum.ok_or_else(none)
    }

    /// The mean loss over all predictions of each run, `[run]`; `losses` is `[run, 1, task]`. If `weights` are given, each
    /// prediction is weighted by its task.
    pub(in crate::lab) fn means(&self, losses: &Tensor, weights: &[f64]) -> Tensor {
        let all = self.count.sum_dim_intlist([1i64].as_slice(), true, None).clamp_min(1.0);
        let mut share = &self.count / all;
        if !weights.is_empty() {
            share *= Tensor::from_slice(weights).to_kind(losses.kind()).to_device(losses.device());
        }
        (losses.squeeze_dim(1) * share).sum_dim_intlist([1i64].as_slice(), false, None::<Kind>)
    }

    /// The sum of [`Prepared::means`] over runs, so that runs have independent gradients.
    pub(in crate::lab) fn total(&self, losses: &Tensor, weights: &[f64]) -> Tensor {
        self.means(losses, weights).sum(None::<Kind>)
    }
}

impl Choice {
    fn new(
        columns: (i64, i64),
        all: &[Prediction],
        runs: usize,
        tasks: usize,
        count: &[f64],
        (kind, device): (Kind, Device),
    ) -> Self {
        let mut by_run = vec![0usize; runs];
        all.iter().for_each(|(run, ..)| by_run[*run] += 1);
        let n = by_run.iter().copied().max().unwrap_or(0);
        let (mut place, mut token) = (vec![0i64; runs * n], vec![0i64; runs * n]);
        let mut weight = vec![0.0; runs * n * tasks];
        let mut filled = vec![0usize; runs];
        for &(run, at, right, task) in all {
            let cell = run * n + filled[run];
            filled[run] += 1;
            (place[cell], token[cell]) = (at, right);
            weight[cell * tasks + task] = 1.0 / count[run * tasks + task];
        }
        let shape = [runs as i64, n as i64];
        let whole = |numbers: &[i64]| Tensor::from_slice(numbers).view(shape).to_device(device);
        let weight = Tensor::from_slice(&weight).view([shape[0], shape[1], tasks as i64]);
        Self { columns, place: whole(&place), token: whole(&token), weight: weight.to_kind(kind).to_device(device) }
    }
}

/// How places are numbered within a run.
enum Numbers {
    /// By row.
    Row,
    /// `row * positions + position`.
    All(i64),
    /// In the order listed, separately for each run.
    Listed(Vec<BTreeMap<(usize, usize), i64>>),
}

impl Numbers {
    fn get(&self, run: usize, row: usize, position: usize) -> i64 {
        match self {
            Self::Row => row as i64,
            Self::All(positions) => row as i64 * positions + position as i64,
            Self::Listed(listed) => listed[run].get(&(row, position)).copied().unwrap_or(0),
        }
    }
}

/// The places where predictions are made, and their numbering.
fn places(batches: &[&[Sample]], positions: usize, device: Device) -> (Predicted, Numbers) {
    let samples = || batches.iter().flat_map(|samples| samples.iter());
    let one = |targets: &[super::language::Target]| {
        let first = targets.first()?.position;
        targets.iter().all(|target| target.position == first).then_some(first as i64)
    };
    if let Some(wanted) = samples().map(|sample| one(&sample.targets)).collect::<Option<Vec<i64>>>() {
        return (Predicted::One(Tensor::from_slice(&wanted).to_device(device)), Numbers::Row);
    }
    let predicted: usize = samples().map(|sample| sample.targets.len()).sum();
    if 2 * predicted > samples().count() * positions {
        return (Predicted::All, Numbers::All(positions as i64));
    }
    let mut listed = vec![];
    for samples in batches {
        let all = samples.iter().enumerate();
        let all = all.flat_map(|(row, sample)| sample.targets.iter().map(move |target| (row, target.position)));
        let mut own: BTreeMap<(usize, usize), i64> = all.map(|place| (place, 0)).collect();
        own.values_mut().zip(0..).for_each(|(number, n)| *number = n);
        listed.push(own);
    }
    let longest = listed.iter().map(BTreeMap::len).max().unwrap_or(0);
    let rows = batches.first().map_or(0, |samples| samples.len());
    let flat = |run: usize, (row, position): (usize, usize)| ((run * rows + row) * positions + position) as i64;
    let mut index = vec![];
    for (run, own) in listed.iter().enumerate() {
        index.extend(own.keys().map(|&place| flat(run, place)));
        index.resize((run + 1) * longest, flat(run, (0, 0)));
    }
    (Predicted::Some(Tensor::from_slice(&index).to_device(device)), Numbers::Listed(listed))
}
