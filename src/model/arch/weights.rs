//! Which parameters does a model have? One layout for all families, with matrices `[in, out]` that row vectors multiply from
//! the left.

use tch::Tensor;

use super::config::{EmbedProjection, ModelConfig, Position, QkNorm, Unembed};
use super::experts::{Experts, SharedExpert};
use super::source::Source;
use super::wire::Heads;
use super::wiring::{BlockWiring, NormAt};
use crate::error::{Error, Result};
use crate::tensors::onednn;
use crate::workers::readable;

/// All parameters of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    /// `[vocab, d_embed]`
    pub w_e: Tensor,
    /// `[n_positions, d_model]`, with one more row before these where a token does not count
    pub w_pos: Option<Tensor>,
    /// `[n_token_types, d_model]`
    pub w_type: Option<Tensor>,
    pub ln_embed: Option<Norm>,
    /// From embeddings to the residual stream, if they are narrower.
    pub projection: Option<Linear>,
    /// What relative positions add to the scores, `[bucket, head]`.
    pub w_rel: Option<Tensor>,
    /// Of an encoder-decoder's source, outside blocks.
    pub source: Option<Source>,
    pub blocks: Vec<Block>,
    pub ln_final: Option<Norm>,
    pub unembedding: Option<Unembedding>,
}

/// One block.
#[derive(Debug)]
pub(crate) struct Block {
    pub ln1: Option<Norm>,
    pub attn: Attention,
    pub ln1_post: Option<Norm>,
    pub ln_cross: Option<Norm>,
    /// Its queries are projected from the residual stream, keys and values from the memory.
    pub cross: Option<Attention>,
    pub ln2: Option<Norm>,
    pub mlp: Option<Mlp>,
    pub experts: Option<ExpertWeights>,
    pub ln2_post: Option<Norm>,
}

/// A matrix `[in, out]` and its bias `[out]`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub w: Tensor,
    pub b: Option<Tensor>,
}

/// The columns of q and the rows of o are grouped by query head, the columns of k and v by key/value head.
#[derive(Debug)]
pub(crate) struct Attention {
    /// `[d_model, n_heads * d_head]`
    pub q: Linear,
    /// `[d_model, n_kv_heads * d_head]`
    pub k: Linear,
    /// `[d_model, n_kv_heads * d_head]`
    pub v: Linear,
    /// `[n_heads * d_head, d_model]`
    pub o: Linear,
    pub q_norm: Option<Norm>,
    pub k_norm: Option<Norm>,
    /// `[n_heads]`
    pub sinks: Option<Tensor>,
}

#[derive(Debug)]
pub(crate) struct Mlp {
    /// `[d_model, d_mlp]`: gives the argument of the activation.
    pub gate: Linear,
    /// `[d_model, d_mlp]`: what the activation is multiplied by, in a gated MLP.
    pub up: Option<Linear>,
    /// What the output projection reads through, in some models.
    pub norm: Option<Norm>,
    /// `[d_mlp, d_model]`
    pub out: Linear,
}

#[derive(Debug)]
pub(crate) struct ExpertWeights {
    /// `[d_model, expert]`
    pub router: Linear,
    pub each: Vec<Mlp>,
    pub shared: Option<Shared>,
}

/// The MLP beside the experts.
#[derive(Debug)]
pub(crate) struct Shared {
    pub mlp: Mlp,
    /// `[d_model, 1]`: the score of a position, whose sigmoid is the MLP's weight.
    pub gate: Option<Linear>,
}

#[derive(Debug)]
pub(crate) struct Norm {
    pub w: Tensor,
    pub b: Option<Tensor>,
}

/// From the residual stream to logits.
#[derive(Debug)]
pub(crate) struct Unembedding {
    pub transform: Option<Transform>,
    /// `[d_embed, vocab]`
    pub linear: Linear,
}

/// The step from the residual stream to the unembedding, in some models: a projection to the width of the embeddings, and in
/// BERT's head an activation and a LayerNorm.
#[derive(Debug)]
pub(crate) struct Transform {
    pub dense: Linear,
    pub norm: Option<Norm>,
}

