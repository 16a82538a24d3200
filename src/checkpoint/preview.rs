//! What is a checkpoint, and how much memory will it take? From its headers, before anything is loaded.

use super::{LoadOptions, Opened, locate};
use crate::error::Result;
use crate::model::ModelConfig;

/// A checkpoint's architecture and size, read from its headers alone: `config.json` and the headers of its weight files, or the
/// header of a GGUF file.
///
/// ```
/// use headscope::checkpoint::{LoadOptions, Preview};
/// use headscope::model::Model;
/// let preview = Preview::of("fixtures/checkpoints/tiny-gpt2", &LoadOptions::default())?;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// assert_eq!(preview.parameters, model.n_parameters());
/// assert_eq!(preview.load_bytes(), 4 * model.n_parameters()); // float32
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Preview {
    /// The architecture, as the config says it. Whether a claimed tied unembedding is one, only its numbers tell.
    pub config: ModelConfig,
    /// The number of parameters that a model loaded from it has; a tied unembedding counts once.
    pub parameters: usize,
    options: LoadOptions,
}

impl Preview {
    /// Reads the headers of a model's checkpoint; `name` as for [`Model::load`](crate::model::Model::load). A hub id is downloaded
    /// first.
    ///
    /// # Errors
    /// If a header cannot be read, or does not make sense.
    pub fn of(name: &str, options: &LoadOptions) -> Result<Self> {
        let opened = Opened::at(&locate::find(name, options.revision.as_deref())?, options)?;
        let (family, config) = opened.architecture()?;
        let numbers = |shape: &[usize]| shape.iter().fold(1usize, |n, &length| n.saturating_mul(length));
        let kept = opened.source.shapes().filter(|(name, _)| !family.ignores(name));
        let stored = kept.fold(0usize, |sum, (_, shape)| sum.saturating_add(numbers(shape)));
        // A checkpoint stripped to its attention weights has fewer parameters than its architecture; one that repeats a tied
        // embedding stores more.
        let parameters = config.n_parameters()?.min(stored);
        Ok(Self { config, parameters, options: options.clone() })
    }

    /// Bytes that the weights take, in the type of the options. Loading takes little more at its peak: some blocks of a tensor.
    pub fn load_bytes(&self) -> usize {
        self.parameters.saturating_mul(self.options.kind.elt_size_in_bytes())
    }

    /// Estimated bytes that a plain run takes beside the weights: [`ModelConfig::run_bytes`].
    pub fn run_bytes(&self, prompts: usize, positions: usize) -> usize {
        self.config.run_bytes(self.options.kind, prompts, positions)
    }
}
