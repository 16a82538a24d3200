//! Trained lower bounds: below the truth, near it where it can be reached, flagged where not, and refusal of what has no answer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use headscope::information::{Estimate, Truth, Warning};
use headscope::neural::{Bound, NeuralOptions, neural_information, one_hot};
use ndarray::{Array2, s};

const BOUNDS: [Bound; 3] = [Bound::InfoNce, Bound::Nwj, Bound::Mine];

fn options(bound: Bound) -> NeuralOptions {
    NeuralOptions { bound, convergence: false, ..NeuralOptions::default() }
}

fn ask(x: &Array2<f64>, y: &Array2<f64>, options: &NeuralOptions) -> Estimate {
    neural_information(x.view(), y.view(), options, 0).unwrap()
}

#[test]
fn they_reach_the_truth_from_below() {
    for (truth, short) in [(Truth::Normal { rho: 0.75 }, 0.04), (Truth::Dense { n: 3, rho: 0.5 }, 0.08)] {
        let nats = truth.information().unwrap();
        let (x, y) = truth.sample(10_000, 3).unwrap();
        for bound in BOUNDS {
            let found = ask(&x, &y, &options(bound));
            let interval = found.interval.unwrap();
            let error = (interval.high - interval.low) / 2.0;
            assert!(found.nats() <= nats + error, "{truth} by {bound:?}: {found:?} above {nats}");
            assert!(found.nats() >= nats - short - error, "{truth} by {bound:?}: {found:?} far below {nats}");
            assert!(!found.warnings.iter().any(Warning::is_fatal), "{truth} by {bound:?}: {found:?}");
            assert_eq!((found.estimator, found.n), (bound.name(), 10_000));
        }
    }
}

#[test]
fn what_is_unrelated_shares_nothing() {
    let (x, _) = Truth::Normal { rho: 0.0 }.sample(2000, 1).unwrap();
    let (_, y) = Truth::Normal { rho: 0.0 }.sample(2000, 2).unwrap();
    for bound in BOUNDS {
        let found = ask(&x, &y, &options(bound));
        assert!(found.nats() < 0.02 && found.nats() > -0.05, "{bound:?}: {found:?}");
    }
    let found = ask(&x, &y, &NeuralOptions { permutations: 4, steps: 100, ..options(Bound::InfoNce) });
    assert!(found.p.unwrap() >= 0.2);
}

#[test]
fn contrast_is_bounded_by_ln_k_and_flagged_near_it() {
    // 6.9 nats from 1,000 samples, of which 200 are held out.
    let (x, noise) = Truth::Normal { rho: 0.0 }.sample(1000, 1).unwrap();
    let y = &x + &(noise * 1e-3);
    let found = ask(&x, &y, &options(Bound::InfoNce));
    assert!(found.nats() <= 200f64.ln(), "{found:?}");
    for bound in BOUNDS {
        let found = ask(&x, &y, &options(bound));
        let wall = found.warnings.iter().any(|warning| matches!(warning, Warning::Wall { .. }));
        assert!(wall || found.nats() < 3.0, "{bound:?}: {found:?}");
    }
}

#[test]
fn hopeless_cases_are_flagged() {
    let (x, y) = Truth::Dense { n: 50, rho: 0.5 }.sample(300, 0).unwrap();
    for bound in BOUNDS {
        let found = ask(&x, &y, &NeuralOptions { steps: 200, ..options(bound) });
        assert!(found.warnings.iter().any(Warning::is_fatal), "{bound:?}: {found:?}");
    }
}

/// Tails so heavy that a critic meets held-out samples far from all that it was trained on.
#[test]
fn what_fails_on_samples_held_out_is_flagged() {
    let (x, y) = Truth::Student { n: 2, nu: 1 }.sample(5000, 0).unwrap();
    for bound in [Bound::Nwj, Bound::Mine] {
        let found = ask(&x, &y, &NeuralOptions { steps: 1000, ..options(bound) });
        assert!(found.nats() < -1.0, "{bound:?}: {found:?}");
        assert!(found.warnings.contains(&Warning::BelowNothing), "{bound:?}: {found:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let (x, y) = Truth::Normal { rho: 0.75 }.sample(500, 1).unwrap();
    let options = NeuralOptions { steps: 200, convergence: true, ..options(Bound::Mine) };
    let found = ask(&x, &y, &options);
    assert_eq!(found, ask(&x, &y, &options));
    assert_eq!(found.convergence.len(), 2);
}

#[test]
fn nonsense_is_refused() {
    let (x, y) = Truth::Normal { rho: 0.5 }.sample(100, 0).unwrap();
    let ask = |x: &Array2<f64>, y: &Array2<f64>, options: &NeuralOptions| {
        neural_information(x.view(), y.view(), options, 0).map_err(|reason| reason.to_string())
    };
    let plain = options(Bound::InfoNce);
    let mut broken = x.clone();
    broken[[7, 0]] = f64::INFINITY;
    assert!(ask(&broken, &y, &plain).unwrap_err().contains("x: expected finite values"));
    assert!(ask(&x, &Array2::from_elem((100, 1), 2.0), &plain).unwrap_err().contains("constant"));
    assert!(ask(&x, &y.slice(s![..99, ..]).to_owned(), &plain).unwrap_err().contains("as many samples as x"));
    assert!(ask(&x, &x, &plain).unwrap_err().contains("column 0 of x again"));
    let few = |values: &Array2<f64>| values.slice(s![..40, ..]).to_owned();
    assert!(ask(&few(&x), &few(&y), &plain).unwrap_err().contains("50 samples or more"));
    for wrong in [
        NeuralOptions { hidden: 0, ..plain.clone() },
        NeuralOptions { batch: 1, ..plain.clone() },
        NeuralOptions { rate: 0.0, ..plain.clone() },
        NeuralOptions { level: 1.0, ..plain.clone() },
    ] {
        assert!(ask(&x, &y, &wrong).is_err(), "{wrong:?}");
    }
    assert!("infonse".parse::<Bound>().is_err() && one_hot(&[0, 3], 3).is_err());
    assert_eq!(one_hot(&[1, 0], 2).unwrap(), ndarray::array![[0.0, 1.0], [1.0, 0.0]]);
}
