//! `headscope ablate`

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::{Ablation, Sweep};
use headscope::model::{Model, Tokens};
use headscope::table::Table;

use super::metric::MetricArguments;
use super::{ModelArguments, PromptArguments, check_out, show};

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
    #[command(flatten)]
    metric: MetricArguments,
    /// Prompts over which means are taken and others are drawn, in place of the prompts themselves
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    reference: Vec<String>,
    /// Seed of the drawing; 0 unless said otherwise
    #[arg(long)]
    seed: Option<u64>,
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

impl Ablate {
    pub fn run(&self) -> Result<()> {
        self.check()?;
        let model = self.model.load()?;
        let tokens = self.prompts.tokens(&model)?;
        let reference = (!self.reference.is_empty()).then(|| model.tokens(&self.reference)).transpose()?;
        show(&self.table(&model, &tokens, reference.as_ref())?, self.top, self.out.as_deref())
    }

    /// Refuses options that would be of no use.
    fn check(&self) -> Result<()> {
        if self.seed.is_some() && !matches!(self.kind, Kind::Resample) {
            bail!("--seed: expected --kind resample with it");
        }
        if !self.reference.is_empty() && matches!(self.kind, Kind::Zero) {
            bail!("--reference: expected --kind mean or resample with it");
        }
        check_out(self.out.as_deref())
    }

    fn table(&self, model: &Model, tokens: &Tokens, reference: Option<&Tokens>) -> Result<Table> {
        let ablation = match self.kind {
            Kind::Zero => Ablation::Zero,
            Kind::Mean => Ablation::Mean,
            Kind::Resample => Ablation::Resample { seed: self.seed.unwrap_or(0) },
        };
        let mut sweep = Sweep::ablate(model, tokens, ablation).metric(self.metric.metric(model)?);
        if let Some(reference) = reference {
            sweep = sweep.reference(reference);
        }
        if self.per_prompt {
            sweep = sweep.per_prompt();
        }
        Ok(sweep.run()?)
    }
}
