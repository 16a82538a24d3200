//! A model's parameters, in one layout for all families: row vectors on the left, `[in, out]`.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::workers::readable;

use super::config::{ModelConfig, NormKind, NormPlace, Position, Unembed};
use super::dense;

/// All parameters of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    /// `[vocab, d_model]`
    pub w_e: Tensor,
    /// `[n_positions, d_model]`
    pub w_pos: Option<Tensor>,
    /// `[n_token_types, d_model]`
    pub w_type: Option<Tensor>,
    pub ln_embed: Option<Norm>,
    pub blocks: Vec<Block>,
    pub ln_final: Option<Norm>,
    pub head: Option<Head>,
}

/// One block.
#[derive(Debug)]
pub(crate) struct Block {
    pub ln1: Option<Norm>,
    pub attn: Attention,
    pub ln2: Option<Norm>,
    pub mlp: Option<Mlp>,
}

/// A matrix `[in, out]` and its bias `[out]`.
#[derive(Debug)]
pub(crate) struct Linear {
    pub w: Tensor,
    pub b: Option<Tensor>,
}

/// Query heads stand side by side in the columns of q and the rows of o, key/value heads in those of k and v.
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
}

#[derive(Debug)]
pub(crate) struct Mlp {
    /// `[d_model, d_mlp]`: what the activation is applied to.
    pub gate: Linear,
    /// `[d_model, d_mlp]`: what it is multiplied with, in a gated MLP.
    pub up: Option<Linear>,
    /// `[d_mlp, d_model]`
    pub out: Linear,
}

#[derive(Debug)]
pub(crate) struct Norm {
    pub w: Tensor,
    pub b: Option<Tensor>,
}

/// From the residual stream to logits.
#[derive(Debug)]
pub(crate) struct Head {
    /// BERT's dense layer and norm before the unembedding.
    pub transform: Option<(Linear, Norm)>,
    /// `[d_model, vocab]`
    pub unembed: Linear,
}

readable!(Weights { w_e, w_pos, w_type, ln_embed, blocks, ln_final, head; });
readable!(Block { ln1, attn, ln2, mlp; });
readable!(Linear { w, b; });
readable!(Attention { q, k, v, o; });
readable!(Mlp { gate, up, out; });
readable!(Norm { w, b; });
readable!(Head { transform, unembed; });

impl Linear {
    /// `x w + b`, with `x` of any leading shape; where the matrix has a `run` axis, rows stand run by run.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let done = if self.w.dim() == 3 { self.stacked(x) } else { x.f_linear(&self.w.tr(), self.b.as_ref()) };
        done.map_err(|source| self.failed(x, source))
    }

    /// [`Linear::forward`], where another library than libtorch's first choice may be the faster one.
    pub(super) fn fast(&self, x: &Tensor) -> Result<Tensor> {
        if !dense::serves(x, &self.w) {
            return self.forward(x);
        }
        dense::product(x, &self.w, self.b.as_ref()).map_err(|source| self.failed(x, source))
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

    /// Itself and the weights of a norm before it as one matrix; all have a `run` axis.
    pub(super) fn behind(&self, norm: &Norm) -> Self {
        let moved = norm.b.as_ref().map(|b| b.unsqueeze(1).bmm(&self.w).squeeze_dim(1));
        let b = match (moved, &self.b) {
            (Some(moved), Some(b)) => Some(moved + b),
            (moved, b) => moved.or_else(|| b.as_ref().map(Tensor::shallow_clone)),
        };
        Self { w: &self.w * norm.w.unsqueeze(2), b }
    }

    /// Some of its columns, the first and how many.
    pub(super) fn columns(&self, (first, n): (i64, i64)) -> Self {
        let some = |x: &Tensor| x.narrow(-1, first, n);
        Self { w: some(&self.w), b: self.b.as_ref().map(some) }
    }

    fn names<'a>(&'a self, name: &str, all: &mut Vec<(String, &'a Tensor)>) {
        all.push((format!("w_{name}"), &self.w));
        all.extend(self.b.as_ref().map(|b| (format!("b_{name}"), b)));
    }
}

impl Norm {
    fn names<'a>(&'a self, name: &str, all: &mut Vec<(String, &'a Tensor)>) {
        all.push((format!("{name}.w"), &self.w));
        all.extend(self.b.as_ref().map(|b| (format!("{name}.b"), b)));
    }
}

impl Weights {
    /// Every parameter with its name, such as `blocks.0.w_q`, in the order of the forward pass.
    pub(crate) fn named(&self) -> Vec<(String, &Tensor)> {
        let mut all = vec![("w_e".to_owned(), &self.w_e)];
        all.extend(self.w_pos.as_ref().map(|t| ("w_pos".to_owned(), t)));
        all.extend(self.w_type.as_ref().map(|t| ("w_type".to_owned(), t)));
        if let Some(norm) = &self.ln_embed {
            norm.names("ln_embed", &mut all);
        }
        for (layer, block) in self.blocks.iter().enumerate() {
            let start = all.len();
            block.names(&mut all);
            all[start..].iter_mut().for_each(|(name, _)| *name = format!("blocks.{layer}.{name}"));
        }
        if let Some(norm) = &self.ln_final {
            norm.names("ln_final", &mut all);
        }
        if let Some(head) = &self.head {
            if let Some((dense, norm)) = &head.transform {
                dense.names("transform", &mut all);
                norm.names("ln_transform", &mut all);
            }
            head.unembed.names("u", &mut all);
        }
        all.retain(|(_, tensor)| tensor.numel() > 0);
        all
    }

