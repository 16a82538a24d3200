//! What does a sweep measure? The metric, for all commands that sweep.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::{Answer, Metric};
use headscope::model::Model;
use headscope::text::prompts::Word;

use super::json;

#[derive(Args)]
pub struct MetricArguments {
    /// The metric; by default the loss or, for a model without logits, the embedding distance
    #[arg(long, value_enum)]
    metric: Option<MetricName>,
    #[command(flatten)]
    answers: AnswerArguments,
}

/// The answers that a metric asks about.
#[derive(Args)]
pub struct AnswerArguments {
    /// The answers: a JSON list with an answer or a pair [correct, wrong] for each prompt, or @FILE with such a list; an
    /// answer is a token id or a text that is a single token
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
        let whole = match measure {
            MetricName::Loss => Some(Metric::Loss),
            MetricName::Accuracy => Some(Metric::Accuracy),
            MetricName::Kl => Some(Metric::Kl),
            MetricName::EmbeddingDistance => Some(Metric::EmbeddingDistance),
            _ => None,
        };
        if let Some(metric) = whole {
            if self.answers.given() {
                bail!(
                    "--answers, --correct, --wrong: expected --metric logit, logit-difference, probability or rank with them, found {}",
                    metric.name()
                );
            }
            return Ok(metric);
        }
        let (correct, wrong) = self.answers.read(model)?;
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
}

impl AnswerArguments {
    pub fn given(&self) -> bool {
        self.answers.is_some() || self.correct.is_some()
    }

    /// The correct answer, and the wrong one if given.
    pub fn read(&self, model: &Model) -> Result<(Answer, Option<Answer>)> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Answers {
            Pairs(Vec<(Word, Word)>),
            Correct(Vec<Word>),
        }
        if let Some(correct) = &self.correct {
            return Ok((correct.as_str().into(), self.wrong.as_deref().map(Answer::from)));
        }
        let Some(answers) = &self.answers else { bail!("this metric needs --answers, or --correct (and --wrong)") };
        let ids = |words: &mut dyn Iterator<Item = &Word>| -> Result<Answer> {
            Ok(words.map(|word| word.id(model)).collect::<Result<Vec<i64>, _>>()?.into())
        };
        Ok(match json(answers, "--answers", "a list of answers or of pairs [correct, wrong], ids or texts")? {
            Answers::Correct(correct) => (ids(&mut correct.iter())?, None),
            Answers::Pairs(pairs) => (
                ids(&mut pairs.iter().map(|(correct, _)| correct))?,
                Some(ids(&mut pairs.iter().map(|(_, wrong)| wrong))?),
            ),
        })
    }
}
