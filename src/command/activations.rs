//! `headscope activations`: what are the activations of a model on prompts?

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use headscope::model::Plan;

use super::{ModelArguments, PromptArguments, SourceArguments};

/// Run prompts and write activations to a safetensors file, each tensor named after its site.
///
/// Example: headscope activations minilm --text "The cat sat." --sites 'pattern.3,z.*' --out a.safetensors
///
/// `headscope inspect MODEL` lists the sites. Shapes: pattern.L [batch, head, query, key]; z.L, q.L [batch, position,
/// head, d_head]; resid_pre.L [batch, position, d_model]; logits [batch, position, vocab].
///
/// Encoder-decoder: headscope activations MODEL --source "Das ist gut." --tokens '[[0]]' --sites 'cross_pattern.*' --out a.safetensors
#[derive(Args)]
pub struct Activations {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    prompts: PromptArguments,
    #[command(flatten)]
    source: SourceArguments,
    /// Sites to record, separated by commas; patterns such as 'z.*' or 'resid_*.5' record all that match
    #[arg(long, value_delimiter = ',', required = true)]
    sites: Vec<String>,
    /// The file to write
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
}

impl Activations {
    pub fn run(&self) -> Result<()> {
        let model = self.model.load()?;
        let tokens = self.source.read_before(self.prompts.tokens(&model)?, &model)?;
        let run = model.run(&tokens, &Plan::new().taps(self.sites.iter().map(|name| name.trim())).explicit())?;
        run.save(&self.out)?;
        for (site, tensor) in run.taps() {
            println!("{site:<16} {:?}", tensor.size());
        }
        println!("written to {}", self.out.display());
        Ok(())
    }
}
