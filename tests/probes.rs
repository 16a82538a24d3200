//! Probes, decompositions from samples, and patterns as channels: optima, what each family can see, nulls and flags.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::samples::{ROUNDING, near, normals};
use headscope::information::{
    BinnedOptions, Certainty, Estimator, ProbeFamily, ProbeOptions, Redundancy, Truth, Warning,
    decomposition_of_samples, gaussian_decomposition, mutual_information, online_code, pattern_entropy,
    pattern_transfer, selectivity, v_information, v_information_of_labels,
};
use headscope::stats::shuffled;
use ndarray::{Array1, Array2, Axis, array, concatenate, s};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const NETWORK: ProbeFamily = ProbeFamily::Network { hidden: 16 };

fn column(values: impl Iterator<Item = f64>) -> Array2<f64> {
    Array1::from_iter(values).insert_axis(Axis(1))
}

fn quick(family: ProbeFamily) -> ProbeOptions {
    ProbeOptions { family, convergence: false, ..ProbeOptions::default() }
}

/// Held-out nats of penalised logistic regression of two classes on one number, by Newton's method, from its definition:
/// of two softmax weights +w and -w with ridge r / 2 each, the one weight 2 w has ridge r / 4.
fn by_newton(x: &[f64], labels: &[usize], ridge: f64, folds: usize, seed: u64) -> f64 {
    let order = shuffled(&(0..x.len()).collect::<Vec<_>>(), seed);
    let mut gains = vec![];
    for fold in 0..folds {
        let of = |held_out: bool| {
            let some = order.iter().enumerate().filter(move |(at, _)| (at % folds == fold) == held_out);
            some.map(|(_, row)| *row).collect::<Vec<usize>>()
        };
        let (test, train) = (of(true), of(false));
        let n = train.len() as f64;
        let mean = train.iter().map(|&row| x[row]).sum::<f64>() / n;
        let spread = (train.iter().map(|&row| (x[row] - mean).powi(2)).sum::<f64>() / n).sqrt();
        let scaled = |row: usize| (x[row] - mean) / spread;
        let (mut slope, mut constant) = (0.0, 0.0);
        for _ in 0..50 {
            let (mut g, mut h) = ([ridge / 2.0 * slope, 0.0], [ridge / 2.0, 0.0, 0.0]);
            for &row in &train {
                let (z, y) = (scaled(row), labels[row] as f64);
                let p = 1.0 / (1.0 + (-(slope * z + constant)).exp());
                g[0] += (p - y) * z / n;
                g[1] += (p - y) / n;
                let w = p * (1.0 - p) / n;
                h[0] += w * z * z;
                h[1] += w * z;
                h[2] += w;
            }
            let det = h[0] * h[2] - h[1] * h[1];
            slope -= (h[2] * g[0] - h[1] * g[1]) / det;
            constant -= (h[0] * g[1] - h[1] * g[0]) / det;
        }
        let ones = train.iter().map(|&row| labels[row]).sum::<usize>() as f64;
        for &row in &test {
            let score = slope * scaled(row) + constant;
            let log_p = |score: f64| -(1.0 + (-score).exp()).ln();
            let share = if labels[row] == 1 { ones + 1.0 } else { n - ones + 1.0 };
            gains.push(log_p(if labels[row] == 1 { score } else { -score }) - (share / (n + 2.0)).ln());
        }
    }
    gains.iter().sum::<f64>() / gains.len() as f64
}

#[test]
fn softmax_regression_finds_the_optimum() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let labels: Vec<usize> = (0..300).map(|_| usize::from(rng.random_range(0..3) == 0)).collect();
    let x = normals(300, 1, 5) + column(labels.iter().map(|&label| 1.5 * label as f64));
    for ridge in [1e-6, 1e-3, 0.3] {
        let options = ProbeOptions { ridge, ..quick(ProbeFamily::Linear) };
        let found = v_information_of_labels(x.view(), &labels, &options, 7).unwrap().nats();
        near("Newton", found, by_newton(x.as_slice().unwrap(), &labels, ridge, 5, 7), 2e-6);
    }
}

