//! `headscope patch`: which activations carry the difference between two runs?

use anyhow::Result;
use clap::{Args, ValueEnum};
use headscope::intervene::Sweep;
use headscope::model::{Model, Tokens};
use headscope::text::prompts::{Prompt, tokens};

use super::each::EachArguments;
use super::metric::MetricArguments;
use super::output::OutputArguments;
use super::{ModelArguments, json};

/// Patch activations of one run into another and tabulate the effect on a metric.
///
/// Example: headscope patch MODEL --clean @clean.json --corrupt @corrupt.json --site resid_pre --each position --metric
/// logit-difference --answers @pairs.json --normalised --out effects.parquet
#[derive(Args)]
pub struct Patch {
    #[command(flatten)]
    model: ModelArguments,
    /// Clean prompts: a JSON list of texts or of lists of token ids, or @FILE with such a list
    #[arg(long, value_name = "JSON|@FILE")]
    clean: String,
    /// Corrupted prompts, equal in number and length
    #[arg(long, value_name = "JSON|@FILE")]
    corrupt: String,
    /// For an encoder-decoder: what its encoder reads for each clean prompt
    #[arg(long, value_name = "JSON|@FILE", requires = "corrupt_source")]
    clean_source: Option<String>,
    /// For an encoder-decoder: what its encoder reads for each corrupted prompt
    #[arg(long, value_name = "JSON|@FILE", requires = "clean_source")]
    corrupt_source: Option<String>,
    #[command(flatten)]
    each: EachArguments,
    /// Patch clean activations into the corrupted run (denoise), or the other way round (noise)
    #[arg(long, value_enum, default_value_t = Direction::Denoise)]
    direction: Direction,
    #[command(flatten)]
    metric: MetricArguments,
    /// Rescale the metric so that the corrupted run is 0 and the clean run is 1
    #[arg(long)]
    normalised: bool,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Direction {
    Denoise,
    Noise,
}

impl Patch {
    pub fn run(&self) -> Result<()> {
        self.run_with(|sweep, output| output.finish(sweep))
    }

    /// Builds the sweep and passes it to `finish`.
    pub fn run_with(&self, finish: impl Fn(Sweep<'_>, &OutputArguments) -> Result<()>) -> Result<()> {
        self.each.site()?;
        let _reserved = self.output.begin()?;
        let model = self.model.load()?;
        let read = |given: &str, name: &str, source: &Option<String>, source_name: &str| {
            let tokens = prompts(&model, given, name)?;
            let Some(source) = source else { return Ok(tokens) };
            Ok::<_, anyhow::Error>(tokens.with_source(prompts(&model, source, source_name)?)?)
        };
        let clean = read(&self.clean, "--clean", &self.clean_source, "--clean-source")?;
        let corrupt = read(&self.corrupt, "--corrupt", &self.corrupt_source, "--corrupt-source")?;
        let sweep = match self.direction {
            Direction::Denoise => Sweep::patch(&model, &clean, &corrupt),
            Direction::Noise => Sweep::noise(&model, &clean, &corrupt),
        };
        let sweep = self.each.apply(sweep, false, model.config(), &clean)?;
        let mut sweep = sweep.metric(self.metric.metric(&model)?);
        if self.normalised {
            sweep = sweep.normalised();
        }
        finish(sweep, &self.output)
    }
}

/// Prompts given as texts or as token ids.
pub fn prompts(model: &Model, given: &str, name: &str) -> Result<Tokens> {
    let prompts: Vec<Prompt> = json(given, name, "a JSON list of texts, or of lists of token ids")?;
    Ok(tokens(model, &prompts)?)
}
