//! What must hold of taps, edits, ablations and sweeps, on random models of every kind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_close, assert_near, assert_zero, cases, configs, fixture, flat, load, random, some_tokens};
use headscope::model::{Action, Edit, Model, ModelConfig, Plan, Selector, Site, Tokens};
use headscope::prelude::{
    Ablation, Every, Metric, Strategy as How, Sweep, Table, Variant, direct_attribution, logit_lens,
};
use headscope::table::Keys;
use polars::prelude::ChunkCompareEq;
use proptest::prelude::*;
use tch::{Kind, Tensor};

const LAYER: Tol = Tol::Layer(Kind::Double);
const MODEL: Tol = Tol::Model(Kind::Double);

/// A random model, a batch for it, and one of its heads.
fn drawn() -> impl Strategy<Value = (Model, Tokens, usize, usize)> {
    let configs = configs();
    let pick = (0..configs.len(), 0u64..1000, 1usize..4, 2usize..9, 0usize..3, 0usize..4);
    pick.prop_map(move |(config, seed, batch, positions, layer, head)| {
        let config = &configs[config];
        let (layer, head) = (layer % config.n_layers, head % config.n_heads);
        (random(config, seed), some_tokens(batch, positions, config.vocab, seed as usize), layer, head)
    })
}

fn run(model: &Model, tokens: &Tokens, plan: Plan, site: Site) -> Tensor {
    model.run(tokens, &plan.tap(site)).unwrap().get(site).unwrap().shallow_clone()
}

/// The last site of a model: its logits, or its last residual stream.
fn end(model: &Model) -> Site {
    if model.config().has_logits() { Site::Logits } else { Site::ResidPost(model.config().n_layers - 1) }
}

