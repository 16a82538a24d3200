//! What distinguishes one architecture from another? Its configuration, as data.

use serde::{Deserialize, Serialize};

use super::bias::QkvBias;
use super::encoder::Encoder;
use super::experts::Experts;
use super::rotary::Rotary;

/// Everything the forward pass needs to know about an architecture.
///
/// Families differ only in the values of these fields; what the values mean for a block stands once, in its wiring.
///
/// ```
/// use headscope::model::{ModelConfig, NormPlace};
/// let config = ModelConfig { n_layers: 2, ..ModelConfig::default() };
/// assert!(config.validate().is_ok());
/// assert_eq!(config.norm_place, NormPlace::Pre);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// The family's name, such as `gpt2`; for messages and provenance only.
    pub family: String,
    /// Number of blocks.
    pub n_layers: usize,
    /// Number of blocks with weights of their own, each shared by equally many consecutive layers (ALBERT); 0 means `n_layers`.
    pub n_blocks: usize,
    /// How many blocks follow one another before they repeat (ALBERT's `inner_group_num`).
    #[serde(skip_serializing_if = "is_one")]
    pub block_cycle: usize,
    /// The encoder in front of the model's decoder, if it has one: the first ones of its layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoder: Option<Encoder>,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads per layer.
    pub n_heads: usize,
    /// Key/value heads per layer; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// Width of one head.
    pub d_head: usize,
    /// Width of the MLP's hidden layer; 0 in an attention-only model.
    pub d_mlp: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// The longest sequence the model can read.
    pub n_positions: usize,
    /// Number of token types (BERT's segments); 0 if there are none.
    pub n_token_types: usize,
    /// Whether a position attends only to itself and earlier ones.
    pub causal: bool,
    /// Kind of normalisation.
    pub norm: NormKind,
    /// Whether LayerNorms have a bias.
    pub norm_bias: bool,
    /// Added to the variance before the square root.
    pub norm_eps: f64,
    /// Where a block normalises.
    pub norm_place: NormPlace,
    /// Whether attention and MLP read the same residual stream, and how it is normalised for them.
    pub parallel: Parallel,
    /// Whether the sum of the embeddings is normalised before the first block (BERT).
    pub embed_norm: bool,
    /// How embeddings that are narrower than the residual stream are projected.
    pub embed_projection: EmbedProjection,
    /// Factor of the token embeddings (Gemma: the square root of `d_model`).
    pub embed_scale: f64,
    /// Factor of what a sub-layer adds to the residual stream (Granite).
    pub residual_scale: f64,
    /// Factor of the logits (Cohere, Granite).
    pub logit_scale: f64,
    /// Logits become `cap * tanh(logits / cap)` (Gemma 2).
    pub logit_cap: Option<f64>,
    /// How positions enter.
    pub position: Position,
    /// A token that does not count (RoBERTa's padding): learned positions number the others from 1, and this one has position 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uncounted: Option<i64>,
    /// Factor of the attention scores; `d_head^-1/2` by default.
    pub attention_scale: Option<f64>,
    /// Whether the scores of layer l are also divided by l + 1 (GPT-2's `scale_attn_by_inverse_layer_idx`).
    pub scale_by_layer: bool,
    /// Scores become `cap * tanh(scores / cap)` (Gemma 2).
    pub score_cap: Option<f64>,
    /// Queries, keys and values are cut off at plus and minus this (OLMo).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_qkv: Option<f64>,
    /// Whether each head has an attention sink: a learned score of no key, which takes its share of the softmax (gpt-oss).
    pub sinks: bool,
    /// How queries and keys are normalised, before they are rotated.
    pub qk_norm: QkNorm,
    /// What differs between layers; a shorter list repeats, and an empty one means that nothing differs.
    pub layers: Vec<LayerConfig>,
    /// The MLP's activation.
    pub activation: Activation,
    /// Whether the MLP multiplies the activation by a second projection (Llama).
    pub gated_mlp: bool,
    /// Whether the output projection of the MLP reads through a LayerNorm (TransformerLens' `solu_ln`).
    #[serde(skip_serializing_if = "is_default")]
    pub mlp_norm: bool,
    /// The activation's argument is cut off above this, the second projection at plus and minus this, and 1 is added to the
    /// latter (gpt-oss).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate_limit: Option<f64>,
    /// Experts instead of a single MLP, if any (Mixtral).
    pub experts: Option<Experts>,
    /// Which of q, k and v have biases.
    pub qkv_bias: QkvBias,
    /// Whether the output projection of attention has a bias.
    pub attn_out_bias: bool,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// How the residual stream becomes logits.
    pub unembed: Unembed,
    /// What differs between masked-language-model heads.
    #[serde(skip_serializing_if = "is_default")]
    pub lm_head: LmHead,
    /// Whether the unembedding is the token embedding transposed.
    pub tied_unembed: bool,
}

