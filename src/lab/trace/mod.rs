//! What heads are worth, where they look and what pulls at them: measured at any step of training, for many models at once.
//!
//! | question | where |
//! |---|---|
//! | how large is the loss of each task? | [`Probe::losses`] |
//! | and without some heads? | [`Probe::losses_without`] |
//! | what is each head worth for each task? | [`Probe::shapley`]; [`specialisation`], [`participation`] of it |
//! | does a head look at what a prediction depends on? | [`Probe::roles`] |
//! | do two heads look alike, do they write alike? | [`Probe::pattern_distance`], [`Probe::cka`] |
//! | do their weights read and write the same? in how many dimensions? | [`Probe::weight_similarity`], [`Probe::ranks`] |
//! | which gradient reaches which head? | [`Probe::gradients`] |
//! | who takes whose gradient away? | [`Probe::interference`] |
//! | do heads that are the same stay so, and what drives them apart? | [`Probe::symmetry`], [`Probe::parting`] |
//! | all of it as one table? | [`Probe::table`], [`Quantity`] |
//!
//! A [`Probe`] is a model, or several of one architecture stacked, on [`held_out`] sequences. All that can be is computed for all
//! models at once, by the one forward pass.

mod ablate;
mod division;
mod gradient;
mod pattern;
mod probe;
mod rows;
mod symmetry;
mod weights;
mod written;

pub use division::{participation, specialisation};
pub use gradient::Gradients;
pub use pattern::RoleScores;
pub use probe::{Losses, Probe, held_out};
pub use rows::Quantity;
pub use symmetry::{Parting, Symmetry, Twins};
pub use weights::CIRCUITS;
