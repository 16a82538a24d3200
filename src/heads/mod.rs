//! What a head does: pattern scores, similarity, roles against annotation.
//!
//! | where | what |
//! |---|---|
//! | [`head_scores`] | the next two in one table |
//! | [`pattern_scores`], [`PatternScore`] | what each head attends to, beside uniform and shuffled attention |
//! | [`induction_scores`], [`Repeats`] | prefix matching and copying on repeated random tokens |
//! | [`similarity`], [`Similarity`] | which heads do the same on data |
//! | [`Roles`], [`Annotated`] | which head knows which link between words: [`read_conllu`], [`read_gap`] |
//! | [`Role::test`](Role::test) | the best head for a role, and whether the model needs it |
//! | [`truncation_costs`] | what a lower rank of QK or OV costs the model |
//! | [`head_information`] | what heads and layers say about tokens, positions, roles and each other, in nats |
//! | [`layer_information`], [`pair_information`] | what the heads of a layer repeat, and what they say only together |
//! | [`rank_survival`] | what of each feature survives a head's projection, and what could |
//! | [`Targets`], [`Prompt`] | the scores of a pattern that is there |

mod align;
mod annotation;
mod batches;
mod causal;
mod compare;
mod information;
mod interval;
mod pattern;
mod profile;
mod repeats;
mod role;
mod score;
mod similarity;
mod truncate;

pub use align::Looking;
pub use annotation::{Annotated, Link, read_conllu, read_gap};
pub use causal::Role;
pub use compare::{Similarity, similarity, similarity_matrix};
pub use information::{
    HeadEstimator, InformationOptions, Source, Target, TokenLabels, head_information, layer_information,
    pair_information, rank_survival, token_roles,
};
pub use pattern::{Measured, Targets};
pub use profile::{PatternOptions, pattern_scores};
pub use repeats::{Repeats, head_scores, induction_scores};
pub use role::{RoleOptions, Roles};
pub use score::{PatternScore, Prompt};
pub(crate) use similarity::DEAD;
pub use similarity::{canonical_correlations, jensen_shannon, linear_cka};
pub use truncate::{Cut, TruncationOptions, truncation_costs};