readable!(Weights { w_e, w_pos, w_type, ln_embed, projection, w_rel, source, blocks, ln_final, unembedding; });
readable!(Block { ln1, attn, ln1_post, ln_cross, cross, ln2, mlp, experts, ln2_post; });
readable!(Linear { w, b; });
readable!(Attention { q, k, v, o, q_norm, k_norm, sinks; });
readable!(Mlp { gate, up, norm, out; });
readable!(ExpertWeights { router, each, shared; });
readable!(Shared { mlp, gate; });
readable!(Norm { w, b; });
readable!(Unembedding { transform, linear; });
readable!(Transform { dense, norm; });

/// Where parameters come from: a seeded stream, or a file.
pub(crate) trait Make {
    /// A matrix and its bias, called `w_name` and `b_name` after the prefix `at`.
    fn linear(&mut self, at: &str, name: &str, rows: usize, columns: usize, bias: bool) -> Result<Linear>;
    /// The unembedding that is the token embedding transposed, with its bias.
    fn tied(&mut self, w_e: &Tensor, bias: bool) -> Result<Linear>;
    /// A norm's weight and bias.
    fn norm(&mut self, at: &str, name: &str, width: usize, bias: bool) -> Result<Norm>;
    /// Embeddings, or numbers per head; random ones have this share of the embeddings' standard deviation.
    fn table(&mut self, at: &str, name: &str, shape: &[usize], share: f64) -> Result<Tensor>;
    /// Fixed positions, which a file may leave out.
    fn sinusoids(&mut self, at: &str, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.table(at, name, shape, 1.0)
    }
    /// Whether there is such a parameter. A checkpoint that holds only attention weights lacks some that its config asks for.
    fn keeps(&self, _at: &str, _name: &str) -> bool {
        true
    }
}

impl Linear {
    /// `x w + b`, with any number of axes before the last; if the matrix has a `run` axis, the rows of `x` are ordered by run.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let done = if self.w.dim() == 3 { self.stacked(x) } else { x.f_linear(&self.w.tr(), self.b.as_ref()) };
        done.map_err(|source| self.failed(x, source))
    }

    /// [`Linear::forward`], by oneDNN where that is faster than libtorch's default library.
    pub(crate) fn fast(&self, x: &Tensor) -> Result<Tensor> {
        if !onednn::serves(x, &self.w) {
            return self.forward(x);
        }
        onednn::product(x, &self.w, self.b.as_ref()).map_err(|source| self.failed(x, source))
    }

    fn failed(&self, x: &Tensor, source: tch::TchError) -> Error {
        Error::torch(format!("a product of {:?} with {:?}", x.size(), self.w.size()))(source)
    }

    /// [`Linear::forward`] for `w` of `[run, in, out]` and `x` of `[run * batch, .., in]`.
    fn stacked(&self, x: &Tensor) -> Result<Tensor, tch::TchError> {
        let (runs, width) = (self.w.size()[0], self.w.size()[2]);
        let mut shape = x.size();
        let rows = x.f_reshape([runs, -1, self.w.size()[1]])?;
        let product = match &self.b {
            Some(b) => b.unsqueeze(1).f_baddbmm(&rows, &self.w, 1, 1)?,
            None => rows.f_bmm(&self.w)?,
        };
        if let Some(last) = shape.last_mut() {
            *last = width;
        }
        product.f_view(shape.as_slice())
    }

    /// This projection with the weights of the norm before it folded in: `diag(w) W` with the bias `b_norm W + b`. All may have
    /// a leading `run` axis.
    pub(crate) fn after_norm(&self, norm: &Norm) -> Self {
        let moved = norm.b.as_ref().map(|b| b.unsqueeze(-2).matmul(&self.w).squeeze_dim(-2));
        let b = match (moved, &self.b) {
            (Some(moved), Some(b)) => Some(moved + b),
            (moved, b) => moved.or_else(|| b.as_ref().map(Tensor::shallow_clone)),
        };
        Self { w: &self.w * norm.w.unsqueeze(-1), b }
    }

    /// Some of its columns, given by the first and their number.
    pub(crate) fn columns(&self, (first, n): (i64, i64)) -> Self {
        let some = |x: &Tensor| x.narrow(-1, first, n);
        Self { w: some(&self.w), b: self.b.as_ref().map(some) }
    }

    fn rebuilt<'a>(&'a self, at: &str, name: &str, each: &mut Each<'_, 'a>) -> Self {
        let w = each(format!("{at}w_{name}"), &self.w);
        Self { w, b: self.b.as_ref().map(|b| each(format!("{at}b_{name}"), b)) }
    }
}

