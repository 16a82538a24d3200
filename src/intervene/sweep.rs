//! Many variants of one run, as one table.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::intervene::ablation::{self, Ablation, REFERENCE};
use crate::intervene::change::{Change, Direction};
use crate::intervene::engine::{Engine, Explanation, Journal, Setup};
use crate::intervene::every::{self, Every};
use crate::intervene::gradient::{self, Estimate, Estimator};
use crate::intervene::metric::Metric;
use crate::intervene::outcome::Outcome;
use crate::intervene::sets;
use crate::model::{Action, Bank, Edit, Model, Plan, Site, Tokens};
use crate::progress::Progress;
use crate::table::{Keys, Provenance, Table};

/// A sweep: (a batch, variants of its run, a metric) -> a table. It says what is wanted; the engine decides how to
/// compute it.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7, 6, 5]])?;
/// let table = Sweep::ablate(&model, &tokens, Ablation::Mean).metric(Metric::Loss).run()?;
/// assert_eq!(table.len(), 12); // 3 layers of 4 heads
/// # Ok::<(), headscope::Error>(())
/// ```
pub struct Sweep<'a> {
    model: &'a Model,
    tokens: &'a Tokens,
    /// The prompts from which patches come.
    other: Option<&'a Tokens>,
    /// The prompts of an ablation's means and draws, where they are others than `tokens`.
    references: Option<&'a Tokens>,
    change: Change,
    variants: Vec<Variant>,
    metric: Metric,
    strategy: Strategy,
    memory: Option<usize>,
    per_prompt: bool,
    per_token: bool,
    normalised: bool,
    interval: Option<u64>,
    journal: Option<PathBuf>,
    stop: Option<&'a AtomicBool>,
    estimate: Option<Estimate>,
    exact: usize,
}

/// One variant of a run: what is changed, and what its row in the table is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// The row's keys.
    pub keys: Keys,
    /// The edits; all of them apply together.
    pub edits: Vec<Edit>,
}

/// How to compute a sweep. The results are the same to float tolerance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Variants join the pass where they depart from the unchanged run, stacked on the batch axis, from their first changed
    /// position on; only the positions and logits that the metric reads are computed at the end.
    #[default]
    Auto,
    /// One whole forward pass a variant: what every peer does, kept to check the other by.
    Naive,
}

impl<'a> Sweep<'a> {
    /// An ablation of every head of every layer; narrow or change it with [`Sweep::each`] or [`Sweep::variants`].
    pub fn ablate(model: &'a Model, tokens: &'a Tokens, ablation: Ablation) -> Self {
        Self::new(model, tokens, None, Change::Ablation(ablation))
    }

    /// Attention edges cut: at first every edge of every head of every layer, in turn; choose others with [`Sweep::each`] at
    /// `scores`. What does the model lose when it cannot look there? The other weights of the query are renormalised
    /// ([`Action::KnockOut`]; Geva et al. 2023).
    pub fn knock_out(model: &'a Model, tokens: &'a Tokens) -> Self {
        Self::new(model, tokens, None, Change::KnockOut).each(Site::Scores, [Every::Head, Every::Query, Every::Key])
    }

