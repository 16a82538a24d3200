//! The metric, as the commands that sweep take it.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::Metric;
use headscope::model::Model;

use super::json;

#[derive(Args)]
pub struct MetricArguments {
    /// What is measured; the loss, or for a model without logits the embedding distance, unless said otherwise
    #[arg(long, value_enum)]
    metric: Option<Measure>,
    /// For the logit difference: a JSON list of [correct id, wrong id], one for each prompt, or @FILE with one
    #[arg(long, value_name = "JSON|@FILE")]
    answers: Option<String>,
    /// For the logit difference: the correct answer, a single token such as " Mary"
    #[arg(long, requires = "wrong", conflicts_with = "answers")]
    correct: Option<String>,
    /// For the logit difference: the wrong answer
    #[arg(long, requires = "correct")]
    wrong: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Measure {
    Loss,
    LogitDifference,
    Kl,
    EmbeddingDistance,
}

impl MetricArguments {
    pub fn metric(&self, model: &Model) -> Result<Metric> {
        let usual = if model.config().has_logits() { Measure::Loss } else { Measure::EmbeddingDistance };
        let answered = self.answers.is_some() || self.correct.is_some();
        if answered && !matches!(self.metric, Some(Measure::LogitDifference)) {
            bail!("--answers, --correct, --wrong: expected --metric logit-difference with them");
        }
        Ok(match self.metric.unwrap_or(usual) {
            Measure::Loss => Metric::Loss,
            Measure::Kl => Metric::Kl,
            Measure::EmbeddingDistance => Metric::EmbeddingDistance,
            Measure::LogitDifference => match (&self.correct, &self.wrong, &self.answers) {
                (Some(correct), Some(wrong), _) => Metric::logit_difference(correct.as_str(), wrong.as_str()),
                (_, _, Some(answers)) => {
                    let pairs: Vec<[i64; 2]> = json(answers, "--answers", "a list of [correct id, wrong id]")?;
                    let side = |i: usize| pairs.iter().map(|pair| pair[i]).collect::<Vec<i64>>();
                    Metric::logit_difference(side(0), side(1))
                }
                _ => bail!("the logit difference needs --answers, or --correct and --wrong"),
            },
        })
    }
}
