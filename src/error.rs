//! What went wrong? One error type, whose variants say what was expected, what was found, and where.

use std::path::{Path, PathBuf};

use crate::site::{Site, UnknownSite};

/// The result of every fallible function of headscope.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, in terms of the caller's input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused access to a file.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The operation, as a verb: `read`, `write`, `map`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Another process is using a file or folder.
    #[error("{}: {} is at work on it; wait for its end, or choose another place", path.display(), holder.map_or("another process".to_owned(), |pid| format!("process {pid}")))]
    Held {
        /// The file or folder.
        path: PathBuf,
        /// The id of the process that holds it, if known.
        holder: Option<u32>,
    },
    /// A file's contents do not match its format.
    #[error("{}: {at}: expected {expected}, found {found}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The tensor, key or byte range within the file.
        at: String,
        /// What the format requires.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A file has changed since it was written: its checksum does not match.
    #[error("{}: damaged or changed since it was written: expected SHA-256 {expected}, found {found}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The checksum recorded when the file was written.
        expected: String,
        /// The checksum of the file as it is now.
        found: String,
    },
    /// The values in a config do not fit together.
    #[error("{}: {reason}", path.display())]
    Config {
        /// The config file.
        path: PathBuf,
        /// Which value, what was expected and what was found.
        reason: Box<Error>,
    },
    /// A tensor that the architecture needs is missing from the checkpoint.
    #[error("{}: tensor `{tensor}` is missing (expected shape {expected:?})", path.display())]
    MissingTensor {
        /// The checkpoint's file or folder.
        path: PathBuf,
        /// The name of the tensor.
        tensor: String,
        /// Its shape according to the config.
        expected: Vec<i64>,
    },
    /// The checkpoint contains tensors that the architecture does not use.
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
    /// The config names an unknown architecture.
    #[error(
        "{}: unknown model_type `{found}`{}; expected one of {}; CONTRIBUTING.md says how to add a family",
        path.display(),
        nearest.map(|nearest| format!(", nearest is `{nearest}`, but {differs}")).unwrap_or_default(),
        known.join(", ")
    )]
    UnknownFamily {
        /// The config file.
        path: PathBuf,
        /// The `model_type` that was found.
        found: String,
        /// The families that can be loaded.
        known: Vec<&'static str>,
        /// The family that reads most of the config.
        nearest: Option<&'static str>,
        /// What it refuses in the config, and which keys it does not know.
        differs: String,
    },
    /// A model's name is neither a folder, a bundled name, nor a model on the hub.
    #[error(
        "cannot find model `{name}`: {reason}; expected a folder with config.json, a .gguf file, a bundled name ({}), or a hub id such as `openai-community/gpt2`",
        bundled.join(", ")
    )]
    ModelNotFound {
        /// The name that was requested.
        name: String,
        /// What was tried, and why it failed.
        reason: String,
        /// The bundled names.
        bundled: Vec<&'static str>,
    },
    /// The tokenizer cannot be read, or cannot encode or decode.
    #[error("{at}: tokenizer: {reason}")]
    Tokenizer {
        /// The file, or the number of the text.
        at: String,
        /// The tokenizer's own message.
        reason: String,
    },
    /// No site has this name.
    #[error(transparent)]
    UnknownSite(#[from] UnknownSite),
    /// The model has no such site, so a tap or edit there would never fire.
    #[error("site `{site}` does not exist in this model: {reason}")]
    SiteAbsent {
        /// The site.
        site: Site,
        /// Why the model does not have it.
        reason: String,
    },
    /// The run did not record this site.
    #[error("site `{site}` was not tapped in this run; tapped: {}", if tapped.is_empty() { "nothing".to_owned() } else { tapped.join(", ") })]
    NotTapped {
        /// The requested site.
        site: Site,
        /// The sites that the run recorded.
        tapped: Vec<String>,
    },
    /// An edit cannot be applied at its site.
    #[error("edit at `{site}`: expected {expected}, found {found}")]
    Edit {
        /// The site.
        site: Site,
        /// What the action or selector requires.
        expected: String,
        /// What was found.
        found: String,
    },
    /// An index is out of range for its axis.
    #[error("{at}: {axis} {found} is out of range, expected less than {limit}")]
    OutOfRange {
        /// Where the index was given.
        at: String,
        /// The name of the axis, as in the docs.
        axis: &'static str,
        /// The index.
        found: i64,
        /// The length of the axis.
        limit: i64,
    },
    /// An array does not have the required shape.
    #[error("{at}: expected shape {expected}, found {found:?}")]
    Shape {
        /// The argument or tensor.
        at: String,
        /// The expected shape, in axis names and numbers.
        expected: String,
        /// The shape found.
        found: Vec<i64>,
    },
    /// An argument or option has an invalid value.
    #[error("{name}: expected {expected}, found {found}")]
    Argument {
        /// The argument.
        name: &'static str,
        /// What is accepted.
        expected: String,
        /// What was given.
        found: String,
    },
    /// A count asks for more than is available.
    #[error("{name}: {found} would take {takes}; the limit is {limit}")]
    TooMuch {
        /// The argument.
        name: &'static str,
        /// What was given.
        found: String,
        /// The memory or time that it would take.
        takes: String,
        /// How much is available.
        limit: String,
    },
    /// A model does not compute what it should.
    #[error("{failed} of {checks} checks failed, by most: {worst}")]
    NotVerified {
        /// How many checks failed.
        failed: usize,
        /// How many there were.
        checks: usize,
        /// The check that exceeded its bound by most.
        worst: String,
    },
    /// A long computation was stopped from outside.
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
    /// Part of the model is missing from its checkpoint.
    #[error("{at}: {needs} needs `{part}`, which the checkpoint does not have")]
    PartAbsent {
        /// The model.
        at: String,
        /// What was requested.
        needs: String,
        /// The parameters that it needs.
        part: String,
    },
    /// polars rejected a table.
    #[error("{action}: {source}")]
    Table {
        /// The operation on the table.
        action: String,
        /// polars' own message.
        source: polars::error::PolarsError,
    },
    /// A figure cannot be drawn.
    #[error("cannot draw {what}: {reason}")]
    Draw {
        /// The figure.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

/// libtorch's message without the backtrace.
fn first_line(source: &tch::TchError) -> String {
    source.to_string().lines().next().unwrap_or_default().to_owned()
}

impl Error {
    /// Returns `true` if the call is wrong: it asks for something that does not exist, does not fit the model or is too
    /// much, and would fail anywhere. Otherwise the work failed, because of a file, the network or memory, or because
    /// it was stopped. The command exits with 2 in the first case and with 1 in the second.
    ///
    /// ```
    /// use headscope::model::{Model, Site};
    /// assert!(headscope::Error::from("zz".parse::<Site>().unwrap_err()).is_misuse());
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
