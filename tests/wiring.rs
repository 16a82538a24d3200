//! Random architectures: what every site holds, what the engine finds, what attribution and paths sum to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::architectures::any_config;
use common::reference::forward;
use common::{Tol, assert_close, assert_near, random, some_tokens};
use headscope::model::{Model, ModelConfig, NormKind, NormPlace, Plan, Site, Unembed};
use headscope::prelude::{Metric, Node, Paths, Tokens, direct_attribution};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

const MODEL: Tol = Tol::Model(Kind::Double);

fn cases(n: u32) -> ProptestConfig {
    let rng_seed = proptest::test_runner::RngSeed::Fixed(15);
    ProptestConfig { cases: n, failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

fn any_model(seed: u64) -> (Model, Tokens) {
    let config = any_config(&mut ChaCha8Rng::seed_from_u64(seed));
    config.validate().unwrap_or_else(|error| panic!("{config:?}: {error}"));
    let tokens = some_tokens(2, 3 + (seed % 6) as usize, config.vocab, seed as usize % 1000);
    (random(&config, seed % 997), tokens)
}

proptest! {
    #![proptest_config(cases(200))]

    /// Every site holds what a pass written out step by step holds there, with and without the fast paths that serve where
    /// nobody looks.
    #[test]
    fn sites_hold_what_they_should(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let expected = forward(&model, &tokens);
        let sites = Site::all(model.config());
        prop_assert_eq!(sites.iter().copied().collect::<std::collections::BTreeSet<_>>(), expected.keys().copied().collect(), "{:?}", model.config());
        let run = model.run(&tokens, &Plan::new().taps(sites.iter().copied())).unwrap();
        for site in sites {
            assert_close(&format!("{site} of {:?}", model.config()), run.get(site).unwrap(), &expected[&site], MODEL);
        }
        let logits = model.run(&tokens, &Plan::new()).unwrap();
        assert_close(&format!("{:?}", model.config()), logits.logits().unwrap(), &expected[&Site::Logits], MODEL);
    }

    /// The terms of direct attribution sum to the logit, before it is capped.
    #[test]
    fn attribution_sums_to_the_logit(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let (config, tokens) = (model.config(), tokens.select(&[0]).unwrap());
        let found = direct_attribution(&model, &tokens, &Metric::logit(3));
        let readable = config.unembed != Unembed::MaskedLm;
        let adds_up = config.norm_place != NormPlace::Post || config.norm == NormKind::None;
        prop_assert_eq!(found.is_ok(), readable && adds_up, "{:?}", config);
        if let Ok(terms) = found {
            let last = model.run(&tokens, &Plan::new()).unwrap().logits().unwrap().select(1, tokens.positions() as i64 - 1);
            let sum: f64 = terms.f64("value").unwrap().iter().sum();
            let logit = config.logit_cap.map_or(sum, |cap| (sum / cap).tanh() * cap);
            assert_near(&format!("{config:?}"), logit, last.double_value(&[0, 3]), MODEL);
        }
    }

    /// Where logits are linear in the residual stream, the direct paths of all senders sum to the whole change.
    #[test]
    fn direct_paths_sum_to_the_change(seed in any::<u64>()) {
        let config = ModelConfig {
            norm: NormKind::None,
            logit_cap: None,
            uncounted: None, // else the position embeddings, which are no sender, change with the tokens
            unembed: Unembed::Linear { bias: true },
            ..any_config(&mut ChaCha8Rng::seed_from_u64(seed))
        };
        let model = random(&config, seed % 997);
        let (clean, corrupt) = (some_tokens(1, 5, config.vocab, 1), some_tokens(1, 5, config.vocab, 2));
        let paths = Paths::noise(&model, &clean, &corrupt).senders(Node::all(&model)).metric(Metric::logit(3));
        let found = paths.frozen_mlps().run().unwrap();
        let logit = |tokens: &Tokens| model.run(tokens, &Plan::new()).unwrap().logits().unwrap().double_value(&[0, 4, 3]);
        let (change, baseline) = (logit(&corrupt) - logit(&clean), found.f64("baseline").unwrap()[0]);
        // Beside the largest number that the sum passes through.
        let largest = found.f64("value").unwrap().into_iter().fold(baseline.abs().max(1.0), |most, v| most.max(v.abs()));
        let sum: f64 = found.effect().unwrap().iter().sum();
        assert_near(&format!("{config:?}"), sum / largest, change / largest, MODEL);
    }

    /// A model is written and read back to the same bits, whatever its architecture.
    #[test]
    fn saved_models_are_read_back(seed in any::<u64>()) {
        let (model, tokens) = any_model(seed);
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path()).unwrap();
        let options = headscope::checkpoint::LoadOptions { kind: Kind::Double, ..Default::default() };
        let read = Model::load_with(folder.path().to_str().unwrap(), &options).unwrap();
        prop_assert_eq!(read.config(), model.config());
        let logits = |model: &Model| -> Tensor { model.run(&tokens, &Plan::new()).unwrap().logits().unwrap().copy() };
        prop_assert!(logits(&read).equal(&logits(&model)));
    }
}
