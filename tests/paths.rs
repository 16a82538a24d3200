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

/// An edit at one position of each prompt, or everywhere.
fn at(edit: Edit, positions: Option<[usize; 2]>) -> Vec<Edit> {
    match positions {
        Some(positions) => (0..2).map(|prompt| edit.clone().position(positions[prompt]).prompts([prompt])).collect(),
        None => vec![edit],
    }
}

/// A whole pass in which one head writes what `source` has, and all other heads what they write in the clean run.
fn frozen(
    model: &Model,
    clean: &Tokens,
    (layer, head): (usize, usize),
    positions: Option<[usize; 2]>,
    source: &Run,
    tap: Site,
) -> Run {
    let layers = 0..model.config().n_layers;
    let sites: Vec<Site> = layers.clone().flat_map(|l| [Site::AttnOut(l), Site::Z(l)]).collect();
    let unchanged = model.run(clean, &Plan::new().taps(sites)).unwrap();
    let mut plan = Plan::new().with("clean", &unchanged).with("source", source);
    for l in layers.filter(|l| *l != layer) {
        plan = plan.edit(Edit::new(Site::AttnOut(l), Action::replace("clean")));
    }
    plan = plan.edit(Edit::new(Site::Z(layer), Action::replace("clean")));
    for edit in at(Edit::new(Site::Z(layer), Action::replace("source")).head(head), positions) {
        plan = plan.edit(edit);
    }
    // So that every edit can be seen, the logits are tapped, too.
    model.run(clean, &plan.tap(tap).tap(Site::Logits)).unwrap()
}

/// The clean run with some input as in `first`.
fn receiving(
    model: &Model,
    clean: &Tokens,
    input: Input,
    positions: Option<[usize; 2]>,
    first: &Run,
    tap: Site,
) -> Run {
    let (site, part) = site_of(input);
    let edit = Edit::new(site, Action::replace("first"));
    let edit = if let Some(part) = part { edit.head(part) } else { edit };
    let plan = at(edit, positions).into_iter().fold(Plan::new().with("first", first), Plan::edit);
    model.run(clean, &plan.tap(tap).tap(Site::Logits)).unwrap()
}

fn site_of(input: Input) -> (Site, Option<usize>) {
    match input {
        Input::Query { layer, head } => (Site::Q(layer), Some(head)),
        Input::Key { layer, kv_head } => (Site::K(layer), Some(kv_head)),
        Input::Value { layer, kv_head } => (Site::V(layer), Some(kv_head)),
        Input::Mlp { layer } => (Site::MlpOut(layer), None),
        Input::Logits => (Site::Logits, None),
    }
}

/// The logit difference at the end of each prompt.
fn difference(run: &Run) -> Vec<f64> {
    let logits = run.logits().unwrap().select(1, run.tokens().positions() as i64 - 1);
    Vec::try_from(logits.select(1, 3) - logits.select(1, 5)).unwrap()
}

/// Path patching as two plans and two whole passes, with nothing of the engine: the last logits at each prompt's end.
fn by_plans(model: &Model, clean: &Tokens, corrupt: &Tokens, from: (usize, usize), to: Input) -> Vec<f64> {
    by_plans_at(model, clean, corrupt, (from, None), (to, None))
}

type At2 = Option<[usize; 2]>;

fn by_plans_at(
    model: &Model,
    clean: &Tokens,
    corrupt: &Tokens,
    (from, sends_at): ((usize, usize), At2),
    (to, receives_at): (Input, At2),
) -> Vec<f64> {
    let other = model.run(corrupt, &Plan::new().tap(Site::Z(from.0))).unwrap();
    let site = site_of(to).0;
    let first = frozen(model, clean, from, sends_at, &other, site);
    if site == Site::Logits {
        return difference(&first);
    }
    difference(&receiving(model, clean, to, receives_at, &first, Site::Logits))
}