/// Fields that came later are left out where they say nothing, so that an architecture keeps its JSON and its hash.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference
fn is_one(value: &usize) -> bool {
    *value == 1
}

impl Default for ModelConfig {
    /// A small causal pre-norm model in GPT-2's style.
    fn default() -> Self {
        Self {
            family: "toy".to_owned(),
            n_layers: 1,
            n_blocks: 0,
            block_cycle: 1,
            encoder: None,
            d_model: 32,
            n_heads: 4,
            n_kv_heads: 4,
            d_head: 8,
            d_mlp: 64,
            vocab: 50,
            n_positions: 64,
            n_token_types: 0,
            causal: true,
            norm: NormKind::Layer,
            norm_bias: true,
            norm_eps: 1e-5,
            norm_place: NormPlace::Pre,
            parallel: Parallel::No,
            embed_norm: false,
            embed_projection: EmbedProjection::None,
            embed_scale: 1.0,
            residual_scale: 1.0,
            logit_scale: 1.0,
            logit_cap: None,
            position: Position::Learned,
            uncounted: None,
            attention_scale: None,
            scale_by_layer: false,
            score_cap: None,
            clip_qkv: None,
            sinks: false,
            qk_norm: QkNorm::None,
            layers: vec![],
            activation: Activation::GeluTanh,
            gated_mlp: false,
            mlp_norm: false,
            gate_limit: None,
            experts: None,
            qkv_bias: QkvBias::ALL,
            attn_out_bias: true,
            mlp_bias: true,
            unembed: Unembed::Linear { bias: false },
            lm_head: LmHead::default(),
            tied_unembed: false,
        }
    }
}

/// What may differ between layers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LayerConfig {
    /// A query attends to at most this many positions: the last ones in a causal model, otherwise half as many to either side.
    /// All by default.
    pub window: Option<usize>,
    /// The layer's rotary positions.
    pub rotary: LayerRotary,
    /// Whether attention reads the residual stream as it is where other layers read it through a norm (ModernBERT's first
    /// layer, whose stream is the normalised embeddings).
    #[serde(skip_serializing_if = "is_default")]
    pub no_attn_norm: bool,
    /// The layer has a single MLP of this width, whatever the others have (`mlp_only_layers` of Qwen's mixtures of experts).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub d_mlp: Option<usize>,
}

/// Rotary positions of one layer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerRotary {
    /// The model's.
    #[default]
    Model,
    /// None (SmolLM3's every fourth layer).
    None,
    /// Its own (Gemma 3's local layers).
    Own(Rotary),
}

/// Whether attention and MLP run in parallel, and how they are normalised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Parallel {
    /// One after the other.
    #[default]
    No,
    /// Both read the residual stream through one norm (GPT-J, Phi).
    OneNorm,
    /// Each has a norm of its own (GPT-NeoX).
    TwoNorms,
}

/// How queries and keys are normalised.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkNorm {
    /// Not at all.
    #[default]
    None,
    /// Each head by itself, with weights that all heads share (Qwen 3).
    Head,
    /// Each head by itself, with weights of its own and without biases (Cohere, StableLM).
    EachHead,
    /// All heads of a layer together (OLMo 2).
    All,
}

