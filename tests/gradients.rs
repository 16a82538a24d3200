//! Gradients of metrics by site, beside finite differences, over random architectures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::architectures::any_config;
use common::{Tol, assert_close, assert_near, configs, load, random, some_tokens};
use headscope::model::{Activation, Experts};
use headscope::prelude::*;
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn cases(n: u32) -> ProptestConfig {
    let rng_seed = proptest::test_runner::RngSeed::Fixed(17);
    ProptestConfig { cases: common::cases(n), failure_persistence: None, rng_seed, ..ProptestConfig::default() }
}

/// Any architecture whose metric is smooth: no kinks in the activation, no cut-offs, no choice among experts.
fn any_smooth(seed: u64) -> ModelConfig {
    let config = any_config(&mut ChaCha8Rng::seed_from_u64(seed));
    let kinked = matches!(config.activation, Activation::Relu | Activation::ReluSquared);
    let experts = config.experts.map(|experts| Experts { top_k: experts.n, ..experts });
    let activation = if kinked { Activation::GeluTanh } else { config.activation };
    ModelConfig { activation, experts, clip_qkv: None, gate_limit: None, ..config }
}

/// The metric, summed over prompts, where `alpha` times a direction is added at a site.
fn moved(model: &Model, tokens: &Tokens, metric: &dyn Fn(&Run) -> f64, site: Site, by: &Tensor, alpha: f64) -> f64 {
    let edit = Edit::new(site, Action::Add { key: "by".to_owned(), alpha });
    metric(&model.run(tokens, &Plan::new().tap(Site::Logits).with_tensor("by", site, by).edit(edit)).unwrap())
}

fn slope(at: impl Fn(f64) -> f64) -> f64 {
    let h = 3e-4;
    (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * h)
}

/// A direction of length 1 in the space of a site.
fn direction(size: &[i64], seed: usize) -> Tensor {
    let n: i64 = size.iter().product();
    let waves = (Tensor::arange(n, (Kind::Double, Device::Cpu)) * 1.7 + seed as f64).sin() + 0.1;
    (&waves / waves.norm()).view(size)
}

proptest! {
    #![proptest_config(cases(60))]

    /// The gradient at every kind of site is the slope of the metric along any direction there.
    #[test]
    fn gradients_are_slopes(seed in any::<u64>()) {
        let config = any_smooth(seed);
        let model = random(&config, seed % 997);
        let tokens = some_tokens(2, 3 + (seed % 4) as usize, config.vocab, seed as usize % 1000);
        let layer = (seed % 100) as usize % config.n_layers;
        let sites: Vec<Site> =
            Site::all(&config).into_iter().filter(|site| site.layer().is_none_or(|own| own == layer)).collect();
        let metric = Metric::logit_difference(3, 5);
        let found = model.gradient(&tokens, Plan::new(), &metric, &sites).unwrap();
        let last = tokens.positions() as i64 - 1;
        let read = |run: &Run| {
            let logits = run.logits().unwrap().select(1, last);
            (logits.select(1, 3) - logits.select(1, 5)).sum(Kind::Double).double_value(&[])
        };
        for (number, site) in sites.into_iter().enumerate() {
            let gradient = found.get(site).unwrap();
            prop_assert_eq!(gradient.size(), site.shape(&config, tokens.batch(), tokens.positions()), "{}", site);
            let by = direction(&gradient.size(), number);
            let expected = slope(|alpha| moved(&model, &tokens, &read, site, &by, alpha));
            let along = (gradient * &by).sum(Kind::Double).double_value(&[]);
            assert_near(&format!("{site} of {config:?}"), along, expected, Tol::Difference);
        }
    }
}

