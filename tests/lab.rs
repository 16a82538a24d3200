//! The lab: languages are what their annotation says, training resumes, what is frozen stays, bundled models do their task.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_close, assert_close_at};
use headscope::Error;
use headscope::lab::language::{Batch, Dependency, English, Regime, Repeats, Task, Tasks};
use headscope::lab::trace::Quantity;
use headscope::lab::train::{Decay, HeadOptions, Optimiser, TraceOptions};
use headscope::lab::{Declaration, Language, TrainOptions, Trainer};
use headscope::model::{Model, ModelConfig, Plan, Site};
use tch::Tensor;

/// Weights are of order one. A key bias is none, which the softmax cancels: training moves it by rounding alone.
const WEIGHTS: f64 = 1.0;

fn every_task(regime: Regime) -> Language {
    let tasks =
        vec![Task::Back(1), Task::Back(3), Task::First, Task::Class, Task::Duplicate, Task::Bracket, Task::Induction];
    Language::Tasks(Tasks { tasks, regime, ..Tasks::default() })
}

fn languages() -> Vec<Language> {
    let mut all = vec![Language::Repeats(Repeats::default()), Language::English(English::default())];
    all.extend([Regime::Gated, Regime::Simultaneous, Regime::Bag, Regime::Mixture(4)].map(every_task));
    all
}

fn small(language: &Language) -> ModelConfig {
    ModelConfig { d_mlp: 0, vocab: language.vocab(), n_positions: language.positions(), ..ModelConfig::default() }
}

fn short(steps: usize) -> TrainOptions {
    tch::set_num_threads(1);
    TrainOptions { steps, batch: 4, warmup: 0, record_every: 1, ..TrainOptions::default() }
}

#[test]
fn streams_are_seeded_and_sane() {
    for language in languages() {
        let batch = language.batch(50, 7, 3).unwrap();
        assert_eq!(batch.samples, language.batch(50, 7, 3).unwrap().samples);
        assert_ne!(batch.samples, language.batch(50, 8, 3).unwrap().samples);
        assert_ne!(batch.samples, language.batch(50, 7, 4).unwrap().samples);
        let names: Vec<String> = language.tasks().into_iter().map(|task| task.name).collect();
        for sample in &batch.samples {
            assert!(sample.tokens.len() <= language.positions());
            assert!(sample.tokens.iter().all(|id| (0..language.vocab() as i64).contains(id)));
            for target in &sample.targets {
                assert!(target.position < sample.tokens.len() && target.choices.contains(&target.token));
                assert!(target.choices.end <= language.vocab() as i64 && target.task < names.len());
            }
            for dependency in &sample.dependencies {
                assert!(dependency.source <= dependency.query && names.contains(&dependency.kind), "{dependency:?}");
            }
        }
    }
}

#[test]
fn repeated_symbols_stand_at_their_sources() {
    for sample in Language::Repeats(Repeats::default()).batch(100, 0, 0).unwrap().samples {
        assert!(!sample.dependencies.is_empty());
        for one in &sample.dependencies {
            assert_eq!(sample.tokens[one.query + 1], sample.tokens[one.source]);
            assert_eq!(sample.tokens[one.query], sample.tokens[one.source - 1]);
        }
    }
}

/// No loss is below its floor, and in a bag, whose answers coincide now and then, it is that of the shares themselves.
#[test]
fn floors_are_the_least_losses() {
    let four = vec![Task::Back(1), Task::First, Task::Class, Task::Duplicate];
    let bag = Language::Tasks(Tasks { tasks: four, regime: Regime::Bag, symbols: 8, length: (6, 10) });
    let samples = bag.batch(4000, 11, 0).unwrap().samples;
    for (task, info) in bag.tasks().iter().enumerate() {
        let least = samples.iter().map(|sample| {
            let share = |token: i64| sample.targets.iter().filter(|target| target.token == token).count() as f64 / 4.0;
            -sample.targets.iter().find(|target| target.task == task).map_or(f64::NAN, |own| share(own.token)).ln()
        });
        let least = least.sum::<f64>() / samples.len() as f64;
        assert!((info.floor - least).abs() < 0.03 && info.floor < 4f64.ln(), "{}: {} {least}", info.name, info.floor);
        assert!(info.floor < info.chance);
    }
}

