//! The rule in force, on planted tables: how often it errs, how often it finds what is there, and the faults of the first
//! rule that it must not repeat.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use headscope::Error;
use headscope::lab::verdict::{
    Contrast, Endpoint, Evidence, Form, Gate, Judged, Limit, Magnitude, Reading, Rule, Setting, Side, SubClaim, Term,
    Verdict, judge,
};
use headscope::table::{Keys, Observation, Provenance, Table};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, StandardNormal};

const REGIMES: [&str; 3] = ["gated", "simultaneous", "bag"];
const DELTA: f64 = 0.1;

fn row(cell: &str, seed: u64, metric: &str, value: f64) -> Observation {
    let keys = Keys { cell: Some(cell.to_owned()), seed: Some(seed), step: Some(0), ..Keys::default() };
    Observation { keys, metric: metric.to_owned(), value, ..Observation::default() }
}

fn evidence(rows: Vec<Observation>) -> Evidence {
    Evidence::new(&Table::new(rows, Provenance::default()).unwrap()).unwrap()
}

/// A sub-claim that the narrow cell of every regime has more of `m` than the wide one.
fn claim(form: Form) -> SubClaim {
    let case = |name| Contrast::between(name, format!("{name}-narrow"), format!("{name}-wide"));
    let cases: Vec<Contrast> = REGIMES.map(case).to_vec();
    let cases = if form == Form::Directional { cases[..1].to_vec() } else { cases };
    SubClaim {
        id: "C1b".into(),
        text: "narrow heads divide more".into(),
        setting: Setting::MadeUp,
        form,
        endpoint: Endpoint {
            metric: "m".into(),
            task: None,
            reading: Reading::End,
            expect: Side::Above,
            delta: DELTA,
            scale: "a tenth".into(),
            least: Some(-10.0),
            most: Some(10.0),
            given_learning: true,
        },
        cases,
        gates: vec![],
    }
}

/// How the effects of seeds are spread around the planted one, with standard deviation 1.
#[derive(Debug, Clone, Copy)]
enum Noise {
    Normal,
    Skewed,
}

/// Cells of `seeds` seeds in which the effects of the regimes are planted.
fn planted(effects: &[f64], spread: f64, noise: Noise, seeds: u64, draw: u64) -> Vec<Observation> {
    let mut rng = ChaCha8Rng::seed_from_u64(draw);
    let mut rows = vec![];
    for (name, effect) in REGIMES.iter().zip(effects) {
        for seed in 0..seeds {
            let off: f64 = match noise {
                Noise::Normal => StandardNormal.sample(&mut rng),
                Noise::Skewed => {
                    let draw: f64 = Exp1.sample(&mut rng);
                    draw - 1.0
                }
            };
            rows.push(row(&format!("{name}-narrow"), seed, "m", effect + spread * off));
            rows.push(row(&format!("{name}-wide"), seed, "m", 0.0));
        }
    }
    rows
}

/// How often each verdict is reached over many planted tables of 64 seeds.
fn rates(form: Form, effects: [f64; 3], spread: f64, noise: Noise, draws: u64) -> impl Fn(Verdict) -> f64 {
    let (claim, rule) = (claim(form), Rule::default());
    let judged = |draw: u64| judge(&claim, &rule, &evidence(planted(&effects, spread, noise, 64, draw))).unwrap();
    let verdicts: Vec<Verdict> = (0..draws).map(|draw| judged(draw).decided().verdict).collect();
    move |verdict| verdicts.iter().filter(|found| **found == verdict).count() as f64 / draws as f64
}

/// An error rate of `level`, and three standard errors of a simulation of that many draws.
fn at_most(level: f64, draws: u64) -> f64 {
    level + 3.0 * (level * (1.0 - level) / draws as f64).sqrt()
}

/// The sum of the levels of all looks, .05, bounds how often a true effect of exactly delta is said to be above it, and
/// how often it is said to be below; with no effect at all, or a reversed one, "holds" never happens.
#[test]
fn the_size_of_the_whole_rule_is_its_level() {
    let draws = 600;
    for spread in [0.1, 0.3] {
        let one = rates(Form::Directional, [DELTA; 3], spread, Noise::Normal, draws);
        assert!(one(Verdict::Holds) <= at_most(0.05, draws), "holds: {}", one(Verdict::Holds));
        assert!(one(Verdict::Fails) <= at_most(0.05, draws), "fails: {}", one(Verdict::Fails));
        let all = rates(Form::Universal, [DELTA; 3], spread, Noise::Normal, draws);
        assert!(all(Verdict::Holds) <= at_most(0.05, draws), "holds in all: {}", all(Verdict::Holds));
        let fails = all(Verdict::Fails) + all(Verdict::Depends);
        assert!(fails <= at_most(0.05, draws), "fails in some: {fails}");
        let any = rates(Form::Existential, [DELTA; 3], spread, Noise::Normal, draws);
        assert!(any(Verdict::Holds) <= at_most(0.05, draws), "holds in some: {}", any(Verdict::Holds));
        for none in [0.0, -0.3] {
            let none = rates(Form::Existential, [none; 3], spread, Noise::Normal, 200);
            assert!(none(Verdict::Holds) <= at_most(0.01, 200), "holds without an effect: {}", none(Verdict::Holds));
        }
    }
}

