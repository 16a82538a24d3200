//! headscope

pub mod checkpoint;
pub mod device;
mod error;
mod file;
pub mod intervene;
pub mod model;
pub mod prelude;
mod progress;
pub mod table;

pub use error::{Error, Result};
