//! Which activations of a transformer have a name? The sites that can be read and changed, and their axes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A named activation of the forward pass: what a plan can tap and edit.
///
/// The enum is closed: asking for a site that a model does not have is an error before the run.
/// Names are the field's: `resid_pre.0`, `pattern.3`, `z.3`, `logits`.
///
/// - The residual stream is what the next sub-layer reads: in a post-norm model (BERT) `resid_mid` and `resid_post` are
///   taken after the norm, so that `resid_post.l` is always `resid_pre.(l+1)`. A parallel block has no `resid_mid`.
/// - `q` and `k` are taken before their norm and rotation; `scores` are scaled, biased, capped and masked, as the softmax
///   receives them.
/// - `result` is what each head writes, before the bias of the output projection and before any norm after it.
/// - `attn_out` and `mlp_out` are what a sub-layer adds to the residual stream, after its own norm where it has one.
/// - `mlp_pre` is the argument of the activation, `mlp_post` what the output projection reads.
/// - The layers of an encoder-decoder are the encoder's, then the decoder's. At the sites of the encoder's layers, positions are
///   those of the source; so they are at `memory`, `cross_k.l` and `cross_v.l`, and as keys of `cross_scores.l` and
///   `cross_pattern.l`. The decoder's layers have cross-attention between `resid_mid` and `resid_cross`.
///
/// Each site holds what TransformerLens (3.9, without processing) has at one of its hooks, here in block `l`:
///
/// | site | hook | |
/// |---|---|---|
/// | `embed` | `hook_embed` | after the factor and the projection of embeddings, which TransformerLens has in the weights |
/// | `pos_embed` | `hook_pos_embed` | not for shortformer positions, which the residual stream does not contain |
/// | `type_embed`, `ln_embed_scale` | `embed.hook_token_type_embed`, `embed.ln.hook_scale` | of a `HookedEncoder` |
/// | `resid_pre.l` | `blocks.l.hook_resid_pre` | |
/// | `ln1_scale.l`, `ln2_scale.l` | `blocks.l.ln1.hook_scale`, `ln2.hook_scale` | |
/// | `q.l`, `k.l`, `v.l` | `blocks.l.attn.hook_q`, `hook_k`, `hook_v` | before rotation in both; key/value heads are not repeated |
/// | `scores.l` | `blocks.l.attn.hook_attn_scores` | scaled, biased, capped and masked with minus infinity in both |
/// | `pattern.l`, `z.l` | `blocks.l.attn.hook_pattern`, `hook_z` | |
/// | `result.l` | `blocks.l.attn.hook_result` | without the bias of the output projection in both |
/// | `attn_out.l`, `mlp_out.l` | `blocks.l.hook_attn_out`, `hook_mlp_out` | after the norm on the output in both |
/// | `ln1_post_scale.l`, `ln2_post_scale.l` | `blocks.l.ln1_post.hook_scale`, `ln2_post.hook_scale` | |
/// | `resid_mid.l` | `blocks.l.hook_resid_mid` | a `HookedEncoder`'s is the sum before the norm; without an MLP there is no hook, and the site is `resid_post.l` |
/// | `router.l` | `blocks.l.mlp.hook_expert_weights` | |
/// | `mlp_pre.l`, `mlp_post.l` | `blocks.l.mlp.hook_pre`, `hook_post` | of a gated MLP the gate's; `mlp_post` after the norm of `solu_ln` in both |
/// | `resid_post.l` | `blocks.l.hook_resid_post` | of a `HookedEncoder` `hook_normalized_resid_post` |
/// | `ln_final_scale`, `logits` | `ln_final.hook_scale`, the output | |
///
/// The sites of cross-attention and of the source have no table: they are compared with transformers itself.
///
/// ```
/// use headscope::model::Site;
/// let site: Site = "pattern.3".parse()?;
/// assert_eq!(site, Site::Pattern(3));
/// assert!("patern.3".parse::<Site>().is_err());
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Site {
    /// Token embeddings of an encoder-decoder's source, `[batch, source, d_model]`.
    SourceEmbed,
    /// Position embeddings of the source, `[batch, source, d_model]`.
    SourcePosEmbed,
    /// Divisor of the norm after the source's embeddings, `[batch, source, 1]`.
    LnSourceEmbedScale,
    /// Divisor of the encoder's last norm, `[batch, source, 1]`.
    LnMemoryScale,
    /// What every block of the decoder reads of the source: the encoder's last residual stream, normalised, `[batch, source,
    /// d_model]`.
    Memory,
    /// Token embeddings, `[batch, position, d_embed]`.
    Embed,
    /// Position embeddings, `[batch, position, d_embed]`.
    PosEmbed,
    /// Token-type embeddings, `[batch, position, d_embed]`.
    TypeEmbed,
    /// Divisor of the norm after the embeddings, `[batch, position, 1]`.
    LnEmbedScale,
    /// Residual stream entering a block, `[batch, position, d_model]`.
    ResidPre(usize),
    /// Divisor of the norm that belongs to attention, `[batch, position, 1]`.
    Ln1Scale(usize),
    /// Queries before rotation, `[batch, position, head, d_head]`.
    Q(usize),
    /// Keys before rotation, `[batch, position, kv_head, d_head]`.
    K(usize),
    /// Values, `[batch, position, kv_head, d_head]`.
    V(usize),
    /// Scaled, masked attention logits, `[batch, head, query, key]`.
    Scores(usize),
    /// Attention weights, `[batch, head, query, key]`.
    Pattern(usize),
    /// What each head has gathered, `[batch, position, head, d_head]`.
    Z(usize),
    /// What each head writes, `[batch, position, head, d_model]`.
    Result(usize),
    /// Divisor of the norm on the output of attention, `[batch, position, 1]`.
    Ln1PostScale(usize),
    /// What attention adds to the residual stream, `[batch, position, d_model]`.
    AttnOut(usize),
    /// Residual stream between attention and MLP, `[batch, position, d_model]`.
    ResidMid(usize),
    /// Divisor of the norm that belongs to cross-attention, `[batch, position, 1]`.
    LnCrossScale(usize),
    /// Keys of cross-attention, `[batch, source, kv_head, d_head]`.
    CrossK(usize),
    /// Values of cross-attention, `[batch, source, kv_head, d_head]`.
    CrossV(usize),
    /// Queries of cross-attention, `[batch, position, head, d_head]`.
    CrossQ(usize),
    /// Scaled, masked logits of cross-attention, `[batch, head, query, source]`.
    CrossScores(usize),
    /// Weights of cross-attention, `[batch, head, query, source]`.
    CrossPattern(usize),
    /// What each head has gathered from the source, `[batch, position, head, d_head]`.
    CrossZ(usize),
    /// What each head of cross-attention writes, `[batch, position, head, d_model]`.
    CrossResult(usize),
    /// What cross-attention adds to the residual stream, `[batch, position, d_model]`.
    CrossOut(usize),
    /// Residual stream between cross-attention and MLP, `[batch, position, d_model]`.
    ResidCross(usize),
    /// Divisor of the norm that belongs to the MLP, `[batch, position, 1]`.
    Ln2Scale(usize),
    /// Weight of each expert, 0 where it is not chosen, `[batch, position, expert]`.
    Router(usize),
    /// Argument of the MLP's activation, `[batch, position, d_mlp]`.
    MlpPre(usize),
    /// What the MLP's output projection reads, `[batch, position, d_mlp]`.
    MlpPost(usize),
    /// Divisor of the norm on the output of the MLP, `[batch, position, 1]`.
    Ln2PostScale(usize),
    /// What the MLP adds to the residual stream, `[batch, position, d_model]`.
    MlpOut(usize),
    /// Residual stream leaving a block, `[batch, position, d_model]`.
    ResidPost(usize),
    /// Divisor of the last norm, `[batch, position, 1]`.
    LnFinalScale,
    /// Logits, `[batch, position, vocab]`.
    Logits,
}

