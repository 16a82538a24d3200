//! Estimators of information: invariants, known truths, scikit-learn's values.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::samples::{ROUNDING, by, estimate, labels, near, normals};
use common::{Tol, assert_near};
use headscope::information::{
    BinnedOptions, CcaOptions, Certainty, Estimator, GaussianOptions, KsgOptions, ProbeOptions, Redundancy, Scaling,
    Shrinkage, Truth, Warning, conditional_information, decomposition, discrete_information, entropy,
    gaussian_decomposition, gaussian_information, mutual_information, o_information, online_code, selectivity,
    total_correlation, v_information, v_information_of_labels,
};
use ndarray::{Array1, Array2, Array3, Axis, array, concatenate, s};
use proptest::prelude::*;
use serde_json::Value;

fn on(truth: Truth, n: usize, name: &str) -> f64 {
    let (x, y) = truth.sample(n, 1).unwrap();
    estimate(&x, &y, &by(name))
}

#[test]
fn truths_are_those_of_beyond_normal() {
    let known = [
        (Truth::Normal { rho: 0.75 }, 0.41334),
        (Truth::UniformNoise { noise: 0.1 }, 1.70944),
        (Truth::UniformNoise { noise: 0.75 }, 1.0 / 3.0),
        (Truth::Dense { n: 2, rho: 0.5 }, 0.29389),
        (Truth::Dense { n: 3, rho: 0.5 }, 0.41334),
        (Truth::Dense { n: 5, rho: 0.5 }, 0.59281),
        (Truth::Dense { n: 25, rho: 0.5 }, 1.29218),
        (Truth::Dense { n: 50, rho: 0.5 }, 1.62427),
        (Truth::TwoPairs { n: 5, rho: 0.8 }, 1.02165),
        (Truth::Student { n: 1, nu: 1 }, 0.22417),
        (Truth::Student { n: 2, nu: 1 }, 0.43195),
        (Truth::Student { n: 2, nu: 2 }, 0.19315),
        (Truth::Student { n: 3, nu: 2 }, 0.29092),
        (Truth::Student { n: 3, nu: 3 }, 0.17871),
        (Truth::Student { n: 5, nu: 2 }, 0.44815),
        (Truth::Student { n: 5, nu: 3 }, 0.29854),
    ];
    for (truth, nats) in known {
        near(&truth.to_string(), truth.information().unwrap(), nats, 6e-6);
    }
}

#[test]
fn nearest_neighbours_find_the_truth() {
    let rho = 0.75;
    for name in ["ksg", "ksg2", "gaussian", "cca", "binned"] {
        near(name, on(Truth::Normal { rho }, 10_000, name), 0.41334, 0.02);
    }
    for name in ["ksg", "ksg2"] {
        for truth in [Truth::NormalCdf { rho }, Truth::HalfCube { rho }, Truth::Asinh { rho }, Truth::SwissRoll { rho }]
        {
            near(&format!("{name}, {truth}"), on(truth, 10_000, name), 0.41334, 0.03);
        }
        near(name, on(Truth::UniformNoise { noise: 0.1 }, 10_000, name), 1.70944, 0.05);
        near(name, on(Truth::Dense { n: 3, rho: 0.5 }, 10_000, name), 0.41334, 0.04);
        near(name, on(Truth::Normal { rho: 0.0 }, 10_000, name), 0.0, 0.02);
    }
    // Heavy tails want ranks.
    let (x, y) = Truth::Student { n: 1, nu: 1 }.sample(10_000, 1).unwrap();
    let options = KsgOptions { scaling: Scaling::NormalScores, ..KsgOptions::default() };
    near("Student by ranks", estimate(&x, &y, &Estimator::Ksg(options)), 0.22417, 0.03);
}

#[test]
fn the_local_correction_sees_strong_dependence() {
    let x = normals(2000, 1, 3);
    let y = &x + &(normals(2000, 1, 4) * 1e-4);
    let truth = 0.5 * (1.0 + 1e8f64).ln();
    let (plain, corrected) = (estimate(&x, &y, &by("ksg2")), estimate(&x, &y, &by("lnc")));
    assert!((corrected - truth).abs() < 0.3 && truth - plain > 2.0, "{plain} {corrected} {truth}");
    near("nothing to correct", on(Truth::Normal { rho: 0.75 }, 5000, "lnc"), 0.41334, 0.05);
}