/// The answer's symbol, or colour, is that of the source token; the answer is not to be had without reading it.
#[test]
fn answers_are_what_the_sources_say() {
    let symbols = 8;
    for regime in [Regime::Gated, Regime::Simultaneous, Regime::Bag, Regime::Mixture(4)] {
        for sample in every_task(regime).batch(200, 1, 0).unwrap().samples {
            assert_eq!(sample.targets.len(), sample.dependencies.len());
            for (target, one) in sample.targets.iter().zip(&sample.dependencies) {
                let (answer, source) = (target.token - target.choices.start, sample.tokens[one.source]);
                let (symbol, colour) = (source % symbols, source / symbols % (symbols + 1));
                let asked = sample.tokens[one.query] % symbols;
                assert_eq!(answer, if one.kind == "duplicate" { colour - 1 } else { symbol }, "{one:?}");
                match one.kind.as_str() {
                    "back_1" => assert_eq!(one.query - one.source, 1),
                    "back_3" => assert_eq!(one.query - one.source, 3),
                    "first" => assert_eq!(one.source, 0),
                    "class" => assert_eq!(colour, 0),
                    "duplicate" => assert_eq!(symbol, asked),
                    "bracket" => assert!(source >= symbols * (symbols + 1), "an opening token"),
                    _ => assert!(sample.tokens[..one.source].iter().any(|id| id % symbols == asked)),
                }
            }
        }
    }
}

#[test]
fn english_depends_on_what_it_says() {
    let language = Language::English(English::default());
    let (words, tasks) = (language.words().unwrap(), language.tasks());
    let word = |id: i64| words[id as usize].as_str();
    let mut seen = std::collections::BTreeSet::new();
    for sample in language.batch(200, 0, 0).unwrap().samples {
        for one in &sample.dependencies {
            let (said, source) = (word(sample.tokens[one.query + 1]), word(sample.tokens[one.source]));
            seen.insert(one.kind.clone());
            assert!(one.source < one.query, "{one:?}");
            match one.kind.as_str() {
                "entity" => assert_eq!(said, source),
                "agreement" => {
                    let one_of_many = source.ends_with('s') || source == "children";
                    assert_eq!(said.ends_with('s'), !one_of_many, "{source} {said}");
                }
                "coreference" => assert_eq!(said == "she", is_woman(source)),
                _ => assert_eq!(one.kind, "verb_object"),
            }
        }
        // Every next word among all words, and again among those that could stand there instead.
        let all = sample.targets.iter().filter(|target| target.choices == (0..words.len() as i64));
        assert!(all.map(|target| (target.position, target.task)).eq((0..47).map(|position| (position, 4))));
        for target in sample.targets.iter().filter(|target| target.task < 4) {
            let of = |one: &&Dependency| (one.query, one.kind.as_str()) == (target.position, &tasks[target.task].name);
            assert!(sample.dependencies.iter().any(|one| of(&one)));
            let choices: Vec<&str> = target.choices.clone().map(word).collect();
            match target.task {
                0 => assert_eq!(choices[0], format!("{}s", choices[1])),
                1 => assert_eq!((choices.len(), choices[0], choices[11]), (12, "Adler", "Moore")),
                2 => assert_eq!(choices, ["she", "he"]),
                _ => assert_eq!((choices.len(), choices[0], choices[15]), (16, "apple", "shirt")),
            }
        }
    }
    assert_eq!(seen.len(), 4);
}

/// In no role does one fixed distance find the source in more than six of ten cases: by a large sample, in stories of any
/// length that is used, for writers and for readers.
#[test]
fn no_role_of_english_is_a_fixed_distance() {
    for length in [32, 40, 48] {
        let language = Language::English(English { length });
        let stories = language.batch(4000, 17, 0).unwrap();
        for kind in English::KINDS {
            let best = stories.best_offset(kind).unwrap();
            assert!(best.share < 0.4, "{kind}, {length} words: {best:?}");
            assert!(stories.offsets(kind).len() > 5, "{kind}");
        }
        assert_eq!(stories.best_offset("position"), None);
    }
}

