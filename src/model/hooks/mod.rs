//! What does a run record and change? Plans, as data and as applied; the activations that edits refer to; what was recorded.

mod bank;
mod compiled;
mod function;
mod growing;
mod means;
mod plan;
mod run;

pub(crate) use bank::Bank;
pub(crate) use compiled::{Program, Window};
pub use function::Function;
pub(crate) use function::in_turn;
pub(crate) use growing::Growing;
pub use growing::Span;
pub(crate) use means::Means;
pub use plan::{Action, Edit, Plan, Selector, Tap};
pub(crate) use run::Joint;
pub use run::Run;
