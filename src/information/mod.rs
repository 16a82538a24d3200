//! How much does one thing tell about another? Estimators of information, in nats, that say when they cannot answer.
//!
//! | question | function |
//! |---|---|
//! | what do x and y share? | [`mutual_information`] with an [`Estimator`] |
//! | what do they share that z does not tell? | [`conditional_information`] |
//! | what do many variables share? | [`total_correlation`], [`o_information`] |
//! | what can a simple probe read from x? | [`v_information`], [`v_information_of_labels`] |
//! | how many nats does it take to send the labels to someone who has x? | [`online_code`] |
//! | does the probe read x, or memorise? | [`selectivity`] |
//! | do two sources say the same about a target, or more together? | [`decomposition_of_samples`]; exact: [`gaussian_decomposition`], [`decomposition`] |
//! | how widely does attention spread, and how much does the query decide? | [`pattern_entropy`], [`pattern_transfer`] |
//! | exact values, for known distributions | [`gaussian_information`], [`discrete_information`], [`entropy`] |
//! | distributions whose information is known, to test with | [`Truth`] |
//!
//! # When an estimate is not a fact
//!
//! A deterministic function of a continuous variable shares infinitely much information with it (Goldfeld 2019), so add noise,
//! and say how much. No estimate from N samples can be trusted far beyond ln N (McAllester & Stratos 2020), and none from few
//! samples in many dimensions. Every [`Estimate`] carries the reasons to doubt it as [`Warning`]s.

mod attention;
mod binned;
mod counter;
mod decomposition;
mod estimate;
mod estimator;
mod gaussian;
mod halves;
mod local;
mod neighbour;
mod probe;
mod question;
mod sample;
mod suspect;
mod tree;
mod truth;

pub use attention::{pattern_entropy, pattern_transfer};
pub use binned::{BinRule, BinnedOptions, discrete_information, entropy};
pub use decomposition::{Decomposition, Redundancy, decomposition, gaussian_decomposition};
pub use estimate::{Certainty, Estimate, Warning};
pub(crate) use estimate::{NOTHING, check_permutations, exceeded};
pub use estimator::{Estimator, Scaling};
pub use gaussian::{CcaOptions, GaussianOptions, Shrinkage, gaussian_information};
pub use neighbour::{KsgOptions, KsgVariant};
pub use probe::{
    OnlineCode, ProbeFamily, ProbeOptions, Selectivity, online_code, selectivity, v_information,
    v_information_of_labels,
};
pub use question::{
    Parts, conditional_information, decomposition_of_samples, mutual_information, o_information, total_correlation,
};
pub(crate) use sample::{check_classes, come_again};
pub(crate) use suspect::checked_pair;
pub use truth::Truth;