/// Neither the other person, nor the nearer noun, nor the order of the answers tells what only the source tells: chance is what
/// the tasks say.
#[test]
fn only_the_sources_of_english_tell() {
    let language = Language::English(English::default());
    let samples = language.batch(4000, 18, 0).unwrap().samples;
    for (task, info) in language.tasks().iter().enumerate().take(4) {
        let mut counts = std::collections::BTreeMap::new();
        let mut n = 0.0;
        for target in samples.iter().flat_map(|sample| &sample.targets).filter(|target| target.task == task) {
            *counts.entry(target.token - target.choices.start).or_insert(0.0) += 1.0;
            n += 1.0;
        }
        let entropy: f64 = counts.values().map(|count: &f64| -count / n * (count / n).ln()).sum();
        assert!((entropy - info.chance).abs() < 0.01, "{}: {entropy} {}", info.name, info.chance);
    }
}

fn is_woman(name: &str) -> bool {
    ["Anna", "Beth", "Clara", "Dora", "Emma", "Grace", "Helen", "Ida"].contains(&name)
}

#[test]
fn training_resumes_to_the_same_bits() {
    let language = Language::Repeats(Repeats::default());
    let folder = tempfile::tempdir().unwrap();
    let trainer = || Trainer::new(&small(&language), &language, &short(6)).unwrap();
    let whole = trainer().run().unwrap().remove(0).model;
    let mut first = trainer();
    first.train_to(3).unwrap();
    first.save(folder.path()).unwrap();
    let resumed = trainer().resume(folder.path()).unwrap();
    assert_eq!(resumed.step(), 3);
    let resumed = resumed.run().unwrap().remove(0).model;
    for ((name, a), (_, b)) in whole.parameters().iter().zip(resumed.parameters()) {
        assert_close(name, a, b, Tol::Exact);
    }
    let saved = folder.path().join("model");
    whole.save(&saved).unwrap();
    let loaded = Model::load(saved.to_str().unwrap()).unwrap();
    for ((name, a), (_, b)) in whole.parameters().iter().zip(loaded.parameters()) {
        assert_close(name, a, b, Tol::Exact);
    }
    assert_eq!(loaded.tokens(&["<bos> a b"]).unwrap().row(0), [0, 1, 2]);
}

