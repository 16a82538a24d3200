//! What does a notebook or a program usually need? `use headscope::prelude::*;` imports it.

pub use crate::checkpoint::{LoadOptions, Series, Tokenizer};
pub use crate::circuits::{
    Circuit, Circuits, Composition, Factored, Linkage, Measure, NullOptions, Offset, Ranks, Subspace,
};
pub use crate::error::{Error, Result};
pub use crate::heads::{
    Annotated, CircuitOptions, Link, PatternOptions, PatternScore, Repeats, Role, RoleOptions, Roles, Similarity,
    induction_scores, pattern_scores, read_conllu, read_gap, similarity,
};
pub use crate::intervene::{
    Ablation, Answer, At, Estimate, Every, Input, Lens, Metric, Node, Paths, Receiver, Residual, Sampling, Scan,
    ScanOptions, Sender, ShapleyOptions, Strategy, Subsets, Sweep, TunedOptions, Variant, Via, accumulated_residual,
    direct_attribution, head_results, logit_lens, shapley, subsets,
};
pub use crate::lab;
pub use crate::model::{
    Action, Continuation, Dictionary, Edit, Ending, Function, Generated, Generation, Model, ModelConfig, Piece, Plan,
    Run, Site, Span, Tokens,
};
pub use crate::stats::{shuffled, spearman};
pub use crate::table::{Keys, Observation, Table};
pub use crate::text::prompts::{self, Pair, Prompts};
pub use crate::view::{self, Attention, Bars, Heatmap, Html, Lines, Svg};
pub use polars::prelude::DataFrame;
pub use tch::{Device, Kind, Tensor};
