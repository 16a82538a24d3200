//! Generation: batches, plans, stop texts, streaming. Every step is what a run of the whole sequence gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;

use common::architectures::any_config;
use common::{Tol, assert_close, cases, load, random};
use headscope::model::{Axis, ModelConfig, NormKind, Span};
use headscope::prelude::*;
use proptest::prelude::*;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn config(n: u32) -> ProptestConfig {
    let rng_seed = proptest::test_runner::RngSeed::Fixed(16);
    ProptestConfig { cases: cases(n), failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

/// A causal model of any architecture.
fn any_model(rng: &mut ChaCha8Rng) -> Model {
    let config = ModelConfig { causal: true, uncounted: None, ..any_config(rng) };
    config.validate().unwrap_or_else(|error| panic!("{config:?}: {error}"));
    random(&config, rng.random_range(0..1000))
}

fn ids(rng: &mut ChaCha8Rng, n: usize) -> Vec<i64> {
    (0..n).map(|_| rng.random_range(0..37)).collect()
}

/// Prompts of any lengths, with types where the model has some.
fn any_prompts(rng: &mut ChaCha8Rng, model: &Model) -> (Tokens, Option<Vec<Vec<i64>>>) {
    let lengths: Vec<usize> = (0..rng.random_range(1..5)).map(|_| rng.random_range(1..8)).collect();
    let rows: Vec<Vec<i64>> = lengths.iter().map(|&n| ids(rng, n)).collect();
    let types = (model.config().n_token_types > 0)
        .then(|| lengths.iter().map(|&n| (0..n).map(|_| rng.random_range(0..2)).collect()).collect::<Vec<Vec<i64>>>());
    let tokens = Tokens::new(&rows).unwrap();
    (types.iter().fold(tokens, |tokens, types| tokens.with_types(types.clone()).unwrap()), types)
}

/// A sequence alone, whose new tokens continue the type of the prompt's last.
fn alone(ids: &[i64], types: Option<&Vec<i64>>) -> Tokens {
    let tokens = Tokens::new(&[ids.to_vec()]).unwrap();
    let Some(types) = types else { return tokens };
    let own = types.iter().chain(std::iter::repeat(types.last().unwrap())).take(ids.len()).copied().collect();
    tokens.with_types(vec![own]).unwrap()
}

/// An edit of a batch that grows, and what it reads: the tensor, and whether it has a position axis.
#[derive(Debug)]
struct Case {
    edit: Edit,
    tensor: Option<Tensor>,
    of_run: bool,
}

/// How many positions the runs have that edits read.
const OTHER: usize = 16;

/// An edit that fits the model, at any site, with any selector.
fn any_case(rng: &mut ChaCha8Rng, model: &Model, tokens: &Tokens, longest: usize, other: &Run) -> Case {
    let config = model.config();
    let site = *Site::all(config).choose(rng).unwrap();
    let axes = site.axes();
    let of_keys = axes.contains(&Axis::Key);
    let shape = site.shape(config, tokens.batch(), longest);
    let width = *shape.last().unwrap();
    let tensor = |rng: &mut ChaCha8Rng, shape: &[i64]| {
        let n: i64 = shape.iter().product();
        let values: Vec<f64> = (0..n).map(|_| rng.random_range(0.1..0.9)).collect();
        Tensor::from_slice(&values).view(shape)
    };
    let key = || "it".to_owned();
    let add = |rng: &mut ChaCha8Rng| Action::Add { key: key(), alpha: rng.random_range(0.2..1.5) };
    // A divisor stays above 0. Scores of minus infinity have no norm.
    let scale = matches!(axes[axes.len() - 1], Axis::One);
    let kind = match rng.random_range(0..10) {
        _ if scale => rng.random_range(1..4),
        3..=6 if of_keys && rng.random_bool(0.7) => 9,
        5 | 6 if of_keys => 1,
        4 if matches!(site, Site::Scores(_)) => 1,
        9 if !matches!(site, Site::Scores(_)) => 0,
        other => other,
    };
    let (action, value, of_run) = match kind {
        9 if matches!(site, Site::Scores(_)) => (Action::KnockOut, None, false),
        0 | 9 => (Action::Zero, None, false),
        1 => (Action::Scale { factor: rng.random_range(0.3..1.8) }, None, false),
        2 => (add(rng), Some(tensor(rng, &[if of_keys { 1 } else { width }])), false),
        3 => (Action::replace("it"), Some(tensor(rng, &[tokens.batch() as i64, 1, 1, 1][..axes.len()])), false),
        4 => (Action::Normalise, None, false),
        5 => (Action::Map { key: key() }, Some(tensor(rng, &[width, width])), false),
        6 => (Action::Project { key: key(), keep: rng.random() }, Some(tensor(rng, &[1, width])), false),
        7 => (Action::replace("it"), Some(other.get(site).unwrap().shallow_clone()), true),
        _ => (Action::mean("it"), Some(other.get(site).unwrap().shallow_clone()), true),
    };
    let mut edit = Edit::new(site, action);
    let some = |rng: &mut ChaCha8Rng, n: i64| -> Vec<usize> {
        let all: BTreeSet<usize> = (0..rng.random_range(1..4)).map(|_| rng.random_range(0..n as usize)).collect();
        all.into_iter().collect()
    };
    for (i, axis) in axes.iter().enumerate() {
        if rng.random_ratio(2, 3) {
            continue;
        }
        match axis {
            Axis::Batch => edit = edit.prompts(some(rng, shape[0])),
            Axis::Position | Axis::Query => edit = edit.positions(some(rng, shape[i])),
            Axis::Key => edit = edit.keys(some(rng, shape[i])),
            Axis::Head | Axis::KvHead => edit = edit.heads(some(rng, shape[i])),
            _ => edit = edit.features(some(rng, width)),
        }
    }
    Case { edit, tensor: value, of_run }
}

/// `x` with as many positions and keys, zeros where it has none.
fn stretched(site: Site, x: &Tensor, n: i64) -> Tensor {
    let axes = site.axes().into_iter().enumerate();
    axes.filter(|(_, axis)| matches!(axis, Axis::Position | Axis::Query | Axis::Key)).fold(
        x.shallow_clone(),
        |x, (i, _)| {
            let mut shape = x.size();
            shape[i] = n;
            Tensor::cat(&[x.shallow_clone(), Tensor::zeros(shape, (x.kind(), x.device()))], i as i64)
                .narrow(i as i64, 0, n)
        },
    )
}

/// The plan of a batch that grows as a plan for one whole sequence of `n` tokens: the rules that `Generation` states, written
/// out for every position.
fn plan_of(cases: &[Case], span: Span, prompt: usize, length: usize, n: usize) -> Plan {
    let mut plan = Plan::new();
    for (number, Case { edit, tensor, of_run }) in cases.iter().enumerate() {
        let site = edit.site;
        let listed = |list: &Option<Vec<usize>>, i: &usize| list.as_ref().is_none_or(|list| list.contains(i));
        let inside = |p: &usize| match span {
            Span::Everywhere => true,
            Span::Prompt => *p < length,
            Span::Written => *p >= length,
        };
        let positions: Vec<usize> = (0..n).filter(inside).filter(|p| listed(&edit.at.positions, p)).collect();
        let keys: Vec<usize> = (0..n).filter(|k| listed(&edit.at.keys, k)).collect();
        if !listed(&edit.at.prompts, &prompt) || positions.is_empty() || keys.is_empty() {
            continue;
        }
        let mut own = edit.clone().positions(positions);
        own.at.prompts = None;
        if site.axes().contains(&Axis::Key) {
            own = own.keys(keys);
        }
        let key = format!("it {number}");
        let rename = |own: &mut String| *own = key.clone();
        match &mut own.action {
            Action::Mean { .. } => own.action = Action::replace(&key),
            Action::Replace { key } | Action::Add { key, .. } | Action::Project { key, .. } | Action::Map { key } => {
                rename(key)
            }
            _ => {}
        }
        if let Some(tensor) = tensor {
            let mean = matches!(edit.action, Action::Mean { .. });
            let row = match tensor.dim() == site.axes().len() {
                true if mean => tensor.mean_dim([0i64].as_slice(), true, None::<Kind>),
                true => tensor.narrow(0, prompt as i64, 1),
                false => tensor.shallow_clone(),
            };
            plan = plan.with_tensor(&key, site, &if *of_run { stretched(site, &row, n as i64) } else { row });
        }
        plan = plan.edit(own);
    }
    plan
}

proptest! {
    #![proptest_config(config(150))]

    /// A batch of prompts of any lengths is continued as each prompt alone, greedily and sampled.
    #[test]
    fn a_batch_is_its_prompts(seed in any::<u64>()) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let model = any_model(rng);
        let (tokens, types) = any_prompts(rng, &model);
        let (max_new, temperature) = (rng.random_range(1..14), *[0.0, 1.5].choose(rng).unwrap());
        let batch = model.generate(&tokens).max_new(max_new).temperature(temperature).seed(seed).run().unwrap();
        prop_assert_eq!(batch.continuations.len(), tokens.batch());
        for (i, found) in batch.continuations.iter().enumerate() {
            let one = alone(tokens.row(i), types.as_ref().map(|types| &types[i]));
            let one = model.generate(&one).max_new(max_new).temperature(temperature).seed(seed.wrapping_add(i as u64));
            prop_assert_eq!(found, &one.run().unwrap().continuations[0], "{:?}", model.config());
            let room = model.config().n_positions + 1 - tokens.row(i).len();
            prop_assert_eq!(found.ids.len(), max_new.min(room));
            prop_assert_eq!(&found.ending, if max_new <= room { &Ending::MaxNew } else { &Ending::Context });
        }
    }

    /// Under any plan, each token is the likeliest after a run of the whole sequence under that plan, and what is recorded is
    /// what the run of all holds.
    #[test]
    fn a_plan_applies_as_to_the_whole(seed in any::<u64>()) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let model = any_model(rng);
        let config = model.config().clone();
        let (tokens, types) = any_prompts(rng, &model);
        let (max_new, temperature) = (rng.random_range(2..6), *[0.0, 0.0, 1.5].choose(rng).unwrap());
        let longest = tokens.positions() + max_new - 1;
        let other: Vec<Vec<i64>> = (0..tokens.batch()).map(|_| ids(rng, OTHER)).collect();
        let every = Plan::new().taps(Site::all(&config));
        let other = model.run(&Tokens::new(&other).unwrap(), &every).unwrap();
        let n = rng.random_range(1..4);
        let cases: Vec<Case> = (0..n).map(|_| any_case(rng, &model, &tokens, longest, &other)).collect();
        let span = *[Span::Everywhere, Span::Everywhere, Span::Prompt, Span::Written].choose(rng).unwrap();
        let mut plan = Plan::new();
        for (number, case) in cases.iter().enumerate() {
            let (key, mut edit) = (format!("it {number}"), case.edit.clone());
            match &mut edit.action {
                Action::Mean { key: own } | Action::Replace { key: own } | Action::Add { key: own, .. }
                | Action::Project { key: own, .. } | Action::Map { key: own } => *own = key.clone(),
                _ => {}
            }
            plan = match &case.tensor {
                Some(_) if case.of_run => plan.with(&key, &other),
                Some(tensor) => plan.with_tensor(&key, edit.site, tensor),
                None => plan,
            };
            plan = plan.edit(edit);
        }
        let sites: Vec<Site> = Site::all(&config).choose_multiple(rng, 3).copied().collect();
        let plan = plan.taps(sites.clone());
        let written = model.generate(&tokens).max_new(max_new).temperature(temperature).seed(seed).plan(&plan).span(span);
        let written = match written.run() {
            Ok(written) => written,
            // An edit at no position of any sequence, and a plan under which the model computes no numbers.
            Err(Error::Edit { expected, .. }) if expected.contains("the sequences will have") => {
                return Err(TestCaseError::reject("nothing to do"));
            }
            Err(Error::NotFinite { .. }) => return Err(TestCaseError::reject("no numbers")),
            Err(error) => panic!("{error} {config:?} {cases:?}"),
        };
        prop_assert_eq!(written.run.taps().count(), sites.len());
        for (prompt, found) in written.continuations.iter().enumerate() {
            let own_types = types.as_ref().map(|types| &types[prompt]);
            let length = tokens.row(prompt).len();
            let mut all = tokens.row(prompt).to_vec();
            for (i, &id) in found.ids.iter().enumerate() {
                let last = i + 1 == found.ids.len();
                if temperature == 0.0 || last {
                    let plan = plan_of(&cases, span, prompt, length, all.len()).taps(sites.clone()).tap(Site::Logits);
                    let run = model.run(&alone(&all, own_types), &plan).unwrap();
                    let best = run.logits().unwrap().get(0).get(-1).argmax(-1, false).int64_value(&[]);
                    prop_assert!(temperature > 0.0 || best == id, "{best} {id} {config:?} {cases:?} {span:?}");
                    if last {
                        prop_assert_eq!(written.run.tokens().row(prompt), &all[..]);
                        for &site in &sites {
                            let found = written.run.get(site).unwrap().narrow(0, prompt as i64, 1);
                            let found = stretched(site, &found, all.len() as i64);
                            // A whole run records edited scores before later keys are hidden once more.
                            let later = Tensor::ones([all.len() as i64; 2], (Kind::Bool, found.device())).triu(1);
                            let expected = match site {
                                Site::Scores(_) => run.get(site).unwrap().masked_fill(&later, f64::NEG_INFINITY),
                                _ => run.get(site).unwrap().shallow_clone(),
                            };
                            let what = format!("{site} {config:?} {cases:?} {span:?}");
                            assert_close(&what, &found, &expected, Tol::Model(Kind::Double));
                        }
                    }
                }
                all.push(id);
            }
        }
    }

    /// Pieces add up to the text, which ends before the first stop text, with the token that completes it; and none of
    /// it is shown before it is sure.
    #[test]
    fn stop_texts_end_the_text(
        seed in 0u64..1000, from in 0usize..30, n in 1usize..4, other in "[a-z]{1,2}", keep in any::<bool>(),
    ) {
        let model = load("tiny-gpt2", Kind::Float);
        let tokens = model.tokens(&["the cat", "a dog sat on the", "x"]).unwrap();
        let generation = || model.generate(&tokens).max_new(25).temperature(2.0).seed(seed);
        let plain = generation().run().unwrap();
        // A text that one of the prompts writes, and one that may be anywhere or nowhere.
        let text = plain.texts()[0];
        let stop: String = text.chars().skip(from.min(text.chars().count() - 1)).take(n).collect();
        let stops = [stop, other];
        let mut pieces = vec![String::new(); 3];
        let mut ended = vec![0; 3];
        let generation = generation().stop(&stops);
        let generation = if keep { generation.keep_stop() } else { generation };
        let stopped = generation.stream(|piece| {
            assert_eq!(ended[piece.prompt], 0);
            pieces[piece.prompt] += piece.text;
            ended[piece.prompt] += usize::from(piece.ending.is_some());
        }).unwrap();
        prop_assert_eq!(ended, vec![1; 3]);
        prop_assert_eq!(&pieces[..], &stopped.texts()[..]);
        let tokenizer = model.tokenizer().unwrap();
        for (row, (with, without)) in stopped.continuations.iter().zip(&plain.continuations).enumerate() {
            let first = stops.iter().filter_map(|stop| without.text.find(stop)).min();
            prop_assert_eq!(&with.ids[..], &without.ids[..with.ids.len()]);
            match (first, &with.ending) {
                (Some(at), Ending::Stop(found)) => {
                    // The stop text that is complete first ends the text, even where a longer one begins before it.
                    let end = if keep { with.text.len() - found.len() } else { with.text.len() };
                    prop_assert!(end >= at && without.text[end..].starts_with(found.as_str()));
                    prop_assert_eq!(&with.text[..end], &without.text[..end]);
                    let prompt = tokenizer.decode(tokens.row(row)).unwrap();
                    let before = [tokens.row(row), &with.ids[..with.ids.len() - 1]].concat();
                    let before = tokenizer.decode(&before).unwrap()[prompt.len()..].to_owned();
                    prop_assert!(stops.iter().all(|stop| !before.contains(stop)), "{before:?} {stops:?}");
                }
                (None, ending) => {
                    prop_assert_eq!(ending, &without.ending);
                    prop_assert_eq!(with, without);
                }
                (first, ending) => prop_assert!(false, "{first:?} {ending:?} {stops:?} {without:?}"),
            }
        }
    }
}

