//! docs/from-transformer-lens.md, held to numbers: what TransformerLens 4.3 finds on `tiny-gpt2`, called as the page says.
//! `fixtures/make_transformer_lens.py` makes the numbers and runs the page's Python; rustdoc runs its Rust.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::HashMap;

use common::{Tol, assert_close, assert_near, fixture, load, read_tensors, tokens_of};
use headscope::prelude::*;

const TOL: Tol = Tol::Model(Kind::Double);

fn golden() -> (Model, HashMap<String, Tensor>) {
    (load("tiny-gpt2", Kind::Double), read_tensors(&fixture("tiny-gpt2").join("golden-transformer-lens.safetensors")))
}

fn numbers(table: &Table) -> Tensor {
    Tensor::from_slice(&table.f64("value").unwrap())
}

fn ids(golden: &HashMap<String, Tensor>, column: i64) -> Vec<i64> {
    Vec::try_from(golden["answers"].select(1, column)).unwrap()
}

#[test]
fn each_hook_is_the_site_that_the_page_says() {
    let (model, golden) = golden();
    let run = model.run(&tokens_of(&golden["tokens"]), &Plan::new().tap("*")).unwrap();
    let page = std::fs::read_to_string("docs/from-transformer-lens.md").unwrap();
    let code = |cell: &str| cell.trim().trim_matches('`').replace(".L.", ".1.").replace(".L", ".1");
    let mut seen = std::collections::BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').collect();
        let (hook, Ok(site)) = (code(cells[1]), code(cells[2]).parse::<Site>()) else { continue };
        let Some(expected) = golden.get(&hook) else { continue };
        // TransformerLens marks masked scores by minus infinity, as the softmax receives them.
        assert_close(
            &format!("{hook} as {site}"),
            run.get(site).unwrap(),
            &expected.expand_as(run.get(site).unwrap()),
            TOL,
        );
        seen.insert(site);
    }
    // Every site of a layer of this model, and those outside the layers.
    let all = Site::all(model.config()).into_iter().filter(|site| site.layer().is_none_or(|layer| layer == 1));
    assert_eq!(seen, all.collect());
}

#[test]
fn the_lens_reads_the_same_probabilities() {
    let (model, golden) = golden();
    let tokens = tokens_of(&golden["tokens"]);
    let run = model.run(&tokens, &Plan::new().taps(["resid_pre.*", "resid_post.2"])).unwrap();
    for (depth, site) in (0..3).map(Site::ResidPre).chain([Site::ResidPost(2)]).enumerate() {
        let found = Lens::logit(&model).read(site, run.get(site).unwrap()).unwrap().softmax(-1, Kind::Double);
        assert_close(&site.to_string(), &found, &golden["lens"].get(depth as i64), TOL);
    }
    let top = Lens::logit(&model).top(&tokens, 1).unwrap();
    let last = top.filtered(|row| row.keys.site.as_deref() == Some("resid_post")).unwrap();
    assert_close("first choices", &numbers(&last), &golden["lens"].get(3).amax(-1, false).flatten(0, -1), TOL);
}

#[test]
fn the_loss_is_the_same() {
    let (model, golden) = golden();
    let curve = Lens::logit(&model).metric(&tokens_of(&golden["tokens"]), &Metric::Loss).unwrap();
    let last = curve.filtered(|row| row.keys.site.as_deref() == Some("resid_post")).unwrap();
    let expected = golden["loss"].mean(Kind::Double).double_value(&[]);
    assert_near("loss", last.f64("value").unwrap()[0], expected, TOL);
}

#[test]
fn the_residual_stream_has_the_same_terms() {
    let (model, golden) = golden();
    let tokens = tokens_of(&golden["tokens"]);
    let residual = Residual::of(&model, &tokens).unwrap();
    let terms = &golden["decompose_resid"]; // embed, pos_embed, then attention and MLP of each layer
    let like = residual.get("embed").unwrap();
    assert_close("embed", &like, &terms.get(0), TOL);
    assert_close("pos_embed", &residual.get("pos_embed").unwrap(), &terms.get(1).expand_as(&like), TOL);
    for layer in 0..3i64 {
        let heads = (0..4).map(|head| residual.get(&format!("result.{layer}.{head}")).unwrap());
        let attention = heads.fold(residual.get(&format!("attn_bias.{layer}")).unwrap(), |sum, head| sum + head);
        assert_close("attention", &attention, &terms.get(2 + 2 * layer), TOL);
        assert_close("MLP", &residual.get(&format!("mlp_out.{layer}")).unwrap(), &terms.get(3 + 2 * layer), TOL);
        let heads = head_results(&model, &tokens, layer as usize).unwrap().movedim_int(2, 0);
        assert_close("heads", &heads, &golden["stack_head_results"].narrow(0, 4 * layer, 4), TOL);
    }
    assert_close("sum", &residual.sum(), &terms.sum_dim_intlist([0i64].as_slice(), false, None::<Kind>), TOL);
}

#[test]
fn heads_add_the_same_to_the_logit_difference() {
    let (model, golden) = golden();
    let metric = Metric::logit_difference(ids(&golden, 0), ids(&golden, 1));
    let table = direct_attribution(&model, &tokens_of(&golden["tokens"]), &metric).unwrap();
    let heads = table.filtered(|row| row.keys.head.is_some()).unwrap();
    let expected = golden["head_logit_attrs"].mean_dim([1i64].as_slice(), false, None::<Kind>); // over prompts
    assert_close("heads", &numbers(&heads), &expected, TOL);
}

#[test]
fn patching_goes_in_the_same_direction() {
    let (model, golden) = golden();
    let (clean, corrupt) = (tokens_of(&golden["tokens"]), tokens_of(&golden["corrupt"]));
    let metric = Metric::logit_difference(ids(&golden, 0), ids(&golden, 1));
    let sweep = |site: fn(usize) -> Site, every: Every| {
        let sweep = Sweep::patch(&model, &clean, &corrupt).each(site, every).metric(metric.clone());
        numbers(&sweep.run().unwrap())
    };
    let same = |what: &str, found: Tensor, name: &str| assert_close(what, &found, &golden[name].flatten(0, -1), TOL);
    same("heads", sweep(Site::Z, Every::Head), "patch.attn_head_out_all_pos");
    same("values", sweep(Site::V, Every::KvHead), "patch.attn_head_v_all_pos");
    same("streams", sweep(Site::ResidPre, Every::Position), "patch.resid_pre");
}

#[test]
fn heads_compose_and_write_on_alike() {
    let (model, golden) = golden();
    let raw = CircuitOptions { fold_norms: false, centre_writing: false };
    let table = model.circuits(&raw).unwrap().composition(Composition::K, Offset::At(0)).unwrap();
    for row in table.rows().unwrap() {
        let at = |n: Option<u32>| i64::from(n.unwrap());
        let keys = &row.keys;
        let place = [at(keys.from_layer), at(keys.from_head), at(keys.layer), at(keys.head)];
        assert_near("K composition", row.value, golden["composition.K"].double_value(&place), TOL);
    }
    let tokens = tokens_of(&golden["tokens"]);
    let written = model.generate(&tokens).max_new(8).run().unwrap();
    for (prompt, continuation) in written.continuations.iter().enumerate() {
        let expected = golden["generated"].get(prompt as i64).narrow(0, 6, 8);
        assert_eq!(continuation.ids, Vec::<i64>::try_from(expected).unwrap());
    }
}
