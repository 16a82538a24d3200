//! The one forward pass.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use super::attention::{self, Past};
use super::config::{Activation, NormKind, NormPlace};
use super::inject::Frozen;
use super::join::{Entry, Joins, Step, below, copies};
use super::program::Program;
use super::site::Site;
use super::tokens::Tokens;
use super::weights::{Block, Linear, Mlp, Norm};
use super::{Model, absorbed, norm, position, stack};
use crate::error::{Error, Result};

/// One pass through the blocks: a program fires in it, taps gather.
pub(crate) struct Pass<'a> {
    pub(super) model: &'a Model,
    pub(super) program: &'a Program,
    /// True at real tokens, `[row, position]`, where padding must be hidden from attention.
    pub(super) valid: Option<Tensor>,
    /// Types of the batch's tokens, `[batch, position]`; all 0 where absent.
    types: Option<Tensor>,
    /// Keys and values of positions before those that this pass computes.
    pub(super) past: Past<'a>,
    /// Cosines and sines of this pass' positions.
    pub(super) rotary: Option<(Tensor, Tensor)>,
    /// The one position of each prompt that is asked for behind the last block, `[batch]`, counted from the first computed.
    pub(super) wanted: Option<Tensor>,
    /// What stays as in the unchanged run, whatever the rows change.
    pub(super) frozen: Option<Frozen>,
    /// Whether all rows are there from the start and nothing is asked but what comes out.
    pub(super) whole: bool,
    /// The first of the rows that are computed, where it is not the first of all; nothing is recorded of them.
    pub(super) start: Option<i64>,
    pub(super) taps: BTreeMap<Site, Tensor>,
}

impl<'a> Pass<'a> {
    /// A pass over `tokens`.
    pub(crate) fn new(model: &'a Model, program: &'a Program, tokens: &Tokens) -> Self {
        Self::over(model, program, tokens.positions(), model.hidden_padding(tokens), Past::None)
            .with_types(tokens.types(model.device()))
    }

    /// A pass over the `positions` positions behind `past`, of which `valid` are real.
    pub(crate) fn over(
        model: &'a Model,
        program: &'a Program,
        positions: usize,
        valid: Option<Tensor>,
        past: Past<'a>,
    ) -> Self {
        let rotary = position::rotary(model.config(), past.positions(), positions as i64, model.kind(), model.device());
        Self {
            model,
            program,
            valid,
            types: None,
            past,
            rotary,
            wanted: None,
            frozen: None,
            whole: false,
            start: None,
            taps: BTreeMap::new(),
        }
    }

    /// Gives the batch's tokens types.
    pub(crate) fn with_types(mut self, types: Option<Tensor>) -> Self {
        self.types = types;
        self
    }

    /// Asks for one position of each prompt only, `[batch]`: the last block then computes no other.
    pub(crate) fn only(mut self, wanted: Option<Tensor>) -> Self {
        self.wanted = wanted;
        self
    }

    /// No rows join on the way: what is not asked for need not be computed.
    pub(crate) fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// Keeps parts of the model as in the unchanged run.
    pub(crate) fn frozen(mut self, frozen: Option<Frozen>) -> Self {
        self.frozen = frozen;
        self
    }

    /// Gives what was recorded so far.
    pub(crate) fn into_taps(self) -> BTreeMap<Site, Tensor> {
        self.taps
    }

    /// Runs as far as the program's taps need and returns them.
    pub(crate) fn taps(mut self, ids: Tensor) -> Result<BTreeMap<Site, Tensor>> {
        let config = self.model.config();
        let needed = (0..config.n_layers).find(|&layer| !self.program.goes_past(layer, config));
        let x = self.residual(&Joins::whole(ids), needed.map_or(config.n_layers, |layer| layer + 1))?;
        if needed.is_none() {
            let _ = self.logits(&x)?;
        }
        Ok(self.taps)
    }

    /// Runs block by block; `read` receives what each block's taps hold, which is dropped before the next block runs.
    pub(crate) fn each_block(
        mut self,
        ids: Tensor,
        mut read: impl FnMut(usize, BTreeMap<Site, Tensor>) -> Result<()>,
    ) -> Result<()> {
        let joins = Joins::whole(ids);
        let mut x = joins.start().map(|ids| self.embed(&ids)).transpose()?;
        for (layer, block) in self.model.weights.blocks.iter().enumerate() {
            x = self.block(layer, block, x, &joins)?;
            read(layer, std::mem::take(&mut self.taps))?;
        }
        Ok(())
    }

