//! Which runs does a look at the evidence add? The seeds of each cell that an earlier look did not have.

use serde_json::json;

use super::origin::Origin;
use super::{Cell, Experiment};
use crate::table::Provenance;

/// What one look adds to one cell: the unit that is computed into a file.
pub(super) struct Part<'a> {
    pub cell: &'a Cell,
    /// The look, counted from 1.
    pub look: usize,
    /// The first seed.
    pub seed: u64,
    /// The number of runs.
    pub runs: usize,
}

impl Experiment {
    /// The parts of some cells at a look, counted from 1.
    pub(super) fn parts<'a>(&self, look: usize, cells: impl Iterator<Item = &'a Cell>) -> Vec<Part<'a>> {
        let seeds = |look: usize| match look {
            0 => 0,
            1 => self.runs,
            _ => self.rule.looks[look - 1].seeds,
        };
        let (from, to) = (seeds(look - 1), seeds(look));
        cells.map(|cell| Part { cell, look, seed: self.seed + from as u64, runs: to - from }).collect()
    }
}

impl Part<'_> {
    /// The name of its file: the cell's, and from the second look on `+` and the look.
    pub(super) fn name(&self) -> String {
        match self.look {
            1 => self.cell.name.clone(),
            look => format!("{}+{look}", self.cell.name),
        }
    }

    /// The provenance of its table.
    pub(super) fn provenance(&self, origin: &Origin) -> Provenance {
        let work = &self.cell.work;
        let named = |input: &&super::Input| input.name == work.model();
        let mut options = json!({"cell": self.cell, "runs": self.runs, "origin": origin});
        if self.look > 1 {
            options["look"] = json!(self.look);
        }
        Provenance {
            headscope: env!("CARGO_PKG_VERSION").to_owned(),
            model: work.model().to_owned(),
            sha256: origin.read.iter().find(named).map_or_else(String::new, |input| input.sha256.clone()),
            options,
            seed: Some(self.seed),
        }
    }
}
