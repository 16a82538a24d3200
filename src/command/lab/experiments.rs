//! How are experiments listed, run and judged from the command line?
//! `headscope lab list | show | run | slurm | verdict | report`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use headscope::Error;
use headscope::lab::verdict::Judgement;
use headscope::lab::{Declaration, Experiment, Results, RunOptions, report};

/// Selects an experiment.
#[derive(Args)]
struct Which {
    /// E1, E2, ... or a JSON file as printed by `show --json`
    experiment: String,
    /// Size of the grid: minutes on a laptop, or an array job on a cluster
    #[arg(long, value_enum, default_value_t = Grid::Small)]
    grid: Grid,
    /// First seed; overrides the experiment's
    #[arg(long)]
    seed: Option<u64>,
    /// Runs per cell, for experiments without sub-claims: those with have as many as the first look
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

    /// Default name of the results folder. It differs for every experiment that these arguments can select, so that two
    /// experiments never share cells.
    fn folder(&self, experiment: &Experiment) -> Result<String> {
        let mut name = format!("{}-{}", experiment.id, self.grid.name());
        self.seed.iter().for_each(|seed| name += &format!("-seed{seed}"));
        self.runs.iter().for_each(|runs| name += &format!("-runs{runs}"));
        if Path::new(&self.experiment).is_file() {
            name += &format!("-{:.8}", experiment.sha256()?);
        }
        Ok(name)
    }

    /// These arguments as shell words.
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
    let mut claims: Vec<&str> = experiment.sub_claims.iter().map(|claim| claim.id.as_str()).collect();
    claims.sort_unstable();
    claims.dedup();
    claims.join(" ")
}

/// Print an experiment or the declaration of a model.
///
/// For an experiment: its question, the predictions of each claim and the rule, all fixed before the run, and its
/// cells. With --json, everything as JSON, which can be edited and passed to `run`.
#[derive(Args)]
pub struct Show {
    #[command(flatten)]
    which: Which,
    /// Print everything as JSON
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

/// Run the cells of an experiment.
///
/// Example: headscope lab run E1 --out results/E1
///
/// Writes DIR/experiment.json and DIR/cells/NAME.parquet, each cell as it finishes; a later look adds
/// DIR/cells/NAME+LOOK.parquet for the cells that the one before left open. Shards can run on any machine and
/// in any order; on machines of the same kind, the combined files are byte-identical to those of a single run. The
/// provenance of each cell is stored beside it: the commit, the experiment, the files that were read, and a checksum of
/// the table.
#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    which: Which,
    /// Which part of the cells to run: part K of N
    #[arg(long, value_name = "K/N", default_value = "1/1", value_parser = shard)]
    shard: (usize, usize),
    /// Output folder [default: headscope-lab/E1-small; another seed, number of runs or file changes the name]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue an interrupted run: keep finished cells and recompute damaged ones
    #[arg(long)]
    resume: bool,
    /// How many looks to take at most; a later look adds seeds to the cells that an earlier one left open
    #[arg(long, default_value_t = 1)]
    looks: usize,
    /// Compute only the cells that decide a sub-claim, not those that only describe
    #[arg(long)]
    deciding: bool,
    /// Cells computed at once, each on one thread [default: the number of cores]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=MOST_THREADS))]
    threads: Option<u32>,
}

/// Upper limit on concurrent cells: more than the cores of any machine.
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
            looks: self.looks,
            deciding: self.deciding,
            threads: self.threads.map(|n| n as usize),
            stop: Some(&STOP),
            note: |note| eprintln!("note: {note}"),
        };
        let done = experiment.run(&out, &options);
        if matches!(done, Err(Error::Stopped { .. } | Error::Cell { .. })) && finished(&out) > 0 {
            let kept = format!("{} finished cells are kept in {}; --resume continues", finished(&out), out.display());
            return done.map(drop).context(kept);
        }
        let done = done?;
        println!("{done} cells computed into {}", out.display());
        let results = Results::read(&out)?;
        match results.missing.len() {
            0 => println!("all {} cells are finished: headscope lab verdict {}", experiment.cells.len(), out.display()),
            n => println!("{n} of {} cells are not finished yet", experiment.cells.len()),
        }
        if results.missing.is_empty() {
            tell_open(&results)?;
        }
        Ok(())
    }
}

/// Says which sub-claims are open, and which look may decide them.
fn tell_open(results: &Results) -> Result<()> {
    let judged = results.judge()?.sub_claims;
    let open: Vec<_> =
        judged.iter().filter(|judged| judged.decided().verdict == headscope::lab::Verdict::Open).collect();
    if let Some(look) = open.iter().map(|judged| judged.decided().looks + 1).min() {
        let ids: Vec<&str> = open.iter().map(|judged| judged.sub_claim.id.as_str()).collect();
        println!("open: {} (--resume --looks {look} adds seeds)", ids.join(", "));
    }
    Ok(())
}

/// Number of cell tables in a folder.
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
    /// Number of tasks in the array
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

/// Judge the claims of experiments.
///
/// Example: headscope lab verdict results/E1 results/E2
///
/// Reads DIR/experiment.json and all tables in DIR/cells (or DIR/results.parquet), whichever program wrote them. Tables
/// have the columns cell, seed, metric and value, plus step and task where they apply; rows that name a layer or head
/// are details and do not affect the verdict. A headscope table that fails its checksum is an error; a table without a
/// checksum is accepted and noted. Writes DIR/verdict.json and the union of the tables, DIR/results.parquet. A folder
/// that contains such folders stands for all of them.
#[derive(Args)]
pub struct Verdict {
    /// Results folders of experiments
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Print everything as JSON
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
        let judged: Vec<_> = all.iter().flat_map(|judgement| &judgement.sub_claims).collect();
        if !judged.is_empty() {
            println!("sub-claims:");
        }
        for judged in judged {
            println!("  {:<4} {:<17} {}", judged.sub_claim.id, judged.decided().verdict, judged.sub_claim.text);
        }
        Ok(())
    }
}

/// Write the findings of experiments as one HTML page.
#[derive(Args)]
pub struct Report {
    /// Results folders of experiments
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Output file [default: report.html in the first folder]
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

/// Reads the experiments in `folders`; each is a results folder or contains results folders.
fn read(folders: &[PathBuf]) -> Result<Vec<(PathBuf, Results)>> {
    let all = folders.iter().map(Results::read_all).collect::<headscope::Result<Vec<_>>>()?;
    Ok(all.into_iter().flatten().collect())
}
