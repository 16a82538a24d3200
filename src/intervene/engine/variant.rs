//! What is computed many times over: variants of one run, and how.

use crate::model::Edit;
use crate::table::Keys;

/// One variant of a run: what is changed, and what its row in the table is about.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// The row's keys.
    pub keys: Keys,
    /// The edits; all of them apply together.
    pub edits: Vec<Edit>,
}

/// How to compute a sweep. The results are the same to float tolerance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Variants join the pass where they depart from the unchanged run, stacked on the batch axis, from their first changed
    /// position on; only the positions and logits that the metric reads are computed at the end.
    #[default]
    Auto,
    /// One whole forward pass for each variant: what every peer does, and what the other is tested against.
    Naive,
}
