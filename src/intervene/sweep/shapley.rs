//! How much does each head contribute to what several heads do together? Shapley values.

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::Sweep;
use super::ablation::Ablation;
use crate::error::{Error, Result};
use crate::intervene::engine::Variant;
use crate::intervene::metric::Metric;
use crate::model::{Edit, Model, Site, Tokens};
use crate::table::{Keys, Observation, Table};

/// Options of [`shapley`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShapleyOptions {
    /// What replaces an absent head.
    pub ablation: Ablation,
    /// Which subsets of the heads to compute.
    pub sampling: Sampling,
}

/// Which subsets of the heads to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// All subsets, of at most 12 heads.
    All,
    /// The subsets along random orders in which the heads are ablated, each order paired with its reverse.
    Orders {
        /// Number of orders.
        n: usize,
        /// Seed of the draw.
        seed: u64,
    },
}

impl Default for ShapleyOptions {
    fn default() -> Self {
        Self { ablation: Ablation::Mean, sampling: Sampling::All }
    }
}

/// The most heads whose subsets are all computed.
pub(crate) const MOST: usize = 12;

/// What is each head's fair share of their joint effect? Shapley values of heads (Shapley 1953).
///
/// Let m(S) be the metric when the heads outside S are ablated, and H the number of heads. Then
/// `phi_h = sum over S without h of |S|! (H - |S| - 1)! / H! [m(S) - m(S + h)]`: the change of the metric when h is
/// ablated, averaged over all orders in which the heads can be ablated. The values sum to m(none) - m(all), as the
/// effects of single ablations would if heads did not overlap. If the metric is the loss, a useful head has a positive
/// value. A single ablation misses a head with a backup (Wang et al. 2022); the Shapley value does not.
///
/// One row per head: `value`, and for sampled orders an interval (`low`, `high`: two standard errors over the orders).
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7, 6, 5]])?;
/// let heads = [(1, 0), (1, 1), (1, 2), (1, 3)];
/// let table = shapley(&model, &tokens, &heads, &Metric::Loss, &ShapleyOptions::default())?;
/// assert_eq!(table.len(), 4);
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// If `heads` is empty, names a head twice or one that does not exist, or is too long for all subsets; if there are
/// fewer than 2 orders; or if the metric does not fit the model.
pub fn shapley(
    model: &Model,
    tokens: &Tokens,
    heads: &[(usize, usize)],
    metric: &Metric,
    options: &ShapleyOptions,
) -> Result<Table> {
    check(heads, options)?;
    let orders = orders(heads.len(), options.sampling);
    let mut absent: BTreeSet<Vec<usize>> = BTreeSet::new();
    match &orders {
        None => absent.extend((1..1usize << heads.len()).map(|mask| of_mask(mask, heads.len()))),
        Some(orders) => absent.extend(orders.iter().flat_map(|order| (1..=order.len()).map(|n| sorted(&order[..n])))),
    }
    let absent: Vec<Vec<usize>> = absent.into_iter().collect();
    let variants = absent.iter().enumerate().map(|(number, set)| variant(number, set, heads, options.ablation));
    let table =
        Sweep::ablate(model, tokens, options.ablation).variants(variants.collect()).metric(metric.clone()).run()?;
    let baseline = table.f64("baseline")?.first().copied().unwrap_or(f64::NAN);
    let mut values: BTreeMap<Vec<usize>, f64> = absent.into_iter().zip(table.f64("value")?).collect();
    values.insert(vec![], baseline);
    let shares = match &orders {
        None => {
            let by_mask = (0..1usize << heads.len()).map(|mask| values[&of_mask(mask, heads.len())]);
            shapley_values(&by_mask.collect::<Vec<f64>>())?.into_iter().map(|value| (value, None)).collect()
        }
        Some(orders) => along(orders, heads.len(), &values),
    };
    let rows = heads.iter().zip(shares).map(|(&(layer, head), (value, error))| Observation {
        keys: Keys {
            method: Some("shapley".to_owned()),
            layer: u32::try_from(layer).ok(),
            head: u32::try_from(head).ok(),
            ..Keys::default()
        },
        metric: metric.name().to_owned(),
        value,
        unit: metric.unit_of_rows(),
        low: error.map(|error| value - 2.0 * error),
        high: error.map(|error| value + 2.0 * error),
        ..Observation::default()
    });
    let mut provenance = table.provenance().clone();
    provenance.options["what"]["shapley"] = serde_json::json!({ "heads": heads, "options": options });
    Table::new(rows.collect(), provenance)
}