    /// The residual stream entering block `end` (leaving the last block for `end = n_layers`), of all rows that join on the
    /// way, in the order in which they do.
    pub(crate) fn residual(&mut self, joins: &Joins<'_>, end: usize) -> Result<Tensor> {
        let mut x = joins.start().map(|ids| self.embed(&ids)).transpose()?;
        for (layer, block) in self.model.weights.blocks.iter().enumerate().take(end) {
            x = self.block(layer, block, x, joins)?;
        }
        x.ok_or_else(|| Error::argument("pass", "rows that join before its end", "none"))
    }

    /// One block. At each step rows may join; a step without rows is skipped.
    fn block(&mut self, layer: usize, block: &Block, x: Option<Tensor>, joins: &Joins<'_>) -> Result<Option<Tensor>> {
        if let Some(frozen) = self.frozen {
            return self.frozen_block(layer, block, x, joins, frozen);
        }
        let join = |step, site, x| joins.join(Entry(layer, step), site, x);
        let (pre, z_site) = (Site::ResidPre(layer), Site::Z(layer));
        let mut x = self.joined(joins, Entry(layer, Step::ResidPre), pre, x)?;
        let (mut qkv, mut z) = ([None, None, None], None);
        if let Some(resid) = x {
            let rest = if self.trims_heads(layer) { self.pick(&resid) } else { resid.shallow_clone() };
            if absorbed::serves(self, layer, resid.size()[1]) {
                z = Some(absorbed::heads(self, layer, block, &resid, &rest)?);
            } else {
                let normed = self.norm(block.ln1.as_ref(), Site::Ln1Scale(layer), &resid, NormPlace::Pre)?;
                qkv = attention::project(self, layer, &block.attn, &normed)?.map(Some);
            }
            x = Some(rest);
        }
        let [q, k, v] = self.first_position(layer, block, joins, &mut x, qkv)?;
        x = join(Step::Qkv, pre, x);
        let qkv = (
            join(Step::Qkv, Site::Q(layer), q),
            join(Step::Qkv, Site::K(layer), k),
            join(Step::Qkv, Site::V(layer), v),
        );
        if let (Some(q), Some(k), Some(v)) = qkv {
            z = Some(attention::heads(self, layer, [q, k, v], None)?);
        }
        (x, z) = (join(Step::Z, pre, x), join(Step::Z, z_site, z));
        let mut mid = match (x, z) {
            (Some(x), Some(z)) => Some(self.attention_out(layer, block, &x, z)?),
            _ => None,
        };
        mid = below(mid, self.some_heads(layer, block, joins)?);
        mid = self.joined(joins, Entry(layer, Step::ResidMid), Site::ResidMid(layer), mid)?;
        let post = mid.map(|mid| self.behind_attention(layer, block, &mid)).transpose()?;
        self.joined(joins, Entry(layer, Step::ResidPost), Site::ResidPost(layer), post)
    }

    /// `x` and below it the rows that join at `entry`, as `site` then holds them: with its edits. They are made before the
    /// two become one, so that what is there already is copied once.
    pub(super) fn joined(
        &mut self,
        joins: &Joins<'_>,
        entry: Entry,
        site: Site,
        x: Option<Tensor>,
    ) -> Result<Option<Tensor>> {
        let start = x.as_ref().map_or(0, |x| x.size()[0]);
        let x = x.map(|x| self.program.apply(site, x, 0)).transpose()?;
        let new = joins.new_rows(entry, site).map(|new| self.program.apply(site, new, start)).transpose()?;
        Ok(below(x, new).map(|x| self.record(site, x)))
    }

    /// Whether the heads of `layer` need only look from the wanted positions: nothing behind it reads another, and nothing
    /// in it is changed.
    pub(super) fn trims_heads(&self, layer: usize) -> bool {
        self.trims(layer, Site::Q(layer))
    }