fn row(table: &Table, layer: usize, head: usize) -> f64 {
    let (layers, heads) = (table.f64("layer").unwrap(), table.f64("head").unwrap());
    let at = (0..table.len()).find(|&i| layers[i] == layer as f64 && heads[i] == head as f64).unwrap();
    table.f64("value").unwrap()[at]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(24), failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(17), ..ProptestConfig::default() })]

    /// Invariants 1 and 3: head results and the bias sum to attn_out; zeroing a head takes away exactly its result.
    #[test]
    fn heads_add_up((model, tokens, layer, head) in drawn()) {
        let sites = [Site::Result(layer), Site::AttnOut(layer)];
        let whole = model.run(&tokens, &Plan::new().taps(sites)).unwrap();
        let (results, out) = (whole.get(sites[0]).unwrap(), whole.get(sites[1]).unwrap());
        let mut sum = results.sum_dim_intlist([2i64].as_slice(), false, None);
        if let Some((_, b_o)) = model.parameters().iter().find(|(name, _)| *name == format!("blocks.{layer}.b_o")) {
            sum += *b_o;
        }
        assert_close("sum of heads", &sum, out, LAYER);
        let without = run(&model, &tokens, Plan::new().edit(Edit::new(Site::Z(layer), Action::Zero).head(head)), Site::AttnOut(layer));
        assert_close("what is gone", &(out - without), &results.select(2, head as i64), LAYER);
    }

    /// Invariant 2: rows of a pattern sum to one, and a causal one has nothing above its diagonal.
    #[test]
    fn patterns_are_distributions((model, tokens, layer, _) in drawn()) {
        let pattern = run(&model, &tokens, Plan::new(), Site::Pattern(layer));
        let sums = pattern.sum_dim_intlist([-1i64].as_slice(), false, None);
        assert_close("row sums", &sums, &sums.ones_like(), LAYER);
        if model.config().causal {
            prop_assert_eq!(pattern.triu(1).abs().max().double_value(&[]), 0.0);
        }
    }

    /// Invariants 4, 5 and 7: the mean over equal prompts, another prompt that is the same, and the run itself change nothing.
    #[test]
    fn replacing_by_the_same_is_the_identity((model, tokens, layer, head) in drawn()) {
        let same = Tokens::new(&vec![tokens.row(0).to_vec(); 3]).unwrap();
        let z = Site::Z(layer);
        let clean = model.run(&same, &Plan::new().taps([z, end(&model)])).unwrap();
        for action in [Action::mean("self"), Action::replace("self")] {
            let plan = Plan::new().with("self", &clean).edit(Edit::new(z, action).head(head));
            assert_close("end", &run(&model, &same, plan, end(&model)), clean.get(end(&model)).unwrap(), MODEL);
        }
    }

    /// Invariant 6: the whole residual stream of another run brings its whole end with it.
    #[test]
    fn the_residual_stream_is_all_there_is((model, tokens, layer, _) in drawn()) {
        let other = some_tokens(tokens.batch(), tokens.positions(), model.config().vocab, 77);
        let sites = [Site::ResidPre(layer), end(&model)];
        let clean = model.run(&other, &Plan::new().taps(sites)).unwrap();
        let plan = Plan::new().with("clean", &clean).edit(Edit::new(sites[0], Action::replace("clean")));
        assert_close("end", &run(&model, &tokens, plan, end(&model)), clean.get(end(&model)).unwrap(), Tol::Exact);
    }

    /// Invariant 9: in a causal model, what changes at a position leaves everything before it as it was, bit for bit.
    #[test]
    fn causality((model, tokens, layer, head) in drawn()) {
        prop_assume!(model.config().causal);
        let position = tokens.positions() - 1;
        let edit = Edit::new(Site::Z(layer), Action::Zero).head(head).position(position);
        let before = |t: Tensor| t.narrow(1, 0, position as i64);
        let clean = before(run(&model, &tokens, Plan::new(), end(&model)));
        assert_close("before", &before(run(&model, &tokens, Plan::new().edit(edit), end(&model))), &clean, Tol::Exact);
    }

    /// The engine and one whole pass a variant give the same table, whatever is edited, wherever, with padding too.
    #[test]
    fn engine_is_the_naive_loop((model, tokens, layer, head) in drawn(), shorter in any::<bool>(), memory in 1usize..200_000) {
        let mut rows: Vec<Vec<i64>> = (0..tokens.batch()).map(|p| tokens.row(p).to_vec()).collect();
        if shorter && rows.len() > 1 && rows[0].len() > 2 {
            rows[1].pop();
        }
        let tokens = Tokens::new(&rows).unwrap();
        let length = tokens.positions();
        let variant = |(i, site): (usize, Site)| {
            let headed = site.axes().iter().any(|axis| ["head", "kv_head"].contains(&axis.name()));
            // One head, two, or all.
            let n = model.config().n_kv_heads;
            let some = [vec![head % n], vec![(head + 1) % n, head % n]];
            let heads = (headed && (i + layer) % 5 > 0).then(|| some[(i + head) % 2].clone());
            let positions = [None, Some(vec![length - 1]), Some(vec![(i + head) % length]), Some(vec![length / 2, length - 1])];
            let at = Selector { heads, positions: positions[(i + layer) % 4].clone(), ..Selector::default() };
            let add = Action::Add { key: "reference".into(), alpha: 0.3 };
            let actions = [Action::Scale { factor: 1.3 }, Action::Zero, Action::replace("reference"), Action::mean("reference"), add];
            // A scale of zero, or another prompt's, would divide by nothing or read the padding's.
            let action = if site.kind().ends_with("scale") { 0 } else { (i + tokens.batch() + layer) % 5 };
            // A score that is minus infinity stays so under addition only if it is one of real numbers; cut it instead.
            let cut = matches!(site, Site::Scores(_)) && action > 1;
            let action = if cut { Action::KnockOut } else { actions[action].clone() };
            let at = if cut { Selector { keys: Some(vec![i % length]), ..at } } else { at };
            let first = Edit { site, at, action };
            let second = Edit::new(Site::Z(layer), Action::Scale { factor: 0.5 }).head(head).position((i * 7) % length);
            let edits = if i % 3 == 0 { vec![first, second] } else { vec![first] };
            Variant { keys: Keys { step: Some(i as u32), ..Keys::default() }, edits }
        };
        let variants: Vec<Variant> = Site::all(model.config()).into_iter().enumerate().map(variant).collect();
        let reference = some_tokens(tokens.batch(), length, model.config().vocab, 12);
        let answers = [Metric::logit(3), Metric::logit_difference(3, 5), Metric::probability(4)];
        for metric in [Metric::Loss, Metric::Kl, answers[(layer + head) % 3].clone(), Metric::EmbeddingDistance] {
            // The embedding is read from the residual stream: an edit behind it would be an error.
            let seen = |variant: &&Variant| metric.name() != "embedding_distance" || !variant.edits.iter().any(|edit| matches!(edit.site, Site::Logits | Site::LnFinalScale));
            let variants: Vec<Variant> = variants.iter().filter(seen).cloned().collect();
            let table = |how| Sweep::ablate(&model, &tokens, Ablation::Zero).reference(&reference).variants(variants.clone()).metric(metric.clone())
                .strategy(how).memory(memory).per_prompt().run().unwrap().f64("value").unwrap();
            let (auto, naive) = (table(How::Auto), table(How::Naive));
            assert_eq!(auto.len(), variants.len() * tokens.batch());
            assert_close(metric.name(), &Tensor::from_slice(&auto), &Tensor::from_slice(&naive), MODEL);
        }
    }

    /// Invariants 6, 7 and 8: patching the whole residual stream restores the clean run, patching from itself changes
    /// nothing, and noise from a to b is denoising with the runs swapped.
    #[test]
    fn patching((model, tokens, layer, _) in drawn(), seed in 1usize..50) {
        prop_assume!(model.config().has_logits());
        let other = some_tokens(tokens.batch(), tokens.positions(), model.config().vocab, 500 + seed);
        prop_assume!(other != tokens);
        let metric = || Metric::logit_difference(3, 5);
        let whole = Sweep::patch(&model, &other, &tokens).each(Site::ResidPre, Every::Layer).metric(metric()).normalised().run().unwrap();
        // A quotient whose denominator is the difference that the two runs make.
        let last = |tokens: &Tokens| run(&model, tokens, Plan::new(), Site::Logits).select(1, -1);
        let value = |tokens: &Tokens| (last(tokens).select(1, 3) - last(tokens).select(1, 5)).mean(Kind::Double).double_value(&[]);
        let gap = (value(&other) - value(&tokens)).abs();
        assert_near("restored", whole.f64("value").unwrap()[layer], 1.0, Tol::Conditioned(10.0 / gap));
        let own = Sweep::patch(&model, &tokens, &tokens).each(Site::K, [Every::Head, Every::Position]).metric(metric()).run().unwrap();
        assert_zero("itself", &Tensor::from_slice(&own.effect().unwrap()), 1.0, MODEL);
        let noise = Sweep::noise(&model, &tokens, &other).each(Site::V, Every::Position).metric(metric()).run().unwrap();
        let swapped = Sweep::patch(&model, &other, &tokens).each(Site::V, Every::Position).metric(metric()).run().unwrap();
        prop_assert_eq!(noise.f64("value").unwrap(), swapped.f64("value").unwrap());
    }

    /// Cutting an attention edge leaves its weight zero and the rest in proportion; a query without keys attends to nothing.
    #[test]
    fn knocked_out_edges((model, tokens, layer, head) in drawn()) {
        let last = tokens.positions() - 1;
        let (scores, pattern) = (Site::Scores(layer), Site::Pattern(layer));
        let clean = run(&model, &tokens, Plan::new(), pattern).select(1, head as i64).select(1, last as i64);
        let cut = Edit::new(scores, Action::KnockOut).head(head).position(last);
        let one = run(&model, &tokens, Plan::new().edit(cut.clone().keys([0])), pattern).select(1, head as i64).select(1, last as i64);
        let kept = clean.narrow(1, 1, last as i64);
        let expected = &kept / kept.sum_dim_intlist([1i64].as_slice(), true, None);
        assert_close("renormalised", &one.narrow(1, 1, last as i64), &expected, LAYER);
        prop_assert_eq!(one.select(1, 0).abs().max().double_value(&[]), 0.0);
        let none = run(&model, &tokens, Plan::new().edit(cut), pattern).select(1, head as i64).select(1, last as i64);
        prop_assert_eq!(none.abs().max().double_value(&[]), 0.0);
    }

    /// A subspace and its complement add up, and what is outside is orthogonal to it.
    #[test]
    fn projections_split((model, tokens, layer, _) in drawn(), seed in 0u64..100) {
        let site = Site::ResidPost(layer);
        let basis = Model::random(&ModelConfig { vocab: 3, ..model.config().clone() }, seed).unwrap();
        let basis = basis.parameters()[0].1.to_kind(Kind::Double);
        let x = run(&model, &tokens, Plan::new(), site);
        let part = |keep| {
            let plan = Plan::new().with_tensor("basis", site, &basis).edit(Edit::new(site, Action::Project { key: "basis".into(), keep }));
            run(&model, &tokens, plan, site)
        };
        assert_close("sum", &(part(true) + part(false)), &x, LAYER);
        let along = x.matmul(&basis.tr());
        assert_zero("orthogonal", &part(false).matmul(&basis.tr()), along.abs().max().double_value(&[]), LAYER);
    }
}