/// Training goes on only as it was begun: whatever a step depends on is compared, and what differs is named with both values.
#[test]
fn training_resumes_only_as_it_was_begun() {
    let repeats = |symbols| Language::Repeats(Repeats { symbols, ..Repeats::default() });
    let (language, folder) = (repeats(20), tempfile::tempdir().unwrap());
    let (kind, cpu) = (tch::Kind::Float, tch::Device::Cpu);
    let trainer = |language: &Language, options: &TrainOptions, seeds: &[u64], kind| {
        Trainer::start(&small(language), language, options, seeds, kind, cpu).unwrap()
    };
    let mut begun = trainer(&language, &short(6), &[3, 4], kind);
    begun.train_to(3).unwrap();
    begun.save(folder.path()).unwrap();
    let refused = |trainer: Trainer, parts: &[&str]| {
        let error = trainer.resume(folder.path()).err().unwrap().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    };
    refused(trainer(&repeats(21), &short(6), &[3, 4], kind), &["language.repeats.symbols 20", "symbols 21"]);
    refused(trainer(&language, &short(6), &[3, 5], kind), &["seeds.1 4", "seeds.1 5"]);
    refused(trainer(&language, &short(6), &[3, 4], tch::Kind::Double), &["float on cpu", "double on cpu"]);
    let heads = HeadOptions { frozen: vec![(0, 1)], ..HeadOptions::default() };
    let sgd = Optimiser::Sgd { momentum: 0.5 };
    let trace = Some(TraceOptions { every: 3, ..TraceOptions::default() });
    for (options, parts) in [
        (TrainOptions { learning_rate: 0.01, ..short(6) }, ["train.learning_rate 0.003", "train.learning_rate 0.01"]),
        (short(7), ["train.steps 6", "train.steps 7"]),
        (TrainOptions { batch: 5, ..short(6) }, ["train.batch 4", "train.batch 5"]),
        (TrainOptions { weight_decay: 0.5, ..short(6) }, ["weight_decay 0.0", "weight_decay 0.5"]),
        (TrainOptions { warmup: 2, ..short(6) }, ["warmup 0", "warmup 2"]),
        (TrainOptions { decay: Decay::Linear, ..short(6) }, ["decay cosine", "decay linear"]),
        (TrainOptions { clip: None, ..short(6) }, ["clip 1.0", "clip absent"]),
        (TrainOptions { optimiser: sgd, ..short(6) }, ["optimiser adam_w", "optimiser {\"sgd\""]),
        (TrainOptions { heads, ..short(6) }, ["heads.frozen []", "heads.frozen [[0,1]]"]),
        (TrainOptions { record_every: 2, ..short(6) }, ["record_every 1", "record_every 2"]),
        (TrainOptions { trace, ..short(6) }, ["trace absent", "trace {"]),
    ] {
        refused(trainer(&language, &options, &[3, 4], kind), &parts);
    }
    // The options' own seed is none of the runs'.
    let other = TrainOptions { seed: 99, ..short(6) };
    assert_eq!(trainer(&language, &other, &[3, 4], kind).resume(folder.path()).unwrap().step(), 3);
}

/// The numbers that make a model's first weights are not those that make its first batch. A model drawn from the seed itself
/// reads the stream of batch 0: initial weights must have nothing to do with its weights, whatever the seed.
#[test]
fn initial_weights_and_batches_have_streams_of_their_own() {
    let language = Language::Repeats(Repeats::default());
    let config = small(&language);
    let mut correlations = vec![];
    for seed in 0..8 {
        let start = Trainer::with_seeds(&config, &language, &short(0), &[seed]).unwrap().snapshots().remove(0);
        let of_batch = Model::random(&config, seed).unwrap();
        for ((name, a), (_, b)) in start.parameters().into_iter().zip(of_batch.parameters()) {
            if name == "w_e" || name.ends_with("w_q") {
                let n = a.numel() as f64;
                let centred = |x: &Tensor| x.detach().to_kind(tch::Kind::Double).flatten(0, -1);
                let (a, b) = (centred(a), centred(b));
                let (a, b) = (&a - a.mean(None::<tch::Kind>), &b - b.mean(None::<tch::Kind>));
                let r = (a.dot(&b) / (a.norm() * b.norm())).double_value(&[]);
                // Five standard errors of the correlation of independent numbers.
                assert!(r.abs() < 5.0 / n.sqrt(), "seed {seed}, {name}: correlated by {r}");
                correlations.push(r);
            }
        }
    }
    assert_eq!(correlations.len(), 16);
}

