//! Encoder-decoders: what transformers computes for sources and tokens of unequal lengths, and what must hold in any of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeSet, HashMap};

use common::reference::forward;
use common::{Tol, assert_close, assert_near, cases, fixture, random, read_tensors, some_tokens};
use headscope::checkpoint::LoadOptions;
use headscope::heads::CircuitOptions;
use headscope::intervene::Strategy as How;
use headscope::model::{
    Action, Activation, Edit, Encoder, LayerConfig, Model, ModelConfig, NormKind, NormPlace, Plan, Position, QkvBias,
    Site, Tokens, Unembed,
};
use headscope::prelude::{
    Ablation, Estimate, Every, Lens, Metric, Node, Paths, Scan, ScanOptions, Sweep, direct_attribution, head_results,
    view,
};
use proptest::prelude::*;
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

const MODEL: Tol = Tol::Model(Kind::Double);

fn proptests(n: u32) -> ProptestConfig {
    let rng_seed = proptest::test_runner::RngSeed::Fixed(27);
    ProptestConfig { cases: cases(n), failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

/// A small encoder-decoder, drawn from the whole space of valid configurations.
fn any_config(rng: &mut ChaCha8Rng) -> ModelConfig {
    let n_layers = rng.random_range(2..5);
    let n_kv_heads = rng.random_range(1..3);
    let vocab = rng.random_bool(0.3).then(|| rng.random_range(20..30));
    let norms = [NormKind::Layer, NormKind::Layer, NormKind::Rms, NormKind::None];
    let positions = [
        Position::None,
        Position::Learned,
        Position::Sinusoidal,
        Position::Buckets { n: 2 * rng.random_range(2..6), max_distance: rng.random_range(6..12) },
    ];
    let own = |rng: &mut ChaCha8Rng| LayerConfig { d_mlp: Some(rng.random_range(1..20)), ..LayerConfig::default() };
    let d_mlp = if rng.random_bool(0.2) { 0 } else { rng.random_range(1..20) };
    let widths = d_mlp > 0 && rng.random_bool(0.3);
    let activations = [Activation::Gelu, Activation::Relu, Activation::Silu];
    ModelConfig {
        family: "any".to_owned(),
        n_layers,
        encoder: Some(Encoder { n_layers: rng.random_range(1..n_layers), vocab }),
        d_model: rng.random_range(4..20),
        n_heads: n_kv_heads * rng.random_range(1..4),
        n_kv_heads,
        d_head: rng.random_range(1..8),
        d_mlp,
        vocab: 37,
        n_positions: 16,
        norm: *norms.choose(rng).unwrap(),
        norm_bias: rng.random(),
        norm_place: if rng.random() { NormPlace::Pre } else { NormPlace::Post },
        embed_norm: rng.random(),
        embed_scale: *[1.0, 2.5].choose(rng).unwrap(),
        residual_scale: *[1.0, 1.0, 0.4].choose(rng).unwrap(),
        logit_scale: *[1.0, 0.3].choose(rng).unwrap(),
        position: positions.choose(rng).unwrap().clone(),
        attention_scale: rng.random_bool(0.3).then_some(0.7),
        layers: if widths { (0..n_layers).map(|_| own(rng)).collect() } else { vec![] },
        activation: *activations.choose(rng).unwrap(),
        gated_mlp: rng.random(),
        qkv_bias: QkvBias { q: rng.random(), k: rng.random(), v: rng.random() },
        attn_out_bias: rng.random(),
        mlp_bias: rng.random(),
        unembed: Unembed::Linear { bias: rng.random() },
        tied_unembed: rng.random(),
        ..ModelConfig::default()
    }
}

/// A random model, and tokens with a source of another length.
fn any_model(seed: u64) -> (Model, Tokens) {
    let config = any_config(&mut ChaCha8Rng::seed_from_u64(seed));
    config.validate().unwrap_or_else(|error| panic!("{config:?}: {error}"));
    let (length, other) = (3 + (seed % 4) as usize, 2 + (seed / 7 % 6) as usize);
    let source = some_tokens(2, other, config.encoder.unwrap().vocab.unwrap_or(37), seed as usize % 997);
    let tokens = some_tokens(2, length, config.vocab, seed as usize % 1000).with_source(source).unwrap();
    (random(&config, seed % 997), tokens)
}

fn logits(model: &Model, tokens: &Tokens, plan: Plan) -> Tensor {
    model.run(tokens, &plan.tap(Site::Logits)).unwrap().logits().unwrap().shallow_clone()
}

fn source_of(tokens: &Tokens) -> &Tokens {
    tokens.source().unwrap()
}

/// Padded rows of a golden file.
fn rows(golden: &HashMap<String, Tensor>, side: &str) -> Vec<Vec<i64>> {
    let lengths: Vec<i64> = Vec::try_from(&golden[&format!("padded_{side}_lengths")]).unwrap();
    let rows = golden[&format!("padded_{side}_tokens")].unbind(0);
    lengths.iter().zip(rows).map(|(&n, row)| Vec::try_from(row.narrow(0, 0, n)).unwrap()).collect()
}

#[test]
fn padding_is_transformers() {
    for name in ["t5", "t5-gated", "mt5", "bart", "bart-unequal", "mbart", "marian", "marian-unshared", "pegasus"] {
        let folder = fixture("families").join(name);
        let golden = read_tensors(&folder.join("golden.safetensors"));
        let model = family(name);
        let targets = rows(&golden, "target");
        for pad in [0, 7] {
            let source = Tokens::new(&rows(&golden, "source")).unwrap().with_pad(pad);
            let tokens = Tokens::new(&targets).unwrap().with_source(source).unwrap().with_pad(pad);
            let sites: Vec<Site> = golden.keys().filter_map(|key| key.strip_prefix("padded_")?.parse().ok()).collect();
            assert!(sites.len() > 2, "{name}: {sites:?}");
            let run = model.run(&tokens, &Plan::new().taps(sites.iter().copied())).unwrap();
            let fused = logits(&model, &tokens, Plan::new());
            for site in sites {
                let (found, expected) = (run.get(site).unwrap(), &golden[&format!("padded_{site}")]);
                for (row, ids) in targets.iter().enumerate() {
                    let axis = i64::from(site != Site::Logits);
                    let real = |x: &Tensor| x.get(row as i64).narrow(axis, 0, ids.len() as i64);
                    assert_close(&format!("{name} {site}, row {row}"), &real(found), &real(expected), MODEL);
                    if site == Site::Logits {
                        assert_close(&format!("{name} fused, row {row}"), &real(&fused), &real(expected), MODEL);
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(proptests(24))]

    /// Every site holds what a pass written out step by step holds there, also where nobody looks.
    #[test]
    fn sites_hold_what_they_should(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let expected = forward(&model, &tokens);
        let sites = Site::all(model.config());
        let known: BTreeSet<Site> = expected.keys().copied().collect();
        prop_assert_eq!(sites.iter().copied().collect::<BTreeSet<_>>(), known, "{:?}", model.config());
        let run = model.run(&tokens, &Plan::new().taps(sites.iter().copied())).unwrap();
        for site in sites {
            let found = run.get(site).unwrap();
            assert_close(&format!("{site} of {:?}", model.config()), found, &expected[&site], MODEL);
            prop_assert_eq!(found.size(), site.shape_for(model.config(), &tokens), "{}", site);
        }
        let plain = logits(&model, &tokens, Plan::new());
        assert_close(&format!("{:?}", model.config()), &plain, &expected[&Site::Logits], MODEL);
    }

    /// A source's padding changes nothing, whatever stands there; and neither does that of the decoder's tokens.
    #[test]
    fn padding_has_no_effect(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let short = |tokens: &Tokens, n: usize| {
            let rows = tokens.rows();
            Tokens::new(&[rows[0].clone(), rows[1][..n].to_vec()]).unwrap().with_pad((seed % 20) as i64)
        };
        let padded = short(&tokens, 2).with_source(short(source_of(&tokens), 1)).unwrap();
        let sites = Site::all(model.config());
        let run = model.run(&padded, &Plan::new().taps(sites.iter().copied())).unwrap();
        for row in 0..2 {
            let one = |tokens: &Tokens| Tokens::new(&[tokens.row(row).to_vec()]).unwrap();
            let alone = one(&padded).with_source(one(source_of(&padded))).unwrap();
            let alone = model.run(&alone, &Plan::new().taps(sites.iter().copied())).unwrap();
            for &site in &sites {
                let expected = alone.get(site).unwrap().get(0);
                let mut own = run.get(site).unwrap().get(row as i64);
                for (axis, &n) in expected.size().iter().enumerate() {
                    own = own.narrow(axis as i64, 0, n);
                }
                assert_close(&format!("{site}, row {row} of {:?}", model.config()), &own, &expected, MODEL);
            }
        }
    }

    /// The decoder is causal, and reads the source through cross-attention alone.
    #[test]
    fn the_source_enters_across(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let (config, unchanged) = (model.config(), logits(&model, &tokens, Plan::new()));
        let silent = || {
            let edit = |layer| Edit::new(Site::CrossOut(layer), Action::Zero);
            (config.encoder_layers()..config.n_layers).map(edit).fold(Plan::new(), Plan::edit)
        };
        let source = some_tokens(2, 5, config.encoder.unwrap().vocab.unwrap_or(37), 5);
        let other = Tokens::new(tokens.rows()).unwrap().with_source(source).unwrap();
        assert_close("silenced", &logits(&model, &tokens, silent()), &logits(&model, &other, silent()), MODEL);
        // An edit in the encoder changes what is attended to, and nothing if that is put back.
        let memory = model.run(&tokens, &Plan::new().tap(Site::Memory)).unwrap();
        let change = || Plan::new().edit(Edit::new(Site::ResidPre(0), Action::Scale { factor: -1.5 }));
        let restored = change().with("own", &memory).edit(Edit::new(Site::Memory, Action::replace("own")));
        prop_assert!(!logits(&model, &tokens, change()).equal(&unchanged));
        assert_close("restored", &logits(&model, &tokens, restored), &unchanged, MODEL);
        // And a later token changes nothing before it.
        let mut later = tokens.rows().to_vec();
        for row in &mut later {
            *row.last_mut().unwrap() = (row.last().unwrap() + 1) % 37;
        }
        let later = Tokens::new(&later).unwrap().with_source(source_of(&tokens).clone()).unwrap();
        let before = |x: &Tensor| x.narrow(1, 0, tokens.positions() as i64 - 1);
        assert_close("causal", &before(&logits(&model, &later, Plan::new())), &before(&unchanged), MODEL);
    }

    /// Replacing what a site holds by itself changes nothing, and an edit that cannot be seen is refused.
    #[test]
    fn a_patch_from_self_changes_nothing(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let sites = Site::all(model.config());
        let run = model.run(&tokens, &Plan::new().taps(sites.iter().copied())).unwrap();
        let unchanged = run.logits().unwrap();
        for &site in &sites {
            let plan = Plan::new().with("own", &run).edit(Edit::new(site, Action::replace("own")));
            assert_close(&format!("{site}"), &logits(&model, &tokens, plan), unchanged, MODEL);
        }
        let first = model.config().encoder_layers();
        let blind = |site, tap| model.run(&tokens, &Plan::new().edit(Edit::new(site, Action::Zero)).tap(tap)).is_err();
        prop_assert!(blind(Site::Memory, Site::Pattern(first)) && blind(Site::Embed, Site::ResidPost(0)));
        prop_assert!(blind(Site::ResidPre(0), Site::Embed) && !blind(Site::ResidPre(0), Site::CrossPattern(first)));
    }

    /// Attribution patching is the derivative of the metric, on both sides.
    #[test]
    fn estimates_are_derivatives(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let tokens = tokens.select(&[0]).unwrap();
        let size = 1e-6;
        for site in [Site::Z as fn(usize) -> Site, Site::CrossZ, |_| Site::Memory] {
            let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(Metric::logit(3));
            let change = Action::Scale { factor: 1.0 + size };
            let every = if site(0) == Site::Memory { Every::Layer } else { Every::Head };
            let exact = sweep.each_with(site, every, change.clone()).run().unwrap();
            let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(Metric::logit(3));
            let estimated = sweep.each_with(site, every, change).estimate(Estimate::Attribution).run().unwrap();
            for (exact, estimated) in exact.effect().unwrap().iter().zip(estimated.effect().unwrap()) {
                // Up to the second order of the change.
                let near = (exact - estimated).abs() < 1e-3 * (estimated.abs() + size);
                prop_assert!(near, "{exact} {estimated} {:?}", model.config());
            }
        }
    }

    /// A model is written and read back to the same bits.
    #[test]
    fn saved_models_are_read_back(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        prop_assert_eq!(model.config().n_parameters().unwrap(), model.n_parameters());
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path()).unwrap();
        let options = LoadOptions { kind: Kind::Double, ..Default::default() };
        let read = Model::load_with(folder.path().to_str().unwrap(), &options).unwrap();
        prop_assert_eq!(read.config(), model.config());
        prop_assert!(logits(&read, &tokens, Plan::new()).equal(&logits(&model, &tokens, Plan::new())));
    }
}

proptest! {
    #![proptest_config(proptests(8))]

    /// A sweep over either side is what runs by hand find, whether variants join where they depart or run from the start.
    #[test]
    fn sweeps_are_runs_by_hand(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let (config, metric) = (model.config(), Metric::logit(3));
        let read = |logits: &Tensor, row: usize| logits.double_value(&[row as i64, tokens.positions() as i64 - 1, 3]);
        type At = fn(usize) -> Site;
        let kinds: [(At, Vec<Every>); 6] = [
            (Site::Z, vec![Every::Head]),
            (Site::CrossZ, vec![Every::Head]),
            (Site::CrossV, vec![Every::Head, Every::Position]),
            (Site::CrossPattern, vec![Every::Query, Every::Key]),
            (Site::ResidPost, vec![Every::Position]),
            (|_| Site::Memory, vec![Every::Position]),
        ];
        for (site, every) in kinds {
            let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).each(site, &every).metric(metric.clone());
            let variants = sweep.planned().to_vec();
            prop_assert!(!variants.is_empty());
            let found = sweep.per_prompt().run().unwrap().f64("value").unwrap();
            let naive = Sweep::ablate(&model, &tokens, Ablation::Zero).each(site, &every).strategy(How::Naive);
            let naive = naive.metric(metric.clone()).per_prompt().run().unwrap().f64("value").unwrap();
            prop_assert_eq!(found.len(), 2 * variants.len());
            for (number, variant) in variants.iter().enumerate() {
                let plan = variant.edits.iter().cloned().fold(Plan::new(), Plan::edit);
                let by_hand = logits(&model, &tokens, plan);
                for row in 0..2 {
                    let what = format!("{:?}, row {row}, of {config:?}", variant.edits);
                    assert_near(&what, found[row * variants.len() + number], read(&by_hand, row), MODEL);
                    assert_near(&what, naive[row * variants.len() + number], read(&by_hand, row), MODEL);
                }
            }
        }
    }
}

/// The fixture of a family.
fn family(name: &str) -> Model {
    let options = LoadOptions { kind: Kind::Double, ..LoadOptions::default() };
    Model::load_with(fixture("families").join(name).to_str().unwrap(), &options).unwrap()
}

fn t5_tokens() -> Tokens {
    let source = Tokens::new(&[vec![5, 6, 7, 8], vec![9, 10]]).unwrap();
    Tokens::new(&[vec![0, 11], vec![0, 12]]).unwrap().with_source(source).unwrap()
}

#[test]
fn sources_are_checked() {
    let (model, tokens) = (family("t5"), t5_tokens());
    let says = |model: &Model, tokens: &Tokens, part: &str| {
        let message = model.run(tokens, &Plan::new()).unwrap_err().to_string();
        assert!(message.contains(part), "`{message}` does not say `{part}`");
    };
    let alone = Tokens::new(tokens.rows()).unwrap();
    says(&model, &alone, "with_source");
    says(&random(&ModelConfig::default(), 0), &tokens, "no encoder");
    let with = |rows: &[Vec<i64>]| alone.clone().with_source(Tokens::new(rows).unwrap());
    says(&model, &with(&[vec![5], vec![40]]).unwrap(), "vocab");
    says(&model, &with(&[vec![5], vec![6; 33]]).unwrap(), "at most 32");
    assert!(with(&[vec![5]]).is_err() && alone.clone().with_source(tokens.clone()).is_err());
    // An unshared vocabulary is the source's own.
    let unshared = family("marian-unshared");
    assert!(unshared.run(&with(&[vec![39], vec![39]]).unwrap(), &Plan::new()).is_ok());
    let target = Tokens::new(&[vec![39], vec![1]]).unwrap();
    says(&unshared, &target.with_source(Tokens::new(&[vec![1], vec![1]]).unwrap()).unwrap(), "vocab");
}

/// What reads one sequence of positions through all layers refuses an encoder-decoder, and says why.
#[test]
fn what_does_not_serve_says_so() {
    let (model, tokens) = (family("t5"), t5_tokens());
    let metric = Metric::logit(3);
    let sweep = || Sweep::ablate(&model, &tokens, Ablation::Zero);
    let refused: [(&str, headscope::Result<()>); 12] = [
        ("lens", Lens::logit(&model).top(&tokens, 3).map(drop)),
        ("lens by metric", Lens::logit(&model).metric(&tokens, &metric).map(drop)),
        ("attribution", direct_attribution(&model, &tokens, &metric).map(drop)),
        ("results", head_results(&model, &tokens, 0).map(drop)),
        (
            "paths",
            Paths::noise(&model, &tokens, &tokens).senders(Node::heads(&model)).metric(metric.clone()).run().map(drop),
        ),
        ("circuits", model.circuits(&CircuitOptions::default()).map(drop)),
        ("processing", model.processed().map(drop)),
        ("invariants", model.verify(&tokens).map(drop)),
        ("layers", model.each_layer(&tokens, &[Site::Pattern], |_, _| Ok(()))),
        ("scan", Scan::of(&model, &tokens, &ScanOptions::default()).map(drop)),
        ("a position", sweep().at(1).run().map(drop)),
        ("a plan", model.generate(&tokens).max_new(2).plan(&Plan::new().tap(Site::Logits)).run().map(drop)),
    ];
    for (name, result) in refused {
        let message = result.unwrap_err().to_string();
        assert!(message.contains("encoder-decoder"), "{name}: {message}");
    }
    // Patches need sources that correspond.
    let other = Tokens::new(tokens.rows()).unwrap().with_source(Tokens::new(&[vec![5], vec![6]]).unwrap()).unwrap();
    assert!(Sweep::patch(&model, &tokens, &other).run().unwrap_err().to_string().contains("sources"));
    // And a head of the encoder does not attend within the sequence of one of the decoder.
    let run = model.run(&tokens, &Plan::new().tap("pattern.*")).unwrap();
    assert!(view::attention_heads(&run, &[(0, 0), (1, 2)], 1).is_ok());
    assert!(view::attention_heads(&run, &[(0, 0), (2, 0)], 1).is_err());
    assert!(view::attention(&run, 0).is_ok() && view::attention_of(&run, 3, 1).is_ok());
}

/// Patching sources moves the metric from one run to the other: all of the memory carries all of it.
#[test]
fn the_memory_carries_the_source() {
    let model = family("bart");
    let tokens = |source: &[Vec<i64>]| {
        let tokens = Tokens::new(&[vec![2, 11, 4], vec![2, 12, 7]]).unwrap();
        tokens.with_source(Tokens::new(source).unwrap()).unwrap()
    };
    let (clean, corrupt) = (tokens(&[vec![5, 6, 7], vec![8, 9]]), tokens(&[vec![5, 30, 7], vec![8, 31]]));
    let metric = Metric::logit_difference(3, 4);
    let whole = Sweep::patch(&model, &clean, &corrupt).each(|_| Site::Memory, Every::Layer);
    let whole = whole.metric(metric.clone()).normalised().run().unwrap();
    assert_near("all of the memory", whole.f64("value").unwrap()[0], 1.0, MODEL);
    // The queries of the first decoder's layer do not depend on the source, its keys do.
    let at = |site: fn(usize) -> Site| {
        let sweep = Sweep::patch(&model, &clean, &corrupt).each(site, Every::Layer).only(|keys| keys.layer == Some(3));
        sweep.metric(metric.clone()).run().unwrap().effect().unwrap()[0]
    };
    assert_near("queries", at(Site::CrossQ), 0.0, MODEL);
    assert!(at(Site::CrossK).abs() > 1e-6 && at(Site::CrossV).abs() > 1e-6);
    // Means and other prompts as references, and edges cut.
    for ablation in [Ablation::Mean, Ablation::Resample { seed: 1 }] {
        let same = tokens(&[vec![5, 6, 7], vec![8, 9, 3]]);
        assert_eq!(Sweep::ablate(&model, &same, ablation).each(Site::CrossV, Every::Head).run().unwrap().len(), 8);
    }
    let edges = Sweep::knock_out(&model, &clean).each(Site::CrossScores, [Every::Query, Every::Key]).run().unwrap();
    assert_eq!(edges.len(), 2 * 3 * 3);
    assert!(edges.f64("value").unwrap().iter().all(|value| value.is_finite()));
    let explained = Sweep::ablate(&model, &clean, Ablation::Zero).explain().unwrap();
    assert!(explained.needed < explained.naive && explained.groups[0].joins.len() == 5, "{explained}");
    for estimate in [Estimate::AtpStar, Estimate::IntegratedGradients { steps: 4 }] {
        let found = Sweep::patch(&model, &clean, &corrupt).each(Site::CrossK, Every::Head).metric(metric.clone());
        let found = found.estimate(estimate).run().unwrap().effect().unwrap();
        assert!(found.iter().all(|effect| effect.is_finite()) && found.iter().any(|effect| effect.abs() > 1e-9));
    }
}

/// Each token that is written is the likeliest after those before it, prompt by prompt.
#[test]
fn generation_reads_the_source() {
    for name in ["t5", "marian"] {
        let (model, tokens) = (family(name), t5_tokens());
        let written = model.generate(&tokens).max_new(6).run().unwrap();
        for (prompt, continuation) in written.continuations.iter().enumerate() {
            let source = Tokens::new(&[source_of(&tokens).row(prompt).to_vec()]).unwrap();
            let mut known = tokens.row(prompt).to_vec();
            for &id in &continuation.ids {
                let now = Tokens::new(&[known.clone()]).unwrap().with_source(source.clone()).unwrap();
                let last = logits(&model, &now, Plan::new()).get(0).get(-1);
                assert_eq!(last.argmax(0, false).int64_value(&[]), id, "{name}, prompt {prompt}");
                known.push(id);
            }
            assert!(!continuation.ids.is_empty());
        }
    }
}

/// The gradient at a site is that of the metric, patterns and memory among them.
#[test]
fn gradients_flow_back_to_the_source() {
    let (model, tokens) = (family("bart"), t5_tokens());
    let metric = Metric::logit(3);
    let sites = [Site::SourceEmbed, Site::Memory, Site::CrossPattern(3), Site::Embed];
    let gradients = model.gradient(&tokens, Plan::new(), &metric, sites).unwrap();
    let run = model.run(&tokens, &Plan::new().taps(sites).tap(Site::Logits)).unwrap();
    let read = |logits: &Tensor| logits.select(1, 1).select(1, 3).sum(Kind::Double).double_value(&[]);
    for site in sites {
        let (factor, x) = (1.0 + 1e-6, run.get(site).unwrap());
        let moved = logits(&model, &tokens, Plan::new().edit(Edit::new(site, Action::Scale { factor })));
        let slope = (read(&moved) - read(run.logits().unwrap())) / 1e-6;
        let expected = (x * gradients.get(site).unwrap()).sum(Kind::Double).double_value(&[]);
        assert!((slope - expected).abs() < 1e-3 * (1.0 + expected.abs()), "{site}: {slope}, {expected}");
    }
}
