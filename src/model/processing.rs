//! Which other weights compute the same? Norms folded into the matrices behind them, writing and unembedding matrices
//! centred, value biases moved into output biases (Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021;
//! TransformerLens' weight processing).
//!
//! | step | what becomes of the weights | serves |
//! |---|---|---|
//! | [`Model::fold_norms`] | `W = diag(w) W`, `b = b_norm W + b`, then `w = 1`, `b_norm = 0` | norms before each sub-layer |
//! | [`Model::center_writing_weights`] | each matrix, bias and embedding that is added to the residual stream loses its mean over `d_model` | LayerNorm before each sub-layer |
//! | [`Model::center_unembed`] | `W_U` and its bias lose their mean over the vocabulary | logits without a cap |
//! | [`Model::fold_value_biases`] | `b_O = b_O + sum over heads of b_V W_O`, then `b_V = 0` | patterns whose rows sum to 1 |
//!
//! Each step returns a new model; what it does not change, the two models share. Where a step would change what the model
//! computes, it is an error that says why. Sums are computed in float64 and rounded once to the model's type.
//!
//! What the steps keep is the output of a run without edits. What lies inside changes (that is their purpose), and with it what
//! an edit does: ablating z to zero takes a folded value bias no longer with it, and residual streams lose their mean.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::arch::{
    Block, EmbedProjection, Linear, Mlp, ModelConfig, Norm, NormKind, NormPlace, Parallel, Position, QkvBias, Unembed,
    Unembedding, Weights,
};
use super::{Model, Origin};
use crate::error::{Error, Result};

/// A step that rewrites the weights and keeps the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Processing {
    /// [`Model::fold_norms`].
    FoldNorms,
    /// [`Model::center_writing_weights`].
    CenterWritingWeights,
    /// [`Model::center_unembed`].
    CenterUnembed,
    /// [`Model::fold_value_biases`].
    FoldValueBiases,
}

impl Processing {
    /// Every step, in the order in which [`Model::processed`] takes them.
    pub const ALL: [Self; 4] =
        [Self::FoldNorms, Self::CenterWritingWeights, Self::CenterUnembed, Self::FoldValueBiases];

    /// The step's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::FoldNorms => "fold_norms",
            Self::CenterWritingWeights => "center_writing_weights",
            Self::CenterUnembed => "center_unembed",
            Self::FoldValueBiases => "fold_value_biases",
        }
    }

    /// Fails if the step would change what a model of this architecture computes.
    ///
    /// ```
    /// use headscope::model::{ModelConfig, NormKind, Processing};
    /// let rms = ModelConfig { norm: NormKind::Rms, ..ModelConfig::default() };
    /// assert!(Processing::FoldNorms.check(&rms).is_ok());
    /// let reason = Processing::CenterWritingWeights.check(&rms).unwrap_err().to_string();
    /// assert!(reason.contains("RMSNorm does not take the mean away"), "{reason}");
    /// ```
    ///
    /// # Errors
    /// [`Error::Argument`] with the reason.
    pub fn check(self, config: &ModelConfig) -> Result<()> {
        let refused = match self {
            Self::FoldNorms => refuses_folding(config),
            Self::CenterWritingWeights => refuses_centring(config),
            Self::CenterUnembed => match (config.has_logits(), config.logit_cap) {
                (false, _) => Some(("logits", "a model that ends in the residual stream".to_owned())),
                (true, Some(cap)) => {
                    let expected = "logits without a cap: the same number added to all logits changes the capped ones";
                    Some((expected, format!("a cap of {cap}")))
                }
                (true, None) => None,
            },
            Self::FoldValueBiases if config.clip_qkv.is_some() && config.qkv_bias.v => {
                Some(("values that are not cut off", "a cut-off of values with their biases".to_owned()))
            }
            Self::FoldValueBiases => (config.sinks && config.qkv_bias.v).then(|| {
                let expected = "patterns whose rows sum to 1, so that each head gathers its whole value bias";
                (expected, "attention sinks, which take a share".to_owned())
            }),
        };
        refused.map_or(Ok(()), |(expected, found)| Err(Error::argument(self.name(), expected, found)))
    }

    /// Does the step, which serves the architecture.
    fn apply(self, config: &mut ModelConfig, weights: &mut Weights) {
        match self {
            Self::FoldNorms => fold_norms(config, weights),
            Self::CenterWritingWeights => center_writing(config, weights),
            Self::CenterUnembed => center_unembed(config, weights),
            Self::FoldValueBiases => fold_value_biases(config, weights),
        }
    }
}

