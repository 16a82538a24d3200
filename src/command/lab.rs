//! `headscope lab`

mod experiments;
mod train;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Train small transformers on languages with known structure, and test claims on them.
///
/// An experiment is a grid of cells; `run` computes each into a file of its own, `verdict` judges the claims by a rule that
/// stands in the experiment, `report` makes one page of it.
#[derive(Args)]
pub struct Lab {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the experiments and the models that have names
    List,
    /// Print an experiment (E1, E2, ...) or the declaration of a model (induction, english)
    Show(experiments::Show),
    /// Train a model and save it where `headscope inspect` and all other commands read it
    Train(train::Train),
    /// Run an experiment's cells, all of them or a shard
    Run(experiments::Run),
    /// Print a Slurm array job that runs an experiment in shards
    Slurm(experiments::Slurm),
    /// Judge the claims by what an experiment, or several, found
    Verdict(experiments::Verdict),
    /// Write what experiments found as one HTML page
    Report(experiments::Report),
}

impl Lab {
    pub fn run(&self) -> Result<()> {
        match &self.command {
            Command::List => experiments::list(),
            Command::Show(show) => show.run(),
            Command::Train(train) => train.run(),
            Command::Run(run) => run.run(),
            Command::Slurm(slurm) => slurm.run(),
            Command::Verdict(verdict) => verdict.run(),
            Command::Report(report) => report.run(),
        }
    }
}
