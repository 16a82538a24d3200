//! How important are heads, where do they attend, and what drives their learning? Measured at any step of training, for
//! many models at once.
//!
//! | question | where |
//! |---|---|
//! | How large is the loss of each task? | [`Probe::losses`] |
//! | How large is it with some heads ablated? | [`Probe::losses_without`] |
//! | How important is each head for each task? | [`Probe::shapley`], summarised by [`division()`], [`specialisation`] and [`participation`] |
//! | Does a head attend to what a prediction depends on, or at a fixed distance? | [`Probe::roles`], [`Probe::position_shares`] |
//! | What is lost without some heads where a role is needed, and only there? | [`Probe::losses_at`] |
//! | Do two heads attend alike? Do they write alike? | [`Probe::pattern_distance`], [`Probe::cka`] |
//! | Do their weights read and write the same subspaces? Of what rank are they? | [`Probe::weight_similarity`], [`Probe::ranks`] |
//! | Which gradients reach which head? | [`Probe::gradients`] |
//! | Which task's loss falls fastest at first? | [`Probe::descent`] |
//! | Which head reduces the gradients of which other? | [`Probe::interference`] |
//! | Do identical heads stay identical, and what drives them apart? | [`Probe::symmetry`], [`Probe::parting`] |
//! | How do I get all of this as one table? | [`Probe::table`], [`Quantity`] |
//!
//! A [`Probe`] holds one model, or several stacked models of one architecture, and [`held_out`] sequences. Wherever
//! possible, one forward pass computes a measurement for all models at once.

mod ablate;
mod descent;
mod division;
mod gradient;
mod pattern;
mod places;
mod probe;
mod roles;
mod rows;
mod symmetry;
mod weights;
mod written;

pub use division::{Division, division, participation, specialisation};
pub use gradient::Gradients;
pub use places::Places;
pub use probe::{Losses, Probe, held_out};
pub use roles::{PositionShares, RoleScores};
pub use rows::Quantity;
pub use symmetry::{Parting, Symmetry, Twins};
pub use weights::CIRCUITS;
