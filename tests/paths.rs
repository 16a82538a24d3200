//! Path patching and gradient estimates: goldens of independent implementations, and what must hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::HashMap;

use common::architectures::any_config;
use common::{Tol, assert_close, assert_near, configs, fixture, load, random, some_tokens};
use headscope::model::{ModelConfig, NormKind};
use headscope::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

const MODEL: Tol = Tol::Model(Kind::Double);

/// What the golden files have in common: the prompts, the answers and the values.
struct Golden {
    name: &'static str,
    model: Model,
    clean: Tokens,
    corrupt: Tokens,
    metric: Metric,
    values: Value,
}

fn goldens() -> Vec<Golden> {
    let one = |name: &'static str| {
        let text = std::fs::read_to_string(fixture(name).join("golden-paths.json")).unwrap();
        let values: Value = serde_json::from_str(&text).unwrap();
        let rows = |key: &str| -> Vec<Vec<i64>> { serde_json::from_value(values[key].clone()).unwrap() };
        let side = |i: usize| rows("answers").iter().map(|pair| pair[i]).collect::<Vec<i64>>();
        let (clean, corrupt) = (Tokens::new(&rows("clean")).unwrap(), Tokens::new(&rows("corrupt")).unwrap());
        let metric = Metric::logit_difference(side(0), side(1));
        Golden { name, model: load(name, Kind::Double), clean, corrupt, metric, values }
    };
    vec![one("tiny-gpt2"), one("tiny-llama")]
}

fn index(value: &Value, key: &str) -> usize {
    value[key].as_u64().unwrap() as usize
}

fn node(value: &Value) -> Node {
    match value["kind"].as_str().unwrap() {
        "embed" => Node::Embed,
        "head" => Node::Head { layer: index(value, "layer"), head: index(value, "head") },
        _ => Node::Mlp { layer: index(value, "layer") },
    }
}

fn input(value: &Value) -> Input {
    let (layer, kv_head) = (|| index(value, "layer"), || index(value, "head"));
    match value["kind"].as_str().unwrap() {
        "q" => Input::Query { layer: layer(), head: index(value, "head") },
        "k" => Input::Key { layer: layer(), kv_head: kv_head() },
        "v" => Input::Value { layer: layer(), kv_head: kv_head() },
        "mlp" => Input::Mlp { layer: layer() },
        _ => Input::Logits,
    }
}

/// The rows of a table of paths, by what stands in their key columns.
fn by_keys(table: &Table, column: &str) -> HashMap<String, f64> {
    let text = |name: &str, row: usize| {
        let found =
            table.frame().column(name).ok().and_then(|column| column.get(row).ok().map(|value| value.to_string()));
        found.unwrap_or_else(|| "null".into()).replace('"', "")
    };
    let names = ["prompt", "from_layer", "from_site", "from_head", "layer", "site", "head", "kv_head"];
    let key = |row: usize| names.map(|name| text(name, row)).join(" ");
    table.f64(column).unwrap().into_iter().enumerate().map(|(row, value)| (key(row), value)).collect()
}

/// The same key of a golden pair.
fn key(prompt: usize, from: Node, to: Input) -> String {
    let from = match from {
        Node::Embed => "null embed null".to_owned(),
        Node::Head { layer, head } => format!("{layer} z {head}"),
        Node::Mlp { layer } => format!("{layer} mlp_out null"),
    };
    let to = match to {
        Input::Query { layer, head } => format!("{layer} q {head} null"),
        Input::Key { layer, kv_head } => format!("{layer} k null {kv_head}"),
        Input::Value { layer, kv_head } => format!("{layer} v null {kv_head}"),
        Input::Mlp { layer } => format!("{layer} mlp null null"),
        Input::Logits => "null logits null null".to_owned(),
    };
    format!("{prompt} {from} {to}")
}

