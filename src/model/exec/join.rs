//! Where rows of the batch join a pass: at its start, or from an unchanged run, where they first depart from it.

use std::collections::BTreeMap;

use tch::Tensor;

use super::config::{ModelConfig, NormPlace};
use super::site::{Axis, Site};
use crate::error::{Error, Result};

/// A place in the forward pass where rows join: a layer and a step within its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry(pub usize, pub Step);

/// What rows join with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// Token ids; before layer 0.
    Ids,
    /// The residual stream entering the block.
    ResidPre,
    /// That, of which only the first computed position changes: q, k and v of the others are as they were.
    FirstPosition,
    /// That, with the block's q, k and v.
    Qkv,
    /// The residual stream entering the block, with the block's z.
    Z,
    /// The residual stream behind the block's heads, to which is added what so many of them now write: q, k and v of those
    /// heads, whose attention is computed anew.
    Heads(usize),
    /// The same, where only their z changes.
    HeadsOut(usize),
    /// The residual stream between attention and MLP.
    ResidMid,
    /// The residual stream leaving the block.
    ResidPost,
}

impl Entry {
    /// Where a run that is changed at `site` departs from the unchanged one; nothing behind the last block.
    pub(crate) fn of(site: Site, config: &ModelConfig) -> Option<Self> {
        let post_norm = config.norm_place == NormPlace::Post;
        let step = match site {
            Site::Embed | Site::PosEmbed | Site::TypeEmbed | Site::LnEmbedScale => return Some(Self(0, Step::Ids)),
            Site::LnFinalScale | Site::Logits => return None,
            Site::ResidPre(_) => Step::ResidPre,
            Site::Ln1Scale(_) if !post_norm => Step::ResidPre,
            Site::Q(_) | Site::K(_) | Site::V(_) | Site::Scores(_) | Site::Pattern(_) => Step::Qkv,
            Site::Ln1Scale(_) | Site::Z(_) | Site::Result(_) | Site::AttnOut(_) => Step::Z,
            Site::ResidMid(_) | Site::Ln2Scale(_) | Site::MlpPre(_) | Site::MlpPost(_) | Site::MlpOut(_) => {
                Step::ResidMid
            }
            Site::ResidPost(_) => Step::ResidPost,
        };
        Some(Self(site.layer()?, step))
    }

    /// The sites whose unchanged values rows join with.
    pub(crate) fn needs(self, config: &ModelConfig) -> Vec<Site> {
        let Self(layer, step) = self;
        // A post-norm's argument is no site; it is the sum of two.
        let behind_heads = match config.norm_place {
            NormPlace::Post => vec![Site::ResidPre(layer), Site::AttnOut(layer)],
            NormPlace::Pre => vec![Site::ResidMid(layer)],
        };
        match step {
            Step::Ids => vec![],
            Step::ResidPre => vec![Site::ResidPre(layer)],
            Step::FirstPosition | Step::Qkv => {
                vec![Site::ResidPre(layer), Site::Q(layer), Site::K(layer), Site::V(layer)]
            }
            Step::Z => vec![Site::ResidPre(layer), Site::Z(layer)],
            Step::Heads(_) => {
                [behind_heads, vec![Site::Q(layer), Site::K(layer), Site::V(layer), Site::Z(layer)]].concat()
            }
            Step::HeadsOut(_) => [behind_heads, vec![Site::Z(layer)]].concat(),
            Step::ResidMid => vec![Site::ResidMid(layer)],
            Step::ResidPost => vec![Site::ResidPost(layer)],
        }
    }
}

/// Which rows join where, and with what.
pub(crate) struct Joins<'a> {
    /// Token ids, `[batch, position]`.
    pub ids: Tensor,
    /// How many copies of the batch join at each entry.
    pub copies: BTreeMap<Entry, i64>,
    /// The heads that change in each of the copies that join with some heads only.
    pub heads: BTreeMap<Entry, Vec<Vec<usize>>>,
    /// The unchanged run's values at the sites that the entries need, at all positions.
    pub base: Option<&'a BTreeMap<Site, Tensor>>,
    /// The first position that the pass computes; those before are as in the unchanged run.
    pub first: i64,
}

impl Joins<'_> {
    /// The batch itself from its token ids.
    pub(crate) fn whole(ids: Tensor) -> Self {
        Self { ids, copies: BTreeMap::from([(Entry(0, Step::Ids), 1)]), heads: BTreeMap::new(), base: None, first: 0 }
    }

    /// The token ids of the rows that join at the start, if any do.
    pub(super) fn start(&self) -> Option<Tensor> {
        let n = *self.copies.get(&Entry(0, Step::Ids))?;
        Some(copies(&self.ids.narrow(1, self.first, self.ids.size()[1] - self.first), n))
    }

    /// `x`, the rows that are there already, and below them those that join at `entry` with what the unchanged run has at
    /// `site`.
    pub(super) fn join(&self, entry: Entry, site: Site, x: Option<Tensor>) -> Option<Tensor> {
        below(x, self.new_rows(entry, site))
    }

    /// The rows that join at `entry`, with what the unchanged run has at `site`.
    pub(super) fn new_rows(&self, entry: Entry, site: Site) -> Option<Tensor> {
        let (&n, base) = self.copies.get(&entry).zip(self.base.and_then(|base| base.get(&site)))?;
        Some(copies(&from_position(site, base, self.first), n))
    }

    /// The unchanged run's value at `site`, at the positions that the pass computes.
    pub(super) fn unchanged(&self, site: Site) -> Result<Tensor> {
        let base = self.base.and_then(|base| base.get(&site));
        let missing = || Error::NotTapped { site, tapped: vec![] };
        Ok(from_position(site, base.ok_or_else(missing)?, self.first))
    }
}

/// `[batch, ..]` below itself `n` times, `[n * batch, ..]`.
pub(super) fn copies(x: &Tensor, n: i64) -> Tensor {
    if n == 1 {
        return x.shallow_clone();
    }
    let mut times = vec![1i64; x.dim()];
    times[0] = n;
    x.repeat(times.as_slice())
}

/// The rows of `new` below those of `x`.
pub(super) fn below(x: Option<Tensor>, new: Option<Tensor>) -> Option<Tensor> {
    match (x, new) {
        (Some(x), Some(new)) => Some(Tensor::cat(&[x, new], 0)),
        (x, new) => x.or(new),
    }
}

/// `x` without the positions before `first`.
fn from_position(site: Site, x: &Tensor, first: i64) -> Tensor {
    match site.axes().iter().position(|axis| *axis == Axis::Position) {
        Some(axis) => x.narrow(axis as i64, first, x.size()[axis] - first),
        None => x.shallow_clone(),
    }
}
