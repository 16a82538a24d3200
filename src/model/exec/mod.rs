//! How is a block's graph evaluated? The one forward pass, from wherever rows join it.

mod attention;
mod embed;
mod head_delta;
mod join;
mod last_query;
mod logits;
mod mask;
mod mlp;
mod norm;
pub(super) mod onednn;
mod pass;
pub(super) mod position;
mod softmax;
mod stack;

pub(crate) use attention::{KvCache, Past};
pub(crate) use join::{Entry, How, Joins, Unchanged, is_of_positions};
pub(crate) use last_query::pays as last_query_pays;
pub(super) use norm::parts as norm_parts;
pub(crate) use onednn::{products_take, room_for};
pub(crate) use pass::{Freeze, Pass};
pub(crate) use softmax::log_softmax;