/// Invariant 19: where the heads stand makes no difference; a table of ablations permutes with them.
#[test]
fn heads_may_change_places() {
    let model = load("tiny-gpt2", Kind::Double);
    let tokens = some_tokens(3, 8, 97, 1);
    let table = Sweep::ablate(&model, &tokens, Ablation::Zero).run().unwrap();
    let permuted = permuted_copy("tiny-gpt2", &[2, 0, 3, 1]);
    let model = Model::load_with(
        permuted.path().to_str().unwrap(),
        &headscope::checkpoint::LoadOptions { kind: Kind::Double, ..Default::default() },
    )
    .unwrap();
    let other = Sweep::ablate(&model, &tokens, Ablation::Zero).run().unwrap();
    for layer in 0..3 {
        for (new, old) in [2, 0, 3, 1].into_iter().enumerate() {
            assert_near(&format!("{layer}.{new}"), row(&other, layer, new), row(&table, layer, old), MODEL);
        }
    }
}

/// A copy of a GPT-2 checkpoint in which new head i is old head `order[i]`, in every layer.
fn permuted_copy(name: &str, order: &[i64]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(name).join("config.json"), folder.path().join("config.json")).unwrap();
    let width = 8;
    let index: Vec<i64> = order.iter().flat_map(|head| head * width..(head + 1) * width).collect();
    let all: Vec<i64> = (0..3).flat_map(|part| index.iter().map(move |i| part * 32 + i)).collect();
    let (index, all) = (Tensor::from_slice(&index), Tensor::from_slice(&all));
    let permute = |(name, tensor): (String, Tensor)| {
        let tensor = match name.as_str() {
            n if n.ends_with("c_attn.weight") => tensor.index_select(1, &all),
            n if n.ends_with("c_attn.bias") => tensor.index_select(0, &all),
            n if n.ends_with("attn.c_proj.weight") => tensor.index_select(0, &index),
            _ => tensor,
        };
        (name, tensor)
    };
    let tensors: Vec<(String, Tensor)> =
        Tensor::read_safetensors(fixture(name).join("model.safetensors")).unwrap().into_iter().map(permute).collect();
    let named: Vec<(&str, Tensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shallow_clone())).collect();
    Tensor::write_safetensors(&named, folder.path().join("model.safetensors")).unwrap();
    folder
}

