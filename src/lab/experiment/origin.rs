//! Where a cell's numbers come from, and whether a finished cell is the one that would be computed now.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::commit::commit;
use super::work::{Computed, Input};
use super::{Cell, Experiment};
use crate::device;
use crate::error::{Error, Result};
use crate::file;
use crate::lab::differences::differences;
use crate::table::Provenance;

/// Where a cell's numbers come from, beside its own options: kept in its provenance, and in that of the union of all cells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Origin {
    /// The git commit that headscope was built from, as far as it is known.
    pub commit: String,
    /// SHA-256 of the experiment that the cell was computed for, as `experiment.json` has it.
    pub declaration: Option<String>,
    /// Where it was computed.
    pub device: String,
    /// The checkpoint and the annotation that were read.
    pub read: Vec<Input>,
    /// SHA-256 of the parameters of each seed's model, where one was trained or drawn.
    pub parameters: BTreeMap<u64, String>,
}

impl Origin {
    /// That of a cell that was computed by this program.
    pub(super) fn of(computed: &Computed, declaration: Option<String>) -> Self {
        Self {
            commit: commit().to_owned(),
            declaration,
            device: device::name(tch::Device::Cpu),
            read: computed.read.clone(),
            parameters: computed.parameters.clone(),
        }
    }

    /// What a cell's table says; nothing where another program wrote it, or an older headscope.
    pub(super) fn read(provenance: &Provenance) -> Option<Self> {
        serde_json::from_value(provenance.options.get("origin")?.clone()).ok()
    }
}

impl Cell {
    /// The provenance of the cell's table.
    pub(super) fn provenance(&self, seed: u64, runs: usize, origin: &Origin) -> Provenance {
        let named = |input: &&Input| input.name == self.work.model();
        Provenance {
            headscope: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.work.model().to_owned(),
            sha256: origin.read.iter().find(named).map_or_else(String::new, |input| input.sha256.clone()),
            options: json!({"cell": self, "runs": runs, "origin": origin}),
            seed: Some(seed),
        }
    }
}

impl Experiment {
    /// SHA-256 of the experiment as data, which is that of `experiment.json` in a folder that a run has made.
    ///
    /// # Errors
    /// Where a number is none that JSON has.
    pub fn sha256(&self) -> Result<String> {
        Ok(file::sha256(&self.to_json()?))
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        let wrong = |reason: serde_json::Error| Error::argument("experiment", "what JSON can hold", reason);
        serde_json::to_vec_pretty(self).map_err(wrong)
    }

    /// Fails where a finished cell is not the one that would be computed now: its work, seeds and runs, and what it read, must
    /// be the same. Returns where it comes from: it may be from another commit, or for an experiment that differs elsewhere.
    pub(super) fn check_finished(&self, cell: &Cell, found: &Provenance) -> Result<Origin> {
        let refused = |expected: String, found: String| {
            let expected = format!("cell {} as it would be computed now ({expected})", cell.name);
            Err(Error::argument("folder", expected, found))
        };
        let Some(origin) = Origin::read(found) else {
            let found = "a table that does not say where it comes from, of another program or an older headscope";
            return refused("with its origin".to_owned(), format!("{found}; move it away to have it computed"));
        };
        // Files that are not there any more cannot have changed.
        let read = cell.work.inputs().unwrap_or_else(|_| origin.read.clone());
        let now = Origin { read, ..origin.clone() };
        let (now, then) = (of(&cell.provenance(self.seed, self.runs, &now)), of(found));
        match differences(&now, &then) {
            Some((expected, found)) => refused(expected, found),
            None => Ok(origin),
        }
    }
}

/// A provenance as data.
fn of(provenance: &Provenance) -> Value {
    json!({"headscope": provenance.headscope, "model": provenance.model, "sha256": provenance.sha256,
        "seed": provenance.seed, "options": provenance.options})
}
