//! Local learning coefficients: the exact posterior of quadratics, the sampler with its bias, singular potentials, and heads.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use headscope::lab::language::{Language, Regime, Task, Tasks};
use headscope::lab::llc::{Heads, LlcOptions, sample};
use headscope::model::{Model, ModelConfig};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

const DOUBLE: (Kind, Device) = (Kind::Double, Device::Cpu);

fn streams(n: usize, seed: u64) -> Vec<ChaCha8Rng> {
    let stream = |chain: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(chain as u64);
        rng
    };
    (0..n).map(stream).collect()
}

/// Mean over chains, and its standard error.
fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (mean, (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt())
}

/// `1/2 sum h_i w_i^2` and its gradient.
fn quadratic(h: &[f64]) -> impl Fn(&Tensor) -> (Tensor, Tensor) {
    let h = Tensor::from_slice(h);
    move |w| ((w * w * &h).sum_dim_intlist([1i64].as_slice(), false, Kind::Double) / 2.0, w * &h)
}

/// Invariants 48 and 49: on a quadratic the draws have variance 1 / (p (1 - eps p / 4)) along each direction, so that the
/// estimate is 1/2 sum n beta h_i over that, which becomes the exact posterior's as eps goes to 0.
#[test]
fn on_a_quadratic_the_sampler_has_its_known_bias() {
    let h = [0.5, 2.0, 8.0];
    for (step, inverse_temperature, localisation) in [(0.1, 2.0, 1.0), (0.02, 5.0, 0.5)] {
        let options = LlcOptions { step, inverse_temperature, localisation, burn_in: 2000, draws: 4000 };
        let loss = quadratic(&h);
        let free = Tensor::from_slice(&[true; 3]);
        let start = Tensor::zeros([64, 3], DOUBLE);
        let found = sample(&start, &free, &options, &mut streams(64, 1), |w, _| Ok(loss(w))).unwrap();
        let expected: f64 = h
            .iter()
            .map(|h| {
                let p = inverse_temperature * h + localisation;
                0.5 * inverse_temperature * h / (p * (1.0 - step * p / 4.0))
            })
            .sum();
        let (mean, error) = mean(&found);
        // Six standard errors; without the bias the estimate would be further off.
        let unbiased: f64 =
            h.iter().map(|h| 0.5 * inverse_temperature * h / (inverse_temperature * h + localisation)).sum();
        assert!((mean - expected).abs() < 6.0 * error, "{mean} +- {error}, expected {expected}");
        assert!((expected - unbiased).abs() > 6.0 * error, "the test would not see the bias");
    }
}

/// Invariant 49: the stationary variance at eps = .1, p = 3 is .36036; from eps p = 4 on the draws diverge.
#[test]
fn the_stationary_variance_is_known_and_so_is_the_limit_of_stability() {
    // n beta h = 2 and gamma = 1. The estimate is half of n beta h times the variance.
    let run = |step: f64, draws: usize| {
        let options = LlcOptions { step, inverse_temperature: 2.0, localisation: 1.0, burn_in: 500, draws };
        let loss = quadratic(&[1.0]);
        let (start, free) = (Tensor::zeros([200, 1], DOUBLE), Tensor::from_slice(&[true]));
        sample(&start, &free, &options, &mut streams(200, 2), |w, _| Ok(loss(w))).unwrap()
    };
    let (variance, error) = mean(&run(0.1, 2000));
    assert!((variance - 0.36036).abs() < 6.0 * error && error < 0.002, "{variance} +- {error}");
    let stable = run(3.9 / 3.0, 2000);
    assert!(mean(&stable).0.is_finite() && mean(&stable).0 < 100.0, "{}", mean(&stable).0);
    let unstable = run(4.2 / 3.0, 20_000);
    assert!(unstable.iter().all(|value| value.is_nan()), "diverged chains are missing: {unstable:?}");
}

/// The expectation of n beta L under exp(-n beta w1^2k1 w2^2k2 - gamma / 2 |w|^2), by quadrature in both variables.
fn singular(k: [i32; 2], inverse_temperature: f64, localisation: f64) -> f64 {
    // w = e^x, so that the many scales of a singular potential are evenly covered; the potential is even in both.
    let (n, low, high) = (1200, -18.0, 3.0);
    let at = |i: usize| low + (high - low) * (i as f64 + 0.5) / n as f64;
    let (mut sum, mut all) = (0.0, 0.0);
    for i in 0..n {
        for j in 0..n {
            let (x, y) = (at(i), at(j));
            let energy = inverse_temperature * (2.0 * (f64::from(k[0]) * x + f64::from(k[1]) * y)).exp();
            let near = localisation / 2.0 * ((2.0 * x).exp() + (2.0 * y).exp());
            let weight = (x + y - energy - near).exp();
            sum += weight * energy;
            all += weight;
        }
    }
    sum / all
}