    /// Whether behind the heads of `layer` only the wanted positions are needed.
    pub(super) fn trims_tail(&self, layer: usize) -> bool {
        self.trims(layer, Site::AttnOut(layer))
    }

    fn trims(&self, layer: usize, from: Site) -> bool {
        let config = self.model.config();
        let last = layer + 1 == config.n_layers;
        last && self.wanted.is_some() && !self.program.edits_within(layer, config, from, self.whole)
    }

    /// The wanted position of each row, `[row, position, ..]` to `[row, 1, ..]`; all where none is asked for.
    pub(super) fn pick(&self, x: &Tensor) -> Tensor {
        let Some(wanted) = self.wanted_of(x.size()[0]) else { return x.shallow_clone() };
        let rows = Tensor::arange(x.size()[0], (Kind::Int64, x.device()));
        let flat = x.flatten(0, 1).index_select(0, &(rows * x.size()[1] + wanted));
        flat.unsqueeze(1)
    }

    /// The wanted position of each of `rows` rows, which are copies of the batch.
    pub(super) fn wanted_of(&self, rows: i64) -> Option<Tensor> {
        self.wanted.as_ref().map(|wanted| copies(wanted, rows / wanted.size()[0]))
    }

    /// The logits of the residual stream behind the last block.
    pub(crate) fn logits(&mut self, x: &Tensor) -> Result<Tensor> {
        let weights = &self.model.weights;
        let x = match (&weights.ln_final, self.model.config().norm_place) {
            (Some(norm), NormPlace::Pre) => self.norm_with(norm, Site::LnFinalScale, x)?,
            _ => x.shallow_clone(),
        };
        let logits = match &weights.head {
            Some(head) => self.through(&head.unembed, &self.model.before_unembed(&x)?)?,
            None => return Ok(x),
        };
        self.at(Site::Logits, logits)
    }

    /// The logits of some tokens, the first and how many, of the residual stream behind the last block; they are no site.
    pub(crate) fn some_logits(&mut self, x: &Tensor, columns: (i64, i64)) -> Result<Tensor> {
        let weights = &self.model.weights;
        let x = match (&weights.ln_final, self.model.config().norm_place) {
            (Some(norm), NormPlace::Pre) => self.norm_with(norm, Site::LnFinalScale, x)?,
            _ => x.shallow_clone(),
        };
        match &weights.head {
            Some(head) => head.unembed.columns(columns).forward(&self.model.before_unembed(&x)?),
            None => Err(Error::argument("model", "one with logits", &self.model.config().family)),
        }
    }

    /// Token, position and type embeddings, summed and, in some models, normalised.
    fn embed(&mut self, ids: &Tensor) -> Result<Tensor> {
        let weights = &self.model.weights;
        self.model.require("a forward pass", &["w_e", "w_pos", "mlp", "ln_final", "w_u"])?;
        let mut x = self.at(Site::Embed, stack::look_up(&weights.w_e, ids)?)?;
        if self.program.differentiable && !x.requires_grad() {
            x = x.set_requires_grad(true);
        }
        if let Some(w_type) = &weights.w_type {
            let types = match &self.types {
                // Rows are copies of the batch.
                Some(types) => {
                    let types = types.narrow(1, self.past.positions(), ids.size()[1]);
                    let types = types.repeat([ids.size()[0] / types.size()[0], 1]);
                    Tensor::embedding(w_type, &types, -1, false, false)
                }
                None => w_type.narrow(0, 0, 1).unsqueeze(0).expand_as(&x),
            };
            x = &x + self.at(Site::TypeEmbed, types)?; // not `+=`, which works in place
        }
        if let Some(w_pos) = &weights.w_pos {
            let own = w_pos.narrow(-2, self.past.positions(), ids.size()[1]);
            x = match self.program.touches(Site::PosEmbed) {
                true => &x + self.at(Site::PosEmbed, stack::each_row(&own, x.size()[0]))?,
                false => stack::add_to_each_row(&x, &own),
            };
        }
        match &weights.ln_embed {
            Some(norm) => self.norm_with(norm, Site::LnEmbedScale, &x),
            None => Ok(x),
        }
    }