impl Attention {
    /// Attention without query and key norms and without sinks.
    pub(crate) fn new(q: Linear, k: Linear, v: Linear, o: Linear) -> Self {
        Self { q, k, v, o, q_norm: None, k_norm: None, sinks: None }
    }

    fn made(config: &ModelConfig, at: &str, make: &mut dyn Make) -> Result<Self> {
        let (d, bias) = (config.d_model, config.qkv_bias);
        let (query, kv) = (config.n_heads * config.d_head, config.n_kv_heads * config.d_head);
        Ok(Self::new(
            make.linear(at, "q", d, query, bias.q)?,
            make.linear(at, "k", d, kv, bias.k)?,
            make.linear(at, "v", d, kv, bias.v)?,
            make.linear(at, "o", query, d, config.attn_out_bias)?,
        ))
    }

    fn rebuilt<'a>(&'a self, at: &str, each: &mut Each<'_, 'a>) -> Self {
        Self {
            q: self.q.rebuilt(at, "q", each),
            k: self.k.rebuilt(at, "k", each),
            v: self.v.rebuilt(at, "v", each),
            o: self.o.rebuilt(at, "o", each),
            q_norm: self.q_norm.as_ref().map(|norm| norm.rebuilt(&format!("{at}q_norm"), each)),
            k_norm: self.k_norm.as_ref().map(|norm| norm.rebuilt(&format!("{at}k_norm"), each)),
            sinks: self.sinks.as_ref().map(|sinks| each(format!("{at}sinks"), sinks)),
        }
    }
}

impl Block {
    /// One of the block's norms.
    pub(crate) fn norm(&self, at: NormAt) -> Option<&Norm> {
        match at {
            NormAt::Attn => self.ln1.as_ref(),
            NormAt::AttnOut => self.ln1_post.as_ref(),
            NormAt::Cross => self.ln_cross.as_ref(),
            NormAt::Mlp => self.ln2.as_ref(),
            NormAt::MlpOut => self.ln2_post.as_ref(),
        }
    }

    /// One of the block's attentions.
    pub(crate) fn attention(&self, heads: &Heads) -> Result<&Attention> {
        match heads.are_across() {
            true => self.cross.as_ref().ok_or_else(|| Error::argument("block", "cross-attention", "none")),
            false => Ok(&self.attn),
        }
    }
}

impl Weights {
    /// The parameters that a config asks for, each made by `make`.
    pub(crate) fn made(config: &ModelConfig, make: &mut dyn Make) -> Result<Self> {
        let (d, width, sum) = (config.d_model, config.d_embed(), config.d_sum());
        let w_e = make.table("", "w_e", &[config.vocab, width], 1.0)?;
        let unembedding = Unembedding::made(config, &w_e, make)?;
        let learned = config.has_position_vectors() && make.keeps("", "w_pos");
        let w_pos = learned.then(|| positions_of(config, make, "")).transpose()?;
        let types = config.n_token_types;
        let w_type = (types > 0 && make.keeps("", "w_type"))
            .then(|| make.table("", "w_type", &[types, sum], 0.5))
            .transpose()?;
        let embed_norm = config.embed_norm && make.keeps("", "ln_embed");
        let ln_embed = embed_norm.then(|| norm_of(config, make, "", "ln_embed", sum)).transpose()?.flatten();
        let projection = match config.embed_projection {
            EmbedProjection::None => None,
            EmbedProjection::Tokens(width) => Some(make.linear("", "embed", width, d, false)?),
            EmbedProjection::Sum(width) => Some(make.linear("", "embed", width, d, true)?),
        };
        let w_rel = match config.position {
            Position::Buckets { n, .. } => Some(make.table("", "w_rel", &[n, config.n_heads], 1.0)?),
            _ => None,
        };
        let source = config.encoder.map(|_| Source::made(config, make)).transpose()?;
        let blocks = (0..config.blocks()).map(|block| Block::made(config, block, make)).collect::<Result<_>>()?;
        let final_norm = config.has_final_norm() && make.keeps("", "ln_final");
        let ln_final = final_norm.then(|| norm_of(config, make, "", "ln_final", d)).transpose()?.flatten();
        Ok(Self { w_e, w_pos, w_type, ln_embed, projection, w_rel, source, blocks, ln_final, unembedding })
    }

