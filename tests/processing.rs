//! Weight processing: other weights, the same output, over random architectures and beside TransformerLens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;

use common::architectures::any_config;
use common::{
    Tol, assert_close, assert_close_at, assert_zero, fixture, load, random, read_tensors, scale, some_tokens,
};
use headscope::model::{EmbedProjection, Experts, NormKind, NormPlace, Parallel, Processing};
use headscope::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const MODEL: Tol = Tol::Model(Kind::Double);
const LAYER: Tol = Tol::Layer(Kind::Double);
const CASES: u32 = 120;

fn does(step: Processing, model: &Model) -> headscope::Result<Model> {
    match step {
        Processing::FoldNorms => model.fold_norms(),
        Processing::CenterWritingWeights => model.center_writing_weights(),
        Processing::CenterUnembed => model.center_unembed(),
        Processing::FoldValueBiases => model.fold_value_biases(),
    }
}

fn logits(model: &Model, tokens: &Tokens) -> Tensor {
    model.run(tokens, &Plan::new()).unwrap().logits().unwrap().shallow_clone()
}

/// The parameters whose name, without its block, is among `names`.
fn named<'a>(model: &'a Model, names: &'a [&str]) -> impl Iterator<Item = (String, &'a Tensor)> {
    let short = |name: &str| name.rsplit_once("blocks.").map_or(name.to_owned(), |(_, rest)| rest.to_owned());
    model.parameters().into_iter().filter(move |(name, _)| {
        let short = short(name);
        names.iter().any(|known| short == *known || short.ends_with(&format!(".{known}")))
    })
}

/// What a step promises of the weights, and of the activations that follow from it.
fn holds(step: Processing, model: &Model, tokens: &Tokens) {
    let config = model.config();
    let what = |name: &str| format!("{step:?}: {name} of {config:?}");
    match step {
        Processing::FoldNorms => {
            for (name, w) in named(model, &["ln1.w", "ln2.w", "ln_final.w"]) {
                assert_close(&what(&name), w, &w.ones_like(), Tol::Exact);
            }
            for (name, b) in named(model, &["ln1.b", "ln2.b", "ln_final.b"]) {
                assert_zero(&what(&name), b, 1.0, Tol::Exact);
            }
        }
        Processing::CenterWritingWeights => {
            let mean = |x: &Tensor| x.mean_dim([-1i64].as_slice(), false, Kind::Double);
            for (name, w) in named(model, &["w_o", "b_o", "w_out", "b_out"]) {
                assert_zero(&what(&name), &mean(w), scale(w), LAYER);
            }
            let run = model.run(tokens, &Plan::new().tap("resid_*")).unwrap();
            for (site, x) in run.taps() {
                assert_zero(&what(&site.to_string()), &mean(x), scale(x), MODEL);
            }
        }
        Processing::CenterUnembed => {
            for (name, w) in named(model, &["w_u", "b_u"]) {
                assert_zero(&what(&name), &w.mean_dim([-1i64].as_slice(), false, Kind::Double), scale(w), LAYER);
            }
            let logits = logits(model, tokens);
            let mean = logits.mean_dim([-1i64].as_slice(), false, Kind::Double);
            assert_zero(&what("logits"), &mean, scale(&logits), MODEL);
        }
        Processing::FoldValueBiases => {
            for (name, b) in named(model, &["b_v"]) {
                assert_zero(&what(&name), b, 1.0, Tol::Exact);
            }
        }
    }
}

/// Each step that is accepted keeps the output, has its promised effect, and leaves a model that can be saved and loaded; the
/// original is untouched. Each step is accepted often enough for that to mean something.
#[test]
fn accepted_steps_keep_the_output() {
    let mut accepted: BTreeMap<Processing, [u32; 2]> = BTreeMap::new();
    for seed in 0..u64::from(common::cases(CASES)) {
        let config = any_config(&mut ChaCha8Rng::seed_from_u64(seed));
        let model = random(&config, seed);
        let tokens = some_tokens(2, 3 + (seed % 6) as usize, config.vocab, seed as usize);
        let (before, sha256) = (logits(&model, &tokens), model.sha256().unwrap());
        for step in Processing::ALL {
            let [yes, no] = accepted.entry(step).or_default();
            let found = does(step, &model);
            assert_eq!(found.is_ok(), step.check(&config).is_ok());
            let Ok(found) = found else {
                *no += 1;
                continue;
            };
            *yes += 1;
            found.config().validate().unwrap();
            let after = logits(&found, &tokens);
            let what = format!("{step:?} of {config:?}");
            if step == Processing::CenterUnembed {
                let shift = (&before - &after).mean_dim([-1i64].as_slice(), true, Kind::Double);
                assert_close_at(&what, &(&after + shift), &before, scale(&before), MODEL);
                let kind = Kind::Double;
                assert_close(&what, &after.log_softmax(-1, kind), &before.log_softmax(-1, kind), MODEL);
            } else {
                assert_close(&what, &after, &before, MODEL);
            }
            holds(step, &found, &tokens);
            assert_eq!(found.origin().processing, [step]);
            let folder = tempfile::tempdir().unwrap();
            found.save(folder.path()).unwrap();
            let options = LoadOptions { kind: Kind::Double, ..LoadOptions::default() };
            let loaded = Model::load_with(folder.path().to_str().unwrap(), &options).unwrap();
            assert_eq!(loaded.config(), found.config());
            assert_eq!(loaded.origin().processing, [step]);
            assert_close(&what, &logits(&loaded, &tokens), &after, MODEL);
        }
        let all = model.processed().unwrap();
        let probabilities = |logits: &Tensor| logits.log_softmax(-1, Kind::Double);
        let what = format!("{:?} of {config:?}", all.origin().processing);
        assert_close(&what, &probabilities(&logits(&all, &tokens)), &probabilities(&before), MODEL);
        for step in all.origin().processing.iter().filter(|step| **step != Processing::CenterWritingWeights) {
            holds(*step, &all, &tokens);
        }
        assert_eq!(model.sha256().unwrap(), sha256, "the original has changed");
    }
    let full = common::cases(CASES) == CASES;
    assert!(!full || accepted.values().all(|[yes, no]| *yes >= 5 && *no >= 5), "{accepted:?}");
}