fn compare_matrix(what: &str, golden: &Golden, expected: &Value, table: &Table, column: &str) {
    let found = by_keys(table, column);
    let (senders, receivers) =
        (golden.values["senders"].as_array().unwrap(), golden.values["receivers"].as_array().unwrap());
    let mut compared = 0;
    for (prompt, matrix) in expected["prompts"].as_array().unwrap().iter().enumerate() {
        for (s, sender) in senders.iter().enumerate() {
            for (r, receiver) in receivers.iter().enumerate() {
                let key = key(prompt, node(sender), input(receiver));
                match matrix[s][r].as_f64() {
                    Some(expected) => {
                        let found = found.get(&key).unwrap_or_else(|| panic!("{what}: no row {key}"));
                        assert_near(&format!("{} {what} {key}", golden.name), *found, expected, MODEL);
                        compared += 1;
                    }
                    None => assert!(!found.contains_key(&key), "{what}: a row without a path, {key}"),
                }
            }
        }
    }
    assert_eq!(compared, table.len());
}

fn all_paths(golden: &Golden) -> Paths<'_> {
    let list = |key: &str| golden.values[key].as_array().unwrap().clone();
    Paths::noise(&golden.model, &golden.clean, &golden.corrupt)
        .senders(list("senders").iter().map(node))
        .receivers(list("receivers").iter().map(input))
        .metric(golden.metric.clone())
        .per_prompt()
}

#[test]
fn paths_are_those_of_hooks() {
    for golden in goldens() {
        let expected = &golden.values["path_patching"];
        compare_matrix("recomputed", &golden, &expected["recomputed"], &all_paths(&golden).run().unwrap(), "value");
        let frozen = all_paths(&golden).frozen_mlps().memory(1 << 20).run().unwrap();
        compare_matrix("frozen", &golden, &expected["frozen"], &frozen, "value");
    }
}

#[test]
fn sets_are_those_of_hooks() {
    for golden in goldens() {
        for set in golden.values["path_patching_sets"].as_array().unwrap() {
            let senders: Vec<Node> = set["senders"].as_array().unwrap().iter().map(node).collect();
            let receivers: Vec<Input> = set["receivers"].as_array().unwrap().iter().map(input).collect();
            for mlps in ["recomputed", "frozen"] {
                let paths = Paths::noise(&golden.model, &golden.clean, &golden.corrupt)
                    .sender_sets([senders.clone()])
                    .receiver_sets([receivers.clone()])
                    .metric(golden.metric.clone())
                    .per_prompt();
                let paths = if mlps == "frozen" { paths.frozen_mlps() } else { paths };
                let found = paths.run().unwrap().f64("value").unwrap();
                let expected: Vec<f64> = serde_json::from_value(set[mlps]["prompts"].clone()).unwrap();
                let what = format!("{} {mlps} {senders:?} to {receivers:?}", golden.name);
                assert_close(&what, &Tensor::from_slice(&found), &Tensor::from_slice(&expected), MODEL);
            }
        }
    }
}

#[test]
fn edges_are_those_of_other_implementations() {
    for golden in goldens() {
        let base: Vec<f64> = serde_json::from_value(golden.values["clean_metric"]["prompts"].clone()).unwrap();
        let expected = &golden.values["edge_attribution"];
        let estimates = [("eap", Estimate::Attribution), ("eap_ig", Estimate::IntegratedGradients { steps: 5 })];
        for (name, estimate) in estimates {
            let table = all_paths(&golden).frozen_mlps().estimate(estimate).run().unwrap();
            // The goldens are effects.
            let mut values = expected[name].clone();
            for (prompt, matrix) in values["prompts"].as_array_mut().unwrap().iter_mut().enumerate() {
                for value in matrix.as_array_mut().unwrap().iter_mut().flat_map(|row| row.as_array_mut().unwrap()) {
                    if let Some(effect) = value.as_f64() {
                        *value = (effect + base[prompt]).into();
                    }
                }
            }
            compare_matrix(name, &golden, &values, &table, "value");
        }
        let error = all_paths(&golden).estimate(Estimate::Attribution).run().unwrap_err().to_string();
        assert!(error.contains("frozen MLPs"), "{error}");
    }
}

