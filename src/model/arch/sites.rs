//! Which sites does a model have, and how large are they?

use super::config::{ModelConfig, NormKind, Position, Unembed};
use super::wire::Wire;
use super::wiring::{BlockWiring, Wiring};
use crate::error::{Error, Result};
use crate::site::{Axis, Site};
use crate::text::Tokens;

impl Site {
    /// The shape of the site's tensor for `batch` prompts of `positions` tokens; in an encoder-decoder, with sources of as many.
    pub fn shape(self, config: &ModelConfig, batch: usize, positions: usize) -> Vec<i64> {
        self.shape_over(config, batch, [positions; 2])
    }

    /// The shape of the site's tensor for a batch of tokens, and of their sources in an encoder-decoder.
    pub fn shape_for(self, config: &ModelConfig, tokens: &Tokens) -> Vec<i64> {
        let positions = tokens.positions();
        let source = tokens.source().map_or(positions, Tokens::positions);
        self.shape_over(config, tokens.batch(), [positions, source])
    }

    fn shape_over(self, config: &ModelConfig, batch: usize, [positions, source]: [usize; 2]) -> Vec<i64> {
        let own = if self.counts_source(config.encoder_layers()) { source } else { positions };
        let length = |axis: Axis| match axis {
            Axis::Batch => batch,
            Axis::Position | Axis::Query | Axis::Key => own,
            Axis::Source | Axis::SourceKey => source,
            Axis::Head => config.n_heads,
            Axis::KvHead => config.n_kv_heads,
            Axis::DModel => config.d_model,
            Axis::DEmbed => config.d_sum(),
            Axis::DHead => config.d_head,
            Axis::DMlp => self.layer().map_or(config.d_mlp, |layer| config.d_mlp_of(layer)),
            Axis::Expert => config.experts.map_or(0, |experts| experts.n),
            Axis::Vocab => config.vocab,
            Axis::One => 1,
        };
        self.axes().into_iter().map(|axis| length(axis) as i64).collect()
    }

    /// Whether positions of the site, as [`Selector::positions`](crate::model::Selector::positions) selects them, are those of an
    /// encoder-decoder's source: in the encoder's layers, and where the decoder has read it.
    pub(crate) fn counts_source(self, encoder_layers: usize) -> bool {
        match self.layer() {
            Some(layer) if layer < encoder_layers => true,
            _ => self.axes().contains(&Axis::Source),
        }
    }

    /// The batch whose positions those of the site are: the tokens', or their sources'.
    pub(crate) fn side(self, encoder_layers: usize, tokens: &Tokens) -> &Tokens {
        tokens.source().filter(|_| self.counts_source(encoder_layers)).unwrap_or(tokens)
    }

    /// Whether the site has a head axis, and each head's part is computed without the others.
    pub(crate) fn is_by_head(self) -> bool {
        matches!(self, Self::K(_) | Self::V(_) | Self::Q(_) | Self::Scores(_) | Self::Pattern(_) | Self::Z(_))
    }

    /// Fails if a model of this config has no such site.
    ///
    /// # Errors
    /// [`Error::SiteAbsent`] with the reason.
    pub fn check(self, config: &ModelConfig) -> Result<()> {
        match self.absence(config) {
            Some(reason) => Err(Error::SiteAbsent { site: self, reason }),
            None => Ok(()),
        }
    }

    /// Why a model of this config has no such site; `None` if it has.
    fn absence(self, config: &ModelConfig) -> Option<String> {
        let no = |reason: &str, absent: bool| absent.then(|| reason.to_owned());
        if let Some((layer, wire)) = self.layer().zip(Wire::of(self)) {
            if layer >= config.n_layers {
                return Some(format!("it has layers 0 to {}", config.n_layers - 1));
            }
            let there = BlockWiring::new(config, layer).wires().any(|own| own == wire);
            return no(self.missing_part(config), !there);
        }
        match self {
            Self::PosEmbed if config.position == Position::Shortformer => {
                Some("its positions are not added to the residual stream".to_owned())
            }
            Self::PosEmbed => no("its position embeddings are not learned", !config.adds_positions()),
            Self::SourceEmbed
            | Self::SourcePosEmbed
            | Self::LnSourceEmbedScale
            | Self::LnMemoryScale
            | Self::Memory
                if config.encoder.is_none() =>
            {
                Some("it has no encoder in front of a decoder".to_owned())
            }
            Self::SourcePosEmbed => no("its positions are not added to the embeddings", !config.adds_positions()),
            Self::LnMemoryScale => no("its encoder has no norm at its end", !config.has_final_norm()),
            Self::TypeEmbed => no("it has no token types", config.n_token_types == 0),
            Self::LnEmbedScale | Self::LnSourceEmbedScale => {
                let none = !config.embed_norm || config.norm == NormKind::None;
                no("its embeddings are not normalised", none)
            }
            Self::LnFinalScale => no("it has no norm before the unembedding", !config.has_final_norm()),
            Self::Logits => no("it ends in the residual stream", config.unembed == Unembed::None),
            _ => None,
        }
    }

    fn missing_part(self, config: &ModelConfig) -> &'static str {
        match self {
            Self::Ln1Scale(_) | Self::Ln2Scale(_) | Self::Ln1PostScale(_) | Self::Ln2PostScale(_) => {
                "its blocks have no norm there"
            }
            Self::LnCrossScale(_)
            | Self::CrossK(_)
            | Self::CrossV(_)
            | Self::CrossQ(_)
            | Self::CrossScores(_)
            | Self::CrossPattern(_)
            | Self::CrossZ(_)
            | Self::CrossResult(_)
            | Self::CrossOut(_)
            | Self::ResidCross(_) => match (config.encoder, config.norm) {
                (None, _) => "it has no cross-attention",
                (Some(_), NormKind::None) if matches!(self, Self::LnCrossScale(_)) => "it has no norms",
                (Some(_), _) => "only its decoder's layers have cross-attention",
            },
            Self::ResidMid(_) => "its attention and MLP stand side by side",
            Self::Router(_) => "it has no experts",
            _ if config.experts.is_some() => "its MLPs are experts",
            _ => "it has no MLP",
        }
    }

    /// Every site that a model of this config has, in the order of the forward pass.
    pub fn all(config: &ModelConfig) -> Vec<Self> {
        let wiring = Wiring::new(config);
        let source = [Self::SourceEmbed, Self::SourcePosEmbed, Self::LnSourceEmbedScale];
        let between = [Self::LnMemoryScale, Self::Memory];
        let before = [Self::Embed, Self::PosEmbed, Self::TypeEmbed, Self::LnEmbedScale];
        let of_layer = |layer| wiring.block(layer).wires().filter_map(move |wire: Wire| wire.site(layer));
        let layered = |layers: std::ops::Range<usize>| layers.flat_map(of_layer).collect::<Vec<_>>();
        let encoder = config.encoder_layers();
        let all = source.into_iter().chain(layered(0..encoder)).chain(between).chain(before);
        let all = all.chain(layered(encoder..config.n_layers)).chain([Self::LnFinalScale, Self::Logits]);
        all.filter(|site| site.layer().is_some() || site.check(config).is_ok()).collect()
    }
}