/// What [`Model::fold_norms`] would need, and what the architecture has instead.
fn refuses_folding(config: &ModelConfig) -> Option<(&'static str, String)> {
    let place = || config.norm_place.name().to_owned();
    match (config.norm, config.norm_place) {
        (NormKind::None, _) => None,
        (_, NormPlace::Post) => {
            Some(("norms that only matrices read, but norms here are read by the residual stream too", place()))
        }
        (_, NormPlace::Output) => {
            Some(("norms that a matrix reads, but norms here are read by the residual stream alone", place()))
        }
        _ if !config.has_logits() => {
            Some(("an unembedding to fold the last norm into", "a model that ends in that norm".to_owned()))
        }
        _ if config.position == Position::Shortformer => {
            Some(("norms that only matrices read", "positions that are added after the norm".to_owned()))
        }
        _ if config.experts.is_some() && config.has_norm_bias() => Some((
            "norms without a bias before experts, whose router has none to take it",
            "LayerNorm with a bias".to_owned(),
        )),
        (_, NormPlace::Pre | NormPlace::Sandwich) => None,
    }
}

/// What [`Model::center_writing_weights`] would need, and what the architecture has instead.
fn refuses_centring(config: &ModelConfig) -> Option<(&'static str, String)> {
    match (config.norm, config.norm_place) {
        (NormKind::Rms, _) => {
            Some(("LayerNorm, for RMSNorm does not take the mean away", NormKind::Rms.name().to_owned()))
        }
        (NormKind::None, _) => {
            Some(("LayerNorm, which takes the mean away before anything reads it", "no norms".to_owned()))
        }
        (NormKind::Layer, NormPlace::Pre) if config.embed_norm && !projects_sum(config) => {
            let expected = "embeddings that are added to the residual stream as they are";
            Some((expected, "a norm on them, whose weights give them a mean".to_owned()))
        }
        (NormKind::Layer, NormPlace::Pre) if config.layers.iter().any(|layer| layer.no_attn_norm) => {
            let expected = "norms before each sub-layer, so that all that is read is free of its mean";
            Some((expected, "a layer whose attention reads the residual stream as it is".to_owned()))
        }
        (NormKind::Layer, NormPlace::Pre) => None,
        (NormKind::Layer, place) => {
            let expected = "norms before each sub-layer and nowhere else, so that all that is read is free of its mean, and \
                            what is written is what the matrices write";
            Some((expected, format!("norms {}", place.name())))
        }
    }
}

fn projects_sum(config: &ModelConfig) -> bool {
    matches!(config.embed_projection, EmbedProjection::Sum(_))
}