/// Zero and mean ablation of every head, as hooks on transformers' own models have it.
#[test]
fn ablations_are_those_of_transformers() {
    for name in ["tiny-gpt2", "tiny-llama", "tiny-bert"] {
        let model = load(name, Kind::Double);
        let golden: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(fixture(name).join("golden-ablation.json")).unwrap())
                .unwrap();
        let rows: Vec<Vec<i64>> = serde_json::from_value(golden["tokens"].clone()).unwrap();
        let tokens = Tokens::new(&rows).unwrap();
        for (kind, ablation) in [("zero", Ablation::Zero), ("mean", Ablation::Mean)] {
            for metric in [Metric::Loss, Metric::Kl, Metric::logit_difference(3, 5)] {
                let table = Sweep::ablate(&model, &tokens, ablation).metric(metric.clone()).run().unwrap();
                assert_eq!(table.len(), 12);
                for layer in 0..3 {
                    for head in 0..4 {
                        let expected = golden[kind][layer][head][metric.name()].as_f64().unwrap();
                        assert_near(
                            &format!("{name} {kind} {} {layer}.{head}", metric.name()),
                            row(&table, layer, head),
                            expected,
                            MODEL,
                        );
                    }
                }
                assert_near(
                    "baseline",
                    table.f64("baseline").unwrap()[0],
                    golden["unablated"][metric.name()].as_f64().unwrap(),
                    MODEL,
                );
            }
        }
    }
}

/// Resampling takes another prompt's activation, the same one for the same seed, and never the prompt's own.
#[test]
fn resampling_draws_another_prompt() {
    let model = load("tiny-gpt2", Kind::Double);
    let two = some_tokens(2, 6, 97, 3);
    let table = Sweep::ablate(&model, &two, Ablation::Resample { seed: 1 })
        .per_prompt()
        .metric(Metric::logit_difference(3, 5))
        .run()
        .unwrap();
    // With two prompts each must take the other's: the same as replacing by the swapped batch.
    let swapped = model.run(&two.select(&[1, 0]).unwrap(), &Plan::new().tap(Site::Z(1))).unwrap();
    let plan = Plan::new().with("other", &swapped).edit(Edit::new(Site::Z(1), Action::replace("other")).head(2));
    let logits = run(&model, &two, plan, Site::Logits).select(1, 5);
    let difference = logits.select(1, 3) - logits.select(1, 5);
    let (prompts, layers, heads) =
        (table.f64("prompt").unwrap(), table.f64("layer").unwrap(), table.f64("head").unwrap());
    for i in (0..table.len()).filter(|&i| (layers[i], heads[i]) == (1.0, 2.0)) {
        assert_near("resampled", table.f64("value").unwrap()[i], difference.double_value(&[prompts[i] as i64]), MODEL);
    }
    let alone = some_tokens(1, 6, 97, 3);
    assert!(Sweep::ablate(&model, &alone, Ablation::Resample { seed: 1 }).run().is_err(), "there is no other prompt");
}