/// A run that is killed, even between the two files of a save, and resumed leaves the table that it would have left.
#[test]
fn the_trace_of_a_resumed_run_is_that_of_a_whole_one() {
    let language = every_task(Regime::Gated);
    let trace = TraceOptions { every: 2, rows: 6, ..TraceOptions::default() };
    let options = TrainOptions { trace: Some(trace), ..short(7) };
    let trainer = || Trainer::with_seeds(&small(&language), &language, &options, &[3, 8]).unwrap();
    let whole = trainer().run().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut first = trainer();
    first.train_to(4).unwrap();
    first.save(folder.path()).unwrap();
    let state = std::fs::read(folder.path().join("training.safetensors")).unwrap();
    first.train_to(7).unwrap();
    first.save(folder.path()).unwrap();
    let ended = trainer().resume(folder.path()).unwrap().run().unwrap();
    std::fs::write(folder.path().join("training.safetensors"), state).unwrap();
    let resumed = trainer().resume(folder.path()).unwrap();
    assert_eq!(resumed.step(), 4);
    let resumed = resumed.run().unwrap();
    for ((whole, ended), resumed) in whole.iter().zip(&ended).zip(&resumed) {
        assert!(whole.trace.frame().equals_missing(ended.trace.frame()));
        assert!(whole.trace.frame().equals_missing(resumed.trace.frame()));
    }
    let table = &whole[0].trace;
    let columns = ["from_head", "layer", "site", "head", "task", "step", "seed", "metric", "value", "baseline"];
    assert_eq!(table.columns(), columns);
    let steps = |metric: &str| {
        let rows = table.rows().unwrap();
        let steps = rows.iter().filter(|row| row.metric == metric).map(|row| row.keys.step.unwrap());
        steps.collect::<std::collections::BTreeSet<u32>>().into_iter().collect::<Vec<u32>>()
    };
    for metric in
        ["held_out_loss", "role", "shapley", "gradient_norm", "gradient_share", "gradient_cosine", "interference"]
    {
        assert_eq!(steps(metric), [0, 2, 4, 6, 7], "{metric}");
    }
    for metric in ["jensen_shannon", "cka", "value_overlap", "effective_rank", "specialisation"] {
        assert_eq!(steps(metric), [0, 2, 4, 6, 7], "{metric}");
    }
    assert_eq!(steps("loss"), [0, 1, 2, 3, 4, 5, 6]);
}

/// Measuring changes nothing of what is measured.
#[test]
fn a_traced_run_trains_as_an_untraced_one() {
    let language = Language::Repeats(Repeats::default());
    let trace = TraceOptions { every: 2, rows: 3, quantities: vec![Quantity::Gradients, Quantity::Interference] };
    let run = |trace: Option<TraceOptions>| {
        let options = TrainOptions { trace, ..short(4) };
        Trainer::new(&small(&language), &language, &options).unwrap().run().unwrap().remove(0).model
    };
    let (traced, untraced) = (run(Some(trace)), run(None));
    for ((name, a), (_, b)) in traced.parameters().iter().zip(untraced.parameters()) {
        assert_close(name, a, b, Tol::Exact);
    }
}

#[test]
fn every_architecture_is_saved_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    for config in common::configs() {
        let model = common::random(&config, 3);
        model.save(folder.path()).unwrap();
        let options = headscope::checkpoint::LoadOptions { kind: tch::Kind::Double, ..Default::default() };
        let loaded = Model::load_with(folder.path().to_str().unwrap(), &options).unwrap();
        assert_eq!(loaded.config(), &config);
        let tokens = common::some_tokens(2, 7, config.vocab, 0);
        let (a, b) = (model.run(&tokens, &Plan::new()).unwrap(), loaded.run(&tokens, &Plan::new()).unwrap());
        assert_close(&config.family, a.logits().unwrap(), b.logits().unwrap(), Tol::Exact);
    }
}

#[test]
fn stacked_runs_are_as_single_ones() {
    let language = every_task(Regime::Simultaneous);
    for config in [small(&language), ModelConfig { d_mlp: 16, tied_unembed: true, n_layers: 2, ..small(&language) }] {
        let options = short(4);
        let (kind, device) = (tch::Kind::Double, tch::Device::Cpu);
        let stacked = Trainer::start(&config, &language, &options, &[5, 6, 7], kind, device).unwrap().run().unwrap();
        for (seed, stacked) in [5, 6, 7].into_iter().zip(stacked) {
            let single = Trainer::start(&config, &language, &options, &[seed], kind, device).unwrap();
            let single = single.run().unwrap().remove(0);
            for ((name, a), (_, b)) in stacked.model.parameters().iter().zip(single.model.parameters()) {
                assert_close_at(name, a, b, WEIGHTS, Tol::Model(kind));
            }
            assert_eq!(stacked.trace.len(), single.trace.len());
        }
    }
}