/// The projection of embeddings that are narrower than the residual stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbedProjection {
    /// They are as wide as the residual stream.
    #[default]
    None,
    /// Token embeddings of this width are projected before positions are added, and the last residual stream is projected
    /// back before the unembedding (OPT-350m).
    Tokens(usize),
    /// The normalised sum of all embeddings, of this width, is projected (ALBERT, ELECTRA).
    Sum(usize),
}

/// Kind of normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// (x - mean) / sqrt(var + eps) * weight + bias.
    Layer,
    /// x / sqrt(mean(x^2) + eps) * weight.
    Rms,
    /// No normalisation anywhere: a linear residual stream, for toy models.
    None,
}

/// Where a block normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlace {
    /// `x + f(norm(x))`, and one norm before the unembedding.
    Pre,
    /// `norm(x + f(x))`.
    Post,
    /// `x + norm(f(norm(x)))`, and one norm before the unembedding (Gemma 2).
    Sandwich,
    /// `x + norm(f(x))`, and one norm before the unembedding (OLMo 2).
    Output,
}

/// How positions enter the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Position {
    /// No positions at all.
    None,
    /// A learned vector per position, added to the embedding.
    Learned,
    /// A fixed vector of sines and cosines per position, added to the embedding (Vaswani et al. 2017).
    Sinusoidal,
    /// A learned vector per position, added to what queries and keys are projected from, never to the residual stream (Press,
    /// Smith and Lewis 2021).
    Shortformer,
    /// Queries and keys are rotated by an angle proportional to the position (Su et al. 2021).
    Rotary(Rotary),
    /// `-slope * distance` is added to the scores, with one slope per head (Press et al. 2022).
    Alibi,
    /// [`Position::Alibi`] as Falcon has it: of the key's position, rounded to bfloat16, and scaled as the scores are.
    RoundedAlibi,
    /// A learned number for each head and bucket of relative positions is added to the scores (T5).
    Buckets {
        /// Number of buckets.
        n: usize,
        /// Distances from here on share the last bucket.
        max_distance: usize,
    },
}

/// The MLP's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x Phi(x), exact.
    Gelu,
    /// x Phi(x) in its tanh approximation (`gelu_new`).
    GeluTanh,
    /// [`Activation::GeluTanh`] with sqrt(2 / pi) rounded to eight digits (Bloom).
    GeluBloom,
    /// x sigmoid(1.702 x).
    GeluQuick,
    /// max(x, 0).
    Relu,
    /// max(x, 0)^2.
    ReluSquared,
    /// x sigmoid(x).
    Silu,
    /// tanh(x).
    Tanh,
    /// x softmax(x) over all neurons (Elhage et al. 2022).
    Solu,
}

/// How the residual stream becomes logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unembed {
    /// The model ends in the residual stream (an encoder for embeddings).
    None,
    /// One matrix.
    Linear {
        /// Whether a bias is added.
        bias: bool,
    },
    /// BERT's masked-language-model head: dense, activation, LayerNorm, matrix; [`LmHead`] has the details.
    MaskedLm,
}

/// What differs between the masked-language-model heads of families.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LmHead {
    /// The activation; the MLP's by default.
    pub activation: Option<Activation>,
    /// Whether the dense layer has a bias.
    pub dense_bias: bool,
    /// Whether the LayerNorm has a bias.
    pub norm_bias: bool,
    /// Whether the logits have a bias.
    pub bias: bool,
}

impl Default for LmHead {
    /// BERT's.
    fn default() -> Self {
        Self { activation: None, dense_bias: true, norm_bias: true, bias: true }
    }
}

impl NormKind {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "LayerNorm",
            Self::Rms => "RMSNorm",
            Self::None => "none",
        }
    }
}

impl NormPlace {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pre => "before each sub-layer",
            Self::Post => "after each sum",
            Self::Sandwich => "before each sub-layer and on its output",
            Self::Output => "on the output of each sub-layer",
        }
    }
}