    /// The weights of a layer's block; layers may share them.
    pub(crate) fn block(&self, layer: usize, config: &ModelConfig) -> Option<&Block> {
        (layer < config.n_layers).then(|| self.blocks.get(config.block_of(layer))).flatten()
    }

    /// Every parameter with its name, such as `blocks.0.w_q`, in the order of the forward pass.
    pub(crate) fn named(&self) -> Vec<(String, &Tensor)> {
        let mut all = vec![];
        self.rebuilt(&mut |name, tensor| {
            all.push((name, tensor));
            tensor.shallow_clone()
        });
        all.retain(|(_, tensor)| tensor.numel() > 0);
        all
    }

    /// The same weights with every parameter replaced by `each(name, parameter)`, in the order of [`Weights::named`]. A tied
    /// unembedding stays tied.
    pub(crate) fn rebuilt<'a>(&'a self, each: &mut Each<'_, 'a>) -> Self {
        let tied = self.is_tied();
        let one = |name: &str, tensor: &'a Option<Tensor>, each: &mut Each<'_, 'a>| {
            tensor.as_ref().map(|tensor| each(name.to_owned(), tensor))
        };
        let w_e = each("w_e".to_owned(), &self.w_e);
        let w_pos = one("w_pos", &self.w_pos, each);
        let w_type = one("w_type", &self.w_type, each);
        let ln_embed = self.ln_embed.as_ref().map(|norm| norm.rebuilt("ln_embed", each));
        let projection = self.projection.as_ref().map(|linear| linear.rebuilt("", "embed", each));
        let w_rel = one("w_rel", &self.w_rel, each);
        let source = self.source.as_ref().map(|source| source.rebuilt("source.", each));
        let blocks = self.blocks.iter().enumerate();
        let blocks = blocks.map(|(number, block)| block.rebuilt(&format!("blocks.{number}."), each)).collect();
        let ln_final = self.ln_final.as_ref().map(|norm| norm.rebuilt("ln_final", each));
        let unembedding = self.unembedding.as_ref().map(|unembedding| {
            let transform = unembedding.transform.as_ref().map(|transform| Transform {
                dense: transform.dense.rebuilt("", "transform", each),
                norm: transform.norm.as_ref().map(|norm| norm.rebuilt("ln_transform", each)),
            });
            let mut linear = unembedding.linear.rebuilt("", "u", each);
            if tied {
                linear.w = w_e.transpose(-2, -1);
            }
            Unembedding { transform, linear }
        });
        Self { w_e, w_pos, w_type, ln_embed, projection, w_rel, source, blocks, ln_final, unembedding }
    }

    /// The parts that the architecture has and these weights lack: a checkpoint may hold only attention weights.
    pub(crate) fn absent(&self, config: &ModelConfig) -> Vec<&'static str> {
        let no_row = |w: &Tensor| w.numel() == 0;
        let no_mlp = |block: &Block| block.mlp.is_none() && block.experts.is_none();
        let parts = [
            ("w_e", no_row(&self.w_e)),
            ("w_pos", config.has_position_vectors() && self.w_pos.is_none()),
            ("mlp", config.has_mlp() && self.blocks.iter().any(no_mlp)),
            ("ln_final", config.has_final_norm() && self.ln_final.is_none()),
            ("w_u", config.has_logits() && self.unembedding.as_ref().is_none_or(|head| no_row(&head.linear.w))),
        ];
        parts.into_iter().filter(|(_, absent)| *absent).map(|(name, _)| name).collect()
    }

    /// Whether the unembedding is the token embedding itself.
    pub(crate) fn is_tied(&self) -> bool {
        self.unembedding.as_ref().is_some_and(|head| head.linear.w.data_ptr() == self.w_e.data_ptr())
    }
}