    /// What the architecture has and these weights have not: a checkpoint may hold the weights of attention alone.
    pub(crate) fn absent(&self, config: &ModelConfig) -> Vec<&'static str> {
        let no_row = |w: &Tensor| w.numel() == 0;
        let parts = [
            ("w_e", no_row(&self.w_e)),
            ("w_pos", config.position == Position::Learned && self.w_pos.is_none()),
            ("mlp", config.has_mlp() && self.blocks.iter().any(|block| block.mlp.is_none())),
            (
                "ln_final",
                config.norm_place == NormPlace::Pre && config.norm != NormKind::None && self.ln_final.is_none(),
            ),
            ("w_u", config.has_logits() && self.head.as_ref().is_none_or(|head| no_row(&head.unembed.w))),
        ];
        parts.into_iter().filter(|(_, absent)| *absent).map(|(name, _)| name).collect()
    }

    /// Whether the unembedding is the token embedding itself.
    pub(crate) fn is_tied(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.unembed.w.data_ptr() == self.w_e.data_ptr())
    }

    /// Random parameters: normal, with the attention logits' variance independent of d_head, and norms near identity.
    pub(crate) fn drawn(config: &ModelConfig, seed: u64, spread: Spread, kind: Kind, device: Device) -> Self {
        let mut init = Init { rng: ChaCha8Rng::seed_from_u64(seed), spread, kind, device };
        let (d, vocab) = (config.d_model, config.vocab);
        let w_e = init.normal(&[vocab, d], spread.embeddings);
        let head = match config.unembed {
            Unembed::None => None,
            Unembed::Linear { bias } => Some((None, bias)),
            Unembed::MaskedLm => Some((Some((init.linear(d, d, true), init.norm_as(NormKind::Layer, d))), true)),
        };
        let head = head.map(|(transform, bias)| {
            let mut unembed = init.linear(d, vocab, bias);
            if config.tied_unembed {
                unembed.w = w_e.tr();
            }
            Head { transform, unembed }
        });
        let learned = config.position == Position::Learned;
        Self {
            w_pos: learned.then(|| init.normal(&[config.n_positions, d], 0.5 * spread.embeddings)),
            w_type: (config.n_token_types > 0)
                .then(|| init.normal(&[config.n_token_types, d], 0.5 * spread.embeddings)),
            ln_embed: config.embed_norm.then(|| init.norm(config)).flatten(),
            blocks: (0..config.n_layers).map(|_| init.block(config)).collect(),
            ln_final: (config.norm_place == NormPlace::Pre).then(|| init.norm(config)).flatten(),
            w_e,
            head,
        }
    }
}

impl Block {
    fn names<'a>(&'a self, all: &mut Vec<(String, &'a Tensor)>) {
        if let Some(norm) = &self.ln1 {
            norm.names("ln1", all);
        }
        let Attention { q, k, v, o } = &self.attn;
        for (linear, name) in [(q, "q"), (k, "k"), (v, "v"), (o, "o")] {
            linear.names(name, all);
        }
        if let Some(norm) = &self.ln2 {
            norm.names("ln2", all);
        }
        if let Some(mlp) = &self.mlp {
            mlp.gate.names(if mlp.up.is_some() { "gate" } else { "in" }, all);
            if let Some(up) = &mlp.up {
                up.names("in", all);
            }
            mlp.out.names("out", all);
        }
    }
}

/// Standard deviations of random parameters that are no matrices of a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    /// Of the token embeddings; those of positions and types have half of it.
    pub embeddings: f64,
    /// Of biases around 0 and norm weights around 1.
    pub biases: f64,
}

/// Draws parameters from one seeded stream.
struct Init {
    rng: ChaCha8Rng,
    spread: Spread,
    kind: Kind,
    device: Device,
}

impl Init {
    fn normal(&mut self, shape: &[usize], std: f64) -> Tensor {
        let n = shape.iter().product();
        let values: Vec<f64> = (0..n).map(|_| std * f64::from(self.gauss())).collect();
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        Tensor::from_slice(&values).view(shape.as_slice()).to_kind(self.kind).to_device(self.device)
    }

    fn gauss(&mut self) -> f32 {
        StandardNormal.sample(&mut self.rng)
    }

    fn linear(&mut self, rows: usize, columns: usize, bias: bool) -> Linear {
        let w = self.normal(&[rows, columns], (rows as f64).powf(-0.5));
        Linear { w: dense::laid_out(w), b: bias.then(|| self.normal(&[columns], self.spread.biases)) }
    }

    fn norm(&mut self, config: &ModelConfig) -> Option<Norm> {
        (config.norm != NormKind::None).then(|| self.norm_as(config.norm, config.d_model))
    }

    fn norm_as(&mut self, kind: NormKind, width: usize) -> Norm {
        let w = self.normal(&[width], self.spread.biases) + 1.0;
        Norm { w, b: (kind == NormKind::Layer).then(|| self.normal(&[width], self.spread.biases)) }
    }

    fn block(&mut self, config: &ModelConfig) -> Block {
        let (d, bias) = (config.d_model, config.qkv_bias);
        let (query, kv) = (config.n_heads * config.d_head, config.n_kv_heads * config.d_head);
        let attn = Attention {
            q: self.linear(d, query, bias),
            k: self.linear(d, kv, bias),
            v: self.linear(d, kv, bias),
            o: self.linear(query, d, config.attn_out_bias),
        };
        let mlp = config.has_mlp().then(|| Mlp {
            gate: self.linear(d, config.d_mlp, config.mlp_bias),
            up: config.gated_mlp.then(|| self.linear(d, config.d_mlp, config.mlp_bias)),
            out: self.linear(config.d_mlp, d, config.mlp_bias),
        });
        let ln2 = if mlp.is_some() { self.norm(config) } else { None };
        Block { ln1: self.norm(config), attn, ln2, mlp }
    }
}