impl Model {
    /// The same function with the weights of norms folded into the matrices behind them.
    ///
    /// A norm computes `n(x) * w + b`. Each matrix that reads it, `y = (n(x) * w + b) W + c`, becomes `diag(w) W` with the bias
    /// `b W + c`, and the norm's weights become 1 and its bias 0. Folded are the norms that the residual stream passes on its way
    /// to queries, keys and values, to the MLP (or its experts and their router) and to the unembedding. A bias that the
    /// matrices did not have is added. A tied unembedding is untied.
    ///
    /// Norms that no matrix reads alone stay as they are: those of embeddings, of queries and keys, on the outputs of
    /// sub-layers, and inside BERT's head.
    ///
    /// ```
    /// use headscope::model::{Model, Plan};
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let folded = model.fold_norms()?;
    /// let tokens = model.tokens(&["the head"])?;
    /// let logits = |model: &Model| model.run(&tokens, &Plan::new()).and_then(|run| Ok(run.logits()?.shallow_clone()));
    /// let difference = (logits(&model)? - logits(&folded)?).abs().max();
    /// assert!(difference.double_value(&[]) < 1e-4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If norms stand after the sums (BERT) or only on the outputs of sub-layers (OLMo 2), if the model ends in its last norm,
    /// or if experts are routed by a matrix without a bias behind a norm with one; if a part of the model is absent.
    pub fn fold_norms(&self) -> Result<Self> {
        self.rewritten(&[Processing::FoldNorms])
    }

    /// The same function with everything that is added to the residual stream centred: each row of `W_O`, of the MLP's output
    /// matrix and of the embeddings, and each bias, loses its mean over `d_model`. Each activation of the residual stream then
    /// has mean 0.
    ///
    /// LayerNorm takes the mean away before anything reads the stream, so nothing that is read changes. A tied unembedding is
    /// untied, and keeps its mean.
    ///
    /// # Errors
    /// If norms are not LayerNorms before each sub-layer, or embeddings are normalised before they are added; if a part of the
    /// model is absent.
    pub fn center_writing_weights(&self) -> Result<Self> {
        self.rewritten(&[Processing::CenterWritingWeights])
    }

    /// The same probabilities with the unembedding centred: each row of `W_U`, and its bias, loses its mean over the vocabulary.
    /// The logits of each position then have mean 0; they change by a number, which the softmax cancels.
    ///
    /// A tied unembedding is untied.
    ///
    /// # Errors
    /// If the model has no logits, or caps them; if a part of it is absent.
    pub fn center_unembed(&self) -> Result<Self> {
        self.rewritten(&[Processing::CenterUnembed])
    }

    /// The same function with value biases moved to the output bias of attention: `b_O + sum over heads of b_V W_O`. The rows of
    /// a pattern sum to 1, so each head gathers its whole value bias at every position. Query heads that share values each
    /// write their part.
    ///
    /// # Errors
    /// If the model has attention sinks, which leave a row's sum below 1; if a part of it is absent.
    pub fn fold_value_biases(&self) -> Result<Self> {
        self.rewritten(&[Processing::FoldValueBiases])
    }

    /// What TransformerLens does by default: [`fold_norms`](Model::fold_norms),
    /// [`center_writing_weights`](Model::center_writing_weights), [`center_unembed`](Model::center_unembed) and
    /// [`fold_value_biases`](Model::fold_value_biases), in this order, each where it keeps the output and not elsewhere.
    /// [`Origin::processing`] says which were done; [`Processing::check`] says why one was not.
    ///
    /// ```
    /// use headscope::model::{Model, Processing};
    /// let llama = Model::load("fixtures/checkpoints/tiny-llama")?.processed()?;
    /// let done = [Processing::FoldNorms, Processing::CenterUnembed, Processing::FoldValueBiases];
    /// assert_eq!(llama.origin().processing, done);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If a part of the model is absent.
    pub fn processed(&self) -> Result<Self> {
        let mut done = self.rewritten(&[])?;
        for step in Processing::ALL {
            // Of what the steps before have made of it: folded norms give value biases to models that had none.
            if step.check(&done.config).is_ok() {
                done = done.rewritten(&[step])?;
            }
        }
        Ok(done)
    }

    fn rewritten(&self, steps: &[Processing]) -> Result<Self> {
        self.one_sequence("weight processing")?;
        self.require("weight processing", &["w_e", "w_pos", "mlp", "ln_final", "w_u"])?;
        let mut config = self.config.clone();
        let mut weights = self.weights.rebuilt(&mut |_, tensor| tensor.detach());
        let mut origin = self.origin.clone();
        for step in steps {
            step.check(&config)?;
            tch::no_grad(|| step.apply(&mut config, &mut weights));
            origin.processing.push(*step);
        }
        Ok(Self::new(config, weights, Origin { files: vec![], ..origin }, self.tokenizer.clone()))
    }
}

