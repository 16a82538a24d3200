//! `headscope generate`

use std::io::Write;

use anyhow::{Context, Result};
use clap::Args;
use headscope::model::Generation;

use super::ModelArguments;

/// Continue a prompt.
///
/// Example: headscope generate openai-community/gpt2 --prompt "Once upon a time" --max-new 40
#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    model: ModelArguments,
    /// The prompt
    #[arg(long)]
    prompt: String,
    /// At most this many new tokens; an end token or the end of the context stops earlier
    #[arg(long, default_value_t = 100)]
    max_new: usize,
    /// 0 takes the likeliest token; above, tokens are sampled
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Sample from this many likeliest tokens only
    #[arg(long)]
    top_k: Option<usize>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl Generate {
    pub fn run(&self) -> Result<()> {
        let model = self.model.load()?;
        let tokenizer = model.tokenizer().context("the checkpoint has no tokenizer.json")?;
        let tokens = model.tokens(&[&self.prompt])?;
        let options =
            Generation { max_new: self.max_new, temperature: self.temperature, top_k: self.top_k, seed: self.seed };
        let (mut ids, mut shown) = (vec![], String::new());
        print!("{}", self.prompt);
        model.generate(&tokens, &options, |id| {
            ids.push(id);
            // A token may be half a character: text is printed once it decodes to something that stays.
            if let Ok(text) = tokenizer.decode(&ids)
                && !text.ends_with('\u{fffd}')
                && let Some(new) = text.strip_prefix(&shown)
            {
                print!("{new}");
                let _ = std::io::stdout().flush();
                shown = text.clone();
            }
        })?;
        println!();
        Ok(())
    }
}
