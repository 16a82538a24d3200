//! How does the output change when activations change? Many variants of a run, measured in one table.

mod ablation;
mod axes;
mod change;
mod estimate;
mod run;
mod sets;
mod shapley;

use std::collections::BTreeMap;

use tch::Tensor;

pub use self::ablation::Ablation;
pub use self::axes::Every;
use self::change::{Change, Direction};
pub(in crate::intervene) use self::sets::set_name;
pub use self::sets::{Subsets, subsets};
pub(crate) use self::shapley::MOST;
pub use self::shapley::{Sampling, ShapleyOptions, shapley, shapley_values};
use super::engine::{At, Estimate, Options, Strategy, Variant, options};
use super::metric::Metric;
use crate::model::{Action, Bank, Edit, Model, Prompts, Run, Site, Tokens};
use crate::table::Keys;

/// Runs many variants of a batch, each with different activations changed, and tabulates a metric of each.
///
/// The builder says what to compute; the engine decides how ([`Sweep::explain`] shows its plan). By default a sweep
/// covers the head output z of every head in every layer, and measures the loss.
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
    /// The prompts that activations are patched from.
    pub(super) other: Option<&'a Tokens>,
    /// Reference prompts of an ablation, if other than `tokens`.
    pub(super) references: Option<&'a Tokens>,
    change: Change,
    /// The action of `change`.
    action: Action,
    pub(super) variants: Vec<Variant>,
    /// The pairs that both batches come from, if they are [`Prompts`].
    prompts: Option<&'a Prompts>,
    /// The only positions that change.
    at: Option<At>,
    pub(super) strategy: Strategy,
    pub(super) options: Options<'a>,
    /// Tensors and activations of other runs that edits refer to.
    pub(super) bank: Bank,
}

impl<'a> Sweep<'a> {
    options!();

