//! Are the fast paths taken where they should be, and nowhere else? Each is listed here once more, from the configuration, and
//! its results are held to those of the plain way.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use self::architectures::any_config;
use super::{Entry, How, Joins, KvCache, Pass, Past, last_query, last_query_pays};
use crate::model::arch::{Cut, LayerRotary, Wire};
use crate::model::hooks::Window;
use crate::model::{
    Action, Edit, Model, ModelConfig, NormKind, NormPlace, Parallel, Plan, Position, Program, QkNorm, Site, Tokens,
};

#[path = "../../../tests/common/architectures.rs"]
mod architectures;

fn cases() -> ProptestConfig {
    let rng_seed = proptest::test_runner::RngSeed::Fixed(15);
    ProptestConfig { cases: 200, failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

/// An architecture in which a fast path may serve: of all that a configuration can say, each in turn is set back to what every
/// path serves, so that one of two architectures has little that is special, and the other everything.
fn config(rng: &mut ChaCha8Rng) -> ModelConfig {
    let mut config = any_config(rng);
    let plain = ModelConfig::default();
    let mut often = || rng.random_ratio(3, 4);
    let (position, causal, cap, sinks) = (often(), often(), often(), often());
    let (layers, norm, group, parallel) = (often(), often(), often(), often());
    if position {
        config.position = plain.position;
    }
    if layers {
        config.layers = vec![];
    }
    if group {
        config.n_kv_heads = config.n_heads;
    }
    config.causal |= causal;
    config.uncounted = config.uncounted.filter(|_| !config.causal && config.position == Position::Learned);
    config.score_cap = config.score_cap.filter(|_| !cap);
    config.sinks &= !sinks;
    config.qk_norm = if norm { QkNorm::None } else { config.qk_norm };
    config.parallel = if parallel { Parallel::No } else { config.parallel };
    config
}

fn model(config: &ModelConfig, seed: u64) -> Model {
    Model::random_as(config, seed, Kind::Double, Device::Cpu).unwrap()
}

fn tokens(rng: &mut ChaCha8Rng, rows: usize, vocab: usize) -> Tokens {
    let positions = rng.random_range(1..7);
    let row = |_| (0..positions).map(|_| rng.random_range(0..vocab as i64)).collect();
    Tokens::new(&(0..rows).map(row).collect::<Vec<Vec<i64>>>()).unwrap()
}

fn assert_same(what: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let scale = expected.square().mean(None::<Kind>).sqrt().double_value(&[]).max(1.0);
    let error = (found - expected).abs().max().double_value(&[]) / scale;
    assert!(error < 1e-10, "{what}: {error}"); // the bound of float64 models in tests/common/tolerance.rs
}

/// The residual stream at the end of a pass that asks for one position of each prompt, and whether it computed the last block's
/// keys at all positions, which the fast path leaves out.
fn asked_at(pass: Pass<'_>, wanted: &Tensor, ids: &Tensor, layers: usize) -> (Tensor, bool) {
    let last_keys = (layers - 1, Wire::K);
    let mut pass = pass.only(Some(wanted.shallow_clone())).keeping([last_keys]);
    let x = pass.residual(&Joins::whole(ids.shallow_clone()), layers).unwrap();
    (x, pass.into_records().1.contains_key(&last_keys))
}

/// Whether one query may attend to the residual stream itself in the last block, as far as the configuration says.
fn last_query_is_listed(config: &ModelConfig, positions: usize) -> bool {
    let own = config.layer(config.n_layers - 1);
    let still = match (&own.rotary, &config.position) {
        (LayerRotary::Own(_), _) => false,
        (LayerRotary::Model, position) => matches!(position, Position::None | Position::Learned),
        (LayerRotary::None, Position::Shortformer | Position::Alibi | Position::RoundedAlibi) => false,
        (LayerRotary::None, position) => !matches!(position, Position::Buckets { .. }),
    };
    let plain =
        still && own.window.is_none() && config.score_cap.is_none() && !config.sinks && config.clip_qkv.is_none();
    let simple = config.causal && config.qk_norm == QkNorm::None && config.n_heads == config.n_kv_heads;
    // Where one norm serves both sub-layers, the MLP still reads it after the heads.
    let norm_before = config.norm != NormKind::None && config.norm_place != NormPlace::Output && !own.no_attn_norm;
    plain && simple && positions > 1 && !(config.parallel == Parallel::OneNorm && norm_before)
}

proptest! {
    #![proptest_config(cases())]

    /// The fused kernel serves attention without biases, caps and sinks of the scores, and gives what the steps give.
    #[test]
    fn fused_attention(seed in any::<u64>()) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let config = config(rng);
        let (model, tokens) = (model(&config, seed), tokens(rng, 2, config.vocab));
        let listed = !matches!(config.position, Position::Alibi | Position::RoundedAlibi | Position::Buckets { .. })
            && config.score_cap.is_none() && !config.sinks;
        for layer in 0..config.n_layers {
            prop_assert_eq!(model.wiring().block(layer).attend.is_fusable(), listed, "{:?}", config);
        }
        let [fast, plain] = [Plan::new(), Plan::new().explicit()].map(|plan| model.run(&tokens, &plan).unwrap());
        assert_same(&format!("{config:?}"), fast.logits().unwrap(), plain.logits().unwrap());
    }

    /// One query in the last block: for plain causal attention, where nothing that is left out is looked at.
    #[test]
    fn one_query(seed in any::<u64>()) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let config = config(rng);
        let (model, tokens) = (model(&config, seed), tokens(rng, 3, config.vocab));
        let (layers, positions, ids) = (config.n_layers, tokens.positions(), tokens.ids(Device::Cpu));
        let last = layers - 1;
        let listed = last_query_is_listed(&config, positions);
        prop_assert_eq!(last_query_pays(&model, positions), listed, "{:?}", config);
        let places: Vec<i64> = (0..3).map(|_| rng.random_range(0..positions as i64)).collect();
        let wanted = Tensor::from_slice(&places);
        let run = model.run(&tokens, &Plan::new().tap(Site::ResidPost(last))).unwrap();
        let rows = (0..3).map(|row| run.get(Site::ResidPost(last)).unwrap().get(row).get(places[row as usize]));
        let expected = Tensor::stack(&rows.collect::<Vec<_>>(), 0).unsqueeze(1);
        let looked_at = [Site::Q(last), Site::K(last), Site::V(last), Site::Scores(last), Site::Pattern(last)];
        let explicit = Program::new(&Plan::new().explicit(), &model, &tokens).unwrap();
        let mut programs = vec![(Program::taps([]), listed), (explicit, false)];
        programs.extend(looked_at.map(|site| (Program::taps([site]), false)));
        programs.push((Program::taps([Site::Z(last), Site::Ln1Scale(last)]), listed));
        for (program, fast) in &programs {
            let pass = Pass::new(&model, program, &tokens);
            let (found, has_keys) = asked_at(pass, &wanted, &ids, layers);
            prop_assert_eq!(has_keys, !fast, "{:?} of {:?}", program, config);
            assert_same(&format!("{program:?} of {config:?}"), &found, &expected);
        }
        // A cache that grows needs every key.
        let mut cache = KvCache::default();
        let pass = Pass::over(&model, &programs[0].0, positions, None, Past::Growing(&mut cache));
        let (found, has_keys) = asked_at(pass.with_types(tokens.types(Device::Cpu)), &wanted, &ids, layers);
        prop_assert!(has_keys);
        assert_same(&format!("{config:?}"), &found, &expected);
    }

    /// A norm is folded into the matrices of stacked models, where attention reads through one and nobody looks at its divisor.
    #[test]
    fn norm_folding(seed in any::<u64>()) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        // What cannot be stacked is left out.
        let mut config = ModelConfig { n_token_types: 0, uncounted: None, experts: None, sinks: false, ..config(rng) };
        if let Position::Buckets { .. } | Position::Shortformer = config.position {
            config.position = Position::Alibi;
        }
        let (models, tokens) = ([0, 1].map(|of| model(&config, seed ^ of)), tokens(rng, 4, config.vocab));
        let (layers, ids) = (config.n_layers, tokens.ids(Device::Cpu));
        let (last, wanted) = (layers - 1, Tensor::full([4], tokens.positions() as i64 - 1, (Kind::Int64, Device::Cpu)));
        let before = matches!(config.norm_place, NormPlace::Pre | NormPlace::Sandwich) && !config.layer(last).no_attn_norm;
        let programs = [Program::taps([]), Program::taps([Site::Z(last)]), Program::taps([Site::Ln1Scale(last)])];
        for (n, cached) in [(1, false), (2, false), (2, true)] {
            let model = Model::stacked(&models[..n]).unwrap();
            for (number, program) in programs.iter().enumerate() {
                let past = if cached { Past::Fixed(&KvCache::default(), 0) } else { Past::None };
                let pass = Pass::over(&model, program, tokens.positions(), None, past);
                let listed = n == 2 && !cached && number < 2 && before && config.norm != NormKind::None;
                prop_assert_eq!(last_query::folds_norm(&pass, last), listed, "{:?}", config);
            }
        }
        let stacked = Model::stacked(&models).unwrap();
        let found = programs.iter().map(|program| asked_at(Pass::new(&stacked, program, &tokens), &wanted, &ids, layers).0);
        let ends = models.iter().enumerate().map(|(number, model)| {
            let own = tokens.select(&[2 * number, 2 * number + 1]).unwrap();
            let run = model.run(&own, &Plan::new().tap(Site::ResidPost(last))).unwrap();
            run.get(Site::ResidPost(last)).unwrap().narrow(1, tokens.positions() as i64 - 1, 1)
        });
        let expected = Tensor::cat(&ends.collect::<Vec<_>>(), 0);
        found.for_each(|found| assert_same(&format!("{config:?}"), &found, &expected));
    }

    /// What a changed head writes is added to the unchanged residual stream: always where z changes, and for queries, scores and
    /// patterns where heads are computed one by one.
    #[test]
    fn head_delta(seed in any::<u64>()) {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let config = config(rng);
        let (model, tokens) = (model(&config, seed), tokens(rng, 2, config.vocab));
        let (layer, head) = (rng.random_range(0..config.n_layers), rng.random_range(0..config.n_heads));
        let block = model.wiring().block(layer);
        prop_assert_eq!(block.attend.has_heads_apart(), matches!(config.qk_norm, QkNorm::None | QkNorm::Head));
        let sites = [Site::Z(layer), Site::Q(layer), Site::Scores(layer), Site::Pattern(layer)];
        let site = *sites[..if block.attend.has_heads_apart() { 4 } else { 1 }].choose(rng).unwrap();
        let edit = Edit::new(site, Action::Scale { factor: 1.5 }).head(head);
        let how = How::Heads { attend: site != Site::Z(layer), n: 1 };
        let entry = Entry { cut: Cut::After { layer, step: block.lands() }, how };
        let (ids, none) = (tokens.ids(Device::Cpu), Program::taps([]));
        let unchanged = Pass::new(&model, &none, &tokens).keeping(entry.needs(model.wiring()));
        let (_, base) = unchanged.records(ids.shallow_clone()).unwrap();
        let (heads, mut program) = ([head], Program::taps([]));
        let window = Window { rows: Some((0, 2)), first: 0, heads: Some(&heads) };
        program.push(edit.clone(), None, &window, &config, &tokens).unwrap();
        let mut joins = Joins::at(entry, 1, ids, Some(&base));
        joins.heads = BTreeMap::from([(entry, vec![heads.to_vec()])]);
        let found = Pass::new(&model, &program, &tokens).residual(&joins, config.n_layers).unwrap();
        let last = Site::ResidPost(config.n_layers - 1);
        let plain = model.run(&tokens, &Plan::new().tap(last).edit(edit)).unwrap();
        assert_same(&format!("{site} of {config:?}"), &found, plain.get(last).unwrap());
    }
}