/// Senders and receivers at single positions, which differ between prompts, and paths through heads, in random
/// architectures and parts of the batch.
#[test]
fn paths_at_positions_and_through_heads_are_plans() {
    let rng = &mut ChaCha8Rng::seed_from_u64(6);
    let mut through = 0;
    for number in 0..60 {
        let config = ModelConfig { n_layers: 3, block_cycle: 1, ..any_config(rng) };
        let model = random(&config, number as u64);
        let (clean, mut corrupt) = (some_tokens(2, 5, config.vocab, 1), some_tokens(2, 5, config.vocab, 2));
        if number % 3 > 0 {
            let rows = [0, 1].map(|prompt| {
                let same = number % 3 + prompt;
                [&clean.row(prompt)[..same], &corrupt.row(prompt)[same..]].concat()
            });
            corrupt = Tokens::new(&rows).unwrap();
        }
        let head = config.n_heads - 1;
        let shared = config.n_heads / config.n_kv_heads;
        let memory = if number % 2 == 0 { 0 } else { usize::MAX };
        let paths = || {
            let paths = Paths::noise(&model, &clean, &corrupt).metric(Metric::logit_difference(3, 5));
            paths.memory(memory).per_prompt()
        };
        let (sends_at, receives_at) = (vec![3, 4], vec![4, 2]);
        let to = Input::Value { layer: 2, kv_head: 0 };
        let table = paths()
            .senders([Node::Head { layer: 0, head }.at(sends_at)])
            .receivers([to.at(receives_at)])
            .run()
            .unwrap();
        let expected = by_plans_at(&model, &clean, &corrupt, ((0, head), Some([3, 4])), (to, Some([4, 2])));
        let found = Tensor::from_slice(&table.f64("value").unwrap());
        assert_close(&format!("at positions of {config:?}"), &found, &Tensor::from_slice(&expected), MODEL);
        assert_eq!(table.rows().unwrap()[0].keys.from_at.as_deref(), Some("each"));

        // From head 0.h through the queries, or the values, of head 1.h to the logits, and to queries of layer 2.
        for (via, input) in [
            (Via::query(1, head), Input::Query { layer: 1, head }),
            (Via::value(1, head), Input::Value { layer: 1, kv_head: head / shared }),
        ] {
            let to = Input::Query { layer: 2, head: 0 };
            let table = paths()
                .senders([Node::Head { layer: 0, head }])
                .through([via])
                .receivers([to, Input::Logits])
                .run()
                .unwrap();
            let other = model.run(&corrupt, &Plan::new().tap(Site::Z(0))).unwrap();
            let read = frozen(&model, &clean, (0, head), None, &other, site_of(input).0);
            let sent = receiving(&model, &clean, input, None, &read, Site::Z(1));
            let to_logits = frozen(&model, &clean, (1, head), None, &sent, Site::Logits);
            let to_queries = frozen(&model, &clean, (1, head), None, &sent, Site::Q(2));
            let last = receiving(&model, &clean, to, None, &to_queries, Site::Logits);
            for row in table.rows().unwrap() {
                let expected = if row.keys.site.as_deref() == Some("logits") { &to_logits } else { &last };
                let expected = difference(expected)[row.keys.prompt.unwrap() as usize];
                assert_near(&format!("{via:?} of {config:?}"), row.value, expected, MODEL);
                through += usize::from((row.value - row.baseline.unwrap()).abs() > 1e-9);
            }
            // Nothing else than this path asks for unchanged values of layer 1.
            let alone = paths().senders([Node::Head { layer: 0, head }]).through([via]).run().unwrap();
            let alone = Tensor::from_slice(&alone.f64("value").unwrap());
            let expected = Tensor::from_slice(&difference(&to_logits));
            assert_close(&format!("{via:?} of {config:?} alone"), &alone, &expected, MODEL);
        }
    }
    assert!(through > 100, "only {through} paths change anything");
}

