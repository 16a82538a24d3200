//! libtorch and LAPACK live in one process and leave each other alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_close, assert_close_at, random, scale, some_tokens};
use headscope::checkpoint::LoadOptions;
use headscope::model::{Model, ModelConfig, Plan, Site};
use headscope::prelude::{Every, Metric, Sweep};
use ndarray::{Array2, ArrayD};
use ndarray_linalg::SVD;
use tch::{Kind, Tensor};

fn matmul(seed: i64) -> (Tensor, Tensor) {
    tch::manual_seed(seed);
    let options = (Kind::Double, tch::Device::Cpu);
    let (a, b) = (Tensor::randn([96, 64], options), Tensor::randn([64, 80], options));
    let product = a.matmul(&b);
    let slow = (a.unsqueeze(2) * b.unsqueeze(0)).sum_dim_intlist([1i64].as_slice(), false, None);
    (product, slow)
}

#[test]
fn products_and_decompositions_take_turns() {
    let (before, slow) = matmul(1);
    assert_close("before", &before, &slow, Tol::Layer(Kind::Double));
    let array: ArrayD<f64> = (&before).try_into().unwrap();
    let matrix: Array2<f64> = array.into_dimensionality().unwrap();
    let (u, s, vt) = matrix.svd(true, true).unwrap();
    let (u, vt) = (u.unwrap(), vt.unwrap());
    let rebuilt = u.slice(ndarray::s![.., ..s.len()]).dot(&Array2::from_diag(&s)).dot(&vt);
    let rebuilt = Tensor::try_from(&rebuilt.as_standard_layout().to_owned()).unwrap();
    assert_close("U S Vt", &rebuilt, &before, Tol::Layer(Kind::Double));
    let (after, slow) = matmul(2);
    assert_close("after", &after, &slow, Tol::Layer(Kind::Double));
    let model = random(&ModelConfig::default(), 1);
    model.run(&some_tokens(2, 5, 50, 1), &Plan::new()).unwrap();
}

/// `sgemm_` is libtorch's: with OpenBLAS before it, products inside libtorch run at a third of their speed.
#[test]
fn libtorch_serves_matrix_products() {
    let this = libloading::os::unix::Library::this();
    // SAFETY: only the address of the symbol is looked at.
    let symbol = unsafe { this.get::<unsafe extern "C" fn()>(b"sgemm_") }.unwrap();
    let address = *symbol as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let owner = maps.lines().find(|line| {
        let (from, to) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let hex = |text| usize::from_str_radix(text, 16).unwrap();
        (hex(from)..hex(to)).contains(&address)
    });
    let owner = owner.unwrap();
    assert!(owner.contains("libtorch_cpu"), "sgemm_ is served by {owner}");
}

/// Wide products, which go through oneDNN on some processors, are those of float64 up to rounding, in whole passes and in the
/// stacks of a sweep.
#[test]
fn wide_float32_models_are_near_their_float64() {
    let config =
        ModelConfig { d_model: 256, n_heads: 4, n_kv_heads: 4, d_head: 64, d_mlp: 512, ..ModelConfig::default() };
    let folder = tempfile::tempdir().unwrap();
    Model::random(&config, 5).unwrap().save(folder.path()).unwrap();
    let (clean, corrupt) = (some_tokens(6, 16, config.vocab, 1), some_tokens(6, 16, config.vocab, 2));
    let [(single, patched), (truth, expected)] = [Kind::Float, Kind::Double].map(|kind| {
        let options = LoadOptions { kind, ..LoadOptions::default() };
        let model = Model::load_with(folder.path().to_str().unwrap(), &options).unwrap();
        let logits = model.run(&clean, &Plan::new()).unwrap().logits().unwrap().shallow_clone();
        let sweep = Sweep::patch(&model, &clean, &corrupt).metric(Metric::logit_difference(3, 5));
        (logits, Tensor::from_slice(&sweep.each(Site::ResidPre, Every::Position).run().unwrap().f64("value").unwrap()))
    });
    assert_close("logits", &single, &truth, Tol::of(&config, Kind::Float));
    assert_close_at("patched", &patched, &expected, scale(&truth), Tol::of(&config, Kind::Float));
}
