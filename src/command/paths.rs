//! `headscope paths`

use anyhow::Result;
use clap::{Args, ValueEnum};
use headscope::intervene::{Input, Node};
use headscope::model::Model;

use super::ModelArguments;
use super::metric::MetricArguments;
use super::output::TableArguments;
use super::patch::{Direction, prompts};

/// Path patching: which part of the model tells which? Every sender against every receiver behind it, exactly.
///
/// Example: headscope paths MODEL --clean @clean.json --corrupt @corrupt.json --from head --to query,logits
/// --metric logit-difference --answers @pairs.json --out paths.parquet
#[derive(Args)]
pub struct Paths {
    #[command(flatten)]
    model: ModelArguments,
    /// Clean prompts: a JSON list of texts, or of lists of token ids, or @FILE with one
    #[arg(long, value_name = "JSON|@FILE")]
    clean: String,
    /// Corrupted prompts, as many and as long
    #[arg(long, value_name = "JSON|@FILE")]
    corrupt: String,
    /// The senders: every head, MLP, or the embeddings
    #[arg(long, value_enum, value_delimiter = ',', default_value = "head")]
    from: Vec<From>,
    /// The receivers: every head's queries, keys or values, every MLP, the logits
    #[arg(long, value_enum, value_delimiter = ',', default_value = "logits")]
    to: Vec<To>,
    /// Only senders and receivers of these layers (and the embeddings, and the logits)
    #[arg(long, value_delimiter = ',', value_name = "LAYER")]
    layers: Vec<usize>,
    /// MLPs between sender and receiver write what they write in the unpatched run
    #[arg(long)]
    frozen_mlps: bool,
    /// The clean run with corrupted senders (noise), or the other way round (denoise)
    #[arg(long, value_enum, default_value_t = Direction::Noise)]
    direction: Direction,
    #[command(flatten)]
    metric: MetricArguments,
    /// Put the metric on the scale from the corrupted run (0) to the clean one (1)
    #[arg(long)]
    normalised: bool,
    /// One row a pair and prompt, in place of the mean over prompts
    #[arg(long)]
    per_prompt: bool,
    /// Largest memory for stacked activations, in MiB; a quarter of what is free, unless said otherwise
    #[arg(long, value_name = "MIB")]
    memory: Option<usize>,
    #[command(flatten)]
    table: TableArguments,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum From {
    Embed,
    Head,
    Mlp,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum To {
    Query,
    Key,
    Value,
    Mlp,
    Logits,
}

impl Paths {
    pub fn run(&self) -> Result<()> {
        use headscope::intervene::Paths;
        self.table.check()?;
        let model = self.model.load()?;
        let (clean, corrupt) = (prompts(&model, &self.clean, "--clean")?, prompts(&model, &self.corrupt, "--corrupt")?);
        let paths = match self.direction {
            Direction::Denoise => Paths::patch(&model, &clean, &corrupt),
            Direction::Noise => Paths::noise(&model, &clean, &corrupt),
        };
        let mut paths = paths.senders(self.senders(&model)).receivers(self.receivers(&model));
        paths = paths.metric(self.metric.metric(&model)?);
        paths = if self.frozen_mlps { paths.frozen_mlps() } else { paths };
        paths = if self.normalised { paths.normalised() } else { paths };
        paths = if self.per_prompt { paths.per_prompt() } else { paths };
        if let Some(mib) = self.memory {
            paths = paths.memory(mib.saturating_mul(1 << 20));
        }
        self.table.finish(&paths.run()?)
    }

    fn senders(&self, model: &Model) -> Vec<Node> {
        let asked = |node: &Node| match node {
            Node::Embed => self.from.contains(&From::Embed),
            Node::Head { layer, .. } => self.from.contains(&From::Head) && self.has(*layer),
            Node::Mlp { layer } => self.from.contains(&From::Mlp) && self.has(*layer),
        };
        Node::all(model).into_iter().filter(asked).collect()
    }

    fn receivers(&self, model: &Model) -> Vec<Input> {
        let asked = |input: &Input| match input {
            Input::Query { layer, .. } => self.to.contains(&To::Query) && self.has(*layer),
            Input::Key { layer, .. } => self.to.contains(&To::Key) && self.has(*layer),
            Input::Value { layer, .. } => self.to.contains(&To::Value) && self.has(*layer),
            Input::Mlp { layer } => self.to.contains(&To::Mlp) && self.has(*layer),
            Input::Logits => self.to.contains(&To::Logits),
        };
        Input::all(model).into_iter().filter(asked).collect()
    }

    fn has(&self, layer: usize) -> bool {
        self.layers.is_empty() || self.layers.contains(&layer)
    }
}
