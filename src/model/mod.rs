//! What is a transformer here, and how is it run? Its configuration, its sites, and the one forward pass that every probe uses.
//!
//! | where | what |
//! |---|---|
//! | [`ModelConfig`] | what distinguishes architectures, as data |
//! | [`Site`] | the activations that can be read and changed |
//! | [`Plan`], [`Edit`], [`Action`] | what a run records and changes, as data |
//! | [`Model::run`], [`Run`] | a run and what it recorded |
//! | [`Tokens`], [`Prompts`] | a batch of prompts; pairs of them with answers and named positions |
//! | [`Dictionary`] | the features of a site: sparse dictionaries in SAELens' layout |
//! | [`Model::generate`], [`Generation`] | what the model writes after prompts, also under a plan |
//! | [`Model::processed`], [`Processing`] | other weights that compute the same: norms folded, matrices centred |

mod arch;
mod dictionary;
mod exec;
mod generate;
mod hooks;
mod processing;

use std::path::PathBuf;

use tch::{Device, Kind, Tensor};

pub(crate) use arch::sinusoids;
pub use arch::{
    Activation, EmbedProjection, Encoder, Experts, LayerConfig, LayerRotary, LmHead, ModelConfig, NormKind, NormPlace,
    Parallel, Position, QkNorm, QkvBias, Rotary, RotaryScaling, SharedExpert, Unembed,
};
pub(crate) use arch::{
    Block, BlockWiring, Cut, Linear, Make, Norm, NormAt, PassSize, Size, Spread, Weights, Wire, Wires, Wiring,
};
pub use dictionary::Dictionary;
pub(crate) use exec::{
    Entry, Freeze, How, Joins, KvCache, Pass, Past, Unchanged, each_head, last_query_pays, norm_parts, rotary_pairs,
};
pub use generate::{Continuation, Ending, Generated, Generation, Piece};
pub use hooks::{Action, Edit, Function, Plan, Run, Selector, Span, Tap};
pub(crate) use hooks::{Bank, Growing, Means, Program, Window, in_turn};
pub use processing::Processing;

use crate::error::{Error, Result};
pub use crate::site::{Axis, Site, UnknownSite};
use crate::tensors::{Identity, Stamp, check_kind, onednn};
use crate::text::prompts::Recipe;
use crate::text::{HasTokenizer, Tokenizer};
pub use crate::text::{Prompts, Tokens};
use crate::workers::readable;

/// A transformer with its weights.
///
/// ```
/// use headscope::model::{Model, ModelConfig, Plan, Site, Tokens};
/// let model = Model::random(&ModelConfig::default(), 0)?;
/// let tokens = Tokens::new(&[vec![1, 2, 3, 4]])?;
/// let run = model.run(&tokens, &Plan::new().tap(Site::Pattern(0)))?;
/// assert_eq!(run.get(Site::Pattern(0))?.size(), [1, 4, 4, 4]);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug)]
pub struct Model {
    config: ModelConfig,
    wiring: Wiring,
    weights: Weights,
    kind: Kind,
    device: Device,
    origin: Origin,
    tokenizer: Option<Tokenizer>,
    identity: Identity,
}

readable!(Model { weights; config, wiring, kind, device, origin, tokenizer, identity });

/// Where a model came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The name it was asked for by: a folder, a bundled name or a hub id; for [`Model::random`], `random` with family and seed.
    pub name: String,
    /// The weight files.
    pub files: Vec<PathBuf>,
    /// Token ids at which generation ends.
    pub end_tokens: Vec<i64>,
    /// How the weights were rewritten since, in this order.
    pub processing: Vec<Processing>,
}

impl Model {
    pub(crate) fn new(config: ModelConfig, weights: Weights, origin: Origin, tokenizer: Option<Tokenizer>) -> Self {
        let (kind, device) = (weights.w_e.kind(), weights.w_e.device());
        let wiring = Wiring::new(&config);
        Self { config, wiring, weights, kind, device, origin, tokenizer, identity: Identity::default() }
    }

    /// A model with random float32 weights on the CPU; the same seed gives the same weights.
    ///
    /// # Errors
    /// If the config does not [validate](ModelConfig::validate).
    pub fn random(config: &ModelConfig, seed: u64) -> Result<Self> {
        Self::random_as(config, seed, Kind::Float, Device::Cpu)
    }

