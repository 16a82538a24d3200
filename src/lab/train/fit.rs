//! Do a model, a language and training options fit together?

use super::competition;
use super::options::TrainOptions;
use crate::error::{Error, Result};
use crate::lab::language::Language;
use crate::model::ModelConfig;

/// Fails if the model cannot read the language, or the options ask for heads or ranks that it does not have.
pub(super) fn check_fit(config: &ModelConfig, language: &Language, options: &TrainOptions) -> Result<()> {
    options.validate()?;
    language.validate()?;
    let tasks = language.tasks().len();
    if !options.task_weights.is_empty() && options.task_weights.len() != tasks {
        let expected = format!("none, or one for each of {tasks} tasks");
        return Err(Error::argument("task_weights", expected, options.task_weights.len()));
    }
    if !(config.causal && config.has_logits()) {
        return Err(Error::argument("model", "a causal model with logits", &config.family));
    }
    if config.vocab != language.vocab() {
        return Err(Error::argument("vocab", format!("{}, as in the language", language.vocab()), config.vocab));
    }
    if config.n_positions < language.positions() {
        let expected = format!("at least {}, for the language's longest sequence", language.positions());
        return Err(Error::argument("n_positions", expected, config.n_positions));
    }
    check_heads(config, options)
}

/// Fails if the options name heads that the model does not have, or treat them in a way that is not defined for it.
fn check_heads(config: &ModelConfig, options: &TrainOptions) -> Result<()> {
    let heads = &options.heads;
    let named = heads.frozen.iter().copied().chain(heads.scaled.iter().map(|&(layer, head, _)| (layer, head)));
    for (layer, head) in named {
        for (axis, found, limit) in [("layer", layer, config.n_layers), ("head", head, config.n_heads)] {
            if found >= limit {
                let at = "heads of the training options".to_owned();
                return Err(Error::OutOfRange { at, axis, found: found as i64, limit: limit as i64 });
            }
        }
    }
    for (name, rank) in [("qk_rank", heads.qk_rank), ("ov_rank", heads.ov_rank)] {
        if let Some(rank) = rank.filter(|rank| !(1..=config.d_head).contains(rank)) {
            return Err(Error::argument(name, format!("1 to d_head, {}", config.d_head), rank));
        }
    }
    heads.competition.map_or(Ok(()), |_| competition::check(config))
}
