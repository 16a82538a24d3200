//! Along which axes of a site a sweep has variants.

use crate::intervene::engine::Variant;
use crate::model::{Action, Axis, Edit, ModelConfig, Site};
use crate::table::Keys;

/// An axis along which [`Sweep::each`](super::Sweep::each) makes one variant an index, in every layer. Several together
/// make one for each combination: `[Every::Head, Every::Position]`, `[Every::Query, Every::Key]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Every {
    /// The layer alone: its whole site changes at once.
    Layer,
    /// Heads; at `k` and `v` key/value heads.
    Head,
    /// Key/value heads; where a site has query heads, those that share one change together.
    KvHead,
    /// Positions; at `scores` and `pattern` those that attend. A prompt that is too short to have a position is not changed
    /// there, and counts in the mean as it is.
    Position,
    /// Attending positions, at `scores` and `pattern`; elsewhere the same as [`Every::Position`].
    Query,
    /// Positions attended to, at `scores` and `pattern`. Of a causal model's edges (query, key) those into the future,
    /// which are not there, have no variant.
    Key,
    /// Coordinates of the site's last axis: at `mlp_pre` and `mlp_post` the neurons.
    Neuron,
}

impl AsRef<[Every]> for Every {
    fn as_ref(&self) -> &[Every] {
        std::slice::from_ref(self)
    }
}

/// The variants of one site: `action` at each index along `every`.
pub(super) fn variants(
    site: Site,
    every: &[Every],
    action: &Action,
    config: &ModelConfig,
    positions: usize,
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
            Along::Position | Along::Key => positions,
            Along::Neuron => site.shape(config, 1, positions).last().map_or(0, |&n| n as usize),
        };
        let with = |variant: &Variant| (0..length).map(|i| at(variant, axis, i, config)).collect::<Vec<_>>();
        variants = variants.iter().flat_map(with).collect();
    }
    let future = |keys: &Keys| keys.query.zip(keys.key).is_some_and(|(query, key)| key > query);
    variants.retain(|variant| !(config.causal && future(&variant.keys)));
    variants
}

/// What an index is one of.
#[derive(Clone, Copy, PartialEq)]
enum Along {
    Head,
    KvHead,
    Position,
    Key,
    Neuron,
}

/// The axes that `every`, sorted, asks for, each once.
fn axes(site: Site, every: &[Every]) -> Vec<Along> {
    let mut axes = vec![];
    for each in every {
        axes.push(match each {
            Every::Layer => continue,
            // At keys and values a head is a key/value head; asked for both, heads are the finer.
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

/// `variant`, narrowed to one index of an axis.
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
