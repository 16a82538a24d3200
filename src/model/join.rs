//! Where rows of the batch join a pass: at its start, or from an unchanged run, where they first depart from it.

use std::collections::BTreeMap;

use tch::Tensor;

use super::config::{ModelConfig, NormPlace};
use super::site::{Axis, Site};

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
    /// That, with the block's q, k and v.
    Qkv,
    /// The residual stream entering the block, with the block's z.
    Z,
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
    pub(crate) fn needs(self) -> Vec<Site> {
        let Self(layer, step) = self;
        match step {
            Step::Ids => vec![],
            Step::ResidPre => vec![Site::ResidPre(layer)],
            Step::Qkv => vec![Site::ResidPre(layer), Site::Q(layer), Site::K(layer), Site::V(layer)],
            Step::Z => vec![Site::ResidPre(layer), Site::Z(layer)],
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
    /// The unchanged run's values at the sites that the entries need, at all positions.
    pub base: Option<&'a BTreeMap<Site, Tensor>>,
    /// The first position that the pass computes; those before are as in the unchanged run.
    pub first: i64,
}

impl Joins<'_> {
    /// The batch itself from its token ids.
    pub(crate) fn whole(ids: Tensor) -> Self {
        Self { ids, copies: BTreeMap::from([(Entry(0, Step::Ids), 1)]), base: None, first: 0 }
    }

    /// The token ids of the rows that join at the start, if any do.
    pub(super) fn start(&self) -> Option<Tensor> {
        let n = *self.copies.get(&Entry(0, Step::Ids))?;
        Some(self.ids.narrow(1, self.first, self.ids.size()[1] - self.first).repeat([n, 1]))
    }

    /// `x`, the rows that are there already, and below them those that join at `entry` with what the unchanged run has at
    /// `site`.
    pub(super) fn join(&self, entry: Entry, site: Site, x: Option<Tensor>) -> Option<Tensor> {
        let new = self.copies.get(&entry).zip(self.base.and_then(|base| base.get(&site)));
        let Some((&n, base)) = new else { return x };
        let mut base = base.shallow_clone();
        if let Some(axis) = site.axes().iter().position(|axis| *axis == Axis::Position) {
            base = base.narrow(axis as i64, self.first, base.size()[axis] - self.first);
        }
        let mut times = vec![1i64; base.dim()];
        times[0] = n;
        let new = base.repeat(times.as_slice());
        Some(match x {
            Some(x) => Tensor::cat(&[x, new], 0),
            None => new,
        })
    }
}
