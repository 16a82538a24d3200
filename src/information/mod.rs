//! How much one thing says about another: estimators of information that know when they cannot answer. In nats.
//!
//! | question | function |
//! |---|---|
//! | what do x and y share? | [`mutual_information`] with an [`Estimator`] |
//! | what do they share that z does not tell? | [`conditional_information`] |
//! | what do many variables share? | [`total_correlation`], [`o_information`] |
//! | what can a simple probe get out of x? | [`v_information`], [`v_information_of_labels`] |
//! | how many nats does it take to send labels to one who has x? | [`online_code`] |
//! | does the probe read x, or learn by heart? | [`selectivity`] |
//! | is what two sources say about a target the same, or more together? | [`gaussian_decomposition`], [`decomposition`] |
//! | exact values | [`gaussian_information`], [`discrete_information`], [`entropy`] |
//! | distributions whose information is known | [`Truth`] |
//!
//! # When an estimate is no fact
//!
//! A deterministic function of a continuous variable shares infinitely much with it (Goldfeld 2019), so add noise and say how
//! much. No estimate from N samples can be trusted far beyond ln N (McAllester & Stratos 2020), and none from few samples in
//! many dimensions. Every [`Estimate`] carries what speaks against it as [`Warning`]s.

mod binned;
mod decomposition;
mod estimate;
mod gaussian;
mod local;
mod logistic;
mod neighbour;
mod probe;
mod sample;
mod tree;
mod truth;

pub use binned::{BinRule, BinnedOptions, discrete_information, entropy};
pub use decomposition::{Decomposition, Redundancy, decomposition, gaussian_decomposition};
pub use estimate::{
    Certainty, Estimate, Estimator, Scaling, Warning, conditional_information, mutual_information, o_information,
    total_correlation,
};
pub use gaussian::{CcaOptions, GaussianOptions, Shrinkage, gaussian_information};
pub use neighbour::{KsgOptions, KsgVariant};
pub use probe::{
    OnlineCode, ProbeOptions, Selectivity, online_code, selectivity, v_information, v_information_of_labels,
};
pub use truth::Truth;
