//! What is trained, as data.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::language::{English, Language, Repeats};
use super::train::{TrainOptions, Trainer};
use crate::error::{Error, Result};
use crate::file;
use crate::model::{ModelConfig, Position, Rotary};

/// A model, a language and how to train: everything that a trained checkpoint follows from.
///
/// ```
/// let declaration = headscope::lab::Declaration::named("induction")?;
/// assert_eq!((declaration.model.n_layers, declaration.model.d_mlp), (2, 0));
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// The architecture; `vocab` and `n_positions` are the language's where they are 0.
    pub model: ModelConfig,
    /// The language.
    pub language: Language,
    /// How to train.
    pub train: TrainOptions,
}

impl Declaration {
    /// The declarations that have a name: those of the bundled checkpoints.
    pub const NAMES: [&'static str; 2] = ["induction", "english"];

    /// The declaration of this name.
    ///
    /// - `induction`: two layers of attention without MLP, on sequences that repeat;
    /// - `english`: two layers of attention without MLP, on a small English.
    ///
    /// # Errors
    /// [`Error::Argument`] where there is none.
    pub fn named(name: &str) -> Result<Self> {
        let language = match name {
            "induction" => Language::Repeats(Repeats::default()),
            "english" => Language::English(English::default()),
            _ => {
                return Err(Error::argument(
                    "declaration",
                    format!("{}, or a JSON file", Self::NAMES.join(", ")),
                    name,
                ));
            }
        };
        Ok(Self::attention_only(language, TrainOptions { steps: 1500, ..TrainOptions::default() }))
    }

    /// Two layers of four heads of width 16 with rotary positions, without MLP.
    pub(super) fn attention_only(language: Language, train: TrainOptions) -> Self {
        let model = ModelConfig {
            family: "attention-only".to_owned(),
            n_layers: 2,
            d_model: 64,
            d_head: 16,
            d_mlp: 0,
            vocab: 0,
            n_positions: 0,
            position: Position::Rotary(Rotary::default()),
            ..ModelConfig::default()
        };
        Self { model, language, train }.complete()
    }

    /// Reads a declaration from a JSON file.
    ///
    /// # Errors
    /// Where the file cannot be read or is none.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let declaration: Self = serde_json::from_slice(&file::read(path)?).map_err(|reason| Error::Format {
            path: path.to_owned(),
            at: "the file".to_owned(),
            expected: "a declaration with `model`, `language` and `train`".to_owned(),
            found: reason.to_string(),
        })?;
        Ok(declaration.complete())
    }

    /// A trainer for it.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn trainer(&self) -> Result<Trainer> {
        Trainer::new(&self.model, &self.language, &self.train)
    }

    /// With the language's vocabulary and length where the model's are 0. A language that makes no sense is left to be
    /// refused when it is used.
    fn complete(mut self) -> Self {
        if self.language.validate().is_ok() {
            if self.model.vocab == 0 {
                self.model.vocab = self.language.vocab();
            }
            if self.model.n_positions == 0 {
                self.model.n_positions = self.language.positions();
            }
        }
        self
    }
}
