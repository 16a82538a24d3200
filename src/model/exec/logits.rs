//! How does the last residual stream become logits?

use tch::Tensor;

use super::pass::Pass;
use super::{mlp, norm};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::arch::NormKind;
use crate::site::Site;
use crate::tensors::wide;

impl Pass<'_> {
    /// The logits, from the residual stream after the last block; that stream, normalised, in a model without logits.
    pub(crate) fn logits(&mut self, x: &Tensor) -> Result<Tensor> {
        let x = self.last_norm(x)?;
        let Some(unembedding) = &self.model.weights().unembedding else { return Ok(x) };
        let logits = self.through(&unembedding.linear, &self.model.before_unembed(&x)?)?;
        self.at(Site::Logits, self.model.finished(logits))
    }

    /// The logits of some tokens, given by the first and their number; they are not a site.
    pub(crate) fn some_logits(&mut self, x: &Tensor, columns: (i64, i64)) -> Result<Tensor> {
        let x = self.last_norm(x)?;
        match &self.model.weights().unembedding {
            Some(unembedding) => {
                let logits = unembedding.linear.columns(columns).forward(&self.model.before_unembed(&x)?)?;
                Ok(self.model.finished(logits))
            }
            None => Err(Error::argument("model", "one with logits", &self.model.config().family)),
        }
    }

    fn last_norm(&mut self, x: &Tensor) -> Result<Tensor> {
        match &self.model.weights().ln_final {
            Some(norm) => self.norm(norm, Site::LnFinalScale, x),
            None => Ok(x.shallow_clone()),
        }
    }
}

impl Model {
    /// The logits of rows of the last residual stream, `[.., d_model]` to `[.., vocab]`; float32 in half precision.
    pub(crate) fn unembed(&self, x: &Tensor) -> Result<Tensor> {
        match &self.weights().unembedding {
            Some(unembedding) => {
                let logits = unembedding.linear.fast(&self.before_unembed(&self.final_norm(x))?)?;
                Ok(self.finished(logits.to_kind(wide(x.kind()))))
            }
            None => Ok(x.to_kind(wide(x.kind()))),
        }
    }

    /// The logits of some tokens: `[.., d_model]` and ids `[n]` to `[.., n]`.
    pub(crate) fn unembed_some(&self, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (columns, b) = self.columns(ids);
        let logits = self.before_unembed(&self.final_norm(x))?.matmul(&columns.tr()) + b;
        Ok(self.finished(logits.to_kind(wide(x.kind()))))
    }

    /// One logit of each row: `[n, d_model]` and ids `[n]` to `[n]`.
    pub(crate) fn unembed_one(&self, x: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (columns, b) = self.columns(ids);
        let read = self.before_unembed(&self.final_norm(x))?.to_kind(wide(x.kind()));
        Ok(self.finished((read * columns).sum_dim_intlist([-1i64].as_slice(), false, None) + b))
    }

    /// The directions `[n, d_model]` of the normalised residual stream whose inner products with it are the logits of ids `[n]`
    /// before capping, up to the biases `[n]`. `None` if the logits are not linear in it.
    pub(crate) fn logit_directions(&self, ids: &Tensor) -> Option<(Tensor, Tensor)> {
        let (columns, b) = self.columns(ids);
        let transform = self.weights().unembedding.as_ref().and_then(|unembedding| unembedding.transform.as_ref());
        let columns = match transform {
            Some(transform) if transform.norm.is_some() => return None,
            Some(transform) => columns.matmul(&transform.dense.w.tr()),
            None => columns,
        };
        let scale = self.config().logit_scale;
        Some((columns * scale, b * scale))
    }

    /// The unembedding's columns for ids `[n]`, `[n, d_embed]`, and their biases, `[n]`.
    fn columns(&self, ids: &Tensor) -> (Tensor, Tensor) {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (self.kind(), self.device()));
        let n = ids.size()[0];
        let Some(head) = &self.weights().unembedding else {
            return (zeros(&[n, self.config().d_model as i64]), zeros(&[n]));
        };
        let b = head.linear.b.as_ref().map_or_else(|| zeros(&[n]), |b| b.index_select(0, ids));
        // By rows: chosen by columns, libtorch first copies the whole matrix.
        (head.linear.w.tr().index_select(0, ids), b)
    }

    /// Weight and bias of the norm after the last block, if there is one.
    pub(crate) fn final_norm_weights(&self) -> Option<(&Tensor, Option<&Tensor>)> {
        self.weights().ln_final.as_ref().map(|ln| (&ln.w, ln.b.as_ref()))
    }

    /// What the unembedding reads: the normalised residual stream, transformed in some models.
    fn before_unembed(&self, x: &Tensor) -> Result<Tensor> {
        let transform = self.weights().unembedding.as_ref().and_then(|unembedding| unembedding.transform.as_ref());
        let Some(transform) = transform else { return Ok(x.shallow_clone()) };
        let hidden = transform.dense.forward(x)?;
        Ok(match &transform.norm {
            Some(ln) => {
                let activation = self.config().lm_head.activation.unwrap_or(self.config().activation);
                let hidden = mlp::activate(&hidden, activation);
                norm::fused(NormKind::Layer, ln, &hidden, self.config().norm_eps)
            }
            None => hidden,
        })
    }

    /// `x` through the norm after the last block, if there is one.
    pub(crate) fn final_norm(&self, x: &Tensor) -> Tensor {
        match &self.weights().ln_final {
            Some(ln) => norm::fused(self.config().norm, ln, x, self.config().norm_eps),
            None => x.shallow_clone(),
        }
    }

    /// The logits from the products with the unembedding: scaled and capped, if the model does so.
    fn finished(&self, logits: Tensor) -> Tensor {
        let config = self.config();
        let logits = if config.logit_scale == 1.0 { logits } else { &logits * config.logit_scale };
        match config.logit_cap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        }
    }
}
