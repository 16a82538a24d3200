//! Heads that are the same: the Hessian's blocks, what is left of them in the difference, the one-step identity; in float64.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_near};
use headscope::lab::Language;
use headscope::lab::language::{Regime, Repeats, Task, Tasks};
use headscope::lab::trace::{Parting, Probe, Twins, held_out};
use headscope::model::{ModelConfig, NormKind, Position, Rotary};
use proptest::prelude::*;
use tch::Kind;

const DOUBLE: Kind = Kind::Double;

fn language(number: usize) -> Language {
    let tasks = vec![Task::Back(1), Task::First, Task::Class, Task::Duplicate];
    let of = |regime| Language::Tasks(Tasks { tasks: tasks.clone(), regime, symbols: 4, length: (4, 6) });
    match number {
        0 => of(Regime::Gated),
        1 => of(Regime::Simultaneous),
        2 => of(Regime::Bag),
        _ => Language::Repeats(Repeats { symbols: 8, length: 14, period: (3, 5), offset: (0, 2) }),
    }
}

/// One layer of attention alone; with norms; two layers with MLPs behind; rotary positions.
fn config(number: usize, language: &Language) -> ModelConfig {
    let one = ModelConfig {
        d_mlp: 0,
        d_model: 12,
        d_head: 3,
        norm: NormKind::None,
        vocab: language.vocab(),
        n_positions: language.positions(),
        ..ModelConfig::default()
    };
    let rotary = Position::Rotary(Rotary { base: 100.0, ..Rotary::default() });
    match number {
        0 => one,
        1 => ModelConfig { norm: NormKind::Rms, ..one },
        2 => ModelConfig { norm: NormKind::Layer, n_layers: 2, d_mlp: 8, ..one },
        _ => ModelConfig { norm: NormKind::Layer, position: rotary, d_head: 4, ..one },
    }
}

/// Two models at once.
fn probe(architecture: usize, of: usize, seed: u64) -> Probe {
    let language = language(of);
    let config = config(architecture, &language);
    let models = [common::random(&config, seed), common::random(&config, seed + 1)];
    Probe::new(&models, &language, &held_out(&language, 40, &[seed, seed + 1]).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Invariant 22, whatever stands behind the heads and whichever loss is descended: A - B = sum l' grad^2 f, and
    /// B = J^T l'' J.
    #[test]
    fn competition_cancels_in_the_difference(
        architecture in 0usize..4,
        of in 0usize..4,
        seed in 0u64..1000,
        heads in prop::sample::select(vec![[0usize, 1], [1, 0], [0, 3], [2, 1]]),
        task in prop::option::of(0usize..2),
    ) {
        let probe = probe(architecture, of, seed);
        let found = probe.symmetry(Twins { layer: 0, heads, task }, 2, seed).unwrap();
        let tol = Tol::Model(DOUBLE);
        for run in 0..2 {
            assert_near("gradients", found.gradient_gap[run], 0.0, tol);
            for direction in 0..2 {
                let at = [run, direction];
                assert_near("A - B", found.apart_gap[at], 0.0, tol);
                assert_near("B", found.between_gap[at], 0.0, tol);
                assert_near("v A v", found.within[at], found.between[at] + found.residual[at], tol);
                assert_near("v B v", found.between[at], found.competition[at], tol);
                // The theorem would say nothing of matrices that are 0.
                prop_assert!(found.residual[at].abs() > 1e-9 && found.between[at].abs() > 1e-9, "{found:?}");
            }
        }
    }
}

/// Without a norm or anything else behind the heads the loss is convex in what they write: competition is never negative.
#[test]
fn heads_compete_where_the_rest_is_convex() {
    for seed in 0..5 {
        let found = probe(0, 0, seed).symmetry(Twins { layer: 0, heads: [0, 1], task: None }, 8, seed).unwrap();
        assert!(found.competition.iter().all(|value| *value > 0.0), "{found:?}");
    }
}

/// Invariant 22: what half the gradients' difference differs by falls by 100 a decade.
#[test]
fn one_step_tells_the_difference() {
    for (architecture, of) in [(0, 0), (1, 1), (2, 0), (3, 3)] {
        let probe = probe(architecture, of, 5);
        let twins = Twins { layer: 0, heads: [0, 2], task: None };
        let [coarse, fine] = [1e-1, 1e-2].map(|size| probe.antisymmetric_step(twins, size, 3).unwrap());
        for run in 0..2 {
            let ratio = coarse[run] / fine[run];
            assert!((90.0..110.0).contains(&ratio), "{architecture}: {} / {} = {ratio}", coarse[run], fine[run]);
        }
    }
}

#[test]
fn the_fastest_parting_is_the_least_curvature() {
    let probe = probe(1, 0, 2);
    let twins = Twins { layer: 0, heads: [0, 1], task: None };
    let quick = probe.parting(twins, 40, 0).unwrap();
    let whole = probe.parting(twins, 10_000, 1).unwrap();
    let along = probe.symmetry(twins, 30, 4).unwrap().residual;
    for run in 0..2 {
        assert_near("eigenvalue", quick.eigenvalue[run], whole.eigenvalue[run], Tol::Model(DOUBLE));
        assert!(along.row(run).iter().all(|value| *value > whole.eigenvalue[run]));
        assert!(whole.eigenvalue[run] < 0.0); // the trace of A - B over queries and keys is 0: something pulls apart
        assert_near("shares", quick.share.row(run).sum(), 1.0, Tol::Layer(DOUBLE));
    }
    assert_eq!(quick.share.ncols(), Parting::PARTS.len());
}

#[test]
fn what_makes_no_sense_is_refused() {
    let probe = probe(0, 0, 0);
    let twins = Twins { layer: 0, heads: [0, 1], task: None };
    assert!(probe.symmetry(Twins { layer: 1, ..twins }, 1, 0).is_err());
    assert!(probe.symmetry(Twins { heads: [0, 0], ..twins }, 1, 0).is_err());
    assert!(probe.symmetry(Twins { heads: [0, 4], ..twins }, 1, 0).is_err());
    assert!(probe.symmetry(Twins { task: Some(4), ..twins }, 1, 0).is_err());
    assert!(probe.antisymmetric_step(twins, 0.0, 0).is_err() && probe.antisymmetric_step(twins, f64::NAN, 0).is_err());
    assert!(probe.parting(twins, 0, 0).is_err());
    assert_eq!(probe.symmetry(twins, 0, 0).unwrap().within.dim(), (2, 0));
}
