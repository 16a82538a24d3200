//! libtorch and LAPACK live in one process and leave each other alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_close, random, some_tokens};
use headscope::model::{ModelConfig, Plan};
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
