//! How is a claim about heads tested? By a grid of cells, each a pure function of its options and its seed.
//!
//! | where | what |
//! |---|---|
//! | [`Experiment`] | cells, sub-claims and the rule that judges them, as data; [`Experiment::named`] returns the lab's own |
//! | [`Cell`], [`Work`] | what a cell computes: measurements of a trained or pretrained model, or a construction without training |
//! | [`Experiment::run`] | computes cells into one Parquet file each, in shards, resumable |
//! | [`Results`] | the union of the cells in a folder, and the verdict on them |

mod bottleneck;
mod capacity;
mod commit;
mod complexity;
mod construction;
mod demand;
mod dose;
mod emergence;
mod folder;
mod grid;
mod looks;
mod natural;
mod order;
mod origin;
mod rank;
mod real;
mod roles;
mod run;
mod short;
mod symmetry;
mod taken;
mod work;

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use folder::Results;
pub use run::RunOptions;
pub use work::{
    After, AskedOnText, Attainable, Circle, Complexity, Construction, Demand, Input, Measurement, Occupant, OnText,
    Passages, PatternKind, PatternSet, Pretrained, Regression, Spacing, Start, Texts, Training, WeightsOf, Work,
};

use super::verdict::{Rule, SubClaim, first};
use crate::error::{Error, Result};
use crate::file;

/// An experiment as data: what is computed, what is claimed, and how the claims are judged.
///
/// ```
/// use headscope::lab::{Experiment, Grid};
/// let experiment = Experiment::named("E1", Grid::Small)?;
/// assert!(experiment.sub_claims.iter().any(|claim| claim.id == "C1b"));
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
    /// The size of the grid, if it is one of the lab's own experiments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grid: Option<Grid>,
    /// Run `r` of every cell has seed `seed + r`, which determines its parameters and its training sequences.
    pub seed: u64,
    /// Number of runs per cell at the first look; later looks add runs to the cells that they need.
    pub runs: usize,
    /// What is claimed, fixed before the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sub_claims: Vec<SubClaim>,
    /// The rule by which sub-claims are judged.
    #[serde(default)]
    pub rule: Rule,
    /// Predictions in the form of the first round, judged by its rule for comparison.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first_predictions: Vec<first::Prediction>,
    /// The rule of the first round.
    #[serde(default, skip_serializing_if = "is_default")]
    pub first_rule: first::Rule,
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

fn is_default(rule: &first::Rule) -> bool {
    *rule == first::Rule::default()
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
    pub const NAMES: [&'static str; 15] =
        ["E1", "E2", "E3", "E4", "E5", "E6", "E7", "E8", "E9", "E10", "E11", "E12", "E13", "E14", "E15"];

    /// Returns one of the lab's own experiments.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no experiment of that name.
    pub fn named(id: &str, grid: Grid) -> Result<Self> {
        let declared = match id {
            "E1" => capacity::widths(grid),
            "E2" => symmetry::symmetry(grid),
            "E3" => taken::taken(grid),
            "E4" => bottleneck::bottleneck(grid),
            "E5" => rank::rank(grid),
            "E6" => emergence::emergence(grid),
            "E7" => roles::roles(grid),
            "E8" => capacity::decay(grid),
            "E10" => dose::dose(grid),
            "E11" => natural::natural(grid),
            "E12" => real::real(grid),
            "E9" => complexity::complexity(grid),
            "E13" => demand::demand(grid),
            "E14" => construction::construction(grid),
            "E15" => order::order(grid),
            _ => {
                return Err(Error::argument("experiment", format!("{}, or a JSON file", Self::NAMES.join(", ")), id));
            }
        };
        let declared = if grid == Grid::Small { short::shortened(declared) } else { declared };
        // What the sub-claims need comes first, so that a run that is stopped early has decided most.
        let needed: BTreeSet<&str> = declared.sub_claims.iter().flat_map(SubClaim::cells).collect();
        let (first, rest): (Vec<Cell>, Vec<Cell>) =
            declared.cells.iter().cloned().partition(|cell| needed.contains(cell.name.as_str()));
        Ok(Self { grid: Some(grid), cells: [first, rest].concat(), ..declared })
    }

    /// Reads an experiment from a JSON file.
    ///
    /// # Errors
    /// If the file cannot be read, is not an experiment, or is inconsistent.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let read: Self =
            serde_json::from_slice(&file::read(path)?).and_then(upgraded).map_err(|reason| Error::Format {
                path: path.to_owned(),
                at: "the file".to_owned(),
                expected: "an experiment in the format of `headscope lab show E1 --json`".to_owned(),
                found: reason.to_string(),
            })?;
        read.validate()?;
        Ok(read)
    }

    /// Checks that cell names are unique, that sub-claims refer to existing cells and can succeed as well as fail, that
    /// numbers are valid, and that every run's seed is below 2^64.
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
        self.first_rule.validate()?;
        let first = self.rule.looks[0].seeds;
        if !self.sub_claims.is_empty() && self.runs != first {
            return Err(Error::argument("runs", format!("{first}, as in the first look"), self.runs));
        }
        run::seeds(self.seed, self.rule.looks.last().map_or(0, |look| look.seeds).max(self.runs))?;
        for (number, claim) in self.sub_claims.iter().enumerate() {
            let same = |other: &&SubClaim| (&other.id, other.setting) == (&claim.id, claim.setting);
            if self.sub_claims[..number].iter().any(|other| same(&other)) {
                return Err(Error::argument(
                    "sub_claims",
                    "one of each id in a setting",
                    format!("`{}` twice", claim.id),
                ));
            }
            claim.validate(&names).map_err(|reason| match reason {
                Error::Argument { name, expected, found } => {
                    Error::Argument { name, expected, found: format!("{found} (sub-claim {})", claim.id) }
                }
                other => other,
            })?;
        }
        self.first_predictions.iter().try_for_each(|prediction| prediction.validate(&names))
    }

    /// Returns what a cell trains: its architecture, language and options.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no such cell, or it does not train.
    pub fn training(&self, name: &str) -> Result<&Training> {
        match &self.cell(name)?.work {
            Work::Training(training) => Ok(training),
            _ => Err(Error::argument("cell", "one that trains models", name)),
        }
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
        writeln!(out, "{}: {}\n{}\n\nsub-claims:", self.id, self.title, self.question)?;
        self.sub_claims.iter().try_for_each(|claim| writeln!(out, "  {claim}"))?;
        writeln!(out, "\nrule: {}\n", self.rule)?;
        write!(out, "{} cells of {} runs, seeds from {}:", self.cells.len(), self.runs, self.seed)?;
        self.cells.iter().try_for_each(|cell| write!(out, "\n  {}", cell.name))
    }
}

/// An experiment from its JSON. Files of the first round have `predictions` and `rule` in place of `first_predictions`
/// and `first_rule`.
fn upgraded(mut read: serde_json::Value) -> serde_json::Result<Experiment> {
    if let Some(fields) = read.as_object_mut().filter(|fields| fields.contains_key("predictions")) {
        for (old, new) in [("predictions", "first_predictions"), ("rule", "first_rule")] {
            if let Some(value) = fields.remove(old) {
                fields.insert(new.to_owned(), value);
            }
        }
    }
    serde_json::from_value(read)
}
