//! How is a declared model trained from the command line? `headscope lab train`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use headscope::lab::Declaration;
use headscope::lab::trace::Quantity;
use headscope::lab::train::TraceOptions;
use headscope::table::Table;

/// Train a model.
///
/// Example: headscope lab train induction --out my-induction --seed 1
///
/// Writes config.json, model.safetensors, tokenizer.json if tokens are text, declaration.json with all options and the
/// seed, trace.parquet with the losses and the head measurements taken during training, and training.safetensors with
/// training.parquet, from which --resume continues.
#[derive(Args)]
pub struct Train {
    /// A declaration (JSON file) or one of the names: induction, english
    declaration: String,
    /// Output folder
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Seed of the parameters and the training sequences; overrides the declaration's
    #[arg(long)]
    seed: Option<u64>,
    /// Total number of training steps; overrides the declaration's
    #[arg(long)]
    steps: Option<usize>,
    /// Steps between two measurements of the heads; 0 for none
    #[arg(long, value_name = "STEPS")]
    trace_every: Option<usize>,
    /// Quantities to measure, separated by commas [default: all]
    #[arg(long, value_name = "QUANTITIES", value_delimiter = ',', value_parser = quantity)]
    trace: Vec<Quantity>,
    /// Continue a training run that stopped in this folder
    #[arg(long)]
    resume: bool,
}

/// Steps between two checkpoints.
const SAVE_EVERY: usize = 500;

/// Parses a quantity by the name it has in a declaration.
fn quantity(text: &str) -> Result<Quantity, String> {
    let name = |quantity: &Quantity| serde_json::to_value(quantity).ok()?.as_str().map(str::to_owned);
    let found = Quantity::ALL.into_iter().find(|quantity| name(quantity).as_deref() == Some(text));
    let names: Vec<String> = Quantity::ALL.iter().filter_map(name).collect();
    found.ok_or_else(|| format!("expected one of {}", names.join(", ")))
}

impl Train {
    /// The trace options: the command line overrides the declaration.
    fn trace(&self, declared: Option<TraceOptions>) -> Option<TraceOptions> {
        let mut trace = declared.unwrap_or_default();
        trace.every = self.trace_every.unwrap_or(trace.every);
        if !self.trace.is_empty() {
            trace.quantities.clone_from(&self.trace);
        }
        (trace.every > 0).then_some(trace)
    }

    pub fn run(&self) -> Result<()> {
        let mut declaration = match Path::new(&self.declaration).is_file() {
            true => Declaration::read(&self.declaration)?,
            false => Declaration::named(&self.declaration)?,
        };
        declaration.train.seed = self.seed.unwrap_or(declaration.train.seed);
        declaration.train.steps = self.steps.unwrap_or(declaration.train.steps);
        declaration.train.trace = self.trace(declaration.train.trace);
        let path = self.out.join("declaration.json");
        let mut trainer = declaration.trainer()?;
        if !self.resume {
            std::fs::create_dir_all(&self.out).with_context(|| format!("cannot create {}", self.out.display()))?;
        }
        let trace = self.out.join("trace.parquet");
        let _reserved = Table::reserve(&trace)?;
        if self.resume {
            trainer = trainer.resume(&self.out)?;
        }
        std::fs::write(&path, serde_json::to_vec_pretty(&declaration)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        while trainer.step() < declaration.train.steps {
            trainer.train_to(trainer.step() + SAVE_EVERY)?;
            trainer.save(&self.out)?;
        }
        for trained in trainer.run()? {
            trained.model.save(&self.out)?;
            if !trained.trace.is_empty() {
                trained.trace.write(&trace)?;
                println!("{}", trained.trace);
            }
        }
        println!("written to {}", self.out.display());
        Ok(())
    }
}