/// Gradients flow through a differentiable run: the derivative along an edit is a finite difference.
#[test]
fn runs_are_differentiable_when_asked() {
    let model = load("tiny-llama", Kind::Double);
    let tokens = some_tokens(2, 6, 97, 5);
    let site = Site::Z(1);
    let run = model.run(&tokens, &Plan::new().taps([site, Site::Logits]).differentiable()).unwrap();
    let score = |logits: &Tensor| logits.select(1, 5).select(1, 3).sum(Kind::Double);
    let gradient = Tensor::run_backward(&[score(run.logits().unwrap())], &[run.get(site).unwrap()], false, false);
    let direction = gradient[0].sign();
    let at = |alpha: f64| {
        let plan = Plan::new()
            .with_tensor("d", site, &direction)
            .edit(Edit::new(site, Action::Add { key: "d".into(), alpha }));
        score(model.run(&tokens, &plan).unwrap().logits().unwrap()).double_value(&[])
    };
    let h = 1e-4;
    let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h);
    let expected = (&gradient[0] * &direction).sum(Kind::Double).double_value(&[]);
    assert_near("slope", slope, expected, Tol::Difference);
}

/// Nothing silently does nothing: what cannot fire is an error that says why.
#[test]
fn what_cannot_fire_is_an_error() {
    let model = load("tiny-gpt2", Kind::Float);
    let tokens = some_tokens(2, 5, 97, 0);
    let fails = |plan: Plan| model.run(&tokens, &plan).unwrap_err().to_string();
    let zero = |site| Edit::new(site, Action::Zero);
    let says = |message: String, part: &str| assert!(message.contains(part), "`{message}` does not say `{part}`");
    says(fails(Plan::new().tap(Site::Pattern(3))), "layers 0 to 2");
    says(fails(Plan::new().tap(Site::TypeEmbed)), "no token types");
    says(fails(Plan::new().edit(zero(Site::Z(0)).head(4))), "head 4 is out of range, expected less than 4");
    says(fails(Plan::new().edit(zero(Site::Z(0)).position(5))), "position 5 is out of range");
    says(fails(Plan::new().edit(zero(Site::ResidPre(0)).head(0))), "heads");
    says(fails(Plan::new().edit(zero(Site::Z(0)).keys([0]))), "keys");
    says(fails(Plan::new().edit(zero(Site::Z(0)).heads([]))), "empty list");
    says(fails(Plan::new().edit(Edit::new(Site::Z(0), Action::KnockOut))), "scores");
    says(fails(Plan::new().edit(Edit::new(Site::Z(0), Action::mean("nowhere")))), "nowhere");
    says(fails(Plan::new().tap(Site::ResidPre(0)).edit(zero(Site::Z(0)))), "a tap that it can reach");
    says(
        model.run(&Tokens::new(&[vec![97]]).unwrap(), &Plan::new()).unwrap_err().to_string(),
        "vocab 97 is out of range",
    );
    says(model.run(&some_tokens(1, 41, 97, 0), &Plan::new()).unwrap_err().to_string(), "at most 40 positions");
    says("patern.3".parse::<Site>().unwrap_err().to_string(), "pattern.3");
    let wrong = Tensor::zeros([3, 3], (Kind::Float, tch::Device::Cpu));
    let plan =
        Plan::new().with_tensor("wrong", Site::Z(0), &wrong).edit(Edit::new(Site::Z(0), Action::replace("wrong")));
    says(fails(plan), "broadcasts to [2, 5, 4, 8]");
}

