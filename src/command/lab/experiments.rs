//! `headscope lab list | show | run | verdict | report`

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use headscope::Error;
use headscope::lab::verdict::{Judgement, claims};
use headscope::lab::{Declaration, Experiment, Results, RunOptions, report};

/// Which experiment.
#[derive(Args)]
struct Which {
    /// E1, E2, ... or a JSON file as `show --json` prints one
    experiment: String,
    /// How large a grid: minutes on a laptop, or a cluster's array job
    #[arg(long, value_enum, default_value_t = Grid::Small)]
    grid: Grid,
    /// The first seed, instead of the experiment's
    #[arg(long)]
    seed: Option<u64>,
    /// Runs of a cell, instead of the experiment's
    #[arg(long)]
    runs: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Grid {
    Small,
    Full,
}

impl Grid {
    fn of_lab(self) -> headscope::lab::Grid {
        match self {
            Self::Small => headscope::lab::Grid::Small,
            Self::Full => headscope::lab::Grid::Full,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Full => "full",
        }
    }
}

impl Which {
    fn experiment(&self) -> Result<Experiment> {
        let mut experiment = match Path::new(&self.experiment).is_file() {
            true => Experiment::read(&self.experiment)?,
            false => Experiment::named(&self.experiment, self.grid.of_lab())?,
        };
        experiment.seed = self.seed.unwrap_or(experiment.seed);
        experiment.runs = self.runs.unwrap_or(experiment.runs);
        experiment.validate()?;
        Ok(experiment)
    }

    /// The name of the folder where results go by default: another one for each experiment that could be asked for, so that
    /// none meets the cells of another.
    fn folder(&self, experiment: &Experiment) -> Result<String> {
        let mut name = format!("{}-{}", experiment.id, self.grid.name());
        self.seed.iter().for_each(|seed| name += &format!("-seed{seed}"));
        self.runs.iter().for_each(|runs| name += &format!("-runs{runs}"));
        if Path::new(&self.experiment).is_file() {
            name += &format!("-{:.8}", experiment.sha256()?);
        }
        Ok(name)
    }

    /// These arguments again, for a shell.
    fn words(&self) -> String {
        let mut words = format!("'{}' --grid {}", self.experiment.replace('\'', r"'\''"), self.grid.name());
        self.seed.iter().for_each(|seed| words += &format!(" --seed {seed}"));
        self.runs.iter().for_each(|runs| words += &format!(" --runs {runs}"));
        words
    }
}

/// `headscope lab list`
pub fn list() -> Result<()> {
    println!("experiments (headscope lab show E1, headscope lab run E1):");
    for name in Experiment::NAMES {
        let experiment = Experiment::named(name, headscope::lab::Grid::Small)?;
        let full = Experiment::named(name, headscope::lab::Grid::Full)?;
        let size = |of: &Experiment| format!("{} x {}", of.cells.len(), of.runs);
        println!(
            "  {name}  {:<28} {:>9} runs small, {:>9} full   {}",
            experiment.title,
            size(&experiment),
            size(&full),
            claimed(&experiment)
        );
    }
    println!("models (headscope lab show NAME, headscope lab train NAME):");
    Declaration::NAMES.iter().for_each(|name| println!("  {name}"));
    Ok(())
}

fn claimed(experiment: &Experiment) -> String {
    let mut claims: Vec<&str> = experiment.predictions.iter().map(|p| p.claim.as_str()).collect();
    claims.sort_unstable();
    claims.dedup();
    claims.join(" ")
}

/// Print an experiment or the declaration of a model.
///
/// Of an experiment: its question, what each claim predicts and the rule, all fixed before the run, and its cells; all of it as
/// JSON with --json, to be changed and given to `run`.
#[derive(Args)]
pub struct Show {
    #[command(flatten)]
    which: Which,
    /// Everything as JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    pub fn run(&self) -> Result<()> {
        if Declaration::NAMES.contains(&self.which.experiment.as_str()) {
            println!("{}", serde_json::to_string_pretty(&Declaration::named(&self.which.experiment)?)?);
            return Ok(());
        }
        let experiment = self.which.experiment()?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&experiment)?);
            return Ok(());
        }
        println!("{experiment}");
        Ok(())
    }
}

/// Run an experiment's cells.
///
/// Example: headscope lab run E1 --out results/E1
///
/// Writes DIR/experiment.json and DIR/cells/NAME.parquet, each cell when it is finished. Shards can run anywhere and in any
/// order; on machines of one kind their folders' files together are the same bytes as those of one run. Beside each cell stands
/// where it comes from: the commit, the experiment, the files that were read, and a checksum of the table.
#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    which: Which,
    /// Which part of the cells, of how many
    #[arg(long, value_name = "K/N", default_value = "1/1", value_parser = shard)]
    shard: (usize, usize),
    /// The folder [default: headscope-lab/E1-small; with another seed, other runs or a file in its name]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on where an interrupted run stopped: finished cells are kept, damaged ones are computed again
    #[arg(long)]
    resume: bool,
    /// Cells computed at once, each on one thread [default: as many as there are cores]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MOST_THREADS))]
    threads: Option<u32>,
}