#[test]
fn a_network_sees_what_a_line_cannot() {
    let x = normals(4000, 2, 1);
    let labels: Vec<usize> = x.rows().into_iter().map(|row| usize::from(row[0] * row[1] > 0.0)).collect();
    let ask = |family| v_information_of_labels(x.view(), &labels, &quick(family), 0).unwrap();
    let (linear, network) = (ask(ProbeFamily::Linear), ask(NETWORK));
    near("XOR of signs, linear", linear.nats(), 0.0, 0.005);
    assert!(network.nats() > 0.55, "{network:?}");
    assert_eq!((linear.estimator, network.estimator), ("vinfo", "vinfo-mlp"));
    // y = x^2 + noise: uncorrelated with x.
    let x = normals(4000, 1, 2);
    let y = x.mapv(|x| x * x) + normals(4000, 1, 3) * 0.5;
    let ask = |family| v_information(x.view(), y.view(), &quick(family), 0).unwrap().nats();
    near("a parabola, linear", ask(ProbeFamily::Linear), 0.0, 0.01);
    near("a parabola, network", ask(NETWORK), 0.5 * (1.0f64 + 2.0 / 0.25).ln(), 0.06);
    // Where a line is right, a network is no worse by more than it overfits.
    let y = &x * 0.8 + normals(4000, 1, 4) * 0.6;
    let linear = v_information(x.view(), y.view(), &quick(ProbeFamily::Linear), 0).unwrap().nats();
    let network = v_information(x.view(), y.view(), &quick(NETWORK), 0).unwrap().nats();
    near("a line", network, linear, 0.01);
}

#[test]
fn nulls_convergence_and_flags_of_probes() {
    let x = normals(400, 3, 1);
    let labels: Vec<usize> = x.column(0).iter().map(|x| usize::from(*x > 0.0)).collect();
    let options = ProbeOptions { permutations: 19, ..ProbeOptions::default() };
    let found = v_information_of_labels(x.view(), &labels, &options, 0).unwrap();
    assert_eq!(found.p, Some(0.05));
    assert_eq!(found.convergence.iter().map(|step| step.0).collect::<Vec<_>>(), [100, 200, 400]);
    let unrelated = v_information_of_labels(normals(400, 3, 2).view(), &labels, &options, 0).unwrap();
    assert!(unrelated.p.unwrap() > 0.05, "{unrelated:?}");
    // 50 dimensions and 300 samples: hopeless, and said so, by every probe.
    let (x, y) = Truth::Dense { n: 50, rho: 0.5 }.sample(300, 0).unwrap();
    let labels: Vec<usize> = y.column(0).iter().map(|y| usize::from(*y > 0.0)).collect();
    for family in [ProbeFamily::Linear, NETWORK] {
        let options = ProbeOptions { family, ..ProbeOptions::default() };
        let fatal = |warnings: &[Warning]| warnings.iter().any(Warning::is_fatal);
        assert!(fatal(&v_information(x.view(), y.view(), &options, 0).unwrap().warnings));
        assert!(fatal(&v_information_of_labels(x.view(), &labels, &options, 0).unwrap().warnings));
        assert!(fatal(&online_code(x.view(), &labels, &options, 0).unwrap().warnings));
        assert!(fatal(&selectivity(x.view(), &labels, &labels, &options, 0).unwrap().estimate.warnings));
    }
    assert!(ProbeOptions { family: ProbeFamily::Network { hidden: 0 }, ..options }.validate().is_err());
}