/// Many seeds train in groups, on several threads, and can be stopped.
#[test]
fn groups_of_runs_are_as_single_ones() {
    let language = every_task(Regime::Gated);
    let config = small(&language);
    let options = TrainOptions { batch: 64, ..short(4) };
    let seeds = [3, 1, 4, 15, 9];
    let (kind, device) = (tch::Kind::Double, tch::Device::Cpu);
    let start = || Trainer::start(&config, &language, &options, &seeds, kind, device).unwrap();
    let all = start().run().unwrap();
    tch::set_num_threads(2);
    let folder = tempfile::tempdir().unwrap();
    let mut stopped = start();
    stopped.train_to(2).unwrap();
    stopped.save(folder.path()).unwrap();
    let again = start().resume(folder.path()).unwrap().run().unwrap();
    tch::set_num_threads(1);
    for ((seed, grouped), again) in seeds.into_iter().zip(all).zip(again) {
        let single = Trainer::start(&config, &language, &options, &[seed], kind, device).unwrap();
        let single = single.run().unwrap().remove(0);
        let models = [&grouped.model, &single.model, &again.model].map(Model::parameters);
        for (((name, a), (_, b)), (_, c)) in models[0].iter().zip(&models[1]).zip(&models[2]) {
            assert_close_at(name, a, b, WEIGHTS, Tol::Model(kind));
            assert_close(name, a, c, Tol::Exact);
        }
        assert_eq!(grouped.trace.len(), single.trace.len());
    }
    assert!(start().resume(tempfile::tempdir().unwrap().path()).is_err());
}

/// The step size, the clipping, the weight decay and the rule of every optimiser, as their papers write them.
#[test]
fn optimisers_are_those_of_the_papers() {
    let language = every_task(Regime::Gated);
    let config = ModelConfig { d_mlp: 8, ..small(&language) };
    let (kind, device) = (tch::Kind::Double, tch::Device::Cpu);
    for (optimiser, decay) in [
        (Optimiser::Adam, Decay::Cosine),
        (Optimiser::AdamW, Decay::Linear),
        (Optimiser::Sgd { momentum: 0.9 }, Decay::None),
        (Optimiser::AdamW, Decay::Late(0.5)),
    ] {
        let options = TrainOptions {
            optimiser,
            decay,
            weight_decay: 0.1,
            clip: Some(0.5),
            warmup: 2,
            learning_rate: 0.05,
            ..short(5)
        };
        let start = TrainOptions { steps: 0, ..options.clone() };
        let run =
            |options: &TrainOptions| Trainer::start(&config, &language, options, &[2], kind, device).unwrap().run();
        let model = run(&start).unwrap().remove(0).model;
        let mut moments: Vec<[Tensor; 2]> =
            model.parameters().iter().map(|(_, p)| [p.zeros_like(), p.zeros_like()]).collect();
        for step in 0..5u32 {
            let all: Vec<Tensor> = model.parameters().iter().map(|(_, p)| p.set_requires_grad(true)).collect();
            let batch = language.batch(4, 2, u64::from(step)).unwrap();
            let gradients = Tensor::run_backward(&[loss(&model, &batch)], &all, false, false);
            let norm = gradients.iter().map(|g| g.square().sum(kind).double_value(&[])).sum::<f64>().sqrt();
            assert!(norm > 0.5, "nothing to clip: {norm}");
            let done = f64::from(step.saturating_sub(2)) / 3.0;
            let rate = 0.05
                * match decay {
                    _ if step < 2 => f64::from(step + 1) / 2.0,
                    Decay::None => 1.0,
                    Decay::Linear => 1.0 - done,
                    Decay::Cosine => (1.0 + (std::f64::consts::PI * done).cos()) / 2.0,
                    Decay::Late(_) => {
                        let left = f64::from(5 - step).min(2.5) / 2.5;
                        0.5 * (1.0 - (std::f64::consts::PI * left).cos())
                    }
                };
            for ((leaf, gradient), [first, second]) in all.iter().zip(gradients).zip(&mut moments) {
                let p = leaf.set_requires_grad(false);
                let pull = if p.dim() > 1 { &p * 0.1 } else { p.zeros_like() };
                let (g, t) = (gradient * (0.5 / norm), f64::from(step + 1));
                let g = if optimiser == Optimiser::AdamW { g } else { g + &pull };
                let change = match optimiser {
                    Optimiser::Sgd { momentum } => {
                        *first = &*first * momentum + g;
                        first.shallow_clone()
                    }
                    _ => {
                        *first = &*first * 0.9 + &g * 0.1;
                        *second = &*second * 0.999 + g.square() * 0.001;
                        let (m, v) = (&*first / (1.0 - 0.9f64.powf(t)), &*second / (1.0 - 0.999f64.powf(t)));
                        let m = m / (v.sqrt() + 1e-8);
                        if optimiser == Optimiser::AdamW { m + pull } else { m }
                    }
                };
                p.shallow_clone().copy_(&(&p - change * rate));
            }
        }
        let trained = run(&options).unwrap().remove(0).model;
        for ((name, a), (_, b)) in trained.parameters().iter().zip(model.parameters()) {
            assert_close_at(&format!("{optimiser:?}: {name}"), a, b, WEIGHTS, Tol::Model(kind));
        }
    }
}

