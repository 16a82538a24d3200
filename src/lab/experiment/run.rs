//! How are cells computed? In shards, in parallel, each into its own file.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::commit::commit;
use super::folder::{self, Results, cell_path};
use super::looks::Part;
use super::origin::Origin;
use super::{Cell, Experiment};
use crate::error::{Error, Result};
use crate::lab::verdict::{Judged, Verdict};
use crate::progress::Progress;
use crate::table::Table;
use crate::workers::{on_one_thread, spread};

/// Options for running an experiment.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions<'a> {
    /// Which part of the cells to compute, as (k, n) with k counted from 1: cells k, k + n, k + 2n, ...
    pub shard: (usize, usize),
    /// Whether to keep finished cells and recompute damaged ones; otherwise finished cells are an error.
    pub resume: bool,
    /// Cells computed at once, each on one thread; `None` uses as many as there are cores.
    pub threads: Option<usize>,
    /// How many of the rule's looks to take at most. A later look computes only the cells that an earlier one left open,
    /// once all cells of the earlier one are there.
    pub looks: usize,
    /// Whether to compute only the cells that sub-claims and their gates need, not those that only describe.
    pub deciding: bool,
    /// Set from elsewhere to stop once the cells in progress are finished.
    pub stop: Option<&'a AtomicBool>,
    /// Receives messages about finished cells: which are damaged, or were computed by another commit.
    pub note: fn(&str),
}

impl Default for RunOptions<'_> {
    fn default() -> Self {
        Self { shard: (1, 1), resume: false, threads: None, looks: 1, deciding: false, stop: None, note: |_| {} }
    }
}

impl Cell {
    /// Computes the cell: a pure function of its work, `seed` and `runs`.
    ///
    /// # Errors
    /// If an option is invalid, or training fails.
    pub fn compute(&self, seed: u64, runs: usize) -> Result<Table> {
        Ok(self.compute_for(None, &Part { cell: self, look: 1, seed, runs })?.0)
    }

    /// [`Cell::compute`] for a look of an experiment, with how long it took.
    fn compute_for(&self, of: Option<&Experiment>, part: &Part<'_>) -> Result<(Table, f64)> {
        let begun = std::time::Instant::now();
        let mut computed = self.work.compute(&seeds(part.seed, part.runs)?)?;
        let provenance = part.provenance(&Origin::of(&computed, of)?);
        computed.rows.iter_mut().for_each(|row| row.keys.cell = Some(self.name.clone()));
        Ok((Table::new(computed.rows, provenance)?, begun.elapsed().as_secs_f64()))
    }
}

/// The error where results are there, and nobody asked to go on from them.
fn refused_without_resume(there: &Path) -> Error {
    let found = format!("finished cells, {}", there.display());
    Error::argument("folder", "no results for these cells, or the option to resume", found)
}

/// Seeds of the `runs` runs.
pub(super) fn seeds(seed: u64, runs: usize) -> Result<Vec<u64>> {
    let each = (0..runs as u64).map(|run| seed.checked_add(run));
    let found = || Error::argument("seed", format!("one that leaves room for {runs} runs below 2^64"), seed);
    each.collect::<Option<_>>().ok_or_else(found)
}