#[test]
fn codes_and_selectivity_carry_intervals() {
    let labels: Vec<usize> = (0..1000).map(|i| i % 2).collect();
    let x = normals(1000, 1, 3) + column(labels.iter().map(|&label| 2.0 * label as f64));
    for family in [ProbeFamily::Linear, NETWORK] {
        let code = online_code(x.view(), &labels, &quick(family), 0).unwrap();
        assert!(code.interval.contains(code.codelength) && code.interval.high < code.uniform, "{code:?}");
        assert_eq!((code.n, code.dimensions), (1000, vec![1, 2]));
        let types: Vec<usize> = (0..1000).map(|i| i / 4).collect();
        let found = selectivity(x.view(), &labels, &types, &quick(family), 0).unwrap();
        near("task - control", found.selectivity, found.task - found.control, ROUNDING);
        assert!(found.estimate.interval.unwrap().contains(found.selectivity) && found.selectivity > 0.25, "{found:?}");
    }
}

#[test]
fn decompositions_from_samples() {
    let (options, certainty) = (BinnedOptions::default(), Certainty::default());
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let bits = Array2::from_shape_simple_fn((2000, 2), || f64::from(u8::from(rng.random::<bool>())));
    let (a, b) = (bits.slice(s![.., ..1]).to_owned(), bits.slice(s![.., 1..]).to_owned());
    let xor = column(bits.rows().into_iter().map(|row| (row[0] - row[1]).abs()));
    for measure in [Redundancy::Broja, Redundancy::IMin] {
        let ask = |target: &Array2<f64>, second: &Array2<f64>| {
            decomposition_of_samples(target.view(), a.view(), second.view(), measure, &options, &certainty, 0).unwrap()
        };
        let parts = ask(&xor, &b);
        near("XOR", parts.synergistic.nats(), 2f64.ln(), 0.01);
        near("XOR", parts.redundant.nats(), 0.0, 0.01);
        let parts = ask(&a, &a);
        near("copies", parts.redundant.nats(), 2f64.ln(), 0.01);
        near("copies", parts.synergistic.nats(), 0.0, ROUNDING);
    }
    // Gaussian: the same as from the covariance, within the interval.
    let common = normals(4000, 1, 2);
    let sources = [&common + &normals(4000, 1, 3), &common + &normals(4000, 1, 4)];
    let target = &common + &(normals(4000, 1, 5) * 0.5);
    let ask = |rows: usize| {
        let some = |values: &Array2<f64>| values.slice(s![..rows, ..]).to_owned();
        let (target, first, second) = (some(&target), some(&sources[0]), some(&sources[1]));
        decomposition_of_samples(target.view(), first.view(), second.view(), Redundancy::Mmi, &options, &certainty, 0)
    };
    let parts = ask(4000).unwrap();
    let covariance = array![[1.25, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, 1.0, 2.0]];
    let truth = gaussian_decomposition(covariance.view(), &[0], &[1], &[2]).unwrap();
    near("redundant", parts.redundant.nats(), truth.redundant, 0.03);
    near("synergistic", parts.synergistic.nats(), truth.synergistic, 0.03);
    assert!(parts.redundant.interval.unwrap().contains(truth.redundant));
    assert!(ask(20).unwrap().redundant.warnings.iter().any(Warning::is_fatal));
    let wide = normals(100, 6, 1);
    let found = decomposition_of_samples(
        wide.view(),
        normals(100, 6, 2).view(),
        normals(100, 6, 3).view(),
        Redundancy::IMin,
        &options,
        &Certainty::NONE,
        0,
    );
    assert!(found.unwrap().synergistic.warnings.iter().any(|w| matches!(w, Warning::SparseCells { .. })));
}

#[test]
fn labels_share_no_more_than_they_have() {
    let labels = column((0..200).map(|i| f64::from(i % 2)));
    let x = normals(200, 1, 1);
    let found = mutual_information(x.view(), labels.view(), &"ross".parse::<Estimator>().unwrap(), &Certainty::NONE, 0);
    let found = found.unwrap();
    assert!(!found.warnings.iter().any(Warning::is_fatal), "{found:?}");
    assert!(matches!(found.below(-1.0).warnings.last(), Some(Warning::Entropy { .. })));
}

