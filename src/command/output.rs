//! What becomes of a sweep's table, as the commands that sweep take it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::Args;
use headscope::Error;
use headscope::intervene::{Explanation, Paths, Sweep};
use headscope::table::{Reserved, Table};

/// What the commands that sweep run: variants, or paths.
pub trait Work: Sized {
    fn per_prompt(self) -> Self;
    fn per_token(self) -> Self;
    fn interval(self, seed: u64) -> Self;
    fn memory(self, bytes: usize) -> Self;
    fn kept(self, journal: &Path, stop: &'static AtomicBool) -> Self;
    fn explain(&self) -> headscope::Result<Explanation>;
    fn run(&self) -> headscope::Result<Table>;
}

macro_rules! work {
    ($($name:ident),*) => {$(
        impl Work for $name<'_> {
            fn per_prompt(self) -> Self {
                self.per_prompt()
            }
            fn per_token(self) -> Self {
                self.per_token()
            }
            fn interval(self, seed: u64) -> Self {
                self.interval(seed)
            }
            fn memory(self, bytes: usize) -> Self {
                self.memory(bytes)
            }
            fn kept(self, journal: &Path, stop: &'static AtomicBool) -> Self {
                self.journal(journal).stop(stop)
            }
            fn explain(&self) -> headscope::Result<Explanation> {
                self.explain()
            }
            fn run(&self) -> headscope::Result<Table> {
                self.run()
            }
        }
    )*};
}

work!(Sweep, Paths);

#[derive(Args)]
pub struct OutputArguments {
    /// One row a variant and prompt, instead of the mean over prompts
    #[arg(long)]
    per_prompt: bool,
    /// One row a variant, prompt and predicted token, for loss, accuracy and KL
    #[arg(long)]
    per_token: bool,
    /// Add an interval of the mean over prompts (95 %, bootstrap)
    #[arg(long)]
    interval: bool,
    /// Print how the sweep would be computed and what it costs, and compute nothing
    #[arg(long)]
    explain: bool,
    /// Largest memory for activations beside the model, in MiB; by default a quarter of what is free on the
    /// model's device, and never more than is free. What does not fit at once is computed in parts
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    memory: Option<u64>,
    #[command(flatten)]
    table: TableArguments,
    /// Go on where an interrupted run of the same command stopped; its finished rows stand in TABLE.partial
    #[arg(long, requires = "out")]
    resume: bool,
    /// Delete the finished rows of an interrupted run, and start over
    #[arg(long, requires = "out", conflicts_with = "resume")]
    restart: bool,
}

/// Where a table goes: its strongest rows to the terminal, all of it to a file.
#[derive(Args)]
pub struct TableArguments {
    /// Rows to print, those of largest effect first
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// The file to write: .parquet, .csv or .json
    #[arg(long, value_name = "TABLE")]
    out: Option<PathBuf>,
}

/// Fails before long work where a table could not be written to `out`, or another process is at work on it; keeps other
/// processes from it for as long as what is returned lives.
pub fn reserve(out: Option<&Path>) -> Result<Option<Reserved>> {
    let Some(out) = out else { return Ok(None) };
    Table::check_path(out)?;
    Ok(Some(Table::reserve(out)?))
}

impl TableArguments {
    /// Writes the table and prints its strongest rows.
    pub fn finish(&self, table: &Table) -> Result<()> {
        if let Some(out) = &self.out {
            table.write(out)?;
        }
        println!("{}", table.top(self.top)?);
        println!(
            "the {} of {} rows with the largest effect (value - baseline)",
            self.top.min(table.len()),
            table.len()
        );
        if let Some(out) = &self.out {
            println!("all of them written to {}", out.display());
        }
        Ok(())
    }
}

/// Where the finished rows of a table are kept until it is written.
fn journal(out: &Path) -> PathBuf {
    let mut journal = out.as_os_str().to_owned();
    journal.push(".partial");
    journal.into()
}

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

impl OutputArguments {
    /// Fails before long work where its table could not be written ([`reserve`]), or where it is not said what is to become of
    /// the rows of an interrupted run.
    pub fn begin(&self) -> Result<Option<Reserved>> {
        let out = self.table.out.as_deref().filter(|_| !self.explain);
        let reserved = reserve(out)?;
        let journal = out.map(journal).filter(|journal| journal.exists());
        let Some(journal) = journal.filter(|_| !self.resume) else { return Ok(reserved) };
        if !self.restart {
            bail!(
                "{} has the finished rows of an interrupted run: go on with --resume, or delete them and start over with --restart",
                journal.display()
            );
        }
        std::fs::remove_file(&journal).with_context(|| format!("cannot remove {}", journal.display()))?;
        Ok(reserved)
    }

    /// Runs the sweep, prints its strongest rows and writes its table.
    pub fn finish(&self, sweep: impl Work) -> Result<()> {
        let sweep = self.asked(sweep);
        if self.explain {
            println!("{}", sweep.explain()?);
            return Ok(());
        }
        let Some(out) = &self.table.out else { return self.table.finish(&sweep.run()?) };
        self.finish_resumable(sweep, out)
    }

    /// Runs a sweep of estimates, which takes one pass and need not be resumed, and does the same with it.
    pub fn finish_estimate(&self, sweep: impl Work) -> Result<()> {
        if self.resume || self.explain {
            bail!("--resume, --explain: expected exact values, found estimates");
        }
        let table = self.asked(sweep).run()?;
        self.table.finish(&table)?;
        let agreement = &table.provenance().options["what"]["agreement"];
        if !agreement.is_null() {
            println!("agreement of estimates and exact values: {agreement}");
        }
        Ok(())
    }

    fn asked<W: Work>(&self, mut sweep: W) -> W {
        if self.per_prompt {
            sweep = sweep.per_prompt();
        }
        if self.per_token {
            sweep = sweep.per_token();
        }
        if self.interval {
            sweep = sweep.interval(0);
        }
        if let Some(mib) = self.memory {
            sweep = sweep.memory(usize::try_from(mib.saturating_mul(1 << 20)).unwrap_or(usize::MAX));
        }
        sweep
    }

    /// Runs the sweep and keeps its finished rows beside `out` until the table is written there.
    fn finish_resumable(&self, sweep: impl Work, out: &Path) -> Result<()> {
        let journal = journal(out);
        ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("cannot listen for Ctrl-C")?;
        let table = sweep.kept(&journal, &STOP).run();
        if let Err(Error::Stopped { .. }) = &table {
            let begun = std::fs::read_to_string(&journal).is_ok_and(|text| text.lines().count() > 1);
            let kept = match begun {
                true => format!("finished rows are kept in {}; --resume goes on", journal.display()),
                false => "no row is finished".to_owned(),
            };
            if !begun {
                std::fs::remove_file(&journal).with_context(|| format!("cannot remove {}", journal.display()))?;
            }
            return table.map(drop).context(kept);
        }
        self.table.finish(&table?)?;
        std::fs::remove_file(&journal).with_context(|| format!("cannot remove {}", journal.display()))
    }
}
