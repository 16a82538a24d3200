//! How does evidence become a verdict? By statistical tests and a fixed rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::rule::{Case, Expect, Prediction, Rule};
use crate::error::Result;
use crate::lab::verdict::{EXCESS_LOSS, Evidence, Reading};
use crate::stats::{
    BootstrapOptions, Interval, PermutationOptions, Tail, TrendOptions, bootstrap_mean, holm, jonckheere, page,
    sign_flip, tost,
};

/// The verdict on a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The predicted effect was found, beyond the smallest effect of interest.
    Supported,
    /// The opposite effect was found, or one too small to be of interest.
    Refuted,
    /// Supported in some cases and refuted in others.
    Mixed,
    /// The evidence is not decisive.
    Inconclusive,
}

impl Verdict {
    /// Combines the verdicts on the parts into one on the whole.
    pub fn of(parts: impl IntoIterator<Item = Self>) -> Self {
        let parts: Vec<Self> = parts.into_iter().collect();
        let any = |verdict| parts.contains(&verdict);
        let all = |verdict| !parts.is_empty() && parts.iter().all(|part| *part == verdict);
        match () {
            () if all(Self::Supported) => Self::Supported,
            () if all(Self::Refuted) => Self::Refuted,
            () if any(Self::Mixed) || (any(Self::Supported) && any(Self::Refuted)) => Self::Mixed,
            () => Self::Inconclusive,
        }
    }

    /// The verdict as a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Supported => "supported",
            Self::Refuted => "refuted",
            Self::Mixed => "mixed",
            Self::Inconclusive => "inconclusive",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

/// The finding in one case; p-values are corrected over all cases of the claim in the experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The case.
    pub case: String,
    /// The effect of each seed.
    pub effects: BTreeMap<u64, f64>,
    /// Number of runs in either cell that are excluded because they did not learn.
    pub unlearned: usize,
    /// The mean effect with its confidence interval; `None` with fewer than two effects.
    pub effect: Option<Interval>,
    /// p-value for the null hypothesis of no effect beyond the smallest of interest, on the predicted side. If no
    /// effect is predicted, the nearer side is tested.
    pub p_beyond: Option<f64>,
    /// p-value for the null hypothesis of no effect on the side opposite to the predicted one.
    pub p_opposite: Option<f64>,
    /// p-value of the equivalence test: for the null hypothesis that the effect is at least as large as the smallest of
    /// interest.
    pub p_equivalent: Option<f64>,
    /// p-value for the null hypothesis of no trend over the case's cells, in their order.
    pub p_trend: Option<f64>,
    /// The verdict.
    pub verdict: Verdict,
    /// The reason in a few words.
    pub reason: String,
}

/// The findings about one prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The prediction.
    pub prediction: Prediction,
    /// The finding in each of its cases.
    pub findings: Vec<Finding>,
    /// The verdict on the prediction.
    pub verdict: Verdict,
}

/// The verdict on each claim, from the verdicts on its predictions.
pub fn claims<'a>(judged: impl IntoIterator<Item = &'a Judged>) -> BTreeMap<String, Verdict> {
    let mut parts: BTreeMap<String, Vec<Verdict>> = BTreeMap::new();
    for judged in judged {
        parts.entry(judged.prediction.claim.clone()).or_default().push(judged.verdict);
    }
    parts.into_iter().map(|(claim, parts)| (claim, Verdict::of(parts))).collect()
}

/// Judges predictions by a rule.
///
/// # Errors
/// If the rule is invalid.
pub fn judge(predictions: &[Prediction], rule: &Rule, evidence: &Evidence) -> Result<Vec<Judged>> {
    rule.validate()?;
    let mut found: Vec<(usize, Finding)> = vec![];
    for (number, prediction) in predictions.iter().enumerate() {
        for case in &prediction.cases {
            found.push((number, measure(prediction, case, rule, evidence)?));
        }
    }
    let mut claims: Vec<&str> = predictions.iter().map(|prediction| prediction.claim.as_str()).collect();
    claims.sort_unstable();
    claims.dedup();
    for claim in claims {
        let family: Vec<usize> = (0..found.len()).filter(|&place| predictions[found[place].0].claim == claim).collect();
        let fields: [fn(&mut Finding) -> &mut Option<f64>; 4] =
            [|f| &mut f.p_beyond, |f| &mut f.p_opposite, |f| &mut f.p_equivalent, |f| &mut f.p_trend];
        for field in fields {
            correct(&mut found, &family, field)?;
        }
    }
    let mut findings: Vec<Vec<Finding>> = predictions.iter().map(|_| vec![]).collect();
    for (number, mut finding) in found {
        (finding.verdict, finding.reason) = decide(&predictions[number], &finding, rule);
        findings[number].push(finding);
    }
    let judged = predictions.iter().zip(findings).map(|(prediction, findings)| {
        let verdict = Verdict::of(findings.iter().map(|finding| finding.verdict));
        Judged { prediction: prediction.clone(), findings, verdict }
    });
    Ok(judged.collect())
}

