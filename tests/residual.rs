//! Taps by pattern, the last token of a run, and the terms of the residual stream, over random architectures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::architectures::any_config;
use common::reference::forward;
use common::{Tol, assert_close, assert_close_at, assert_near, load, random, scale, some_tokens};
use headscope::model::NormPlace;
use headscope::prelude::*;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const MODEL: Tol = Tol::Model(Kind::Double);

fn cases(n: u32) -> ProptestConfig {
    let rng_seed = proptest::test_runner::RngSeed::Fixed(16);
    ProptestConfig { cases: common::cases(n), failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

fn any_model(seed: u64) -> (Model, Tokens) {
    let config = any_config(&mut ChaCha8Rng::seed_from_u64(seed));
    let tokens = some_tokens(2, 3 + (seed % 6) as usize, config.vocab, seed as usize % 1000);
    (random(&config, seed % 997), tokens)
}

fn adds_up(config: &ModelConfig) -> bool {
    config.norm_place != NormPlace::Post || config.norm == headscope::model::NormKind::None
}

/// The largest entry that a sum passes through: terms may be larger than what they sum to.
fn largest(values: &Tensor) -> f64 {
    scale(values) * (values.size()[0] as f64).sqrt()
}

proptest! {
    #![proptest_config(cases(150))]

    /// The terms of every stream sum to it, whatever the architecture; a model whose streams are no sums says so.
    #[test]
    fn terms_sum_to_the_stream(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let config = model.config();
        let what = format!("{config:?}");
        let expected = forward(&model, &tokens);
        let streams = expected.keys().filter(|site| site.kind().starts_with("resid_"));
        for &site in streams {
            let found = Residual::at(&model, &tokens, site);
            prop_assert_eq!(found.is_ok(), adds_up(config), "{}", what);
            let Ok(found) = found else { continue };
            assert_close_at(&format!("{site} of {what}"), &found.sum(), &expected[&site], largest(found.values()), MODEL);
        }
        if !adds_up(config) {
            return Ok(());
        }
        // After the final norm, they sum to what the unembedding reads.
        let last = Site::ResidPost(config.n_layers - 1);
        let normalised = Residual::of(&model, &tokens).unwrap().normalised().unwrap();
        prop_assert!(normalised.normalised().is_err());
        let whole = accumulated_residual(&model, &tokens).unwrap().normalised().unwrap();
        let expected = whole.get(&last.to_string()).unwrap();
        assert_close_at(&what, &normalised.sum(), &expected, largest(normalised.values()), MODEL);
    }

    /// The streams at each depth are those of a pass written out step by step.
    #[test]
    fn depths_are_streams(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let (expected, found) = (forward(&model, &tokens), accumulated_residual(&model, &tokens).unwrap());
        prop_assert_eq!(found.terms().len(), model.config().n_layers + 1);
        for term in found.terms() {
            let site: Site = term.to_string().parse().unwrap();
            assert_close(&format!("{term}"), &found.get(&term.to_string()).unwrap(), &expected[&site], MODEL);
        }
        let last = found.last();
        let end = tokens.positions() - 1;
        prop_assert!(last.equal(&found.position(end).unwrap()) && found.position(end + 1).is_err());
    }

    /// Heads, and the biases of attention, sum to what attention adds to the stream.
    #[test]
    fn heads_sum_to_what_attention_adds(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let (config, expected) = (model.config(), forward(&model, &tokens));
        let layer = config.n_layers - 1;
        let heads = head_results(&model, &tokens, layer).unwrap();
        prop_assert_eq!(heads.size(), Site::Result(layer).shape(config, tokens.batch(), tokens.positions()));
        prop_assert!(head_results(&model, &tokens, config.n_layers).is_err());
        let mut sum = heads.sum_dim_intlist([2i64].as_slice(), false, None::<Kind>);
        if adds_up(config) {
            let terms = Residual::of(&model, &tokens).unwrap();
            for name in ["attn_bias", "attn_norm_bias"] {
                sum = terms.get(&format!("{name}.{layer}")).map_or_else(|_| sum.shallow_clone(), |bias| &sum + bias);
            }
            for head in 0..config.n_heads {
                let one = terms.get(&format!("result.{layer}.{head}")).unwrap();
                assert_close_at("one head", &one, &heads.select(2, head as i64), scale(&heads), MODEL);
            }
            let added = &expected[&Site::AttnOut(layer)] * config.residual_scale;
            assert_close_at(&format!("{config:?}"), &sum, &added, largest(&heads), MODEL);
        }
    }

    /// One table of what each term adds to a logit: the rows of a position sum to the logit, before it is capped; at the last
    /// token they are those of direct attribution.
    #[test]
    fn rows_sum_to_the_logit(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let config = model.config();
        let Ok(direct) = direct_attribution(&model, &tokens, &Metric::logit(3)) else { return Ok(()) };
        let table = Residual::of(&model, &tokens).unwrap().logits(3).unwrap();
        let logits = model.run(&tokens, &Plan::new()).unwrap();
        let logits = logits.logits().unwrap();
        for (prompt, position) in [(0, 0), (1, tokens.positions() - 1)] {
            let at = |row: &Observation| row.keys.prompt == Some(prompt) && row.keys.position == Some(position as u32);
            let rows = table.filtered(at).unwrap().f64("value").unwrap();
            let (sum, most) = (rows.iter().sum::<f64>(), rows.iter().fold(1.0, |most: f64, v| most.max(v.abs())));
            let capped = config.logit_cap.map_or(sum, |cap| (sum / cap).tanh() * cap);
            let expected = logits.double_value(&[i64::from(prompt), position as i64, 3]);
            assert_near(&format!("{config:?}"), capped / most, expected / most, MODEL);
        }
        let end = table.filtered(|row| row.keys.position == Some(tokens.positions() as u32 - 1)).unwrap().rows().unwrap();
        for row in direct.rows().unwrap() {
            let same = |other: &&Observation| {
                (&other.keys.site, other.keys.layer, other.keys.head) == (&row.keys.site, row.keys.layer, row.keys.head)
            };
            let values: Vec<f64> = end.iter().filter(same).map(|row| row.value).collect();
            prop_assert_eq!(values.len(), tokens.batch(), "{:?}", row.keys);
            assert_near(&format!("{:?}", row.keys), values.iter().sum::<f64>() / values.len() as f64, row.value, MODEL);
        }
    }
}

/// Lengths and directions by hand; padding has no rows; what does not fit is an error.
#[test]
fn norms_and_projections() {
    let model = load("tiny-gpt2", Kind::Double);
    let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7]]).unwrap();
    let residual = Residual::of(&model, &tokens).unwrap();
    let direction = model.parameters()[0].1.get(3);
    let (norms, along) = (residual.norms().unwrap(), residual.projection(&direction).unwrap());
    assert_eq!((norms.len(), along.len()), (residual.terms().len() * 8, residual.terms().len() * 8));
    let vector = residual.get("result.1.2").unwrap().get(1).get(2);
    let at = |row: &Observation| {
        let keys = &row.keys;
        (keys.prompt, keys.position, keys.layer, keys.head) == (Some(1), Some(2), Some(1), Some(2))
    };
    let of = |table: &Table| table.filtered(at).unwrap().f64("value").unwrap()[0];
    assert_near("norm", of(&norms), vector.norm().double_value(&[]), Tol::Number);
    assert_near(
        "along",
        of(&along),
        vector.dot(&direction).double_value(&[]) / direction.norm().double_value(&[]),
        Tol::Number,
    );
    assert!(residual.last().get(0).get(1).equal(&residual.values().get(0).get(1).get(2)), "the last of 3 tokens");
    let says = |error: headscope::Error, words: &str| assert!(error.to_string().contains(words), "{error}");
    says(residual.projection(&direction.narrow(0, 0, 4)).unwrap_err(), "[d_model = 32]");
    says(residual.projection(&direction.zeros_like()).unwrap_err(), "above 0");
    says(residual.get("result.1").unwrap_err(), "result.1.0");
    says(Residual::at(&model, &tokens, Site::Z(0)).unwrap_err(), "resid_pre");
    says(residual.logits(999).unwrap_err(), "999");
    let bert = load("tiny-bert", Kind::Double);
    says(Residual::of(&bert, &tokens).unwrap_err(), "is a sum");
    assert_eq!(accumulated_residual(&bert, &tokens).unwrap().terms().len(), 4);
}

