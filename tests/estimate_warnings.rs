//! What estimators refuse, and what they flag: no answer is better than a wrong one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::samples::{by, flags, labels, near, normals};
use headscope::Error;
use headscope::information::{
    Certainty, Estimator, ProbeOptions, Redundancy, Truth, Warning, decomposition, discrete_information,
    mutual_information, total_correlation, v_information, v_information_of_labels,
};
use headscope::neural::{NeuralOptions, neural_information, neural_information_of_labels};
use ndarray::{Array1, Array2, Array3, Axis, concatenate, s};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

#[test]
fn what_is_hopeless_is_flagged() {
    let (x, y) = Truth::Dense { n: 50, rho: 0.5 }.sample(300, 0).unwrap();
    for name in Estimator::NAMES.into_iter().filter(|name| !["lnc", "ross"].contains(name)) {
        let found = mutual_information(x.view(), y.view(), &by(name), &Certainty::default(), 0).unwrap();
        assert!(flags(&found), "{name}: {found:?}");
    }
    let narrow = y.slice(s![.., ..1]);
    for name in ["ksg", "gaussian", "cca", "binned"] {
        assert!(flags(&mutual_information(x.view(), narrow, &by(name), &Certainty::default(), 0).unwrap()), "{name}");
    }
    let refused = mutual_information(x.view(), y.view(), &by("lnc"), &Certainty::default(), 0).unwrap_err();
    assert!(refused.to_string().contains("more than the 100 dimensions"), "{refused}");
    let labels = Array1::from_iter(labels(300, 2, 1).iter().map(|&y| y as f64)).insert_axis(Axis(1));
    assert!(flags(&mutual_information(x.view(), labels.view(), &by("ross"), &Certainty::default(), 0).unwrap()));
    // So strong a dependence that the samples cannot show how strong.
    let x = normals(500, 1, 1);
    let y = &x + &(normals(500, 1, 2) * 1e-5);
    let found = mutual_information(x.view(), y.view(), &by("ksg"), &Certainty::default(), 0).unwrap();
    assert!(found.warnings.iter().any(|w| matches!(w, Warning::Wall { .. })), "{found:?}");
}

#[test]
fn what_is_sound_is_not_flagged() {
    for (truth, name) in [
        (Truth::Normal { rho: 0.75 }, "ksg"),
        (Truth::Normal { rho: 0.75 }, "binned"),
        (Truth::Dense { n: 5, rho: 0.5 }, "gaussian"),
        (Truth::Dense { n: 2, rho: 0.5 }, "ksg"),
        (Truth::Dense { n: 2, rho: 0.5 }, "cca"),
    ] {
        let (x, y) = truth.sample(5000, 0).unwrap();
        let found = mutual_information(x.view(), y.view(), &by(name), &Certainty::default(), 0).unwrap();
        assert!(!flags(&found), "{truth} by {name}: {found:?}");
        assert_eq!(found.convergence.len(), 3);
    }
}

