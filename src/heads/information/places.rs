//! At which positions are heads sampled, with which labels and activations?

use std::collections::BTreeMap;

use ndarray::{Array2, s};
use tch::{Kind, Tensor};

use super::{InformationOptions, Target};
use crate::error::{Error, Result};
use crate::heads::batches::{batches, select};
use crate::heads::pattern::to_array;
use crate::model::{Model, Site, Tokens};
use crate::progress::Progress;
use crate::stats::shuffled;

/// A position in a prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub prompt: usize,
    pub position: usize,
}

/// The sampled positions, grouped by the batch in which their prompts are run.
pub(super) struct Places<'a> {
    model: &'a Model,
    tokens: &'a Tokens,
    batches: Vec<(Vec<usize>, Vec<Place>)>,
}

impl<'a> Places<'a> {
    /// All positions without special tokens, or `most` of them, drawn with the seed.
    pub fn new(model: &'a Model, tokens: &'a Tokens, most: usize, seed: u64) -> Result<Self> {
        let place = |prompt: usize| (0..tokens.row(prompt).len()).map(move |position| Place { prompt, position });
        let all: Vec<Place> = (0..tokens.batch()).flat_map(place).collect();
        let all: Vec<Place> = all.into_iter().filter(|place| !is_special(model, tokens, *place)).collect();
        let drawn = shuffled(&(0..all.len()).collect::<Vec<usize>>(), seed);
        let mut kept: BTreeMap<usize, Vec<Place>> = BTreeMap::new();
        let mut drawn: Vec<usize> = drawn.into_iter().take(most).collect();
        drawn.sort_unstable();
        drawn.into_iter().for_each(|number| kept.entry(all[number].prompt).or_default().push(all[number]));
        let with_places = |numbers: Vec<usize>| {
            let places = numbers.iter().flat_map(|prompt| kept.get(prompt).cloned().unwrap_or_default()).collect();
            (numbers, places)
        };
        let batches: Vec<(Vec<usize>, Vec<Place>)> = batches(model, tokens).into_iter().map(with_places).collect();
        if kept.is_empty() {
            return Err(Error::argument("tokens", "a token that stands for text", "none"));
        }
        Ok(Self { model, tokens, batches })
    }

    /// All places, in the order in which activations are read.
    pub fn all(&self) -> Vec<Place> {
        self.batches.iter().flat_map(|(_, places)| places.iter().copied()).collect()
    }

    /// Activations at the places, layer by layer and site by site: `[place, ...]`, followed by the site's axes after
    /// the position. Patterns are `[place, head, key]`, with 0 at keys beyond the end of a shorter prompt.
    pub fn read(&self, sites: &[fn(usize) -> Site]) -> Result<Vec<Vec<Tensor>>> {
        let empty = |_| sites.iter().map(|_| vec![]).collect::<Vec<Vec<Tensor>>>();
        let mut all: Vec<Vec<Vec<Tensor>>> = (0..self.model.config().n_layers).map(empty).collect();
        let mut progress = Progress::new("prompts", self.tokens.batch());
        let widest = self.tokens.positions() as i64;
        for (numbers, places) in &self.batches {
            progress.add(numbers.len());
            if places.is_empty() {
                continue;
            }
            let some = select(self.tokens, numbers)?;
            let row = |prompt: usize| numbers.iter().position(|&number| number == prompt).unwrap_or(0);
            let index = places.iter().map(|place| (row(place.prompt) * some.positions() + place.position) as i64);
            let index = Tensor::from_slice(&index.collect::<Vec<i64>>()).to_device(self.model.device());
            self.model.each_layer(&some, sites, |layer, run| {
                for (number, site) in sites.iter().enumerate() {
                    let mut value = run.get(site(layer))?.shallow_clone();
                    if let Site::Pattern(_) = site(layer) {
                        let missing = widest - value.size()[3];
                        value = value.constant_pad_nd([0, missing]).transpose(1, 2);
                    }
                    all[layer][number].push(value.flatten(0, 1).index_select(0, &index));
                }
                Ok(())
            })?;
        }
        let joined = |pieces: Vec<Tensor>| Tensor::cat(&pieces, 0);
        Ok(all.into_iter().map(|layer| layer.into_iter().map(joined).collect()).collect())
    }

