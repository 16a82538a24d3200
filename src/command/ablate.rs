//! `headscope ablate`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::{Ablation, Metric, Sweep};
use headscope::model::{Model, Tokens};
use headscope::table::Table;

use super::{ModelArguments, PromptArguments, json};

/// Ablate every head in turn and tabulate what it does to a metric.
///
/// Example: headscope ablate minilm --text "The cat sat." "A dog ran." --kind mean --out heads.parquet
///
/// One row a head: the metric with the head ablated (value) and without (baseline).
#[derive(Args)]
pub struct Ablate {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    prompts: PromptArguments,
    /// What a head's output becomes: zero, its mean over the prompts, or what it is on another prompt
    #[arg(long, value_enum, default_value_t = Kind::Zero)]
    kind: Kind,
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
    /// Prompts over which means are taken and others are drawn, in place of the prompts themselves
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    reference: Vec<String>,
    /// Seed of the drawing
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// One row a head and prompt, in place of the mean over prompts
    #[arg(long)]
    per_prompt: bool,
    /// Rows to print, those of largest effect first
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// The file to write: .parquet, .csv or .json
    #[arg(long, value_name = "TABLE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Zero,
    Mean,
    Resample,
}

#[derive(Clone, Copy, ValueEnum)]
enum Measure {
    Loss,
    LogitDifference,
    Kl,
    EmbeddingDistance,
}

impl Ablate {
    pub fn run(&self) -> Result<()> {
        let model = self.model.load()?;
        let tokens = self.prompts.tokens(&model)?;
        let reference = (!self.reference.is_empty()).then(|| model.tokens(&self.reference)).transpose()?;
        let table = self.table(&model, &tokens, reference.as_ref())?;
        if let Some(out) = &self.out {
            table.write(out)?;
        }
        println!("{}", table.top(self.top)?);
        println!(
            "the {} of {} rows with the largest effect (value - baseline)",
            self.top.min(table.len()),
            table.len()
        );
        if let Some(out) = &self.out {
            println!("all of them written to {}", out.display());
        }
        Ok(())
    }

    fn table(&self, model: &Model, tokens: &Tokens, reference: Option<&Tokens>) -> Result<Table> {
        let ablation = match self.kind {
            Kind::Zero => Ablation::Zero,
            Kind::Mean => Ablation::Mean,
            Kind::Resample => Ablation::Resample { seed: self.seed },
        };
        let mut sweep = Sweep::ablate(model, tokens, ablation).metric(self.metric(model)?);
        if let Some(reference) = reference {
            sweep = sweep.reference(reference);
        }
        if self.per_prompt {
            sweep = sweep.per_prompt();
        }
        Ok(sweep.run()?)
    }

    fn metric(&self, model: &Model) -> Result<Metric> {
        let usual = if model.config().has_logits() { Measure::Loss } else { Measure::EmbeddingDistance };
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
