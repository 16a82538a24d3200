//! Lenses: what the model would answer at each depth, and what each head writes, over random architectures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::HashMap;

use common::architectures::any_config;
use common::{Tol, assert_close, assert_near, fixture, load, random, some_tokens};
use headscope::prelude::*;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const MODEL: Tol = Tol::Model(Kind::Double);

fn cases(n: u32) -> ProptestConfig {
    let rng_seed = proptest::test_runner::RngSeed::Fixed(18);
    ProptestConfig { cases: common::cases(n), failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

fn any_model(seed: u64) -> (Model, Tokens) {
    let config = any_config(&mut ChaCha8Rng::seed_from_u64(seed));
    let tokens = some_tokens(2, 3 + (seed % 4) as usize, config.vocab, seed as usize % 1000);
    (random(&config, seed % 997), tokens)
}

/// The values of the rows of one depth, prompt and position, by token id.
fn by_token(rows: &[Observation], site: Site, place: (u32, u32)) -> Vec<(u32, i64, f64)> {
    let here = rows.iter().filter(|row| {
        let keys = &row.keys;
        let at = (keys.site.as_deref(), keys.layer.map(|layer| layer as usize), keys.prompt, keys.position);
        at == (Some(site.kind()), site.layer(), Some(place.0), Some(place.1))
    });
    here.map(|row| (row.keys.rank.unwrap(), row.keys.token.as_ref().unwrap().parse().unwrap(), row.value)).collect()
}

proptest! {
    #![proptest_config(cases(60))]

    /// At each depth the lens reads what the model answers whose last stream is replaced by the one at that depth; at the last
    /// depth that is the model's own answer. Ranks are in order, and the probabilities of all tokens sum to 1.
    #[test]
    fn a_depth_is_read_as_the_last_one(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let config = model.config();
        let last = Site::ResidPost(config.n_layers - 1);
        let rows = Lens::logit(&model).top(&tokens, config.vocab).unwrap().rows().unwrap();
        let run = model.run(&tokens, &Plan::new().tap("*")).unwrap();
        let place = (1, (seed % tokens.positions() as u64) as u32);
        for site in (0..config.n_layers).map(Site::ResidPre).chain([last]) {
            let plan = Plan::new().tap(Site::Logits).with_tensor("stream", last, run.get(site).unwrap());
            let replaced = model.run(&tokens, &plan.edit(Edit::new(last, Action::replace("stream")))).unwrap();
            let expected = replaced.logits().unwrap().get(1).get(i64::from(place.1)).softmax(-1, None::<Kind>);
            let found = by_token(&rows, site, place);
            prop_assert_eq!(found.len(), config.vocab);
            assert_near("sum", found.iter().map(|(.., p)| p).sum(), 1.0, MODEL);
            prop_assert!(found.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0 && pair[0].2 >= pair[1].2));
            for (_, id, p) in found {
                assert_near(&format!("{site} of {config:?}"), p, expected.double_value(&[id]), MODEL);
            }
            let loss = Metric::probability(3);
            if site == last {
                let answer = run.logits().unwrap().get(1).get(i64::from(place.1)).softmax(-1, None::<Kind>);
                assert_close("the end", &answer, &expected, MODEL);
                let table = Lens::logit(&model).metric(&tokens, &loss).unwrap();
                let end = run.last(Site::Logits).unwrap().softmax(-1, None::<Kind>).select(1, 3).mean(Kind::Double);
                assert_near("metric", table.curve("layer").unwrap().last().unwrap().1, end.double_value(&[]), MODEL);
            }
        }
    }

    /// What a head writes is its term of the logit, token by token.
    #[test]
    fn heads_write_their_terms(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let config = model.config();
        let terms = Residual::of(&model, &tokens).and_then(|residual| residual.logits(7));
        let found = Lens::logit(&model).last().heads(&tokens, config.vocab);
        prop_assert_eq!(found.is_ok(), terms.is_ok(), "{:?}", config);
        let (Ok(found), Ok(terms)) = (found, terms) else { return Ok(()) };
        let end = tokens.positions() as u32 - 1;
        let expected = terms.filtered(|row| row.keys.head.is_some() && row.keys.position == Some(end)).unwrap();
        let found = found.filtered(|row| row.keys.token.as_deref() == Some("7")).unwrap();
        prop_assert_eq!((found.len(), expected.len()), (2 * config.n_layers * config.n_heads, found.len()));
        for (a, b) in found.rows().unwrap().iter().zip(expected.rows().unwrap()) {
            prop_assert_eq!((a.keys.prompt, a.keys.layer, a.keys.head), (b.keys.prompt, b.keys.layer, b.keys.head));
            assert_near(&format!("{config:?}"), a.value, b.value, MODEL);
        }
    }
}

/// Both lenses by hand on checkpoints: norm, unembedding, softmax and what a head writes, from the parameters.
#[test]
fn lenses_by_hand() {
    for (name, bias) in [("tiny-gpt2", true), ("tiny-llama", false)] {
        let model = load(name, Kind::Double);
        let w: HashMap<String, &Tensor> = model.parameters().into_iter().collect();
        let tokens = Tokens::new(&[vec![5, 6, 7, 8]]).unwrap();
        let run = model.run(&tokens, &Plan::new().taps(["resid_pre.1", "result.2", "resid_post.2"])).unwrap();
        let centre = |x: &Tensor| if bias { x - x.mean(Kind::Double) } else { x.shallow_clone() };
        let divisor = |x: &Tensor| (centre(x).square().mean(Kind::Double) + model.config().norm_eps).sqrt();
        let x = run.get(Site::ResidPre(1)).unwrap().get(0).get(2);
        let mut normed = centre(&x) / divisor(&x) * w["ln_final.w"];
        if bias {
            normed = &normed + w["ln_final.b"];
        }
        let p = normed.unsqueeze(0).matmul(w["w_u"]).squeeze().softmax(-1, None::<Kind>);
        let (values, ids) = p.topk(3, -1, true, true);
        let bare = |table: Table| {
            table.filtered(|row| row.keys.layer == Some(1) && row.keys.site.as_deref() == Some("resid_pre")).unwrap()
        };
        let table = bare(Lens::logit(&model).positions([2]).top(&tokens, 3).unwrap());
        assert_close(name, &Tensor::from_slice(&table.f64("value").unwrap()), &values, MODEL);
        let texts: Vec<String> = table.rows().unwrap().into_iter().map(|row| row.keys.token.unwrap()).collect();
        let piece = |place: i64| model.tokenizer().unwrap().piece(ids.int64_value(&[place]));
        assert_eq!(texts, (0..3).map(piece).collect::<Vec<_>>());
        let end = run.get(Site::ResidPost(2)).unwrap().get(0).get(3);
        let written = centre(&run.get(Site::Result(2)).unwrap().get(0).get(3).get(1)) / divisor(&end) * w["ln_final.w"];
        let (values, _) = written.unsqueeze(0).matmul(w["w_u"]).squeeze().topk(4, -1, true, true);
        let heads = Lens::logit(&model).last().heads(&tokens, 4).unwrap();
        let heads = heads.filtered(|row| (row.keys.layer, row.keys.head) == (Some(2), Some(1))).unwrap();
        assert_close(name, &Tensor::from_slice(&heads.f64("value").unwrap()), &values, MODEL);
    }
}

/// The table of `logit_lens` has the depths of the lens, and those between attention and MLP; its curve ends at the end.
#[test]
fn the_metric_at_each_depth() {
    let model = load("tiny-gpt2", Kind::Double);
    let tokens = Tokens::new(&[vec![5, 6, 7, 8], vec![9, 8, 7]]).unwrap();
    let all = logit_lens(&model, &tokens, &Metric::Loss).unwrap();
    let some = Lens::logit(&model).metric(&tokens, &Metric::Loss).unwrap();
    assert_eq!((all.len(), some.len()), (7, 4));
    let whole: Vec<f64> =
        all.filtered(|row| row.keys.site.as_deref() != Some("resid_mid")).unwrap().f64("value").unwrap();
    assert_eq!(whole, some.f64("value").unwrap());
    // Streams within a layer, and the one that leaves the last, stand where they are.
    let curve = all.curve("layer").unwrap();
    assert_eq!(curve.iter().map(|(layer, _)| *layer).collect::<Vec<_>>(), [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]);
    let loss = Sweep::ablate(&model, &tokens, Ablation::Zero).run().unwrap().f64("baseline").unwrap()[0];
    assert_near("the end", curve[6].1, loss, MODEL);
    assert_eq!(all.rows().unwrap()[0].unit.as_deref(), Some("nats"));
    assert_eq!(all.top(1).unwrap().len(), 1);
}

fn texts(n: usize) -> Tokens {
    let id = |row: usize, at: usize| ((row * 31 + at * at * 7 + at * row) % 90) as i64;
    Tokens::new(&(0..n).map(|row| (0..12).map(|at| id(row, at)).collect()).collect::<Vec<_>>()).unwrap()
}

/// Training brings the lens closer to the model's output on positions that it has not seen, with all tokens compared and with
/// a sample of them; the same seed gives the same lens.
#[test]
fn training_lowers_the_held_out_divergence() {
    let model = load("tiny-gpt2", Kind::Double);
    let tokens = texts(60);
    for vocabulary in [2048, 64] {
        let options = TunedOptions { vocabulary, steps: 150, ..TunedOptions::default() };
        let lens = Lens::tuned(&model, &tokens, &options).unwrap();
        let table = lens.held_out().unwrap();
        let of = |method: &str, site: &str| {
            let here = |row: &Observation| {
                (row.keys.method.as_deref(), row.keys.site.as_deref()) == (Some(method), Some(site))
            };
            table.filtered(here).unwrap().f64("value").unwrap()
        };
        let (logit, tuned) = (of("logit_lens", "resid_pre"), of("tuned_lens", "resid_pre"));
        assert_eq!((logit.len(), tuned.len()), (3, 3));
        for layer in 0..3 {
            assert!(tuned[layer] < logit[layer], "{vocabulary}: {tuned:?} beside {logit:?}");
        }
        for method in ["logit_lens", "tuned_lens"] {
            let end = of(method, "resid_post");
            assert!(end.len() == 1 && end[0].abs() < MODEL.bound(), "the last depth is the output: {end:?}");
        }
        let again = Lens::tuned(&model, &tokens, &options).unwrap();
        assert_eq!(again.held_out().unwrap().f64("value").unwrap(), table.f64("value").unwrap());
    }
}

/// A lens is read back as it was; a file of another model, a damaged one and the logit lens are refused.
#[test]
fn tuned_lenses_are_saved_and_loaded() {
    let model = load("tiny-llama", Kind::Float);
    let tokens = texts(6);
    let options = TunedOptions { steps: 3, ..TunedOptions::default() };
    let lens = Lens::tuned(&model, &tokens, &options).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lens.safetensors");
    lens.save(&path).unwrap();
    let read = Lens::load(&model, &path).unwrap();
    assert_eq!((read.name(), read.held_out().is_none()), ("tuned_lens", true));
    let values = |lens: &Lens<'_>| lens.top(&tokens, 3).unwrap().f64("value").unwrap();
    assert_eq!(values(&read), values(&lens));
    assert_ne!(values(&Lens::logit(&model)), values(&lens));
    let other = load("tiny-gpt2", Kind::Float);
    assert!(Lens::load(&other, &path).unwrap_err().to_string().contains("of this model"));
    assert!(Lens::logit(&model).save(&path).is_err());
    let bytes = std::fs::read(&path).unwrap();
    for damaged in [&bytes[..bytes.len() - 5], &bytes[..4], &[]] {
        std::fs::write(&path, damaged).unwrap();
        assert!(matches!(Lens::load(&model, &path), Err(headscope::Error::Format { .. })));
    }
    assert!(Lens::load(&model, fixture("tiny-llama").join("model.safetensors")).is_err());
}

#[test]
fn misuse_is_told() {
    let (model, bert) = (load("tiny-gpt2", Kind::Float), load("tiny-bert", Kind::Float));
    let tokens = Tokens::new(&[vec![5, 6, 7]]).unwrap();
    let says = |result: headscope::Result<Table>, words: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    says(Lens::logit(&model).top(&tokens, 0), "1 to");
    says(Lens::logit(&model).positions([3]).top(&tokens, 1), "3 is out of range");
    says(Lens::logit(&model).positions([]).top(&tokens, 1), "at least one");
    says(Lens::logit(&bert).heads(&tokens, 1), "is a sum");
    says(Lens::logit(&load("tiny-bert-encoder", Kind::Float)).top(&tokens, 1), "with logits");
    assert_eq!(Lens::logit(&bert).top(&tokens, 1).unwrap().len(), 3 * 4);
    let narrow = Tensor::zeros([3], (Kind::Float, Device::Cpu));
    assert!(Lens::logit(&model).read(Site::ResidPre(0), &narrow).is_err());
    let options = TunedOptions::default();
    for wrong in [
        TunedOptions { steps: 0, ..options.clone() },
        TunedOptions { batch: 0, ..options.clone() },
        TunedOptions { positions: 1, ..options.clone() },
        TunedOptions { vocabulary: 1, ..options.clone() },
        TunedOptions { rate: f64::NAN, ..options.clone() },
        TunedOptions { held_out: 1.0, ..options.clone() },
    ] {
        assert!(wrong.validate().is_err() && Lens::tuned(&model, &tokens, &wrong).is_err(), "{wrong:?}");
    }
    assert!(Lens::tuned(&model, &Tokens::new(&[vec![5]]).unwrap(), &options).is_err());
    let tuned = Lens::tuned(&model, &tokens, &TunedOptions { steps: 1, ..options }).unwrap();
    says(tuned.heads(&tokens, 1), "the logit lens");
    let x = Tensor::zeros([1, 32], (Kind::Float, Device::Cpu));
    assert!(tuned.read(Site::ResidMid(0), &x).unwrap_err().to_string().contains("resid_pre.0"));
}
