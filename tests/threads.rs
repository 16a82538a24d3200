//! Threads of one process: what they share, and what one leaves to the others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Tol, assert_close, some_tokens};
use headscope::intervene::{Ablation, Metric, Strategy, Sweep, Variant};
use headscope::model::{Action, Edit, Model, ModelConfig, Site, Tokens};
use headscope::table::{Keys, Table};
use tch::{Device, Kind, Tensor};

/// Every test of this file has libtorch's threads set to this number, so that they may run in one process.
const THREADS: i32 = 6;

fn start() {
    headscope::device::tune_process();
    tch::set_num_threads(THREADS);
}

fn model() -> Model {
    let config = ModelConfig { n_layers: 3, ..ModelConfig::default() };
    Model::random_as(&config, 5, Kind::Double, Device::Cpu).unwrap()
}

fn values(table: &Table) -> Vec<f64> {
    table.rows().unwrap().iter().map(|row| row.value).collect()
}

/// Variants that all read the same basis, the same run's mean and the same activations.
fn variants(model: &Model, n: u32) -> Vec<Variant> {
    let (layers, positions) = (model.config().n_layers, 7);
    (0..n)
        .map(|number| {
            let (layer, position) = (number as usize % layers, number as usize / layers % positions);
            let site = Site::ResidPre(layer);
            let keep = number % 2 == 0;
            let project = Edit::new(site, Action::Project { key: "basis".into(), keep }).position(position);
            let mean = Edit::new(Site::Z(layer), Action::mean("other")).head(number as usize % model.config().n_heads);
            let add = Edit::new(site, Action::Add { key: "other".into(), alpha: f64::from(number) * 1e-3 });
            Variant { keys: Keys { step: Some(number), ..Keys::default() }, edits: vec![project, mean, add] }
        })
        .collect()
}

/// One basis, one mean and one run serve hundreds of variants on many threads, again and again, and each finds what it finds
/// in the loop of one pass after another on one thread. Stacks are small, so that all threads begin with the bank at once.
#[test]
fn many_threads_share_one_basis() {
    start();
    let model = model();
    let (tokens, other) = (some_tokens(2, 7, 50, 1), some_tokens(2, 7, 50, 2));
    let sites = (0..model.config().n_layers).flat_map(|layer| [Site::ResidPre(layer), Site::Z(layer)]);
    let run = model.run(&other, &headscope::model::Plan::new().taps(sites)).unwrap();
    let basis = Tensor::arange(3 * model.config().d_model as i64, (Kind::Double, Device::Cpu)).sin().view([3, -1]);
    let sweep = |how| {
        let mut sweep = Sweep::ablate(&model, &tokens, Ablation::Mean).variants(variants(&model, 300));
        sweep = sweep.metric(Metric::Loss).strategy(how).with("other", &run);
        for layer in 0..model.config().n_layers {
            sweep = sweep.with_tensor("basis", Site::ResidPre(layer), &basis);
        }
        Tensor::from_slice(&values(&sweep.memory(300_000).per_prompt().run().unwrap()))
    };
    let one_by_one = sweep(Strategy::Naive);
    for _ in 0..5 {
        assert_close("300 variants", &sweep(Strategy::Auto), &one_by_one, Tol::Model(Kind::Double));
    }
}

/// Two sweeps that run at once in two threads of one process give bit for bit what each gives alone, and leave the number of
/// libtorch's threads as it was: theirs, this thread's, and that of threads started during or after them.
#[test]
fn two_sweeps_at_once_do_not_disturb_each_other() {
    start();
    let elsewhere = || std::thread::spawn(tch::get_num_threads).join().unwrap();
    let model = model();
    let sweep = |tokens: &Tokens, metric: Metric| {
        let sweep = Sweep::ablate(&model, tokens, Ablation::Zero).metric(metric);
        values(&sweep.memory(2_000_000).per_prompt().run().unwrap())
    };
    // A model is not `Sync`, so each thread loads its own.
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path()).unwrap();
    let options = headscope::checkpoint::LoadOptions { kind: Kind::Double, ..Default::default() };
    let jobs = [(some_tokens(4, 9, 50, 1), Metric::Loss), (some_tokens(6, 5, 50, 3), Metric::Kl)];
    let alone: Vec<Vec<f64>> = jobs.iter().map(|(tokens, metric)| sweep(tokens, metric.clone())).collect();
    assert_eq!((tch::get_num_threads(), elsewhere()), (THREADS, THREADS));
    for _ in 0..10 {
        std::thread::scope(|scope| {
            let threads: Vec<_> = jobs
                .iter()
                .zip(&alone)
                .map(|((tokens, metric), alone)| {
                    let (folder, options) = (folder.path().to_str().unwrap(), &options);
                    scope.spawn(move || {
                        let model = Model::load_with(folder, options).unwrap();
                        assert_eq!(tch::get_num_threads(), THREADS);
                        for _ in 0..3 {
                            let sweep = Sweep::ablate(&model, tokens, Ablation::Zero).metric(metric.clone());
                            let found = values(&sweep.memory(2_000_000).per_prompt().run().unwrap());
                            assert_eq!(&found, alone);
                            assert_eq!(tch::get_num_threads(), THREADS);
                        }
                    })
                })
                .collect();
            assert_eq!(elsewhere(), THREADS);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        });
        assert_eq!((tch::get_num_threads(), elsewhere()), (THREADS, THREADS));
    }
}

/// A sweep that fails, or whose metric panics, gives the number of threads back too.
#[test]
fn a_failing_sweep_leaves_the_threads_as_they_were() {
    start();
    let model = model();
    let tokens = some_tokens(4, 9, 50, 1);
    let fails = || Err(headscope::Error::Shape { at: "metric".into(), expected: "on purpose".into(), found: vec![] });
    for panics in [false, true] {
        let seen = AtomicUsize::new(0);
        let metric = Metric::custom("fails", move |logits| {
            // The unchanged run is read first.
            let unchanged = seen.fetch_add(1, Ordering::SeqCst) == 0;
            match (unchanged, panics) {
                (true, _) => Ok(logits.select(1, 0).select(1, 0)),
                (false, true) => panic!("on purpose"),
                (false, false) => fails(),
            }
        });
        let run = || Sweep::ablate(&model, &tokens, Ablation::Zero).metric(metric.clone()).run().is_err();
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or(true));
        assert_eq!(tch::get_num_threads(), THREADS);
        assert_eq!(std::thread::spawn(tch::get_num_threads).join().unwrap(), THREADS);
    }
}