/// Student's t is not exact for skewed effects. For exponential ones, as skewed as effects of bounded indices get, a
/// wrong decision at the threshold stays below twice the level.
#[test]
fn the_size_for_skewed_effects_stays_below_twice_the_level() {
    let draws = 600;
    let one = rates(Form::Directional, [DELTA; 3], 0.1, Noise::Skewed, draws);
    for verdict in [Verdict::Holds, Verdict::Fails] {
        assert!(one(verdict) <= at_most(0.1, draws), "{verdict}: {}", one(verdict));
    }
}

/// Twice delta is found, and so is its absence, with a spread as large as the effect.
#[test]
fn the_power_of_the_whole_rule_is_high() {
    let draws = 200;
    // What one case decides is found more often than what all must show.
    for (form, holds, fails) in
        [(Form::Directional, 0.9, 0.9), (Form::Existential, 0.95, 0.8), (Form::Universal, 0.8, 0.95)]
    {
        let found = rates(form, [2.0 * DELTA; 3], 2.0 * DELTA, Noise::Normal, draws);
        assert!(found(Verdict::Holds) >= holds, "{form:?} holds: {}", found(Verdict::Holds));
        let none = rates(form, [0.0; 3], 2.0 * DELTA, Noise::Normal, draws);
        assert!(none(Verdict::Fails) >= fails, "{form:?} fails: {}", none(Verdict::Fails));
        let reversed = rates(form, [-2.0 * DELTA; 3], 2.0 * DELTA, Noise::Normal, draws);
        assert!(reversed(Verdict::Fails) >= fails, "{form:?} reversed: {}", reversed(Verdict::Fails));
    }
    // Wide effects in one regime only: a universal claim falls, and it is said that it depends on the regime.
    let one = rates(Form::Universal, [2.0 * DELTA, 0.0, 0.0], DELTA, Noise::Normal, draws);
    let falls = one(Verdict::Fails) + one(Verdict::Depends);
    assert!(falls >= 0.95 && one(Verdict::Depends) >= 0.8, "one regime only: {falls}, {}", one(Verdict::Depends));
    let some = rates(Form::Existential, [2.0 * DELTA, 0.0, 0.0], DELTA, Noise::Normal, draws);
    assert!(some(Verdict::Holds) >= 0.95, "{}", some(Verdict::Holds));
}

fn judged(form: Form, effects: &[f64], spread: f64, seeds: u64) -> Judged {
    judge(&claim(form), &Rule::default(), &evidence(planted(effects, spread, Noise::Normal, seeds, 3))).unwrap()
}

/// Fault 1 of the first rule: an effect whose upper bound lies below delta was called inconclusive unless it was also
/// equivalent to zero. Fault 2: one undecided part outvoted any number of refuted ones.
#[test]
fn a_small_effect_fails_and_an_undecided_part_does_not_outvote_it() {
    let found = judged(Form::Directional, &[-0.09], 0.1, 64);
    assert_eq!(found.decided().verdict, Verdict::Fails, "{found}");
    let found = judged(Form::Universal, &[0.0, 0.0, 0.1], 0.05, 64);
    assert_eq!(found.decided().verdict, Verdict::Fails, "{found}");
    let open = found.decided().findings.iter().filter(|finding| finding.verdict == Verdict::Fails).count();
    assert!(open >= 2, "{found}");
}

/// Fault 3: asking more questions undid the verdict on another. "Holds in every case" needs no correction, and gates and
/// other sub-claims are no part of it.
#[test]
fn more_questions_do_not_undo_a_verdict() {
    let alone = judged(Form::Directional, &[0.2], 0.1, 16);
    assert_eq!(alone.decided().verdict, Verdict::Holds, "{alone}");
    let among = judged(Form::Universal, &[0.2, 0.2, 0.2], 0.1, 16);
    assert_eq!(alone.decided().findings[0].verdict, among.decided().findings[0].verdict);
    assert_eq!(alone.decided().findings[0].interval, among.decided().findings[0].interval);
}

