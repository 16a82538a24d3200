//! How can heads be moved from one model to another, or modified in place?

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use tch::Tensor;

use super::parameters::by_head;
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
        let part = name.rsplit('.').next().unwrap_or_default();
        parts[head] = each(part, &parts[head]);
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