/// Under plans that make a position depend on later ones, each token is the likeliest after a whole run, too, and that is not
/// what the plan gives where later keys are hidden.
#[test]
fn plans_that_look_ahead_are_run_whole() {
    let mut hidden_differ = 0;
    for seed in 0..20 {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let config = ModelConfig { n_layers: 3, position: headscope::model::Position::None, ..ModelConfig::default() };
        let model = random(&config, seed);
        let tokens = Tokens::new(&[ids(rng, 5), ids(rng, 2), ids(rng, 3)]).unwrap();
        let site = Site::Pattern(seed as usize % 3);
        let add = Action::Add { key: "it 0".into(), alpha: 0.5 };
        let (action, tensor) = match seed % 3 {
            0 => (add, Some(Tensor::from(0.7))),
            1 => (Action::Normalise, None),
            _ => (Action::replace("it 0"), Some(Tensor::from(0.2))),
        };
        let edit = Edit::new(site, action).heads([0, 2]);
        let make = || {
            let plan = Plan::new().edit(edit.clone()).tap(Site::Z(2));
            tensor.iter().fold(plan, |plan, tensor| plan.with_tensor("it 0", site, tensor))
        };
        let plan = make();
        let written = model.generate(&tokens).max_new(4).plan(&plan).run().unwrap();
        for (prompt, found) in written.continuations.iter().enumerate() {
            let mut all = tokens.row(prompt).to_vec();
            let mut first = None;
            for (i, &id) in found.ids.iter().enumerate() {
                let run =
                    model.run(&Tokens::new(std::slice::from_ref(&all)).unwrap(), &make().tap(Site::Logits)).unwrap();
                assert_eq!(run.logits().unwrap().get(0).get(-1).argmax(-1, false).int64_value(&[]), id);
                // What the first positions hold changes as the sequence grows.
                let z = run.get(Site::Z(2)).unwrap().get(0);
                let now = z.get(0);
                hidden_differ += usize::from(first.replace(now.shallow_clone()).is_some_and(|before| before != now));
                if i + 1 == found.ids.len() {
                    let own = written.run.get(Site::Z(2)).unwrap().get(prompt as i64).narrow(0, 0, all.len() as i64);
                    assert_close("z", &own, &z, Tol::Model(Kind::Double));
                }
                all.push(id);
            }
        }
    }
    assert!(hidden_differ > 100, "{hidden_differ}");
}

