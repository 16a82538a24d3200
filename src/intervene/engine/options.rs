//! What do sweeps and paths have in common? What is measured, how it is reported, and what the run may use.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use super::gradient::Estimate;
use super::journal::Journal;
use crate::error::{Error, Result};
use crate::file::sha256;
use crate::intervene::metric::Metric;
use crate::table::Provenance;

/// The key under which edits find the activations that patches and ablations read.
pub(in crate::intervene) const REFERENCE: &str = "reference";

/// The options of a sweep or of paths; the macro [`options!`] has their builder methods.
#[derive(Clone)]
pub(in crate::intervene) struct Options<'a> {
    /// At least one.
    pub metrics: Vec<Metric>,
    pub memory: Option<usize>,
    pub per_prompt: bool,
    pub per_token: bool,
    pub normalised: bool,
    pub interval: Option<u64>,
    pub journal: Option<PathBuf>,
    pub stop: Option<&'a AtomicBool>,
    pub estimate: Option<Estimate>,
    pub exact: usize,
}

impl Default for Options<'_> {
    fn default() -> Self {
        Self {
            metrics: vec![Metric::Loss],
            memory: None,
            per_prompt: false,
            per_token: false,
            normalised: false,
            interval: None,
            journal: None,
            stop: None,
            estimate: None,
            exact: 0,
        }
    }
}

impl Options<'_> {
    /// Fails if options contradict each other.
    pub(in crate::intervene) fn check(&self) -> Result<()> {
        if self.interval.is_some() && (self.per_prompt || self.per_token) {
            return Err(Error::argument("interval", "the mean over prompts", "one row per prompt or token"));
        }
        if self.metrics.is_empty() {
            return Err(Error::argument("metrics", "at least one", "none"));
        }
        let told = |metric: &Metric| format!("{metric:?}");
        let twice = |i: usize| self.metrics[..i].iter().any(|other| told(other) == told(&self.metrics[i]));
        if let Some(i) = (0..self.metrics.len()).find(|&i| twice(i)) {
            return Err(Error::argument("metrics", "each once", told(&self.metrics[i])));
        }
        if let Some(metric) = self.metrics.iter().find(|metric| self.normalised && metric.is_relative()) {
            return Err(Error::argument("normalised", "a metric of one run", metric.name()));
        }
        match self.estimate {
            Some(_) if self.per_token => Err(Error::argument("estimate", "one value per prompt", "one row per token")),
            Some(_) if self.journal.is_some() => {
                Err(Error::argument("journal", "exact values", "estimates, which take one pass"))
            }
            Some(estimate) => self.metrics.iter().try_for_each(|metric| estimate.check(metric)),
            None if self.exact > 0 => Err(Error::argument("exact", "estimates to compare with", "exact values only")),
            None => Ok(()),
        }
    }

    /// Whether the batch cannot be split: a custom metric sees all of it.
    pub(in crate::intervene) fn needs_whole_batch(&self) -> bool {
        self.metrics.iter().any(|metric| matches!(metric, Metric::Custom { .. }))
    }

    /// Opens the journal, if one was requested, under a hash of everything that defines the values.
    pub(in crate::intervene) fn open_journal(&self, provenance: &Provenance) -> Result<Option<Journal>> {
        let Some(path) = &self.journal else { return Ok(None) };
        self.metrics.iter().try_for_each(Metric::check_told_apart)?;
        let options = [&provenance.model, &provenance.sha256, &provenance.options.to_string()];
        Journal::open(path, &sha256(serde_json::json!(options).to_string().as_bytes())).map(Some)
    }

    /// Adds what defines the values to `what`, for provenance.
    pub(in crate::intervene) fn describe(&self, mut what: serde_json::Value) -> serde_json::Value {
        let names: Vec<String> = self.metrics.iter().map(|metric| format!("{metric:?}")).collect();
        what["metric"] = names.join("; ").into();
        what["normalised"] = self.normalised.into();
        what["per_prompt"] = self.per_prompt.into();
        what["per_token"] = self.per_token.into();
        what["interval"] = self.interval.into();
        what["estimate"] = serde_json::json!(self.estimate);
        what
    }
}

