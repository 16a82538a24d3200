//! The rule by which claims are judged, on made-up evidence with a planted effect, none, and a reversed one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use headscope::lab::verdict::first::{Case, Expect, Finding, Judged, Prediction, Rule, Verdict, claims, judge};
use headscope::lab::verdict::{Evidence, Reading};
use headscope::stats::{Tail, TrendOptions, jonckheere, page};
use headscope::table::{Keys, Observation, Provenance, Table};
use ndarray::Array2;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// A row about a run.
fn row(cell: &str, seed: u64, step: u32, metric: &str, value: f64) -> Observation {
    let keys = Keys { cell: Some(cell.to_owned()), seed: Some(seed), step: Some(step), ..Keys::default() };
    Observation { keys, metric: metric.to_owned(), value, ..Observation::default() }
}

fn evidence(rows: Vec<Observation>) -> Evidence {
    Evidence::new(&Table::new(rows, Provenance::default()).unwrap()).unwrap()
}

fn prediction(expect: Expect) -> Prediction {
    let case = Case { name: "only".into(), cell: "a".into(), against: Some("b".into()), trend: vec![] };
    Prediction {
        claim: "C1".into(),
        text: "a is larger".into(),
        metric: "m".into(),
        task: None,
        reading: Reading::End,
        expect,
        smallest: 0.1,
        level: 0.0,
        learned: true,
        cases: vec![case],
    }
}

/// Two cells of `n` seeds whose difference is `effect` with noise.
fn cells(effect: f64, noise: f64, n: u64, draw: u64) -> Vec<Observation> {
    let mut rng = ChaCha8Rng::seed_from_u64(draw);
    let mut rows = vec![];
    for seed in 0..n {
        let common: f64 = rng.random();
        let noise: f64 = noise * rng.sample::<f64, _>(StandardNormal);
        rows.push(row("a", seed, 0, "m", common + effect + noise));
        rows.push(row("b", seed, 0, "m", common));
    }
    rows
}

fn finding(expect: Expect, rows: Vec<Observation>) -> Finding {
    judge(&[prediction(expect)], &Rule::default(), &evidence(rows)).unwrap().remove(0).findings.remove(0)
}

#[test]
fn a_planted_effect_is_supported_a_reversed_one_refuted_and_none_refuted() {
    for (effect, greater, less, zero) in [
        (0.3, Verdict::Supported, Verdict::Refuted, Verdict::Refuted),
        (-0.3, Verdict::Refuted, Verdict::Supported, Verdict::Refuted),
        (0.0, Verdict::Refuted, Verdict::Refuted, Verdict::Supported),
        (0.1, Verdict::Inconclusive, Verdict::Refuted, Verdict::Inconclusive),
    ] {
        for (expect, verdict) in [(Expect::Greater, greater), (Expect::Less, less), (Expect::Zero, zero)] {
            let found = finding(expect, cells(effect, 0.05, 10, 7));
            assert_eq!(found.verdict, verdict, "effect {effect}, {expect:?}: {found}");
        }
    }
}

/// A small effect on the predicted side is refuted as too small, and one on the other side as opposite.
#[test]
fn a_refutation_says_why() {
    let small = finding(Expect::Greater, cells(0.03, 0.01, 10, 1));
    assert!(small.verdict == Verdict::Refuted && small.reason.contains("too small"), "{small}");
    let opposite = finding(Expect::Greater, cells(-0.5, 0.1, 10, 1));
    assert!(opposite.verdict == Verdict::Refuted && opposite.reason.contains("other side"), "{opposite}");
}

/// Where the true effect is exactly the smallest of interest, a claim is supported, or found equivalent, no oftener than the
/// level; with an effect on the wrong side of it, almost never. 1,000 made-up experiments; the bounds are alpha and five
/// standard errors.
#[test]
fn false_findings_stay_below_the_level() {
    let rate = |effect: f64, expect: Expect, verdict: Verdict| {
        let hits = (0..1000).filter(|draw| finding(expect, cells(effect, 0.1, 10, 100 + draw)).verdict == verdict);
        hits.count() as f64 / 1000.0
    };
    let most = 0.05 + 5.0 * (0.05f64 * 0.95 / 1000.0).sqrt();
    let found = rate(0.1, Expect::Greater, Verdict::Supported);
    assert!(found <= most, "supported at the boundary: {found}");
    let found = rate(0.1, Expect::Zero, Verdict::Supported);
    assert!(found <= most, "equivalent at the boundary: {found}");
    let found = rate(0.0, Expect::Greater, Verdict::Supported);
    assert!(found <= 0.01, "supported without any effect: {found}");
    let found = rate(0.2, Expect::Greater, Verdict::Refuted);
    assert!(found <= 0.01, "refuted with twice the smallest effect: {found}");
}

