//! How is a claim about heads tested? By a grid of cells, each a pure function of its options and its seed.
//!
//! | where | what |
//! |---|---|
//! | [`Experiment`] | cells, predictions and the rule that judges them, as data; [`Experiment::named`] returns the lab's own |
//! | [`Cell`], [`Work`] | what a cell computes: measurements of a trained or pretrained model, or a construction without training |
//! | [`Experiment::run`] | computes cells into one Parquet file each, in shards, resumable |
//! | [`Results`] | the union of the cells in a folder, and the verdict on them |

mod bottleneck;
mod capacity;
mod commit;
mod emergence;
mod folder;
mod grid;
mod origin;
mod rank;
mod roles;
mod run;
mod symmetry;
mod taken;
mod work;

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use folder::Results;
pub use run::RunOptions;
pub use work::{After, Circle, Input, Measurement, Occupant, Pretrained, Regression, Start, Texts, Training, Work};

use super::verdict::{Prediction, Rule};
use crate::error::{Error, Result};
use crate::file;

/// An experiment as data: what is computed, what each claim predicts, and how the predictions are judged.
///
/// ```
/// use headscope::lab::{Experiment, Grid};
/// let experiment = Experiment::named("E1", Grid::Small)?;
/// assert!(experiment.predictions.iter().any(|prediction| prediction.claim == "C1"));
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    /// Name, such as E1: letters, digits and `. _ - =`.
    pub id: String,
    /// The topic in a few words.
    pub title: String,
    /// The question.
    pub question: String,
    /// Run `r` of every cell has seed `seed + r`, which determines its parameters and its training sequences.
    pub seed: u64,
    /// Number of runs per cell.
    pub runs: usize,
    /// The predictions of each claim, fixed before the run.
    pub predictions: Vec<Prediction>,
    /// The rule by which predictions are judged.
    pub rule: Rule,
    /// The cells to compute.
    pub cells: Vec<Cell>,
}

/// A cell: all its runs form one table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// Name of the cell and of its file: letters, digits and `. _ - =`.
    pub name: String,
    /// What is computed.
    pub work: Work,
}

/// Size of a grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grid {
    /// Runs in minutes on a laptop.
    Small,
    /// More seeds, more cells and longer training: meant for an array job on a cluster.
    Full,
}

/// Maximum number of cells, and of runs per cell.
const MOST: usize = 100_000;

impl Experiment {
    /// Names of the lab's own experiments.
    pub const NAMES: [&'static str; 8] = ["E1", "E2", "E3", "E4", "E5", "E6", "E7", "E8"];

    /// Returns one of the lab's own experiments.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no experiment of that name.
    pub fn named(id: &str, grid: Grid) -> Result<Self> {
        match id {
            "E1" => Ok(capacity::widths(grid)),
            "E2" => Ok(symmetry::symmetry(grid)),
            "E3" => Ok(taken::taken(grid)),
            "E4" => Ok(bottleneck::bottleneck(grid)),
            "E5" => Ok(rank::rank(grid)),
            "E6" => Ok(emergence::emergence(grid)),
            "E7" => Ok(roles::roles(grid)),
            "E8" => Ok(capacity::decay(grid)),
            _ => Err(Error::argument("experiment", format!("{}, or a JSON file", Self::NAMES.join(", ")), id)),
        }
    }

    /// Reads an experiment from a JSON file.
    ///
    /// # Errors
    /// If the file cannot be read, is not an experiment, or is inconsistent.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let read: Self = serde_json::from_slice(&file::read(path)?).map_err(|reason| Error::Format {
            path: path.to_owned(),
            at: "the file".to_owned(),
            expected: "an experiment in the format of `headscope lab show E1 --json`".to_owned(),
            found: reason.to_string(),
        })?;
        read.validate()?;
        Ok(read)
    }

    /// Checks that cell names are unique, that predictions refer to existing cells, that numbers are valid, and that
    /// every run's seed is below 2^64.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first problem.
    pub fn validate(&self) -> Result<()> {
        for (name, found) in [("cells", self.cells.len()), ("runs", self.runs)] {
            if !(1..=MOST).contains(&found) {
                return Err(Error::argument(name, format!("1 to {MOST}"), found));
            }
        }
        run::seeds(self.seed, self.runs)?;
        let mut names: Vec<&str> = self.cells.iter().map(|cell| cell.name.as_str()).collect();
        let own = [("the experiment's id", self.id.as_str())];
        for (what, name) in own.into_iter().chain(names.iter().map(|name| ("a cell's name", *name))) {
            let fits = |c: char| c.is_ascii_alphanumeric() || "._-=".contains(c);
            if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.chars().all(fits) {
                return Err(Error::argument(
                    what,
                    "up to 100 letters, digits and . _ - =, not starting with a dot",
                    name,
                ));
            }
        }
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::argument("cells", "unique names", format!("`{}` twice", twice[0])));
        }
        self.rule.validate()?;
        self.predictions.iter().try_for_each(|prediction| prediction.validate(&names))
    }

    /// Returns the cell with the given name.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is none.
    pub fn cell(&self, name: &str) -> Result<&Cell> {
        let found = self.cells.iter().find(|cell| cell.name == name);
        found.ok_or_else(|| {
            let names: Vec<&str> = self.cells.iter().map(|cell| cell.name.as_str()).collect();
            Error::argument("cell", format!("one of {}", names.join(", ")), name)
        })
    }
}

impl fmt::Display for Experiment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}: {}\n{}\n\npredictions:", self.id, self.title, self.question)?;
        self.predictions.iter().try_for_each(|prediction| writeln!(out, "  {prediction}"))?;
        writeln!(out, "\nrule: {}\n", self.rule)?;
        write!(out, "{} cells of {} runs, seeds from {}:", self.cells.len(), self.runs, self.seed)?;
        self.cells.iter().try_for_each(|cell| write!(out, "\n  {}", cell.name))
    }
}
