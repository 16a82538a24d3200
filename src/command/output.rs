//! What becomes of a sweep's table, as the commands that sweep take it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use headscope::intervene::Sweep;
use headscope::table::Table;

#[derive(Args)]
pub struct OutputArguments {
    /// One row a variant and prompt, in place of the mean over prompts
    #[arg(long)]
    per_prompt: bool,
    /// Rows to print, those of largest effect first
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// Largest memory for stacked activations, in MiB; a quarter of what is free, unless said otherwise
    #[arg(long, value_name = "MIB")]
    memory: Option<usize>,
    /// The file to write: .parquet, .csv or .json
    #[arg(long, value_name = "TABLE")]
    out: Option<PathBuf>,
}

impl OutputArguments {
    /// Fails before long work where its table could not be written.
    pub fn check(&self) -> Result<()> {
        Ok(self.out.as_ref().map_or(Ok(()), Table::check_path)?)
    }

    /// Runs the sweep, prints its strongest rows and writes its table.
    pub fn finish(&self, mut sweep: Sweep<'_>) -> Result<()> {
        if self.per_prompt {
            sweep = sweep.per_prompt();
        }
        if let Some(mib) = self.memory {
            sweep = sweep.memory(mib.saturating_mul(1 << 20));
        }
        let table = sweep.run()?;
        println!("{}", table.top(self.top)?);
        println!(
            "the {} of {} rows with the largest effect (value - baseline)",
            self.top.min(table.len()),
            table.len()
        );
        if let Some(out) = &self.out {
            table.write(out)?;
            println!("all of them written to {}", out.display());
        }
        Ok(())
    }
}