/// An axis of a site's tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Axis {
    /// Prompts.
    Batch,
    /// Positions in the sequence.
    Position,
    /// Positions that attend.
    Query,
    /// Positions attended to.
    Key,
    /// Positions of an encoder-decoder's source.
    Source,
    /// Positions of the source that are attended to across.
    SourceKey,
    /// Query heads.
    Head,
    /// Key/value heads.
    KvHead,
    /// The residual stream.
    DModel,
    /// The embeddings; as wide as the residual stream unless they are projected.
    DEmbed,
    /// One head's space.
    DHead,
    /// The MLP's hidden units.
    DMlp,
    /// Experts.
    Expert,
    /// The vocabulary.
    Vocab,
    /// A kept axis of length 1.
    One,
}

impl Axis {
    /// The axis' name in docs and errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Position => "position",
            Self::Query => "query",
            Self::Key => "key",
            Self::Source | Self::SourceKey => "source",
            Self::Head => "head",
            Self::KvHead => "kv_head",
            Self::DModel => "d_model",
            Self::DEmbed => "d_embed",
            Self::Expert => "expert",
            Self::DHead => "d_head",
            Self::DMlp => "d_mlp",
            Self::Vocab => "vocab",
            Self::One => "1",
        }
    }

    /// Whether the axis counts positions that are computed; a key may be an earlier, cached one.
    pub(crate) fn is_of_positions(self) -> bool {
        matches!(self, Self::Position | Self::Query | Self::Source)
    }

    /// Whether the axis counts positions that are attended to.
    pub(crate) fn is_of_keys(self) -> bool {
        matches!(self, Self::Key | Self::SourceKey)
    }
}