/// Fault 4: predictions that cannot succeed. So is one that cannot fail.
#[test]
fn a_declaration_that_cannot_succeed_or_cannot_fail_is_refused() {
    let refused = |change: &dyn Fn(&mut SubClaim)| {
        let mut claim = claim(Form::Universal);
        change(&mut claim);
        let names: Vec<String> = REGIMES.iter().flat_map(|r| [format!("{r}-narrow"), format!("{r}-wide")]).collect();
        match claim.validate(&names.iter().map(String::as_str).collect::<Vec<_>>()) {
            Err(Error::Argument { found, .. }) => found,
            other => panic!("{other:?}"),
        }
    };
    // The best fixed offset is right always: no head gains .1 over it.
    let found = refused(&|claim| {
        claim.endpoint =
            Endpoint { metric: "role_beyond".into(), least: Some(-1.0), most: Some(0.0), ..claim.endpoint.clone() };
        claim.cases = vec![Contrast::of("agreement", "gated-narrow")];
    });
    assert!(found.contains("cannot succeed"), "{found}");
    // An index between 0 and 1 does not fall by more than 1, whatever its declaration says of it.
    let found = refused(&|claim| {
        claim.endpoint = Endpoint { metric: "specialisation".into(), delta: 1.5, ..claim.endpoint.clone() };
    });
    assert!(found.contains("cannot succeed"), "{found}");
    // A share of the baseline cannot fall by more than the whole of it.
    let found = refused(&|claim| {
        claim.endpoint.delta = 1.2;
        claim.cases = vec![Contrast::fall("gated", "gated-wide", "gated-narrow")];
    });
    assert!(found.contains("cannot succeed"), "{found}");
    let found = refused(&|claim| claim.cases[0].terms[1] = Term { cell: "gated-narrow".into(), weight: -1.0 });
    assert!(found.contains("cannot succeed"), "a cell against itself: {found}");
    let found = refused(&|claim| {
        claim.endpoint = Endpoint { expect: Side::Below, delta: 30.0, ..claim.endpoint.clone() };
    });
    assert!(found.contains("cannot fail"), "{found}");
    let found = refused(&|claim| claim.form = Form::Interaction);
    assert!(found.contains("2 cells"), "{found}");
    let found = refused(&|claim| claim.cases[0].terms[0].cell = "nowhere".into());
    assert!(found.contains("nowhere"), "{found}");
    let found = refused(&|claim| claim.form = Form::Directional);
    assert!(found.contains('3'), "{found}");
}

/// A gate that fails makes the sub-claim untested and says why, however large the effect; one that passes does not
/// matter.
#[test]
fn gates_come_first() {
    let gated = |limit: Limit| {
        let cases = vec![Contrast::of("control", "gated-wide")];
        let gate = Gate {
            text: "the control is 0".into(),
            metric: "m".into(),
            task: None,
            reading: Reading::End,
            limit,
            cases,
        };
        let claim = SubClaim { gates: vec![gate], ..claim(Form::Universal) };
        judge(&claim, &Rule::default(), &evidence(planted(&[0.3; 3], 0.1, Noise::Normal, 16, 1))).unwrap()
    };
    assert_eq!(gated(Limit::Within(0.1)).decided().verdict, Verdict::Holds);
    let found = gated(Limit::Above(0.1));
    assert_eq!(found.decided().verdict, Verdict::Untested);
    assert!(found.to_string().contains("the control is 0"), "{found}");
}

/// Looks: what 16 seeds decide is not changed by later ones; what they leave open needs 32, and then 64; and only the
/// open cases need them.
#[test]
fn later_looks_are_taken_only_where_an_earlier_one_left_something_open() {
    let mut rows = planted(&[0.4, 0.4, 0.2], 0.1, Noise::Normal, 16, 5);
    // The third regime is noisy at first.
    for row in rows.iter_mut().filter(|row| row.keys.cell.as_deref() == Some("bag-narrow")) {
        row.value = if row.keys.seed.unwrap().is_multiple_of(2) { 0.6 } else { -0.2 };
    }
    let first = judge(&claim(Form::Universal), &Rule::default(), &evidence(rows.clone())).unwrap();
    assert_eq!((first.decided().verdict, first.decided().looks), (Verdict::Open, 1), "{first}");
    assert_eq!(first.open_cells(), ["bag-narrow", "bag-wide"]);
    for seed in 16..32 {
        rows.push(row("bag-narrow", seed, "m", 0.3));
        rows.push(row("bag-wide", seed, "m", 0.0));
    }
    let second = judge(&claim(Form::Universal), &Rule::default(), &evidence(rows.clone())).unwrap();
    let seeds: Vec<usize> = second.decided().findings.iter().map(|finding| finding.seeds).collect();
    assert_eq!((second.decided().looks, seeds), (2, vec![16, 16, 32]), "{second}");
    // More seeds of a case that was decided change nothing.
    let before = second.decided().findings[0].clone();
    for seed in 16..64 {
        rows.push(row("gated-narrow", seed, "m", -5.0));
        rows.push(row("gated-wide", seed, "m", 0.0));
    }
    let third = judge(&claim(Form::Universal), &Rule::default(), &evidence(rows)).unwrap();
    assert_eq!(third.decided().findings[0], before);
}