    /// The label of each place, counted from 0, and the number of labels. `None` at places without a label, or with a
    /// rare one.
    pub fn labels(&self, target: Target, options: &InformationOptions) -> Result<Labels> {
        let token = |place: &Place, back: i64| {
            let at = place.position as i64 - back;
            let there = usize::try_from(at).ok().filter(|at| *at < self.tokens.row(place.prompt).len());
            let neighbour = Place { prompt: place.prompt, position: there? };
            let special = is_special(self.model, self.tokens, neighbour);
            (!special).then(|| self.tokens.row(place.prompt)[neighbour.position].to_string())
        };
        let places = self.all();
        let named: Vec<Option<String>> = match target {
            Target::PreviousToken => places.iter().map(|place| token(place, 1)).collect(),
            Target::CurrentToken => places.iter().map(|place| token(place, 0)).collect(),
            Target::NextToken => places.iter().map(|place| token(place, -1)).collect(),
            Target::Position => return Labels::of_positions(&places, options.classes),
            Target::Role => {
                let given = options.labels.as_deref().unwrap_or_default();
                check_labels(given, self.tokens)?;
                places.iter().map(|place| given[place.prompt][place.position].clone()).collect()
            }
            Target::Head => return Err(Error::argument("target", "one with labels", target)),
        };
        Labels::frequent(target, &named, options.classes)
    }
}

fn is_special(model: &Model, tokens: &Tokens, place: Place) -> bool {
    let id = tokens.row(place.prompt)[place.position];
    model.tokenizer().is_some_and(|tokenizer| tokenizer.is_special(id))
}

fn check_labels(labels: &[Vec<Option<String>>], tokens: &Tokens) -> Result<()> {
    let (found, expected) = (labels.iter().map(Vec::len).collect::<Vec<_>>(), tokens.lengths());
    if found == expected {
        return Ok(());
    }
    let bad = found.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(found.len().min(expected.len()));
    let of = |lengths: &[usize]| lengths.get(bad).map_or("no prompt".to_owned(), |n| format!("{n} in prompt {bad}"));
    Err(Error::argument("labels", format!("one for each token, {}", of(&expected)), of(&found)))
}

/// A label for each place that has one.
pub(super) struct Labels {
    pub of: Vec<Option<usize>>,
    pub classes: usize,
}

impl Labels {
    /// The `most` most frequent labels, of those at 10 places or more: five folds need that many to train and test.
    fn frequent(target: Target, named: &[Option<String>], most: usize) -> Result<Self> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        named.iter().flatten().for_each(|name| *counts.entry(name).or_default() += 1);
        let mut counts: Vec<(&str, usize)> = counts.into_iter().filter(|(_, count)| *count >= 10).collect();
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count)); // stable: ties are ordered by name
        counts.truncate(most);
        if counts.len() < 2 {
            let expected = format!("two labels or more of {target} that stand at 10 places each");
            return Err(Error::argument("tokens", expected, format!("{} among {} places", counts.len(), named.len())));
        }
        let numbers: BTreeMap<&str, usize> =
            counts.iter().enumerate().map(|(number, (name, _))| (*name, number)).collect();
        let of = named.iter().map(|name| name.as_deref().and_then(|name| numbers.get(name).copied())).collect();
        Ok(Self { of, classes: counts.len() })
    }

    /// Positions as they are, or in ranges with equally many places.
    fn of_positions(places: &[Place], most: usize) -> Result<Self> {
        let mut sorted: Vec<usize> = places.iter().map(|place| place.position).collect();
        sorted.sort_unstable();
        let mut distinct = sorted.clone();
        distinct.dedup();
        let label = |position: usize| {
            let below = sorted.partition_point(|other| *other < position);
            if distinct.len() <= most { position } else { below * most / sorted.len() }
        };
        let named: Vec<Option<String>> = places.iter().map(|place| Some(label(place.position).to_string())).collect();
        Self::frequent(Target::Position, &named, most)
    }

    /// The places that have a label, and their labels.
    pub fn known(&self) -> (Vec<usize>, Vec<usize>) {
        self.of.iter().enumerate().filter_map(|(place, label)| Some((place, (*label)?))).unzip()
    }

    /// Indicators: 1 in the column of the label and 0 elsewhere; all 0 without a label.
    pub fn indicators(&self) -> Array2<f64> {
        let of = |(place, class): (usize, usize)| f64::from(u8::from(self.of[place] == Some(class)));
        Array2::from_shape_fn((self.of.len(), self.classes), of)
    }
}

/// The rows of one head, from `[place, head, width]`.
pub(super) fn rows_of(tensor: &Tensor, head: usize) -> Result<Array2<f64>> {
    rows(&tensor.select(1, head as i64))
}

/// A matrix in double precision.
pub(super) fn rows(tensor: &Tensor) -> Result<Array2<f64>> {
    let (n, d) = (tensor.size()[0] as usize, tensor.size()[1] as usize);
    Ok(to_array(&tensor.to_kind(Kind::Double), (1, n, d))?.slice_move(s![0, .., ..]))
}
