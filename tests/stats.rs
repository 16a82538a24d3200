//! Intervals, tests and corrections: against scipy, on what can be counted by hand, and on simulated nulls.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::path::Path;

use common::Tol;
use common::samples::ROUNDING;
use headscope::stats::{
    BootstrapMethod, BootstrapOptions, PermutationOptions, Tail, Test, TrendMethod, TrendOptions, benjamini_hochberg,
    bootstrap, bootstrap_columns, bootstrap_mean, bootstrap_ratios, holm, jonckheere, max_adjusted, max_sign_flip,
    page, sign_flip, tost, tost_two_sample, two_sample,
};
use ndarray::{Array2, array};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde_json::Value;

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/statistics.json");
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    all[name].clone()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn matrix(value: &Value) -> Array2<f64> {
    let rows: Vec<Vec<f64>> = value.as_array().unwrap().iter().map(numbers).collect();
    Array2::from_shape_vec((rows.len(), rows[0].len()), rows.concat()).unwrap()
}

fn pair(value: &Value) -> (f64, f64) {
    let both = numbers(value);
    (both[0], both[1])
}

#[track_caller]
fn near(found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance * expected.abs().max(1e-3), "{found} where {expected} was expected");
}

/// Holds a test against scipy's p of each tail.
fn against_scipy(case: &Value, test: impl Fn(Tail) -> Test) {
    for (name, tail) in [("Greater", Tail::Greater), ("Less", Tail::Less), ("Both", Tail::Both)] {
        let found = test(tail);
        near(found.statistic, case["statistic"].as_f64().unwrap(), ROUNDING);
        near(found.p, case["p"][name].as_f64().unwrap(), ROUNDING);
    }
}

fn normals(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| StandardNormal.sample(&mut rng)).collect()
}

#[test]
fn permutation_tests_agree_with_scipy() {
    let options = |tail| PermutationOptions { tail, ..PermutationOptions::default() };
    for case in golden("sign_flip").as_array().unwrap() {
        against_scipy(case, |tail| sign_flip(&numbers(&case["x"]), &options(tail), 0).unwrap());
    }
    for case in golden("two_sample").as_array().unwrap() {
        let (x, y) = (numbers(&case["x"]), numbers(&case["y"]));
        against_scipy(case, |tail| two_sample(&x, &y, &options(tail), 0).unwrap());
    }
}

#[test]
fn trends_agree_with_scipy() {
    let options = |tail, method| TrendOptions { tail, method, ..TrendOptions::default() };
    for (name, method) in [("jonckheere_exact", TrendMethod::Exact), ("jonckheere_normal", TrendMethod::Normal)] {
        for case in golden(name).as_array().unwrap() {
            let groups: Vec<Vec<f64>> = case["groups"].as_array().unwrap().iter().map(numbers).collect();
            against_scipy(case, |tail| jonckheere(&groups, &options(tail, method), 0).unwrap());
        }
    }
    for (name, method) in [("page_exact", TrendMethod::Exact), ("page_normal", TrendMethod::Normal)] {
        for case in golden(name).as_array().unwrap() {
            let found = page(matrix(&case["values"]).view(), &options(Tail::Greater, method), 0).unwrap();
            near(found.statistic, case["statistic"].as_f64().unwrap(), ROUNDING);
            near(found.p, case["greater"].as_f64().unwrap(), ROUNDING);
        }
    }
}

#[test]
fn drawn_p_values_are_near_the_exact_ones() {
    let x: Vec<f64> = normals(12, 5).iter().map(|v| v + 0.3).collect();
    let exact = sign_flip(&x, &PermutationOptions::default(), 0).unwrap();
    let options = PermutationOptions { exact_up_to: 0, draws: 40_000, ..PermutationOptions::default() };
    let drawn = sign_flip(&x, &options, 0).unwrap();
    assert!(exact.exact && !drawn.exact && (exact.p - drawn.p).abs() < 0.01, "{} {}", exact.p, drawn.p);
    let two = two_sample(&x[..5], &x[5..], &PermutationOptions::default(), 0).unwrap();
    let drawn = two_sample(&x[..5], &x[5..], &options, 0).unwrap();
    assert!(two.exact && !drawn.exact && (two.p - drawn.p).abs() < 0.015, "{} {}", two.p, drawn.p);
    let x = normals(60, 6);
    let groups = [&x[..20], &x[20..40], &x[40..]];
    let by =
        |method| jonckheere(&groups, &TrendOptions { method, draws: 40_000, ..TrendOptions::default() }, 0).unwrap();
    let (exact, drawn, normal) = (by(TrendMethod::Exact), by(TrendMethod::Permutation), by(TrendMethod::Normal));
    assert!((exact.p - drawn.p).abs() < 0.015, "{} {}", exact.p, drawn.p);
    assert!((exact.p - normal.p).abs() < 0.02, "{} {}", exact.p, normal.p);
}