impl Position {
    /// In words.
    pub fn name(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Learned => "learned",
            Self::Sinusoidal => "sinusoidal",
            Self::Shortformer => "learned, for queries and keys only",
            Self::Rotary(_) => "rotary",
            Self::Alibi | Self::RoundedAlibi => "ALiBi",
            Self::Buckets { .. } => "relative buckets",
        }
    }
}

impl ModelConfig {
    /// The number of blocks with weights of their own.
    pub fn blocks(&self) -> usize {
        if self.n_blocks == 0 { self.n_layers } else { self.n_blocks }
    }

    /// The number of the block whose weights a layer has.
    pub fn block_of(&self, layer: usize) -> usize {
        let cycle = self.block_cycle.max(1);
        let (groups, turns) = (self.blocks() / cycle, (self.n_layers / cycle).max(1));
        layer / cycle * groups / turns * cycle + layer % cycle
    }

    /// The configuration of one layer.
    pub fn layer(&self, layer: usize) -> LayerConfig {
        self.layers.get(layer % self.layers.len().max(1)).cloned().unwrap_or_default()
    }

    /// The rotary positions of a layer, if it has any.
    pub fn rotary(&self, layer: usize) -> Option<Rotary> {
        match (self.layer(layer).rotary, &self.position) {
            (LayerRotary::Own(own), _) => Some(own),
            (LayerRotary::Model, Position::Rotary(rotary)) => Some(rotary.clone()),
            _ => None,
        }
    }

    /// The width of the token embeddings.
    pub fn d_embed(&self) -> usize {
        match self.embed_projection {
            EmbedProjection::None => self.d_model,
            EmbedProjection::Tokens(width) | EmbedProjection::Sum(width) => width,
        }
    }

    /// Whether norms have a bias.
    pub(crate) fn has_norm_bias(&self) -> bool {
        self.norm == NormKind::Layer && self.norm_bias
    }

    /// Whether there is a vector per position.
    pub(crate) fn has_position_vectors(&self) -> bool {
        self.adds_positions() || self.position == Position::Shortformer
    }

    /// Whether a vector per position is added to the embeddings.
    pub(crate) fn adds_positions(&self) -> bool {
        matches!(self.position, Position::Learned | Position::Sinusoidal)
    }

    /// The number of rows and the width of the learned positions.
    pub(crate) fn position_table(&self) -> [usize; 2] {
        let width = if self.position == Position::Shortformer { self.d_model } else { self.d_sum() };
        [self.n_positions + usize::from(self.uncounted.is_some()), width]
    }

    /// The width at which token, position and type embeddings are summed.
    pub fn d_sum(&self) -> usize {
        if let EmbedProjection::Sum(width) = self.embed_projection { width } else { self.d_model }
    }

    /// Whether the last residual stream is normalised before the unembedding.
    pub fn has_final_norm(&self) -> bool {
        self.norm != NormKind::None && self.norm_place != NormPlace::Post
    }

    /// Whether each block has an MLP or experts.
    pub fn has_mlp(&self) -> bool {
        self.d_mlp > 0
    }

    /// The experts of a layer, if it has any.
    pub fn experts_of(&self, layer: usize) -> Option<Experts> {
        self.experts.filter(|_| self.layer(layer).d_mlp.is_none())
    }

    /// The width of a layer's MLP, or of each of its experts.
    pub fn d_mlp_of(&self, layer: usize) -> usize {
        self.layer(layer).d_mlp.unwrap_or(self.d_mlp)
    }

    /// Whether the model has logits.
    pub fn has_logits(&self) -> bool {
        self.unembed != Unembed::None
    }

    /// The key/value head that serves query head `head`.
    pub fn kv_head(&self, head: usize) -> usize {
        head / (self.n_heads / self.n_kv_heads)
    }
}

impl NormKind {
    pub(crate) fn has_weights(self) -> bool {
        self != Self::None
    }
}