impl Experiment {
    /// Computes the cells of a shard into `folder`, one Parquet file each, alongside `experiment.json`; a later look adds
    /// files of its own, `NAME+LOOK.parquet`, with the seeds that follow. Returns how many files were computed. With
    /// `resume`, what only `results.parquet` holds counts as finished, too.
    ///
    /// Shards may run anywhere, in any order and concurrently. On one machine, or several of the same kind, the folder
    /// ends up with the same bytes as after a single run. Other processors round differently, and training amplifies
    /// the difference.
    ///
    /// # Errors
    /// If the folder holds another experiment, or holds a cell of this shard and `resume` is not set; [`Error::Held`]
    /// if another process is computing some of the same cells there; [`Error::Stopped`] when stopped, in which case
    /// finished cells are kept.
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
        if !(1..=self.rule.looks.len()).contains(&options.looks) {
            let expected = format!("1 to {}, as many as the rule has", self.rule.looks.len());
            return Err(Error::argument("looks", expected, options.looks));
        }
        let _held = folder::hold(folder, options.shard, self.cells.len())?;
        folder::begin(self, folder)?;
        if options.resume {
            folder::unpack(self, folder, options.note)?;
        } else if let Some(union) = folder::only_union(folder) {
            return Err(refused_without_resume(&union));
        }
        let mut done = 0;
        for look in 1..=options.looks {
            let parts = match look {
                1 => self.parts(1, self.cells.iter().filter(|cell| !options.deciding || self.decides(cell))),
                _ => match self.left_open(folder, look)? {
                    Some(cells) => self.parts(look, cells.into_iter()),
                    None => break,
                },
            };
            done += self.run_parts(folder, parts.into_iter().skip(shard - 1).step_by(of).collect(), options)?;
        }
        Ok(done)
    }

    /// The cells that the looks before left open; `None` if there is none, or if another shard has not finished yet. What
    /// other shards have already added to this look does not count: all shards share the same list.
    fn left_open(&self, folder: &Path, look: usize) -> Result<Option<Vec<&Cell>>> {
        let before = Results::of_looks(self, folder, look - 1)?;
        if self.cells.iter().any(|cell| self.decides(cell) && before.missing.contains(&cell.name)) {
            return Ok(None);
        }
        let judged = before.judged()?;
        let unfinished = |judged: &Judged| {
            let decided = judged.decided();
            decided.verdict == Verdict::Open && decided.looks + 1 < look
        };
        if judged.iter().any(unfinished) {
            return Ok(None);
        }
        let open: Vec<&str> = judged.iter().flat_map(Judged::open_cells).collect();
        let cells: Vec<&Cell> = self.cells.iter().filter(|cell| open.contains(&cell.name.as_str())).collect();
        Ok((!cells.is_empty()).then_some(cells))
    }

    /// Whether a sub-claim, or one of its gates, reads the cell.
    fn decides(&self, cell: &Cell) -> bool {
        self.sub_claims.iter().any(|claim| claim.cells().any(|name| name == cell.name))
    }

    /// Computes the parts that are not finished.
    fn run_parts(&self, folder: &Path, mine: Vec<Part<'_>>, options: &RunOptions<'_>) -> Result<usize> {
        let (done, mut open): (Vec<Part<'_>>, Vec<Part<'_>>) =
            mine.into_iter().partition(|part| cell_path(folder, &part.name()).exists());
        if let (Some(part), false) = (done.iter().find(|part| part.look == 1), options.resume) {
            return Err(refused_without_resume(&cell_path(folder, &part.name())));
        }
        let mut kept = vec![];
        for part in done {
            match self.keeps(&part, folder, options.note)? {
                Some(origin) => kept.push((part, origin)),
                None => open.push(part),
            }
        }
        let declared = folder::declarations(self, folder)?;
        let is_other = |kept: &Origin| kept.declaration.as_ref().is_none_or(|own| !declared.contains(own));
        if let Some((part, _)) = kept.iter().find(|(_, kept)| is_other(kept)) {
            let found =
                format!("cell {} of a declaration with other sub-claims, another rule or other cells", part.cell.name);
            return Err(Error::argument("folder", "finished cells of this experiment's declaration", found));
        }
        // One thread per cell: small models gain nothing from more, and results do not depend on the number of cores.
        on_one_thread(|| self.compute_all(folder, &open, options))
    }

    /// The origin of a finished cell; `None` if it is damaged, which is reported through `note`. Fails if the file
    /// holds another cell.
    fn keeps(&self, part: &Part<'_>, folder: &Path, note: fn(&str)) -> Result<Option<Origin>> {
        let path = cell_path(folder, &part.name());
        let (found, checked) = match Table::read_checked(&path) {
            Ok(found) => found,
            Err(damage @ (Error::Damaged { .. } | Error::Format { .. } | Error::Table { .. })) => {
                note(&format!("{damage}; cell {} is computed again", part.name()));
                return Ok(None);
            }
            Err(other) => return Err(other),
        };
        let origin = part.check_finished(found.provenance())?;
        if !checked {
            let found = format!("{} without one; move it away to recompute the cell", path.display());
            return Err(Error::argument("folder", "finished cells with a checksum", found));
        }
        if origin.commit != commit() {
            note(&format!(
                "cell {} was computed by commit {}, but this is commit {}",
                part.name(),
                origin.commit,
                commit()
            ));
        }
        Ok(Some(origin))
    }

    fn compute_all(&self, folder: &Path, open: &[Part<'_>], options: &RunOptions<'_>) -> Result<usize> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut progress = Progress::new("cells", open.len());
        let each = |number: usize| {
            let part = &open[number];
            let computed = part.cell.compute_for(Some(self), part);
            let written = computed.and_then(|(table, seconds)| {
                folder::note_time(folder, &part.name(), seconds)?; // first, so that a finished cell has its time
                table.write(cell_path(folder, &part.name()))
            });
            written.map_err(|reason| Error::Cell { cell: part.cell.name.clone(), reason: Box::new(reason) })
        };
        let done = spread(open.len(), options.threads.unwrap_or(cores), options.stop, each, |_, ()| {
            progress.add(1);
            Ok(())
        })?;
        if done < open.len() { Err(progress.stopped()) } else { Ok(done) }
    }
}