/// Runs that did not learn are left out of the first verdict and counted in the second; where the two differ, the
/// sentence says so.
#[test]
fn every_verdict_is_given_over_the_runs_that_learned_and_over_all() {
    let mut rows = planted(&[0.3; 3], 0.05, Noise::Normal, 16, 9);
    for regime in REGIMES {
        for seed in 0..16 {
            let learned = seed % 4 != 0;
            for cell in ["narrow", "wide"] {
                rows.push(row(&format!("{regime}-{cell}"), seed, "excess_loss", if learned { 0.1 } else { 0.9 }));
            }
        }
    }
    for row in rows.iter_mut().filter(|row| row.metric == "m" && row.keys.seed.unwrap().is_multiple_of(4)) {
        row.value = if row.keys.cell.as_ref().unwrap().ends_with("narrow") { -2.0 } else { 0.0 };
    }
    let found = judge(&claim(Form::Universal), &Rule::default(), &evidence(rows)).unwrap();
    assert_eq!(found.decided().verdict, Verdict::Holds);
    assert!(found.differs() && found.to_string().contains("over all runs"), "{found}");
    assert_eq!(found.decided().findings[0].effects.len(), 12);
    assert_eq!(found.all.findings[0].effects.len(), 16);
}

/// Further looks are taken for the runs that learned. What they decide is final, so that what all runs leave undecided by then
/// is at the threshold, not open.
#[test]
fn all_runs_have_no_look_of_their_own() {
    let mut rows = vec![];
    for seed in 0..16 {
        // One in four does not learn; with these, effects are as large on average, and far apart.
        let (loss, value) = match seed % 8 {
            0 => (0.9, 2.3),
            4 => (0.9, -1.7),
            _ => (0.1, 0.3 + 0.001 * seed as f64),
        };
        rows.push(row("gated-narrow", seed, "m", value));
        rows.push(row("gated-narrow", seed, "excess_loss", loss));
        rows.push(row("gated-wide", seed, "m", 0.0));
    }
    let found = judge(&claim(Form::Directional), &Rule::default(), &evidence(rows)).unwrap();
    assert_eq!((found.decided().verdict, found.decided().looks), (Verdict::Holds, 1), "{found}");
    assert_eq!((found.all.verdict, found.all.looks), (Verdict::AtThreshold, 1), "{found}");
    assert!(found.open_cells().is_empty());
}

/// Beside the verdict stands what is to be said of the effect.
#[test]
fn equivalence_and_reversal_are_described_only() {
    let of = |effect: f64| judged(Form::Directional, &[effect], 0.02, 16).decided().findings[0].magnitude;
    assert_eq!(of(0.0), Some(Magnitude::EquivalentToZero));
    assert_eq!(of(-0.3), Some(Magnitude::Reversed));
    assert_eq!(of(0.3), None);
}

/// A table with too few seeds decides nothing, and says how many there are.
#[test]
fn too_few_seeds_leave_everything_open() {
    let found = judged(Form::Universal, &[0.5; 3], 0.01, 10);
    assert_eq!((found.decided().verdict, found.decided().looks), (Verdict::Open, 0));
    assert!(found.to_string().contains("10 of 16 seeds"), "{found}");
    assert_eq!(found.open_cells().len(), 6);
}

/// A rule reads back as it was written, and one whose looks shrink is refused.
#[test]
fn rules_and_sub_claims_are_data() {
    let rule = Rule::default();
    assert_eq!(serde_json::from_str::<Rule>(&serde_json::to_string(&rule).unwrap()).unwrap(), rule);
    let claim = claim(Form::Universal);
    assert_eq!(serde_json::from_str::<SubClaim>(&serde_json::to_string(&claim).unwrap()).unwrap(), claim);
    let mut shrinking = rule.clone();
    shrinking.looks.reverse();
    assert!(shrinking.validate().is_err());
    let empty = Rule { looks: vec![], ..rule };
    assert!(empty.validate().is_err());
}