/// The builder methods that [`Sweep`](crate::intervene::Sweep) and [`Paths`](crate::intervene::Paths) share. The type has
/// a field `options: Options<'a>`.
macro_rules! options {
    () => {
        /// Sets the metric. Default: [`Metric::Loss`].
        ///
        /// ```
        /// use headscope::prelude::*;
        /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
        /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
        /// let table = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(Metric::probability(3)).run()?;
        /// assert!(table.f64("value")?.iter().all(|p| (0.0..=1.0).contains(p)));
        /// # Ok::<(), headscope::Error>(())
        /// ```
        pub fn metric(mut self, metric: Metric) -> Self {
            self.options.metrics = vec![metric];
            self
        }

        /// Sets several metrics, read from the same passes; the table has rows of each. Estimates take one backward pass
        /// per metric.
        ///
        /// ```
        /// use headscope::prelude::*;
        /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
        /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
        /// let metrics = [Metric::Loss, Metric::Kl, Metric::logit_difference(3, 4)];
        /// let table = Sweep::ablate(&model, &tokens, Ablation::Zero).metrics(metrics).run()?;
        /// assert_eq!(table.len(), 3 * 12);
        /// # Ok::<(), headscope::Error>(())
        /// ```
        pub fn metrics(mut self, metrics: impl IntoIterator<Item = Metric>) -> Self {
            self.options.metrics = metrics.into_iter().collect();
            self
        }

        /// Limits the memory used besides the model, in bytes: for the unchanged run, the activations that edits read,
        /// and stacked variants. Default: a quarter of what is free on the model's device.
        ///
        /// If all prompts together need more, the batch is split, down to one variant of one prompt at a time. A custom
        /// metric sees the whole batch, so with one the batch is never split.
        ///
        /// ```
        /// use headscope::prelude::*;
        /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
        /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
        /// assert!(Sweep::ablate(&model, &tokens, Ablation::Zero).memory(1 << 20).explain()?.budget <= 1 << 20);
        /// # Ok::<(), headscope::Error>(())
        /// ```
        pub fn memory(mut self, bytes: usize) -> Self {
            self.options.memory = Some(bytes);
            self
        }

        /// One row per prompt, instead of the mean over prompts.
        ///
        /// ```
        /// use headscope::prelude::*;
        /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
        /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7, 6, 5]])?;
        /// assert_eq!(Sweep::ablate(&model, &tokens, Ablation::Zero).per_prompt().run()?.len(), 12 * 2);
        /// # Ok::<(), headscope::Error>(())
        /// ```
        pub fn per_prompt(mut self) -> Self {
            self.options.per_prompt = true;
            self
        }

        /// One row per prompt and predicted token, whose position is column `target`: for example the per-token loss.
        /// Needs a metric that is a mean over tokens ([`Metric::by_token`]).
        ///
        /// ```
        /// use headscope::prelude::*;
        /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
        /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
        /// let table = Sweep::ablate(&model, &tokens, Ablation::Zero).per_token().run()?;
        /// assert_eq!(table.len(), 12 * 4); // the first token is not predicted
        /// # Ok::<(), headscope::Error>(())
        /// ```
        pub fn per_token(mut self) -> Self {
            self.options.per_token = true;
            self
        }

        /// Rescales the metric so that the corrupted run scores 0 and the clean run 1. For patching only.
        ///
        /// ```
        /// use headscope::prelude::*;
        /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
        /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
        /// let sweep = Sweep::patch(&model, &clean, &corrupt).each(Site::ResidPre, Every::Layer);
        /// let table = sweep.metric(Metric::logit_difference(3, 4)).normalised().run()?;
        /// assert!((table.f64("value")?[0] - 1.0).abs() < 1e-3); // the whole stream restores everything
        /// # Ok::<(), headscope::Error>(())
        /// ```
        pub fn normalised(mut self) -> Self {
            self.options.normalised = true;
            self
        }

        /// Adds a 95 % interval of the mean over prompts (columns `low` and `high`): a percentile bootstrap over prompts
        /// with this seed. If the prompts are independent, it shows how much the value depends on their choice.
        ///
        /// ```
        /// use headscope::prelude::*;
        /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
        /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7, 6, 5]])?;
        /// let table = Sweep::ablate(&model, &tokens, Ablation::Zero).interval(0).run()?;
        /// assert!(table.f64("low")?[0] <= table.f64("high")?[0]);
        /// # Ok::<(), headscope::Error>(())
        /// ```
        pub fn interval(mut self, seed: u64) -> Self {
            self.options.interval = Some(seed);
            self
        }

        /// Writes finished values to this file, and skips those that an interrupted run with the same options has
        /// already written there. The file is kept; delete it once you have the table.
        ///
        /// ```
        /// use headscope::prelude::*;
        /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
        /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
        /// let path = std::env::temp_dir().join(format!("headscope-sweep-{}.partial", std::process::id()));
        /// let table = Sweep::ablate(&model, &tokens, Ablation::Zero).journal(&path).run()?;
        /// assert!(path.exists() && std::fs::remove_file(path).is_ok());
        /// # Ok::<(), headscope::Error>(())
        /// ```
        pub fn journal(mut self, path: impl AsRef<std::path::Path>) -> Self {
            self.options.journal = Some(path.as_ref().to_owned());
            self
        }

        /// Ends the run with [`Error::Stopped`](crate::Error::Stopped) soon after `stop` is set, for example by a signal
        /// handler.
        ///
        /// ```
        /// use headscope::prelude::*;
        /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
        /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
        /// let stop = std::sync::atomic::AtomicBool::new(true);
        /// let stopped = Sweep::ablate(&model, &tokens, Ablation::Zero).stop(&stop).run();
        /// assert!(matches!(stopped, Err(Error::Stopped { .. })));
        /// # Ok::<(), headscope::Error>(())
        /// ```
        pub fn stop(mut self, stop: &'a std::sync::atomic::AtomicBool) -> Self {
            self.options.stop = Some(stop);
            self
        }

        /// Estimates the effects from gradients instead of computing them. Column `method` names the estimate. Of paths,
        /// gradients estimate the direct ones: [`Paths::frozen_mlps`](crate::intervene::Paths::frozen_mlps).
        ///
        /// ```
        /// use headscope::prelude::*;
        /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
        /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
        /// let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).estimate(Estimate::Attribution);
        /// assert_eq!(sweep.run()?.len(), 12);
        /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
        /// let paths = Paths::noise(&model, &clean, &corrupt).frozen_mlps();
        /// assert_eq!(paths.estimate(Estimate::Attribution).run()?.len(), 12); // edge attribution patching
        /// # Ok::<(), headscope::Error>(())
        /// ```
        pub fn estimate(mut self, estimate: Estimate) -> Self {
            self.options.estimate = Some(estimate);
            self
        }

        /// Adds exact rows (`method` is `exact`) for the `n` largest estimated effects.
        /// [`Table::agreement`](crate::table::Table::agreement) says how well the two agree there.
        ///
        /// ```
        /// use headscope::prelude::*;
        /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
        /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
        /// let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).estimate(Estimate::Attribution);
        /// assert_eq!(sweep.exact(3).run()?.len(), 12 + 3);
        /// # Ok::<(), headscope::Error>(())
        /// ```
        pub fn exact(mut self, n: usize) -> Self {
            self.options.exact = n;
            self
        }
    };
}
pub(in crate::intervene) use options;