fn fold_norms(config: &mut ModelConfig, weights: &mut Weights) {
    if config.norm == NormKind::None {
        return;
    }
    let biased = config.has_norm_bias();
    let one_norm = config.parallel == Parallel::OneNorm;
    for block in &mut weights.blocks {
        fold_block(block, one_norm);
        if biased {
            give_biases(block);
        }
    }
    if let (Some(norm), Some(unembedding)) = (&mut weights.ln_final, &mut weights.unembedding) {
        fold_last(norm, unembedding);
    }
    config.tied_unembed = config.tied_unembed && weights.is_tied();
    if biased {
        config.qkv_bias = QkvBias::ALL;
        config.mlp_bias = true;
        match &mut config.unembed {
            Unembed::Linear { bias } => *bias = true,
            _ => config.lm_head.dense_bias = true,
        }
    }
}

fn fold_block(block: &mut Block, one_norm: bool) {
    let attn = &mut block.attn;
    if let Some(norm) = &block.ln1 {
        for linear in [&mut attn.q, &mut attn.k, &mut attn.v] {
            *linear = linear.behind(norm);
        }
    }
    let read = if one_norm { &block.ln1 } else { &block.ln2 };
    if let Some(norm) = &read.as_ref().map(Norm::shared) {
        for mlp in block.mlps() {
            mlp.fold(norm);
        }
        if let Some(experts) = &mut block.experts {
            experts.router = experts.router.behind(norm);
            if let Some(gate) = experts.shared.as_mut().and_then(|shared| shared.gate.as_mut()) {
                *gate = gate.behind(norm);
            }
        }
    }
    for norm in [&mut block.ln1, &mut block.ln2].into_iter().flatten() {
        *norm = norm.plain();
    }
}

/// A bias of 0 for every projection that has none, since a block without a norm to fold takes none from it.
fn give_biases(block: &mut Block) {
    let attn = &mut block.attn;
    for linear in [&mut attn.q, &mut attn.k, &mut attn.v] {
        linear.give_bias();
    }
    for mlp in block.mlps() {
        [Some(&mut mlp.gate), mlp.up.as_mut(), Some(&mut mlp.out)].into_iter().flatten().for_each(Linear::give_bias);
    }
}

/// Folds the last norm into what the residual stream passes next. A projection without a bias hands the norm's bias on to the
/// unembedding.
fn fold_last(norm: &mut Norm, unembedding: &mut Unembedding) {
    match &mut unembedding.transform {
        None => unembedding.linear = unembedding.linear.behind(norm),
        Some(transform) => {
            let had_bias = transform.dense.b.is_some();
            let mut dense = transform.dense.behind(norm);
            // BERT's head is no projection: what follows its dense layer is not linear.
            if !had_bias
                && transform.norm.is_none()
                && let Some(handed) = dense.b.take()
            {
                let moved = Norm { w: handed.ones_like(), b: Some(handed) };
                unembedding.linear = unembedding.linear.behind(&moved);
            }
            transform.dense = dense;
        }
    }
    *norm = norm.plain();
}

fn center_writing(config: &mut ModelConfig, weights: &mut Weights) {
    for block in &mut weights.blocks {
        block.attn.o = block.attn.o.centred();
        for mlp in block.mlps() {
            mlp.out = mlp.out.centred();
        }
    }
    match &mut weights.projection {
        // Nothing else is added to the residual stream.
        Some(projection) if projects_sum(config) => *projection = projection.centred(),
        projection => {
            match projection {
                Some(projection) => *projection = projection.centred(),
                // The unembedding keeps the embedding as it was.
                None => weights.w_e = centred(&weights.w_e),
            }
            // Shortformer's positions are not added to the residual stream.
            let w_pos = Some(&mut weights.w_pos).filter(|_| config.position != Position::Shortformer);
            for table in w_pos.into_iter().chain([&mut weights.w_type]).flatten() {
                *table = centred(table);
            }
        }
    }
    config.tied_unembed = config.tied_unembed && weights.is_tied();
}

