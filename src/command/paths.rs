//! `headscope paths`: which part of the model affects which?

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::{Estimate, Input, Node};
use headscope::model::Model;

use super::ModelArguments;
use super::metric::MetricArguments;
use super::output::OutputArguments;
use super::patch::{Direction, prompts};

/// Path patching: which part of the model affects which? Every sender to every later receiver, exactly; or the direct
/// paths estimated from gradients (EAP, EAP-IG).
///
/// Example: headscope paths MODEL --clean @clean.json --corrupt @corrupt.json --from head --to query,logits --metric
/// logit-difference --answers @pairs.json --out paths.parquet
///
/// Estimates, with exact values for the 20 largest: headscope paths MODEL --clean @clean.json --corrupt @corrupt.json
/// --from head,mlp --to query,key,value,mlp,logits --method eap-ig --frozen-mlps --exact 20 --out edges.parquet
#[derive(Args)]
pub struct Paths {
    #[command(flatten)]
    model: ModelArguments,
    /// Clean prompts: a JSON list of texts or of lists of token ids, or @FILE with such a list
    #[arg(long, value_name = "JSON|@FILE")]
    clean: String,
    /// Corrupted prompts, equal in number and length
    #[arg(long, value_name = "JSON|@FILE")]
    corrupt: String,
    /// The senders: every head, every MLP, or the embeddings
    #[arg(long, value_enum, value_delimiter = ',', default_value = "head")]
    from: Vec<From>,
    /// The receivers: every head's queries, keys or values, every MLP, or the logits
    #[arg(long, value_enum, value_delimiter = ',', default_value = "logits")]
    to: Vec<To>,
    /// Only senders and receivers in these layers (besides the embeddings and the logits)
    #[arg(long, value_delimiter = ',', value_name = "LAYER")]
    layers: Vec<usize>,
    /// Keep the output of every MLP between sender and receiver as in the unpatched run
    #[arg(long)]
    frozen_mlps: bool,
    /// Corrupt senders in the clean run (noise), or restore clean senders in the corrupted run (denoise)
    #[arg(long, value_enum, default_value_t = Direction::Noise)]
    direction: Direction,
    #[command(flatten)]
    metric: MetricArguments,
    /// Rescale the metric so that the corrupted run is 0 and the clean run is 1
    #[arg(long)]
    normalised: bool,
    /// How to compute the effects: exactly, or estimated from gradients (attribution, or integrated gradients over
    /// --steps), which requires --frozen-mlps
    #[arg(long, value_enum, default_value_t = Method::Exact)]
    method: Method,
    /// Steps of integrated gradients [default: 5]
    #[arg(long)]
    steps: Option<usize>,
    /// Also compute this many of the largest estimates exactly
    #[arg(long, default_value_t = 0, value_name = "N")]
    exact: usize,
    #[command(flatten)]
    output: OutputArguments,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Method {
    Exact,
    Eap,
    EapIg,
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
        let estimate = self.estimate()?;
        let _reserved = self.output.begin()?;
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
        match estimate {
            Some(estimate) => self.output.finish_estimate(paths.estimate(estimate).exact(self.exact)),
            None => self.output.finish(paths),
        }
    }

    /// The estimator; `None` if the paths are computed exactly.
    fn estimate(&self) -> Result<Option<Estimate>> {
        if self.steps.is_some() && self.method != Method::EapIg {
            bail!("--steps: expected --method eap-ig with it");
        }
        if self.exact > 0 && self.method == Method::Exact {
            bail!("--exact: expected --method eap or eap-ig with it");
        }
        Ok(match self.method {
            Method::Exact => None,
            Method::Eap => Some(Estimate::Attribution),
            Method::EapIg => Some(Estimate::IntegratedGradients { steps: self.steps.unwrap_or(5) }),
        })
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