type PerLayer = (&'static str, fn(usize) -> Site);
const PER_LAYER: [PerLayer; 29] = [
    ("resid_pre", Site::ResidPre),
    ("ln1_scale", Site::Ln1Scale),
    ("q", Site::Q),
    ("k", Site::K),
    ("v", Site::V),
    ("scores", Site::Scores),
    ("pattern", Site::Pattern),
    ("z", Site::Z),
    ("result", Site::Result),
    ("ln1_post_scale", Site::Ln1PostScale),
    ("attn_out", Site::AttnOut),
    ("resid_mid", Site::ResidMid),
    ("ln_cross_scale", Site::LnCrossScale),
    ("cross_k", Site::CrossK),
    ("cross_v", Site::CrossV),
    ("cross_q", Site::CrossQ),
    ("cross_scores", Site::CrossScores),
    ("cross_pattern", Site::CrossPattern),
    ("cross_z", Site::CrossZ),
    ("cross_result", Site::CrossResult),
    ("cross_out", Site::CrossOut),
    ("resid_cross", Site::ResidCross),
    ("ln2_scale", Site::Ln2Scale),
    ("router", Site::Router),
    ("mlp_pre", Site::MlpPre),
    ("mlp_post", Site::MlpPost),
    ("ln2_post_scale", Site::Ln2PostScale),
    ("mlp_out", Site::MlpOut),
    ("resid_post", Site::ResidPost),
];
const GLOBAL: [(&str, Site); 11] = [
    ("source_embed", Site::SourceEmbed),
    ("source_pos_embed", Site::SourcePosEmbed),
    ("ln_source_embed_scale", Site::LnSourceEmbedScale),
    ("ln_memory_scale", Site::LnMemoryScale),
    ("memory", Site::Memory),
    ("embed", Site::Embed),
    ("pos_embed", Site::PosEmbed),
    ("type_embed", Site::TypeEmbed),
    ("ln_embed_scale", Site::LnEmbedScale),
    ("ln_final_scale", Site::LnFinalScale),
    ("logits", Site::Logits),
];

impl Site {
    /// The site's name without its layer, such as `pattern`.
    pub fn kind(self) -> &'static str {
        let same = |site: &Site| std::mem::discriminant(site) == std::mem::discriminant(&self);
        let layered = PER_LAYER.iter().find(|(_, make)| same(&make(0))).map(|(name, _)| *name);
        layered.or_else(|| GLOBAL.iter().find(|(_, site)| same(site)).map(|(name, _)| *name)).unwrap_or("")
    }

    /// The site of this kind, in layer 0 if it belongs to a layer.
    pub(crate) fn of_kind(kind: &str) -> Option<Self> {
        let layered = PER_LAYER.iter().find(|(known, _)| *known == kind).map(|(_, make)| make(0));
        layered.or_else(|| GLOBAL.iter().find(|(known, _)| *known == kind).map(|(_, site)| *site))
    }

    /// The site's layer, where it has one.
    pub fn layer(self) -> Option<usize> {
        match self {
            Self::ResidPre(l) | Self::Ln1Scale(l) | Self::Q(l) | Self::K(l) | Self::V(l) | Self::Scores(l) => Some(l),
            Self::Pattern(l) | Self::Z(l) | Self::Result(l) | Self::AttnOut(l) | Self::ResidMid(l) => Some(l),
            Self::Ln2Scale(l) | Self::MlpPre(l) | Self::MlpPost(l) | Self::MlpOut(l) | Self::ResidPost(l) => Some(l),
            Self::Ln1PostScale(l) | Self::Ln2PostScale(l) | Self::Router(l) => Some(l),
            Self::LnCrossScale(l) | Self::CrossK(l) | Self::CrossV(l) | Self::CrossQ(l) | Self::CrossScores(l) => {
                Some(l)
            }
            Self::CrossPattern(l) | Self::CrossZ(l) | Self::CrossResult(l) => Some(l),
            Self::CrossOut(l) | Self::ResidCross(l) => Some(l),
            Self::Embed | Self::PosEmbed | Self::TypeEmbed | Self::LnEmbedScale | Self::LnFinalScale | Self::Logits => {
                None
            }
            Self::SourceEmbed | Self::SourcePosEmbed | Self::LnSourceEmbedScale => None,
            Self::LnMemoryScale | Self::Memory => None,
        }
    }

    /// The same site of another layer; a site without a layer is itself.
    pub fn at_layer(self, layer: usize) -> Self {
        let same = |site: &Self| std::mem::discriminant(site) == std::mem::discriminant(&self);
        PER_LAYER.iter().map(|(_, make)| make(layer)).find(same).unwrap_or(self)
    }

    /// The sites among `there` whose names match a pattern, in which `*` stands for any characters.
    pub(crate) fn matching(pattern: &str, there: &[Self]) -> Result<Vec<Self>, UnknownSite> {
        let matching = |pattern: &str| -> Vec<Self> {
            there.iter().copied().filter(|site| glob(pattern, &site.to_string())).collect()
        };
        let found = matching(pattern);
        if !found.is_empty() {
            return Ok(found);
        }
        let (kind, layer) = pattern.split_once('.').unwrap_or((pattern, "*"));
        let mut kinds: Vec<&str> = there.iter().map(|site| site.kind()).collect();
        kinds.dedup();
        kinds.sort_by_key(|known| strsim::levenshtein(kind, known));
        let close = kinds
            .iter()
            .filter(|known| is_close(kind, known))
            .flat_map(|known| [format!("{known}.{layer}"), (*known).to_owned()]);
        // A layer that is not there, then a kind that is misspelt, then whatever is nearest.
        let mut near: Vec<String> = vec![];
        for other in [format!("{kind}.*")].into_iter().chain(close) {
            if !near.contains(&other) && !matching(&other).is_empty() {
                near.push(other);
            }
        }
        if near.is_empty() {
            let mut names: Vec<String> = there.iter().map(Self::to_string).collect();
            names.sort_by_key(|name| strsim::levenshtein(pattern, name));
            near = names;
        }
        near.truncate(3);
        Err(UnknownSite { found: pattern.to_owned(), near })
    }

    /// The axes of the site's tensor.
    pub fn axes(self) -> Vec<Axis> {
        use Axis::{
            Batch, DEmbed, DHead, DMlp, DModel, Expert, Head, Key, KvHead, One, Position, Query, Source, SourceKey,
            Vocab,
        };
        match self {
            Self::Q(_) | Self::Z(_) | Self::CrossQ(_) | Self::CrossZ(_) => vec![Batch, Position, Head, DHead],
            Self::K(_) | Self::V(_) => vec![Batch, Position, KvHead, DHead],
            Self::Scores(_) | Self::Pattern(_) => vec![Batch, Head, Query, Key],
            Self::Result(_) | Self::CrossResult(_) => vec![Batch, Position, Head, DModel],
            Self::CrossK(_) | Self::CrossV(_) => vec![Batch, Source, KvHead, DHead],
            Self::CrossScores(_) | Self::CrossPattern(_) => vec![Batch, Head, Query, SourceKey],
            Self::SourceEmbed | Self::SourcePosEmbed | Self::Memory => vec![Batch, Source, DModel],
            Self::LnSourceEmbedScale | Self::LnMemoryScale => vec![Batch, Source, One],
            Self::CrossOut(_) | Self::ResidCross(_) => vec![Batch, Position, DModel],
            Self::MlpPre(_) | Self::MlpPost(_) => vec![Batch, Position, DMlp],
            Self::LnEmbedScale | Self::Ln1Scale(_) | Self::Ln2Scale(_) | Self::LnFinalScale => {
                vec![Batch, Position, One]
            }
            Self::Ln1PostScale(_) | Self::Ln2PostScale(_) | Self::LnCrossScale(_) => vec![Batch, Position, One],
            Self::Router(_) => vec![Batch, Position, Expert],
            Self::Logits => vec![Batch, Position, Vocab],
            Self::Embed | Self::PosEmbed | Self::TypeEmbed => vec![Batch, Position, DEmbed],
            Self::ResidPre(_) | Self::AttnOut(_) | Self::ResidMid(_) | Self::MlpOut(_) | Self::ResidPost(_) => {
                vec![Batch, Position, DModel]
            }
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer() {
            Some(layer) => write!(f, "{}.{layer}", self.kind()),
            None => f.write_str(self.kind()),
        }
    }
}

/// A name that is no site's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown site `{found}`; {}", suggestion(near))]
pub struct UnknownSite {
    /// The name.
    pub found: String,
    /// Names like it.
    pub near: Vec<String>,
}

fn suggestion(near: &[String]) -> String {
    match near {
        [] => "expected a name such as resid_pre.0, pattern.3 or logits".to_owned(),
        near => format!("did you mean {}?", near.join(" or ")),
    }
}

impl FromStr for Site {
    type Err = UnknownSite;

    fn from_str(name: &str) -> Result<Self, UnknownSite> {
        if let Some((_, site)) = GLOBAL.iter().find(|(known, _)| *known == name) {
            return Ok(*site);
        }
        let (kind, layer) = name.split_once('.').unwrap_or((name, ""));
        let make = PER_LAYER.iter().find(|(known, _)| *known == kind);
        match (make, layer.parse()) {
            (Some((_, make)), Ok(layer)) => Ok(make(layer)),
            _ => Err(UnknownSite { found: name.to_owned(), near: near(kind, layer) }),
        }
    }
}

impl TryFrom<String> for Site {
    type Error = UnknownSite;

    fn try_from(name: String) -> Result<Self, UnknownSite> {
        name.parse()
    }
}

impl From<Site> for String {
    fn from(site: Site) -> Self {
        site.to_string()
    }
}

/// Whether `name` is `pattern`, in which `*` stands for any characters.
fn glob(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, rest)) => name.strip_prefix(start).is_some_and(|name| {
            name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| glob(rest, &name[at..]))
        }),
    }
}

/// Whether `known` is within two edits of `kind`.
fn is_close(kind: &str, known: &str) -> bool {
    strsim::levenshtein(kind, known) <= 2.min(kind.len().saturating_sub(1))
}

/// Names within two edits of `kind`, as they would be written with `layer`.
fn near(kind: &str, layer: &str) -> Vec<String> {
    let layer: usize = layer.parse().unwrap_or(0);
    let close = |known: &str| is_close(kind, known);
    let layered = PER_LAYER.iter().filter(|(known, _)| close(known)).map(|(known, _)| format!("{known}.{layer}"));
    layered.chain(GLOBAL.iter().filter(|(known, _)| close(known)).map(|(known, _)| (*known).to_owned())).collect()
}
