//! How do token ids become the first residual stream?

use tch::{Kind, Tensor};

use super::pass::Pass;
use super::stack;
use crate::error::{Error, Result};
use crate::model::arch::EmbedProjection;
use crate::site::Site;

impl Pass<'_> {
    /// Token, position and type embeddings, summed and, in some models, normalised or projected: `[row, position]` to
    /// `[row, position, d_model]`.
    pub(super) fn embed(&mut self, ids: &Tensor) -> Result<Tensor> {
        let (weights, config) = (self.model.weights(), self.model.config());
        self.model.require("a forward pass", &["w_e", "w_pos", "mlp", "ln_final", "w_u"])?;
        let mut x = self.scaled(stack::look_up(&weights.w_e, ids)?);
        if let (EmbedProjection::Tokens(_), Some(projection)) = (config.embed_projection, &weights.projection) {
            x = self.through(projection, &x)?;
        }
        x = self.leaf(Site::Embed, x)?;
        if let Some(w_type) = &weights.w_type {
            let types = self.types_of(w_type, ids, &x);
            x = &x + self.at(Site::TypeEmbed, types)?; // not `+=`, which works in place
        }
        if let Some(w_pos) = weights.w_pos.as_ref().filter(|_| config.adds_positions()) {
            x = match config.uncounted {
                Some(token) => &x + self.at(Site::PosEmbed, counted(w_pos, ids, token))?,
                None => self.plus_positions(Site::PosEmbed, &x, w_pos)?,
            };
        }
        if let Some(norm) = &weights.ln_embed {
            x = self.norm(norm, Site::LnEmbedScale, &x)?;
        }
        match (config.embed_projection, &weights.projection) {
            (EmbedProjection::Sum(_), Some(projection)) => self.through(projection, &x),
            _ => Ok(x),
        }
    }

    /// What the encoder of an encoder-decoder reads: embeddings of the source's tokens and positions, summed and, in some models,
    /// normalised; `[row, source]` to `[row, source, d_model]`.
    pub(super) fn embed_source(&mut self, ids: &Tensor) -> Result<Tensor> {
        let weights = self.model.weights();
        let Some(source) = &weights.source else { return Err(Error::argument("model", "one with an encoder", "none")) };
        let x = self.scaled(stack::look_up(source.w_e.as_ref().unwrap_or(&weights.w_e), ids)?);
        let mut x = self.leaf(Site::SourceEmbed, x)?;
        if let Some(w_pos) = &source.w_pos {
            x = self.plus_positions(Site::SourcePosEmbed, &x, w_pos)?;
        }
        match &source.ln_embed {
            Some(norm) => self.norm(norm, Site::LnSourceEmbedScale, &x),
            None => Ok(x),
        }
    }

    fn scaled(&self, x: Tensor) -> Tensor {
        let scale = self.model.config().embed_scale;
        if scale == 1.0 { x } else { &x * scale }
    }

    /// The value at `site`, from which a graph begins.
    fn leaf(&mut self, site: Site, x: Tensor) -> Result<Tensor> {
        let x = self.at(site, x)?;
        Ok(if self.program.differentiable && !x.requires_grad() { x.set_requires_grad(true) } else { x })
    }

    /// `x` plus the vectors of the positions that are computed, which are at `site`.
    fn plus_positions(&mut self, site: Site, x: &Tensor, w_pos: &Tensor) -> Result<Tensor> {
        let own = w_pos.narrow(-2, self.before, x.size()[1]);
        Ok(match self.program.touches(site) {
            true => x + self.at(site, stack::each_row(&own, x.size()[0]))?,
            false => stack::add_to_each_row(x, &own),
        })
    }

    fn types_of(&self, w_type: &Tensor, ids: &Tensor, x: &Tensor) -> Tensor {
        match &self.types {
            // Rows are copies of the batch.
            Some(types) => {
                let types = types.narrow(1, self.before, ids.size()[1]);
                let types = types.repeat([ids.size()[0] / types.size()[0], 1]);
                Tensor::embedding(w_type, &types, -1, false, false)
            }
            None => w_type.narrow(0, 0, 1).unsqueeze(0).expand_as(x),
        }
    }
}

/// The vectors of positions that count all tokens but one: `[row, position]` to `[row, position, d_model]`. That one has position
/// 0, wherever it stands.
fn counted(w_pos: &Tensor, ids: &Tensor, uncounted: i64) -> Tensor {
    let counts = ids.not_equal(uncounted).to_kind(Kind::Int64);
    Tensor::embedding(w_pos, &(counts.cumsum(1, Kind::Int64) * counts), -1, false, false)
}