/// Draws follow the softmax, each copy of a prompt by its own; one likeliest token to draw from is the likeliest.
#[test]
fn draws_follow_the_softmax() {
    let model = random(&ModelConfig { vocab: 5, ..ModelConfig::default() }, 3);
    const N: usize = 4000;
    let copies = Tokens::new(&vec![vec![1, 2, 3]; N]).unwrap();
    let one = copies.select(&[0]).unwrap();
    let logits = model.run(&one, &Plan::new()).unwrap().logits().unwrap().get(0).get(-1);
    let expected = Vec::<f64>::try_from((&logits / 0.7).softmax(-1, Kind::Double)).unwrap();
    let drawn = model.generate(&copies).max_new(1).temperature(0.7).run().unwrap();
    for (id, p) in expected.iter().enumerate() {
        let share = drawn.continuations.iter().filter(|c| c.ids == [id as i64]).count() as f64 / N as f64;
        assert!((share - p).abs() <= 5.0 * (p * (1.0 - p) / N as f64).sqrt(), "{id}: {share} where {p} is expected");
    }
    let best = model.generate(&one).max_new(6).run().unwrap();
    let first = model.generate(&one).max_new(6).temperature(3.0).top_k(1).run().unwrap();
    assert_eq!(best.continuations, first.continuations);
    let few = model.generate(&copies).max_new(1).temperature(3.0).top_k(2).run().unwrap();
    let few: BTreeSet<i64> = few.continuations.iter().map(|c| c.ids[0]).collect();
    let two: Vec<i64> = Vec::try_from(logits.topk(2, -1, true, true).1).unwrap();
    assert_eq!(few, two.into_iter().collect());
}