/// A receiver that stands in two sets counts once in each.
#[test]
fn edges_of_sets_are_sums() {
    let golden = goldens().remove(0);
    let (a, b) = (Input::Query { layer: 2, head: 0 }, Input::Query { layer: 2, head: 1 });
    let scores = |sets: Vec<Vec<Input>>| {
        let paths =
            Paths::noise(&golden.model, &golden.clean, &golden.corrupt).senders([Node::Head { layer: 0, head: 1 }]);
        let paths = paths.receiver_sets(sets).metric(golden.metric.clone()).frozen_mlps();
        paths.estimate(Estimate::Attribution).run().unwrap().effect().unwrap()
    };
    let (alone, other) = (scores(vec![vec![a]])[0], scores(vec![vec![b]])[0]);
    let mut together = scores(vec![vec![a, b], vec![a]]);
    let mut expected = vec![alone + other, alone];
    together.sort_by(f64::total_cmp);
    expected.sort_by(f64::total_cmp);
    assert_close("scores", &Tensor::from_slice(&together), &Tensor::from_slice(&expected), MODEL);
}

/// Path patching as two plans and two whole passes, with nothing of the engine: the last logits at each prompt's end.
fn by_plans(model: &Model, clean: &Tokens, corrupt: &Tokens, (layer, head): (usize, usize), to: Input) -> Vec<f64> {
    let layers = 0..model.config().n_layers;
    let sites: Vec<Site> = layers.clone().flat_map(|l| [Site::AttnOut(l), Site::Z(l)]).collect();
    let unchanged = model.run(clean, &Plan::new().taps(sites.iter().copied())).unwrap();
    let other = model.run(corrupt, &Plan::new().tap(Site::Z(layer))).unwrap();
    let mut plan = Plan::new().with("clean", &unchanged).with("corrupt", &other);
    for l in layers.filter(|l| *l != layer) {
        plan = plan.edit(Edit::new(Site::AttnOut(l), Action::replace("clean")));
    }
    plan = plan.edit(Edit::new(Site::Z(layer), Action::replace("clean")));
    plan = plan.edit(Edit::new(Site::Z(layer), Action::replace("corrupt")).head(head));
    let (site, part) = match to {
        Input::Query { layer, head } => (Site::Q(layer), Some(head)),
        Input::Key { layer, kv_head } => (Site::K(layer), Some(kv_head)),
        Input::Value { layer, kv_head } => (Site::V(layer), Some(kv_head)),
        Input::Mlp { layer } => (Site::MlpOut(layer), None),
        Input::Logits => (Site::Logits, None),
    };
    // The logits are far behind: so that every edit can fire, they are tapped too.
    let first = model.run(clean, &plan.tap(site).tap(Site::Logits)).unwrap();
    let last = if site == Site::Logits {
        first
    } else {
        let edit = Edit::new(site, Action::replace("first"));
        let edit = if let Some(part) = part { edit.head(part) } else { edit };
        model.run(clean, &Plan::new().with("first", &first).edit(edit)).unwrap()
    };
    let logits = last.logits().unwrap().select(1, clean.positions() as i64 - 1);
    Vec::try_from(logits.select(1, 3) - logits.select(1, 5)).unwrap()
}

