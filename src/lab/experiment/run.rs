//! Cells computed, each to a file of its own.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::folder::{self, cell_path};
use super::{Cell, Experiment};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::table::{Provenance, Table};
use crate::workers::{on_one_thread, spread};

/// How an experiment is run.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions<'a> {
    /// Which part of the cells, counted from 1, of how many: cells k, k + n, k + 2n, ...
    pub shard: (usize, usize),
    /// Whether finished cells are kept; else there must be none.
    pub resume: bool,
    /// Cells computed at once, each on one thread; nothing for as many as there are cores.
    pub threads: Option<usize>,
    /// Set from elsewhere to stop after the cells in hand.
    pub stop: Option<&'a AtomicBool>,
}

impl Default for RunOptions<'_> {
    fn default() -> Self {
        Self { shard: (1, 1), resume: false, threads: None, stop: None }
    }
}

impl Cell {
    /// Computes the cell: a pure function of its work, `seed` and `runs`.
    ///
    /// # Errors
    /// Where an option makes no sense, or training fails.
    pub fn compute(&self, seed: u64, runs: usize) -> Result<Table> {
        let seeds: Vec<u64> = (0..runs as u64).map(|run| seed.wrapping_add(run)).collect();
        let mut rows = self.work.compute(&seeds)?;
        rows.iter_mut().for_each(|row| row.keys.cell = Some(self.name.clone()));
        Table::new(rows, self.provenance(seed, runs))
    }

    /// What a cell's table says of where it comes from; by it a resumed run knows a finished cell.
    fn provenance(&self, seed: u64, runs: usize) -> Provenance {
        Provenance {
            headscope: env!("CARGO_PKG_VERSION").to_owned(),
            model: "trained".to_owned(),
            options: serde_json::json!({"cell": self, "runs": runs}),
            seed: Some(seed),
            ..Provenance::default()
        }
    }
}

impl Experiment {
    /// Computes the cells of a shard into `folder`, one Parquet file each, beside `experiment.json`. Shards may run anywhere,
    /// in any order and at once; the folder then holds the same bytes as after one run. Returns how many cells were computed.
    ///
    /// # Errors
    /// Where the folder holds another experiment, or a cell of this shard already unless resuming;
    /// [`Error::Stopped`] when stopped: finished cells are kept.
    pub fn run(&self, folder: impl AsRef<Path>, options: &RunOptions<'_>) -> Result<usize> {
        let folder = folder.as_ref();
        self.validate()?;
        let (shard, of) = options.shard;
        if !(1..=of).contains(&shard) {
            return Err(Error::argument("shard", "k/n with k from 1 to n", format!("{shard}/{of}")));
        }
        folder::begin(self, folder)?;
        let mine = self.cells.iter().skip(shard - 1).step_by(of);
        let (done, open): (Vec<&Cell>, Vec<&Cell>) = mine.partition(|cell| cell_path(folder, &cell.name).exists());
        if let (Some(cell), false) = (done.first(), options.resume) {
            let found = format!("a finished cell, {}", cell_path(folder, &cell.name).display());
            return Err(Error::argument("folder", "one without results of these cells, or to resume", found));
        }
        for cell in done {
            let found = Table::read(cell_path(folder, &cell.name))?;
            if found.provenance() != &cell.provenance(self.seed, self.runs) {
                let expected = "results of this experiment's cell of that name";
                return Err(Error::argument("folder", expected, format!("others in {}", cell.name)));
            }
        }
        // One thread a cell: small models gain nothing from more, and results do not depend on how many cores there are.
        on_one_thread(|| self.compute_all(folder, &open, options))
    }

    fn compute_all(&self, folder: &Path, open: &[&Cell], options: &RunOptions<'_>) -> Result<usize> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut progress = Progress::new("cells", open.len());
        let each = |number: usize| {
            let cell: &Cell = open[number];
            let computed = cell.compute(self.seed, self.runs);
            let written = computed.and_then(|table| table.write(cell_path(folder, &cell.name)));
            written.map_err(|reason| Error::Cell { cell: cell.name.clone(), reason: Box::new(reason) })
        };
        let done = spread(open.len(), options.threads.unwrap_or(cores).max(1), options.stop, each, |_, ()| {
            progress.add(1);
            Ok(())
        })?;
        if done < open.len() { Err(progress.stopped()) } else { Ok(done) }
    }
}