#[test]
fn gaussian_is_exact_and_unbiased() {
    for rho in [0.0, 0.3, -0.9] {
        let covariance = array![[1.0, rho], [rho, 1.0]];
        let found = gaussian_information(covariance.view(), &[0], &[1], &[]).unwrap();
        near("closed form", found, -0.5 * (1.0 - rho * rho).ln(), ROUNDING);
    }
    let truth = Truth::Dense { n: 5, rho: 0.5 };
    let estimates: Vec<f64> = (0..200)
        .map(|seed| {
            let (x, y) = truth.sample(60, seed).unwrap();
            estimate(&x, &y, &Estimator::Gaussian(GaussianOptions::default()))
        })
        .collect();
    // 200 estimates spread by about 0.15; without the correction they would be 0.26 too high.
    near("mean of 200", estimates.iter().sum::<f64>() / 200.0, truth.information().unwrap(), 0.045);
    let shrunk = Estimator::Gaussian(GaussianOptions { shrinkage: Shrinkage::Auto });
    let (x, y) = (normals(40, 30, 1), normals(40, 30, 2));
    assert!(estimate(&x, &y, &shrunk) < 1.0, "shrinkage tames 60 dimensions from 40 samples");
    assert!(mutual_information(x.view(), y.view(), &by("gaussian"), &Certainty::NONE, 0).is_err());
}

#[test]
fn conditioning_follows_a_chain() {
    let x = normals(4000, 1, 1);
    let z = &x * 0.8 + &(normals(4000, 1, 2) * 0.6);
    let y = &z * 0.8 + &(normals(4000, 1, 3) * 0.6);
    for (name, tolerance) in [("gaussian", 0.01), ("ksg", 0.03)] {
        let given = conditional_information(x.view(), y.view(), z.view(), &by(name), &Certainty::NONE, 0).unwrap();
        near(name, given.nats(), 0.0, tolerance);
        assert!(estimate(&x, &y, &by(name)) > 0.2);
    }
    // XOR: nothing alone, one bit given the other.
    let (a, b) = (labels(2000, 2, 5), labels(2000, 2, 6));
    let column = |values: Vec<f64>| Array2::from_shape_vec((2000, 1), values).unwrap();
    let c = column(a.iter().zip(&b).map(|(a, b)| (a ^ b) as f64).collect());
    let (a, b) = (column(a.iter().map(|v| *v as f64).collect()), column(b.iter().map(|v| *v as f64).collect()));
    for name in ["binned", "ksg"] {
        near(name, estimate(&a, &c, &by(name)), 0.0, 0.01);
        let given = conditional_information(a.view(), c.view(), b.view(), &by(name), &Certainty::NONE, 0).unwrap();
        near(name, given.nats(), 2f64.ln(), 0.01);
    }
    let refused = conditional_information(a.view(), c.view(), b.view(), &by("cca"), &Certainty::NONE, 0).unwrap_err();
    assert!(refused.to_string().contains("conditional"));
}

#[test]
fn many_variables() {
    let common = normals(3000, 1, 1);
    let parts: Vec<Array2<f64>> = (0..3).map(|i| &common + &normals(3000, 1, 10 + i)).collect();
    let views: Vec<_> = parts.iter().map(Array2::view).collect();
    // Unit correlations of 1/2 among three.
    let truth = -0.5 * 0.5f64.ln();
    for (name, tolerance) in [("gaussian", 0.03), ("ksg", 0.05)] {
        let total = total_correlation(&views, &by(name), &Certainty::NONE, 0).unwrap();
        near(name, total.nats(), truth, tolerance);
        let pair = total_correlation(&views[..2], &by(name), &Certainty::NONE, 0).unwrap();
        near(name, pair.nats(), estimate(&parts[0], &parts[1], &by(name)), ROUNDING);
        let more = o_information(&views, &by(name), &Certainty::NONE, 0).unwrap();
        assert!(more.nats() > 0.02, "{name}: copies repeat each other, {}", more.nats());
    }
    let apart = [normals(3000, 1, 20), normals(3000, 1, 21)];
    let both = &apart[0] + &apart[1] + &normals(3000, 1, 22) * 0.1;
    let synergy = [apart[0].view(), apart[1].view(), both.view()];
    assert!(o_information(&synergy, &by("gaussian"), &Certainty::NONE, 0).unwrap().nats() < -0.5);
    assert!(o_information(&synergy[..2], &by("gaussian"), &Certainty::NONE, 0).is_err());
    assert!(total_correlation(&synergy, &by("binned"), &Certainty::NONE, 0).is_err());
}