#[test]
fn patterns_as_channels() {
    let uniform = Array2::from_elem((4, 4), 0.25);
    assert_eq!(pattern_transfer(uniform.view()).unwrap(), 0.0);
    pattern_entropy(uniform.view()).unwrap().iter().for_each(|row| near("uniform", *row, 4f64.ln(), ROUNDING));
    // Half of the queries look at one key, half at another: one bit, whatever else.
    let two = array![[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]];
    near("two keys", pattern_transfer(two.view()).unwrap(), 2f64.ln(), ROUNDING);
    assert!(
        pattern_transfer(array![[0.5, 0.6]].view()).is_err() && pattern_entropy(Array2::zeros((0, 3)).view()).is_err()
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(5), ..ProptestConfig::default() })]

    #[test]
    fn probes_do_not_see_units_or_names(seed in 0u64..1000, scale in 0.01f64..100.0, classes in 2usize..5) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let labels: Vec<usize> = (0..200).map(|_| rng.random_range(0..classes)).collect();
        let x = concatenate(Axis(1), &[(normals(200, 1, seed) + column(labels.iter().map(|&l| l as f64))).view(), normals(200, 2, seed + 1).view()]).unwrap();
        let ask = |x: &Array2<f64>, labels: &[usize]| {
            v_information_of_labels(x.view(), labels, &quick(ProbeFamily::Linear), seed).unwrap().nats()
        };
        let found = ask(&x, &labels);
        prop_assert!((found - ask(&(&x * scale + 3.0), &labels)).abs() < 1e-6);
        let renamed: Vec<usize> = labels.iter().map(|label| classes - 1 - label).collect();
        prop_assert!((found - ask(&x, &renamed)).abs() < 1e-5);
        // A column that is there twice has its ridge halved, and nothing else happens.
        let twice = concatenate(Axis(1), &[x.view(), x.slice(s![.., ..1])]).unwrap();
        prop_assert!((found - ask(&twice, &labels)).abs() < 0.01);
        // Invariant 46: a constant predictor has 0; one that sees nothing has at most what it overfits.
        let blind = ProbeOptions { ridge: 1e9, ..quick(ProbeFamily::Linear) };
        let constant = v_information_of_labels(x.view(), &labels, &blind, seed).unwrap().nats();
        prop_assert!(constant.abs() < 3e-3, "{}", constant);
        let y = x.slice(s![.., ..1]).to_owned() + normals(200, 1, seed + 3);
        let constant = v_information(x.view(), y.view(), &blind, seed).unwrap().nats();
        prop_assert!(constant.abs() < 1e-6, "{}", constant);
        prop_assert!(ask(&normals(200, 3, seed + 2), &labels) < 0.03);
        prop_assert!(found < (classes as f64).ln());
    }

    #[test]
    fn patterns_transfer_what_the_mixture_adds(weights in prop::collection::vec(0.01f64..1.0, 12)) {
        let mut pattern = Array2::from_shape_vec((3, 4), weights).unwrap();
        pattern.rows_mut().into_iter().for_each(|mut row| { let all = row.sum(); row /= all; });
        let transfer = pattern_transfer(pattern.view()).unwrap();
        prop_assert!((0.0..=3f64.ln() + ROUNDING).contains(&transfer));
        // Each query twice changes nothing; keys renamed neither.
        let twice = concatenate(Axis(0), &[pattern.view(), pattern.view()]).unwrap();
        prop_assert!((transfer - pattern_transfer(twice.view()).unwrap()).abs() < ROUNDING);
        let renamed = pattern.select(Axis(1), &[3, 1, 0, 2]);
        prop_assert!((transfer - pattern_transfer(renamed.view()).unwrap()).abs() < ROUNDING);
    }
}
