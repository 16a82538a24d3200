//! Estimates from gradients: goldens of independent implementations, and what must hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::{Tol, assert_close, assert_near, configs, fixture, flat, load, random, some_tokens};
use headscope::prelude::*;
use serde_json::Value;

const MODEL: Tol = Tol::Model(Kind::Double);

type Make = fn(usize) -> Site;

#[test]
fn estimates_are_those_of_other_implementations() {
    for name in ["tiny-gpt2", "tiny-llama"] {
        let golden: Value =
            serde_json::from_str(&std::fs::read_to_string(fixture(name).join("golden-paths.json")).unwrap()).unwrap();
        let rows = |key: &str| -> Vec<Vec<i64>> { serde_json::from_value(golden[key].clone()).unwrap() };
        let side = |i: usize| rows("answers").iter().map(|pair| pair[i]).collect::<Vec<i64>>();
        let (clean, corrupt) = (Tokens::new(&rows("clean")).unwrap(), Tokens::new(&rows("corrupt")).unwrap());
        let model = load(name, Kind::Double);
        let compare = |what: &str, expected: &Value, site: Make, every: &[Every], estimate: Estimate| {
            let sweep = Sweep::noise(&model, &clean, &corrupt).each(site, every).per_prompt().estimate(estimate);
            let table = sweep.metric(Metric::logit_difference(side(0), side(1))).run().unwrap();
            let found = Tensor::from_slice(&table.effect().unwrap());
            let expected = Tensor::from_slice(&flat(&expected["prompts"]));
            assert_close(&format!("{name} {what}"), &found, &expected, MODEL);
        };
        let sites: [(&str, Make, &[Every]); 8] = [
            ("z", Site::Z, &[Every::Head]),
            ("q", Site::Q, &[Every::Head]),
            ("k", Site::K, &[Every::Head]),
            ("v", Site::V, &[Every::Head]),
            ("pattern", Site::Pattern, &[Every::Head]),
            ("z_by_position", Site::Z, &[Every::Head, Every::Position]),
            ("resid_pre", Site::ResidPre, &[Every::Position]),
            ("mlp_out", Site::MlpOut, &[Every::Layer]),
        ];
        for (site, make, every) in sites {
            compare(site, &golden["attribution"][site], make, every, Estimate::Attribution);
            let steps = Estimate::IntegratedGradients { steps: 5 };
            compare(site, &golden["integrated_gradients"][site], make, every, steps);
        }
        let nodes: [(&str, Make, &[Every]); 6] = [
            ("z", Site::Z, &[Every::Head]),
            ("z_by_position", Site::Z, &[Every::Head, Every::Position]),
            ("q", Site::Q, &[Every::Head]),
            ("q_by_position", Site::Q, &[Every::Head, Every::Position]),
            ("k", Site::K, &[Every::Head]),
            ("k_by_position", Site::K, &[Every::Head, Every::Position]),
        ];
        for (node, make, every) in nodes {
            compare(node, &golden["atp_star"]["grad_drop"][node], make, every, Estimate::AtpStar);
        }
    }
}

/// A step of `alpha` times what another run has, at one head.
fn step(site: Site, alpha: f64) -> Vec<Variant> {
    let edit = Edit::new(site, Action::Add { key: "reference".into(), alpha }).head(1);
    vec![Variant { keys: Keys::default(), edits: vec![edit] }]
}

/// The estimate is the slope of the exact effect at no change, and its error falls with the square of the change.
#[test]
fn attribution_is_the_slope_of_the_exact_effect() {
    for (number, config) in configs().into_iter().enumerate() {
        let model = random(&config, number as u64);
        let (clean, corrupt) = (some_tokens(2, 5, config.vocab, 1), some_tokens(2, 5, config.vocab, 2));
        for site in [Site::Z(1), Site::Q(1), Site::V(0)] {
            let sweep = |alpha| {
                let sweep = Sweep::noise(&model, &clean, &corrupt).variants(step(site, alpha));
                sweep.metric(Metric::logit_difference(3, 5))
            };
            let effect = |alpha: f64| sweep(alpha).run().unwrap().effect().unwrap()[0];
            let slope = sweep(1.0).estimate(Estimate::Attribution).run().unwrap().effect().unwrap()[0];
            let h = 1e-4;
            let difference = (8.0 * (effect(h) - effect(-h)) - (effect(2.0 * h) - effect(-2.0 * h))) / (12.0 * h);
            assert_near(&format!("{} {site} slope", config.family), slope, difference, Tol::Difference);
            let error = |t: f64| (effect(t) - t * slope).abs();
            let (far, near) = (error(1e-2), error(1e-3));
            assert!(near <= far / 50.0 + MODEL.bound(), "{} {site}: {near:e} beside {far:e}", config.family);
        }
    }
}

