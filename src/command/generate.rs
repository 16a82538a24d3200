//! `headscope generate`: how does a model continue a prompt?

use std::io::Write;

use anyhow::{Context, Result, bail};
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
    /// The most new tokens; an end token or the end of the context stops earlier
    #[arg(long, default_value_t = 100)]
    max_new: usize,
    /// 0 takes the likeliest token; above 0, tokens are sampled
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Sample only from this many likeliest tokens
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
        if self.top_k.is_some() && self.temperature == 0.0 {
            bail!("--top-k: expected a --temperature above 0 with it, found 0, which takes the likeliest token");
        }
        // Decode new tokens together with the prompt: on their own they may lose a leading space.
        let mut ids = tokens.row(0).to_vec();
        let mut shown = tokenizer.decode(&ids)?;
        let mut out = std::io::stdout();
        write!(out, "{}", self.prompt)?;
        model.generate(&tokens, &options, |id| {
            ids.push(id);
            // A token may be part of a character: print text once it decodes to something stable.
            match tokenizer.decode(&ids) {
                Ok(text) if !text.ends_with('\u{fffd}') => shown = print_new(&mut out, &shown, text),
                _ => {}
            }
        })?;
        print_new(&mut out, &shown, tokenizer.decode(&ids)?);
        println!();
        Ok(())
    }
}

/// Prints the part of `text` after `shown`, and returns the text shown so far.
fn print_new(out: &mut impl Write, shown: &str, text: String) -> String {
    let Some(new) = text.strip_prefix(shown) else { return shown.to_owned() };
    // A closed pipe ends the process by its signal; there is nothing to do about a terminal that is gone.
    let _ = write!(out, "{new}").and_then(|()| out.flush());
    text
}
