//! `headscope verify`: is a checkpoint computed as its authors meant it?

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use headscope::model::Tokens;
use headscope::verify::Verification;

use super::output::reserve;
use super::{ModelArguments, OptionalPrompts};

/// Check a checkpoint: the invariants of any correct forward pass, or another implementation's numbers site by site.
///
/// Example: headscope verify openai-community/gpt2
///
/// Without a file it checks causality, the additivity of the residual stream, the sums of patterns, patches of a run from
/// itself and padding, and prints ten lines of Python with which transformers writes a file of its own numbers. Then:
/// headscope verify openai-community/gpt2 --against golden.safetensors
///
/// Differences are in units of the root mean square of what is compared; their bounds follow from the type and from the depth.
/// Exit code 1 if one is exceeded.
#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    prompts: OptionalPrompts,
    /// A safetensors file with tokens, logits, hidden_states.L and attentions.L, as the ten lines write it
    #[arg(long, value_name = "FILE", conflicts_with = OptionalPrompts::GROUP)]
    against: Option<PathBuf>,
    /// The file to write every comparison to: .parquet, .csv or .json
    #[arg(long, value_name = "TABLE")]
    out: Option<PathBuf>,
}

/// The file that the ten lines write.
const FILE: &str = "golden.safetensors";

impl Verify {
    pub fn run(&self) -> Result<()> {
        let _reserved = reserve(self.out.as_deref())?;
        let model = self.model.load()?;
        let found = match &self.against {
            Some(file) => model.verify_against(file)?,
            None => {
                let given = self.prompts.0.as_ref().map(|prompts| prompts.tokens(&model)).transpose()?;
                let tokens = given.map_or_else(|| Tokens::for_verification(&model), Ok)?;
                let found = model.verify(&tokens)?;
                match model.verify_script(&tokens, FILE) {
                    Ok(script) => println!("# transformers' numbers, for --against {FILE}\n{script}"),
                    Err(reason) => println!("no lines of Python for transformers: {reason}\n"),
                }
                found
            }
        };
        show(&found);
        if let Some(out) = &self.out {
            found.table()?.write(out)?;
            println!("all {} comparisons written to {}", found.checks.len(), out.display());
        }
        Ok(found.require()?)
    }
}

/// Prints what came closest to its bound, one line per check and kind of site.
fn show(found: &Verification) {
    for check in found.closest() {
        println!("{check}");
    }
    for reason in &found.left_out {
        println!("left out: {reason}");
    }
    let failed = found.checks.iter().filter(|check| !check.passed()).count();
    match failed {
        0 => println!("all {} comparisons are within their bounds", found.checks.len()),
        _ => println!("{failed} of {} comparisons exceed their bounds", found.checks.len()),
    }
}
