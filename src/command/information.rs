//! `headscope information`: what does every head tell about tokens, positions, roles and other heads?

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::Error;
use headscope::heads::{
    HeadEstimator, InformationOptions, Source, Target, TokenLabels, head_information, layer_information,
    pair_information, rank_survival, read_conllu, read_gap, token_roles,
};
use headscope::information::Certainty;
use headscope::model::{Model, Tokens};
use headscope::table::{Observation, Table};

use super::output::reserve;
use super::{ModelArguments, PromptArguments};

/// Estimate what every head tells about tokens, positions, roles and other heads, in nats.
///
/// Example: headscope information minilm --text-file prompts.txt --target previous-token,position --out information.parquet
///
/// One row per head (and layer), source and target. vinfo: what a linear probe can use, on held-out samples; vinfo-mlp: the same
/// for a small network. ksg, gaussian, infonce, nwj, mine: mutual information with the source, scaled to a mean power of 1 per
/// dimension, plus Gaussian noise. Rows of metric `capacity` hold the most that this many dimensions carry with this noise, rows
/// of metric `entropy` all there is to know. low, high: interval; warnings: reasons to doubt the value.
#[derive(Args)]
#[command(mut_group("PromptArguments", |group| group.required(false)))]
pub struct Information {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    prompts: Option<PromptArguments>,
    /// Universal Dependencies instead of prompts: the texts, with each word's relation as its role
    #[arg(long, value_name = "FILE", conflicts_with = "PromptArguments")]
    conllu: Option<PathBuf>,
    /// GAP instead of prompts: the texts
    #[arg(long, value_name = "FILE.tsv", conflicts_with_all = ["PromptArguments", "conllu"])]
    gap: Option<PathBuf>,
    /// What to ask
    #[arg(long, value_enum, default_value_t = Ask::Heads)]
    ask: Ask,
    /// Which activations of a head, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "z", value_parser = Source::NAMES.to_vec())]
    source: Vec<String>,
    /// What they may tell about, separated by commas; role needs --conllu
    #[arg(long, value_delimiter = ',', default_value = "previous-token,current-token,next-token,position", value_parser = Target::NAMES.to_vec())]
    target: Vec<String>,
    /// The estimator
    #[arg(long, default_value = "vinfo", value_parser = HeadEstimator::NAMES)]
    estimator: String,
    /// Numbers of leading principal coordinates to use, separated by commas, a row for each; by default all (4 for ksg)
    #[arg(long, value_delimiter = ',')]
    dimensions: Vec<usize>,
    /// Standard deviation of the noise; by default 0 for vinfo and vinfo-mlp, 0.5 for the others
    #[arg(long)]
    noise: Option<f64>,
    /// The most labels of a target: the most frequent tokens, or ranges of positions
    #[arg(long, default_value_t = InformationOptions::default().classes)]
    classes: usize,
    /// The most positions to use
    #[arg(long, default_value_t = InformationOptions::default().samples)]
    samples: usize,
    /// For --target head: the head to compare with; by default every other head of the same layer
    #[arg(long, value_name = "LAYER.HEAD")]
    other: Option<String>,
    /// Leave out whole layers
    #[arg(long)]
    only_heads: bool,
    /// Shuffles of the labels for a p-value; 0 for none
    #[arg(long, default_value_t = 0)]
    permutations: usize,
    /// Confidence level of the intervals
    #[arg(long, default_value_t = 0.95)]
    level: f64,
    /// Seed of all random draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Rows to print for each target (and metric), largest values first
    #[arg(long, default_value_t = 5)]
    top: usize,
    /// The file to write: .parquet, .csv or .json
    #[arg(long, value_name = "TABLE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Ask {
    /// What each head and each layer tells about each target
    Heads,
    /// What the heads of a layer share: total correlation, and redundancy minus synergy
    Layers,
    /// What two heads of a layer tell about a target: both the same, each alone, or only together
    Pairs,
    /// What survives of each target in a head's projection of its input, compared with the best projections to k dimensions
    Ranks,
}

impl Information {
    pub fn run(&self) -> Result<()> {
        let _reserved = reserve(self.out.as_deref())?;
        let mut options = self.options()?;
        let model = self.model.load()?;
        let (tokens, labels) = self.tokens(&model)?;
        options.labels = labels;
        let table = match self.ask {
            Ask::Heads => head_information(&model, &tokens, &options)?,
            Ask::Layers => layer_information(&model, &tokens, &options)?,
            Ask::Pairs => pair_information(&model, &tokens, &options)?,
            Ask::Ranks => rank_survival(&model, &tokens, &options)?,
        };
        show(&table, self.top)?;
        if let Some(out) = &self.out {
            table.write(out)?;
            println!("all {} rows written to {}", table.len(), out.display());
        }
        Ok(())
    }

