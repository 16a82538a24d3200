//! What does a sweep compute? Variants of one run, by one of two strategies.

use crate::model::Edit;
use crate::table::Keys;

/// One variant of a run: what changes, and the keys of its row in the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// The row's keys.
    pub keys: Keys,
    /// The edits, which all apply together.
    pub edits: Vec<Edit>,
}

/// How to compute a sweep. The results agree to floating-point tolerance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Strategy {
    /// Variants are stacked on the batch axis, and each joins the pass at the step and position where it departs from
    /// the unchanged run. At the end, only the positions and logits that the metric reads are computed.
    #[default]
    Auto,
    /// One whole forward pass per variant: the reference that [`Strategy::Auto`] is tested against.
    Naive,
}
