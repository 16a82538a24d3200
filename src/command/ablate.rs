//! `headscope ablate`: what does a metric lose without a head, or another part of the model?

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::{Ablation, Sweep};

use super::each::EachArguments;
use super::metric::MetricArguments;
use super::output::OutputArguments;
use super::{ModelArguments, PromptArguments, SourceArguments};

/// Ablate every head in turn (or other parts: --site, --each) and tabulate the effect on a metric.
///
/// Example: headscope ablate minilm --text "The cat sat." "A dog ran." --kind mean --out heads.parquet
///
/// Cut every attention edge: headscope ablate MODEL --tokens @tokens.json --kind knock-out --out edges.parquet
///
/// One row per head: the metric with the head ablated (value) and without (baseline).
#[derive(Args)]
pub struct Ablate {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    prompts: PromptArguments,
    #[command(flatten)]
    source: SourceArguments,
    /// What replaces the activation: zero, its mean over the prompts, or its value on another prompt; or knock-out,
    /// which cuts attention edges
    #[arg(long, value_enum, default_value_t = Kind::Zero)]
    kind: Kind,
    #[command(flatten)]
    each: EachArguments,
    #[command(flatten)]
    metric: MetricArguments,
    /// Prompts to take means over and to resample from, instead of the prompts themselves
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    reference: Vec<String>,
    /// Seed of the resampling; by default 0
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Kind {
    Zero,
    Mean,
    Resample,
    KnockOut,
}

impl Ablate {
    pub fn run(&self) -> Result<()> {
        self.check()?;
        let _reserved = self.output.begin()?;
        let model = self.model.load()?;
        let tokens = self.source.read_before(self.prompts.tokens(&model)?, &model)?;
        let reference = (!self.reference.is_empty()).then(|| model.tokens(&self.reference)).transpose()?;
        let sweep = match self.ablation() {
            Some(ablation) => Sweep::ablate(&model, &tokens, ablation),
            None => Sweep::knock_out(&model, &tokens),
        };
        let sweep = self.each.apply(sweep, self.kind == Kind::KnockOut, model.config(), &tokens)?;
        let mut sweep = sweep.metric(self.metric.metric(&model)?);
        if let Some(reference) = &reference {
            sweep = sweep.reference(reference);
        }
        self.output.finish(sweep)
    }

    /// Rejects options that would have no effect.
    fn check(&self) -> Result<()> {
        if self.seed.is_some() && self.kind != Kind::Resample {
            bail!("--seed: expected --kind resample with it");
        }
        if !self.reference.is_empty() && matches!(self.kind, Kind::Zero | Kind::KnockOut) {
            bail!("--reference: expected --kind mean or resample with it");
        }
        self.each.site()?;
        Ok(())
    }

    /// The kind of ablation; `None` for a knock-out.
    fn ablation(&self) -> Option<Ablation> {
        match self.kind {
            Kind::Zero => Some(Ablation::Zero),
            Kind::Mean => Some(Ablation::Mean),
            Kind::Resample => Some(Ablation::Resample { seed: self.seed.unwrap_or(0) }),
            Kind::KnockOut => None,
        }
    }
}