#[test]
fn scikit_learns_values() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/information.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let numbers = |value: &Value| value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<f64>>();
    let column = |value: &Value| Array1::from(numbers(value)).insert_axis(Axis(1));
    for case in golden["continuous"].as_array().unwrap() {
        let options = KsgOptions { k: case["k"].as_u64().unwrap() as usize, ..KsgOptions::default() };
        let found = estimate(&column(&case["x"]), &column(&case["y"]), &Estimator::Ksg(options));
        near("mutual_info_regression", found, case["nats"].as_f64().unwrap(), ROUNDING);
    }
    for case in golden["discrete"].as_array().unwrap() {
        let options = KsgOptions { k: case["k"].as_u64().unwrap() as usize, ..KsgOptions::default() };
        let found = estimate(&column(&case["x"]), &column(&case["y"]), &Estimator::Ross(options));
        near("mutual_info_classif", found, case["nats"].as_f64().unwrap(), ROUNDING);
    }
}

#[test]
fn ross_knows_mixtures() {
    // Two classes, normal at +-1: I = H(mixture) - H(normal), 0.3369 nats by quadrature.
    let y = labels(8000, 2, 1);
    let x = normals(8000, 1, 2) + Array1::from_iter(y.iter().map(|&y| 2.0 * y as f64 - 1.0)).insert_axis(Axis(1));
    let y = Array1::from_iter(y.iter().map(|&y| y as f64)).insert_axis(Axis(1));
    near("ross", estimate(&x, &y, &by("ross")), 0.3369, 0.02);
    near("a label of its own each", estimate(&y, &y, &by("ross")), 2f64.ln(), 0.01);
}

#[test]
fn copies_and_discrete_coordinates() {
    // Invariant 43 for continuous estimators, too: of a discrete variable with itself, its entropy.
    let y = Array1::from_iter(labels(1000, 4, 1).iter().map(|&y| y as f64)).insert_axis(Axis(1));
    let noisy = &y * 2.0 + 1.0;
    near("ksg of labels", estimate(&y, &noisy, &by("ksg")), 4f64.ln(), 0.02);
    near("ksg2 of labels", estimate(&y, &noisy, &by("ksg2")), 4f64.ln(), 0.02);
    let found = mutual_information(y.view(), noisy.view(), &by("ksg"), &Certainty::NONE, 0).unwrap();
    assert!(matches!(found.warnings[..], [Warning::Copies { share }] if share > 0.9), "{:?}", found.warnings);
    // Mixed: half of x says y, half is noise.
    let mixed = concatenate(Axis(1), &[y.view(), normals(1000, 1, 3).view()]).unwrap();
    near("mixed", estimate(&mixed, &noisy, &by("ksg")), 4f64.ln(), 0.12);
}

#[test]
fn partial_information() {
    let bit = 2f64.ln();
    let p = |holds: fn(usize, usize, usize) -> bool, weight: f64| {
        Array3::from_shape_fn((2, 2, 2), |(t, a, b)| if holds(t, a, b) { weight } else { 0.0 })
    };
    for measure in [Redundancy::Mmi, Redundancy::IMin, Redundancy::Broja] {
        let xor = decomposition(p(|t, a, b| t == a ^ b, 0.25).view(), measure).unwrap();
        near("XOR", xor.synergistic, bit, 1e-7);
        near("XOR", xor.redundant.abs() + xor.unique_1.abs() + xor.unique_2.abs(), 0.0, 1e-7);
        let copies = decomposition(p(|t, a, b| t == a && a == b, 0.5).view(), measure).unwrap();
        near("copies", copies.redundant, bit, 1e-7);
        let unique = decomposition(p(|t, a, _| t == a, 0.25).view(), measure).unwrap();
        near("unique", unique.unique_1, bit, 1e-7);
        near("unique", unique.redundant.abs() + unique.synergistic.abs(), 0.0, 1e-7);
    }
    // AND, in bits (Bertschinger et al. 2014): 0.311 redundant, nothing unique, 0.5 together.
    let and = decomposition(p(|t, a, b| t == a & b, 0.25).view(), Redundancy::Broja).unwrap();
    near("AND", and.redundant / bit, 0.311_278, 1e-4);
    near("AND", and.synergistic / bit, 0.5, 1e-4);
    // What separates BROJA from I_min: the target is both sources side by side.
    let both = Array3::from_shape_fn((4, 2, 2), |(t, a, b)| if t == 2 * a + b { 0.25 } else { 0.0 });
    near("two-bit copy", decomposition(both.view(), Redundancy::Broja).unwrap().redundant, 0.0, 1e-6);
    near("two-bit copy", decomposition(both.view(), Redundancy::IMin).unwrap().redundant, bit, ROUNDING);
    let covariance = array![[1.0, 0.6, 0.3], [0.6, 1.0, 0.2], [0.3, 0.2, 1.0]];
    let parts = gaussian_decomposition(covariance.view(), &[0], &[1], &[2]).unwrap();
    near("the weaker source", parts.unique_2, 0.0, ROUNDING);
    let both = gaussian_information(covariance.view(), &[0], &[1, 2], &[]).unwrap();
    near("sum", parts.total(), both, ROUNDING);
}

