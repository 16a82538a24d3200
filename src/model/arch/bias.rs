//! Which projections of attention have a bias?

use serde::{Deserialize, Serialize};

/// Which of the query, key and value projections have a bias; `true` or `false` in a file means all or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrEach", into = "OneOrEach")]
pub struct QkvBias {
    /// The queries.
    pub q: bool,
    /// The keys.
    pub k: bool,
    /// The values.
    pub v: bool,
}

impl QkvBias {
    /// All of them.
    pub const ALL: Self = Self { q: true, k: true, v: true };
    /// None of them.
    pub const NONE: Self = Self { q: false, k: false, v: false };
}

impl From<bool> for QkvBias {
    fn from(all: bool) -> Self {
        if all { Self::ALL } else { Self::NONE }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrEach {
    One(bool),
    Each { q: bool, k: bool, v: bool },
}

impl From<OneOrEach> for QkvBias {
    fn from(given: OneOrEach) -> Self {
        match given {
            OneOrEach::One(all) => all.into(),
            OneOrEach::Each { q, k, v } => Self { q, k, v },
        }
    }
}

impl From<QkvBias> for OneOrEach {
    fn from(QkvBias { q, k, v }: QkvBias) -> Self {
        if q == k && k == v { Self::One(q) } else { Self::Each { q, k, v } }
    }
}