    /// [`Model::random`] in a given type (`Float`, `Double`, `Half` or `BFloat16`) on a given device.
    ///
    /// # Errors
    /// If the config does not [validate](ModelConfig::validate), or for any other type.
    pub fn random_as(config: &ModelConfig, seed: u64, kind: Kind, device: Device) -> Result<Self> {
        Self::drawn(config, seed, Spread::RANDOM, kind, device)
    }

    fn drawn(config: &ModelConfig, seed: u64, spread: Spread, kind: Kind, device: Device) -> Result<Self> {
        config.validate()?;
        crate::device::check(device)?;
        check_kind(kind)?;
        let weights = Weights::drawn(config, seed, spread, kind, device)?;
        let origin = Origin { name: format!("random {} seed {seed}", config.family), ..Origin::default() };
        Ok(Self::new(config.clone(), weights, origin, None))
    }

    /// A model at the start of training: as [`Model::random_as`], but with biases of 0, norm weights of 1 and embeddings of this
    /// standard deviation.
    pub(crate) fn initial(
        config: &ModelConfig,
        seed: u64,
        embeddings: f64,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        Self::drawn(config, seed, Spread { embeddings, biases: 0.0 }, kind, device)
    }

    /// The same model with a tokenizer.
    pub(crate) fn with_tokenizer(mut self, tokenizer: Tokenizer) -> Self {
        self.tokenizer = Some(tokenizer);
        self
    }

    /// The same model, marked as read from these files.
    pub(crate) fn read_from(mut self, files: &[Stamp]) -> Result<Self> {
        self.identity = Identity::of_files(files.to_vec(), &self.parameters())?;
        Ok(self)
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The graphs of the blocks.
    pub(crate) fn wiring(&self) -> &Wiring {
        &self.wiring
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The parts that the architecture has and the checkpoint lacks, such as `w_e` and `mlp` in a checkpoint that holds only
    /// attention weights. Questions about the weights that are there can still be asked; anything else is an error that names
    /// the missing part.
    pub fn absent(&self) -> Vec<&'static str> {
        self.weights.absent(&self.config)
    }

    /// Fails if one of `parts` is absent.
    pub(crate) fn require(&self, needs: &str, parts: &[&str]) -> Result<()> {
        match self.absent().into_iter().find(|part| parts.contains(part)) {
            Some(part) => {
                Err(Error::PartAbsent { at: self.origin.name.clone(), needs: needs.to_owned(), part: part.to_owned() })
            }
            None => Ok(()),
        }
    }

    /// The type of the weights and of all activations.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The device on which the model computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Where the model came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The tokenizer, if the checkpoint has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// Every parameter with its name, such as `blocks.0.w_q`; matrices are `[in, out]`.
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        self.weights.named()
    }

    /// The number of parameters; a tied unembedding counts once.
    pub fn n_parameters(&self) -> usize {
        let tied = |name: &str| name == "w_u" && self.config.tied_unembed;
        self.parameters().iter().filter(|(name, _)| !tied(name)).map(|(_, tensor)| tensor.numel()).sum()
    }

    /// The architecture in one line.
    pub fn summary(&self) -> String {
        let config = self.config();
        let shared = match config.n_kv_heads == config.n_heads {
            true => String::new(),
            false => format!(" ({} key/value heads)", config.n_kv_heads),
        };
        let encoder = match config.encoder_layers() {
            0 => String::new(),
            n => format!(" ({n} of the encoder)"),
        };
        format!(
            "{}: {}, {} layers{encoder} of {} heads{shared} with {} dimensions each, d_model {}, {:.1} million parameters",
            self.origin().name,
            config.family,
            config.n_layers,
            config.n_heads,
            config.d_head,
            config.d_model,
            self.n_parameters() as f64 / 1e6
        )
    }

    /// The query matrices of a layer, `[head, d_model, d_head]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is no such layer.
    pub fn w_q(&self, layer: usize) -> Result<Tensor> {
        Ok(columns_by_head(&self.block(layer)?.attn.q.w, self.config.n_heads))
    }

    /// The key matrices of a layer, `[kv_head, d_model, d_head]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is no such layer.
    pub fn w_k(&self, layer: usize) -> Result<Tensor> {
        Ok(columns_by_head(&self.block(layer)?.attn.k.w, self.config.n_kv_heads))
    }