/// Corrects one kind of p-value over a family of cases.
fn correct(
    found: &mut [(usize, Finding)],
    family: &[usize],
    field: fn(&mut Finding) -> &mut Option<f64>,
) -> Result<()> {
    let known: Vec<(usize, f64)> =
        family.iter().filter_map(|&place| field(&mut found[place].1).map(|p| (place, p))).collect();
    if known.is_empty() {
        return Ok(());
    }
    let corrected = holm(&known.iter().map(|(_, p)| *p).collect::<Vec<_>>())?;
    for ((place, _), p) in known.into_iter().zip(corrected) {
        *field(&mut found[place].1) = Some(p);
    }
    Ok(())
}

/// Computes the effects of a case and their p-values, uncorrected.
fn measure(prediction: &Prediction, case: &Case, rule: &Rule, evidence: &Evidence) -> Result<Finding> {
    let ours = read(evidence, &case.cell, prediction, rule);
    let effects: BTreeMap<u64, f64> = match &case.against {
        None => ours.iter().map(|(seed, value)| (*seed, value - prediction.level)).collect(),
        Some(other) => {
            let others = read(evidence, other, prediction, rule);
            ours.iter().filter_map(|(seed, value)| Some((*seed, value - others.get(seed)?))).collect()
        }
    };
    let out = |cell: &String| evidence.unlearned(cell, rule.learned).len();
    let unlearned = if prediction.learned { out(&case.cell) + case.against.as_ref().map_or(0, out) } else { 0 };
    let mut finding = Finding {
        case: case.name.clone(),
        effects,
        unlearned,
        effect: None,
        p_beyond: None,
        p_opposite: None,
        p_equivalent: None,
        p_trend: trend(prediction, case, rule, evidence)?,
        verdict: Verdict::Inconclusive,
        reason: String::new(),
    };
    let d: Vec<f64> = finding.effects.values().copied().collect();
    if d.len() < 2 {
        return Ok(finding);
    }
    let options = BootstrapOptions { level: rule.interval, ..BootstrapOptions::default() };
    finding.effect = Some(bootstrap_mean(&d, &options, 0)?);
    let delta = prediction.smallest;
    let chance = |values: Vec<f64>, tail| -> Result<Option<f64>> {
        Ok(Some(sign_flip(&values, &PermutationOptions { tail, ..PermutationOptions::default() }, 0)?.p))
    };
    let moved = |by: f64| d.iter().map(|d| d - by).collect::<Vec<f64>>();
    let up = d.iter().sum::<f64>() > 0.0;
    match prediction.expect {
        Expect::Greater => {
            finding.p_beyond = chance(moved(delta), Tail::Greater)?;
            finding.p_opposite = chance(d.clone(), Tail::Less)?;
        }
        Expect::Less => {
            finding.p_beyond = chance(moved(-delta), Tail::Less)?;
            finding.p_opposite = chance(d.clone(), Tail::Greater)?;
        }
        // Either side could be tested, so the p-value on the nearer one is doubled.
        Expect::Zero if up => finding.p_beyond = chance(moved(delta), Tail::Greater)?.map(|p| (2.0 * p).min(1.0)),
        Expect::Zero => finding.p_beyond = chance(moved(-delta), Tail::Less)?.map(|p| (2.0 * p).min(1.0)),
    }
    finding.p_equivalent = Some(tost(&d, (-delta, delta), rule.alpha)?.p);
    Ok(finding)
}

/// The value of the prediction's metric for every run of a cell that counts; runs without a finite value are skipped.
fn read(evidence: &Evidence, cell: &str, prediction: &Prediction, rule: &Rule) -> BTreeMap<u64, f64> {
    let Some(runs) = evidence.metric(cell, &prediction.metric, prediction.task.as_ref()) else {
        return BTreeMap::new();
    };
    let out = if prediction.learned { evidence.unlearned(cell, rule.learned) } else { BTreeSet::new() };
    let losses = evidence.metric(cell, EXCESS_LOSS, None);
    let value = |seed: &u64, steps: &BTreeMap<u32, f64>| match prediction.reading {
        Reading::End | Reading::MeanUntilExcessLoss(_) => steps.last_key_value().map(|(_, value)| *value),
        Reading::AtExcessLoss(most) => {
            let losses = losses?.get(seed)?;
            steps.iter().find(|(step, _)| losses.get(step).is_some_and(|loss| *loss <= most)).map(|(_, v)| *v)
        }
    };
    let counted = runs.iter().filter(|(seed, _)| !out.contains(seed));
    let finite = |(seed, steps): (&u64, &BTreeMap<u32, f64>)| {
        Some((*seed, value(seed, steps).filter(|value| value.is_finite())?))
    };
    counted.filter_map(finite).collect()
}

