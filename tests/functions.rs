//! Functions of one's own: as actions in runs and sweeps, and on gradients.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::architectures::any_config;
use common::{Tol, assert_close, configs, random, some_tokens};
use headscope::prelude::{Strategy as How, *};
use rand::{Rng, SeedableRng, seq::IndexedRandom};
use rand_chacha::ChaCha8Rng;

const MODEL: Tol = Tol::Model(Kind::Double);

fn values(table: &Table) -> Tensor {
    Tensor::from_slice(&table.f64("value").unwrap())
}

/// Every row becomes less of itself, and less where it is large: nothing that another action can say.
fn soft() -> Function {
    Function::new("soft", |x| Ok(x.tanh() * 0.8))
}

/// Every position gets the mean over the positions of its prompt, and every head that over heads.
fn spread() -> Function {
    Function::new("spread", |x| Ok(x.mean_dim([1i64, 2].as_slice(), true, None::<Kind>).expand_as(x)))
}

/// In random architectures, at random sites, heads and positions: what the engine computes is what whole passes compute.
#[test]
fn sweeps_of_functions_are_whole_passes() {
    let rng = &mut ChaCha8Rng::seed_from_u64(12);
    for number in 0..80 {
        let model = random(&any_config(rng), number);
        let config = model.config();
        let tokens = some_tokens(3, 5, config.vocab, number as usize);
        let sites: Vec<Site> = Site::all(config)
            .into_iter()
            .filter(|site| matches!(site, Site::Z(_) | Site::Q(_) | Site::V(_) | Site::ResidPre(_) | Site::MlpOut(_)))
            .collect();
        let edit = |rng: &mut ChaCha8Rng| {
            let site = *sites.choose(rng).unwrap();
            let function = if rng.random() {
                soft().by_row()
            } else if rng.random() {
                soft()
            } else {
                spread()
            };
            let mut edit = Edit::new(site, Action::Custom(function));
            if rng.random() {
                edit = edit.positions([rng.random_range(0..5)]);
            }
            if matches!(site, Site::Z(_) | Site::Q(_)) && rng.random() {
                edit = edit.head(rng.random_range(0..config.n_heads));
            }
            edit
        };
        let variants: Vec<Variant> = (0..8)
            .map(|number| Variant {
                keys: Keys { variant: Some(number), ..Keys::default() },
                edits: (0..rng.random_range(1..3)).map(|_| edit(rng)).collect(),
            })
            .collect();
        let metric = [Metric::Loss, Metric::logit_difference(3, 5), Metric::Kl].choose(rng).unwrap().clone();
        let sweep = |how| {
            let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).variants(variants.clone());
            sweep.metric(metric.clone()).per_prompt().strategy(how)
        };
        let (auto, naive) = (sweep(How::Auto).run().unwrap(), sweep(How::Naive).run().unwrap());
        assert_close(&format!("{metric:?} of {config:?}"), &values(&auto), &values(&naive), MODEL);
        let sees_all = |edit: &Edit| matches!(&edit.action, Action::Custom(function) if !function.is_by_row());
        let whole = variants.iter().filter(|variant| variant.edits.iter().any(sees_all)).count();
        assert_eq!(sweep(How::Auto).explain().unwrap().computed_whole, whole);
    }
}

/// A function that does what an action does is that action, in runs, sweeps, estimates and generation.
#[test]
fn a_function_can_be_any_action() {
    let model = random(&configs().remove(0), 3);
    let tokens = some_tokens(2, 5, model.config().vocab, 1);
    let direction = Tensor::randn([model.config().d_model as i64], (Kind::Double, Device::Cpu));
    let add = Action::Add { key: "direction".into(), alpha: 0.5 };
    let own = direction.shallow_clone();
    let function = Action::Custom(Function::new("add", move |x| Ok(x + &own * 0.5)).by_row());
    for estimate in [None, Some(Estimate::Attribution), Some(Estimate::IntegratedGradients { steps: 3 })] {
        let table = |action: &Action| {
            let mut sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(Metric::logit_difference(3, 5));
            if action.key().is_some() {
                for layer in 0..model.config().n_layers {
                    sweep = sweep.with_tensor("direction", Site::ResidPost(layer), &direction);
                }
            }
            let sweep = sweep.each_with(Site::ResidPost, Every::Position, action.clone());
            let sweep = if let Some(estimate) = estimate { sweep.estimate(estimate) } else { sweep };
            sweep.run().unwrap()
        };
        assert_close(&format!("{estimate:?}"), &values(&table(&function)), &values(&table(&add)), MODEL);
    }
    let written = |action: Action| {
        let plan = Plan::new().with_tensor("direction", Site::ResidPre(1), &direction);
        let plan = plan.edit(Edit::new(Site::ResidPre(1), action));
        let generated = model.generate(&tokens).max_new(6).plan(&plan).run().unwrap();
        generated.continuations.into_iter().map(|continuation| continuation.ids).collect::<Vec<_>>()
    };
    assert_eq!(written(function), written(add));
}

/// A function that sees all heads writes the same whether the model generates with or without a cache.
#[test]
fn functions_of_whole_sites_generate() {
    let model = random(&configs().remove(0), 4);
    let tokens = some_tokens(2, 5, model.config().vocab, 2);
    let plan = Plan::new()
        .edit(Edit::new(Site::MlpOut(0), Action::custom("last", |x| Ok(x.narrow(1, x.size()[1] - 1, 1).expand_as(x)))));
    let found = model.generate(&tokens).max_new(5).plan(&plan).run().unwrap();
    for (prompt, continuation) in found.continuations.iter().enumerate() {
        let mut row = tokens.row(prompt).to_vec();
        for &id in &continuation.ids {
            let run =
                model.run(&Tokens::new(&[row.clone()]).unwrap(), &Plan::new().edit(plan.edits()[0].clone())).unwrap();
            let last = run.logits().unwrap().select(1, row.len() as i64 - 1);
            assert_eq!(last.argmax(-1, false).int64_value(&[0]), id);
            row.push(id);
        }
    }
}

