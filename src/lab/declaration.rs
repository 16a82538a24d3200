//! What fully determines a training run? A model, a language and training options, as data.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::language::{English, Language, Repeats};
use super::train::{TrainOptions, Trainer};
use crate::error::{Error, Result};
use crate::file;
use crate::model::{ModelConfig, Position, Rotary};

/// A model, a language and training options: together they determine the trained checkpoint.
///
/// ```
/// let declaration = headscope::lab::Declaration::named("induction")?;
/// assert_eq!((declaration.model.n_layers, declaration.model.d_mlp), (2, 0));
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declaration {
    /// The architecture; `vocab` and `n_positions` are taken from the language if they are 0.
    pub model: ModelConfig,
    /// The language.
    pub language: Language,
    /// Training options.
    pub train: TrainOptions,
}

impl Declaration {
    /// The named declarations: those of the bundled checkpoints.
    pub const NAMES: [&'static str; 2] = ["induction", "english"];

    /// Returns the declaration with the given name.
    ///
    /// - `induction`: two attention-only layers, trained on repeated sequences;
    /// - `english`: two attention-only layers, trained on a small English.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no declaration of that name.
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

    /// Two attention-only layers of four heads, with `d_head` 16 and rotary positions.
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
    /// If the file cannot be read or is not a declaration.
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

    /// Creates a trainer for this declaration.
    ///
    /// # Errors
    /// As for [`Trainer::new`].
    pub fn trainer(&self) -> Result<Trainer> {
        Trainer::new(&self.model, &self.language, &self.train)
    }

    /// Fills in the language's vocabulary size and length where the model's are 0. An invalid language is left alone;
    /// it is rejected on use.
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
