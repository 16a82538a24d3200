//! How can heads be moved from one model to another, or modified in place?

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use tch::Tensor;

use super::options::HeadOptions;
use super::parameters::{by_head, part_of};
use crate::error::{Error, Result};
use crate::lab::streams::Purpose;
use crate::model::Model;

/// Returns `model` with each part of one head replaced by the result of `each`, which receives the part's name (`w_q`,
/// `w_o`, ...) and its values: `[d_model, d_head]`, for `w_o` `[d_head, d_model]`, for a bias `[d_head]`.
pub(in crate::lab) fn with_head(
    model: &Model,
    layer: usize,
    head: usize,
    mut each: impl FnMut(&str, &Tensor) -> Tensor,
) -> Model {
    let names: Vec<String> = model.parameters().into_iter().map(|(name, _)| name).collect();
    let (config, mut names) = (model.config().clone(), names.into_iter());
    model.with_parameters(|old| {
        let name = names.next().unwrap_or_default();
        let Some((_, axis, kv)) = by_head(layer).into_iter().find(|(own, ..)| *own == name) else {
            return old.shallow_clone();
        };
        let (n, head) = if kv { (config.n_kv_heads, config.kv_head(head)) } else { (config.n_heads, head) };
        let mut parts = old.chunk(n as i64, axis as i64);
        parts[head] = each(part_of(&name), &parts[head]);
        Tensor::cat(&parts, axis as i64)
    })
}

/// The parts of one head, by name.
pub(in crate::lab) fn head_of(model: &Model, layer: usize, head: usize) -> Vec<(String, Tensor)> {
    let mut parts = vec![];
    with_head(model, layer, head, |name, part| {
        parts.push((name.to_owned(), part.copy()));
        part.shallow_clone()
    });
    parts
}

/// Returns `model` with a head replaced by the same head of another model of the same architecture.
pub(in crate::lab) fn transplanted(model: &Model, from: &Model, layer: usize, head: usize) -> Model {
    let parts = head_of(from, layer, head);
    with_head(model, layer, head, |name, own| {
        parts
            .iter()
            .find(|(part, _)| part == name)
            .map_or_else(|| own.shallow_clone(), |(_, part)| part.shallow_clone())
    })
}

/// Returns `model` with the residual stream dimensions that a head reads and writes permuted: each of its matrices
/// keeps its values, but they no longer match the stream. `order` is a permutation of `0..d_model`.
pub(in crate::lab) fn shuffled_head(model: &Model, layer: usize, head: usize, order: &[i64]) -> Model {
    let order = Tensor::from_slice(order).to_device(model.device());
    with_head(model, layer, head, |name, own| match name {
        "w_o" => own.index_select(1, &order),
        "w_q" | "w_k" | "w_v" => own.index_select(0, &order),
        _ => own.shallow_clone(),
    })
}

/// Returns `model` with every head of a layer a copy of its first, each perturbed by Gaussian noise of standard
/// deviation `perturbation`, relative to that of the tensor.
pub(super) fn identical(model: &Model, perturbation: f64, seed: u64) -> Model {
    let names: Vec<String> = model.parameters().into_iter().map(|(name, _)| name).collect();
    let (config, mut names) = (model.config().clone(), names.into_iter());
    let mut rng = ChaCha8Rng::seed_from_u64(Purpose::Perturbation.seed(seed));
    model.with_parameters(|old| {
        let name = names.next().unwrap_or_default();
        let layer = name.split('.').nth(1).and_then(|layer| layer.parse().ok()).unwrap_or(0);
        let Some((_, axis, kv)) = by_head(layer).into_iter().find(|(own, ..)| *own == name) else {
            return old.shallow_clone();
        };
        let n = (if kv { config.n_kv_heads } else { config.n_heads }) as i64;
        let first = old.narrow(axis as i64, 0, old.size()[axis] / n);
        let copies = Tensor::cat(&vec![&first; n as usize], axis as i64);
        if perturbation == 0.0 {
            return copies;
        }
        let noise: Vec<f64> = (0..copies.numel()).map(|_| rng.sample(StandardNormal)).collect();
        let noise = Tensor::from_slice(&noise).to_kind(old.kind()).to_device(old.device()).view_as(&copies);
        let scale = copies.square().mean(copies.kind()).sqrt() * perturbation;
        copies + noise * scale
    })
}

/// Returns `model` with the ranks of all heads' circuits limited as the options say: the dimensions of a head beyond its
/// rank are 0, and the others larger, so that attention logits and what heads write have the variance that they had.
pub(super) fn limited(model: Model, heads: &HeadOptions) -> Model {
    let width = model.config().d_head;
    by_dimension(&model, heads, |name, dimensions, rank, axis| {
        let kept = dimensions.narrow(axis, 0, rank);
        // A product of two matrices has the fourth power of this in its variance, and a sum of `rank` terms.
        let kept = if part_of(name).starts_with('w') { kept * (width as f64 / rank as f64).powf(0.25) } else { kept };
        let rest = dimensions.narrow(axis, rank, width as i64 - rank).zeros_like();
        Tensor::cat(&[kept, rest], axis)
    })
}

/// Fails if a head of the model has a number other than 0 beyond its rank.
pub(super) fn check_limited(model: &Model, heads: &HeadOptions) -> Result<()> {
    let width = model.config().d_head as i64;
    let mut found = None;
    by_dimension(model, heads, |name, dimensions, rank, axis| {
        let rest = dimensions.narrow(axis, rank, width - rank);
        if rest.count_nonzero(None::<i64>).int64_value(&[]) > 0 {
            found = Some(format!("`{name}` with more than {rank} dimensions of a head"));
        }
        dimensions.shallow_clone()
    });
    found.map_or(Ok(()), |found| Err(Error::argument("models", "heads of the rank that the options allow", found)))
}

/// Returns `model` with every tensor whose heads are limited replaced by the result of `each`, which receives the
/// tensor's name, its values with the axis that is split by head as two (head, dimension), the rank, and the number of
/// the dimension's axis.
fn by_dimension(model: &Model, heads: &HeadOptions, mut each: impl FnMut(&str, &Tensor, i64, i64) -> Tensor) -> Model {
    let names: Vec<String> = model.parameters().into_iter().map(|(name, _)| name).collect();
    let split: Vec<(String, usize, bool)> = (0..model.config().n_layers).flat_map(by_head).collect();
    let (width, mut names) = (model.config().d_head as i64, names.into_iter());
    model.with_parameters(|old| {
        let name = names.next().unwrap_or_default();
        let axis = split.iter().find(|(own, ..)| *own == name).map(|(_, axis, _)| *axis as i64);
        match (axis, heads.rank_of(part_of(&name))) {
            (Some(axis), Some(rank)) => {
                let dimensions = old.unflatten(axis, [-1, width]);
                each(&name, &dimensions, rank as i64, axis + 1).flatten(axis, axis + 1)
            }
            _ => old.shallow_clone(),
        }
    })
}