#[test]
fn probes() {
    let (n, options) = (6000, ProbeOptions::default());
    let x = normals(n, 3, 1);
    let y = (&x.slice(s![.., ..1]) * 0.8 + &(normals(n, 1, 2) * 0.6)).to_owned();
    let found = v_information(x.view(), y.view(), &options, 0).unwrap();
    near("-1/2 ln(1 - R^2)", found.nats(), -0.5 * 0.36f64.ln(), 0.04);
    assert!(found.interval.unwrap().contains(-0.5 * 0.36f64.ln()));
    let nothing = v_information(x.view(), normals(n, 1, 9).view(), &options, 0).unwrap();
    near("unrelated", nothing.nats(), 0.0, 0.005);
    // y determines nothing beyond the class: linear in x, so a probe gets nearly all of I = 0.3369.
    let labels = labels(n, 2, 3);
    let shift = Array1::from_iter(labels.iter().map(|&y| 2.0 * y as f64 - 1.0)).insert_axis(Axis(1));
    let x = normals(n, 1, 4) + &shift;
    let found = v_information_of_labels(x.view(), &labels, &options, 0).unwrap();
    near("classes at +-1", found.nats(), 0.3369, 0.02);
    let code = online_code(x.view(), &labels, &options, 0).unwrap();
    near("uniform", code.uniform, n as f64 * 2f64.ln(), ROUNDING);
    assert!(code.compression > 1.7 && code.compression < 2.1, "{code:?}");
    let unrelated = online_code(normals(n, 1, 5).view(), &labels, &options, 0).unwrap();
    near("nothing to compress", unrelated.compression, 1.0, 0.02);
    // One-hot words: a probe learns any labelling of them by heart, so it is not selective; a probe of x is.
    let words: Vec<usize> = (0..n).map(|i| i % 50).collect();
    let hot = Array2::from_shape_fn((n, 50), |(row, word)| f64::from(u8::from(words[row] == word)));
    let parity: Vec<usize> = words.iter().map(|word| word % 2).collect();
    let by_heart = selectivity(hot.view(), &parity, &words, &options, 0).unwrap();
    near("by heart", by_heart.selectivity, 0.0, 0.01);
    let parity_column = Array1::from_iter(parity.iter().map(|&p| p as f64)).insert_axis(Axis(1));
    let reads = selectivity((&parity_column + &(normals(n, 1, 6) * 0.1)).view(), &parity, &words, &options, 0).unwrap();
    assert!(reads.task > 0.99 && reads.selectivity > 0.3, "{reads:?}");
}

#[test]
fn a_uniform_coder_pays_ln_k_each() {
    let labels = labels(4000, 8, 1);
    let sure = ProbeOptions { ridge: 1e9, ..ProbeOptions::default() };
    let code = online_code(normals(4000, 4, 2).view(), &labels, &sure, 0).unwrap();
    near("uniform", code.uniform, 4000.0 * 8f64.ln(), ROUNDING);
    near("a probe that sees nothing", code.codelength / code.uniform, 1.0, 0.02);
}

#[test]
fn entropies() {
    near("uniform", entropy(&[0.25; 4]).unwrap(), 4f64.ln(), ROUNDING);
    assert_eq!(entropy(&[1.0, 0.0]).unwrap(), 0.0);
    assert!(entropy(&[0.5, 0.6]).is_err() && entropy(&[1.5, -0.5]).is_err() && entropy(&[f64::NAN]).is_err());
}