/// Logits can be edited: a token that is forbidden is never written, and one that is certain ends a prompt as an end or stop
/// token. Prompts that end do not disturb the others.
#[test]
fn special_tokens_end_a_prompt() {
    let model = load("tiny-gpt2", Kind::Float);
    let end = model.origin().end_tokens[0];
    let tokens = model.tokens(&["the cat", "a dog sat"]).unwrap();
    let plain = model.generate(&tokens).max_new(6).run().unwrap();
    let high = Tensor::from(1e4f32);
    // At position 4 of the second prompt only.
    let at = Edit::new(Site::Logits, Action::replace("high")).features([end as usize]).prompts([1]);
    let position = tokens.row(1).len() + 1;
    let plan = Plan::new().with_tensor("high", Site::Logits, &high).edit(at.position(position));
    let ended = model.generate(&tokens).max_new(6).plan(&plan).run().unwrap();
    assert_eq!(ended.continuations[0], plain.continuations[0]);
    let row = &ended.continuations[1];
    assert_eq!(row.ids, [&plain.continuations[1].ids[..2], &[end]].concat());
    assert_eq!(row.ending, Ending::EndToken(end));
    assert!(!row.text.contains("endoftext"));
    let stopped = model.generate(&tokens).max_new(6).plan(&plan).stop(["<|endoftext|>"]).run().unwrap();
    assert_eq!(stopped.continuations[1].ending, Ending::Stop("<|endoftext|>".into()));
    assert_eq!(stopped.continuations[1].text, row.text);

    let first = plain.continuations[0].ids[0] as usize;
    let low = Tensor::from(f32::NEG_INFINITY);
    let ban = Edit::new(Site::Logits, Action::replace("low")).features([first]);
    let plan = Plan::new().with_tensor("low", Site::Logits, &low).edit(ban);
    let banned = model.generate(&tokens).plan(&plan).run().unwrap();
    assert!(banned.continuations.iter().all(|c| !c.ids.contains(&(first as i64))));
}