/// The mean over all predictions of a batch.
fn loss(model: &Model, batch: &Batch) -> Tensor {
    let run = model.run(&batch.tokens, &Plan::new().tap(Site::Logits).differentiable()).unwrap();
    let mut terms = vec![];
    for (row, sample) in batch.samples.iter().enumerate() {
        for target in &sample.targets {
            let among = run.logits().unwrap().get(row as i64).get(target.position as i64);
            let among = among.narrow(0, target.choices.start, target.choices.end - target.choices.start);
            terms.push(-among.log_softmax(-1, None::<tch::Kind>).get(target.token - target.choices.start));
        }
    }
    Tensor::stack(&terms, 0).mean(None::<tch::Kind>)
}

/// Invariant 20: identical heads, output matrices included, get identical gradients and stay identical for ever.
#[test]
fn identical_heads_stay_identical() {
    let language = every_task(Regime::Gated);
    for optimiser in [Optimiser::Adam, Optimiser::AdamW, Optimiser::Sgd { momentum: 0.9 }] {
        let heads = HeadOptions { identical: true, ..HeadOptions::default() };
        let options = TrainOptions { optimiser, heads, weight_decay: 1e-2, ..short(5) };
        let (kind, device) = (tch::Kind::Double, tch::Device::Cpu);
        let trainer = Trainer::start(&small(&language), &language, &options, &[0], kind, device).unwrap();
        let model = trainer.run().unwrap().remove(0).model;
        for (name, w) in [("q", model.w_q(0)), ("k", model.w_k(0)), ("v", model.w_v(0)), ("o", model.w_o(0))] {
            let w = w.unwrap();
            for head in 1..w.size()[0] {
                assert_close(name, &w.get(head), &w.get(0), Tol::Layer(kind));
            }
        }
    }
}

/// Invariant 24: frozen parameters are bit-identical after training, others are not.
#[test]
fn frozen_heads_stay_as_they_are() {
    let language = every_task(Regime::Gated);
    let heads = HeadOptions { frozen: vec![(0, 1)], scaled: vec![(0, 2, 0.5)], ..HeadOptions::default() };
    let options = TrainOptions { heads, weight_decay: 1e-2, ..short(5) };
    let start = Trainer::new(&small(&language), &language, &TrainOptions { steps: 0, ..options.clone() }).unwrap();
    let start = start.run().unwrap().remove(0).model;
    let end = Trainer::new(&small(&language), &language, &options).unwrap().run().unwrap().remove(0).model;
    for (a, b) in [(start.w_q(0), end.w_q(0)), (start.w_v(0), end.w_v(0)), (start.w_o(0), end.w_o(0))] {
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_close("frozen head", &b.get(1), &a.get(1), Tol::Exact);
        assert!(!b.get(0).equal(&a.get(0)) && !b.get(2).equal(&a.get(2)));
    }
}

