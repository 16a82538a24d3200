//! Which roles do heads of an existing model play on annotated text?

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Computed, Input, drawn, load, row};
use crate::error::{Error, Result};
use crate::file;
use crate::heads::{Annotated, Role, RoleOptions, Roles, read_conllu, read_gap};
use crate::lab::language::{English, Language, LookFrom};
use crate::model::Model;
use crate::stats::shuffled;
use crate::table::{Observation, Table};

/// Which heads of a model play which roles on annotated text? Heads are chosen on one half of the texts and tested on
/// the other.
///
/// A seed determines the texts, the split into halves and all other randomness. Rows per role (`task`), see
/// [`Roles::best`]: `accuracy` of the best head; `gain_over_offset`, that accuracy minus the accuracy of the best fixed
/// offset; `p_value`, for the hypothesis that distances alone explain the accuracy of the best of all heads. If
/// `causal`, see [`Role::test`]: `effect` of ablating the head at the words that attend; `effect_rank`, the share of
/// heads with outputs of similar norm whose ablation has a smaller effect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pretrained {
    /// A bundled name, a folder or a Hugging Face Hub id.
    pub model: String,
    /// Keep the architecture and tokenizer but draw random weights from the seed: a baseline for what annotation and
    /// architecture alone explain.
    pub random: bool,
    /// The annotated texts.
    pub texts: Texts,
    /// Number of texts drawn per seed.
    pub count: usize,
    /// The roles to test.
    pub roles: Vec<String>,
    /// Whether to ablate the best heads as well.
    pub causal: bool,
}

/// Sources of annotated texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Texts {
    /// Stories in the small English, with every dependency known.
    Stories {
        /// Number of words in a story.
        length: usize,
        /// Which word attends.
        looking: LookFrom,
    },
    /// Universal Dependencies: a CoNLL-U file, also looked up in the folder named by the environment variable
    /// `HEADSCOPE_DATA`.
    Conllu(PathBuf),
    /// GAP: a file, looked up in the same way.
    Gap(PathBuf),
}

impl Pretrained {
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Computed> {
        if self.roles.is_empty() || self.count < 2 {
            let found = format!("{} and {}", self.roles.len(), self.count);
            return Err(Error::argument("roles, count", "at least one role and at least two texts", found));
        }
        let model = load(&self.model)?;
        let mut computed = Computed { read: self.inputs_with(&model)?, ..Computed::default() };
        let read = self.texts.read()?;
        for &seed in seeds {
            let texts = self.texts.draw(&read, self.count, seed)?;
            let drawn = self.random.then(|| drawn(&model, seed)).transpose()?;
            if let Some(drawn) = &drawn {
                computed.parameters.insert(seed, drawn.sha256()?);
            }
            computed.rows.extend(self.of_seed(drawn.as_ref().unwrap_or(&model), &texts, seed)?);
        }
        Ok(computed)
    }

    /// The checkpoint and the annotation files, with their hashes.
    pub(super) fn inputs(&self) -> Result<Vec<Input>> {
        self.inputs_with(&load(&self.model)?)
    }

    fn inputs_with(&self, model: &Model) -> Result<Vec<Input>> {
        let mut all = vec![Input { name: self.model.clone(), sha256: model.sha256()? }];
        if let Texts::Conllu(path) | Texts::Gap(path) = &self.texts {
            let name = path.display().to_string();
            all.push(Input { name, sha256: file::sha256_of(&[file::found(path)])? });
        }
        Ok(all)
    }

    fn of_seed(&self, model: &Model, texts: &[Annotated], seed: u64) -> Result<Vec<Observation>> {
        let options = RoleOptions { least: 10, draws: 200, resamples: 0, texts: 40, seed, ..RoleOptions::default() };
        if self.causal {
            let of_role = |role: &String| of_table(&Role::new(role).test(model, texts, &options)?, role, seed);
            return Ok(self.roles.iter().map(of_role).collect::<Result<Vec<_>>>()?.concat());
        }
        let best = Roles::measure(model, texts, &options)?.best()?;
        Ok(self.roles.iter().map(|role| of_table(&best, role, seed)).collect::<Result<Vec<_>>>()?.concat())
    }
}

/// The rows of a role, without the head that plays it.
fn of_table(table: &Table, role: &str, seed: u64) -> Result<Vec<Observation>> {
    let mut rows = vec![];
    for found in table.rows()?.into_iter().filter(|row| row.keys.task.as_deref() == Some(role)) {
        let mut add = |metric: &str, value: f64| {
            let mut row = row(seed, 0, metric, value);
            row.keys.task = Some(role.to_owned());
            rows.push(row);
        };
        match found.metric.as_str() {
            "accuracy" => {
                add("accuracy", found.value);
                add("gain_over_offset", found.value - found.baseline.unwrap_or(f64::NAN));
                let mut head = Observation { metric: "head_accuracy".to_owned(), ..found };
                head.keys.seed = Some(seed);
                head.keys.step = Some(0);
                (head.low, head.high) = (None, None);
                rows.push(head);
            }
            metric @ ("p_value" | "effect" | "effect_rank") => add(metric, found.value),
            _ => {}
        }
    }
    Ok(rows)
}

impl Texts {
    /// All texts of a file; none if the texts are generated.
    fn read(&self) -> Result<Vec<Annotated>> {
        match self {
            Self::Stories { .. } => Ok(vec![]),
            Self::Conllu(path) => read_conllu(file::found(path)),
            Self::Gap(path) => read_gap(file::found(path)),
        }
    }

    /// Draws `count` texts for a seed.
    fn draw(&self, read: &[Annotated], count: usize, seed: u64) -> Result<Vec<Annotated>> {
        if let Self::Stories { length, looking } = self {
            return Language::English(English { length: *length }).annotated(count, seed, 0, *looking);
        }
        let mut texts = shuffled(read, seed);
        texts.truncate(count);
        Ok(texts)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// The hashes cover the checkpoint's files and the annotation's bytes.
    #[test]
    fn what_is_read_is_hashed() {
        let path = PathBuf::from("fixtures/made-up.conllu");
        let cell = Pretrained {
            model: "english".to_owned(),
            random: false,
            texts: Texts::Conllu(path.clone()),
            count: 2,
            roles: vec!["entity".to_owned()],
            causal: false,
        };
        let found = cell.inputs().unwrap();
        let names: Vec<&str> = found.iter().map(|input| input.name.as_str()).collect();
        assert_eq!(names, ["english", "fixtures/made-up.conllu"]);
        assert_eq!(found[0].sha256, Model::load("english").unwrap().sha256().unwrap());
        assert_eq!(found[1].sha256, file::sha256(&std::fs::read(path).unwrap()));
    }

    /// A randomly initialised model does not share random numbers with the stream of its stories.
    #[test]
    fn random_models_have_a_stream_of_their_own() {
        let model = Model::load("english").unwrap();
        let shared = Model::random_as(model.config(), 7, model.kind(), model.device()).unwrap();
        assert_ne!(drawn(&model, 7).unwrap().sha256().unwrap(), shared.sha256().unwrap());
        assert_eq!(drawn(&model, 7).unwrap().sha256().unwrap(), drawn(&model, 7).unwrap().sha256().unwrap());
    }
}
