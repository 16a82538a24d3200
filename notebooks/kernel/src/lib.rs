//! What notebook cells see under the name `headscope`: the library, and beside it the crates whose types it speaks.

pub use headscope::*;
pub use {ndarray, polars, rayon, serde_json, tch};
