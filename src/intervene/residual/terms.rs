//! Which terms is a residual stream a sum of, and how does each come to be? The one list of them, for whoever reads terms
//! along a direction and whoever needs them as vectors.

use std::fmt;

use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::model::{EmbedProjection, Model, ModelConfig, NormKind, Run, Site, each_head};
use crate::table::Keys;

/// A term of the residual stream.
///
/// Its name is `embed`, `pos_embed`, `type_embed`, `result.LAYER.HEAD`, `attn_bias.LAYER`, `attn_norm_bias.LAYER`,
/// `mlp_out.LAYER`, or `resid_pre.0` if a norm or a projection follows the embeddings; after the final norm there is also
/// `ln_final_bias`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Term {
    /// The name without layer and head, as in column `site` of a table.
    pub site: &'static str,
    /// The layer, if it belongs to one.
    pub layer: Option<usize>,
    /// The head, if it is what a head writes.
    pub head: Option<usize>,
}

impl Term {
    pub(in crate::intervene) fn new(site: &'static str, layer: Option<usize>) -> Self {
        Self { site, layer, head: None }
    }

    /// The columns that name it.
    pub(in crate::intervene) fn keys(&self) -> Keys {
        let number = |n: Option<usize>| n.and_then(|n| u32::try_from(n).ok());
        Keys { site: Some(self.site.to_owned()), layer: number(self.layer), head: number(self.head), ..Keys::default() }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.site)?;
        self.layer.map_or(Ok(()), |layer| write!(f, ".{layer}"))?;
        self.head.map_or(Ok(()), |head| write!(f, ".{head}"))
    }
}

/// What a component adds to the stream, before the norm and the factor that it passes on its way.
enum Part {
    /// `[.., d_model]`.
    Whole(Tensor),
    /// The same everywhere, `[d_model]`.
    Constant(Tensor),
    /// By head: what the heads gather, `[.., head, d_head]`, and the matrices that they write it with,
    /// `[head, d_head, d_model]`.
    Heads(Tensor, Tensor),
}

/// What one component, or all heads of a layer, add to the stream.
pub(in crate::intervene) struct Written {
    pub term: Term,
    part: Part,
    /// Weight and frozen divisor of the norm that it passes, `[d_model]` and `[.., 1]`.
    norm: Option<(Tensor, Tensor)>,
    kind: NormKind,
    factor: f64,
}

impl Written {
    /// The component along `through`, `[.., d_model]` to `[..]`, or `[.., head]` of heads. Of heads nothing is made in
    /// d_model: z_h (W_O^h g) is computed within the space of the head.
    pub(in crate::intervene) fn along(&self, through: &Tensor) -> Tensor {
        let mut through = through * self.factor;
        if let Some((weight, scale)) = &self.norm {
            through = centred(self.kind, &(through * weight)) / scale;
        }
        match &self.part {
            Part::Whole(x) => (x * through).sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>),
            Part::Constant(b) => through.matmul(b),
            Part::Heads(z, w_o) => {
                let (size, width) = (z.size(), through.size()[through.dim() - 1]);
                let [leading @ .., heads, d_head] = size.as_slice() else { return z.shallow_clone() };
                let readers = w_o.matmul(&through.reshape([-1, width]).tr()).permute([2, 0, 1]);
                let by_head = (z.reshape([-1, *heads, *d_head]) * readers).sum_dim_intlist(
                    [2i64].as_slice(),
                    false,
                    None::<Kind>,
                );
                by_head.reshape([leading, &[*heads]].concat())
            }
        }
    }

    /// What is added, `[.., d_model]`, or `[.., head, d_model]` of heads; `like` is a stream.
    pub(in crate::intervene) fn vectors(&self, like: &Tensor) -> Tensor {
        let by_head = matches!(self.part, Part::Heads(..));
        let mut x = match &self.part {
            Part::Whole(x) => x.shallow_clone(),
            Part::Constant(b) => b.expand_as(like),
            Part::Heads(z, w_o) => each_head(z, w_o),
        };
        if let Some((weight, scale)) = &self.norm {
            let scale = if by_head { scale.unsqueeze(-2) } else { scale.shallow_clone() };
            x = centred(self.kind, &x) / scale * weight;
        }
        if self.factor == 1.0 { x } else { x * self.factor }
    }
}

/// `x` minus its mean if the norm is a LayerNorm. Centring is its own transpose: a direction that reads the centred stream
/// becomes one that reads the stream itself.
pub(in crate::intervene) fn centred(kind: NormKind, x: &Tensor) -> Tensor {
    match kind {
        NormKind::Layer => x - x.mean_dim([-1i64].as_slice(), true, None::<Kind>),
        NormKind::Rms | NormKind::None => x.shallow_clone(),
    }
}

