//! Where do a cell's numbers come from, and would a finished cell be computed the same way now?

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::commit::commit;
use super::looks::Part;
use super::work::{Computed, Input};
use super::{Experiment, Grid};
use crate::device;
use crate::error::{Error, Result};
use crate::file;
use crate::lab::differences::differences;
use crate::table::Provenance;

/// Provenance of a cell beyond its own options; stored in the provenance of its table and of the union of all cells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Origin {
    /// The git commit from which headscope was built, or `unknown`.
    pub commit: String,
    /// SHA-256 of the experiment for which the cell was computed, as in `experiment.json`.
    pub declaration: Option<String>,
    /// The grid of that experiment, if it is one of the lab's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<Grid>,
    /// The device on which it was computed.
    pub device: String,
    /// The checkpoint and annotation files that were read.
    pub read: Vec<Input>,
    /// SHA-256 of the model parameters for each seed, if a model was trained or initialised.
    pub parameters: BTreeMap<u64, String>,
}

impl Origin {
    /// The origin of a cell computed by this program for an experiment.
    pub(super) fn of(computed: &Computed, experiment: Option<&Experiment>) -> Result<Self> {
        Ok(Self {
            commit: commit().to_owned(),
            declaration: experiment.map(Experiment::sha256).transpose()?,
            grid: experiment.and_then(|experiment| experiment.grid),
            device: device::name(tch::Device::Cpu),
            read: computed.read.clone(),
            parameters: computed.parameters.clone(),
        })
    }

    /// Reads the origin from a table's provenance; `None` if another program or an older headscope wrote the table.
    pub(super) fn read(provenance: &Provenance) -> Option<Self> {
        serde_json::from_value(provenance.options.get("origin")?.clone()).ok()
    }
}

impl Experiment {
    /// SHA-256 of the experiment as data; equals that of the `experiment.json` that a run writes.
    ///
    /// # Errors
    /// If JSON cannot represent one of the numbers.
    pub fn sha256(&self) -> Result<String> {
        Ok(file::sha256(&self.to_json()?))
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>> {
        let wrong =
            |reason: serde_json::Error| Error::argument("experiment", "numbers that JSON can represent", reason);
        serde_json::to_vec_pretty(self).map_err(wrong)
    }
}

impl Part<'_> {
    /// Checks that a finished cell matches the one that would be computed now: same work, seeds, runs and input files.
    /// Returns its origin; the commit may differ, and so may the rest of the experiment.
    pub(super) fn check_finished(&self, found: &Provenance) -> Result<Origin> {
        let refused = |expected: String, found: String| {
            let expected = format!("cell {} as it would be computed now ({expected})", self.cell.name);
            Err(Error::argument("folder", expected, found))
        };
        let Some(origin) = Origin::read(found) else {
            let found =
                "a table that does not say where it comes from, written by another program or an older headscope";
            return refused("with its origin".to_owned(), format!("{found}; move it away to recompute the cell"));
        };
        // Files that no longer exist cannot be compared.
        let read = self.cell.work.inputs().unwrap_or_else(|_| origin.read.clone());
        let now = Origin { read, ..origin.clone() };
        let (now, then) = (of(&self.provenance(&now)), of(found));
        match differences(&now, &then) {
            Some((expected, found)) => refused(expected, found),
            None => Ok(origin),
        }
    }
}

/// A provenance as JSON.
fn of(provenance: &Provenance) -> Value {
    json!({"headscope": provenance.headscope, "model": provenance.model, "sha256": provenance.sha256,
        "seed": provenance.seed, "options": provenance.options})
}