/// Every site can be tapped, has the shape it promises, and an edit of it is seen by its own tap.
#[test]
fn every_site_can_be_read_and_changed() {
    for config in configs() {
        let model = random(&config, 4);
        let tokens = some_tokens(2, 5, config.vocab, 4);
        let sites = Site::all(&config);
        let whole = model.run(&tokens, &Plan::new().taps(sites.iter().copied())).unwrap();
        for site in sites {
            assert_eq!(whole.get(site).unwrap().size(), site.shape(&config, 2, 5), "{} {site}", config.family);
            assert_eq!(site.to_string().parse::<Site>().unwrap(), site);
            let plan = Plan::new().edit(Edit::new(site, Action::Scale { factor: 2.0 }));
            let doubled = run(&model, &tokens, plan, site);
            assert_close(&format!("{} {site}", config.family), &doubled, &(whole.get(site).unwrap() * 2.0), MODEL);
        }
    }
}

/// A sweep along positions, heads and layers has a row for each, in order.
#[test]
fn tables_are_tidy_and_sorted() {
    let model = load("tiny-llama", Kind::Float);
    let tokens = some_tokens(2, 5, 97, 2);
    let table =
        Sweep::ablate(&model, &tokens, Ablation::Zero).each(Site::K, [Every::Head, Every::Position]).run().unwrap();
    assert_eq!(table.columns(), ["layer", "kv_head", "position", "metric", "value", "unit", "baseline"]);
    assert_eq!(table.len(), 3 * 2 * 5);
    let folder = tempfile::tempdir().unwrap();
    for ending in ["parquet", "csv", "json"] {
        let path = folder.path().join(format!("table.{ending}"));
        table.write(&path).unwrap();
        assert!(path.metadata().unwrap().len() > 100);
    }
    let read = Table::read(folder.path().join("table.parquet")).unwrap();
    assert_eq!(read.f64("value").unwrap(), table.f64("value").unwrap());
    assert_eq!(read.provenance(), table.provenance());
    assert_eq!(read.provenance().sha256.len(), 64);
    assert!(table.write(folder.path().join("table.txt")).is_err());
}

/// Heads gone one after another: the first step is the single ablation, the last has none left.
#[test]
fn heads_may_go_one_after_another() {
    let model = load("tiny-gpt2", Kind::Double);
    let tokens = some_tokens(2, 6, 97, 8);
    let single = Sweep::ablate(&model, &tokens, Ablation::Zero).run().unwrap();
    let order = single.heads_by_effect().unwrap();
    assert_eq!(order.len(), 12);
    let curve = Sweep::ablate(&model, &tokens, Ablation::Zero).one_after_another(&order).run().unwrap();
    assert_eq!(curve.columns(), ["parts", "metric", "value", "unit", "baseline"]);
    assert_near("first", curve.f64("value").unwrap()[0], row(&single, order[0].0, order[0].1), MODEL);
    let all = (0..3).fold(Plan::new(), |plan, layer| plan.edit(Edit::new(Site::Z(layer), Action::Zero)));
    let logits = run(&model, &tokens, all, Site::Logits);
    let targets = Tensor::from_slice(&[tokens.row(0), tokens.row(1)].concat()).view([2, 6]).narrow(1, 1, 5);
    let chosen = logits.log_softmax(-1, None).narrow(1, 0, 5).gather(2, &targets.unsqueeze(2), false);
    assert_near("last", curve.f64("value").unwrap()[11], -chosen.mean(Kind::Double).double_value(&[]), MODEL);
}

/// What a patch needs is said before anything is computed.
#[test]
fn patches_that_do_not_fit() {
    let model = load("tiny-gpt2", Kind::Double);
    let (clean, longer) = (some_tokens(2, 5, 97, 1), some_tokens(2, 6, 97, 1));
    let says = |sweep: Sweep<'_>, part: &str| {
        let message = sweep.run().unwrap_err().to_string();
        assert!(message.contains(part), "`{message}` does not say `{part}`");
    };
    let metric = || Metric::logit_difference(3, 5);
    says(Sweep::patch(&model, &clean, &longer).metric(metric()), "same lengths");
    says(Sweep::patch(&model, &clean, &clean).metric(metric()).normalised(), "differs between");
    says(Sweep::patch(&model, &clean, &clean).metric(Metric::Kl).normalised(), "a metric of one run");
    says(Sweep::ablate(&model, &clean, Ablation::Zero).normalised(), "a patch");
    let pattern = Sweep::patch(&model, &clean, &some_tokens(2, 5, 97, 2))
        .each(Site::Pattern, [Every::Head, Every::Position])
        .metric(metric())
        .run()
        .unwrap();
    assert_eq!(pattern.columns(), ["layer", "head", "query", "metric", "value", "unit", "baseline"]);
}

