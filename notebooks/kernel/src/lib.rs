//! What notebook cells see under the name `headscope`: the library, and beside it the crates whose types it speaks.
//! The kernel's prelude (kernel.py) calls `headscope::device::tune_process`: the process is the notebook's own.

pub use headscope::*;
pub use {ndarray, polars, rayon, serde_json, tch};

/// The library's prelude, and how a cell shows its last expression.
pub mod prelude {
    pub use super::Show as _;
    pub use ::headscope::prelude::*;
}

/// Shows a value that has no picture or table of its own, as evcxr would: by `Debug`.
///
/// evcxr looks for a method of this name first and compiles the cell a second time where there is none. A type's own method
/// goes before this one. `()` is not shown, so that a cell may end in a loop.
pub trait Show {
    fn evcxr_display(&self);
}

impl<T: std::fmt::Debug> Show for T {
    fn evcxr_display(&self) {
        let text = format!("{self:?}");
        if text != "()" {
            println!("EVCXR_BEGIN_CONTENT text/plain\n{text}\nEVCXR_END_CONTENT");
        }
    }
}
