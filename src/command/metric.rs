//! What does a sweep measure? The metric, for all commands that sweep.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::{Answer, Metric};
use headscope::model::Model;

use super::json;

#[derive(Args)]
pub struct MetricArguments {
    /// The metric; by default the loss or, for a model without logits, the embedding distance
    #[arg(long, value_enum)]
    metric: Option<MetricName>,
    /// The answers: a JSON list with an id or a pair [correct id, wrong id] for each prompt, or @FILE with such a list
    #[arg(long, value_name = "JSON|@FILE")]
    answers: Option<String>,
    /// The correct answer, a single token such as " Mary"
    #[arg(long, conflicts_with = "answers")]
    correct: Option<String>,
    /// For the logit difference: the wrong answer
    #[arg(long, requires = "correct")]
    wrong: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum MetricName {
    Loss,
    Accuracy,
    Kl,
    Logit,
    LogitDifference,
    Probability,
    Rank,
    EmbeddingDistance,
}

impl MetricArguments {
    pub fn metric(&self, model: &Model) -> Result<Metric> {
        let usual = if model.config().has_logits() { MetricName::Loss } else { MetricName::EmbeddingDistance };
        let measure = self.metric.unwrap_or(usual);
        let answered = self.answers.is_some() || self.correct.is_some();
        let whole = match measure {
            MetricName::Loss => Some(Metric::Loss),
            MetricName::Accuracy => Some(Metric::Accuracy),
            MetricName::Kl => Some(Metric::Kl),
            MetricName::EmbeddingDistance => Some(Metric::EmbeddingDistance),
            _ => None,
        };
        if let Some(metric) = whole {
            if answered {
                bail!(
                    "--answers, --correct, --wrong: expected --metric logit, logit-difference, probability or rank with them, found {}",
                    metric.name()
                );
            }
            return Ok(metric);
        }
        let (correct, wrong) = self.answers()?;
        Ok(match (measure, wrong) {
            (MetricName::LogitDifference, Some(wrong)) => Metric::LogitDifference(correct, wrong),
            (MetricName::LogitDifference, None) => {
                bail!("the logit difference needs --answers with pairs, or --correct and --wrong")
            }
            (MetricName::Probability, _) => Metric::Probability(correct),
            (MetricName::Rank, _) => Metric::Rank(correct),
            _ => Metric::Logit(correct),
        })
    }

    /// The correct answer, and the wrong one if given.
    fn answers(&self) -> Result<(Answer, Option<Answer>)> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Answers {
            Pairs(Vec<[i64; 2]>),
            Ids(Vec<i64>),
        }
        if let Some(correct) = &self.correct {
            return Ok((correct.as_str().into(), self.wrong.as_deref().map(Answer::from)));
        }
        let Some(answers) = &self.answers else { bail!("this metric needs --answers, or --correct (and --wrong)") };
        Ok(match json(answers, "--answers", "a list of [correct id, wrong id], or of ids")? {
            Answers::Ids(ids) => (ids.into(), None),
            Answers::Pairs(pairs) => {
                let side = |i: usize| pairs.iter().map(|pair| pair[i]).collect::<Vec<i64>>();
                (side(0).into(), Some(side(1).into()))
            }
        })
    }
}