/// Two stages, a journal that is stopped and resumed, and what does not exist.
#[test]
fn chains_of_two_heads() {
    let config = ModelConfig { n_layers: 4, ..configs().remove(0) };
    let model = random(&config, 5);
    let (clean, corrupt) = (some_tokens(2, 5, config.vocab, 1), some_tokens(2, 5, config.vocab, 2));
    let paths = || {
        let paths = Paths::noise(&model, &clean, &corrupt).metric(Metric::logit_difference(3, 5)).per_prompt();
        paths.through((0..2).map(|head| Via::query(1, head))).through([Via::head(2, 0), Via::key(3, 1)])
    };
    let table = paths().run().unwrap();
    // Heads of layer 0 as senders, two heads, two heads, two prompts.
    assert_eq!(table.len(), config.n_heads * 2 * 2 * 2);
    let vias: std::collections::BTreeSet<String> =
        table.rows().unwrap().into_iter().filter_map(|row| row.keys.via).collect();
    assert_eq!(vias.into_iter().collect::<Vec<_>>(), ["1.0.q 2.0.qkv", "1.0.q 3.1.k", "1.1.q 2.0.qkv", "1.1.q 3.1.k"]);
    let journal = tempfile::tempdir().unwrap();
    let kept = || paths().journal(journal.path().join("paths.partial"));
    assert_eq!(kept().run().unwrap().f64("value").unwrap(), kept().run().unwrap().f64("value").unwrap());
    let says = |paths: Paths<'_>, words: &str| {
        let error = paths.run().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    says(paths().through([]), "empty stage");
    says(paths().through([Via { queries: false, ..Via::query(3, 0) }]), "with none");
    says(paths().through([Via::head(9, 0)]), "layer");
    says(paths().through([Via::head(3, 99)]), "out of range");
    says(paths().through([Via::head(0, 0)]), "comes after");
    says(paths().frozen_mlps().estimate(Estimate::Attribution), "exact paths");
    says(paths().receivers([Input::Logits.at(2)]), "at all positions");
    says(paths().senders([Node::Embed.at("S2")]), "only `Prompts`");
    says(paths().senders([Node::Embed.at(5)]), "out of range");
    says(paths().senders([Node::Embed.at(vec![1])]), "each of 2 prompts");
}

/// Sets whose members are at one position are named without it, and column `at` says where.
#[test]
fn sets_at_a_position_have_short_names() {
    let model = load("tiny-gpt2", Kind::Double);
    let (clean, corrupt) = (some_tokens(2, 5, 90, 1), some_tokens(2, 5, 90, 2));
    let row = |at: [usize; 2]| {
        let queries = [0, 1, 2, 3].map(|head| Input::Query { layer: 2, head }.at(at[head / 2])).to_vec();
        let senders = [0, 1].map(|head| Node::Head { layer: 1, head }.at(at[head])).to_vec();
        let paths = Paths::noise(&model, &clean, &corrupt).sender_sets([senders]).receiver_sets([queries]);
        paths.run().unwrap().rows().unwrap().remove(0).keys
    };
    let together = row([4, 4]);
    assert_eq!((together.site.as_deref(), together.at.as_deref()), (Some("q.2.*"), Some("4")));
    assert_eq!((together.from_site.as_deref(), together.from_at.as_deref()), (Some("z.1.0.1"), Some("4")));
    let apart = row([3, 4]);
    assert_eq!((apart.site.as_deref(), apart.at), (Some("q.2.0.1@3+q.2.2.3@4"), None));
    assert_eq!((apart.from_site.as_deref(), apart.from_at), (Some("z.1.0@3+z.1.1@4"), None));
}

/// Edge attribution between positions adds up to that of all positions.
#[test]
fn edges_at_positions_add_up() {
    let config = configs().remove(0);
    let model = random(&config, 8);
    let (clean, corrupt) = (some_tokens(2, 5, config.vocab, 1), some_tokens(2, 5, config.vocab, 2));
    let paths = || {
        let paths = Paths::noise(&model, &clean, &corrupt).metric(Metric::logit_difference(3, 5)).frozen_mlps();
        paths.estimate(Estimate::Attribution)
    };
    let (node, input) = (Node::Head { layer: 0, head: 1 }, Input::Query { layer: 2, head: 1 });
    let whole = paths().senders([node]).receivers([input]).run().unwrap().effect().unwrap()[0];
    let senders = paths().senders((0..5).map(|position| node.at(position))).receivers([input]);
    assert_near("senders", senders.run().unwrap().effect().unwrap().iter().sum(), whole, MODEL);
    let receivers = paths().senders([node]).receivers((0..5).map(|position| input.at(position)));
    assert_near("receivers", receivers.run().unwrap().effect().unwrap().iter().sum(), whole, MODEL);
}