#[test]
fn paths_are_plans_in_every_architecture() {
    let rng = &mut ChaCha8Rng::seed_from_u64(4);
    let drawn = (0..60).map(|_| ModelConfig { n_layers: 3, ..any_config(rng) }).collect::<Vec<_>>();
    for (number, config) in configs().into_iter().chain(drawn).enumerate() {
        let model = random(&config, number as u64);
        let (clean, mut corrupt) = (some_tokens(2, 5, config.vocab, 1), some_tokens(2, 5, config.vocab, 2));
        // Most pairs of prompts start alike: these positions are not computed.
        if number % 4 > 0 {
            let start = |rows: &Tokens, prompt: usize| rows.row(prompt)[..number % 4 + prompt].to_vec();
            let rest = |prompt: usize| corrupt.row(prompt)[number % 4 + prompt..].to_vec();
            corrupt = Tokens::new(&[0, 1].map(|prompt| [start(&clean, prompt), rest(prompt)].concat())).unwrap();
        }
        let (head, kv_head) = (config.n_heads - 1, config.n_kv_heads - 1);
        let mut receivers = vec![
            Input::Query { layer: 2, head },
            Input::Key { layer: 1, kv_head },
            Input::Value { layer: 2, kv_head: 0 },
            Input::Logits,
        ];
        if config.d_mlp > 0 {
            receivers.push(Input::Mlp { layer: 1 });
        }
        let from = (0, head);
        let table = Paths::noise(&model, &clean, &corrupt)
            .senders([Node::Head { layer: 0, head }])
            .receivers(receivers.clone())
            .metric(Metric::logit_difference(3, 5))
            .per_prompt()
            .run()
            .unwrap();
        let found = by_keys(&table, "value");
        for to in receivers {
            for (prompt, expected) in by_plans(&model, &clean, &corrupt, from, to).into_iter().enumerate() {
                let key = key(prompt, Node::Head { layer: 0, head }, to);
                assert_near(&format!("{key} of {config:?}"), found[&key], expected, MODEL);
            }
        }
    }
}

/// Without MLPs and norms the last layer's heads reach the logits each by itself: their paths sum to the joint patch.
#[test]
fn paths_to_the_logits_add_up() {
    let config = ModelConfig { d_mlp: 0, norm: NormKind::None, ..ModelConfig::default() };
    let model = random(&config, 3);
    let (clean, corrupt) = (some_tokens(3, 6, config.vocab, 1), some_tokens(3, 6, config.vocab, 2));
    let last = config.n_layers - 1;
    let heads = (0..config.n_heads).map(|head| Node::Head { layer: last, head });
    let metric = Metric::logit_difference(3, 5);
    let each = Paths::noise(&model, &clean, &corrupt).senders(heads).metric(metric.clone()).run().unwrap();
    let sum: f64 = each.effect().unwrap().iter().sum();
    let joint = Sweep::noise(&model, &clean, &corrupt)
        .variants(vec![Variant {
            keys: Keys::default(),
            edits: vec![Edit::new(Site::Z(last), Action::replace("reference"))],
        }])
        .metric(metric)
        .run()
        .unwrap();
    let heads: Vec<Node> = (0..config.n_heads).map(|head| Node::Head { layer: last, head }).collect();
    let together = Paths::noise(&model, &clean, &corrupt).sender_sets([heads]).metric(Metric::logit_difference(3, 5));
    assert_near("all heads as one set", together.run().unwrap().effect().unwrap()[0], sum, MODEL);
    assert_near("sum of paths", sum, joint.effect().unwrap()[0], MODEL);
}

#[test]
fn paths_that_do_not_exist_are_errors() {
    let golden = goldens().remove(1);
    let paths = || Paths::noise(&golden.model, &golden.clean, &golden.corrupt);
    let says = |paths: Paths<'_>, words: &str| {
        let error = paths.run().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    says(paths().senders([Node::Head { layer: 9, head: 0 }]), "layers 0 to 2");
    says(paths().senders([Node::Head { layer: 0, head: 4 }]), "out of range");
    says(paths().receivers([Input::Key { layer: 1, kv_head: 2 }]), "kv_head 2 is out of range");
    says(paths().receivers([Input::Query { layer: 0, head: 0 }]), "comes after");
    says(paths().senders([]), "comes after");
    says(paths().sender_sets([vec![]]), "an empty set");
    says(paths().receiver_sets([vec![Input::Logits, Input::Mlp { layer: 1 }]]), "by themselves");
    let short = Tokens::new(&[vec![1, 2]]).unwrap();
    says(Paths::noise(&golden.model, &golden.clean, &short), "same lengths");
}