#[test]
fn equivalence_agrees_with_scipy() {
    for (name, two) in [("tost", false), ("welch", true)] {
        for case in golden(name).as_array().unwrap() {
            let (x, bounds) = (numbers(&case["x"]), pair(&case["bounds"]));
            let found = match two {
                true => tost_two_sample(&x, &numbers(&case["y"]), bounds, 0.05).unwrap(),
                false => tost(&x, bounds, 0.05).unwrap(),
            };
            let (low, high) = pair(&case["interval"]);
            near(found.p_low, case["p_low"].as_f64().unwrap(), ROUNDING);
            near(found.p_high, case["p_high"].as_f64().unwrap(), ROUNDING);
            near(found.interval.low, low, ROUNDING);
            near(found.interval.high, high, ROUNDING);
            assert_eq!(found.equivalent, bounds.0 < low && high < bounds.1, "the interval and the tests agree");
        }
    }
}

#[test]
fn equal_values_are_equivalent_to_what_they_are() {
    assert!(tost(&[0.0; 8], (-0.1, 0.1), 0.05).unwrap().equivalent);
    assert!(!tost(&[0.1; 8], (-0.1, 0.1), 0.05).unwrap().equivalent);
}

#[test]
fn corrections_agree_with_scipy_and_with_hand() {
    let case = golden("benjamini_hochberg");
    for (found, expected) in benjamini_hochberg(&numbers(&case["p"])).unwrap().iter().zip(numbers(&case["adjusted"])) {
        near(*found, expected, ROUNDING);
    }
    // R: p.adjust(c(0.01, 0.02, 0.03, 0.04, 0.05), "holm") is 0.05 0.08 0.09 0.09 0.09
    for (found, expected) in holm(&[0.01, 0.02, 0.03, 0.04, 0.05]).unwrap().iter().zip([0.05, 0.08, 0.09, 0.09, 0.09]) {
        near(*found, expected, ROUNDING);
    }
}

#[test]
fn bootstrap_agrees_with_scipy_within_its_own_noise() {
    for case in golden("bootstrap").as_array().unwrap() {
        let method = if case["method"] == "BCa" { BootstrapMethod::Bca } else { BootstrapMethod::Percentile };
        let options = BootstrapOptions { resamples: 100_000, method, ..BootstrapOptions::default() };
        let found = bootstrap_mean(&numbers(&case["x"]), &options, 0).unwrap();
        let (low, high) = pair(&case["interval"]);
        // A 2.5 % quantile of 100,000 resamples has a standard error of 0.8 % of the spread.
        let noise = 0.04 * case["spread"].as_f64().unwrap();
        assert!((found.low - low).abs() < noise && (found.high - high).abs() < noise, "{found:?} {low} {high}");
    }
}

#[test]
fn bootstrap_of_pairs_and_of_constants() {
    let pairs: Vec<(f64, f64)> =
        normals(60, 1).into_iter().zip(normals(60, 2)).map(|(x, e)| (x, x + 0.5 * e)).collect();
    let slope = |pairs: &[(f64, f64)]| {
        pairs.iter().map(|(x, y)| x * y).sum::<f64>() / pairs.iter().map(|(x, _)| x * x).sum::<f64>()
    };
    let interval = bootstrap(&pairs, slope, &BootstrapOptions::default(), 3).unwrap();
    assert!(interval.contains(1.0) && interval.high - interval.low < 0.5, "{interval:?}");
    let constant = bootstrap_mean(&[2.0; 8], &BootstrapOptions::default(), 0).unwrap();
    assert_eq!((constant.low, constant.high), (2.0, 2.0));
}