#[test]
fn functions_that_do_not_fit_are_errors() {
    let model = random(&configs().remove(0), 5);
    let tokens = some_tokens(2, 5, model.config().vocab, 3);
    let sweep = |function: Function| {
        Sweep::ablate(&model, &tokens, Ablation::Zero).each_with(Site::Z, Every::Head, Action::Custom(function))
    };
    let says = |result: headscope::Result<Table>, words: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    says(sweep(Function::new("cut", |x| Ok(x.narrow(0, 0, 1)))).run(), "from `cut`");
    says(
        sweep(Function::new("picky", |x| {
            x.f_matmul(&Tensor::ones([2, 3], (Kind::Double, Device::Cpu)))
                .map_err(|error| headscope::Error::Torch { action: "matmul".into(), source: error })
        }))
        .run(),
        "matmul",
    );
    let folder = tempfile::tempdir().unwrap();
    let journal = |name: &str| folder.path().join(name);
    says(sweep(soft()).journal(journal("a")).run(), "Function::version");
    let first = sweep(soft().version("1")).journal(journal("b")).run().unwrap();
    let again = sweep(soft().version("1")).journal(journal("b")).run().unwrap();
    assert_eq!(first.f64("value").unwrap(), again.f64("value").unwrap());
    // Another version is another sweep.
    assert!(sweep(soft().version("2")).journal(journal("b")).run().is_err());
}

/// The gradient that flows on from a site is what the function makes of it: the rest of the gradient, which takes other
/// ways, is unchanged. In random architectures, at several sites at once.
#[test]
fn gradients_change_where_they_flow() {
    let rng = &mut ChaCha8Rng::seed_from_u64(21);
    for number in 0..40 {
        let config = ModelConfig { n_layers: 3, block_cycle: 1, ..any_config(rng) };
        let model = random(&config, number);
        let tokens = some_tokens(2, 5, config.vocab, number as usize);
        let metric = Metric::logit_difference(3, 5);
        let gradient = |plan: Plan| {
            let found = model.gradient(&tokens, plan, &metric, [Site::ResidPre(0), Site::Z(1)]).unwrap();
            (found.get(Site::ResidPre(0)).unwrap().shallow_clone(), found.get(Site::Z(1)).unwrap().shallow_clone())
        };
        let scaled = |factor: f64| Function::new("scaled", move |gradient| Ok(gradient * factor));
        let (plain, at_z) = gradient(Plan::new());
        // As many times as much at the head outputs of layer 1 is affine in the factor.
        let hook = |factor: f64| gradient(Plan::new().on_gradient(Site::Z(1), scaled(factor)));
        let ((none, _), (same, same_z), (three, three_z)) = (hook(0.0), hook(1.0), hook(3.0));
        assert_close("unchanged", &same, &plain, MODEL);
        assert_close("unchanged at z", &same_z, &at_z, MODEL);
        assert_close("at the site itself", &three_z, &(&at_z * 3.0), MODEL);
        assert_close(&format!("affine in {config:?}"), &three, &(&none + (&plain - &none) * 3.0), MODEL);
        // Everything passes the stream between two layers: twice there, and a half in front of it, is as before.
        let plan = Plan::new().on_gradient(Site::ResidPre(2), scaled(2.0));
        assert_close("all of it", &gradient(plan).0, &(&plain * 2.0), MODEL);
        let both = Plan::new().on_gradient(Site::ResidPre(2), scaled(2.0)).on_gradient(Site::ResidPre(1), scaled(0.5));
        assert_close("both", &gradient(both).0, &plain, MODEL);
        // Activations are those of the plain run.
        let run = model.run(&tokens, &Plan::new().on_gradient(Site::Z(1), scaled(0.0)).tap(Site::Logits)).unwrap();
        let plain = model.run(&tokens, &Plan::new()).unwrap();
        assert_close("logits", &run.logits().unwrap().detach(), plain.logits().unwrap(), MODEL);
    }
}

/// `Metric::of` a run is what a sweep finds of the same edits.
#[test]
fn a_metric_of_a_run_is_that_of_the_sweep() {
    let rng = &mut ChaCha8Rng::seed_from_u64(22);
    for number in 0..30 {
        let model = random(&any_config(rng), number);
        let tokens = some_tokens(3, 5, model.config().vocab, number as usize);
        let edit = Edit::new(Site::Z(0), Action::Zero).head(0);
        let variant = Variant { keys: Keys::default(), edits: vec![edit.clone()] };
        for metric in
            [Metric::Loss, Metric::Kl, Metric::probability(3), Metric::rank(4), Metric::logit_difference(3, 5)]
        {
            let last = Site::ResidPost(model.config().n_layers - 1);
            let run = model.run(&tokens, &Plan::new().edit(edit.clone()).taps([Site::Logits, last])).unwrap();
            let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).variants(vec![variant.clone()]);
            let table = sweep.metric(metric.clone()).per_prompt().run().unwrap();
            let found = Tensor::from_slice(&metric.of(&model, &run).unwrap());
            assert_close(&format!("{metric:?}"), &found, &values(&table), MODEL);
        }
    }
}
