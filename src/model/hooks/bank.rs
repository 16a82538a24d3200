//! Which activations do edits refer to?

use std::collections::BTreeMap;
use std::sync::OnceLock;

use tch::{Device, Tensor};

use super::means::{first_positions, mean_over_prompts};
use super::run::Run;
use crate::error::{Error, Result};
use crate::site::Site;
use crate::text::Tokens;
use crate::workers::readable;

/// Activations that edits refer to, by key and site.
#[derive(Debug, Default)]
pub(crate) struct Bank {
    entries: BTreeMap<(String, Site), Stored>,
}

/// A stored activation, and which of its positions are real tokens.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) tensor: Tensor,
    /// `[batch, position]`; `None` if nothing is padded.
    pub(crate) valid: Option<Tensor>,
    /// The lengths of the prompts, if it comes from a run.
    pub(crate) lengths: Option<Vec<usize>>,
    /// What edits derive from it.
    pub(crate) made: Made,
}

/// What edits derive from a stored activation, computed once. The threads of a sweep share it, so the cells are locks.
#[derive(Debug, Default)]
pub(crate) struct Made {
    /// The mean over prompts, `[1, ..]`.
    pub(crate) mean: OnceLock<Tensor>,
    /// An orthonormal basis of its rows, `[d, rank]`.
    pub(crate) basis: OnceLock<Tensor>,
}

readable!(Bank { entries; });
readable!(Stored { tensor, valid, made; lengths });
readable!(Made { mean, basis; });

/// The value of `cell`, made by `make` if it has none yet.
pub(crate) fn once(cell: &OnceLock<Tensor>, make: impl FnOnce() -> Result<Tensor>) -> Result<Tensor> {
    if let Some(known) = cell.get() {
        return Ok(known.shallow_clone());
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made).shallow_clone())
}

impl Stored {
    fn of(tensor: Tensor) -> Self {
        Self { tensor, valid: None, lengths: None, made: Made::default() }
    }

    /// The mean over prompts, `[1, ..]`, computed when first needed.
    pub(crate) fn mean(&self, site: Site) -> Result<Tensor> {
        once(&self.made.mean, || mean_over_prompts(site, &self.tensor, self.valid.as_ref()))
    }
}

impl Bank {
    pub(crate) fn insert(&mut self, key: &str, site: Site, tensor: Tensor) {
        self.entries.insert((key.to_owned(), site), Stored::of(tensor.detach()));
    }

    pub(crate) fn insert_run(&mut self, key: &str, run: &Run) {
        for (site, tensor) in run.taps() {
            let tokens = run.side(site);
            let valid = tokens.is_padded().then(|| tokens.valid(tensor.device()));
            let entry = Stored { valid, lengths: Some(tokens.lengths()), ..Stored::of(tensor.detach()) };
            self.entries.insert((key.to_owned(), site), entry);
        }
    }

    /// Sets the mean over prompts that edits at `site` by `key` use, if it was computed elsewhere.
    pub(crate) fn insert_mean(&mut self, key: &str, site: Site, mean: Tensor) {
        let entry = self.entries.entry((key.to_owned(), site)).or_insert_with(|| Stored::of(mean.shallow_clone()));
        entry.made.mean = OnceLock::from(mean);
    }

    /// Adds the entries of `other`.
    pub(crate) fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
    }

    /// The entries for `n` prompts from `first` on of a batch of `of`, on `device`. Means remain those of the whole batch.
    pub(crate) fn part(&self, first: usize, n: usize, of: usize, device: Device) -> Self {
        let of_prompts = |(key, entry): (&(String, Site), &Stored)| {
            let whole = entry.tensor.dim() == key.1.axes().len() && of > n;
            let runs = entry.tensor.size().first() == Some(&(of as i64));
            let narrow = |x: &Tensor| match whole && runs {
                true => x.narrow(0, first as i64, n as i64).to_device(device),
                false => x.to_device(device),
            };
            let lengths = entry.lengths.as_ref().map(|all| match whole && runs {
                true => all[first..first + n].to_vec(),
                false => all.clone(),
            });
            let mean = entry.made.mean.get().map(|mean| mean.to_device(device));
            let made = Made { mean: mean.map_or_else(OnceLock::new, OnceLock::from), basis: OnceLock::new() };
            let valid = entry.valid.as_ref().map(narrow);
            (key.clone(), Stored { tensor: narrow(&entry.tensor), valid, lengths, made })
        };
        Self { entries: self.entries.iter().map(of_prompts).collect() }
    }

    /// Keys, sites and activations.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, Site, &Tensor)> {
        self.entries.iter().map(|((key, site), entry)| (key.as_str(), *site, &entry.tensor))
    }

    /// Keeps only the positions of every entry that `tokens` has; the first layers may be those of an encoder.
    pub(crate) fn cut(&mut self, tokens: &Tokens, encoder_layers: usize) {
        for ((_, site), entry) in &mut self.entries {
            let positions = site.side(encoder_layers, tokens).positions();
            entry.tensor = first_positions(*site, &entry.tensor, tokens, encoder_layers);
            entry.valid = entry.valid.as_ref().map(|valid| valid.narrow(1, 0, positions as i64));
            let cut = |lengths: Vec<usize>| lengths.into_iter().map(|n| n.min(positions)).collect();
            entry.lengths = entry.lengths.take().map(cut);
        }
    }

    /// The sites with an entry of `key`.
    pub(crate) fn sites(&self, key: &str) -> Vec<Site> {
        self.entries.keys().filter(|(known, _)| known == key).map(|(_, site)| *site).collect()
    }

    /// The entry of `key` at `site`.
    pub(crate) fn get(&self, key: &str, site: Site) -> Result<&Stored> {
        self.entries.get(&(key.to_owned(), site)).ok_or_else(|| {
            let there: Vec<String> = self.entries.keys().map(|(key, site)| format!("{key}@{site}")).collect();
            Error::Edit {
                site,
                expected: format!("`{key}` in the plan's bank at this site"),
                found: if there.is_empty() { "nothing".to_owned() } else { there.join(", ") },
            }
        })
    }
}
