//! Neighbours: counted as loops count them, blind to order and common scale, flagged where they are too slow to arrive.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::samples::{ROUNDING, by, estimate, flags, near, normals};
use headscope::information::{
    Certainty, Estimator, KsgOptions, KsgVariant, Scaling, Truth, Warning, mutual_information,
};
use headscope::stats::shuffled;
use ndarray::{Array2, Axis, s};
use proptest::prelude::*;

/// An estimate that each doubling of the samples moves by a little less than the last one is far from its end, however little
/// the last one moved it.
#[test]
fn slow_growth_is_flagged() {
    let certainty = Certainty { halves: 8, ..Certainty::default() };
    let ask = |truth: Truth, n: usize| {
        let (x, y) = truth.sample(n, 0).unwrap();
        mutual_information(x.view(), y.view(), &by("ksg"), &certainty, 0).unwrap()
    };
    let slow = Truth::TwoPairs { n: 5, rho: 0.8 };
    let found = ask(slow, 20_000);
    assert!(found.nats() < slow.information().unwrap() - 0.2, "{found:?}");
    assert!(found.warnings.iter().any(|warning| matches!(warning, Warning::NotConverged { .. })), "{found:?}");
    for seed in 0..10 {
        for truth in [Truth::Normal { rho: 0.75 }, Truth::Asinh { rho: 0.75 }, Truth::Dense { n: 2, rho: 0.5 }] {
            let (x, y) = truth.sample(1000 + 500 * seed as usize, seed).unwrap();
            let found = mutual_information(x.view(), y.view(), &by("ksg"), &certainty, seed).unwrap();
            assert!(!flags(&found), "{truth}: {found:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(5), ..ProptestConfig::default() })]

    #[test]
    fn neighbours_ignore_order_and_common_scale(seed in 0u64..1000, scale in 0.01f64..100.0) {
        let (x, y) = Truth::Dense { n: 2, rho: 0.5 }.sample(300, seed).unwrap();
        for variant in [KsgVariant::One, KsgVariant::Two] {
            let plain = Estimator::Ksg(KsgOptions { variant, scaling: Scaling::None, ..KsgOptions::default() });
            let found = estimate(&x, &y, &plain);
            prop_assert!((found - estimate(&(&x * 1024.0), &(&y * 1024.0), &plain)).abs() < ROUNDING);
            prop_assert!((found - estimate(&y, &x, &plain)).abs() < ROUNDING);
            let order = shuffled(&(0..300).collect::<Vec<_>>(), seed);
            prop_assert!((found - estimate(&x.select(Axis(0), &order), &y.select(Axis(0), &order), &plain)).abs() < ROUNDING);
            let standard = Estimator::Ksg(KsgOptions { variant, ..KsgOptions::default() });
            prop_assert!((estimate(&x, &y, &standard) - estimate(&(&x * scale), &y, &standard)).abs() < ROUNDING);
        }
        let found = mutual_information(x.view(), y.view(), &by("ksg"), &Certainty::default(), seed).unwrap();
        let again = mutual_information(x.view(), y.view(), &by("ksg"), &Certainty::default(), seed).unwrap();
        prop_assert_eq!(found, again);
    }

    #[test]
    fn the_tree_counts_as_a_loop_does(seed in 0u64..1000, d in 1usize..5, k in 1usize..8, grid in prop::bool::ANY) {
        let n = 120;
        let mut all = normals(n, d + 1, seed);
        if grid {
            all.mapv_inplace(|value| (value * 2.0).round() / 2.0);
        }
        let (x, y) = (all.slice(s![.., ..d]).to_owned(), all.slice(s![.., d..]).to_owned());
        let options = KsgOptions { k, scaling: Scaling::None, ..KsgOptions::default() };
        let found = estimate(&x, &y, &Estimator::Ksg(options));
        prop_assert!((found - by_loops(&x, &y, k)).abs() < ROUNDING, "{} {}", found, by_loops(&x, &y, k));
    }
}

/// What makes trees err: several levels of them, sizes that leave blocks half filled, tails that single precision cannot hold
/// beside the middle, offsets that it cannot resolve, copies.
#[test]
fn large_trees_count_as_loops_do() {
    for (n, d, seed) in [(33, 1, 1), (257, 2, 2), (601, 3, 3), (1100, 2, 4)] {
        let plain = normals(n, 2 * d, seed);
        let tails = plain.mapv(|value| value.powi(9));
        let offset = plain.mapv(|value| 1e7 + value);
        let copied = plain.mapv(|value| (value * 3.0).round());
        for (what, all) in [("plain", plain), ("tails", tails), ("offset", offset), ("copied", copied)] {
            let (x, y) = (all.slice(s![.., ..d]).to_owned(), all.slice(s![.., d..]).to_owned());
            let options = |variant| KsgOptions { variant, scaling: Scaling::None, ..KsgOptions::default() };
            let found = estimate(&x, &y, &Estimator::Ksg(options(KsgVariant::One)));
            near(&format!("{what}, {n} in {d} dimensions"), found, by_loops(&x, &y, 5), ROUNDING);
            if what != "copied" {
                let found = estimate(&x, &y, &Estimator::Ksg(options(KsgVariant::Two)));
                near(&format!("KSG-2, {what}, {n} in {d} dimensions"), found, boxes_by_loops(&x, &y, 5), ROUNDING);
            }
        }
    }
}

/// The digamma function at 0 to n, where it is one, from its definition.
fn digammas(n: usize) -> Vec<f64> {
    (0..=n).map(|m| (1..m).map(|i| 1.0 / i as f64).sum::<f64>() - 0.577_215_664_901_532_9).collect()
}

/// KSG-2 without copies, from its definition.
fn boxes_by_loops(x: &Array2<f64>, y: &Array2<f64>, k: usize) -> f64 {
    let n = x.nrows();
    let psi = digammas(n);
    let term = |i: usize| {
        let mut others: Vec<usize> = (0..n).filter(|j| *j != i).collect();
        others.sort_by(|a, b| far(x, i, *a).max(far(y, i, *a)).total_cmp(&far(x, i, *b).max(far(y, i, *b))));
        let count = |a: &Array2<f64>| {
            let reach = others[..k].iter().map(|j| far(a, i, *j)).fold(0.0, f64::max);
            (0..n).filter(|j| *j != i && far(a, i, *j) <= reach).count()
        };
        psi[count(x)] + psi[count(y)]
    };
    psi[k] - 1.0 / k as f64 + psi[n] - (0..n).map(term).sum::<f64>() / n as f64
}

/// The distance of two rows in the maximum norm.
fn far(a: &Array2<f64>, i: usize, j: usize) -> f64 {
    a.row(i).iter().zip(a.row(j)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

/// KSG-1 with copies, from its definition.
fn by_loops(x: &Array2<f64>, y: &Array2<f64>, k: usize) -> f64 {
    let n = x.nrows();
    let psi = digammas(n);
    let term = |i: usize| {
        let joint = |j: usize| far(x, i, j).max(far(y, i, j));
        let mut others: Vec<f64> = (0..n).filter(|j| *j != i).map(joint).collect();
        others.sort_by(f64::total_cmp);
        let radius = others[k - 1];
        let within = |distance: f64| if radius == 0.0 { distance == 0.0 } else { distance < radius };
        let count = |a: &Array2<f64>| (0..n).filter(|j| within(far(a, i, *j))).count();
        let own = if radius == 0.0 { (0..n).filter(|j| joint(*j) == 0.0).count() } else { k };
        psi[own] - psi[count(x)] - psi[count(y)]
    };
    psi[n] + (0..n).map(term).sum::<f64>() / n as f64
}