/// Integrated gradients of a whole site find the whole effect, with ever smaller error.
#[test]
fn integrated_gradients_are_complete() {
    let config = configs().remove(0);
    let model = random(&config, 7);
    let (clean, corrupt) = (some_tokens(2, 5, config.vocab, 1), some_tokens(2, 5, config.vocab, 2));
    let sweep = || {
        let sweep = Sweep::noise(&model, &clean, &corrupt).each(Site::ResidPre, Every::Layer);
        sweep.metric(Metric::logit_difference(3, 5))
    };
    let exact = sweep().run().unwrap().effect().unwrap();
    let error = |steps| {
        let found = sweep().estimate(Estimate::IntegratedGradients { steps }).run().unwrap().effect().unwrap();
        found.iter().zip(&exact).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    };
    assert!(error(64) < error(4) / 10.0, "{} beside {}", error(64), error(4));
}

#[test]
fn exact_values_stand_beside_estimates() {
    let config = configs().remove(1);
    let model = random(&config, 7);
    let (clean, corrupt) = (some_tokens(3, 5, config.vocab, 1), some_tokens(3, 5, config.vocab, 2));
    let sweep = || Sweep::noise(&model, &clean, &corrupt).metric(Metric::logit_difference(3, 5));
    let all = sweep().run().unwrap().f64("value").unwrap();
    let table = sweep().estimate(Estimate::Attribution).exact(all.len()).run().unwrap();
    assert_eq!(table.len(), 2 * all.len());
    let methods = table.frame().column("method").unwrap().str().unwrap().clone();
    let values = table.f64("value").unwrap();
    let exact: Vec<f64> = methods.iter().zip(values).filter(|(m, _)| *m == Some("exact")).map(|(_, v)| v).collect();
    assert_close("exact rows", &Tensor::from_slice(&exact), &Tensor::from_slice(&all), MODEL);
    let agreement = table.agreement().unwrap();
    assert_eq!(agreement.variants, all.len());
    assert!(agreement.pearson.unwrap() > 0.5, "{agreement:?}");
}

#[test]
fn what_has_no_gradient_is_an_error() {
    let config = configs().remove(0);
    let model = random(&config, 7);
    let (clean, corrupt) = (some_tokens(2, 5, config.vocab, 1), some_tokens(2, 5, config.vocab, 2));
    let says = |sweep: Sweep<'_>, words: &str| {
        let error = sweep.run().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    let estimate = || Sweep::noise(&model, &clean, &corrupt).estimate(Estimate::Attribution);
    says(estimate().metric(Metric::Kl), "a gradient");
    says(estimate().metric(Metric::rank(3)), "a gradient");
    says(estimate().estimate(Estimate::IntegratedGradients { steps: 0 }), "at least 1");
    let cut = Variant { keys: Keys::default(), edits: vec![Edit::new(Site::Scores(0), Action::KnockOut).head(0)] };
    says(estimate().variants(vec![cut]), "finite change");
    says(Sweep::noise(&model, &clean, &corrupt).exact(3), "exact values only");
}

#[test]
fn shapley_values_are_those_of_other_implementations() {
    for name in ["tiny-gpt2", "tiny-llama"] {
        let golden: Value =
            serde_json::from_str(&std::fs::read_to_string(fixture(name).join("golden-paths.json")).unwrap()).unwrap();
        let rows: Vec<Vec<i64>> = serde_json::from_value(golden["clean"].clone()).unwrap();
        let (model, tokens) = (load(name, Kind::Double), Tokens::new(&rows).unwrap());
        let layer = golden["shapley"]["layer"].as_u64().unwrap() as usize;
        let heads: Vec<(usize, usize)> = (0..model.config().n_heads).map(|head| (layer, head)).collect();
        let options = ShapleyOptions::default();
        let found = shapley(&model, &tokens, &heads, &Metric::Loss, &options).unwrap().f64("value").unwrap();
        let expected = flat(&golden["shapley"]["values"]["mean"]);
        assert_close(name, &Tensor::from_slice(&found), &Tensor::from_slice(&expected), MODEL);
    }
}