/// Patterns tap what they name, in any model; what matches nothing is an error that names what is near.
#[test]
fn taps_by_pattern() {
    let (model, tokens) = (load("tiny-llama", Kind::Double), Tokens::new(&[vec![5, 6, 7]]).unwrap());
    let tapped = |names: &[&str]| -> Vec<String> {
        let run = model.run(&tokens, &Plan::new().taps(names.iter().copied())).unwrap();
        run.taps().map(|(site, _)| site.to_string()).collect()
    };
    assert_eq!(tapped(&["z.*"]), ["z.0", "z.1", "z.2"]);
    assert_eq!(tapped(&["resid_*.1"]), ["resid_pre.1", "resid_mid.1", "resid_post.1"]);
    assert_eq!(tapped(&["*_out.0", "logits"]), ["attn_out.0", "mlp_out.0", "logits"]);
    assert_eq!(tapped(&["*"]).len(), Site::all(model.config()).len());
    let error = |name: &str| model.run(&tokens, &Plan::new().tap(name)).unwrap_err().to_string();
    assert_eq!(error("patern.*"), "unknown site `patern.*`; did you mean pattern.*?");
    assert_eq!(error("resid_*.7"), "unknown site `resid_*.7`; did you mean resid_*.*?");
    assert_eq!(error("logit*x"), "unknown site `logit*x`; did you mean logits?");
    assert!(error("pos_*").contains("did you mean"), "{}", error("pos_*"));
    assert!(error("z.9").contains("layers 0 to 2") && error("zz.0").contains("z.0"));
}

/// The last token of each prompt, wherever a site has its positions.
#[test]
fn the_last_token_of_each_prompt() {
    let model = load("tiny-gpt2", Kind::Double);
    let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7]]).unwrap();
    let run = model.run(&tokens, &Plan::new().tap("*")).unwrap();
    for (site, all) in run.taps() {
        let found = run.last(site).unwrap();
        let by_query = ["scores", "pattern"].contains(&site.kind());
        for (prompt, end) in [(0, 4), (1, 2)] {
            let expected = all.get(prompt).select(if by_query { 1 } else { 0 }, end);
            assert!(found.get(prompt).equal(&expected), "{site}");
        }
    }
    assert!(model.run(&tokens, &Plan::new()).unwrap().last(Site::Z(0)).is_err());
}
