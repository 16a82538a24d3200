//! The numeric tests again, under every code path that the libraries below choose by the processor.
//!
//! What a processor computes depends on which kernels ATen, MKL and oneDNN pick for it. Variables make them pick those of
//! others, so that one machine stands for several. The libraries read them once, when they are loaded: hence each
//! combination is this very executable, started again for the tests in the modules below. They run here under no variable
//! at all, too, which is why their own targets are off by default (`cargo test --test fidelity` still runs that one).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::duplicate_mod)]

mod common;
#[path = "fidelity.rs"]
mod fidelity;
#[path = "interventions.rs"]
mod interventions;
#[path = "numerics.rs"]
mod numerics;

use std::process::Command;

/// What is set here is all that a child sees of these.
const CHOSEN: [&str; 8] = [
    "ATEN_CPU_CAPABILITY",
    "HEADSCOPE_ONEDNN",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "ONEDNN_MAX_CPU_ISA",
    common::THREADS,
];

/// Runs the modules' tests in a process of their own with some variables set; fails unless some ran and all passed.
fn under(variables: &[(&str, &str)], threads: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    for name in CHOSEN {
        child.env_remove(name);
    }
    child.envs(variables.iter().copied());
    child.env(common::CASES, "4");
    child.envs(["MKL_NUM_THREADS", "OMP_NUM_THREADS", common::THREADS].map(|name| (name, threads)));
    let modules = ["fidelity::", "interventions::", "numerics::"];
    let output = child.args(modules).arg("--test-threads=1").output().unwrap();
    let [told, error] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    let passed = told.lines().find_map(|line| line.strip_prefix("test result: ok. ")?.split_once(" passed"));
    let passed: usize = passed.map_or(0, |(count, _)| count.parse().unwrap());
    let ran = |module: &&str| told.lines().any(|line| line.starts_with(&format!("test {module}")));
    assert!(
        output.status.success() && passed > 0 && modules.iter().all(ran),
        "under {variables:?} and {threads} threads: {passed} tests passed, {}\n{told}\n{error}",
        output.status
    );
}

/// Neither MKL nor oneDNN nor ATen may use more than SSE 4: the oldest processors that libtorch runs on.
#[test]
fn without_wide_vectors() {
    let variables = [
        ("ATEN_CPU_CAPABILITY", "default"),
        ("MKL_ENABLE_INSTRUCTIONS", "SSE4_2"),
        ("ONEDNN_MAX_CPU_ISA", "SSE41"),
        ("HEADSCOPE_ONEDNN", "1"),
    ];
    under(&variables, "1");
}

/// As on processors without AVX-512, of Intel and AMD.
#[test]
fn with_avx2() {
    let avx2 = [("ATEN_CPU_CAPABILITY", "avx2"), ("MKL_ENABLE_INSTRUCTIONS", "AVX2"), ("ONEDNN_MAX_CPU_ISA", "AVX2")];
    under(&[&avx2[..], &[("HEADSCOPE_ONEDNN", "1")]].concat(), "2");
}

/// ATen's plainest kernels beside MKL's best.
#[test]
fn with_plain_kernels_beside_the_best_products() {
    under(&[("ATEN_CPU_CAPABILITY", "default"), ("HEADSCOPE_ONEDNN", "0")], "2");
}

/// Products whose order of summation is the same on all processors of a kind: yet another order.
#[test]
fn with_reproducible_products() {
    under(&[("MKL_CBWR", "COMPATIBLE"), ("HEADSCOPE_ONEDNN", "0")], "1");
    under(&[("MKL_CBWR", "AVX2,STRICT"), ("HEADSCOPE_ONEDNN", "0")], "1");
}

/// The best that this processor has, through oneDNN.
#[test]
fn with_onednn() {
    under(&[("HEADSCOPE_ONEDNN", "1")], "1");
    under(&[("HEADSCOPE_ONEDNN", "1")], "2");
}