/// p-value of a trend over a case's cells, on the predicted side. Runs with the same seed are not independent samples:
/// if cells share seeds, the seeds present in all cells serve as blocks.
fn trend(prediction: &Prediction, case: &Case, rule: &Rule, evidence: &Evidence) -> Result<Option<f64>> {
    let cells: Vec<BTreeMap<u64, f64>> = case.trend.iter().map(|cell| read(evidence, cell, prediction, rule)).collect();
    if cells.len() < 2 || cells.iter().any(BTreeMap::is_empty) {
        return Ok(None);
    }
    let mut seen = BTreeSet::new();
    if cells.iter().flat_map(BTreeMap::keys).any(|seed| !seen.insert(*seed)) {
        return trend_in_blocks(&cells);
    }
    let groups: Vec<Vec<f64>> = cells.iter().map(|cell| cell.values().copied().collect()).collect();
    let options = TrendOptions { tail: Tail::Greater, ..TrendOptions::default() };
    Ok(if varied(groups.iter().flatten()) { Some(jonckheere(&groups, &options, 0)?.p) } else { None })
}

/// [`trend`] with seeds as blocks: Page's test or, for two cells, a sign-flip test of their differences.
fn trend_in_blocks(cells: &[BTreeMap<u64, f64>]) -> Result<Option<f64>> {
    let row = |seed: &u64| cells.iter().map(|cell| cell.get(seed).copied()).collect::<Option<Vec<f64>>>();
    let rows: Vec<Vec<f64>> = cells[0].keys().filter_map(row).collect();
    if rows.len() < 2 || !rows.iter().any(varied) {
        return Ok(None);
    }
    if cells.len() == 2 {
        let rises: Vec<f64> = rows.iter().map(|row| row[1] - row[0]).collect();
        let options = PermutationOptions { tail: Tail::Greater, ..PermutationOptions::default() };
        return Ok(Some(sign_flip(&rises, &options, 0)?.p));
    }
    let values = Array2::from_shape_fn((rows.len(), cells.len()), |(seed, cell)| rows[seed][cell]);
    let options = TrendOptions { tail: Tail::Greater, ..TrendOptions::default() };
    Ok(Some(page(values.view(), &options, 0)?.p))
}

/// Whether the values are not all equal.
fn varied<'a>(values: impl IntoIterator<Item = &'a f64>) -> bool {
    let mut values = values.into_iter();
    values.next().is_some_and(|first| values.any(|value| value != first))
}

/// The verdict on a case, and the reason.
fn decide(prediction: &Prediction, finding: &Finding, rule: &Rule) -> (Verdict, String) {
    let n = finding.effects.len();
    let (Some(effect), true) = (finding.effect, n >= rule.least_seeds) else {
        let why =
            if finding.unlearned > 0 { format!("; {} runs did not learn", finding.unlearned) } else { String::new() };
        return (Verdict::Inconclusive, format!("{n} seeds, {} are needed{why}", rule.least_seeds));
    };
    let below = |p: Option<f64>| p.is_some_and(|p| p <= rule.alpha);
    let (delta, sign) = (prediction.smallest, if prediction.expect == Expect::Less { -1.0 } else { 1.0 });
    // The interval, mirrored so that the predicted side is positive.
    let (low, high) = if sign > 0.0 { (effect.low, effect.high) } else { (-effect.high, -effect.low) };
    let beyond = match prediction.expect {
        Expect::Zero => low > delta || high < -delta,
        _ => low > delta,
    } && below(finding.p_beyond);
    let (small, opposite) = (below(finding.p_equivalent), high < 0.0 && below(finding.p_opposite));
    let (verdict, reason) = match prediction.expect {
        Expect::Zero if small => (Verdict::Supported, "within the smallest effect of interest"),
        Expect::Zero if beyond => (Verdict::Refuted, "beyond the smallest effect of interest"),
        Expect::Zero => (Verdict::Inconclusive, "neither within nor beyond the smallest effect of interest"),
        _ if beyond => (Verdict::Supported, "beyond the smallest effect of interest"),
        _ if opposite => (Verdict::Refuted, "on the other side"),
        _ if small => (Verdict::Refuted, "too small to be of interest"),
        _ => (Verdict::Inconclusive, "neither beyond the smallest effect of interest nor within it"),
    };
    (verdict, reason.to_owned())
}