#[test]
fn nonsense_is_refused() {
    let (x, y) = Truth::Normal { rho: 0.5 }.sample(100, 0).unwrap();
    let ask = |x: &Array2<f64>, y: &Array2<f64>, name: &str| {
        mutual_information(x.view(), y.view(), &by(name), &Certainty::default(), 0).map_err(|reason| reason.to_string())
    };
    for name in Estimator::NAMES {
        let mut broken = x.clone();
        broken[[7, 0]] = f64::NAN;
        assert!(ask(&broken, &y, name).unwrap_err().contains("x: expected finite values, found NaN at index 7"));
        assert!(ask(&x, &Array2::from_elem((100, 1), 2.0), name).unwrap_err().contains("constant"));
        assert!(ask(&x, &y.slice(s![..99, ..]).to_owned(), name).unwrap_err().contains("as many samples as x"));
        assert!(ask(&x.slice(s![..5, ..]).to_owned(), &y.slice(s![..5, ..]).to_owned(), name).is_err());
        assert!(ask(&Array2::zeros((100, 0)), &y, name).is_err());
    }
    for name in ["gaussian", "ksg", "cca"] {
        assert!(ask(&x, &x, name).unwrap_err().contains("column 0 of x again as column 0 of y"));
    }
    for name in ["gaussian", "cca"] {
        assert!(ask(&x, &(&x * 2.0 + 1.0), name).is_err(), "{name}: determined");
        let twice = concatenate(Axis(1), &[x.view(), x.view()]).unwrap();
        assert!(ask(&twice, &y, name).unwrap_err().contains("linear combination"), "{name}: collinear");
    }
    for name in Estimator::NAMES {
        for scale in [1e300, 1e-310] {
            assert!(ask(&(&x * scale), &y, name).unwrap_err().contains("between 1e-100 and 1e100"), "{name}");
        }
    }
    let padded = concatenate(Axis(1), &[x.view(), Array2::zeros((100, 1)).view()]).unwrap();
    let found = ask(&padded, &y, "ksg").unwrap();
    assert_eq!(found.warnings, [Warning::Constant { variable: "x", columns: vec![1] }]);
    assert_eq!(found.dimensions, [1, 1]);
    assert!(matches!(by("ksg").with_k(0), Err(Error::Argument { name: "k", .. })));
    // Half of the samples need k neighbours, too.
    for (k, fits) in [(49, true), (50, false), (100, false), (usize::MAX, false)] {
        let all = by("ksg").with_k(k).unwrap();
        assert_eq!(mutual_information(x.view(), y.view(), &all, &Certainty::NONE, 0).is_ok(), fits, "{k} of 100");
    }
    for certainty in [
        Certainty { level: 1.0 - f64::EPSILON / 2.0, ..Certainty::default() },
        Certainty { permutations: usize::MAX, ..Certainty::default() },
    ] {
        assert!(mutual_information(x.view(), y.view(), &by("ksg"), &certainty, 0).is_err(), "{certainty:?}");
    }
    assert!(by("gaussian").with_k(3).is_err() && "kgs".parse::<Estimator>().is_err());
    assert!(decomposition(Array3::zeros((2, 2, 2)).view(), Redundancy::Broja).is_err());
    assert!(
        Truth::Normal { rho: 1.0 }.sample(10, 0).is_err() && Truth::TwoPairs { n: 1, rho: 0.5 }.information().is_err()
    );
    assert!(v_information_of_labels(x.view(), &[0; 100], &ProbeOptions::default(), 0).is_err());
    assert!(
        v_information(x.view(), (&x * 2.0).view(), &ProbeOptions { ridge: 0.0, ..ProbeOptions::default() }, 0).is_err()
    );
    assert!(discrete_information(&[0, 1], &[0], false).is_err());
}

/// The validation of benches/results/information.md in small: near the truth, or flagged.
#[test]
fn known_truths_are_met_or_flagged() {
    for truth in Truth::all() {
        let nats = truth.information().unwrap();
        let (x, y) = truth.sample(2000, 7).unwrap();
        let wide = truth.dimensions() > 5;
        let certainty = Certainty::default();
        for name in ["ksg", "ksg2"].into_iter().filter(|_| !wide) {
            let found = mutual_information(x.view(), y.view(), &by(name), &certainty, 0).unwrap();
            let off = (found.nats() - nats).abs();
            assert!(off < 0.06 + 0.05 * nats || flags(&found), "{truth} by {name}: {found:?} where {nats} is true");
        }
        // Gaussian variables in closed form, however many; what is not Gaussian it misses from below.
        let found = mutual_information(x.view(), y.view(), &by("gaussian"), &certainty, 0).unwrap();
        match truth {
            Truth::Normal { .. } | Truth::Dense { .. } | Truth::TwoPairs { .. } => {
                near("gaussian", found.nats(), nats, 0.12)
            }
            Truth::Student { .. } => {}
            _ => assert!(found.nats() < nats + 0.03, "{truth}: {found:?}"),
        }
        let found = v_information(x.view(), y.view(), &ProbeOptions::default(), 0).unwrap();
        if !matches!(truth, Truth::Student { .. }) {
            assert!(found.nats() < nats * truth.dimensions() as f64 + 0.05, "{truth}: {found:?}");
        }
    }
    // In 50 dimensions neighbours are flagged at any size that can be had.
    let (x, y) = Truth::Dense { n: 25, rho: 0.5 }.sample(1000, 7).unwrap();
    assert!(flags(&mutual_information(x.view(), y.view(), &by("ksg"), &Certainty::NONE, 0).unwrap()));
}