/// Most cells at once: more than any machine has cores.
const MOST_THREADS: i64 = 4096;

fn shard(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    let parts = parts.filter(|(k, n): &(usize, usize)| (1..=*n).contains(k));
    parts.ok_or_else(|| "expected K/N with K from 1 to N, such as 3/8".to_owned())
}

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

impl Run {
    pub fn run(&self) -> Result<()> {
        let experiment = self.which.experiment()?;
        let out = self.out.clone().unwrap_or(PathBuf::from("headscope-lab").join(self.which.folder(&experiment)?));
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("cannot listen for Ctrl-C")?;
        let options = RunOptions {
            shard: self.shard,
            resume: self.resume,
            threads: self.threads.map(|n| n as usize),
            stop: Some(&STOP),
            note: |note| eprintln!("note: {note}"),
        };
        let done = experiment.run(&out, &options);
        if matches!(done, Err(Error::Stopped { .. } | Error::Cell { .. })) && finished(&out) > 0 {
            let kept = format!("{} finished cells are kept in {}; --resume goes on", finished(&out), out.display());
            return done.map(drop).context(kept);
        }
        let done = done?;
        println!("{done} cells computed into {}", out.display());
        let results = Results::read(&out)?;
        match results.missing.len() {
            0 => println!("all {} cells are there: headscope lab verdict {}", experiment.cells.len(), out.display()),
            n => println!("{n} of {} cells are not there yet", experiment.cells.len()),
        }
        Ok(())
    }
}

/// How many cells' tables a folder has.
fn finished(out: &Path) -> usize {
    let entries = std::fs::read_dir(out.join("cells")).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().extension().is_some_and(|ending| ending == "parquet")).count()
}

/// Print a Slurm array job that runs an experiment in shards.
///
/// Example: headscope lab slurm E1 --grid full --shards 32 > E1.slurm && sbatch E1.slurm
#[derive(Args)]
pub struct Slurm {
    #[command(flatten)]
    which: Which,
    /// Tasks of the array
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    shards: u32,
}

impl Slurm {
    pub fn run(&self) -> Result<()> {
        let experiment = self.which.experiment()?;
        let shards = (self.shards as usize).min(experiment.cells.len());
        let filled = [
            ("{EXPERIMENT}", self.which.words()),
            ("{ID}", experiment.id.clone()),
            ("{FOLDER}", self.which.folder(&experiment)?),
            ("{GRID}", self.which.grid.name().to_owned()),
            ("{CELLS}", experiment.cells.len().to_string()),
            ("{RUNS}", experiment.runs.to_string()),
            ("{SHARDS}", shards.to_string()),
        ];
        let script =
            filled.iter().fold(include_str!("slurm.sh").to_owned(), |text, (name, value)| text.replace(name, value));
        print!("{script}");
        Ok(())
    }
}

/// Judge the claims.
///
/// Example: headscope lab verdict results/E1 results/E2
///
/// Reads DIR/experiment.json and all tables in DIR/cells (or DIR/results.parquet), whoever wrote them: columns cell, seed,
/// metric, value, and where they apply step and task; rows that name a layer or head are details. A table of headscope's own
/// that is not as it was written is an error; one without a checksum is taken as it is, and noted. Writes DIR/verdict.json and
/// the union of the tables, DIR/results.parquet. A folder of such folders stands for all of them.
#[derive(Args)]
pub struct Verdict {
    /// Folders of experiments
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Everything as JSON
    #[arg(long)]
    json: bool,
}

impl Verdict {
    pub fn run(&self) -> Result<()> {
        let mut all: Vec<Judgement> = vec![];
        for (folder, results) in read(&self.folders)? {
            let judgement = results.judge()?;
            results.write(&judgement, &folder)?;
            if !self.json {
                println!("{judgement}");
            }
            all.push(judgement);
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&all)?);
            return Ok(());
        }
        println!("claims:");
        let of_all = claims(all.iter().flat_map(|judgement| &judgement.predictions));
        of_all.iter().for_each(|(claim, verdict)| println!("  {claim}: {verdict}"));
        Ok(())
    }
}

/// Write what experiments found as one HTML page.
#[derive(Args)]
pub struct Report {
    /// Folders of experiments
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// The page; by default report.html in the first folder
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Report {
    pub fn run(&self) -> Result<()> {
        let results: Vec<Results> = read(&self.folders)?.into_iter().map(|(_, results)| results).collect();
        let out = self.out.clone().unwrap_or_else(|| self.folders[0].join("report.html"));
        report(&results)?.save(&out)?;
        println!("written to {}", out.display());
        Ok(())
    }
}

/// The experiments of folders, each itself or a folder of such folders.
fn read(folders: &[PathBuf]) -> Result<Vec<(PathBuf, Results)>> {
    let all = folders.iter().map(Results::read_all).collect::<headscope::Result<Vec<_>>>()?;
    Ok(all.into_iter().flatten().collect())
}