#[test]
fn intervals_cover_and_nulls_hold() {
    let truth = Truth::Normal { rho: 0.6 };
    let certainty = Certainty { permutations: 39, ..Certainty::default() };
    let (mut held, mut found_nothing) = (0, 0);
    for seed in 0..60 {
        let (x, y) = truth.sample(400, 100 + seed).unwrap();
        let found = mutual_information(x.view(), y.view(), &by("ksg"), &Certainty::default(), seed).unwrap();
        held += u32::from(found.interval.unwrap().contains(truth.information().unwrap()));
        let (a, b) = (normals(100, 1, 2 * seed), normals(100, 1, 2 * seed + 1));
        found_nothing +=
            u32::from(mutual_information(a.view(), b.view(), &by("ksg"), &certainty, seed).unwrap().p.unwrap() <= 0.05);
    }
    assert!(held >= 51, "{held} of 60 intervals at 95 % hold the truth");
    assert!(found_nothing <= 9, "{found_nothing} of 60 nulls at 5 % are rejected");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(5), ..ProptestConfig::default() })]

    #[test]
    fn gaussian_is_invariant_to_linear_maps(seed in 0u64..1000, n in 2usize..5) {
        let (x, y) = Truth::Dense { n, rho: 0.5 }.sample(200, seed).unwrap();
        let map = normals(n, n, seed + 1) + Array2::<f64>::eye(n) * 4.0;
        for estimator in [by("gaussian"), Estimator::Cca(CcaOptions { alpha: 1.0 })] {
            let (plain, mapped) = (estimate(&x, &y, &estimator), estimate(&x.dot(&map), &y, &estimator));
            assert_near("mapped", mapped, plain, Tol::Conditioned(1e3)); // the map's condition number, squared
        }
    }

    #[test]
    fn data_processing(first in -0.95f64..0.95, second in -0.95f64..0.95, noise in 0.0f64..2.0) {
        // X -> Y -> Z and Z with more noise.
        let both = first * second;
        let tail = (1.0 + noise * noise).sqrt();
        let covariance = array![
            [1.0, first, both, both / tail],
            [first, 1.0, second, second / tail],
            [both, second, 1.0, 1.0 / tail],
            [both / tail, second / tail, 1.0 / tail, 1.0],
        ];
        let between = |a: usize, b: usize| gaussian_information(covariance.view(), &[a], &[b], &[]).unwrap();
        prop_assert!((between(0, 2) + 0.5 * (1.0 - both * both).ln()).abs() < ROUNDING);
        prop_assert!(between(0, 2) <= between(0, 1) + ROUNDING && between(0, 2) <= between(1, 2) + ROUNDING);
        prop_assert!(between(0, 3) <= between(0, 2) + ROUNDING);
        if noise > 0.1 {
            let given = gaussian_information(covariance.view(), &[0], &[3], &[2]).unwrap();
            // Z and its noisy copy are correlated by 1 / tail, others by up to 0.95.
            assert_near("Z screens its noisy copy off", given, 0.0, Tol::Conditioned(10.0 * (1.0 + 1.0 / (noise * noise))));
        }
    }

    #[test]
    fn counts(seed in 0u64..1000, classes in 2usize..6) {
        let (x, noise) = (labels(300, classes, seed), labels(300, 2, seed + 1));
        let y: Vec<usize> = x.iter().zip(&noise).map(|(x, noise)| (x + noise) % classes).collect();
        let between = |a: &[usize], b: &[usize]| discrete_information(a, b, false).unwrap();
        let (own, other) = (between(&x, &x), between(&y, &y));
        let both = between(&x, &y);
        prop_assert!((both - between(&y, &x)).abs() < ROUNDING && both <= own.min(other) + ROUNDING && both >= -ROUNDING);
        let renamed: Vec<usize> = x.iter().map(|x| classes - 1 - x).collect();
        prop_assert!((both - between(&renamed, &y)).abs() < ROUNDING);
        let shares: Vec<f64> = (0..classes).map(|c| x.iter().filter(|x| **x == c).count() as f64 / 300.0).collect();
        prop_assert!((own - entropy(&shares).unwrap()).abs() < ROUNDING);
        // Through the front door, labels are taken as they are.
        let column = |labels: &[usize]| Array1::from_iter(labels.iter().map(|&l| l as f64)).insert_axis(Axis(1));
        let plain = Estimator::Binned(BinnedOptions { miller_madow: false, ..BinnedOptions::default() });
        prop_assert!((estimate(&column(&x), &column(&y), &plain) - both).abs() < ROUNDING);
    }

    #[test]
    fn atoms_sum_to_what_both_tell(weights in prop::collection::vec(0.01f64..1.0, 12)) {
        let all: f64 = weights.iter().sum();
        let p = Array3::from_shape_vec((2, 3, 2), weights.iter().map(|w| w / all).collect()).unwrap();
        for measure in [Redundancy::Mmi, Redundancy::IMin, Redundancy::Broja] {
            let parts = decomposition(p.view(), measure).unwrap();
            let mmi = decomposition(p.view(), Redundancy::Mmi).unwrap();
            prop_assert!((parts.total() - mmi.total()).abs() < ROUNDING);
            prop_assert!((parts.synergy_minus_redundancy() - mmi.synergy_minus_redundancy()).abs() < ROUNDING);
            for atom in [parts.redundant, parts.unique_1, parts.unique_2, parts.synergistic] {
                prop_assert!(atom > -1e-6, "{:?}", parts);
            }
        }
    }
}