fn center_unembed(config: &mut ModelConfig, weights: &mut Weights) {
    if let Some(unembedding) = &mut weights.unembedding {
        unembedding.linear = unembedding.linear.centred();
    }
    config.tied_unembed = false;
}

fn fold_value_biases(config: &mut ModelConfig, weights: &mut Weights) {
    let (heads, kv_heads) = (config.n_heads as i64, config.n_kv_heads as i64);
    for attn in weights.blocks.iter_mut().map(|block| &mut block.attn) {
        let Some(b_v) = &attn.v.b else { return };
        let of_heads =
            b_v.to_kind(Kind::Double).view([kv_heads, -1]).repeat_interleave_self_int(heads / kv_heads, 0, None);
        let written = of_heads.view([1, -1]).matmul(&attn.o.w.to_kind(Kind::Double)).squeeze_dim(0);
        let sum = attn.o.b.as_ref().map_or_else(|| written.shallow_clone(), |b| &written + b);
        attn.o.b = Some(sum.to_kind(attn.o.w.kind()));
        attn.v.b = Some(b_v.zeros_like());
    }
    config.attn_out_bias = true;
}

/// `x` without its mean over the last axis.
fn centred(x: &Tensor) -> Tensor {
    let exact = x.to_kind(Kind::Double);
    (&exact - exact.mean_dim([-1i64].as_slice(), true, None::<Kind>)).to_kind(x.kind())
}

impl Linear {
    /// This projection with the norm before it folded in.
    fn behind(&self, norm: &Norm) -> Self {
        let to = |tensor: &Tensor, kind: Kind| tensor.to_kind(kind);
        let exact = |b: &Option<Tensor>| b.as_ref().map(|b| to(b, Kind::Double));
        let norm = Norm { w: to(&norm.w, Kind::Double), b: exact(&norm.b) };
        let folded = Self { w: to(&self.w, Kind::Double), b: exact(&self.b) }.after_norm(&norm);
        Self { w: to(&folded.w, self.w.kind()), b: folded.b.map(|b| to(&b, self.w.kind())) }
    }

    /// Adds a bias of 0 if there is none.
    fn give_bias(&mut self) {
        if self.b.is_none() {
            self.b = Some(Tensor::zeros([self.w.size()[self.w.dim() - 1]], (self.w.kind(), self.w.device())));
        }
    }

    /// This projection, such that the sum of what it gives is 0.
    fn centred(&self) -> Self {
        Self { w: centred(&self.w), b: self.b.as_ref().map(centred) }
    }
}

impl Block {
    /// Its MLP, or those of its experts and the one beside them.
    fn mlps(&mut self) -> impl Iterator<Item = &mut Mlp> {
        let of_experts = self
            .experts
            .iter_mut()
            .flat_map(|experts| experts.each.iter_mut().chain(experts.shared.as_mut().map(|shared| &mut shared.mlp)));
        self.mlp.iter_mut().chain(of_experts)
    }
}

impl Mlp {
    /// Folds the norm before it in.
    fn fold(&mut self, norm: &Norm) {
        for linear in [Some(&mut self.gate), self.up.as_mut()].into_iter().flatten() {
            *linear = linear.behind(norm);
        }
    }
}

impl Norm {
    /// The same tensors.
    fn shared(&self) -> Self {
        Self { w: self.w.shallow_clone(), b: self.b.as_ref().map(Tensor::shallow_clone) }
    }

    /// The norm with weights of 1 and biases of 0.
    fn plain(&self) -> Self {
        Self { w: self.w.ones_like(), b: self.b.as_ref().map(Tensor::zeros_like) }
    }
}