/// Shapley values share out the whole effect, also where orders are sampled; a head that does nothing gets nothing.
#[test]
fn shapley_values_add_up() {
    let config = configs().remove(1);
    let model = random(&config, 5);
    let tokens = some_tokens(3, 6, config.vocab, 1);
    let heads = [(0, 1), (1, 0), (1, 3), (2, 2)];
    let joint = Sweep::ablate(&model, &tokens, Ablation::Mean).one_after_another(&heads).run().unwrap();
    let joint = *joint.effect().unwrap().last().unwrap();
    let of = |sampling| {
        let options = ShapleyOptions { sampling, ..ShapleyOptions::default() };
        shapley(&model, &tokens, &heads, &Metric::Loss, &options).unwrap()
    };
    let exact = of(Sampling::All).f64("value").unwrap();
    let sampled = of(Sampling::Orders { n: 40, seed: 1 });
    assert_near("all subsets", exact.iter().sum(), joint, MODEL);
    assert_near("orders", sampled.f64("value").unwrap().iter().sum(), joint, MODEL);
    let (low, high) = (sampled.f64("low").unwrap(), sampled.f64("high").unwrap());
    for (i, value) in exact.iter().enumerate() {
        let wide = high[i] - low[i];
        assert!(low[i] - wide < *value && *value < high[i] + wide, "{value} in [{}, {}]", low[i], high[i]);
    }
    let error = shapley(&model, &tokens, &[(0, 1), (0, 1)], &Metric::Loss, &ShapleyOptions::default());
    assert!(error.unwrap_err().to_string().contains("each once"));
}

/// AtP* gives magnitudes: its rows say so, and agree with the magnitudes of exact effects, not with signed ones.
#[test]
fn atp_star_is_compared_as_magnitudes() {
    let config = configs().remove(0);
    let model = random(&config, 7);
    let (clean, corrupt) = (some_tokens(3, 5, config.vocab, 1), some_tokens(3, 5, config.vocab, 2));
    let sweep = || Sweep::noise(&model, &clean, &corrupt).metric(Metric::logit_difference(3, 5));
    let exact = sweep().per_prompt().run().unwrap().effect().unwrap();
    let n = exact.len() / 3;
    for normalised in [false, true] {
        let sweep = if normalised { sweep().normalised() } else { sweep() };
        let table = sweep.estimate(Estimate::AtpStar).exact(n).run().unwrap();
        let text = |column: &str| {
            let column = table.frame().column(column).unwrap().str().unwrap().clone();
            column.iter().map(|text| text.unwrap().to_owned()).collect::<Vec<String>>()
        };
        let (methods, metrics) = (text("method"), text("metric"));
        let rows = methods.iter().zip(&metrics).zip(table.f64("value").unwrap()).zip(table.f64("baseline").unwrap());
        for (((method, metric), value), baseline) in rows {
            assert_eq!(metric.contains("magnitude"), method == "atp_star", "{metric} of {method}");
            assert!(method != "atp_star" || (value >= 0.0 && baseline == 0.0), "{value} from {baseline}");
        }
        let agreement = table.agreement().unwrap();
        assert!(agreement.magnitudes);
        let estimates = sweep_effects(&table, "atp_star");
        let sizes: Vec<f64> = (0..n).map(|v| (0..3).map(|prompt| exact[prompt * n + v].abs()).sum()).collect();
        let expected = headscope::stats::pearson(&estimates, &sizes).unwrap();
        assert_near("agreement", agreement.pearson.unwrap(), expected, MODEL);
    }
}

/// The effects of one method, in the order of the rows.
fn sweep_effects(table: &Table, method: &str) -> Vec<f64> {
    let methods = table.frame().column("method").unwrap().str().unwrap().clone();
    let effects = methods.iter().zip(table.effect().unwrap());
    effects.filter(|(found, _)| *found == Some(method)).map(|(_, effect)| effect).collect()
}