/// With several cases of a claim the chance of even one false finding is held at the level.
#[test]
fn many_cases_are_corrected_together() {
    let names: Vec<String> = (0..6).map(|case| format!("case{case}")).collect();
    let case = |name: &String| Case { name: name.clone(), cell: name.clone(), against: None, trend: vec![] };
    let prediction = Prediction { cases: names.iter().map(case).collect(), ..prediction(Expect::Greater) };
    let mut families = 0;
    for draw in 0..300 {
        let mut rng = ChaCha8Rng::seed_from_u64(draw);
        let mut rows = vec![];
        for (name, seed) in names.iter().flat_map(|name| (0..10).map(move |seed| (name, seed))) {
            rows.push(row(name, seed, 0, "m", 0.1 + 0.1 * rng.sample::<f64, _>(StandardNormal)));
        }
        let judged = judge(std::slice::from_ref(&prediction), &Rule::default(), &evidence(rows)).unwrap();
        families += usize::from(judged[0].findings.iter().any(|finding| finding.verdict == Verdict::Supported));
    }
    let most = 0.05 + 5.0 * (0.05f64 * 0.95 / 300.0).sqrt();
    assert!(families as f64 / 300.0 <= most, "{families} of 300");
}

#[test]
fn regimes_that_disagree_are_mixed_and_doubt_is_inconclusive() {
    use Verdict::{Inconclusive, Mixed, Refuted, Supported};
    for (parts, whole) in [
        (vec![Supported, Supported], Supported),
        (vec![Refuted, Refuted], Refuted),
        (vec![Supported, Refuted, Inconclusive], Mixed),
        (vec![Supported, Inconclusive], Inconclusive),
        (vec![Refuted, Inconclusive], Inconclusive),
        (vec![Mixed, Inconclusive], Mixed),
        (vec![], Inconclusive),
    ] {
        assert_eq!(Verdict::of(parts.clone()), whole, "{parts:?}");
    }
    let judged = |claim: &str, verdict| Judged {
        prediction: Prediction { claim: claim.into(), ..prediction(Expect::Greater) },
        findings: vec![],
        verdict,
    };
    let all = claims(&[judged("C1", Supported), judged("C1", Refuted), judged("C2", Refuted)]);
    assert_eq!((all["C1"], all["C2"]), (Mixed, Refuted));
}

#[test]
fn too_few_seeds_decide_nothing() {
    let found = finding(Expect::Greater, cells(0.5, 0.01, 7, 0));
    assert!(found.verdict == Verdict::Inconclusive && found.reason.contains("7 seeds"), "{found}");
    let found = finding(Expect::Greater, vec![row("a", 0, 0, "m", 1.0)]);
    assert_eq!((found.verdict, found.effects.len()), (Verdict::Inconclusive, 0));
}

/// Runs that did not learn do not count, in pairs, and are told.
#[test]
fn runs_that_did_not_learn_do_not_count() {
    let mut rows = cells(0.5, 0.01, 12, 0);
    for seed in 0..12 {
        rows.push(row("a", seed, 0, "excess_loss", if seed < 3 { 0.9 } else { 0.1 }));
    }
    let found = finding(Expect::Greater, rows.clone());
    assert_eq!((found.verdict, found.effects.len(), found.unlearned), (Verdict::Supported, 9, 3), "{found}");
    let all = Prediction { learned: false, ..prediction(Expect::Greater) };
    let found = judge(&[all], &Rule::default(), &evidence(rows)).unwrap().remove(0).findings.remove(0);
    assert_eq!((found.effects.len(), found.unlearned), (12, 0));
}

/// At matched loss each run is read where its loss first falls far enough, at the end where it ends.
#[test]
fn cells_are_compared_at_matched_loss() {
    let mut rows = vec![];
    for seed in 0..10 {
        for (step, loss, a, b) in [(0, 1.0, 9.0, 0.0), (10, 0.4, 0.5, 0.0), (20, 0.2, 9.0, 9.0)] {
            rows.push(row("a", seed, step, "m", a));
            rows.push(row("b", seed, step, "m", b));
            rows.push(row("a", seed, step, "excess_loss", loss));
            // b learns earlier: it is read at step 0
            rows.push(row("b", seed, step, "excess_loss", loss - 0.6));
        }
    }
    let matched = Prediction { reading: Reading::AtExcessLoss(0.5), ..prediction(Expect::Greater) };
    let at = |prediction: Prediction| {
        let judged = judge(&[prediction], &Rule::default(), &evidence(rows.clone())).unwrap().remove(0);
        judged.findings[0].effect.unwrap().estimate
    };
    assert_eq!(at(matched), 0.5);
    assert_eq!(at(prediction(Expect::Greater)), 0.0);
}

