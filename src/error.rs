//! One error type: every variant says what was expected, what was found, and where.

use std::path::{Path, PathBuf};

use crate::site::{Site, UnknownSite};

/// What every fallible function of headscope returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, in terms of what the caller gave.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb: `read`, `write`, `map`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Another process is at work on a file or folder.
    #[error("{}: {} is at work on it; wait for its end, or choose another place", path.display(), holder.map_or("another process".to_owned(), |pid| format!("process {pid}")))]
    Held {
        /// The file or folder.
        path: PathBuf,
        /// The number of the process that holds it, where it is known.
        holder: Option<u32>,
    },
    /// A file's content is not what its format promises.
    #[error("{}: {at}: expected {expected}, found {found}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The tensor, key or byte range within the file.
        at: String,
        /// What the format asks for.
        expected: String,
        /// What stands there.
        found: String,
    },
    /// A file is not as it was written: its checksum does not match.
    #[error("{}: damaged or changed since it was written: expected SHA-256 {expected}, found {found}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The checksum that was kept when it was written.
        expected: String,
        /// The checksum of what stands there now.
        found: String,
    },
    /// The config's numbers do not fit together.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// Which one, what was expected and what was found.
        reason: Box<Error>,
    },
    /// A tensor that the architecture needs is not in the checkpoint.
    #[error("{}: tensor `{tensor}` is missing (expected shape {expected:?})", path.display())]
    MissingTensor {
        /// The checkpoint's file or folder.
        path: PathBuf,
        /// The name that was looked for.
        tensor: String,
        /// Its shape by the config.
        expected: Vec<i64>,
    },
    /// The checkpoint holds tensors that the architecture has no place for.
    #[error("{}: {} tensor(s) that `{family}` has no place for, the first is `{}`", path.display(), tensors.len(), tensors.first().map_or("", String::as_str))]
    SurplusTensors {
        /// The checkpoint's file or folder.
        path: PathBuf,
        /// The architecture family.
        family: &'static str,
        /// Their names, sorted.
        tensors: Vec<String>,
    },
    /// A value that must be finite is not.
    #[error("{at}: expected finite values, found {found} at index {index}")]
    NotFinite {
        /// The file and tensor, or the argument.
        at: String,
        /// The flat index of the first such value.
        index: usize,
        /// The value.
        found: f64,
    },
    /// The config names an architecture that no family reads.
    #[error("{}: unknown model_type `{found}`, expected one of {}", path.display(), known.join(", "))]
    UnknownFamily {
        /// The config file.
        path: PathBuf,
        /// The `model_type` found.
        found: String,
        /// The families that load.
        known: Vec<&'static str>,
    },
    /// A model's name is neither a folder, nor bundled, nor on the hub.
    #[error(
        "cannot find model `{name}`: {reason}; expected a folder with config.json, a bundled name ({}), or a hub id such as `openai-community/gpt2`",
        bundled.join(", ")
    )]
    ModelNotFound {
        /// What was asked for.
        name: String,
        /// What was tried and how it ended.
        reason: String,
        /// The bundled names.
        bundled: Vec<&'static str>,
    },
    /// The tokenizer cannot be read, or cannot encode or decode.
    #[error("{at}: tokenizer: {reason}")]
    Tokenizer {
        /// The file, or the text's number.
        at: String,
        /// The tokenizer's own message.
        reason: String,
    },
    /// No site has this name.
    #[error(transparent)]
    UnknownSite(#[from] UnknownSite),
    /// The model has no such site, so a tap or an edit there could never fire.
    #[error("site `{site}` does not exist in this model: {reason}")]
    SiteAbsent {
        /// The site.
        site: Site,
        /// Why the model has none.
        reason: String,
    },
    /// The run did not record this site.
    #[error("site `{site}` was not tapped in this run; tapped: {}", if tapped.is_empty() { "nothing".to_owned() } else { tapped.join(", ") })]
    NotTapped {
        /// The site asked for.
        site: Site,
        /// What the run holds.
        tapped: Vec<String>,
    },
    /// An edit cannot apply at its site.
    #[error("edit at `{site}`: expected {expected}, found {found}")]
    Edit {
        /// The site.
        site: Site,
        /// What the action or selector needs.
        expected: String,
        /// What it has.
        found: String,
    },
    /// An index lies outside its axis.
    #[error("{at}: {axis} {found} is out of range, expected less than {limit}")]
    OutOfRange {
        /// Where the index was given.
        at: String,
        /// The axis, by its name in the docs.
        axis: &'static str,
        /// The index.
        found: i64,
        /// The axis' length.
        limit: i64,
    },
    /// An array does not have the shape that a function needs.
    #[error("{at}: expected shape {expected}, found {found:?}")]
    Shape {
        /// The argument or tensor.
        at: String,
        /// The shape in axis names and numbers.
        expected: String,
        /// The shape found.
        found: Vec<i64>,
    },
    /// An argument or option has a value that makes no sense.
    #[error("{name}: expected {expected}, found {found}")]
    Argument {
        /// The argument.
        name: &'static str,
        /// What is accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A count asks for more than there is.
    #[error("{name}: {found} would take {takes}; the limit is {limit}")]
    TooMuch {
        /// The argument.
        name: &'static str,
        /// What was given.
        found: String,
        /// The memory or time that this needs.
        takes: String,
        /// How much of it there may be.
        limit: String,
    },
    /// Long work was stopped from outside.
    #[error("stopped after {done} of {total} {what}")]
    Stopped {
        /// What was being counted.
        what: &'static str,
        /// How many were done.
        done: u64,
        /// How many there are.
        total: u64,
    },
    /// A cell of an experiment's grid cannot be computed.
    #[error("cell `{cell}`: {reason}")]
    Cell {
        /// The cell.
        cell: String,
        /// Why.
        reason: Box<Error>,
    },
    /// libtorch refused an operation.
    #[error("{action}: {}", first_line(source))]
    Torch {
        /// What was being computed.
        action: String,
        /// libtorch's own message.
        source: tch::TchError,
    },
    /// LAPACK failed.
    #[error("{action}: {source}")]
    LinearAlgebra {
        /// What was being computed.
        action: &'static str,
        /// ndarray-linalg's own message.
        source: ndarray_linalg::error::LinalgError,
    },
    /// A part of the model is not in its checkpoint.
    #[error("{at}: {needs} needs `{part}`, which the checkpoint does not have")]
    PartAbsent {
        /// The model.
        at: String,
        /// What was asked for.
        needs: String,
        /// The parameters that it takes.
        part: String,
    },
    /// polars refused a table.
    #[error("{action}: {source}")]
    Table {
        /// What was being done with the table.
        action: String,
        /// polars' own message.
        source: polars::error::PolarsError,
    },
    /// A picture cannot be drawn.
    #[error("cannot draw {what}: {reason}")]
    Draw {
        /// The picture.
        what: &'static str,
        /// Why not.
        reason: String,
    },
}

/// libtorch's message without its stack.
fn first_line(source: &tch::TchError) -> String {
    source.to_string().lines().next().unwrap_or_default().to_owned()
}

impl Error {
    /// Whether the call is at fault: it asks for what does not exist, does not fit the model, or is too much, and would fail
    /// again wherever it is tried. Else the work failed: a file, the network, memory, or it was stopped. The command's exit code
    /// is 2 for the former and 1 for the latter.
    ///
    /// ```
    /// use headscope::model::{Model, Site};
    /// assert!("zz".parse::<Site>().unwrap_err().is_misuse());
    /// assert!(!Model::load("/no/such/folder").unwrap_err().is_misuse());
    /// ```
    pub fn is_misuse(&self) -> bool {
        matches!(
            self,
            Self::Argument { .. }
                | Self::OutOfRange { .. }
                | Self::Shape { .. }
                | Self::UnknownSite { .. }
                | Self::SiteAbsent { .. }
                | Self::NotTapped { .. }
                | Self::Edit { .. }
                | Self::PartAbsent { .. }
                | Self::TooMuch { .. }
        )
    }

    /// An [`Error::Io`] at `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// An [`Error::Torch`] while doing `action`.
    pub(crate) fn torch(action: impl Into<String>) -> impl FnOnce(tch::TchError) -> Self {
        let action = action.into();
        move |source| Self::Torch { action, source }
    }

    /// An [`Error::LinearAlgebra`] while doing `action`.
    pub(crate) fn linear_algebra(action: &'static str) -> impl FnOnce(ndarray_linalg::error::LinalgError) -> Self {
        move |source| Self::LinearAlgebra { action, source }
    }

    /// An [`Error::Table`] while doing `action`.
    pub(crate) fn table(action: impl Into<String>) -> impl FnOnce(polars::error::PolarsError) -> Self {
        let action = action.into();
        move |source| Self::Table { action, source }
    }

    /// An [`Error::Argument`].
    pub(crate) fn argument(name: &'static str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Argument { name, expected: expected.into(), found: found.to_string() }
    }
}
