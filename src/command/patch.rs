//! `headscope patch`

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::{Every, Sweep};
use headscope::model::{Axis, Model, Site, Tokens};

use super::metric::MetricArguments;
use super::output::OutputArguments;
use super::{ModelArguments, json};

/// Patch activations of one run into another and tabulate what becomes of a metric.
///
/// Example: headscope patch MODEL --clean @clean.json --corrupt @corrupt.json --site resid_pre --each position
/// --metric logit-difference --answers @pairs.json --normalised --out effects.parquet
#[derive(Args)]
pub struct Patch {
    #[command(flatten)]
    model: ModelArguments,
    /// Clean prompts: a JSON list of texts, or of lists of token ids, or @FILE with one
    #[arg(long, value_name = "JSON|@FILE")]
    clean: String,
    /// Corrupted prompts, as many and as long
    #[arg(long, value_name = "JSON|@FILE")]
    corrupt: String,
    /// The site to patch in every layer: resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, q, k, v, pattern, ...
    #[arg(long, default_value = "z")]
    site: String,
    /// One row for each: layer, head, position, or head,position; head where the site has heads, unless said otherwise
    #[arg(long, value_enum, value_delimiter = ',')]
    each: Vec<Each>,
    /// Clean activations into the corrupted run (denoise), or the other way round (noise)
    #[arg(long, value_enum, default_value_t = Direction::Denoise)]
    direction: Direction,
    #[command(flatten)]
    metric: MetricArguments,
    /// Put the metric on the scale from the corrupted run (0) to the clean one (1)
    #[arg(long)]
    normalised: bool,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Each {
    Layer,
    Head,
    Position,
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

    /// Builds the sweep and hands it on.
    pub fn run_with(&self, finish: impl Fn(Sweep<'_>, &OutputArguments) -> Result<()>) -> Result<()> {
        // The site's name, without a layer, decides the sites of all layers.
        let site: Site = self.site.parse().or_else(|_| format!("{}.0", self.site).parse())?;
        self.output.check()?;
        let model = self.model.load()?;
        let (clean, corrupt) = (prompts(&model, &self.clean, "--clean")?, prompts(&model, &self.corrupt, "--corrupt")?);
        let sweep = match self.direction {
            Direction::Denoise => Sweep::patch(&model, &clean, &corrupt),
            Direction::Noise => Sweep::noise(&model, &clean, &corrupt),
        };
        let mut sweep = sweep.each(|layer| site.at_layer(layer), self.every(site)?).metric(self.metric.metric(&model)?);
        if self.normalised {
            sweep = sweep.normalised();
        }
        finish(sweep, &self.output)
    }

    fn every(&self, site: Site) -> Result<Every> {
        if self.each.is_empty() {
            let headed = site.axes().iter().any(|axis| matches!(axis, Axis::Head | Axis::KvHead));
            return Ok(if headed { Every::Head } else { Every::Layer });
        }
        let has = |each| self.each.contains(&each);
        Ok(match (has(Each::Layer), has(Each::Head), has(Each::Position)) {
            (_, true, true) => Every::HeadPosition,
            (_, true, false) => Every::Head,
            (_, false, true) => Every::Position,
            (true, false, false) => Every::Layer,
            (false, false, false) => bail!("--each: expected layer, head, position, or head,position"),
        })
    }
}

/// Prompts given as texts or as token ids.
pub fn prompts(model: &Model, given: &str, name: &str) -> Result<Tokens> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Prompts {
        Ids(Vec<Vec<i64>>),
        Texts(Vec<String>),
    }
    Ok(match json(given, name, "a JSON list of texts, or of lists of token ids")? {
        Prompts::Ids(rows) => Tokens::new(&rows)?,
        Prompts::Texts(texts) => model.tokens(&texts)?,
    })
}