    /// Activation patching that denoises: the corrupted run receives clean activations, at first z of every head of every
    /// layer; choose sites and indices with [`Sweep::each`]. What suffices to restore the behaviour?
    ///
    /// The prompts of the two batches must have the same lengths: positions stand for each other.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let clean = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let corrupt = Tokens::new(&[vec![5, 6, 70, 8, 9]])?;
    /// let table = Sweep::patch(&model, &clean, &corrupt)
    ///     .each(Site::ResidPre, Every::Position)
    ///     .metric(Metric::logit_difference(3, 4))
    ///     .normalised()
    ///     .run()?;
    /// assert_eq!(table.len(), 3 * 5);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn patch(model: &'a Model, clean: &'a Tokens, corrupt: &'a Tokens) -> Self {
        Self::new(model, corrupt, Some(clean), Change::Patch(Direction::Denoise))
    }

    /// Activation patching that adds noise: the clean run receives corrupted activations. What does the behaviour need? Not
    /// the mirror image of [`Sweep::patch`] (Heimersheim & Nanda 2024).
    pub fn noise(model: &'a Model, clean: &'a Tokens, corrupt: &'a Tokens) -> Self {
        Self::new(model, clean, Some(corrupt), Change::Patch(Direction::Noise))
    }

    fn new(model: &'a Model, tokens: &'a Tokens, other: Option<&'a Tokens>, change: Change) -> Self {
        let sweep = Self {
            model,
            tokens,
            other,
            references: None,
            change,
            variants: vec![],
            metric: Metric::Loss,
            strategy: Strategy::Auto,
            memory: None,
            per_prompt: false,
            per_token: false,
            normalised: false,
            interval: None,
            journal: None,
            stop: None,
            estimate: None,
            exact: 0,
        };
        sweep.each(Site::Z, Every::Head)
    }

    /// Puts the metric on the scale from the corrupted run (0) to the clean one (1); for patching only.
    pub fn normalised(mut self) -> Self {
        self.normalised = true;
        self
    }

    /// One variant for each index along an axis, `each(Site::Z, Every::Head)`, or along several,
    /// `each(Site::Pattern, [Every::Head, Every::Query, Every::Key])`, in every layer. Replaces the variants there were.
    pub fn each(mut self, site: impl Fn(usize) -> Site, every: impl AsRef<[Every]>) -> Self {
        let config = self.model.config();
        let mut sites: Vec<Site> = (0..config.n_layers).map(site).collect();
        sites.dedup(); // a site without layers is one site
        let (action, positions) = (self.change.action(), self.tokens.positions());
        let of = |site| every::variants(site, every.as_ref(), &action, config, positions);
        self.variants = sites.into_iter().flat_map(of).collect();
        self
    }

    /// Only the variants whose keys `keep` accepts: `only(|keys| keys.layer == Some(5))`.
    pub fn only(mut self, keep: impl Fn(&Keys) -> bool) -> Self {
        self.variants.retain(|variant| keep(&variant.keys));
        self
    }

    /// What this sweep does to a site, as an edit that can be narrowed: a part for [`Sweep::sets`].
    pub fn edit(&self, site: Site) -> Edit {
        Edit::new(site, self.change.action())
    }

    /// One variant for each of these sets of parts, which change together, whatever they are: heads, positions, neurons.
    /// Column `site` names the parts of a set, `step` is their number. Replaces the variants there were.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let sweep = Sweep::patch(&model, &clean, &corrupt);
    /// let set = vec![sweep.edit(Site::Z(0)).heads([1, 2]), sweep.edit(Site::ResidPre(2)).position(3)];
    /// let table = sweep.sets([set]).run()?;
    /// assert_eq!(table.columns()[0], "site"); // z.0.1.2+resid_pre.2@3
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn sets(mut self, sets: impl IntoIterator<Item = Vec<Edit>>) -> Self {
        self.variants = sets.into_iter().map(sets::together).collect();
        self
    }

    /// The variants as they stand.
    pub fn planned(&self) -> &[Variant] {
        &self.variants
    }

    /// One variant for each length of `order`: the first head of it ablated, the first two, and so on to all of them.
    /// Heads are (layer, head); the column `step` says how many are gone. Replaces the variants there were.
    pub fn one_after_another(mut self, order: &[(usize, usize)]) -> Self {
        let variant = |n: usize| {
            let mut layers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            order[..n].iter().for_each(|&(layer, head)| layers.entry(layer).or_default().push(head));
            let edit = |(layer, heads)| Edit::new(Site::Z(layer), self.change.action()).heads(heads);
            let edits = layers.into_iter().map(edit).collect();
            Variant { keys: Keys { step: u32::try_from(n).ok(), ..Keys::default() }, edits }
        };
        self.variants = (1..=order.len()).map(variant).collect();
        self
    }

    /// These variants in place of those there were.
    pub fn variants(mut self, variants: Vec<Variant>) -> Self {
        self.variants = variants;
        self
    }

    /// What is measured; the loss, unless said otherwise.
    pub fn metric(mut self, metric: Metric) -> Self {
        self.metric = metric;
        self
    }

    /// The prompts over which means are taken and from which others are drawn; the batch itself, unless said otherwise. For
    /// ablations that read them only: with others the run is an error.
    pub fn reference(mut self, tokens: &'a Tokens) -> Self {
        self.references = Some(tokens);
        self
    }

    /// How to compute.
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// At most about this many bytes for stacked activations; a quarter of what is free, unless said otherwise.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// One row a variant and prompt, in place of the mean over prompts.
    pub fn per_prompt(mut self) -> Self {
        self.per_prompt = true;
        self
    }

    /// One row a variant, prompt and token that is predicted (`target`, its position), for a metric that is a mean over a
    /// prompt's tokens: the per-token loss.
    pub fn per_token(mut self) -> Self {
        self.per_token = true;
        self
    }

    /// Adds an interval of the mean over prompts (`low`, `high`): prompts are drawn anew with this seed (percentile
    /// bootstrap, 95 %). It says how far the value depends on which prompts were taken, if they are independent.
    pub fn interval(mut self, seed: u64) -> Self {
        self.interval = Some(seed);
        self
    }

    /// Writes finished rows to this file as they come, and goes on from those that an earlier, interrupted run of the same
    /// sweep left there. The file stays; delete it when the table is written.
    pub fn journal(mut self, path: impl AsRef<Path>) -> Self {
        self.journal = Some(path.as_ref().to_owned());
        self
    }

    /// Ends the run with [`Error::Stopped`] soon after `stop` is set.
    pub fn stop(mut self, stop: &'a AtomicBool) -> Self {
        self.stop = Some(stop);
        self
    }

    /// Estimates the effects from gradients in place of computing them; `method` says how in every row.
    pub fn estimate(mut self, estimate: Estimate) -> Self {
        self.estimate = Some(estimate);
        self
    }

    /// Beside estimates, the exact rows (`method` is `exact`) of the `n` variants of largest estimated effect. How well the
    /// two agree there is in the table's provenance (`agreement`: Pearson's and Spearman's correlation).
    pub fn exact(mut self, n: usize) -> Self {
        self.exact = n;
        self
    }

    /// Computes the table: the metric of each variant, and as `baseline` that of the unchanged run.
    ///
    /// # Errors
    /// Where a token, an edit or the metric does not fit the model, or the reference does not fit the batch.
    pub fn run(&self) -> Result<Table> {
        self.check()?;
        let bank = self.bank()?;
        let provenance = self.provenance()?;
        if let Some(estimate) = self.estimate {
            return tch::no_grad(|| self.estimated(estimate, &bank, provenance));
        }
        tch::no_grad(|| {
            let engine = Engine::new(self.setup(self.tokens), &self.variants, &[])?;
            let outcome = self.outcome(&engine)?;
            let mut journal = self.open_journal(&provenance, outcome.cells.len())?;
            let mut progress = Progress::new("variants", self.variants.len());
            let values = engine.values(&self.variants, &bank, journal.as_mut(), &mut progress)?;
            let rows = self.variants.iter().zip(values.outer_iter());
            let rows = rows.map(|(variant, values)| outcome.rows(&variant.keys, &values.to_vec()));
            Table::new(rows.collect::<Result<Vec<_>>>()?.concat(), provenance)
        })
    }

    /// The table of estimates, and of the exact values that were asked for beside them.
    fn estimated(&self, estimate: Estimate, bank: &Bank, mut provenance: Provenance) -> Result<Table> {
        let setup = self.setup(self.tokens);
        let engine = Engine::new(setup, &self.variants, &gradient::needs(&self.variants, &setup))?;
        let outcome = self.outcome(&engine)?;
        let effects = Estimator::new(setup, &engine, bank, &self.variants)?.effects(&self.variants, estimate)?;
        let keys = |variant: &Variant, method: &str| Keys { method: Some(method.to_owned()), ..variant.keys.clone() };
        let mut rows = vec![];
        for (variant, effect) in self.variants.iter().zip(effects.outer_iter()) {
            let values: Vec<f64> =
                effect.iter().zip(&engine.baseline).map(|(effect, baseline)| baseline + effect).collect();
            rows.extend(outcome.rows(&keys(variant, estimate.name()), &values)?);
        }
        let size: Vec<f64> = effects.outer_iter().map(|effect| effect.sum().abs()).collect();
        let mut largest: Vec<usize> = (0..size.len()).collect();
        largest.sort_by(|&a, &b| size[b].total_cmp(&size[a]));
        largest.truncate(self.exact);
        let chosen: Vec<Variant> = largest.iter().map(|&number| self.variants[number].clone()).collect();
        if !chosen.is_empty() {
            let values = engine.values(&chosen, bank, None, &mut Progress::new("variants", chosen.len()))?;
            for (variant, values) in chosen.iter().zip(values.outer_iter()) {
                rows.extend(outcome.rows(&keys(variant, "exact"), &values.to_vec())?);
            }
            let exact: Vec<f64> = values.outer_iter().map(|row| row.sum()).collect();
            let baseline: f64 = engine.baseline.iter().sum();
            let estimates: Vec<f64> = largest.iter().map(|&number| baseline + effects.row(number).sum()).collect();
            provenance.options["what"]["agreement"] = gradient::agreement(&estimates, &exact);
        }
        Table::new(rows, provenance)
    }

    /// How the sweep would be computed: what goes through the layers together and from where, how many multiplications that
    /// takes beside one whole pass a variant, and how much memory. Computes the unchanged run only.
    ///
    /// # Errors
    /// As [`Sweep::run`].
    pub fn explain(&self) -> Result<Explanation> {
        self.check()?;
        tch::no_grad(|| Engine::new(self.setup(self.tokens), &self.variants, &[])?.explain(&self.variants))
    }

    fn setup<'b>(&'b self, tokens: &'b Tokens) -> Setup<'b> {
        let (model, metric, per_token, strategy) = (self.model, &self.metric, self.per_token, self.strategy);
        Setup { model, tokens, metric, per_token, strategy, memory: self.memory, stop: self.stop }
    }

    fn outcome(&self, engine: &Engine<'_>) -> Result<Outcome<'_>> {
        let cells = engine.reader.cells()?;
        let baseline = engine.baseline.clone();
        let other = self.other.filter(|_| self.normalised);
        let other = other.map(|other| Ok(Engine::new(self.setup(other), &[], &[])?.baseline)).transpose()?;
        let outcome = Outcome {
            metric: &self.metric,
            cells,
            baseline,
            other,
            denoises: self.change == Change::Patch(Direction::Denoise),
            per_prompt: self.per_prompt,
            interval: self.interval,
        };
        outcome.check()?;
        Ok(outcome)
    }

    /// The journal of this very sweep, where one was asked for.
    fn open_journal(&self, provenance: &Provenance, cells: usize) -> Result<Option<Journal>> {
        let Some(path) = &self.journal else { return Ok(None) };
        let all = serde_json::json!({
            "model": [&provenance.model, &provenance.sha256],
            "options": provenance.options,
            "variants": self.variants.iter().map(|variant| &variant.edits).collect::<Vec<_>>(),
        });
        let digest = Sha256::digest(all.to_string());
        let sweep: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Journal::open(path, &sweep, cells).map(Some)
    }

    /// Fails where the options do not go together.
    fn check(&self) -> Result<()> {
        if self.variants.is_empty() {
            return Err(Error::argument("variants", "at least one", "none"));
        }
        if self.interval.is_some() && (self.per_prompt || self.per_token) {
            return Err(Error::argument("interval", "the mean over prompts", "one row a prompt or token"));
        }
        match self.estimate {
            Some(_) if self.per_token => {
                return Err(Error::argument("estimate", "one value a prompt", "one row a token"));
            }
            Some(_) if self.journal.is_some() => {
                return Err(Error::argument("journal", "an exact sweep", "estimates, which take one pass"));
            }
            Some(estimate) => estimate.check(&self.metric)?,
            None if self.exact > 0 => {
                return Err(Error::argument("exact", "estimates beside which to put them", "an exact sweep"));
            }
            None => {}
        }
        let reads = self.variants.iter().flat_map(|variant| &variant.edits).any(|edit| reads_reference(&edit.action));
        if self.references.is_some() && (self.other.is_some() || !reads) {
            let found = if self.other.is_some() { "a patch, which has its own" } else { "edits that read none" };
            return Err(Error::argument("reference", "an ablation by means or resampling", found));
        }
        let Change::Patch(_) = self.change else {
            let found = if self.change == Change::KnockOut { "a knock-out" } else { "an ablation" };
            return if self.normalised { Err(Error::argument("normalised", "a patch", found)) } else { Ok(()) };
        };
        if self.normalised && self.metric.is_relative() {
            return Err(Error::argument("normalised", "a metric of one run", self.metric.name()));
        }
        same_lengths(self.tokens, self.other.unwrap_or(self.tokens))
    }

    /// The activations that the edits refer to: the reference run's, drawn anew where the ablation resamples.
    fn bank(&self) -> Result<Bank> {
        let mut bank = Bank::default();
        let edits = self.variants.iter().flat_map(|variant| &variant.edits);
        let sites: Vec<Site> = edits.filter(|edit| reads_reference(&edit.action)).map(|edit| edit.site).collect();
        if sites.is_empty() {
            return Ok(bank);
        }
        let reference = self.other.or(self.references).unwrap_or(self.tokens);
        let drawn = match self.change {
            Change::Ablation(Ablation::Resample { seed }) => {
                reference.select(&ablation::draw(self.tokens, reference, seed)?)?
            }
            _ => reference.clone(),
        };
        if drawn.positions() < self.tokens.positions() {
            let expected = format!("prompts of at least {} tokens, as the batch has", self.tokens.positions());
            return Err(Error::argument("reference", expected, drawn.positions()));
        }
        // What stands behind the batch's last position cannot be used; cutting it off changes nothing before it in a
        // causal model, and in the others the reference is run whole.
        let run = self.model.run(&drawn, &Plan::new().taps(sites))?;
        bank.insert_run(REFERENCE, &run);
        bank.cut(self.tokens.positions());
        Ok(bank)
    }

    fn provenance(&self) -> Result<Provenance> {
        let edits = self.variants.iter().flat_map(|variant| &variant.edits);
        let sites: BTreeSet<Site> = edits.map(|edit| edit.site).collect();
        let options = serde_json::json!({
            "change": self.change,
            "sites": sites,
            "variants": self.variants.len(),
            "metric": format!("{:?}", self.metric),
            "normalised": self.normalised,
            "per_prompt": self.per_prompt,
            "per_token": self.per_token,
            "interval": self.interval,
            "estimate": self.estimate,
            "strategy": format!("{:?}", self.strategy),
            "tokens": self.tokens.rows(),
            "reference": self.other.or(self.references).map(Tokens::rows),
        });
        self.model.provenance(options, self.change.seed())
    }
}

/// Fails where the positions of two batches can't stand for each other.
pub(super) fn same_lengths(tokens: &Tokens, other: &Tokens) -> Result<()> {
    let (lengths, others) = (tokens.lengths(), other.lengths());
    if lengths != others {
        let expected = format!("prompts of the same lengths, {lengths:?}");
        return Err(Error::argument("clean, corrupt", expected, format!("{others:?}")));
    }
    Ok(())
}

fn reads_reference(action: &Action) -> bool {
    action.key() == Some(REFERENCE)
}
