//! Many variants of one run, as one table.

use std::collections::BTreeMap;

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
    reference: Option<&'a Tokens>,
    ablation: Ablation,
    variants: Vec<Variant>,
    metric: Metric,
    strategy: Strategy,
    memory: Option<usize>,
    per_prompt: bool,
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
    /// One a layer and position.
    Position,
    /// One a layer, head and position.
    HeadPosition,
}

/// How to compute a sweep. The results are the same to float tolerance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Resume each variant from the unchanged run at its first changed layer, many variants stacked on the batch axis,
    /// and compute only the logits that the metric reads.
    #[default]
    Auto,
    /// One whole forward pass a variant: what every peer does, kept to check the other by.
    Naive,
}

impl<'a> Sweep<'a> {
    /// An ablation of every head of every layer; narrow or change it with [`Sweep::each`] or [`Sweep::variants`].
    pub fn ablate(model: &'a Model, tokens: &'a Tokens, ablation: Ablation) -> Self {
        let sweep = Self {
            model,
            tokens,
            reference: None,
            ablation,
            variants: vec![],
            metric: Metric::Loss,
            strategy: Strategy::Auto,
            memory: None,
            per_prompt: false,
        };
        sweep.each(Site::Z, Every::Head)
    }

    /// One variant for each index: `each(Site::Z, Every::Head)`. Replaces the variants there were.
    pub fn each(mut self, site: impl Fn(usize) -> Site, every: Every) -> Self {
        let sites = (0..self.model.config().n_layers).map(site);
        self.variants = sites.flat_map(|site| self.along(site, every)).collect();
        self
    }

    /// One variant for each length of `order`: the first head of it ablated, the first two, and so on to all of them.
    /// Heads are (layer, head); the column `step` says how many are gone. Replaces the variants there were.
    pub fn one_after_another(mut self, order: &[(usize, usize)]) -> Self {
        let variant = |n: usize| {
            let mut layers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            order[..n].iter().for_each(|&(layer, head)| layers.entry(layer).or_default().push(head));
            let edit = |(layer, heads)| Edit::new(Site::Z(layer), self.ablation.action()).heads(heads);
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

    /// The prompts over which means are taken and from which others are drawn; the batch itself, unless said otherwise.
    pub fn reference(mut self, tokens: &'a Tokens) -> Self {
        self.reference = Some(tokens);
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
        let bank = self.bank()?;
        let (model, tokens, metric, strategy, memory) =
            (self.model, self.tokens, &self.metric, self.strategy, self.memory);
        let job = Job { model, tokens, variants: &self.variants, bank: &bank, metric, strategy, memory };
        let (baseline, values) = tch::no_grad(|| engine::run(&job))?;
        let rows = self.variants.iter().zip(values.outer_iter());
        let rows = rows.flat_map(|(variant, values)| self.rows(variant, &values.to_vec(), &baseline));
        Table::new(rows.collect(), self.provenance()?)
    }

    /// One variant for each index of `site` along `every`.
    fn along(&self, site: Site, every: Every) -> Vec<Variant> {
        let config = self.model.config();
        let kv = site.axes().contains(&Axis::KvHead);
        let n_heads = if kv { config.n_kv_heads } else { config.n_heads };
        let heads = matches!(every, Every::Head | Every::HeadPosition).then_some(n_heads);
        let positions = matches!(every, Every::Position | Every::HeadPosition).then_some(self.tokens.positions());
        let all = |n: Option<usize>| n.map_or_else(|| vec![None], |n| (0..n).map(Some).collect());
        let number = |n: usize| u32::try_from(n).ok();
        let mut variants = vec![];
        for head in all(heads) {
            for position in all(positions) {
                let mut edit = Edit::new(site, self.ablation.action());
                edit.at.heads = head.map(|head| vec![head]);
                edit.at.positions = position.map(|position| vec![position]);
                let mut keys = Keys { layer: site.layer().and_then(number), ..Keys::default() };
                keys.position = position.and_then(number);
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
        let reference = self.reference.unwrap_or(self.tokens);
        let drawn = match self.ablation {
            Ablation::Resample { seed } => reference.select(&ablation::draw(self.tokens, reference, seed)?)?,
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

    fn rows(&self, variant: &Variant, values: &[f64], baseline: &[f64]) -> Vec<Observation> {
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let row = |prompt: Option<usize>, value: f64, baseline: f64| Observation {
            keys: Keys { prompt: prompt.and_then(|p| u32::try_from(p).ok()), ..variant.keys.clone() },
            metric: self.metric.name().to_owned(),
            value,
            baseline: Some(baseline),
        };
        if !self.per_prompt {
            return vec![row(None, mean(values), mean(baseline))];
        }
        values.iter().zip(baseline).enumerate().map(|(prompt, (v, b))| row(Some(prompt), *v, *b)).collect()
    }

    fn provenance(&self) -> Result<Provenance> {
        let options = serde_json::json!({
            "ablation": self.ablation,
            "metric": self.metric.name(),
            "strategy": format!("{:?}", self.strategy),
            "prompts": self.tokens.batch(),
            "positions": self.tokens.positions(),
        });
        Ok(Provenance {
            headscope: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.model.origin().name.clone(),
            sha256: if self.model.origin().files.is_empty() { String::new() } else { self.model.sha256()? },
            options,
            seed: self.ablation.seed(),
        })
    }
}

fn reads_reference(action: &Action) -> bool {
    action.key() == Some(REFERENCE)
}