#[test]
fn paths_are_plans_in_every_architecture() {
    let rng = &mut ChaCha8Rng::seed_from_u64(4);
    let drawn = (0..60).map(|_| ModelConfig { n_layers: 3, block_cycle: 1, ..any_config(rng) }).collect::<Vec<_>>();
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
    says(paths().senders([] as [Node; 0]), "comes after");
    says(paths().sender_sets([vec![] as Vec<Node>]), "an empty set");
    says(paths().receiver_sets([vec![Input::Logits, Input::Mlp { layer: 1 }]]), "by themselves");
    let short = Tokens::new(&[vec![1, 2]]).unwrap();
    says(Paths::noise(&golden.model, &golden.clean, &short), "same lengths");
}

/// Pairs of unequal length: what is patched is what stands for each other, by hand, in sweeps and paths, whole and in
/// parts.
#[test]
fn unequal_pairs_are_moved_to_what_they_stand_for() {
    let model = load("tiny-gpt2", Kind::Double);
    let pairs = [
        Pair::new(vec![5i64, 6, 7, 8, 9], vec![5i64, 60, 61, 7, 8, 9]).at_each("x", 1, 1).at_each("y", 2, 3),
        Pair::new(vec![9i64, 8, 7, 6, 5], vec![9i64, 8, 70, 6, 5]).at_each("x", 1, 1).at_each("y", 2, 2),
    ];
    let prompts = model.prompts(pairs.map(|pair| pair.answers(3i64, 4i64))).unwrap();
    // Of each position of the corrupted prompts, the clean one that stands for it.
    let maps = [vec![Some(0), Some(1), None, Some(2), Some(3), Some(4)], (0..5).map(Some).collect()];
    let site = Site::Z(1);
    let plan = || Plan::new().tap(site);
    let (clean, corrupt) =
        (model.run(prompts.clean(), &plan()).unwrap(), model.run(prompts.corrupt(), &plan()).unwrap());
    let moved = corrupt.get(site).unwrap().copy();
    for (prompt, map) in maps.iter().enumerate() {
        for (position, there) in map.iter().enumerate() {
            let Some(there) = there else { continue };
            let row = |run: &Run, at: usize| run.get(site).unwrap().get(prompt as i64).get(at as i64);
            moved.get(prompt as i64).get(position as i64).copy_(&row(&clean, *there));
        }
    }
    let metric = Metric::of_answers(&prompts).unwrap();
    for head in 0..model.config().n_heads {
        let edit = Edit::new(site, Action::replace("moved")).head(head);
        let run = model.run(prompts.corrupt(), &Plan::new().with_tensor("moved", site, &moved).edit(edit)).unwrap();
        let expected = Tensor::from_slice(&metric.of(&model, &run).unwrap());
        for memory in [0, usize::MAX] {
            let sweep = Sweep::denoising(&model, &prompts).per_prompt().memory(memory);
            let found = sweep.only(|keys| (keys.layer, keys.head) == (Some(1), Some(head as u32))).run().unwrap();
            assert_close("sweep", &Tensor::from_slice(&found.f64("value").unwrap()), &expected, MODEL);
        }
        // To the logits without other parts in between, the last layer's patch is its path.
        let last = Site::Z(model.config().n_layers - 1);
        let sweep = Sweep::denoising(&model, &prompts).per_prompt().each(|_| last, Every::Head);
        let paths = Paths::denoising(&model, &prompts).per_prompt();
        let paths = paths.senders((0..model.config().n_heads).map(|head| Node::Head { layer: 2, head }));
        let of = |table: Table| Tensor::from_slice(&table.f64("value").unwrap());
        assert_close("paths", &of(paths.run().unwrap()), &of(sweep.run().unwrap()), MODEL);
    }
    let error = Sweep::denoising(&model, &prompts).each(Site::Pattern, Every::Head).run().unwrap_err().to_string();
    assert!(error.contains("without key positions"), "{error}");
}