    /// The residual stream behind the heads: with what they write, and the norm of a post-norm model.
    fn attention_out(&mut self, layer: usize, block: &Block, x: &Tensor, z: Tensor) -> Result<Tensor> {
        let z = self.at(Site::Z(layer), z)?;
        let (x, z) = match self.trims_tail(layer) && z.size()[1] > 1 {
            true => (if x.size()[1] > 1 { self.pick(x) } else { x.shallow_clone() }, self.pick(&z)),
            false => (x.shallow_clone(), z),
        };
        let attn_out = self.write(layer, &block.attn.o, &z)?;
        self.norm(block.ln1.as_ref(), Site::Ln1Scale(layer), &(x + attn_out), NormPlace::Post)
    }

    /// The rest of a block behind its attention.
    pub(super) fn behind_attention(&mut self, layer: usize, block: &Block, x: &Tensor) -> Result<Tensor> {
        let Some(mlp) = &block.mlp else { return Ok(x.shallow_clone()) };
        let normed = self.norm(block.ln2.as_ref(), Site::Ln2Scale(layer), x, NormPlace::Pre)?;
        let mlp_out = self.mlp(layer, mlp, &normed)?;
        self.norm(block.ln2.as_ref(), Site::Ln2Scale(layer), &(x + mlp_out), NormPlace::Post)
    }

    /// `x` through one of the model's matrices.
    pub(super) fn through(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        if self.program.explicit || self.program.plain { linear.forward(x) } else { linear.fast(x) }
    }

    /// What the heads write into the residual stream.
    fn write(&mut self, layer: usize, o: &Linear, z: &Tensor) -> Result<Tensor> {
        let site = Site::Result(layer);
        let (mut sum, config) = (None, self.model.config());
        if self.program.touches(site) {
            let w_o = o.w.unflatten(-2, [config.n_heads as i64, config.d_head as i64]);
            let result = stack::write(z, &w_o);
            let result = self.at(site, result)?;
            // Only an edit may change what follows; a tap leaves the dense product as it is.
            sum = self.program.edits(site).then(|| result.sum_dim_intlist([2i64].as_slice(), false, None));
        }
        let out = match (sum, &o.b) {
            (Some(sum), Some(b)) => sum + b,
            (Some(sum), None) => sum,
            (None, _) => self.through(o, &z.flatten(2, 3))?,
        };
        let out = self.at(Site::AttnOut(layer), out)?;
        Ok(self.way_back(layer, out))
    }

    /// `x`, cut off from the graph where gradients are not to flow back through what a block writes.
    fn way_back(&self, layer: usize, x: Tensor) -> Tensor {
        if self.program.blocked == Some(layer) { x.detach() } else { x }
    }

    pub(super) fn mlp(&mut self, layer: usize, mlp: &Mlp, x: &Tensor) -> Result<Tensor> {
        let mut post = {
            let pre = self.at(Site::MlpPre(layer), self.through(&mlp.gate, x)?)?;
            activate(&pre, self.model.config().activation)
        };
        if let Some(up) = &mlp.up {
            post = &post * self.through(up, x)?;
        }
        let post = self.at(Site::MlpPost(layer), post)?;
        let out = self.at(Site::MlpOut(layer), self.through(&mlp.out, &post)?)?;
        Ok(self.way_back(layer, out))
    }

    /// `x` through `norm` where the model has its norms at `place`, else `x`.
    pub(super) fn norm(&mut self, norm: Option<&Norm>, site: Site, x: &Tensor, place: NormPlace) -> Result<Tensor> {
        match norm {
            Some(norm) if self.model.config().norm_place == place => self.norm_with(norm, site, x),
            _ => Ok(x.shallow_clone()),
        }
    }

    fn norm_with(&mut self, weights: &Norm, site: Site, x: &Tensor) -> Result<Tensor> {
        let config = self.model.config();
        if !self.program.touches(site) {
            return Ok(norm::fused(config.norm, weights, x, config.norm_eps));
        }
        let (centred, scale) = norm::parts(config.norm, x, config.norm_eps);
        let scale = self.at(site, scale)?;
        Ok(norm::joined(weights, &centred, &scale))
    }

    /// `x` through a norm of the model's kind, but for its weights.
    pub(super) fn bare_norm(&self, x: &Tensor) -> Tensor {
        norm::bare(self.model.config().norm, x, self.model.config().norm_eps)
    }

