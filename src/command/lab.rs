//! How does the command line train models and run experiments? `headscope lab` and its subcommands.

mod answer;
mod experiments;
mod train;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Train small transformers on languages with known structure, and test claims about their heads.
///
/// An experiment is a grid of cells: `run` computes each cell into its own file, `verdict` judges the claims by the
/// rule that the experiment declares, and `report` renders the findings as one page.
#[derive(Args)]
pub struct Lab {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the named experiments and model declarations
    List,
    /// Print an experiment (E1, E2, ...) or the declaration of a model (induction, english)
    Show(experiments::Show),
    /// Train a model and save it in the format that `headscope inspect` and every other command can load
    Train(train::Train),
    /// Run the cells of an experiment, all of them or one shard
    Run(experiments::Run),
    /// Print a Slurm array job that runs an experiment in shards
    Slurm(experiments::Slurm),
    /// Judge claims from the results of one or more experiments
    Verdict(experiments::Verdict),
    /// Write the findings of experiments as one HTML page
    Report(experiments::Report),
    /// Say what all experiments answer: a table and a few paragraphs, computed from their results
    Answer(answer::Answer),
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
            Command::Answer(answer) => answer.run(),
        }
    }
}