/// A prompt that is much longer than the others is read at once when they have ended, and prompts that alternate in length
/// are each read to their end.
#[test]
fn lengths_may_differ_by_much() {
    let model = load("tiny-gpt2", Kind::Double);
    let rows: Vec<Vec<i64>> = [2, 39, 1, 20, 40].map(|n| (0..n).map(|i| (i * 7 + n) % 97).collect()).to_vec();
    let tokens = Tokens::new(&rows).unwrap();
    let batch = model.generate(&tokens).max_new(3).run().unwrap();
    for (row, found) in rows.iter().zip(&batch.continuations) {
        let one = Tokens::new(std::slice::from_ref(row)).unwrap();
        assert_eq!(found, &model.generate(&one).max_new(3).run().unwrap().continuations[0]);
    }
    let lengths: Vec<usize> = batch.continuations.iter().map(|c| c.ids.len()).collect();
    assert_eq!(lengths, [3, 2, 3, 3, 1]);
}

/// What makes no sense is an error that says so, before anything is written.
#[test]
fn nonsense_is_refused() {
    let model = load("tiny-gpt2", Kind::Float);
    let tokens = Tokens::new(&[vec![5, 6, 7], vec![8, 9]]).unwrap();
    let generation = || model.generate(&tokens).max_new(4);
    let says = |generation: Generation<'_>, expected: &str| {
        let error = generation.stream(|_| panic!("a token")).unwrap_err();
        assert!(error.is_misuse() && error.to_string().contains(expected), "{error}, not {expected}");
    };
    let plan = |edit: Edit| Plan::new().edit(edit);
    let z = |action| Edit::new(Site::Z(1), action);
    says(generation().max_new(0), "max_new: expected at least 1");
    says(generation().temperature(f64::NAN), "temperature");
    says(generation().temperature(1.0).top_k(0), "top_k: expected at least 1");
    says(generation().top_k(3), "temperature above 0");
    says(generation().stop(["a", ""]), "stop: expected texts that are not empty");
    says(generation().keep_stop(), "keep_stop");
    says(generation().plan(&plan(z(Action::Zero).head(4))), "head 4 is out of range");
    says(generation().plan(&plan(z(Action::Zero).prompts([2]))), "batch 2 is out of range");
    says(generation().plan(&plan(Edit::new(Site::Z(3), Action::Zero))), "layers 0 to 2");
    says(generation().plan(&plan(z(Action::replace("x")))), "`x` in the plan's bank");
    says(generation().plan(&plan(z(Action::Zero).position(6))), "position 6 is out of range");
    // Position 5 is the first prompt's last that is read; the second ends at 4.
    assert!(generation().plan(&plan(z(Action::Zero).position(5))).run().is_ok());
    says(generation().plan(&plan(z(Action::Zero).position(5).prompts([1]))), "positions that the sequences will have");
    says(
        generation().plan(&plan(z(Action::Zero).position(1))).span(Span::Written),
        "positions that the sequences will have",
    );
    says(generation().plan(&plan(z(Action::Zero)).differentiable()), "without gradients");
    says(generation().plan(&plan(z(Action::KnockOut))), "a `scores` or `cross_scores` site");
    says(generation().plan(&Plan::new().tap(Site::Z(7))), "layers 0 to 2");

    let other = model.run(&tokens, &Plan::new().taps([Site::Z(1), Site::Pattern(1)])).unwrap();
    let patch = |at: Edit| Plan::new().with("x", &other).edit(at);
    says(generation().plan(&patch(z(Action::replace("x")))), "reaches position 5 for prompt 0");
    says(generation().plan(&patch(z(Action::replace("x")).positions([0, 2]))), "reaches position 2 for prompt 1");
    says(generation().plan(&patch(z(Action::mean("x")))), "reaches position 5");
    says(generation().plan(&patch(z(Action::mean("x")))).span(Span::Written), "reaches position 5");
    assert!(generation().plan(&patch(z(Action::replace("x")))).span(Span::Prompt).run().is_ok());
    assert!(generation().plan(&patch(z(Action::replace("x")).positions([0, 1]))).run().is_ok());
    let matrix = Tensor::eye(6, (Kind::Float, tch::Device::Cpu));
    let map = Edit::new(Site::Pattern(1), Action::Map { key: "m".into() });
    says(generation().plan(&Plan::new().with_tensor("m", Site::Pattern(1), &matrix).edit(map)), "does not grow");
    let wide = Tensor::zeros([3], (Kind::Float, tch::Device::Cpu));
    says(
        generation().plan(&Plan::new().with_tensor("x", Site::Z(1), &wide).edit(z(Action::replace("x")))),
        "broadcasts",
    );

    let long = Tokens::new(&[vec![1; 41]]).unwrap();
    says(model.generate(&long), "at most 40 positions");
    let unknown = Tokens::new(&[vec![97]]).unwrap();
    says(model.generate(&unknown), "out of range");
    assert!(model.tokens(&[""]).unwrap_err().to_string().contains("prompt 0 is empty"));
    let bert = load("tiny-bert", Kind::Float);
    says(bert.generate(&tokens), "a causal model");
    let bare = random(&ModelConfig::default(), 0);
    let error = bare.generate(&tokens).stop(["a"]).run().unwrap_err();
    assert!(matches!(error, Error::Tokenizer { .. }), "{error}");
    assert_eq!(bare.generate(&tokens).max_new(2).run().unwrap().texts()[0].split(' ').count(), 2);

    // Logits that are no numbers.
    let nan = Tensor::from(f32::NAN);
    let broken = Plan::new()
        .with_tensor("nan", Site::ResidPre(1), &nan)
        .edit(Edit::new(Site::ResidPre(1), Action::replace("nan")));
    assert!(matches!(generation().plan(&broken).run().unwrap_err(), Error::NotFinite { .. }));
}

/// An activation that is the same everywhere needs no positions, whatever its shape; and a norm can be switched off while
/// the model writes.
#[test]
fn tensors_without_positions_apply_everywhere() {
    let model = random(&ModelConfig { norm: NormKind::Rms, ..ModelConfig::default() }, 5);
    let tokens = Tokens::new(&[vec![5, 6, 7], vec![8, 9]]).unwrap();
    let direction = Tensor::randn([32], (Kind::Double, tch::Device::Cpu));
    let add = |tensor: &Tensor| {
        let edit = Edit::new(Site::ResidMid(0), Action::Add { key: "d".into(), alpha: 3.0 });
        let plan = Plan::new().with_tensor("d", Site::ResidMid(0), tensor).edit(edit).tap(Site::ResidMid(0));
        model.generate(&tokens).max_new(5).plan(&plan).run().unwrap()
    };
    let [a, b, c] =
        [direction.shallow_clone(), direction.view([1, 1, 32]), direction.view([1, 1, 32]).repeat([2, 1, 1])]
            .map(|d| add(&d));
    assert_eq!(a.continuations, b.continuations);
    assert_eq!(a.continuations, c.continuations);
    assert_ne!(a.continuations, model.generate(&tokens).max_new(5).run().unwrap().continuations);
}
