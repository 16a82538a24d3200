//! Cells computed, each to a file of its own.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::commit::commit;
use super::folder::{self, cell_path};
use super::origin::Origin;
use super::{Cell, Experiment};
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::table::Table;
use crate::workers::{on_one_thread, spread};

/// How an experiment is run.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions<'a> {
    /// Which part of the cells, counted from 1, of how many: cells k, k + n, k + 2n, ...
    pub shard: (usize, usize),
    /// Whether finished cells are kept, and damaged ones computed again; else there must be none.
    pub resume: bool,
    /// Cells computed at once, each on one thread; nothing for as many as there are cores.
    pub threads: Option<usize>,
    /// Set from elsewhere to stop after the cells in hand.
    pub stop: Option<&'a AtomicBool>,
    /// Told what the user should know of finished cells: which were damaged, or computed by another commit.
    pub note: fn(&str),
}

impl Default for RunOptions<'_> {
    fn default() -> Self {
        Self { shard: (1, 1), resume: false, threads: None, stop: None, note: |_| {} }
    }
}

impl Cell {
    /// Computes the cell: a pure function of its work, `seed` and `runs`.
    ///
    /// # Errors
    /// Where an option makes no sense, or training fails.
    pub fn compute(&self, seed: u64, runs: usize) -> Result<Table> {
        self.compute_for(None, seed, runs)
    }

    /// [`Cell::compute`] for the experiment of a given hash.
    fn compute_for(&self, declaration: Option<String>, seed: u64, runs: usize) -> Result<Table> {
        let mut computed = self.work.compute(&seeds(seed, runs)?)?;
        let provenance = self.provenance(seed, runs, &Origin::of(&computed, declaration));
        computed.rows.iter_mut().for_each(|row| row.keys.cell = Some(self.name.clone()));
        Table::new(computed.rows, provenance)
    }
}

/// The seeds of `runs` runs.
pub(super) fn seeds(seed: u64, runs: usize) -> Result<Vec<u64>> {
    let each = (0..runs as u64).map(|run| seed.checked_add(run));
    let found = || Error::argument("seed", format!("one that leaves room for {runs} runs below 2^64"), seed);
    each.collect::<Option<_>>().ok_or_else(found)
}

impl Experiment {
    /// Computes the cells of a shard into `folder`, one Parquet file each, beside `experiment.json`. Shards may run anywhere, in
    /// any order and at once; on one machine, or several of one kind, the folder then holds the same bytes as after one run.
    /// Other processors round differently, and training amplifies that. Returns how many cells were computed.
    ///
    /// # Errors
    /// Where the folder holds another experiment, or a cell of this shard already unless resuming; [`Error::Held`] where
    /// another process computes some of the same cells there; [`Error::Stopped`] when stopped: finished cells are kept.
    pub fn run(&self, folder: impl AsRef<Path>, options: &RunOptions<'_>) -> Result<usize> {
        let folder = folder.as_ref();
        self.validate()?;
        let (shard, of) = options.shard;
        if !(1..=of).contains(&shard) {
            return Err(Error::argument("shard", "k/n with k from 1 to n", format!("{shard}/{of}")));
        }
        if options.threads == Some(0) {
            return Err(Error::argument("threads", "at least 1", 0));
        }
        let _held = folder::hold(folder, options.shard, self.cells.len())?;
        folder::begin(self, folder)?;
        let mine = self.cells.iter().skip(shard - 1).step_by(of);
        let (done, mut open): (Vec<&Cell>, Vec<&Cell>) = mine.partition(|cell| cell_path(folder, &cell.name).exists());
        if let (Some(cell), false) = (done.first(), options.resume) {
            let found = format!("a finished cell, {}", cell_path(folder, &cell.name).display());
            return Err(Error::argument("folder", "one without results of these cells, or to resume", found));
        }
        let mut kept = vec![];
        for cell in done {
            match self.keeps(cell, folder, options.note)? {
                Some(origin) => kept.push((cell, origin)),
                None => open.push(cell),
            }
        }
        let declaration = self.sha256()?;
        if let Some((cell, _)) = kept.iter().find(|(_, kept)| kept.declaration.as_ref() != Some(&declaration)) {
            let found = format!("cell {}, of one with other predictions, another rule or other cells", cell.name);
            return Err(Error::argument("folder", "finished cells of this experiment's declaration", found));
        }
        // One thread a cell: small models gain nothing from more, and results do not depend on how many cores there are.
        on_one_thread(|| self.compute_all(folder, &open, options))
    }

    /// Where a finished cell comes from; nothing where it is damaged, which is noted. Fails where it is another cell.
    fn keeps(&self, cell: &Cell, folder: &Path, note: fn(&str)) -> Result<Option<Origin>> {
        let path = cell_path(folder, &cell.name);
        let (found, checked) = match Table::read_checked(&path) {
            Ok(found) => found,
            Err(damage @ (Error::Damaged { .. } | Error::Format { .. } | Error::Table { .. })) => {
                note(&format!("{damage}; cell {} is computed again", cell.name));
                return Ok(None);
            }
            Err(other) => return Err(other),
        };
        let origin = self.check_finished(cell, found.provenance())?;
        if !checked {
            let found = format!("{} without one; move it away to have it computed", path.display());
            return Err(Error::argument("folder", "finished cells with a checksum", found));
        }
        if origin.commit != commit() {
            note(&format!("cell {} was computed by commit {}, this is {}", cell.name, origin.commit, commit()));
        }
        Ok(Some(origin))
    }

    fn compute_all(&self, folder: &Path, open: &[&Cell], options: &RunOptions<'_>) -> Result<usize> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let declaration = self.sha256()?;
        let mut progress = Progress::new("cells", open.len());
        let each = |number: usize| {
            let cell: &Cell = open[number];
            let computed = cell.compute_for(Some(declaration.clone()), self.seed, self.runs);
            let written = computed.and_then(|table| table.write(cell_path(folder, &cell.name)));
            written.map_err(|reason| Error::Cell { cell: cell.name.clone(), reason: Box::new(reason) })
        };
        let done = spread(open.len(), options.threads.unwrap_or(cores), options.stop, each, |_, ()| {
            progress.add(1);
            Ok(())
        })?;
        if done < open.len() { Err(progress.stopped()) } else { Ok(done) }
    }
}
