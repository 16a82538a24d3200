//! Which variants does a sweep along some axes of a site consist of?

use crate::intervene::engine::Variant;
use crate::model::{Action, Axis, Edit, ModelConfig, Site, Tokens};
use crate::table::Keys;

/// An axis along which [`Sweep::each`](super::Sweep::each) makes one variant per index, in every layer. Several axes
/// make one variant per combination: `[Every::Head, Every::Position]`, `[Every::Query, Every::Key]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Every {
    /// Layers: the whole site of a layer changes at once.
    Layer,
    /// Query heads; key/value heads at `k` and `v`.
    Head,
    /// Key/value heads. At a site with query heads, the query heads that share a key/value head change together.
    KvHead,
    /// Positions; query positions at `scores` and `pattern`. A prompt too short to have a position stays unchanged
    /// there and still counts in the mean.
    Position,
    /// Query positions at `scores` and `pattern`; the same as [`Every::Position`] elsewhere.
    Query,
    /// Key positions at `scores` and `pattern`. In a causal model, edges (query, key) into the future have no variant.
    Key,
    /// Coordinates of the site's last axis; neurons at `mlp_pre` and `mlp_post`.
    Neuron,
}

impl AsRef<[Every]> for Every {
    fn as_ref(&self) -> &[Every] {
        std::slice::from_ref(self)
    }
}

/// The variants of one site: `action` at each index, or combination of indices, of `every`.
pub(super) fn variants(
    site: Site,
    every: &[Every],
    action: &Action,
    config: &ModelConfig,
    tokens: &Tokens,
) -> Vec<Variant> {
    let mut every = every.to_vec();
    every.sort_unstable();
    let first = Variant {
        keys: Keys { layer: site.layer().and_then(number), ..Keys::default() },
        edits: vec![Edit::new(site, action.clone())],
    };
    let mut variants = vec![first];
    for axis in axes(site, &every) {
        let length = match axis {
            Along::Head | Along::KvHead if has(site, Axis::KvHead) => config.n_kv_heads,
            Along::Head => config.n_heads,
            Along::KvHead => config.n_kv_heads,
            Along::Key if has(site, Axis::SourceKey) => tokens.source().map_or(0, Tokens::positions),
            Along::Position | Along::Key => site.side(config.encoder_layers(), tokens).positions(),
            Along::Neuron => site.shape_for(config, tokens).last().map_or(0, |&n| n as usize),
        };
        let with = |variant: &Variant| (0..length).map(|i| at(variant, axis, i, config)).collect::<Vec<_>>();
        variants = variants.iter().flat_map(with).collect();
    }
    let future = |keys: &Keys| keys.query.zip(keys.key).is_some_and(|(query, key)| key > query);
    let causal = site.layer().is_some_and(|layer| config.is_causal(layer)) && !has(site, Axis::SourceKey);
    variants.retain(|variant| !(causal && future(&variant.keys)));
    variants
}

/// An axis of a site, once aliases are resolved.
#[derive(Clone, Copy, PartialEq)]
enum Along {
    Head,
    KvHead,
    Position,
    Key,
    Neuron,
}

/// The axes that `every`, which is sorted, selects, each once.
fn axes(site: Site, every: &[Every]) -> Vec<Along> {
    let mut axes = vec![];
    for each in every {
        axes.push(match each {
            Every::Layer => continue,
            // At `k` and `v` a head is a key/value head. If both kinds are selected, query heads are the finer axis.
            Every::Head => Along::Head,
            Every::KvHead if axes.contains(&Along::Head) => continue,
            Every::KvHead if has(site, Axis::KvHead) => Along::Head,
            Every::KvHead => Along::KvHead,
            Every::Position | Every::Query => Along::Position,
            Every::Key => Along::Key,
            Every::Neuron => Along::Neuron,
        });
    }
    axes.dedup();
    axes
}

/// `variant` narrowed to one index of an axis.
fn at(variant: &Variant, axis: Along, index: usize, config: &ModelConfig) -> Variant {
    let Variant { mut keys, mut edits } = variant.clone();
    for edit in &mut edits {
        let (attends, kv) = (has(edit.site, Axis::Query), has(edit.site, Axis::KvHead));
        let (place, column, indices) = match axis {
            Along::Head if kv => (&mut edit.at.heads, &mut keys.kv_head, vec![index]),
            Along::Head => (&mut edit.at.heads, &mut keys.head, vec![index]),
            Along::KvHead => {
                let group = config.n_heads / config.n_kv_heads;
                (&mut edit.at.heads, &mut keys.kv_head, (index * group..(index + 1) * group).collect())
            }
            Along::Position if attends => (&mut edit.at.positions, &mut keys.query, vec![index]),
            Along::Position => (&mut edit.at.positions, &mut keys.position, vec![index]),
            Along::Key => (&mut edit.at.keys, &mut keys.key, vec![index]),
            Along::Neuron => (&mut edit.at.features, &mut keys.neuron, vec![index]),
        };
        (*place, *column) = (Some(indices), number(index));
    }
    Variant { keys, edits }
}

fn has(site: Site, axis: Axis) -> bool {
    site.axes().contains(&axis)
}

fn number(n: usize) -> Option<u32> {
    u32::try_from(n).ok()
}
