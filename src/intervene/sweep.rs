//! Many variants of one run, as one table.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::intervene::ablation::{self, Ablation, REFERENCE};
use crate::intervene::engine::{self, Job};
use crate::intervene::metric::Metric;
use crate::model::{Action, Axis, Bank, Edit, Model, Plan, Site, Tokens};
use crate::table::{Keys, Observation, Provenance, Table};

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
    normalised: bool,
}

/// What happens to an activation in a sweep made by [`Sweep::each`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Change {
    Ablation(Ablation),
    Patch(Direction),
}

/// Which run is patched, and from which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Direction {
    Denoise,
    Noise,
}

/// One variant of a run: what is changed, and what its row in the table is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// The row's keys.
    pub keys: Keys,
    /// The edits; all of them apply together.
    pub edits: Vec<Edit>,
}

/// Along which axes of a site [`Sweep::each`] makes one variant an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// One variant a layer.
    Layer,
    /// One a layer and head (key/value head at `k` and `v`).
    Head,
    /// One a layer and position. A prompt that is too short to have a position is not changed there, and counts in the mean
    /// as it is.
    Position,
    /// One a layer, head and position.
    HeadPosition,
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
            normalised: false,
        };
        sweep.each(Site::Z, Every::Head)
    }

    /// Puts the metric on the scale from the corrupted run (0) to the clean one (1); for patching only.
    pub fn normalised(mut self) -> Self {
        self.normalised = true;
        self
    }

    /// One variant for each index: `each(Site::Z, Every::Head)`. Replaces the variants there were.
    pub fn each(mut self, site: impl Fn(usize) -> Site, every: Every) -> Self {
        let mut sites: Vec<Site> = (0..self.model.config().n_layers).map(site).collect();
        sites.dedup(); // a site without layers is one site
        self.variants = sites.into_iter().flat_map(|site| self.along(site, every)).collect();
        self
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

    /// Computes the table: the metric of each variant, and as `baseline` that of the unchanged run.
    ///
    /// # Errors
    /// Where a token, an edit or the metric does not fit the model, or the reference does not fit the batch.
    pub fn run(&self) -> Result<Table> {
        if self.variants.is_empty() {
            return Err(Error::argument("variants", "at least one", "none"));
        }
        self.check()?;
        let bank = self.bank()?;
        let (baseline, values) = tch::no_grad(|| engine::run(&self.job(self.tokens, &bank)))?;
        let scale = self.scale(&baseline)?;
        let rows = self.variants.iter().zip(values.outer_iter());
        let rows = rows.flat_map(|(variant, values)| self.rows(variant, &values.to_vec(), &baseline, scale.as_deref()));
        Table::new(rows.collect(), self.provenance()?)
    }

    fn job<'b>(&'b self, tokens: &'b Tokens, bank: &'b Bank) -> Job<'b> {
        let (model, metric, strategy, memory) = (self.model, &self.metric, self.strategy, self.memory);
        Job { model, tokens, variants: &self.variants, bank, metric, strategy, memory }
    }

    /// Fails where the options do not go together.
    fn check(&self) -> Result<()> {
        let reads = self.variants.iter().flat_map(|variant| &variant.edits).any(|edit| reads_reference(&edit.action));
        if self.references.is_some() && (self.other.is_some() || !reads) {
            let found = if self.other.is_some() { "a patch, which has its own" } else { "edits that read none" };
            return Err(Error::argument("reference", "an ablation by means or resampling", found));
        }
        let Change::Patch(_) = self.change else {
            let found = "an ablation";
            return if self.normalised { Err(Error::argument("normalised", "a patch", found)) } else { Ok(()) };
        };
        if self.normalised && matches!(self.metric, Metric::Kl | Metric::EmbeddingDistance) {
            return Err(Error::argument("normalised", "a metric of one run", self.metric.name()));
        }
        let (lengths, others) = (self.tokens.lengths(), self.other.unwrap_or(self.tokens).lengths());
        if lengths != others {
            return Err(Error::argument(
                "clean, corrupt",
                format!("prompts of the same lengths, {lengths:?}"),
                format!("{others:?}"),
            ));
        }
        Ok(())
    }

    /// The metric of the run from which patches come, on each prompt, where values are to be normalised.
    fn scale(&self, baseline: &[f64]) -> Result<Option<Vec<f64>>> {
        let (true, Some(other)) = (self.normalised, self.other) else { return Ok(None) };
        let other = tch::no_grad(|| engine::unchanged(&self.job(other, &Bank::default())))?;
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1e-300);
        let pairs = || baseline.iter().zip(&other);
        let none = match self.per_prompt {
            true => pairs().any(|(a, b)| same(*a, *b)),
            false => same(mean(baseline), mean(&other)),
        };
        let found = || format!("{} in both", mean(baseline));
        if none {
            Err(Error::argument("normalised", "a metric that differs between the clean and the corrupted run", found()))
        } else {
            Ok(Some(other))
        }
    }

    /// One variant for each index of `site` along `every`.
    fn along(&self, site: Site, every: Every) -> Vec<Variant> {
        let config = self.model.config();
        let (kv, attends) = (site.axes().contains(&Axis::KvHead), site.axes().contains(&Axis::Query));
        let n_heads = if kv { config.n_kv_heads } else { config.n_heads };
        let heads = matches!(every, Every::Head | Every::HeadPosition).then_some(n_heads);
        let positions = matches!(every, Every::Position | Every::HeadPosition).then_some(self.tokens.positions());
        let all = |n: Option<usize>| n.map_or_else(|| vec![None], |n| (0..n).map(Some).collect());
        let number = |n: usize| u32::try_from(n).ok();
        let mut variants = vec![];
        for head in all(heads) {
            for position in all(positions) {
                let mut edit = Edit::new(site, self.change.action());
                edit.at.heads = head.map(|head| vec![head]);
                edit.at.positions = position.map(|position| vec![position]);
                let mut keys = Keys { layer: site.layer().and_then(number), ..Keys::default() };
                *(if attends { &mut keys.query } else { &mut keys.position }) = position.and_then(number);
                *(if kv { &mut keys.kv_head } else { &mut keys.head }) = head.and_then(number);
                variants.push(Variant { keys, edits: vec![edit] });
            }
        }
        variants
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

    /// The rows of one variant: of the mean over prompts, or one a prompt. `other` is the metric of the other end of the
    /// scale where values are normalised.
    fn rows(&self, variant: &Variant, values: &[f64], baseline: &[f64], other: Option<&[f64]>) -> Vec<Observation> {
        let row = |prompt: Option<usize>, value: f64, baseline: f64, other: Option<f64>| {
            let (value, baseline) = match (other, self.change) {
                (Some(clean), Change::Patch(Direction::Denoise)) => ((value - baseline) / (clean - baseline), 0.0),
                (Some(corrupt), _) => ((value - corrupt) / (baseline - corrupt), 1.0),
                (None, _) => (value, baseline),
            };
            let keys = Keys { prompt: prompt.and_then(|p| u32::try_from(p).ok()), ..variant.keys.clone() };
            Observation { keys, metric: self.metric.name().to_owned(), value, baseline: Some(baseline), ..Observation::default() }
        };
        if !self.per_prompt {
            return vec![row(None, mean(values), mean(baseline), other.map(mean))];
        }
        let each = values.iter().zip(baseline).enumerate();
        each.map(|(prompt, (v, b))| row(Some(prompt), *v, *b, other.map(|other| other[prompt]))).collect()
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
            "strategy": format!("{:?}", self.strategy),
            "tokens": self.tokens.rows(),
            "reference": self.other.or(self.references).map(Tokens::rows),
        });
        self.model.provenance(options, self.change.seed())
    }
}

impl Change {
    fn action(self) -> Action {
        match self {
            Self::Ablation(ablation) => ablation.action(),
            Self::Patch(_) => Action::replace(REFERENCE),
        }
    }

    /// The seed, where chance takes part.
    fn seed(self) -> Option<u64> {
        match self {
            Self::Ablation(ablation) => ablation.seed(),
            Self::Patch(_) => None,
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn reads_reference(action: &Action) -> bool {
    action.key() == Some(REFERENCE)
}
