//! `headscope circuits`: what do the weights of the heads say?

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::circuits::{Circuit, Circuits, Composition, Linkage, Measure, Null, NullOptions, Offset};
use headscope::heads::{CircuitOptions, Cut, TruncationOptions, truncation_costs};
use headscope::model::{Model, Position, Tokens};
use headscope::table::Table;

use super::output::reserve;
use super::{ModelArguments, OptionalPrompts};

/// Analyse the weights of all heads: spectra, composition, similarity, copying, truncation. The model is not run,
/// except for --truncate with prompts.
///
/// Example: headscope circuits openai-community/gpt2 --composition k --out k.parquet
///
/// Example: headscope circuits minilm --truncate qk --ranks 1,2,4,8 --together --text "The cat sat." "A dog ran."
///
/// A checkpoint with attention weights only is enough, except for --copying and for the cost of --truncate on prompts.
#[derive(Args)]
pub struct CircuitsCommand {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    question: CircuitQuestion,
    /// Ranks to truncate to, separated by commas [default: the powers of two up to the heads' width]
    #[arg(long, value_name = "RANKS", value_delimiter = ',', requires = "truncate")]
    ranks: Vec<usize>,
    /// Truncate all heads at once
    #[arg(long, requires = "truncate")]
    together: bool,
    /// Keep random directions, drawn with this seed, instead of the best ones
    #[arg(long, value_name = "SEED", requires = "truncate")]
    random: Option<u64>,
    /// Prompts on which to measure the cost of a truncation: the loss or, without logits, how far the embedding moves
    #[command(flatten)]
    prompts: OptionalPrompts,
    /// Leave the norms' weights and centring out of the circuits, instead of folding them in
    #[arg(long)]
    raw: bool,
    /// Number of positions from the key to the query, by default 0; only with rotary positions
    #[arg(long, value_name = "N", conflicts_with = "mean_offset")]
    offset: Option<i64>,
    /// Average QK circuits over offsets 0 to N - 1; only with rotary positions
    #[arg(long, value_name = "N")]
    mean_offset: Option<u32>,
    /// What to compare spectra with: normal entries, or the head's own entries in random order
    #[arg(long, value_enum)]
    null: Option<NullKind>,
    /// Seed of the comparison; by default 0
    #[arg(long)]
    seed: Option<u64>,
    /// Rows to print, largest z-score first
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// The file to write: .parquet, .csv or .json
    #[arg(long, value_name = "TABLE")]
    out: Option<PathBuf>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct CircuitQuestion {
    /// The spectrum of every head's circuit, and its effective dimensions
    #[arg(long, value_enum, value_name = "CIRCUIT")]
    svd: Option<Which>,
    /// How much of each head's output the queries, keys or values of each later head read
    #[arg(long, value_enum, value_name = "INPUT")]
    composition: Option<Input>,
    /// How alike each pair of heads is: subspaces read and written, circuits
    #[arg(long)]
    similarity: bool,
    /// How much each head raises the logits of the tokens that it attends to
    #[arg(long)]
    copying: bool,
    /// What each head loses at lower ranks (Eckart-Young) and, with prompts, what that costs the model
    #[arg(long, value_enum, value_name = "CIRCUIT")]
    truncate: Option<Which>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Which {
    Qk,
    Ov,
}

impl Which {
    fn circuit(self, offset: Offset) -> Circuit {
        match self {
            Self::Qk => Circuit::Qk(offset),
            Self::Ov => Circuit::Ov,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Input {
    Q,
    K,
    V,
}

#[derive(Clone, Copy, ValueEnum)]
enum NullKind {
    Gaussian,
    Shuffled,
}

impl CircuitsCommand {
    pub fn run(&self) -> Result<()> {
        self.check()?;
        let _reserved = reserve(self.out.as_deref())?;
        let model = self.model.load()?;
        let offset = self.offset(&model)?;
        let options = CircuitOptions { fold_norms: !self.raw, centre_writing: !self.raw };
        if self.question.copying {
            return self.finish(&model.copying(&[1, 5], &options)?, "value");
        }
        if let (Some(which), Some(prompts)) = (self.question.truncate, &self.prompts.0) {
            return self.costs(which, &model, &prompts.tokens(&model)?);
        }
        let circuits = model.circuits(&options)?;
        if let Some(which) = self.question.truncate {
            let table = circuits.truncation(which.circuit(offset), &self.ranks(&model), &self.null())?;
            return self.finish(&table, "value");
        }
        if let Some(which) = self.question.svd {
            return self.finish(&circuits.svd(which.circuit(offset), &self.null())?, "z_score");
        }
        if let Some(input) = self.question.composition {
            let kind = match input {
                Input::Q => Composition::Q,
                Input::K => Composition::K,
                Input::V => Composition::V,
            };
            return self.finish(&circuits.composition(kind, offset)?, "z_score");
        }
        println!("Overlap of the heads of a layer (value), and of random subspaces (baseline):");
        println!("{}", circuits.redundancy()?);
        for measure in [Measure::QkCosine, Measure::OvCosine] {
            println!("Tree of the heads by {}: {}", measure.name(), tree(&circuits, measure, offset)?);
        }
        self.finish(&circuits.similarities(offset)?, "z_score")
    }

    /// Rejects options that would have no effect.
    fn check(&self) -> Result<()> {
        let CircuitQuestion { svd, composition, similarity, truncate, .. } = &self.question;
        let (prompts, costs) = (self.prompts.0.is_some(), self.together || self.random.is_some());
        if (self.null.is_some() || self.seed.is_some()) && svd.is_none() && (truncate.is_none() || prompts) {
            bail!("--null, --seed: expected --svd with them, or --truncate without prompts");
        }
        if prompts && truncate.is_none() {
            bail!("--text, --text-file, --tokens: expected --truncate with them");
        }
        if costs && !prompts {
            bail!("--together, --random: expected prompts on which to measure the cost");
        }
        if prompts && (self.raw || self.offset.is_some() || self.mean_offset.is_some()) {
            bail!(
                "--raw, --offset, --mean-offset: expected no prompts; the cost is of norms folded in, at all their offsets"
            );
        }
        let reads_qk = matches!(svd.or(*truncate), Some(Which::Qk))
            || matches!(composition, Some(Input::Q | Input::K))
            || *similarity;
        if (self.offset.is_some() || self.mean_offset.is_some()) && !reads_qk {
            bail!("--offset, --mean-offset: expected a question about QK circuits with them");
        }
        Ok(())
    }

    /// The requested ranks; by default powers of two.
    fn ranks(&self, model: &Model) -> Vec<usize> {
        let usual = (0..).map(|power| 1 << power).take_while(|&rank| rank <= model.config().d_head);
        if self.ranks.is_empty() { usual.collect() } else { self.ranks.clone() }
    }

    /// The cost of a truncation for the model.
    fn costs(&self, which: Which, model: &Model, tokens: &Tokens) -> Result<()> {
        let cut = match which {
            Which::Qk => Cut::Qk,
            Which::Ov => Cut::Ov,
        };
        let (ranks, together, random) = (self.ranks.clone(), self.together, self.random);
        let options = TruncationOptions { cut, ranks, together, random, metric: None };
        self.finish(&truncation_costs(model, tokens, &options)?, "value")
    }

    fn offset(&self, model: &Model) -> Result<Offset> {
        let given = match (self.offset, self.mean_offset) {
            (Some(offset), _) => Offset::At(offset),
            (None, Some(n)) => Offset::Mean(n),
            (None, None) => return Ok(Offset::default()),
        };
        if !matches!(model.config().position, Position::Rotary { .. }) {
            bail!(
                "--offset, --mean-offset: expected a model with rotary positions, found {}",
                model.config().position.name()
            );
        }
        let context = model.config().n_positions;
        if let Some(n) = self.mean_offset.filter(|&n| n as usize > context) {
            bail!("--mean-offset: expected at most {context} offsets, as many as the context has, found {n}");
        }
        Ok(given)
    }

    fn null(&self) -> NullOptions {
        let null = match self.null {
            Some(NullKind::Shuffled) => Null::Shuffled,
            Some(NullKind::Gaussian) | None => Null::Gaussian,
        };
        NullOptions { null, seed: self.seed.unwrap_or(0), ..NullOptions::default() }
    }

    /// Prints the rows with the largest `column` and writes the table.
    fn finish(&self, table: &Table, column: &str) -> Result<()> {
        println!("{}", table.largest(column, self.top)?);
        println!("the {} of {} rows with the largest {column}", self.top.min(table.len()), table.len());
        if let Some(out) = &self.out {
            table.write(out)?;
            println!("all of them written to {}", out.display());
        }
        Ok(())
    }
}

/// The dendrogram of all heads as text.
fn tree(circuits: &Circuits, measure: Measure, offset: Offset) -> Result<String> {
    let names: Vec<String> = circuits.heads().iter().map(|head| format!("{}.{}", head.layer, head.head)).collect();
    Ok(circuits.similarity(measure, offset)?.dendrogram(Linkage::Average)?.newick(&names)?)
}