/// Invariants 11 and 12: the terms sum to the logit difference, and without norms ablating a last-layer head takes away
/// exactly what it wrote. The lens at the last depth is the model itself.
#[test]
fn direct_attribution_is_exact() {
    for config in configs().into_iter().filter(|config| config.causal) {
        let model = random(&config, 9);
        let tokens = Tokens::new(&[vec![1, 2, 3, 4, 5], vec![6, 7, 8]]).unwrap();
        let metric = Metric::logit_difference(vec![3, 4], vec![5, 6]);
        let terms = direct_attribution(&model, &tokens, &metric).unwrap();
        let ablated = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(metric.clone()).run().unwrap();
        let whole = ablated.f64("baseline").unwrap()[0];
        assert_near(&config.family, terms.f64("value").unwrap().iter().sum(), whole, MODEL);
        let lens = logit_lens(&model, &tokens, &metric).unwrap();
        assert_eq!(lens.len(), 2 * config.n_layers + 1);
        let value_at = |table: &Table, site: &str| {
            let rows = table.frame().filter(&table.frame().column("site").unwrap().str().unwrap().equal(site)).unwrap();
            rows.column("value").unwrap().f64().unwrap().to_vec()
        };
        assert_near("lens", value_at(&lens, "resid_post")[0].unwrap(), whole, MODEL);
        if config.family == "no norms" {
            let no_mlp = random(&ModelConfig { d_mlp: 0, ..config.clone() }, 9);
            let terms = direct_attribution(&no_mlp, &tokens, &metric).unwrap();
            let ablated = Sweep::ablate(&no_mlp, &tokens, Ablation::Zero).metric(metric.clone()).run().unwrap();
            let heads = value_at(&terms, "result");
            let effects = ablated.effect().unwrap();
            for head in 0..config.n_heads {
                let at = (config.n_layers - 1) * config.n_heads + head;
                assert_near("head", effects[at], -heads[at].unwrap(), MODEL);
            }
        }
    }
    let bert = load("tiny-bert", Kind::Double);
    let tokens = some_tokens(1, 5, 97, 0);
    assert!(direct_attribution(&bert, &tokens, &Metric::logit_difference(3, 4)).is_err());
    assert!(direct_attribution(&load("tiny-gpt2", Kind::Double), &tokens, &Metric::Loss).is_err());
}

/// No edit of the scores opens an edge into the future, and another run's padding never stands in for a real token.
#[test]
fn masks_and_padding_hold() {
    let model = load("tiny-gpt2", Kind::Double);
    let tokens = some_tokens(2, 5, 97, 6);
    for action in [Action::Zero, Action::Scale { factor: -1.0 }, Action::Scale { factor: 0.0 }] {
        let pattern = run(&model, &tokens, Plan::new().edit(Edit::new(Site::Scores(1), action)), Site::Pattern(1));
        assert_eq!(pattern.triu(1).abs().max().double_value(&[]), 0.0);
        assert_eq!(pattern.isfinite().all().int64_value(&[]), 1);
    }
    let ragged = Tokens::new(&[vec![1, 2, 3, 4, 5], vec![6, 7, 8]]).unwrap();
    let other = model.run(&ragged, &Plan::new().tap(Site::Z(0))).unwrap();
    let replace = |edit: Edit| model.run(&tokens, &Plan::new().with("other", &other).edit(edit));
    let message = replace(Edit::new(Site::Z(0), Action::replace("other"))).unwrap_err().to_string();
    assert!(message.contains("position 4 for prompt 1"), "{message}");
    replace(Edit::new(Site::Z(0), Action::replace("other")).positions([0, 2])).unwrap();
    let tap = |plan: Plan, site| model.run(&tokens, &plan.tap(site)).map(drop);
    assert!(tap(Plan::new().edit(Edit::new(Site::V(1), Action::Zero)), Site::Pattern(1)).is_err());
    assert!(tap(Plan::new().edit(Edit::new(Site::AttnOut(1), Action::Zero)), Site::Result(1)).is_err());
    assert!(tap(Plan::new().edit(Edit::new(Site::V(1), Action::Zero)), Site::Pattern(2)).is_ok());
}