#[test]
fn columns_with_too_few_values_have_no_interval() {
    let (nan, options) = (f64::NAN, BootstrapOptions { resamples: 200, ..BootstrapOptions::default() });
    let values = array![[1.0, nan, nan, 5.0], [2.0, 3.0, nan, 5.0], [4.0, nan, nan, 5.0]];
    let found = bootstrap_columns(values.view(), &options, 0).unwrap();
    assert!(
        found[0]
            .is_some_and(|found| (found.estimate - 7.0 / 3.0).abs() < Tol::Number.bound() && found.low < found.high)
    );
    assert_eq!((found[1], found[2]), (None, None));
    assert!(found[3].is_some_and(|found| (found.low, found.high) == (5.0, 5.0)));
    assert!(bootstrap_columns(Array2::zeros((0, 3)).view(), &options, 0).unwrap().iter().all(Option::is_none));
    assert!(bootstrap_columns(Array2::zeros((5, 0)).view(), &options, 0).unwrap().is_empty());
}

#[test]
fn false_findings_come_at_the_level() {
    // 400 simulated nulls at 5 %: 20 are expected, standard deviation 4.4.
    let (mut flips, mut splits, mut trends, mut pages, mut missed) = (0, 0, 0, 0, 0);
    for seed in 0..400 {
        let x = normals(30, 1000 + seed);
        let drawn = PermutationOptions { draws: 400, exact_up_to: 300, ..PermutationOptions::default() };
        flips += u32::from(sign_flip(&x[..8], &drawn, seed).unwrap().p <= 0.05);
        splits += u32::from(two_sample(&x[..12], &x[12..], &drawn, seed).unwrap().p <= 0.05);
        let groups = [&x[..10], &x[10..20], &x[20..]];
        trends += u32::from(jonckheere(&groups, &TrendOptions::default(), seed).unwrap().p <= 0.05);
        let table = Array2::from_shape_vec((6, 5), x.clone()).unwrap();
        pages += u32::from(page(table.view(), &TrendOptions::default(), seed).unwrap().p <= 0.05);
        let options = BootstrapOptions { resamples: 400, ..BootstrapOptions::default() };
        missed += u32::from(!bootstrap_mean(&x, &options, seed).unwrap().contains(0.0));
    }
    for (name, count, most) in [
        ("sign flips", flips, 33),
        ("splits", splits, 33),
        ("trends", trends, 33),
        ("Page", pages, 33),
        ("BCa", missed, 40),
    ] {
        assert!((5..=most).contains(&count), "{name}: {count} of 400 at 5 %");
    }
}

#[test]
fn the_most_extreme_column_is_held_to_the_level() {
    let mut any = 0;
    for seed in 0..200 {
        let table = Array2::from_shape_vec((8, 20), normals(160, 5000 + seed)).unwrap();
        let found = max_sign_flip(table.view(), &PermutationOptions::default(), seed).unwrap();
        any += u32::from(found.exact && found.p.iter().any(|&p| p <= 0.05));
    }
    assert!((1..=20).contains(&any), "{any} of 200 tables at 5 %"); // 10 expected, standard deviation 3
    // A real column stands out whatever the others' scale.
    let mut table = Array2::from_shape_vec((16, 5), normals(80, 9)).unwrap();
    table.column_mut(2).mapv_inplace(|value| 1e-3 * (value + 4.0));
    table.column_mut(4).fill(0.0);
    let found = max_sign_flip(table.view(), &PermutationOptions::default(), 0).unwrap();
    assert!(found.p[2] < 0.001 && found.p[0] > 0.05 && found.p[4] == 1.0 && found.statistic[4] == 0.0, "{found:?}");
}

