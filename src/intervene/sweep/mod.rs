//! What becomes of the output when activations change? Many variants of one run, as one table.

mod ablation;
mod axes;
mod change;
mod estimate;
mod run;
mod sets;
mod shapley;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use tch::Tensor;

pub use self::ablation::Ablation;
pub(in crate::intervene) use self::ablation::REFERENCE;
pub use self::axes::Every;
use self::change::{Change, Direction};
pub use self::estimate::Estimate;
pub(in crate::intervene) use self::estimate::{Gradients, agreement, back, backward, largest};
pub(in crate::intervene) use self::sets::name_of;
pub use self::sets::{Subsets, subsets};
pub(crate) use self::shapley::MOST;
pub use self::shapley::{Sampling, ShapleyOptions, shapley, shapley_values};
use super::engine::{Strategy, Variant};
use super::metric::Metric;
use crate::error::{Error, Result};
use crate::model::{Action, Bank, Edit, Model, Run, Site, Tokens};
use crate::table::Keys;

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
    pub(super) model: &'a Model,
    pub(super) tokens: &'a Tokens,
    /// The prompts from which patches come.
    pub(super) other: Option<&'a Tokens>,
    /// The prompts of an ablation's means and draws, where they are others than `tokens`.
    pub(super) references: Option<&'a Tokens>,
    change: Change,
    pub(super) variants: Vec<Variant>,
    pub(super) metric: Metric,
    pub(super) strategy: Strategy,
    pub(super) memory: Option<usize>,
    pub(super) per_prompt: bool,
    pub(super) per_token: bool,
    pub(super) normalised: bool,
    pub(super) interval: Option<u64>,
    pub(super) journal: Option<PathBuf>,
    pub(super) stop: Option<&'a AtomicBool>,
    /// Activations of other runs, and tensors, that edits refer to.
    pub(super) bank: Bank,
    pub(super) estimate: Option<Estimate>,
    pub(super) exact: usize,
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
            bank: Bank::default(),
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
    pub fn each(self, site: impl Fn(usize) -> Site, every: impl AsRef<[Every]>) -> Self {
        let action = self.change.action();
        self.each_with(site, every, action)
    }

    /// [`Sweep::each`] with any action in place of the sweep's own: scale, add a direction, project out or onto a subspace
    /// (their tensors: [`Sweep::with_tensor`]).
    pub fn each_with(mut self, site: impl Fn(usize) -> Site, every: impl AsRef<[Every]>, action: Action) -> Self {
        let config = self.model.config();
        let mut sites: Vec<Site> = (0..config.n_layers).map(site).collect();
        sites.dedup(); // a site without layers is one site
        let positions = self.tokens.positions();
        let of = |site| axes::variants(site, every.as_ref(), &action, config, positions);
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
    /// Column `set` names the parts, `parts` is their number. Replaces the variants there were.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let sweep = Sweep::patch(&model, &clean, &corrupt);
    /// let set = vec![sweep.edit(Site::Z(0)).heads([1, 2]), sweep.edit(Site::ResidPre(2)).position(3)];
    /// let table = sweep.sets([set]).run()?;
    /// assert_eq!(table.columns()[0], "set"); // z.0.1.2+resid_pre.2@3
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
    /// Heads are (layer, head); the column `parts` says how many are gone. Replaces the variants there were.
    pub fn one_after_another(mut self, order: &[(usize, usize)]) -> Self {
        let variant = |n: usize| {
            let mut layers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            order[..n].iter().for_each(|&(layer, head)| layers.entry(layer).or_default().push(head));
            let edit = |(layer, heads)| Edit::new(Site::Z(layer), self.change.action()).heads(heads);
            let edits = layers.into_iter().map(edit).collect();
            Variant { keys: Keys { parts: u32::try_from(n).ok(), ..Keys::default() }, edits }
        };
        self.variants = (1..=order.len()).map(variant).collect();
        self
    }

    /// These variants in place of those there were.
    pub fn variants(mut self, variants: Vec<Variant>) -> Self {
        self.variants = variants;
        self
    }

    /// Makes the activations of `run` known to edits as `key`, as [`Plan::with`](crate::model::Plan::with) does. A run has
    /// as many prompts as the batch, or one for all of them. What a patch patches from, and means are taken over, is known as
    /// `reference`.
    pub fn with(mut self, key: &str, run: &Run) -> Self {
        self.bank.insert_run(key, run);
        self
    }

    /// Makes `tensor` known to edits at `site` as `key`: a direction to add, a subspace to project onto or out of.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7, 6, 5]])?;
    /// // What does the model lose without the direction that says "3, not 4", at each depth?
    /// let w_e = model.parameters()[0].1; // [vocab, d_model], and in this model the unembedding too
    /// let direction = (w_e.get(3) - w_e.get(4)).unsqueeze(0); // [1, d_model]
    /// let mut sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(Metric::logit_difference(3, 4));
    /// for layer in 0..3 {
    ///     sweep = sweep.with_tensor("direction", Site::ResidPost(layer), &direction);
    /// }
    /// let table = sweep.each_with(Site::ResidPost, Every::Layer, Action::project_out("direction")).run()?;
    /// assert_eq!(table.len(), 3);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn with_tensor(mut self, key: &str, site: Site, tensor: &Tensor) -> Self {
        self.bank.insert(key, site, tensor.shallow_clone());
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

    /// At most this many bytes for what is held beside the model: the unchanged run, the activations that edits read, and
    /// stacked variants. Where all prompts together would take more, they are computed in parts, down to one variant of one
    /// prompt; a metric of your own sees the whole batch, which is then not divided. Unless said otherwise, a quarter of what
    /// is free on the model's device.
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
}

/// Fails where the positions of two batches can't stand for each other.
pub(in crate::intervene) fn same_lengths(tokens: &Tokens, other: &Tokens) -> Result<()> {
    let (lengths, others) = (tokens.lengths(), other.lengths());
    if lengths != others {
        let expected = format!("prompts of the same lengths, {lengths:?}");
        return Err(Error::argument("clean, corrupt", expected, format!("{others:?}")));
    }
    Ok(())
}