/// Missing values, rows about heads, and other tasks are left out; a thing measured twice is refused.
#[test]
fn only_whole_runs_are_read() {
    let mut rows = cells(0.5, 0.01, 10, 0);
    rows[0].value = f64::NAN;
    let mut head = row("a", 1, 0, "m", 99.0);
    head.keys.head = Some(0);
    let mut task = row("a", 1, 0, "m", 99.0);
    task.keys.task = Some("other".into());
    rows.extend([head, task]);
    let found = finding(Expect::Greater, rows.clone());
    assert_eq!(found.effects.len(), 9);
    rows.push(row("a", 1, 0, "m", 1.0));
    let table = Table::new(rows, Provenance::default()).unwrap();
    assert!(Evidence::new(&table).err().unwrap().to_string().contains("two of m in cell a, seed 1"));
}

/// Where cells share seeds, the trend is Page's on the seeds that all of them have, or of two cells that of the signs of their
/// differences; where they share none, Jonckheere's. What seeds have in common hides a trend from the latter, and not from the
/// former.
#[test]
fn cells_that_share_seeds_are_blocks() {
    let values = |seed: u64, cell: u64| 10.0 * seed as f64 + 0.5 * cell as f64 + 0.01 * (seed * cell % 3) as f64;
    let p = |seeds: &dyn Fn(u64) -> Vec<u64>, trend: &[&str]| {
        let cells = ["a", "b", "c"].iter().zip(0u64..);
        let rows = cells.flat_map(|(name, cell)| {
            seeds(cell).into_iter().map(move |seed| row(name, seed, 0, "m", values(seed % 100, cell)))
        });
        let mut prediction = prediction(Expect::Greater);
        prediction.cases[0].trend = trend.iter().map(ToString::to_string).collect();
        let evidence = evidence(rows.collect());
        judge(&[prediction], &Rule::default(), &evidence).unwrap()[0].findings[0].p_trend
    };
    let all = ["a", "b", "c"];
    let options = TrendOptions { tail: Tail::Greater, ..TrendOptions::default() };
    let expected = |n: usize| {
        let blocks = Array2::from_shape_fn((n, 3), |(seed, cell)| values(seed as u64, cell as u64));
        page(blocks.view(), &options, 0).unwrap().p
    };
    let shared = p(&|_| (0..6).collect(), &all).unwrap();
    assert_eq!(shared, expected(6));
    assert!(shared < 1e-4, "every block rises: {shared}");
    // The same values of seeds that no two cells share.
    let apart = p(&|cell| (0..6).map(|seed| 100 * cell + seed).collect(), &all).unwrap();
    let groups: Vec<Vec<f64>> = (0..3).map(|cell| (0..6).map(|seed| values(seed, cell)).collect()).collect();
    assert_eq!(apart, jonckheere(&groups, &options, 0).unwrap().p);
    assert!(apart > 0.1, "seeds differ more than cells: {apart}");
    // Cell c has seeds 2 and up, a and b others beside: only blocks that are whole count.
    assert_eq!(p(&|cell| if cell == 2 { (2..6).collect() } else { (0..6).collect() }, &all).unwrap(), {
        let blocks = Array2::from_shape_fn((4, 3), |(seed, cell)| values(seed as u64 + 2, cell as u64));
        page(blocks.view(), &options, 0).unwrap().p
    });
    // Some cells share seeds, but none is in all: neither test holds.
    assert_eq!(p(&|cell| if cell == 2 { (10..16).collect() } else { (0..6).collect() }, &all), None);
    // Of two cells: all 2^6 signs, one of which rises everywhere.
    assert_eq!(p(&|_| (0..6).collect(), &["a", "c"]), Some(1.0 / 64.0));
    assert_eq!(p(&|_| (0..6).collect(), &["a", "a"]), None, "nothing varies");
}

/// The trend over cells is one-sided and reported beside.
#[test]
fn trends_are_reported() {
    let mut rows = vec![];
    for seed in 0..8 {
        for (cell, level) in [("a", 0.9), ("b", 0.5), ("c", 0.1)] {
            rows.push(row(cell, seed, 0, "m", level + 0.001 * seed as f64));
        }
    }
    let with = |trend: &[&str]| {
        let mut prediction = prediction(Expect::Greater);
        prediction.cases[0].trend = trend.iter().map(ToString::to_string).collect();
        judge(&[prediction], &Rule::default(), &evidence(rows.clone())).unwrap()[0].findings[0].p_trend.unwrap()
    };
    assert!(with(&["c", "b", "a"]) < 1e-4 && with(&["a", "b", "c"]) > 0.99);
}
