//! How does a model come to be? Its checkpoints of training, one after another, as one table.

use serde_json::json;

use super::{LoadOptions, locate};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::progress::Progress;
use crate::table::{Provenance, Table};

/// The checkpoints of one training: revisions on the hub (`step1000` of Pythia), or the sub-folders of a folder.
///
/// ```
/// use headscope::prelude::*;
/// # let folder = tempfile::tempdir().unwrap();
/// # for step in [0, 1000] {
/// #     Model::random(&ModelConfig::default(), step)?.save(folder.path().join(format!("step{step}")))?;
/// # }
/// # let folder = folder.path().to_str().unwrap();
/// // Or Series::new("EleutherAI/pythia-70m", ["step0", "step512", "step1000"])?
/// let series = Series::of_folder(folder)?;
/// let tokens = Tokens::new(&[vec![5, 6, 7, 5, 6, 7]])?;
/// let table = series.table(|model| pattern_scores(model, &tokens, &PatternOptions::default()))?;
/// assert!(table.columns().contains(&"step".to_owned()));
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    name: String,
    /// Each revision and its step, in the order of training.
    revisions: Vec<(String, u32)>,
    options: LoadOptions,
}

impl Series {
    /// These revisions of a model, which is a hub id or a folder; each ends in its step, as `step1000` and `checkpoint-500` do.
    ///
    /// # Errors
    /// If there is no revision, one does not end in a number, or two are of the same step.
    pub fn new(name: &str, revisions: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        let read = |revision: String| {
            let step = step(&revision).ok_or_else(|| {
                Error::argument("revisions", "names that end in a step, such as step1000", format!("`{revision}`"))
            })?;
            Ok((revision, step))
        };
        let mut revisions = revisions.into_iter().map(|revision| read(revision.into())).collect::<Result<Vec<_>>>()?;
        revisions.sort_by_key(|(_, step)| *step);
        if revisions.is_empty() {
            return Err(Error::argument("revisions", "at least one", "none"));
        }
        if let Some(same) = revisions.windows(2).find(|pair| pair[0].1 == pair[1].1) {
            let found = format!("`{}` and `{}`", same[0].0, same[1].0);
            return Err(Error::argument("revisions", "one of each step", found));
        }
        Ok(Self { name: name.to_owned(), revisions, options: LoadOptions::default() })
    }

    /// All checkpoints in a folder: its sub-folders with a `config.json` whose names end in a step.
    ///
    /// # Errors
    /// If the folder cannot be read, or has no such sub-folder.
    pub fn of_folder(name: &str) -> Result<Self> {
        let found = locate::revisions_in(name.as_ref())?;
        Self::new(name, found.into_iter().filter(|revision| step(revision).is_some()))
    }

    /// Loads each with these options, whose revision is left aside.
    #[must_use]
    pub fn options(mut self, options: LoadOptions) -> Self {
        self.options = options;
        self
    }

    /// The steps, in order.
    pub fn steps(&self) -> Vec<u32> {
        self.revisions.iter().map(|(_, step)| *step).collect()
    }

    /// Loads one checkpoint after another and puts what `measure` finds into one table, each row with its `step`. One model is in
    /// memory at a time.
    ///
    /// # Errors
    /// If a checkpoint does not load, and any error of `measure`.
    pub fn table(&self, mut measure: impl FnMut(&Model) -> Result<Table>) -> Result<Table> {
        let mut progress = Progress::new("checkpoints", self.revisions.len());
        let (mut rows, mut of) = (vec![], vec![]);
        for (revision, step) in &self.revisions {
            let options = LoadOptions { revision: Some(revision.clone()), ..self.options.clone() };
            let found = measure(&Model::load_with(&self.name, &options)?)?;
            of.push(json!({"revision": revision, "sha256": found.provenance().sha256, "options": found.provenance().options}));
            let mut own = found.rows()?;
            own.iter_mut().for_each(|row| row.keys.step = Some(*step));
            rows.extend(own);
            progress.add(1);
        }
        let provenance = Provenance {
            headscope: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.name.clone(),
            options: json!({"what": "a series of checkpoints", "of": of}),
            ..Provenance::default()
        };
        Table::new(rows, provenance)
    }
}

/// The number in which a revision's name ends.
fn step(revision: &str) -> Option<u32> {
    let digits = revision.len() - revision.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    revision[revision.len() - digits..].parse().ok()
}
