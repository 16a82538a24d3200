//! What does a head do? Pattern scores, similarity, roles in annotated text, information.
//!
//! | item | question |
//! |---|---|
//! | [`head_scores`] | the next two in one table |
//! | [`pattern_scores`], [`PatternScore`] | what does each head attend to, against uniform and shuffled attention? |
//! | [`induction_scores`], [`Repeats`] | which heads match prefixes and copy, on repeated random tokens? |
//! | [`similarity`], [`Similarity`] | which heads do the same on given prompts? |
//! | [`Model::circuits`](crate::model::Model::circuits), [`CircuitOptions`] | what do a head's weights say, without a run? |
//! | [`Model::copying`](crate::model::Model::copying) | which heads copy tokens? |
//! | [`Roles`], [`Annotated`] | which head knows which link between words ([`read_conllu`], [`read_gap`])? |
//! | [`Role::test`](Role::test) | does the model need the best head for a role? |
//! | [`redundancy`] | do the heads of a layer stand in for each other? |
//! | [`truncation_costs`] | what does a lower rank of QK or OV cost the model? |
//! | [`head_information`] | what do heads and layers tell about tokens, positions, roles and each other, in nats? |
//! | [`layer_information`], [`pair_information`] | what do a layer's heads repeat, what do they tell only together? |
//! | [`rank_survival`] | how much of each feature survives a head's projection, and how much could? |
//! | [`pattern_ranks`] | how many dimensions do the logits behind each head's attention have on a text? |
//! | [`Targets`], [`Prompt`] | how does a given attention pattern score? |

mod align;
mod annotation;
mod batches;
mod causal;
mod circuits;
mod compare;
mod information;
mod interval;
mod pattern;
mod pattern_rank;
mod profile;
mod redundancy;
mod repeats;
mod role;
mod score;
mod similarity;
mod truncate;

pub use align::Looking;
pub use annotation::{Annotated, Link, read_conllu, read_gap};
pub use causal::Role;
pub use circuits::{CircuitOptions, Vocabulary};
pub use compare::{Similarity, similarity, similarity_matrix};
pub use information::{
    HeadEstimator, InformationOptions, Source, Target, TokenLabels, head_information, layer_information,
    pair_information, rank_survival, token_roles,
};
pub use pattern::{Measured, Targets};
pub use pattern_rank::pattern_ranks;
pub use profile::{PatternOptions, pattern_scores};
pub use redundancy::{RedundancyOptions, redundancy};
pub use repeats::{Repeats, head_scores, induction_scores};
pub use role::{RoleOptions, Roles};
pub use score::{PatternScore, Prompt};
pub(crate) use similarity::DEAD;
pub use similarity::{canonical_correlations, jensen_shannon, linear_cka};
pub use truncate::{Cut, TruncationOptions, truncation_costs};
