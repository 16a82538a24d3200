//! `headscope ablate`

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::{Ablation, Sweep};

use super::metric::MetricArguments;
use super::output::OutputArguments;
use super::{ModelArguments, PromptArguments};

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
    #[command(flatten)]
    output: OutputArguments,
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
        let mut sweep = Sweep::ablate(&model, &tokens, self.ablation()).metric(self.metric.metric(&model)?);
        if let Some(reference) = &reference {
            sweep = sweep.reference(reference);
        }
        self.output.finish(sweep)
    }

    /// Refuses options that would be of no use.
    fn check(&self) -> Result<()> {
        if self.seed.is_some() && !matches!(self.kind, Kind::Resample) {
            bail!("--seed: expected --kind resample with it");
        }
        if !self.reference.is_empty() && matches!(self.kind, Kind::Zero) {
            bail!("--reference: expected --kind mean or resample with it");
        }
        self.output.check()
    }

    fn ablation(&self) -> Ablation {
        match self.kind {
            Kind::Zero => Ablation::Zero,
            Kind::Mean => Ablation::Mean,
            Kind::Resample => Ablation::Resample { seed: self.seed.unwrap_or(0) },
        }
    }
}