/// A step that would change the output says why, in the architecture's own words.
#[test]
fn refusals_say_why() {
    let base = ModelConfig::default;
    let cases = [
        (
            Processing::FoldNorms,
            ModelConfig { norm_place: NormPlace::Post, ..base() },
            "read by the residual stream too",
        ),
        (
            Processing::FoldNorms,
            ModelConfig { norm_place: NormPlace::Output, ..base() },
            "on the output of each sub-layer",
        ),
        (
            Processing::FoldNorms,
            ModelConfig { unembed: headscope::model::Unembed::None, ..base() },
            "ends in that norm",
        ),
        (
            Processing::FoldNorms,
            ModelConfig {
                experts: Some(Experts { n: 2, top_k: 1, normalised: true, router_bias: false, shared: None }),
                ..base()
            },
            "router has none",
        ),
        (
            Processing::CenterWritingWeights,
            ModelConfig { norm: NormKind::Rms, ..base() },
            "RMSNorm does not take the mean away",
        ),
        (Processing::CenterWritingWeights, ModelConfig { norm: NormKind::None, ..base() }, "no norms"),
        (Processing::CenterWritingWeights, ModelConfig { embed_norm: true, ..base() }, "a norm on them"),
        (
            Processing::CenterWritingWeights,
            ModelConfig { norm_place: NormPlace::Sandwich, ..base() },
            "and on its output",
        ),
        (Processing::CenterUnembed, ModelConfig { logit_cap: Some(30.0), ..base() }, "a cap of 30"),
        (Processing::FoldValueBiases, ModelConfig { sinks: true, ..base() }, "attention sinks"),
    ];
    for (step, config, reason) in cases {
        let error = does(step, &random(&config, 0)).unwrap_err();
        assert!(error.is_misuse());
        let said = error.to_string();
        assert!(said.contains(step.name()) && said.contains(reason), "{said}");
    }
    let served = [
        ModelConfig { parallel: Parallel::OneNorm, ..base() },
        ModelConfig { embed_projection: EmbedProjection::Sum(8), embed_norm: true, ..base() },
        ModelConfig { tied_unembed: true, n_kv_heads: 2, ..base() },
    ];
    for config in served {
        assert_eq!(random(&config, 0).processed().unwrap().origin().processing, Processing::ALL);
    }
}

/// BERT keeps its norms: what TransformerLens would fold wrongly is left out, and the rest is done.
#[test]
fn trained_layouts_are_processed_as_far_as_they_can_be() {
    let bert = load("tiny-bert", Kind::Double);
    let done = bert.processed().unwrap();
    assert_eq!(done.origin().processing, [Processing::CenterUnembed, Processing::FoldValueBiases]);
    assert!(bert.config().tied_unembed && !done.config().tied_unembed);
    assert_eq!(done.n_parameters() - bert.n_parameters(), bert.config().vocab * bert.config().d_model);
    let record = done.provenance(serde_json::json!({}), None).unwrap();
    assert_eq!(record.options["processing"], serde_json::json!(["center_unembed", "fold_value_biases"]));
    assert_ne!(record.sha256, bert.sha256().unwrap());
    assert!(bert.provenance(serde_json::json!({}), None).unwrap().options.get("processing").is_none());
}

/// Every processed weight is TransformerLens', which also centres what the matrices behind a LayerNorm read.
#[test]
fn weights_are_those_of_transformer_lens() {
    let golden = read_tensors(&fixture("tiny-gpt2").join("golden-processing.safetensors"));
    let model = load("tiny-gpt2", Kind::Double).processed().unwrap();
    let own: BTreeMap<String, &Tensor> = model.parameters().into_iter().collect();
    let heads = model.config().n_heads as i64;
    for (name, expected) in &golden {
        let (place, part) = name.rsplit_once('.').unwrap();
        let block =
            place.split('.').nth(1).filter(|_| place.starts_with("blocks")).map(|layer| format!("blocks.{layer}."));
        let part = if name == "pos_embed.W_pos" { "w_pos".to_owned() } else { part.to_lowercase() };
        let ours = own[&format!("{}{part}", block.unwrap_or_default())];
        let reads = ["w_q", "w_k", "w_v", "w_in", "w_u"].contains(&part.as_str());
        let ours =
            if reads { ours - ours.mean_dim([0i64].as_slice(), true, Kind::Double) } else { ours.shallow_clone() };
        let ours = match part.as_str() {
            "w_q" | "w_k" | "w_v" => ours.unflatten(1, [heads, -1]).transpose(0, 1),
            "w_o" => ours.unflatten(0, [heads, -1]),
            "b_q" | "b_k" | "b_v" => ours.unflatten(0, [heads, -1]),
            _ => ours,
        };
        // A folded value bias is 0 in both; TransformerLens keeps what rounding leaves.
        assert_close_at(name, &ours, expected, scale(expected).max(1.0), Tol::Layer(Kind::Float));
    }
    assert!(golden.len() > 35);
}