    /// The value matrices of a layer, `[kv_head, d_model, d_head]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is no such layer.
    pub fn w_v(&self, layer: usize) -> Result<Tensor> {
        Ok(columns_by_head(&self.block(layer)?.attn.v.w, self.config.n_kv_heads))
    }

    /// The output matrices of a layer, `[head, d_head, d_model]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is no such layer.
    pub fn w_o(&self, layer: usize) -> Result<Tensor> {
        let w = &self.block(layer)?.attn.o.w;
        Ok(w.unflatten(0, [self.config.n_heads as i64, self.config.d_head as i64]))
    }

    /// The bias of a layer's attention output, `[d_model]`, if it has one.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if there is no such layer.
    pub fn b_o(&self, layer: usize) -> Result<Option<&Tensor>> {
        Ok(self.block(layer)?.attn.o.b.as_ref())
    }

    /// The norm on the attention output of a layer, if it has one.
    pub(crate) fn attn_out_norm(&self, layer: usize) -> Result<Option<&Norm>> {
        Ok(self.block(layer)?.norm(NormAt::AttnOut))
    }

    /// Whether the last residual stream is a sum with each head output as a term, unchanged.
    pub(crate) fn writes_directly(&self) -> bool {
        self.wiring.adds_up() && !self.wiring.block(0).has_norm(NormAt::AttnOut)
    }

    /// Bytes that a matrix product in a block may take beside its operands and its result: oneDNN's own copy of the matrix.
    pub(crate) fn product_takes(&self) -> usize {
        let widest = self.config.d_mlp.max(self.config.n_heads * self.config.d_head);
        let bytes = self.config.d_model * widest * self.kind.elt_size_in_bytes();
        if onednn::serves_type(self.kind, self.device) { bytes } else { 0 }
    }

    /// The tokens of `texts`, with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// If the checkpoint has no tokenizer, a text gives no token, or one is longer than the model's context.
    pub fn tokens(&self, texts: &[impl AsRef<str>]) -> Result<Tokens> {
        self.fitted(self.need_tokenizer()?.encode(texts)?)
    }

    /// Pairs of prompts for this model, with answers and named positions: see [`prompts`](crate::text::prompts).
    ///
    /// ```
    /// use headscope::model::Model;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let prompts = model.prompts([("the cat and the head", "the dog and the head")])?;
    /// assert_eq!((prompts.len(), prompts.clean().batch()), (1, 1));
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Prompts::new`].
    pub fn prompts(&self, recipe: impl Into<Recipe>) -> Result<Prompts> {
        Prompts::new(self, recipe)
    }

    /// The id of a text that is a single token, such as `" Mary"`.
    ///
    /// # Errors
    /// If the checkpoint has no tokenizer, or the text is several tokens.
    pub fn token(&self, text: &str) -> Result<i64> {
        self.need_tokenizer()?.single(text)
    }

    /// Fails if the tokens do not fit the model, or an encoder-decoder has no source for them, or another model one.
    pub(crate) fn check_tokens(&self, tokens: &Tokens) -> Result<()> {
        if self.config.encoder.is_some() && tokens.source().is_none() {
            let expected = "tokens with a source (Tokens::with_source), which the model's encoder reads";
            return Err(Error::argument("tokens", expected, "tokens alone"));
        }
        let config = &self.config;
        if let Some(source) = tokens.source() {
            if config.encoder.is_none() {
                let expected = "tokens without a source: the model has no encoder to read one";
                return Err(Error::argument("tokens", expected, "a source"));
            }
            source.check(config.source_vocab(), 0, config.n_positions)?;
        }
        tokens.check(config.vocab, config.n_token_types, config.n_positions)
    }

    /// Whether the model is an encoder-decoder.
    pub(crate) fn attends_across(&self) -> bool {
        self.config.encoder.is_some()
    }

    /// Fails for an encoder-decoder, whose layers do not all read one sequence of positions: `needs` says for what.
    pub(crate) fn one_sequence(&self, needs: &str) -> Result<()> {
        match self.config.encoder {
            None => Ok(()),
            Some(_) => {
                let expected = format!("for {needs}, one that is not an encoder-decoder");
                Err(Error::argument("model", expected, &self.config.family))
            }
        }
    }

    /// Runs `tokens` through the model and returns what `plan` taps. The autograd graph is kept only if the plan asks for it.
    /// An encoder-decoder reads the tokens' [source](Tokens::with_source), too.
    ///
    /// ```
    /// use headscope::model::{Action, Edit, Model, ModelConfig, Plan, Site, Tokens};
    /// let model = Model::random(&ModelConfig::default(), 0)?;
    /// let tokens = Tokens::new(&[vec![1, 2, 3, 4]])?;
    /// let without_head = Plan::new().edit(Edit::new(Site::Z(0), Action::Zero).head(2)).tap(Site::Logits);
    /// assert_eq!(model.run(&tokens, &without_head)?.logits()?.size(), [1, 4, 50]); // [batch, position, vocab]
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If a token, a tap or an edit does not fit the model; then nothing is computed.
    pub fn run(&self, tokens: &Tokens, plan: &Plan) -> Result<Run> {
        self.check_tokens(tokens)?;
        let program = Program::new(plan, self, tokens)?;
        let ids = tokens.ids(self.device);
        let mut pass = Pass::new(self, &program, tokens);
        if program.differentiable { pass.reach_taps(ids) } else { tch::no_grad(|| pass.reach_taps(ids)) }?;
        let joints = std::mem::take(&mut pass.joints).into_iter();
        let joints = joints
            .map(|joint| {
                let functions = plan.of_gradient(joint.site);
                (joint, functions)
            })
            .collect();
        let run = Run::new(tokens.clone(), pass.into_records().0).with_joints(joints);
        Ok(run.behind(self.config.encoder_layers()))
    }