#[test]
fn repetitions_are_refused() {
    let (x, y) = Truth::Normal { rho: 0.5 }.sample(200, 0).unwrap();
    let again = |part: &Array2<f64>, times: usize| concatenate(Axis(0), &vec![part.view(); times]).unwrap();
    let ask = |x: &Array2<f64>, y: &Array2<f64>, name: &str| match name {
        "vinfo" => v_information(x.view(), y.view(), &ProbeOptions::default(), 0),
        "infonce" => {
            neural_information(x.view(), y.view(), &NeuralOptions { steps: 20, ..NeuralOptions::default() }, 0)
        }
        name => mutual_information(x.view(), y.view(), &by(name), &Certainty::NONE, 0),
    };
    for name in ["gaussian", "cca", "ksg", "ksg2", "lnc", "binned", "vinfo", "infonce"] {
        let refused = ask(&again(&x, 2), &again(&y, 2), name).unwrap_err().to_string();
        assert!(refused.contains("400, each 2.0 times: leave the repetitions out"), "{name}: {refused}");
    }
    let kind = Array1::from_iter(labels(200, 2, 1).iter().map(|&y| y as f64)).insert_axis(Axis(1));
    assert!(ask(&again(&x, 2), &again(&kind, 2), "ross").is_err());
    let total = [again(&x, 2), again(&y, 2)];
    assert!(
        total_correlation(&total.each_ref().map(|part| part.view()), &by("gaussian"), &Certainty::NONE, 0).is_err()
    );
    for name in ["gaussian", "cca", "ksg", "vinfo", "infonce"] {
        // Ten times as many; and a tenth of them again.
        for (times, some) in [(10, 0), (1, 20)] {
            let more = |part| concatenate(Axis(0), &[again(part, times).view(), part.slice(s![..some, ..])]).unwrap();
            let found = ask(&more(&x), &more(&y), name).unwrap();
            let said = found.warnings.iter().any(|w| matches!(w, Warning::Repeated { .. }));
            assert!(said && flags(&found), "{name}, {times} times: {found:?}");
        }
        // Discrete ones are not repetitions, be they few or many of each.
        for kinds in [5, 40] {
            let (x, y) = (labels(600, kinds, 1), labels(600, kinds, 2));
            let y: Vec<usize> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
            let column = |labels: &[usize]| Array1::from_iter(labels.iter().map(|&l| l as f64)).insert_axis(Axis(1));
            let found = ask(&column(&x), &column(&y), name).unwrap();
            assert!(!found.warnings.iter().any(|w| matches!(w, Warning::Repeated { .. })), "{name}: {found:?}");
        }
    }
}

/// A column of labels as numbers.
fn column(labels: &[usize]) -> Array2<f64> {
    Array1::from_iter(labels.iter().map(|&label| label as f64)).insert_axis(Axis(1))
}

#[test]
fn ties_are_flagged_where_distances_are_measured() {
    let tied = |x: &Array2<f64>, y: &Array2<f64>, name: &str| {
        let found = mutual_information(x.view(), y.view(), &by(name), &Certainty::NONE, 0).unwrap();
        let ties = found.warnings.iter().find(|warning| matches!(warning, Warning::Ties { .. })).cloned();
        assert_eq!(ties.is_some(), ties.is_some() && flags(&found), "fatal: {found:?}");
        ties
    };
    for seed in 0..4 {
        let x = normals(400, 1, seed);
        for kinds in [2, 5, 60] {
            let discrete = column(&labels(400, kinds, seed + 10));
            for name in ["ksg", "ksg2"] {
                let ties = tied(&x, &discrete, name);
                // Of sixty labels one may be there once.
                let expected = matches!(ties, Some(Warning::Ties { variable: "y", columns: 1, share }) if share > 0.95);
                assert!(expected, "{kinds} by {name}: {ties:?}");
                assert!(matches!(tied(&discrete, &x, name), Some(Warning::Ties { variable: "x", .. })));
            }
            assert_eq!(tied(&x, &discrete, "ross"), None);
            assert_eq!(tied(&x, &discrete, "binned"), None);
            // For labels as y, what matters is whether x is continuous.
            let rounded = x.mapv(|value| (4.0 * value).round());
            let both = concatenate(Axis(1), &[rounded.view(), normals(400, 1, seed + 20).view()]).unwrap();
            assert!(matches!(tied(&both, &discrete, "ross"), Some(Warning::Ties { variable: "x", columns: 1, .. })));
        }
        // Single precision and copies of whole samples are no ties; half precision may be.
        let y = &x + &normals(400, 1, seed + 30);
        assert_eq!(tied(&x.mapv(|value| f64::from(value as f32)), &y, "ksg"), None);
        let (a, b) = (column(&labels(400, 3, seed)), column(&labels(400, 2, seed + 1)));
        assert_eq!(tied(&a, &b, "ksg"), None, "counted as discrete");
    }
    // Sparse counts: few whole samples are copies, and most of each column are.
    let (a, b) = (column(&labels(300, 60, 1)), column(&labels(300, 60, 2)));
    assert!(matches!(tied(&a, &b, "ksg"), Some(Warning::Ties { share, .. }) if share > 0.8));
}