/// Makes a new parameter from a name and an old one.
pub(crate) type Each<'f, 'a> = dyn FnMut(String, &'a Tensor) -> Tensor + 'f;

/// A norm of the kind that the config names.
pub(super) fn norm_of(
    config: &ModelConfig,
    make: &mut dyn Make,
    at: &str,
    name: &str,
    width: usize,
) -> Result<Option<Norm>> {
    config.norm.has_weights().then(|| make.norm(at, name, width, config.has_norm_bias())).transpose()
}

/// The vectors of positions: learned ones, or fixed ones.
pub(super) fn positions_of(config: &ModelConfig, make: &mut dyn Make, at: &str) -> Result<Tensor> {
    let shape = config.position_table();
    match config.position {
        Position::Sinusoidal => make.sinusoids(at, "w_pos", &shape),
        _ => make.table(at, "w_pos", &shape, 0.5),
    }
}

impl Unembedding {
    fn made(config: &ModelConfig, w_e: &Tensor, make: &mut dyn Make) -> Result<Option<Self>> {
        let (d, width) = (config.d_model, config.d_embed());
        let (transform, bias) = match config.unembed {
            Unembed::None => return Ok(None),
            Unembed::Linear { bias } if width == d => (None, bias),
            Unembed::Linear { bias } => {
                (Some(Transform { dense: make.linear("", "transform", d, width, false)?, norm: None }), bias)
            }
            Unembed::MaskedLm => {
                let head = config.lm_head;
                let dense = make.linear("", "transform", d, width, head.dense_bias)?;
                let norm = Some(make.norm("", "ln_transform", width, head.norm_bias)?);
                (Some(Transform { dense, norm }), head.bias)
            }
        };
        let linear = match config.tied_unembed {
            true => make.tied(w_e, bias)?,
            false => make.linear("", "u", width, config.vocab, bias)?,
        };
        Ok(Some(Self { transform, linear }))
    }
}

impl Block {
    fn made(config: &ModelConfig, block: usize, make: &mut dyn Make) -> Result<Self> {
        let (at, d) = (format!("blocks.{block}."), config.d_model);
        let (query, kv) = (config.n_heads * config.d_head, config.n_kv_heads * config.d_head);
        let mut attn = Attention::made(config, &at, make)?;
        let layer = (0..config.n_layers).find(|&layer| config.block_of(layer) == block).unwrap_or(0);
        let experts = config.experts_of(layer);
        let input = if config.gated_mlp { "gate" } else { "in" };
        let dense = config.has_mlp() && experts.is_none() && make.keeps(&at, input);
        let mlp = dense.then(|| Mlp::made(config, &at, config.d_mlp_of(layer), make)).transpose()?;
        let wiring = BlockWiring::new(config, layer);
        let norm =
            |place: NormAt, name: &str, make: &mut dyn Make| match wiring.has_norm(place) && make.keeps(&at, name) {
                true => norm_of(config, make, &at, name, d),
                false => Ok(None),
            };
        let ln2 = norm(NormAt::Mlp, "ln2", make)?;
        let ln1 = norm(NormAt::Attn, "ln1", make)?;
        let ln1_post = norm(NormAt::AttnOut, "ln1_post", make)?;
        let ln2_post = norm(NormAt::MlpOut, "ln2_post", make)?;
        if config.qk_norm != QkNorm::None && config.norm.has_weights() {
            let width = |all: usize| if config.qk_norm == QkNorm::Head { config.d_head } else { all };
            let bias = config.has_norm_bias() && config.qk_norm != QkNorm::EachHead;
            attn.q_norm = Some(make.norm(&at, "q_norm", width(query), bias)?);
            attn.k_norm = Some(make.norm(&at, "k_norm", width(kv), bias)?);
        }
        let ln_cross = norm(NormAt::Cross, "ln_cross", make)?;
        let across = config.attends_across(layer);
        let cross = across.then(|| Attention::made(config, &format!("{at}cross."), make)).transpose()?;
        attn.sinks = config.sinks.then(|| make.table(&at, "sinks", &[config.n_heads], 1.0)).transpose()?;
        let experts = experts.filter(|_| make.keeps(&format!("{at}experts.0."), input));
        let experts = experts.map(|experts| ExpertWeights::made(config, &at, experts, make)).transpose()?;
        Ok(Self { ln1, attn, ln1_post, ln_cross, cross, ln2, mlp, experts, ln2_post })
    }

    fn rebuilt<'a>(&'a self, at: &str, each: &mut Each<'_, 'a>) -> Self {
        let norm = |norm: &'a Option<Norm>, name: &str, each: &mut Each<'_, 'a>| {
            norm.as_ref().map(|norm| norm.rebuilt(&format!("{at}{name}"), each))
        };
        let ln1 = norm(&self.ln1, "ln1", each);
        let attn = self.attn.rebuilt(at, each);
        let ln1_post = norm(&self.ln1_post, "ln1_post", each);
        let ln_cross = norm(&self.ln_cross, "ln_cross", each);
        let cross = self.cross.as_ref().map(|cross| cross.rebuilt(&format!("{at}cross."), each));
        let ln2 = norm(&self.ln2, "ln2", each);
        let mlp = self.mlp.as_ref().map(|mlp| mlp.rebuilt(at, each));
        let experts = self.experts.as_ref().map(|experts| experts.rebuilt(at, each));
        let ln2_post = norm(&self.ln2_post, "ln2_post", each);
        Self { ln1, attn, ln1_post, ln_cross, cross, ln2, mlp, experts, ln2_post }
    }
}