    /// Runs `tokens` once and calls `read` with the activations at `sites`, layer by layer. The activations of a layer are dropped
    /// before the next layer is computed, so the patterns of long prompts or deep models need not all fit in memory.
    ///
    /// ```
    /// use headscope::model::{Model, ModelConfig, Site, Tokens};
    /// let model = Model::random(&ModelConfig { n_layers: 3, ..ModelConfig::default() }, 0)?;
    /// let mut seen = vec![];
    /// model.each_layer(&Tokens::new(&[vec![1, 2, 3]])?, &[Site::Pattern], |layer, run| {
    ///     seen.push(run.get(Site::Pattern(layer))?.size());
    ///     Ok(())
    /// })?;
    /// assert_eq!(seen, vec![[1, 4, 3, 3]; 3]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If a token or a site does not fit the model (then nothing is computed), and any error that `read` returns.
    pub fn each_layer(
        &self,
        tokens: &Tokens,
        sites: &[fn(usize) -> Site],
        mut read: impl FnMut(usize, &Run) -> Result<()>,
    ) -> Result<()> {
        self.one_sequence("a pass that is read layer by layer")?;
        self.check_tokens(tokens)?;
        let all = (0..self.config.n_layers).flat_map(|layer| sites.iter().map(move |site| site(layer)));
        let program = Program::taps(all);
        program.check(self)?;
        let pass = Pass::new(self, &program, tokens);
        let ids = tokens.ids(self.device);
        tch::no_grad(|| pass.each_block(ids, |layer, taps| read(layer, &Run::new(tokens.clone(), taps))))
    }

    pub(crate) fn block(&self, layer: usize) -> Result<&Block> {
        let n_layers = self.config.n_layers;
        self.weights.block(layer, &self.config).ok_or_else(|| {
            let (found, limit) = (layer as i64, n_layers as i64);
            Error::OutOfRange { at: "model".into(), axis: "layer", found, limit }
        })
    }
}

impl HasTokenizer for Model {
    fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    fn named(&self) -> String {
        self.origin.name.clone()
    }

    fn fitted(&self, mut tokens: Tokens) -> Result<Tokens> {
        let (own, source) = (self.config.vocab, self.config.source_vocab());
        if tokens.pad() >= own.min(source) as i64 {
            tokens = tokens.with_pad(0); // a padding token that was added to the tokenizer only; it is hidden anyway
        }
        // They may become a source or get one, which a run checks.
        tokens.check(own.max(source), self.config.n_token_types, self.config.n_positions)?;
        Ok(tokens)
    }
}

/// A small CPU tensor, sent to `device` without waiting for it: a sweep sends many.
pub(crate) fn sent(x: &Tensor, device: Device) -> Tensor {
    match device {
        Device::Cpu => x.shallow_clone(),
        device => x.to_device_(device, x.kind(), true, false),
    }
}

/// `[in, heads * width]` as `[head, in, width]`.
fn columns_by_head(w: &Tensor, heads: usize) -> Tensor {
    w.unflatten(1, [heads as i64, -1]).transpose(0, 1)
}
