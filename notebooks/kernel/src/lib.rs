//! What notebook cells see under the name `headscope`: the library, and beside it the crates whose types it speaks.
//! The kernel's prelude (kernel.py) calls `headscope::device::tune_process`: the process is the notebook's own.

pub use headscope::*;
pub use {ndarray, polars, rayon, serde_json, tch};