#[test]
fn a_gradient_that_is_not_finite_stops_the_run() {
    let language = Language::Repeats(Repeats::default());
    let sgd = Optimiser::Sgd { momentum: 0.0 };
    let options = TrainOptions { learning_rate: 1e30, clip: None, optimiser: sgd, ..short(20) };
    let failed = Trainer::new(&small(&language), &language, &options).unwrap().run();
    match failed.err() {
        Some(Error::NotFinite { at, .. }) => assert!(at.starts_with("step ") && at.contains("gradient of `"), "{at}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let language = Language::Repeats(Repeats::default());
    let config = small(&language);
    let refused =
        |config: &ModelConfig, options: &TrainOptions| Trainer::new(config, &language, options).err().unwrap();
    refused(&ModelConfig { vocab: 5, ..config.clone() }, &short(1));
    refused(&ModelConfig { n_positions: 5, ..config.clone() }, &short(1));
    refused(&ModelConfig { causal: false, ..config.clone() }, &short(1));
    refused(&config, &TrainOptions { learning_rate: f64::NAN, ..short(1) });
    refused(&config, &TrainOptions { batch: 0, ..short(1) });
    for fraction in [0.0, 1.1, f64::NAN] {
        refused(&config, &TrainOptions { decay: Decay::Late(fraction), ..short(1) });
    }
    for trace in [
        TraceOptions { every: 0, ..TraceOptions::default() },
        TraceOptions { rows: 0, ..TraceOptions::default() },
        TraceOptions { quantities: vec![], ..TraceOptions::default() },
    ] {
        refused(&config, &TrainOptions { trace: Some(trace), ..short(1) });
    }
    let frozen = HeadOptions { frozen: vec![(0, 9)], ..HeadOptions::default() };
    refused(&config, &TrainOptions { heads: frozen, ..short(1) });
    for bad in [
        Repeats { period: (5, 50), ..Repeats::default() },
        Repeats { period: (0, 5), ..Repeats::default() },
        Repeats { length: 10, ..Repeats::default() },
    ] {
        assert!(Language::Repeats(bad).batch(1, 0, 0).is_err());
    }
    let twice = Tasks { tasks: vec![Task::First, Task::First], ..Tasks::default() };
    assert!(Language::Tasks(twice).batch(1, 0, 0).is_err());
    assert!(Declaration::named("nothing").is_err());
}

/// The share of predictions of task 0 that the bundled model gets right, on sequences that it was not trained on.
fn accuracy(model: &Model, language: &Language, task: usize) -> f64 {
    let batch = language.batch(100, 12345, 0).unwrap();
    let run = model.run(&batch.tokens, &Plan::new().tap(Site::Logits)).unwrap();
    let logits = run.logits().unwrap();
    let (mut right, mut all) = (0, 0);
    for (row, sample) in batch.samples.iter().enumerate() {
        for target in sample.targets.iter().filter(|target| target.task == task) {
            let std::ops::Range { start, end } = target.choices;
            let among = logits.get(row as i64).get(target.position as i64).narrow(0, start, end - start);
            right += usize::from(among.argmax(0, false).int64_value(&[]) == target.token - start);
            all += 1;
        }
    }
    f64::from(u32::try_from(right).unwrap()) / f64::from(u32::try_from(all).unwrap())
}

#[test]
fn bundled_models_do_their_tasks() {
    tch::set_num_threads(1);
    let model = Model::load("induction").unwrap();
    let declaration = Declaration::named("induction").unwrap();
    assert_eq!(model.config(), &declaration.model);
    let found = accuracy(&model, &declaration.language, 0);
    assert!(found > 0.95, "induction: {found}");
    let model = Model::load("english").unwrap();
    let declaration = Declaration::named("english").unwrap();
    // Chance is 1/2, 1/12, 1/2 and 1/16, and a verb leaves four objects.
    for (task, least) in [(0, 0.95), (1, 0.4), (2, 0.95), (3, 0.2)] {
        let found = accuracy(&model, &declaration.language, task);
        assert!(found > least, "english, task {task}: {found}");
    }
    assert!(model.tokens(&["<bos> Anna Brown reads every evening the old letter ."]).unwrap().positions() == 10);
}
