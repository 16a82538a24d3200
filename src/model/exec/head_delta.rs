//! Rows that change only what some heads write, and passes in which the rest of the model keeps still.

use tch::Tensor;

use super::attention::{self, SomeHeads};
use super::config::NormPlace;
use super::forward::Pass;
use super::join::{Entry, Joins, Step, below, copies};
use super::program::Program;
use super::site::Site;
use super::weights::Block;
use super::{Model, Past};
use crate::error::Result;

/// What stays as in the unchanged run: every head's output (but that of edited heads), and with `mlps` what the MLPs write.
/// The joins' unchanged run holds the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frozen {
    pub mlps: bool,
}

impl Pass<'_> {
    /// `x` and its q, k and v, and below them those of the rows that join where only the first position changes.
    pub(super) fn first_position(
        &mut self,
        layer: usize,
        block: &Block,
        joins: &Joins<'_>,
        x: &mut Option<Tensor>,
        qkv: [Option<Tensor>; 3],
    ) -> Result<[Option<Tensor>; 3]> {
        let (entry, pre) = (Entry(layer, Step::FirstPosition), Site::ResidPre(layer));
        let Some(new) = joins.new_rows(entry, pre) else { return Ok(qkv) };
        let start = x.as_ref().map_or(0, |x| x.size()[0]);
        let new = self.program.apply(pre, new, start)?;
        self.start = Some(start);
        let normed = self.norm(block.ln1.as_ref(), Site::Ln1Scale(layer), &new.narrow(1, 0, 1), NormPlace::Pre);
        self.start = None;
        let changed = attention::project(self, layer, &block.attn, &normed?)?;
        *x = below(x.take(), Some(new));
        let mut sites = [Site::Q(layer), Site::K(layer), Site::V(layer)].into_iter().zip(changed);
        let all = qkv.map(|above| {
            let (site, changed) = sites.next()?;
            let base = joins.new_rows(entry, site)?;
            let rest = base.narrow(1, 1, base.size()[1] - 1);
            below(above, Some(Tensor::cat(&[changed, rest], 1)))
        });
        Ok(all)
    }

    /// The residual stream behind the heads of a block, of the rows that join with some heads only: that of the unchanged
    /// run, to which (z - unchanged z) W_O of those heads is added.
    pub(super) fn some_heads(&mut self, layer: usize, block: &Block, joins: &Joins<'_>) -> Result<Option<Tensor>> {
        let mut mid = None;
        for (&entry, heads) in joins.heads.range(Entry(layer, Step::Heads(0))..Entry(layer, Step::ResidMid)) {
            let before = joins.copies.range(..entry).map(|(_, n)| n).sum::<i64>();
            self.start = Some(before * joins.ids.size()[0]);
            let new = self.inject(entry, &SomeHeads::new(self.model, heads), heads.len() as i64, block, joins);
            self.start = None;
            mid = below(mid, Some(new?));
        }
        Ok(mid)
    }

    fn inject(
        &mut self,
        Entry(layer, step): Entry,
        some: &SomeHeads,
        n: i64,
        block: &Block,
        joins: &Joins<'_>,
    ) -> Result<Tensor> {
        let unchanged = |site| joins.unchanged(site);
        let z0 = some.of(&unchanged(Site::Z(layer))?, 2);
        let z = match step {
            Step::Heads(_) => {
                let q = some.of(&unchanged(Site::Q(layer))?, 2);
                let kv = |site| Ok(some.of_kv(&unchanged(site)?, 2));
                attention::heads(self, layer, [q, kv(Site::K(layer))?, kv(Site::V(layer))?], Some(some))?
            }
            _ => z0.shallow_clone(),
        };
        let change = self.at(Site::Z(layer), z)? - z0;
        let trims = self.trims_tail(layer) && change.size()[1] > 1;
        let pick = |x: Tensor| if trims { self.pick(&x) } else { x };
        let written = some.write(&pick(change), &self.model.w_o(layer)?);
        let of = |site| Ok(pick(copies(&unchanged(site)?, n)));
        match self.model.config().norm_place {
            NormPlace::Pre => Ok(of(Site::ResidMid(layer))? + written),
            NormPlace::Post => {
                let sum = of(Site::ResidPre(layer))? + of(Site::AttnOut(layer))? + written;
                self.norm(block.ln1.as_ref(), Site::Ln1Scale(layer), &sum, NormPlace::Post)
            }
        }
    }

    /// One block in which the heads write what they write in the unchanged run. q, k and v are computed where they are
    /// recorded: what the heads would read.
    pub(super) fn frozen_block(
        &mut self,
        layer: usize,
        block: &Block,
        x: Option<Tensor>,
        joins: &Joins<'_>,
        frozen: Frozen,
    ) -> Result<Option<Tensor>> {
        let pre = Site::ResidPre(layer);
        let x = self.joined(joins, Entry(layer, Step::ResidPre), pre, x)?;
        if let Some(x) = &x {
            self.record_inputs(layer, block, x)?;
        }
        let x = joins.join(Entry(layer, Step::Z), pre, x);
        let mut mid = None;
        if let Some(x) = x {
            let attn_out = self.frozen_attention(layer, block, x.size()[0], joins)?;
            mid = Some(self.norm(block.ln1.as_ref(), Site::Ln1Scale(layer), &(x + attn_out), NormPlace::Post)?);
        }
        mid = below(mid, self.some_heads(layer, block, joins)?);
        mid = self.joined(joins, Entry(layer, Step::ResidMid), Site::ResidMid(layer), mid)?;
        let post = match mid {
            Some(mid) if frozen.mlps => Some(self.frozen_mlp(layer, block, mid, joins)?),
            mid => mid.map(|mid| self.behind_attention(layer, block, &mid)).transpose()?,
        };
        self.joined(joins, Entry(layer, Step::ResidPost), Site::ResidPost(layer), post)
    }

    fn record_inputs(&mut self, layer: usize, block: &Block, x: &Tensor) -> Result<()> {
        let config = self.model.config();
        let sites = [
            (Site::Q(layer), &block.attn.q, config.n_heads),
            (Site::K(layer), &block.attn.k, config.n_kv_heads),
            (Site::V(layer), &block.attn.v, config.n_kv_heads),
        ];
        if sites.iter().any(|(site, ..)| self.program.records(*site)) {
            let normed = self.norm(block.ln1.as_ref(), Site::Ln1Scale(layer), x, NormPlace::Pre)?;
            for (site, linear, heads) in sites.into_iter().filter(|(site, ..)| self.program.records(*site)) {
                self.taps.insert(site, attention::project_one(self, linear, &normed, heads)?);
            }
        }
        Ok(())
    }

    /// What the heads write in the unchanged run, but those that are edited.
    fn frozen_attention(&mut self, layer: usize, block: &Block, rows: i64, joins: &Joins<'_>) -> Result<Tensor> {
        let n = rows / joins.ids.size()[0];
        if !self.program.edits_rows(Site::Z(layer), rows) {
            return Ok(copies(&joins.unchanged(Site::AttnOut(layer))?, n));
        }
        let z = self.program.apply(Site::Z(layer), copies(&joins.unchanged(Site::Z(layer))?, n), 0)?;
        self.through(&block.attn.o, &z.flatten(2, 3))
    }

    /// The rest of a block whose MLP writes what it writes in the unchanged run, unless that is edited.
    fn frozen_mlp(&mut self, layer: usize, block: &Block, x: Tensor, joins: &Joins<'_>) -> Result<Tensor> {
        let Some(mlp) = &block.mlp else { return Ok(x) };
        if self.program.records(Site::MlpOut(layer)) {
            let normed = self.norm(block.ln2.as_ref(), Site::Ln2Scale(layer), &x, NormPlace::Pre)?;
            let _ = self.mlp(layer, mlp, &normed)?; // for its record
        }
        let n = x.size()[0] / joins.ids.size()[0];
        let out = self.program.apply(Site::MlpOut(layer), copies(&joins.unchanged(Site::MlpOut(layer))?, n), 0)?;
        self.norm(block.ln2.as_ref(), Site::Ln2Scale(layer), &(x + out), NormPlace::Post)
    }
}

impl Model {
    /// What the heads of a layer read of a residual stream `[row, position, .., d_model]`: it, normalised.
    pub(crate) fn heads_input(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let norm = self.block(layer)?.ln1.as_ref();
        let program = Program::taps([]);
        let positions = x.size()[1] as usize;
        Pass::over(self, &program, positions, None, Past::None).norm(norm, Site::Ln1Scale(layer), x, NormPlace::Pre)
    }

    /// What the MLP of a layer writes for a residual stream `[row, position, d_model]`.
    pub(crate) fn mlp_of(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let block = self.block(layer)?;
        let program = Program::taps([]);
        let mut pass = Pass::over(self, &program, x.size()[1] as usize, None, Past::None);
        let normed = pass.norm(block.ln2.as_ref(), Site::Ln2Scale(layer), x, NormPlace::Pre)?;
        block.mlp.as_ref().map_or_else(|| Ok(x.zeros_like()), |mlp| pass.mlp(layer, mlp, &normed))
    }
}