#[test]
fn labels_that_never_come_again_are_refused() {
    let (x, y) = Truth::Normal { rho: 0.5 }.sample(100, 0).unwrap();
    let own: Vec<usize> = (0..100).collect();
    let most: Vec<usize> = (0..100).map(|row| row % 60).collect();
    for labels in [&own, &most] {
        let (probe, critic) = (ProbeOptions::default(), NeuralOptions::default());
        let by_ross = mutual_information(x.view(), column(labels).view(), &by("ross"), &Certainty::NONE, 0);
        let by_probe = v_information_of_labels(x.view(), labels, &probe, 0);
        for refused in [by_ross, by_probe, neural_information_of_labels(x.view(), labels, &critic, 0)] {
            assert!(refused.unwrap_err().to_string().contains("continuous values are not labels"));
        }
    }
    assert!(mutual_information(x.view(), y.view(), &by("ross"), &Certainty::NONE, 0).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, rng_seed: RngSeed::Fixed(14), ..ProptestConfig::default() })]

    /// An interval has two finite ends around the estimate, or is missing and a warning says why.
    #[test]
    fn intervals_are_finite_or_explained(
        n in 8usize..80, k in 1usize..80, wide in 1usize..5, which in 0usize..7, seed in 0u64..1000, tied: bool
    ) {
        let name = Estimator::NAMES[which];
        let x = normals(n, wide, seed);
        let y = if tied || name == "ross" { column(&labels(n, 3, seed + 1)) } else { normals(n, wide, seed + 1) };
        let estimator = by(name);
        let estimator = estimator.clone().with_k(k).unwrap_or(estimator);
        let Ok(found) = mutual_information(x.view(), y.view(), &estimator, &Certainty::default(), seed) else {
            return Ok(());
        };
        let said = found.warnings.iter().any(|warning| matches!(warning, Warning::NoInterval { .. }));
        prop_assert!(found.nats().is_finite() && found.interval.is_none() == said, "{:?}", found);
        if let Some(interval) = found.interval {
            prop_assert!(interval.low.is_finite() && interval.high.is_finite() && interval.contains(found.nats()));
        }
        prop_assert!(found.convergence.iter().all(|(_, nats)| nats.is_finite()), "{:?}", found);
        let alone = mutual_information(x.view(), y.view(), &estimator, &Certainty::NONE, seed).unwrap();
        prop_assert!(alone.interval.is_none() && alone.nats() == found.nats());
    }
}

#[test]
fn probes_that_fail_on_tails_are_flagged() {
    let (x, y) = Truth::Student { n: 2, nu: 1 }.sample(1000, 0).unwrap();
    let found = v_information(x.view(), y.view(), &ProbeOptions::default(), 0).unwrap();
    assert!(found.warnings.iter().any(|w| matches!(w, Warning::HeavyTails { .. })), "{found:?}");
    // One sample that stands out where the label does not: the probe is sure, and wrong.
    let labels = labels(60, 2, 1);
    let mut x = Array2::from_shape_fn((60, 1), |(row, _)| labels[row] as f64 + (row as f64).sin() / 10.0);
    let odd = labels.iter().position(|label| *label == 1).unwrap();
    x[[odd, 0]] = -100.0;
    let sure = ProbeOptions { ridge: 0.0, ..ProbeOptions::default() };
    let found = v_information_of_labels(x.view(), &labels, &sure, 0).unwrap();
    assert!(found.nats() < -0.1 && found.warnings.contains(&Warning::BelowNothing), "{found:?}");
}
