//! How is a block's graph evaluated? By the one forward pass, from wherever rows join it.

mod attention;
mod embed;
mod head_delta;
mod join;
mod last_query;
mod logits;
mod mask;
mod mlp;
mod norm;
mod pass;
mod position;
mod source;
mod stack;
#[cfg(test)]
mod tests;

pub(crate) use attention::{KvCache, Past};
pub(crate) use join::{Entry, How, Joins, Unchanged};
pub(crate) use last_query::pays as last_query_pays;
pub(crate) use norm::parts as norm_parts;
pub(crate) use pass::{Freeze, Pass};
pub(crate) use position::rotary_pairs;
pub(crate) use stack::each_head;