    /// Ablation: how much does the model rely on each head? By default one variant per head of every layer; choose
    /// others with [`Sweep::each`] or [`Sweep::variants`].
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let table = Sweep::ablate(&model, &tokens, Ablation::Mean).run()?;
    /// let worst = table.top(1)?; // the head without which the loss changes most
    /// assert_eq!(worst.len(), 1);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn ablate(model: &'a Model, tokens: &'a Tokens, ablation: Ablation) -> Self {
        Self::new(model, tokens, None, Change::Ablation(ablation))
    }

    /// Attention knockout: what does the model lose when a query cannot attend to a key? The query's remaining weights
    /// are renormalised ([`Action::KnockOut`]; Geva et al. 2023).
    ///
    /// By default one variant per edge (query, key) of every head; choose others with [`Sweep::each`] at `scores`.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// assert_eq!(Sweep::knock_out(&model, &tokens).run()?.len(), 3 * 4 * 15); // layers, heads, causal edges
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn knock_out(model: &'a Model, tokens: &'a Tokens) -> Self {
        Self::new(model, tokens, None, Change::KnockOut).each(Site::Scores, [Every::Head, Every::Query, Every::Key])
    }

    /// Activation patching by denoising: which activations suffice to restore the behaviour? Each variant patches clean
    /// activations into the corrupted run, by default z of one head; choose sites and axes with [`Sweep::each`].
    ///
    /// The prompts of the two batches must have the same lengths, so that their positions correspond.
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

    /// Activation patching by noising: which activations are necessary for the behaviour? Each variant patches
    /// corrupted activations into the clean run. Not the mirror image of [`Sweep::patch`] (Heimersheim & Nanda 2024).
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// assert_eq!(Sweep::noise(&model, &clean, &corrupt).run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn noise(model: &'a Model, clean: &'a Tokens, corrupt: &'a Tokens) -> Self {
        Self::new(model, clean, Some(corrupt), Change::Patch(Direction::Noise))
    }

    /// [`Sweep::patch`] of pairs of prompts: clean activations are patched into the corrupted run. The metric is the logit
    /// difference of their answers, if they have some, and [`Sweep::at`] knows the names of their positions.
    ///
    /// Prompts may differ in length from their partners. Then the tokens stand for each other that
    /// [`Prompts::alignment`] says; the others are not patched.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let pair = Pair::new("the cat and the head", "the dog and the head").answers(3, 4).at("animal", 1);
    /// let prompts = model.prompts([pair])?;
    /// let table = Sweep::denoising(&model, &prompts).each(Site::ResidPre, Every::Layer).at("animal").run()?;
    /// assert_eq!(table.len(), 3);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn denoising(model: &'a Model, prompts: &'a Prompts) -> Self {
        Self::patch(model, prompts.clean(), prompts.corrupt()).of(prompts)
    }

    /// [`Sweep::noise`] of pairs of prompts: corrupted activations are patched into the clean run; see
    /// [`Sweep::denoising`].
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let prompts = model.prompts([("the cat and the head", "the dog and the head")])?;
    /// assert_eq!(Sweep::noising(&model, &prompts).run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn noising(model: &'a Model, prompts: &'a Prompts) -> Self {
        Self::noise(model, prompts.clean(), prompts.corrupt()).of(prompts)
    }

    fn of(mut self, prompts: &'a Prompts) -> Self {
        self.prompts = Some(prompts);
        match Metric::of_answers(prompts) {
            Some(metric) => self.metric(metric),
            None => self,
        }
    }

    fn new(model: &'a Model, tokens: &'a Tokens, other: Option<&'a Tokens>, change: Change) -> Self {
        let sweep = Self {
            model,
            tokens,
            other,
            references: None,
            action: change.action(),
            change,
            variants: vec![],
            prompts: None,
            at: None,
            strategy: Strategy::Auto,
            options: Options::default(),
            bank: Bank::default(),
        };
        sweep.each(Site::Z, Every::Head)
    }

    /// One variant per index of an axis (`Every::Head`), or per combination of indices of several axes, in every layer.
    /// Replaces the current variants.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).each(Site::Z, [Every::Head, Every::Position]);
    /// assert_eq!(sweep.planned().len(), 3 * 4 * 5);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn each(self, site: impl Fn(usize) -> Site, every: impl AsRef<[Every]>) -> Self {
        let action = self.action.clone();
        self.each_with(site, every, action)
    }

    /// [`Sweep::each`] with another action than the sweep's own: scale, add a direction, project onto or out of a
    /// subspace. [`Sweep::with_tensor`] supplies the tensors.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero);
    /// let table = sweep.each_with(Site::MlpOut, Every::Layer, Action::Scale { factor: 0.5 }).run()?;
    /// assert_eq!(table.len(), 3);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn each_with(mut self, site: impl Fn(usize) -> Site, every: impl AsRef<[Every]>, action: Action) -> Self {
        let config = self.model.config();
        let mut sites: Vec<Site> = (0..config.n_layers).map(site).collect();
        // Only some layers of an encoder-decoder have cross-attention; where none has the site, the run says so.
        if config.encoder.is_some() && sites.iter().any(|site| site.check(config).is_ok()) {
            sites.retain(|site| site.check(config).is_ok());
        }
        sites.dedup(); // a site outside the layers, such as `embed`, appears once
        let of = |site| axes::variants(site, every.as_ref(), &action, config, self.tokens);
        self.variants = sites.into_iter().flat_map(of).collect();
        self
    }

    /// Changes only one position of each prompt: a number, one number for each prompt, or the name of a position of the
    /// sweep's [`Prompts`]. At `scores` and `pattern`, a query position. Column `at` says which.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// assert_eq!(Sweep::ablate(&model, &tokens, Ablation::Zero).at(4).run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn at(mut self, position: impl Into<At>) -> Self {
        self.at = Some(position.into());
        self
    }

    /// Keeps only the variants whose keys satisfy `keep`.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).only(|keys| keys.layer == Some(2));
    /// assert_eq!(sweep.planned().len(), 4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn only(mut self, keep: impl Fn(&Keys) -> bool) -> Self {
        self.variants.retain(|variant| keep(&variant.keys));
        self
    }

    /// This sweep's action on `site`, as an edit that can be narrowed: an element of a set for [`Sweep::sets`].
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero);
    /// let edit = sweep.edit(Site::Z(1)).heads([0, 3]).position(4);
    /// assert_eq!((edit.action, edit.at.positions), (Action::Zero, Some(vec![4])));
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn edit(&self, site: Site) -> Edit {
        Edit::new(site, self.action.clone())
    }

    /// One variant per set of edits, which apply together: any mix of heads, positions and neurons. Column `set` names
    /// the edited parts, column `parts` counts them. Replaces the current variants.
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
        self.variants = sets.into_iter().map(|edits| sets::together(edits, self.model.config())).collect();
        self
    }

    /// The current variants.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero);
    /// assert_eq!(sweep.planned().len(), 12); // 3 layers of 4 heads
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn planned(&self) -> &[Variant] {
        &self.variants
    }

    /// Changes the heads of `order`, given as (layer, head), cumulatively: the first variant changes the first head,
    /// the second the first two, and the last all of them. Column `parts` counts the changed heads. Replaces the
    /// current variants.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let table = Sweep::ablate(&model, &tokens, Ablation::Zero).one_after_another(&[(0, 1), (2, 3)]).run()?;
    /// assert_eq!(table.f64("parts")?, [1.0, 2.0]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn one_after_another(mut self, order: &[(usize, usize)]) -> Self {
        let variant = |n: usize| {
            let mut layers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            order[..n].iter().for_each(|&(layer, head)| layers.entry(layer).or_default().push(head));
            let edit = |(layer, heads)| Edit::new(Site::Z(layer), self.action.clone()).heads(heads);
            let edits = layers.into_iter().map(edit).collect();
            Variant { keys: Keys { parts: u32::try_from(n).ok(), ..Keys::default() }, edits }
        };
        self.variants = (1..=order.len()).map(variant).collect();
        self
    }

    /// Sets the variants, each with the keys of its row. Replaces the current variants.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let keys = Keys { variant: Some(0), ..Keys::default() };
    /// let edits = vec![Edit::new(Site::Z(0), Action::Zero), Edit::new(Site::MlpOut(0), Action::Zero)];
    /// let table = Sweep::ablate(&model, &tokens, Ablation::Zero).variants(vec![Variant { keys, edits }]).run()?;
    /// assert_eq!(table.len(), 1);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn variants(mut self, variants: Vec<Variant>) -> Self {
        self.variants = variants;
        self
    }

    /// Makes the activations of `run` available to edits as `key`, as [`Plan::with`](crate::model::Plan::with) does.
    /// The run has one prompt per prompt of the batch, or a single one for all. The key `reference` is taken: it holds
    /// the activations that patches and ablations of this sweep read.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let plan = Plan::new().taps((0..3).map(Site::MlpOut));
    /// let source = model.run(&Tokens::new(&[vec![9, 8, 7, 6, 5]])?, &plan)?;
    /// let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).with("source", &source);
    /// let table = sweep.each_with(Site::MlpOut, Every::Layer, Action::replace("source")).run()?;
    /// assert_eq!(table.len(), 3);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn with(mut self, key: &str, run: &Run) -> Self {
        self.bank.insert_run(key, run);
        self
    }

    /// Makes `tensor` available to edits at `site` as `key`: a direction to add, a subspace to project onto or out of.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7, 6, 5]])?;
    /// // What does the model lose at each depth without the direction that separates token 3 from token 4?
    /// let w_e = model.parameters()[0].1; // [vocab, d_model], tied to the unembedding
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

    /// Sets the prompts that a mean ablation averages over and a resampling ablation draws from. Default: the batch
    /// itself. It is an error if the sweep is a patch or no edit reads the reference.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let reference = Tokens::new(&[vec![1, 2, 3, 4, 5], vec![11, 12, 13, 14, 15]])?;
    /// assert_eq!(Sweep::ablate(&model, &tokens, Ablation::Mean).reference(&reference).run()?.len(), 12);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn reference(mut self, tokens: &'a Tokens) -> Self {
        self.references = Some(tokens);
        self
    }

    /// Sets how the sweep is computed. Default: [`Strategy::Auto`].
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let sweep = |strategy| Sweep::ablate(&model, &tokens, Ablation::Zero).strategy(strategy);
    /// let (fast, naive) = (sweep(Strategy::Auto).run()?, sweep(Strategy::Naive).run()?);
    /// assert!((fast.f64("value")?[0] - naive.f64("value")?[0]).abs() < 1e-4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }
}