/// Every metric that has a gradient has the right one: with answers, over tokens, one's own, and beside the unchanged run.
#[test]
fn every_metric_has_its_slope() {
    for (number, config) in configs().into_iter().enumerate() {
        let (model, tokens) =
            (random(&config, number as u64), Tokens::new(&[vec![5, 6, 7, 8], vec![9, 8, 7]]).unwrap());
        let site = Site::ResidPre(1);
        let by = direction(&site.shape(&config, 2, 4), 3);
        let own = Metric::custom("own", |logits| {
            Ok(logits.select(1, 1).tanh().sum_dim_intlist([1i64].as_slice(), false, None))
        });
        let metrics = [
            Metric::Loss,
            Metric::logit(3),
            Metric::logit_difference(vec![3, 4], vec![5, 6]),
            Metric::probability(7),
            own,
            Metric::Kl,
            Metric::EmbeddingDistance,
        ];
        // The run has another edit: what is compared with the unchanged run differs from it.
        let ablated = || Edit::new(Site::Z(0), Action::Zero).head(1);
        for metric in metrics {
            let value = |alpha: f64| {
                let moved = Edit::new(site, Action::Add { key: "by".to_owned(), alpha });
                let keys = Keys::default();
                let variants = vec![Variant { keys, edits: vec![ablated(), moved] }];
                let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).with_tensor("by", site, &by);
                let table = sweep
                    .variants(variants)
                    .metric(metric.clone())
                    .strategy(headscope::intervene::Strategy::Naive)
                    .run()
                    .unwrap();
                2.0 * table.f64("value").unwrap()[0] // of 2 prompts
            };
            let plan = || Plan::new().edit(ablated());
            let found = model.gradient(&tokens, plan(), &metric, [site]).unwrap();
            let along = (found.get(site).unwrap() * &by).sum(Kind::Double).double_value(&[]);
            assert_near(&format!("{} {}", config.family, metric.name()), along, slope(value), Tol::Difference);
            // The same of a run at hand, twice.
            let all = [site, Site::Logits, Site::ResidPost(config.n_layers - 1)];
            let run = model.run(&tokens, &plan().taps(all).differentiable()).unwrap();
            for _ in 0..2 {
                let again = run.gradient(&model, &metric, [site]).unwrap();
                assert_close(
                    metric.name(),
                    again.get(site).unwrap(),
                    found.get(site).unwrap(),
                    Tol::Model(Kind::Double),
                );
            }
        }
    }
}

/// Each prompt's rows are the gradient of its own metric, and what comes after the metric has none.
#[test]
fn prompts_and_later_sites() {
    let model = load("tiny-llama", Kind::Double);
    let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7, 6, 5]]).unwrap();
    let one = Tokens::new(&[vec![9, 8, 7, 6, 5]]).unwrap();
    let of = |tokens: &Tokens| model.gradient(tokens, Plan::new(), &Metric::logit(3), ["z.*", "logits"]).unwrap();
    let (both, alone) = (of(&tokens), of(&one));
    for layer in 0..3 {
        let second = both.get(Site::Z(layer)).unwrap().narrow(0, 1, 1);
        assert_close("the second prompt", &second, alone.get(Site::Z(layer)).unwrap(), Tol::Model(Kind::Double));
    }
    let logits = alone.get(Site::Logits).unwrap();
    assert_eq!((logits.double_value(&[0, 4, 3]), logits.abs().sum(Kind::Double).double_value(&[])), (1.0, 1.0));
    let distance = model.gradient(
        &one,
        Plan::new().edit(Edit::new(Site::Z(0), Action::Zero)),
        &Metric::EmbeddingDistance,
        ["logits"],
    );
    assert_eq!(distance.unwrap().get(Site::Logits).unwrap().abs().max().double_value(&[]), 0.0);
}

#[test]
fn what_has_no_gradient_is_an_error() {
    let model = load("tiny-gpt2", Kind::Double);
    let tokens = Tokens::new(&[vec![5, 6, 7]]).unwrap();
    let error = |plan: Plan, metric: Metric, site: &str| {
        model.gradient(&tokens, plan, &metric, [site]).unwrap_err().to_string()
    };
    assert!(error(Plan::new(), Metric::Accuracy, "z.0").contains("a gradient"));
    assert!(error(Plan::new(), Metric::rank(3), "z.0").contains("a gradient"));
    assert!(error(Plan::new(), Metric::Kl, "z.0").contains("a plan with edits"));
    assert!(error(Plan::new(), Metric::Loss, "z.9").contains("layers 0 to 2"));
    assert!(error(Plan::new(), Metric::Loss, "zed.*").contains("did you mean"));
    let run = |plan: Plan| model.run(&tokens, &plan.taps(["z.0", "logits"])).unwrap();
    let plain = run(Plan::new()).gradient(&model, &Metric::Loss, ["z.0"]).unwrap_err().to_string();
    assert!(plain.contains("differentiable"), "{plain}");
    let missing = run(Plan::new().differentiable()).gradient(&model, &Metric::Loss, ["z.1"]).unwrap_err();
    assert!(matches!(missing, headscope::Error::NotTapped { site: Site::Z(1), .. }));
    let other = Model::random(&ModelConfig::default(), 0).unwrap();
    let wrong = run(Plan::new().differentiable()).gradient(&other, &Metric::Loss, ["z.0"]).unwrap_err().to_string();
    assert!(wrong.contains("the one of the run"), "{wrong}");
    let encoder = load("tiny-bert-encoder", Kind::Double);
    let error = encoder.gradient(&tokens, Plan::new(), &Metric::Loss, ["z.0"]).unwrap_err().to_string();
    assert!(error.contains("without logits"), "{error}");
}