fn check(heads: &[(usize, usize)], options: &ShapleyOptions) -> Result<()> {
    let unique: BTreeSet<&(usize, usize)> = heads.iter().collect();
    if heads.is_empty() || unique.len() < heads.len() {
        let found = format!("{} heads, {} of them different", heads.len(), unique.len());
        return Err(Error::argument("heads", "at least one, each once", found));
    }
    match options.sampling {
        Sampling::All if heads.len() > MOST => {
            Err(Error::argument("heads", format!("at most {MOST} for all subsets, or sampled orders"), heads.len()))
        }
        Sampling::Orders { n, .. } if n < 2 => Err(Error::argument("orders", "2 or more", n)),
        // Each order, and its reverse, has one variant per prefix.
        Sampling::Orders { n, .. } => {
            crate::take::fits("orders", n, 2 * heads.len() * (heads.len() * size_of::<usize>() + size_of::<Variant>()))
        }
        _ => Ok(()),
    }
}

/// Random orders of ablation, each followed by its reverse; `None` if all subsets are computed.
fn orders(heads: usize, sampling: Sampling) -> Option<Vec<Vec<usize>>> {
    let Sampling::Orders { n, seed } = sampling else { return None };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let draw = |_| {
        let mut order: Vec<usize> = (0..heads).collect();
        order.shuffle(&mut rng);
        let back = order.iter().rev().copied().collect();
        [order, back]
    };
    Some((0..n).flat_map(draw).collect())
}

fn of_mask(mask: usize, heads: usize) -> Vec<usize> {
    (0..heads).filter(|head| mask >> head & 1 == 1).collect()
}

fn sorted(heads: &[usize]) -> Vec<usize> {
    let mut heads = heads.to_vec();
    heads.sort_unstable();
    heads
}

/// The variant in which the heads of `absent` are ablated; its number keeps the rows in order.
fn variant(number: usize, absent: &[usize], heads: &[(usize, usize)], ablation: Ablation) -> Variant {
    let mut layers: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    absent.iter().for_each(|&place| layers.entry(heads[place].0).or_default().push(heads[place].1));
    let edits = layers.into_iter().map(|(layer, heads)| Edit::new(Site::Z(layer), ablation.action()).heads(heads));
    Variant { keys: Keys { variant: u32::try_from(number).ok(), ..Keys::default() }, edits: edits.collect() }
}

/// Shapley values from the metric of every subset: `values[mask]` is m with the heads ablated whose bits are set in
/// `mask`.
///
/// With H heads and S the heads that are present:
/// `phi_h = sum over S without h of |S|! (H - |S| - 1)! / H! [m(S) - m(S + h)]`; see [`shapley`]. The Shapley values
/// sum to the last of `values` minus the first.
///
/// ```
/// use headscope::intervene::shapley_values;
/// // The loss with both heads, without the first, without the second, without either: one of them suffices.
/// let phi = shapley_values(&[0.0, 0.0, 0.0, 2.0])?;
/// assert_eq!(phi, [1.0, 1.0]);
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// If the number of values is not 2^H for an H of at least 1.
pub fn shapley_values(values: &[f64]) -> Result<Vec<f64>> {
    if values.len() < 2 || !values.len().is_power_of_two() {
        return Err(Error::argument("values", "one for each subset of at least one head", values.len()));
    }
    let heads = values.len().ilog2() as usize;
    // |S|! (H - |S| - 1)! / H! = 1 / (H C(H - 1, |S|)), indexed by how many heads are ablated before this one.
    let mut weights = vec![1.0 / heads as f64];
    for k in 1..heads {
        weights.push(weights[k - 1] * k as f64 / (heads - k) as f64);
    }
    let of = |head: usize| {
        let bit = 1usize << head;
        let without = (0..values.len()).filter(|mask| mask & bit != 0);
        without.map(|mask| weights[(mask ^ bit).count_ones() as usize] * (values[mask] - values[mask ^ bit])).sum()
    };
    Ok((0..heads).map(of).collect())
}

/// The mean of each head over the orders, and its standard error; an order and its reverse count as one draw.
fn along(orders: &[Vec<usize>], heads: usize, values: &BTreeMap<Vec<usize>, f64>) -> Vec<(f64, Option<f64>)> {
    let mut draws = vec![vec![]; heads];
    for pair in orders.chunks(2) {
        let mut sums = vec![0.0; heads];
        for order in pair {
            for n in 0..order.len() {
                sums[order[n]] += values[&sorted(&order[..=n])] - values[&sorted(&order[..n])];
            }
        }
        sums.iter().zip(&mut draws).for_each(|(sum, draws)| draws.push(sum / pair.len() as f64));
    }
    let of = |draws: Vec<f64>| {
        let n = draws.len() as f64;
        let mean = draws.iter().sum::<f64>() / n;
        let variance = draws.iter().map(|draw| (draw - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean, Some((variance / n).sqrt()))
    };
    draws.into_iter().map(of).collect()
}