/// Rows that span less than their number span what they span.
#[test]
fn a_dependent_basis_is_its_span() {
    let model = load("tiny-gpt2", Kind::Double);
    let (tokens, site) = (some_tokens(1, 4, 97, 2), Site::ResidPost(0));
    let one = model.parameters()[0].1.narrow(0, 3, 1);
    let project = |basis: &Tensor| {
        let edit = Edit::new(site, Action::Project { key: "basis".into(), keep: false });
        model.run(&tokens, &Plan::new().tap(site).with_tensor("basis", site, basis).edit(edit))
    };
    let (single, double) = (project(&one).unwrap(), project(&Tensor::cat(&[&one, &(&one * 2.0)], 0)).unwrap());
    assert_close("span", double.get(site).unwrap(), single.get(site).unwrap(), LAYER);
    assert!(project(&(&one * 0.0)).is_err());
    assert!(project(&(&one * f64::NAN)).is_err());
}

/// Token types reach the model, also through a sweep.
#[test]
fn token_types_count() {
    let model = load("tiny-bert", Kind::Double);
    let plain = some_tokens(2, 5, 97, 3);
    let typed = plain.clone().with_types(vec![vec![0, 0, 1, 1, 1], vec![0, 1, 1, 1, 1]]).unwrap();
    let types = run(&model, &typed, Plan::new(), Site::TypeEmbed);
    let w_type = model.parameters().into_iter().find(|(name, _)| name == "w_type").unwrap().1.shallow_clone();
    assert_close("type", &types.get(1).get(1), &w_type.get(1), Tol::Exact);
    let value = |tokens: &Tokens, how| {
        Sweep::ablate(&model, tokens, Ablation::Mean)
            .metric(Metric::logit_difference(3, 5))
            .strategy(how)
            .run()
            .unwrap()
            .f64("value")
            .unwrap()
    };
    assert_ne!(value(&plain, How::Auto), value(&typed, How::Auto));
    assert_close(
        "sweep",
        &Tensor::from_slice(&value(&typed, How::Auto)),
        &Tensor::from_slice(&value(&typed, How::Naive)),
        MODEL,
    );
    assert!(plain.clone().with_types(vec![vec![0; 5]]).is_err());
    let unknown = plain.with_types(vec![vec![2; 5]; 2]).unwrap();
    assert!(model.run(&unknown, &Plan::new()).is_err());
}

/// Activation patching at every site, both ways, raw and normalised, as TransformerLens and hooks on transformers have it.
#[test]
fn patches_are_those_of_transformer_lens() {
    for name in ["tiny-gpt2", "tiny-llama"] {
        let model = load(name, Kind::Double);
        let golden: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(fixture(name).join("golden-patching.json")).unwrap())
                .unwrap();
        let rows = |key: &str| -> Vec<Vec<i64>> { serde_json::from_value(golden[key].clone()).unwrap() };
        let (clean, corrupt) = (Tokens::new(&rows("clean")).unwrap(), Tokens::new(&rows("corrupt")).unwrap());
        let side = |i: usize| rows("answers").iter().map(|pair| pair[i]).collect::<Vec<i64>>();
        type Make = fn(usize) -> Site;
        let sites: [(&str, Make, &[Every]); 10] = [
            ("resid_pre", Site::ResidPre, &[Every::Position]),
            ("resid_mid", Site::ResidMid, &[Every::Position]),
            ("attn_out", Site::AttnOut, &[Every::Position]),
            ("mlp_out", Site::MlpOut, &[Every::Position]),
            ("z", Site::Z, &[Every::Head]),
            ("q", Site::Q, &[Every::Head]),
            ("k", Site::K, &[Every::Head]),
            ("v", Site::V, &[Every::Head]),
            ("pattern", Site::Pattern, &[Every::Head]),
            ("z_by_position", Site::Z, &[Every::Head, Every::Position]),
        ];
        for (key, site, every) in sites {
            for (direction, normalised) in
                [("denoise", false), ("noise", false), ("denoise_normalised", true), ("noise_normalised", true)]
            {
                let expected = flat(&golden[direction][key]);
                let sweep = if direction.starts_with("noise") {
                    Sweep::noise(&model, &clean, &corrupt)
                } else {
                    Sweep::patch(&model, &clean, &corrupt)
                };
                let sweep = sweep.each(site, every).metric(Metric::logit_difference(side(0), side(1)));
                let table = if normalised { sweep.normalised() } else { sweep }.run().unwrap();
                let found = table.f64("value").unwrap();
                assert_close(
                    &format!("{name} {key} {direction}"),
                    &Tensor::from_slice(&found),
                    &Tensor::from_slice(&expected),
                    MODEL,
                );
            }
        }
    }
}