/// The sites of the terms of the first residual stream: the embeddings, or the stream itself if a norm or a projection
/// follows them.
fn embeddings(config: &ModelConfig) -> Vec<Site> {
    match config.embed_norm || matches!(config.embed_projection, EmbedProjection::Sum(_)) {
        true => vec![Site::ResidPre(0)],
        false => [Site::Embed, Site::PosEmbed, Site::TypeEmbed]
            .into_iter()
            .filter(|site| site.check(config).is_ok())
            .collect(),
    }
}

/// The sub-layers that have written before the stream at `site`: those of layers below the first number, and attention of
/// the layer with that number if the second is true.
fn before(site: Site) -> Result<(usize, bool)> {
    match site {
        Site::ResidPre(layer) => Ok((layer, false)),
        Site::ResidMid(layer) => Ok((layer, true)),
        Site::ResidPost(layer) => Ok((layer + 1, false)),
        other => {
            Err(Error::argument("site", "a residual stream: resid_pre, resid_mid or resid_post of a layer", other))
        }
    }
}

/// Fails if the streams of a model are no sums of what its components write.
pub(in crate::intervene) fn check(model: &Model) -> Result<()> {
    model.one_sequence("the terms of a residual stream")?;
    if model.wiring().adds_up() {
        return Ok(());
    }
    Err(Error::argument("model", "one whose last residual stream is a sum", &model.config().family))
}

/// The sites that [`each_term`] reads for the stream at `upto`.
pub(in crate::intervene) fn sites(model: &Model, upto: Site) -> Result<Vec<Site>> {
    let config = model.config();
    upto.check(config)?;
    let (layers, half) = before(upto)?;
    let of_attention = |layer| [Site::Z(layer), Site::Ln1PostScale(layer)];
    let mut sites = embeddings(config);
    sites.extend((0..layers + usize::from(half)).flat_map(of_attention));
    sites.extend((0..layers).map(Site::MlpOut));
    sites.retain(|site| site.check(config).is_ok());
    Ok(sites)
}

/// Calls `each` with the terms of the stream at `upto`, in the order in which they are written. `at` selects rows of an
/// activation: `[batch, position, ..]` to `[.., ..]`.
pub(in crate::intervene) fn each_term(
    model: &Model,
    run: &Run,
    upto: Site,
    at: impl Fn(&Tensor) -> Tensor,
    mut each: impl FnMut(Written) -> Result<()>,
) -> Result<()> {
    let config = model.config();
    let plain = |term, part, factor| Written { term, part, norm: None, kind: config.norm, factor };
    for site in embeddings(config) {
        each(plain(Term::new(site.kind(), site.layer()), Part::Whole(at(run.get(site)?)), 1.0))?;
    }
    let (layers, half) = before(upto)?;
    for layer in 0..layers + usize::from(half) {
        of_attention(model, run, layer, &at, &mut each)?;
        if config.has_mlp() && layer < layers {
            let out = Part::Whole(at(run.get(Site::MlpOut(layer))?));
            each(plain(Term::new("mlp_out", Some(layer)), out, config.residual_scale))?;
        }
    }
    Ok(())
}

/// The terms that a layer's attention writes: its heads, and the biases of the output projection and of a norm after it.
pub(in crate::intervene) fn of_attention(
    model: &Model,
    run: &Run,
    layer: usize,
    at: &impl Fn(&Tensor) -> Tensor,
    each: &mut impl FnMut(Written) -> Result<()>,
) -> Result<()> {
    let (kind, factor) = (model.config().norm, model.config().residual_scale);
    let after = model.attn_out_norm(layer)?;
    let norm = match after {
        Some(norm) => Some((norm.w.shallow_clone(), at(run.get(Site::Ln1PostScale(layer))?))),
        None => None,
    };
    let normed = |site, part| {
        let norm = norm.as_ref().map(|(w, scale)| (w.shallow_clone(), scale.shallow_clone()));
        Written { term: Term::new(site, Some(layer)), part, norm, kind, factor }
    };
    each(normed("result", Part::Heads(at(run.get(Site::Z(layer))?), model.w_o(layer)?)))?;
    if let Some(b_o) = model.b_o(layer)? {
        each(normed("attn_bias", Part::Constant(b_o.shallow_clone())))?;
    }
    if let Some(beta) = after.and_then(|norm| norm.b.as_ref()) {
        let (term, part) = (Term::new("attn_norm_bias", Some(layer)), Part::Constant(beta.shallow_clone()));
        each(Written { term, part, norm: None, kind, factor })?;
    }
    Ok(())
}
