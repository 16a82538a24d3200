//! headscope

pub mod checkpoint;
pub mod device;
mod error;
pub mod model;

pub use error::{Error, Result};