#[test]
fn one_column_alone_is_the_plain_test() {
    let x: Vec<f64> = normals(10, 3).iter().map(|value| value + 0.5).collect();
    let column = Array2::from_shape_vec((10, 1), x.clone()).unwrap();
    for tail in [Tail::Greater, Tail::Less, Tail::Both] {
        let options = PermutationOptions { tail, ..PermutationOptions::default() };
        let (one, max) = (sign_flip(&x, &options, 0).unwrap(), max_sign_flip(column.view(), &options, 0).unwrap());
        assert!((one.p - max.p[0]).abs() < Tol::Number.bound(), "{tail:?}: {} {}", one.p, max.p[0]);
    }
}

#[test]
fn the_largest_of_a_null_corrects() {
    let null = array![[0.1, 0.5], [0.4, 0.2], [0.3, 0.3]];
    assert_eq!(max_adjusted(&[0.45, 0.9], null.view()).unwrap(), [0.5, 0.25]);
    assert!(max_adjusted(&[0.45], null.view()).is_err());
}

#[test]
fn nonsense_is_refused() {
    let (options, trend) = (PermutationOptions::default(), TrendOptions::default());
    assert!(sign_flip(&[], &options, 0).is_err());
    assert!(sign_flip(&[1.0, f64::NAN], &options, 0).unwrap_err().to_string().contains("index 1"));
    assert!(two_sample(&[1.0], &[], &options, 0).is_err());
    assert!(sign_flip(&[1.0], &PermutationOptions { draws: 0, ..options.clone() }, 0).is_err());
    assert!(max_sign_flip(Array2::zeros((0, 3)).view(), &options, 0).is_err());
    assert!(jonckheere(&[vec![1.0]], &trend, 0).is_err());
    assert!(jonckheere(&[vec![1.0], vec![]], &trend, 0).is_err());
    assert!(jonckheere(&[vec![1.0], vec![1.0, 1.0]], &trend, 0).unwrap_err().to_string().contains("constant"));
    let exact = TrendOptions { method: TrendMethod::Exact, ..trend.clone() };
    assert!(jonckheere(&[vec![1.0], vec![1.0, 2.0]], &exact, 0).is_err());
    assert!(page(Array2::zeros((3, 2)).view(), &trend, 0).is_err());
    assert!(tost(&[1.0], (-0.1, 0.1), 0.05).is_err());
    assert!(tost(&[1.0, 2.0], (0.1, -0.1), 0.05).is_err());
    assert!(tost(&[1.0, 2.0], (-0.1, 0.1), 0.7).is_err());
    assert!(holm(&[0.5, 1.5]).is_err());
    assert!(benjamini_hochberg(&[]).is_err());
    assert!(bootstrap_mean(&[1.0], &BootstrapOptions::default(), 0).is_err());
    assert!(bootstrap_mean(&[1.0, 2.0], &BootstrapOptions { level: 1.0, ..BootstrapOptions::default() }, 0).is_err());
    assert!(bootstrap(&[1.0, 2.0], |_| f64::NAN, &BootstrapOptions::default(), 0).is_err());
    let usual = BootstrapOptions::default();
    // So close to 1 that the ends would be infinite.
    let level = 1.0 - f64::EPSILON / 2.0;
    assert!(bootstrap_mean(&[1.0, 2.0, 4.0], &BootstrapOptions { level, ..usual.clone() }, 0).is_err());
    for resamples in [0, 99, 1_000_001] {
        assert!(bootstrap_mean(&[1.0, 2.0], &BootstrapOptions { resamples, ..usual.clone() }, 0).is_err());
    }
    let (two, three) = (array![[1.0], [2.0]], array![[1.0], [2.0], [3.0]]);
    let ratios = |above: &Array2<f64>, below: &Array2<f64>| bootstrap_ratios(above.view(), below.view(), &usual, 0);
    assert!(ratios(&two, &three).unwrap_err().to_string().contains("[item 2, column 1]"));
    assert!(ratios(&array![[1.0], [f64::NAN]], &two).unwrap_err().to_string().contains("above"));
    assert!(ratios(&two, &array![[1.0], [-1.0]]).unwrap_err().to_string().contains("0 or more"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, rng_seed: RngSeed::Fixed(0), ..ProptestConfig::default() })]

    #[test]
    fn symmetries(x in prop::collection::vec(-5.0f64..5.0, 2..10), seed in 0u64..100, scale in 0.1f64..10.0) {
        let test = |values: &[f64], tail| sign_flip(values, &PermutationOptions { tail, ..PermutationOptions::default() }, seed).unwrap();
        let negated: Vec<f64> = x.iter().map(|value| -value * scale).collect();
        prop_assert!((test(&x, Tail::Greater).p - test(&negated, Tail::Less).p).abs() < Tol::Number.bound());
        prop_assert!((test(&x, Tail::Both).p - test(&negated, Tail::Both).p).abs() < Tol::Number.bound());
        let again = bootstrap_mean(&x, &BootstrapOptions { resamples: 200, ..BootstrapOptions::default() }, seed).unwrap();
        prop_assert_eq!(again, bootstrap_mean(&x, &BootstrapOptions { resamples: 200, ..BootstrapOptions::default() }, seed).unwrap());
        prop_assert!(again.low <= again.high);
    }

    /// Two ways to the same draws: column by column with any statistic, and all columns by one product.
    #[test]
    fn one_bootstrap(n in 12usize..40, columns in 1usize..4, gaps in 0.0f64..0.4, seed in 0u64..1000, bca: bool) {
        let method = if bca { BootstrapMethod::Bca } else { BootstrapMethod::Percentile };
        let options = BootstrapOptions { resamples: 300, method, ..BootstrapOptions::default() };
        let above = Array2::from_shape_vec((n, columns), normals(n * columns, seed)).unwrap();
        let weights = normals(n * columns, seed + 5000).into_iter().map(f64::abs);
        let weights = weights.map(|weight| if weight < gaps { 0.0 } else { weight });
        let below = Array2::from_shape_vec((n, columns), weights.collect()).unwrap();
        let together = bootstrap_ratios(above.view(), below.view(), &options, seed).unwrap();
        let means = bootstrap_columns(above.view(), &options, seed).unwrap();
        let ratio = |pairs: &[(f64, f64)]| {
            let (above, below) = pairs.iter().fold((0.0, 0.0), |sums, pair| (sums.0 + pair.0, sums.1 + pair.1));
            above / below
        };
        for column in 0..columns {
            let (above, below) = (above.column(column), below.column(column));
            let pairs: Vec<(f64, f64)> = above.iter().copied().zip(below.iter().copied()).collect();
            let alone = bootstrap(&pairs, ratio, &options, seed).unwrap();
            let mean = bootstrap_mean(&above.to_vec(), &options, seed).unwrap();
            for (together, alone) in [(together[column].unwrap(), alone), (means[column].unwrap(), mean)] {
                for (a, b) in [(together.low, alone.low), (together.high, alone.high), (together.estimate, alone.estimate)] {
                    prop_assert!((a - b).abs() <= 1e-9 * (1.0 + b.abs()), "{:?} {:?}", together, alone);
                }
            }
        }
    }

    #[test]
    fn corrections_keep_the_order_and_only_raise(p in prop::collection::vec(0.0f64..=1.0, 1..20)) {
        let (strict, loose) = (holm(&p).unwrap(), benjamini_hochberg(&p).unwrap());
        for i in 0..p.len() {
            prop_assert!(p[i] <= loose[i] + Tol::Number.bound() && loose[i] <= strict[i] + Tol::Number.bound() && strict[i] <= 1.0);
            for j in 0..p.len() {
                prop_assert!(p[i] > p[j] || (strict[i] <= strict[j] && loose[i] <= loose[j]));
            }
        }
    }

    #[test]
    fn a_reversed_trend_is_the_other_tail(values in prop::collection::vec(0i32..6, 9), seed in 0u64..100) {
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        prop_assume!(values.iter().any(|value| *value != values[0]));
        let (a, b, c) = (&values[..2], &values[2..5], &values[5..]);
        let by = |groups: &[&[f64]], tail| {
            let options = TrendOptions { tail, method: TrendMethod::Normal, ..TrendOptions::default() };
            jonckheere(groups, &options, seed).unwrap().p
        };
        prop_assert!((by(&[a, b, c], Tail::Greater) - by(&[c, b, a], Tail::Less)).abs() < Tol::Number.bound());
    }
}
