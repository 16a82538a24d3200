//! How do token ids become the first residual stream?

use tch::{Kind, Tensor};

use super::pass::Pass;
use super::stack;
use crate::error::Result;
use crate::model::arch::{EmbedProjection, Position};
use crate::site::Site;

impl Pass<'_> {
    /// Token, position and type embeddings, summed and, in some models, normalised or projected: `[row, position]` to
    /// `[row, position, d_model]`.
    pub(super) fn embed(&mut self, ids: &Tensor) -> Result<Tensor> {
        let (weights, config) = (self.model.weights(), self.model.config());
        self.model.require("a forward pass", &["w_e", "w_pos", "mlp", "ln_final", "w_u"])?;
        let x = stack::look_up(&weights.w_e, ids)?;
        let mut x = if config.embed_scale == 1.0 { x } else { &x * config.embed_scale };
        if let (EmbedProjection::Tokens(_), Some(projection)) = (config.embed_projection, &weights.projection) {
            x = self.through(projection, &x)?;
        }
        x = self.at(Site::Embed, x)?;
        if self.program.differentiable && !x.requires_grad() {
            x = x.set_requires_grad(true);
        }
        if let Some(w_type) = &weights.w_type {
            let types = self.types_of(w_type, ids, &x);
            x = &x + self.at(Site::TypeEmbed, types)?; // not `+=`, which works in place
        }
        if let Some(w_pos) = weights.w_pos.as_ref().filter(|_| config.position == Position::Learned) {
            let own = w_pos.narrow(-2, self.before, ids.size()[1]);
            x = match (config.uncounted, self.program.touches(Site::PosEmbed)) {
                (Some(token), _) => &x + self.at(Site::PosEmbed, counted(w_pos, ids, token))?,
                (None, true) => &x + self.at(Site::PosEmbed, stack::each_row(&own, x.size()[0]))?,
                (None, false) => stack::add_to_each_row(&x, &own),
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
