//! What is an encoder-decoder? The blocks of an encoder, then those of a decoder that reads what the encoder makes of a source.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::config::{EmbedProjection, LayerConfig, ModelConfig, NormPlace, Parallel, Position, QkNorm, Unembed};
use super::validate::check;
use crate::error::Result;

/// The encoder in front of a decoder (T5, BART, Marian).
///
/// Layers are counted in the order in which they are computed: first the encoder's, which read the source in both directions,
/// then the decoder's, which are causal and attend to the source, too.
///
/// Both sides have the model's width, heads, norms and kind of positions (none, learned, sinusoidal, or relative buckets, which do
/// not enter cross-attention); the widths of MLPs may differ by layer. Norms come before sub-layers or after sums, blocks are
/// serial, and there are no experts, token types, windows, caps, sinks or norms of queries and keys.
///
/// ```
/// use headscope::prelude::*;
/// use headscope::model::Encoder;
/// let config = ModelConfig { n_layers: 4, encoder: Some(Encoder { n_layers: 2, vocab: None }), ..ModelConfig::default() };
/// let model = Model::random(&config, 0)?;
/// let tokens = Tokens::new(&[vec![1, 2]])?.with_source(Tokens::new(&[vec![7, 8, 9]])?)?;
/// let run = model.run(&tokens, &Plan::new().taps(["pattern.*", "cross_pattern.*"]))?;
/// assert_eq!(run.get(Site::Pattern(0))?.size(), [1, 4, 3, 3]); // in the encoder
/// assert_eq!(run.get(Site::Pattern(2))?.size(), [1, 4, 2, 2]); // in the decoder
/// assert_eq!(run.get(Site::CrossPattern(2))?.size(), [1, 4, 2, 3]); // [batch, head, query, source]
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// Which heads carry what the source says? A sweep over the cross-attention of the decoder, another over both stacks:
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/families/marian")?; // 3 layers of an encoder, 2 of a decoder, 4 heads each
/// let sources = Tokens::new(&[vec![5, 6, 7, 8], vec![9, 10]])?;
/// let tokens = Tokens::new(&[vec![2, 11, 12], vec![2, 13]])?.with_source(sources)?;
/// let across = Sweep::ablate(&model, &tokens, Ablation::Zero).each(Site::CrossZ, Every::Head).run()?;
/// assert_eq!((across.len(), across.f64("layer")?[0]), (2 * 4, 3.0));
/// assert_eq!(Sweep::ablate(&model, &tokens, Ablation::Zero).run()?.len(), 5 * 4);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Encoder {
    /// The number of its layers, the first ones of the model's.
    pub n_layers: usize,
    /// The size of the source's vocabulary, if its tokens have embeddings of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab: Option<usize>,
}

impl ModelConfig {
    /// How many of the layers are those of an encoder in front of a decoder: the first ones.
    pub fn encoder_layers(&self) -> usize {
        self.encoder.map_or(0, |encoder| encoder.n_layers)
    }

    /// Whether a layer belongs to a decoder that attends to a source.
    pub fn attends_across(&self, layer: usize) -> bool {
        self.encoder.is_some_and(|encoder| layer >= encoder.n_layers)
    }

    /// Whether a position of a layer attends only to itself and earlier ones.
    pub fn is_causal(&self, layer: usize) -> bool {
        self.causal && layer >= self.encoder_layers()
    }

    /// The size of the vocabulary of an encoder-decoder's source.
    pub(crate) fn source_vocab(&self) -> usize {
        self.encoder.and_then(|encoder| encoder.vocab).unwrap_or(self.vocab)
    }

    /// Fails where an encoder-decoder is something else that would not be computed.
    pub(super) fn validate_encoder(&self) -> Result<()> {
        let Some(encoder) = self.encoder else {
            let fixed = self.position == Position::Sinusoidal;
            return check("position", !fixed, "sinusoidal ones in an encoder-decoder only", "them in another model");
        };
        let n_layers = encoder.n_layers;
        let expected = format!("1 to {} of the model's {} layers", self.n_layers.max(1) - 1, self.n_layers);
        check("encoder", (1..self.n_layers).contains(&n_layers), expected, n_layers)?;
        let vocab = self.source_vocab();
        check("encoder", (1..=1 << 28).contains(&vocab), "a vocabulary of 1 to 268435456 tokens", vocab)?;
        let plain = |layer: &LayerConfig| LayerConfig { d_mlp: None, ..layer.clone() } == LayerConfig::default();
        let positions = matches!(
            self.position,
            Position::None | Position::Learned | Position::Sinusoidal | Position::Buckets { .. }
        );
        let served = [
            ("causal", self.causal),
            ("parallel", self.parallel == Parallel::No),
            ("norm_place", matches!(self.norm_place, NormPlace::Pre | NormPlace::Post)),
            ("experts", self.experts.is_none()),
            ("n_token_types", self.n_token_types == 0),
            ("embed_projection", self.embed_projection == EmbedProjection::None),
            ("n_blocks", self.blocks() == self.n_layers && self.block_cycle == 1),
            ("position", positions),
            ("scale_by_layer", !self.scale_by_layer),
            ("clip_qkv", self.clip_qkv.is_none()),
            ("score_cap", self.score_cap.is_none()),
            ("sinks", !self.sinks),
            ("qk_norm", self.qk_norm == QkNorm::None),
            ("layers", self.layers.iter().all(plain)),
            ("unembed", matches!(self.unembed, Unembed::Linear { .. } | Unembed::None)),
        ];
        let expected = "what an encoder-decoder can have: see `Encoder` in the documentation";
        served.into_iter().try_for_each(|(name, holds)| check(name, holds, expected, "something else"))
    }
}

/// Fixed positions, `[position, d_model]`: sines, then cosines, of wavelengths from 2 pi to 20000 pi, rounded to float32 as in
/// transformers (Vaswani et al. 2017).
pub(crate) fn sinusoids(shape: &[usize], kind: Kind, device: Device) -> Tensor {
    let (positions, width) = (shape.first().copied().unwrap_or(0), shape.get(1).copied().unwrap_or(0));
    let sines = width.div_ceil(2);
    let at = |position: usize, column: usize| {
        let (pair, sine) = if column < sines { (column, true) } else { (column - sines, false) };
        let angle = position as f64 / 10_000f64.powf(2.0 * pair as f64 / width as f64);
        if sine { angle.sin() } else { angle.cos() }
    };
    let all = (0..positions).flat_map(|position| (0..width).map(move |column| at(position, column) as f32));
    let all: Vec<f32> = all.collect();
    Tensor::from_slice(&all).view([positions as i64, width as i64]).to_kind(kind).to_device(device)
}
