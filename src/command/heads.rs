//! `headscope heads`: what does every head attend to, and which heads are alike?

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use headscope::heads::{PatternOptions, PatternScore, Repeats, Similarity, head_scores, pattern_scores, similarity};
use headscope::table::Table;

use super::output::reserve;
use super::{ModelArguments, PromptArguments};

/// Score what every head attends to, one row per head and score.
///
/// Example: headscope heads minilm --text "The cat sat." "A dog ran." --out heads.parquet
///
/// value: mean over the prompts; baseline: the same for uniform attention over all keys; low, high: bootstrap interval
/// over prompts; z_score: distance from the baseline in standard deviations of shuffled attention. prefix_matching and
/// copying are measured on repeated random tokens, not on the prompts.
#[derive(Args)]
pub struct Heads {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    prompts: PromptArguments,
    /// Compare every pair of heads on the prompts instead of scoring them
    #[arg(long, value_enum)]
    similarity: Option<HeadMeasure>,
    /// Scores, separated by commas: previous_token, back_3, induction, ...; by default all
    #[arg(long, value_delimiter = ',', conflicts_with = "similarity")]
    scores: Vec<String>,
    /// Number of prompts of repeated random tokens; 0 for none
    #[arg(long, default_value_t = Repeats::default().prompts, conflicts_with = "similarity")]
    repeats: usize,
    /// Tokens in the repeated block; by default 25, or fewer if two blocks of 25 would not fit in the context
    #[arg(long, conflicts_with = "similarity")]
    repeat_length: Option<usize>,
    /// Seed of the random tokens and of the intervals
    #[arg(long, default_value_t = 0, conflicts_with = "similarity")]
    seed: u64,
    /// Rows to print for each score, largest value first
    #[arg(long, default_value_t = 3)]
    top: usize,
    /// The file to write: .parquet, .csv or .json
    #[arg(long, value_name = "TABLE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum HeadMeasure {
    /// Jensen-Shannon divergence of their patterns over ln 2: 0 is the same
    JensenShannon,
    /// Linear CKA of the head outputs: 1 is the same up to rotation and scale
    Cka,
    /// Mean canonical correlation of z: 1 is the same up to a linear map
    Cca,
}

impl Heads {
    pub fn run(&self) -> Result<()> {
        let _reserved = reserve(self.out.as_deref())?;
        let scores = self.scores.iter().map(|name| name.trim().parse()).collect::<Result<Vec<PatternScore>, _>>()?;
        let model = self.model.load()?;
        let tokens = self.prompts.tokens(&model)?;
        let table = match self.similarity {
            Some(HeadMeasure::JensenShannon) => similarity(&model, &tokens, Similarity::JensenShannon)?,
            Some(HeadMeasure::Cka) => similarity(&model, &tokens, Similarity::Cka)?,
            Some(HeadMeasure::Cca) => similarity(&model, &tokens, Similarity::Cca)?,
            None => {
                let mut options = PatternOptions { seed: self.seed, ..PatternOptions::default() };
                if !scores.is_empty() {
                    options.scores = scores;
                }
                let length = self.repeat_length.unwrap_or_else(|| (model.config().n_positions / 2).clamp(4, 27) - 2);
                let repeats = Repeats { prompts: self.repeats, length, seed: self.seed, ..Repeats::default() };
                match self.repeats {
                    0 => pattern_scores(&model, &tokens, &options)?,
                    _ => head_scores(&model, &tokens, &repeats, &options)?,
                }
            }
        };
        show(&table, self.top)?;
        if let Some(out) = &self.out {
            table.write(out)?;
            println!("all of them written to {}", out.display());
        }
        Ok(())
    }
}

/// Prints the heads (or pairs of heads) with the largest values for each metric, and the baseline.
fn show(table: &Table, top: usize) -> Result<()> {
    let leading = table.leading(top)?;
    let metrics = leading.frame().column("metric")?.str()?.clone();
    let columns = leading.columns();
    let column = |name: &str| if columns.iter().any(|column| column == name) { leading.f64(name) } else { Ok(vec![]) };
    let (values, baselines) = (column("value")?, column("baseline")?);
    let (from, layers, heads) = ([column("from_layer")?, column("from_head")?], column("layer")?, column("head")?);
    println!("the {top} of largest value, as layer.head value; all of {} rows: --out TABLE", table.len());
    let mut last = None;
    for row in 0..leading.len() {
        let metric = metrics.get(row);
        if last != Some(metric) {
            let baseline = baselines.get(row).filter(|value| value.is_finite());
            let baseline = baseline.map_or(String::new(), |value| format!("(baseline {value:.3})"));
            print!("{}{:<16} {baseline:<18}", if row == 0 { "" } else { "\n" }, metric.unwrap_or_default());
            last = Some(metric);
        }
        let pair = from[0].get(row).zip(from[1].get(row)).map_or(String::new(), |(l, h)| format!("{l}.{h} with "));
        print!("  {pair}{}.{} {:.3}", layers[row], heads[row], values[row]);
    }
    println!();
    Ok(())
}