    /// What `site` holds after its edits; recorded where the program asks for it.
    pub(super) fn at(&mut self, site: Site, x: Tensor) -> Result<Tensor> {
        let x = self.program.apply(site, x, self.start.unwrap_or(0))?;
        Ok(self.record(site, x))
    }

    /// Keeps what `site` holds where the program asks for it.
    fn record(&mut self, site: Site, mut x: Tensor) -> Tensor {
        if self.start.is_none() && self.program.records(site) {
            // What nothing differentiable leads to is where gradients end.
            if self.program.differentiable && !x.requires_grad() {
                x = x.set_requires_grad(true);
            }
            let kept = if self.program.differentiable { x.shallow_clone() } else { x.detach() };
            self.taps.insert(site, kept);
        }
        x
    }
}

impl Model {
    /// True at real tokens, `[batch, position]`, where padding must be hidden from attention; nothing where there is none, or
    /// the model is causal: its real tokens never see the padding on their right.
    pub(crate) fn hidden_padding(&self, tokens: &Tokens) -> Option<Tensor> {
        (tokens.is_padded() && !self.config.causal).then(|| tokens.valid(self.device))
    }

    /// The logits of rows of the residual stream behind the last block, `[.., d_model]` to `[.., vocab]`.
    pub(crate) fn unembed(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weights.head {
            Some(head) => head.unembed.fast(&self.before_unembed(&self.final_norm(x))?),
            None => Ok(x.shallow_clone()),
        }
    }

    /// One logit of each row, `[n, d_model]` and ids `[n]` to `[n]`.
    pub(crate) fn unembed_one(&self, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (columns, b) = self.unembedding(ids);
        let read = self.before_unembed(&self.final_norm(x))?;
        Ok((read * columns).sum_dim_intlist([-1i64].as_slice(), false, None) + b)
    }

    /// The unembedding's columns for ids `[n]`, `[n, d_model]`, and their biases, `[n]`.
    pub(crate) fn unembedding(&self, ids: &Tensor) -> (Tensor, Tensor) {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (self.kind, self.device));
        let n = ids.size()[0];
        let Some(head) = &self.weights.head else { return (zeros(&[n, self.config.d_model as i64]), zeros(&[n])) };
        let b = head.unembed.b.as_ref().map_or_else(|| zeros(&[n]), |b| b.index_select(0, ids));
        // By rows: chosen by columns, libtorch first copies the whole matrix.
        (head.unembed.w.tr().index_select(0, ids), b)
    }

    /// Weight and bias of the norm behind the last block, where there is one.
    pub(crate) fn final_norm_weights(&self) -> Option<(&Tensor, Option<&Tensor>)> {
        self.weights.ln_final.as_ref().map(|ln| (&ln.w, ln.b.as_ref()))
    }

    /// What the unembedding reads: the normalised residual stream itself, or BERT's transform of it.
    fn before_unembed(&self, x: &Tensor) -> Result<Tensor> {
        match self.weights.head.as_ref().and_then(|head| head.transform.as_ref()) {
            Some((dense, ln)) => {
                let hidden = activate(&dense.forward(x)?, self.config.activation);
                Ok(norm::fused(NormKind::Layer, ln, &hidden, self.config.norm_eps))
            }
            None => Ok(x.shallow_clone()),
        }
    }

    /// The norm behind the last block, where there is one.
    fn final_norm(&self, x: &Tensor) -> Tensor {
        match &self.weights.ln_final {
            Some(ln) => norm::fused(self.config.norm, ln, x, self.config.norm_eps),
            None => x.shallow_clone(),
        }
    }
}

fn activate(x: &Tensor, activation: Activation) -> Tensor {
    match activation {
        Activation::Gelu => x.gelu("none"),
        Activation::GeluTanh => x.gelu("tanh"),
        Activation::Relu => x.relu(),
        Activation::Silu => x.silu(),
    }
}

/// A boolean lower triangle for the last `query` of `key` positions, `[query, key]`: true where a query sees a key.
pub(super) fn causal_mask(query: i64, key: i64, device: Device) -> Tensor {
    Tensor::ones([query, key], (Kind::Bool, device)).tril(key - query)
}
