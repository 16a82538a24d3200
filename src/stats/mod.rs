//! Statistics on plain numbers.

mod rank;

pub use rank::{shuffled, spearman};
