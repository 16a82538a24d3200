//! Where does the table of a sweep go? Options shared by all commands that sweep.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use clap::Args;
use headscope::Error;
use headscope::intervene::{Explanation, Paths, Sweep};
use headscope::table::{Reserved, Table};

/// What these commands run: variants, or paths.
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
    /// One row per variant and prompt, instead of the mean over prompts
    #[arg(long)]
    per_prompt: bool,
    /// One row per variant, prompt and predicted token, for loss, accuracy and KL
    #[arg(long)]
    per_token: bool,
    /// Add an interval for the mean over prompts (95 %, bootstrap)
    #[arg(long)]
    interval: bool,
    /// Print how the sweep would be computed and what it would cost, and compute nothing
    #[arg(long)]
    explain: bool,
    /// Memory limit for activations, on top of the model, in MiB; by default a quarter of the free memory of the
    /// model's device, and never more than is free. Larger work is split
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    memory: Option<u64>,
    #[command(flatten)]
    table: TableArguments,
    /// Continue an interrupted run of the same command; its finished rows are in TABLE.partial
    #[arg(long, requires = "out")]
    resume: bool,
    /// Delete the finished rows of an interrupted run and start over
    #[arg(long, requires = "out", conflicts_with = "resume")]
    restart: bool,
}

/// Where a table goes: its largest effects to the terminal, all of it to a file.
#[derive(Args)]
pub struct TableArguments {
    /// Rows to print, largest effect first
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// The file to write: .parquet, .csv or .json
    #[arg(long, value_name = "TABLE")]
    out: Option<PathBuf>,
}

/// Checks, before a long computation, that a table can be written to `out` and that no other process is working on it.
/// Other processes are kept out until the returned value is dropped.
pub fn reserve(out: Option<&Path>) -> Result<Option<Reserved>> {
    let Some(out) = out else { return Ok(None) };
    Table::check_path(out)?;
    Ok(Some(Table::reserve(out)?))
}

impl TableArguments {
    /// Writes the table and prints its largest effects.
    pub fn finish(&self, table: &Table) -> Result<()> {
        if let Some(out) = &self.out {
            table.write(out)?;
        }
        println!("{}", table.top(self.top)?);
        let effect = match table.columns().iter().any(|name| name == "baseline") {
            true => "effect (value - baseline)",
            false => "value in magnitude",
        };
        println!("the {} of {} rows with the largest {effect}", self.top.min(table.len()), table.len());
        if let Some(out) = &self.out {
            println!("all of them written to {}", out.display());
        }
        Ok(())
    }
}

/// The file that holds the finished rows of a table until it is written.
fn journal(out: &Path) -> PathBuf {
    let mut journal = out.as_os_str().to_owned();
    journal.push(".partial");
    journal.into()
}

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

impl OutputArguments {
    /// Checks, before a long computation, that its table can be written ([`reserve`]) and that the user said what to do
    /// with the rows of an interrupted run.
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

    /// Runs the sweep, prints its largest effects and writes its table.
    pub fn finish(&self, sweep: impl Work) -> Result<()> {
        let sweep = self.asked(sweep);
        if self.explain {
            println!("{}", sweep.explain()?);
            return Ok(());
        }
        let Some(out) = &self.table.out else { return self.table.finish(&sweep.run()?) };
        self.finish_resumable(sweep, out)
    }

    /// Like [`Self::finish`], for a sweep of estimates, which takes one pass and need not be resumable.
    pub fn finish_estimate(&self, sweep: impl Work) -> Result<()> {
        if self.resume || self.explain {
            bail!("--resume, --explain: expected exact values, found estimates");
        }
        let table = self.asked(sweep).run()?;
        self.table.finish(&table)?;
        if let Some(agreement) = table.agreement() {
            let shown = |r: Option<f64>| r.map_or_else(|| "none".to_owned(), |r| format!("{r:.3}"));
            println!(
                "agreement of estimates and exact values of {} variants: Pearson {}, Spearman {}",
                agreement.variants,
                shown(agreement.pearson),
                shown(agreement.spearman)
            );
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

    /// Runs the sweep, keeping its finished rows next to `out` until the table is written there.
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