impl ExpertWeights {
    fn made(config: &ModelConfig, at: &str, experts: Experts, make: &mut dyn Make) -> Result<Self> {
        let d = config.d_model;
        let router = make.linear(at, "router", d, experts.n, experts.router_bias)?;
        let one = |number| Mlp::made(config, &format!("{at}experts.{number}."), config.d_mlp, make);
        let each = (0..experts.n).map(one).collect::<Result<_>>()?;
        let shared = experts.shared.map(|SharedExpert { d_mlp, gated }| {
            let mlp = Mlp::made(config, &format!("{at}shared."), d_mlp, make)?;
            let gate = gated.then(|| make.linear(at, "shared_gate", d, 1, false)).transpose()?;
            Ok::<_, Error>(Shared { mlp, gate })
        });
        Ok(Self { router, each, shared: shared.transpose()? })
    }

    fn rebuilt<'a>(&'a self, at: &str, each: &mut Each<'_, 'a>) -> Self {
        let router = self.router.rebuilt(at, "router", each);
        let experts = (0..).zip(&self.each).map(|(n, mlp)| mlp.rebuilt(&format!("{at}experts.{n}."), each)).collect();
        let shared = self.shared.as_ref().map(|shared| Shared {
            mlp: shared.mlp.rebuilt(&format!("{at}shared."), each),
            gate: shared.gate.as_ref().map(|gate| gate.rebuilt(at, "shared_gate", each)),
        });
        Self { router, each: experts, shared }
    }
}

impl Mlp {
    fn made(config: &ModelConfig, at: &str, d_mlp: usize, make: &mut dyn Make) -> Result<Self> {
        let (d, bias) = (config.d_model, config.mlp_bias);
        let gate = make.linear(at, if config.gated_mlp { "gate" } else { "in" }, d, d_mlp, bias)?;
        let up = config.gated_mlp.then(|| make.linear(at, "in", d, d_mlp, bias)).transpose()?;
        let norm = config.mlp_norm.then(|| make.norm(at, "ln_mlp", d_mlp, config.norm_bias)).transpose()?;
        Ok(Self { gate, up, norm, out: make.linear(at, "out", d_mlp, d, bias)? })
    }

    fn rebuilt<'a>(&'a self, at: &str, each: &mut Each<'_, 'a>) -> Self {
        Self {
            gate: self.gate.rebuilt(at, if self.up.is_some() { "gate" } else { "in" }, each),
            up: self.up.as_ref().map(|up| up.rebuilt(at, "in", each)),
            norm: self.norm.as_ref().map(|norm| norm.rebuilt(&format!("{at}ln_mlp"), each)),
            out: self.out.rebuilt(at, "out", each),
        }
    }
}

impl Norm {
    pub(super) fn rebuilt<'a>(&'a self, name: &str, each: &mut Each<'_, 'a>) -> Self {
        Self { w: each(format!("{name}.w"), &self.w), b: self.b.as_ref().map(|b| each(format!("{name}.b"), b)) }
    }
}