    fn options(&self) -> Result<InformationOptions> {
        let estimator: HeadEstimator = match self.estimator.parse()? {
            HeadEstimator::Neural(mut options) => {
                options.device = headscope::device::parse(&self.model.device)?;
                HeadEstimator::Neural(options)
            }
            other => other,
        };
        let options = InformationOptions {
            sources: self.source.iter().map(|name| name.parse()).collect::<Result<Vec<Source>, _>>()?,
            targets: self.target.iter().map(|name| name.parse()).collect::<Result<Vec<Target>, _>>()?,
            estimator,
            dimensions: self.dimensions.clone(),
            noise: self.noise,
            classes: self.classes,
            samples: self.samples,
            other: self.other.as_deref().map(pair).transpose()?,
            labels: None,
            layers: !self.only_heads,
            certainty: Certainty { level: self.level, permutations: self.permutations, ..Certainty::default() },
            seed: self.seed,
        };
        if options.targets.contains(&Target::Role) && self.conllu.is_none() {
            bail!(misuse("--target role", "annotated texts, --conllu FILE", "none"));
        }
        Ok(options)
    }

    /// The prompts, and the role of each token if they are annotated.
    fn tokens(&self, model: &Model) -> Result<(Tokens, Option<TokenLabels>)> {
        if let Some(prompts) = &self.prompts {
            return Ok((prompts.tokens(model)?, None));
        }
        let texts = match (&self.conllu, &self.gap) {
            (Some(path), _) => read_conllu(path)?,
            (_, Some(path)) => read_gap(path)?,
            _ => bail!(misuse("prompts", "one of --text, --text-file, --tokens, --conllu, --gap", "none")),
        };
        let (tokens, labels) = token_roles(model, &texts)?;
        Ok((tokens, Some(labels)))
    }
}

/// The error for a wrong call.
fn misuse(name: &'static str, expected: &str, found: &str) -> Error {
    Error::Argument { name, expected: expected.to_owned(), found: found.to_owned() }
}

/// Parses LAYER.HEAD.
fn pair(text: &str) -> Result<(usize, usize)> {
    match text.split_once('.').map(|(layer, head)| (layer.parse(), head.parse())) {
        Some((Ok(layer), Ok(head))) => Ok((layer, head)),
        _ => bail!(misuse("--other", "LAYER.HEAD, such as 0.3", text)),
    }
}

/// Prints the rows with the largest values, for each metric and target.
fn show(table: &Table, top: usize) -> Result<()> {
    let rows = table.leading(top)?.rows()?;
    let same = |a: &Observation, b: &Observation| (&a.metric, &a.keys.task) == (&b.metric, &b.keys.task);
    for group in rows.chunk_by(same).filter(|group| group[0].metric != "capacity") {
        println!("{} {}", group[0].metric, group[0].keys.task.as_deref().unwrap_or_default());
        for row in group {
            let interval =
                row.low.zip(row.high).map_or(String::new(), |(low, high)| format!(" ({low:.3} to {high:.3})"));
            let warnings = row.warnings.as_ref().map_or(String::new(), |warnings| format!("  ! {warnings}"));
            println!("  {:<24} {:>8.4}{interval}{warnings}", place(row), row.value);
        }
    }
    let flagged = table.rows()?.iter().filter(|row| row.warnings.is_some()).count();
    let unit = if rows.iter().any(|row| row.metric.starts_with("survival")) { "shares of variance" } else { "in nats" };
    println!("{unit}; {flagged} of {} rows carry a warning", table.len());
    Ok(())
}

/// What a row is about, such as `z 3.7 with 3.2 in 4`.
fn place(row: &Observation) -> String {
    let keys = &row.keys;
    let Some(layer) = keys.layer else { return "all there is to know".to_owned() };
    let mut text = keys.site.clone().unwrap_or_default();
    match keys.head {
        Some(head) => text += &format!(" {layer}.{head}"),
        None => text += &format!(" layer {layer}"),
    }
    if let (Some(layer), Some(head)) = (keys.from_layer, keys.from_head) {
        text += &format!(" with {layer}.{head}");
    }
    keys.dimension.map_or(text.clone(), |k| format!("{text} in {k}"))
}