/// Invariant 50: for w1^2k1 w2^2k2 the learning coefficient is min 1 / (2 k_i). The quadrature shows it, and the sampler
/// agrees with the quadrature where both are easy.
#[test]
fn singular_potentials_have_their_learning_coefficients() {
    for (k, expected) in [([1, 2], 0.25), ([1, 3], 1.0 / 6.0), ([2, 3], 1.0 / 6.0)] {
        // The next power of n beta in the expansion is 1 / (2 k) of the other direction.
        let other = 0.5 / f64::from(k[0]) - expected;
        let (one, more) = (singular(k, 1e8, 1.0), singular(k, 1e10, 1.0));
        assert!((more - expected).abs() < (one - expected).abs(), "{k:?}: {one} {more} {expected}");
        assert!((more - expected).abs() < 10.0 * 1e10f64.powf(-other), "{k:?}: {more} {expected}");
    }
    let (k, inverse_temperature, localisation) = ([1, 2], 50.0, 1.0);
    let options = LlcOptions { step: 0.002, inverse_temperature, localisation, burn_in: 3000, draws: 6000 };
    let loss = |w: &Tensor| {
        let (a, b) = (w.select(1, 0), w.select(1, 1));
        let (b3, b4) = (b.pow_tensor_scalar(3), b.pow_tensor_scalar(4));
        let gradient = Tensor::stack(&[&a * &b4 * 2.0, a.square() * b3 * 4.0], 1);
        (a.square() * b4, gradient)
    };
    let (start, free) = (Tensor::zeros([400, 2], DOUBLE), Tensor::from_slice(&[true, true]));
    let found = sample(&start, &free, &options, &mut streams(400, 3), |w, _| Ok(loss(w))).unwrap();
    let ((mean, error), exact) = (mean(&found), singular(k, inverse_temperature, localisation));
    // Six standard errors, and the bias of the step size, of order eps p / 4 with curvatures p up to some tens.
    assert!((mean - exact).abs() < 6.0 * error + 0.02 * exact, "{mean} +- {error}, exact {exact}");
}

/// Masked numbers keep their bits, and do not matter.
#[test]
fn numbers_that_are_not_free_never_move() {
    let start = Tensor::from_slice(&[0.1, 0.2, 0.3, -0.4, 0.5, -0.6]).view([2, 3]);
    let free = Tensor::from_slice(&[false, true, false]);
    let options = LlcOptions { step: 0.05, inverse_temperature: 1.0, localisation: 1.0, burn_in: 0, draws: 50 };
    let mut moved = 0;
    let loss = quadratic(&[1.0, 1.0, 1e6]);
    let excess = |w: &Tensor, _: usize| {
        for column in [0, 2] {
            assert_eq!(w.select(1, column), start.select(1, column));
        }
        moved += i32::from(w.select(1, 1) != start.select(1, 1));
        Ok(loss(w))
    };
    sample(&start, &free, &options, &mut streams(2, 4), excess).unwrap();
    assert_eq!(moved, 49, "the first point is the start");
}

fn tasks() -> Language {
    Language::Tasks(Tasks {
        tasks: vec![Task::Back(1), Task::First],
        regime: Regime::Gated,
        symbols: 4,
        length: (2, 4),
    })
}

fn models(language: &Language, n: u64) -> Vec<Model> {
    let config = ModelConfig {
        family: "attention-only".into(),
        d_model: 8,
        n_heads: 2,
        n_kv_heads: 2,
        d_head: 4,
        d_mlp: 0,
        n_layers: 2,
        vocab: language.vocab(),
        n_positions: language.positions(),
        ..ModelConfig::default()
    };
    (0..n).map(|seed| Model::random(&config, seed).unwrap()).collect()
}

/// Several models at once are as each alone.
#[test]
fn heads_of_several_models_are_as_those_of_each() {
    let language = tasks();
    let models = models(&language, 3);
    let batches: Vec<Vec<_>> =
        (0..2).map(|number| (0..3).map(|seed| language.batch(8, seed, number).unwrap()).collect()).collect();
    let options = LlcOptions { step: 1e-3, inverse_temperature: 20.0, localisation: 5.0, burn_in: 2, draws: 6 };
    let all = Heads::new(&models, &language, &batches).unwrap().llc(1, 0, &options, &[10, 11, 12]).unwrap();
    for run in 0..3 {
        let own: Vec<Vec<_>> = batches.iter().map(|batch| vec![batch[run].clone()]).collect();
        let alone = Heads::new(&models[run..=run], &language, &own).unwrap();
        let found = alone.llc(1, 0, &options, &[10 + run as u64]).unwrap();
        // float32, through a few steps.
        assert!((found[0] - all[run]).abs() < 1e-3 * (1.0 + all[run].abs()), "{found:?} {all:?}");
    }
    let heads = Heads::new(&models, &language, &batches).unwrap();
    assert!(heads.llc(2, 0, &options, &[1, 2, 3]).is_err());
    assert!(heads.llc(0, 2, &options, &[1, 2, 3]).is_err());
    assert!(heads.llc(0, 0, &options, &[1, 2]).is_err());
    assert!(heads.llc(0, 0, &LlcOptions { step: 0.0, ..options }, &[1, 2, 3]).is_err());
    assert!(heads.llc(0, 0, &LlcOptions { draws: 0, ..options }, &[1, 2, 3]).is_err());
    assert!(Heads::new(&models, &language, &[]).is_err());
}
