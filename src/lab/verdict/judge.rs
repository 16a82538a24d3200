//! How does evidence become a verdict? Look by look, by one-sided decisions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::claim::{Contrast, Form, Side, SubClaim};
use super::evidence::{Effects, Evidence, Over};
use super::first;
use super::gate::GateFinding;
use super::rule::{Look, Rule};
use crate::error::{Error, Result};
use crate::stats::{Interval, Student, holm};

/// A verdict on a sub-claim, or on one of its cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It holds.
    Holds,
    /// It fails.
    Fails,
    /// It holds in some cases and fails in others, and their difference is decided.
    Depends,
    /// After the last look, the interval still contains the threshold.
    AtThreshold,
    /// The next look may decide it.
    Open,
    /// A gate failed, or too few runs learned.
    Untested,
}

/// What else is to be said of an effect; no part of the verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Magnitude {
    /// The interval lies within delta of 0.
    EquivalentToZero,
    /// The interval lies below 0.
    Reversed,
}

/// What was found in one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// The case.
    pub case: String,
    /// The number of seeds looked at.
    pub seeds: usize,
    /// The effect of each seed that counts.
    pub effects: BTreeMap<u64, f64>,
    /// The mean effect with the interval that decides; `None` with fewer than two effects.
    pub interval: Option<Interval>,
    /// One-sided p-value against "not on the claimed side of delta", uncorrected.
    pub p_holds: Option<f64>,
    /// One-sided p-value against "on the claimed side of delta", uncorrected.
    pub p_fails: Option<f64>,
    /// What else is to be said of the effect.
    pub magnitude: Option<Magnitude>,
    /// The verdict on the case.
    pub verdict: Verdict,
}

/// The verdict on a sub-claim over some of the runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// The verdict.
    pub verdict: Verdict,
    /// The reason in a few words, where the verdict needs one.
    pub reason: String,
    /// The number of looks taken.
    pub looks: usize,
    /// The finding in each case.
    pub findings: Vec<Finding>,
    /// The findings about the gates.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateFinding>,
}

/// The verdicts on a sub-claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judged {
    /// The sub-claim.
    pub sub_claim: SubClaim,
    /// Over the runs that learned; `None` where learning itself is the endpoint.
    pub learned: Option<Decided>,
    /// Over all runs. Where the look that decides over the runs that learned leaves this open, it is at the threshold.
    pub all: Decided,
}

/// The findings about an experiment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Judgement {
    /// The experiment.
    pub experiment: String,
    /// The experiment's title.
    pub title: String,
    /// The rule that was applied to the sub-claims.
    pub rule: Rule,
    /// Number of cells in the experiment.
    pub cells: usize,
    /// Cells without results.
    pub missing_cells: Vec<String>,
    /// Caveats about the tables: see [`Results::notes`](crate::lab::Results::notes).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The verdict on each sub-claim.
    pub sub_claims: Vec<Judged>,
    /// The verdicts of the first rule on the same tables.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub first: Vec<first::Judged>,
    /// The first rule, if it was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_rule: Option<first::Rule>,
}

impl Judgement {
    /// The verdicts on a sub-claim of this experiment.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is none of that id; it names those that there are.
    pub fn sub_claim(&self, id: &str) -> Result<&Judged> {
        self.sub_claims.iter().find(|judged| judged.sub_claim.id == id).ok_or_else(|| {
            let ids: Vec<&str> = self.sub_claims.iter().map(|judged| judged.sub_claim.id.as_str()).collect();
            Error::argument("sub-claim", format!("one of {}", ids.join(", ")), id)
        })
    }
}

impl Judged {
    /// The verdict that comes first: over the runs that learned, unless learning is the endpoint.
    pub fn decided(&self) -> &Decided {
        self.learned.as_ref().unwrap_or(&self.all)
    }

    /// Whether the verdict over all runs is another one.
    pub fn differs(&self) -> bool {
        self.decided().verdict != self.all.verdict
    }

    /// The cells that the next look needs, if the verdict is open.
    pub fn open_cells(&self) -> Vec<&str> {
        let decided = self.decided();
        if decided.verdict != Verdict::Open {
            return vec![];
        }
        let undecided = |finding: &&Finding| finding.verdict == Verdict::Open;
        let case = |name: &str| self.sub_claim.cases.iter().find(|case| case.name == name);
        let cases = decided.findings.iter().filter(undecided).filter_map(|finding| case(&finding.case));
        let gates = self.sub_claim.gates.iter().flat_map(|gate| gate.open(&decided.gates));
        let mut cells: Vec<&str> = cases.chain(gates).flat_map(Contrast::cells).collect();
        cells.sort_unstable();
        cells.dedup();
        cells
    }
}

/// Judges a sub-claim by a rule.
///
/// # Errors
/// If the rule is invalid.
pub fn judge(sub_claim: &SubClaim, rule: &Rule, evidence: &Evidence) -> Result<Judged> {
    rule.validate()?;
    let by = |rule: &Rule, over| Looks { sub_claim, rule, evidence, over }.decide();
    let learned = sub_claim.endpoint.given_learning.then(|| by(rule, Over::Learned)).transpose()?;
    let mut all = by(rule, Over::All)?;
    // No further look is taken for the sake of all runs alone: the one that decided is their last as well.
    if let Some(decided) = learned.as_ref().filter(|decided| decided.verdict != Verdict::Open)
        && all.verdict == Verdict::Open
    {
        let looks = rule.looks.iter().take(decided.looks).copied().collect();
        all = by(&Rule { looks, ..rule.clone() }, Over::All)?;
    }
    Ok(Judged { sub_claim: sub_claim.clone(), learned, all })
}

/// The looks at one sub-claim, over some of the runs.
struct Looks<'a> {
    sub_claim: &'a SubClaim,
    rule: &'a Rule,
    evidence: &'a Evidence,
    over: Over,
}

impl Looks<'_> {
    fn decide(&self) -> Result<Decided> {
        let mut before: Option<Decided> = None;
        for (number, look) in self.rule.looks.iter().enumerate() {
            if let Some(waiting) = self.waiting(look, before.as_ref()) {
                return match before {
                    Some(before) => Ok(Decided { reason: waiting, ..before }),
                    None => {
                        let findings = self.findings(look, None)?;
                        Ok(Decided { verdict: Verdict::Open, reason: waiting, looks: 0, findings, gates: vec![] })
                    }
                };
            }
            let last = number + 1 == self.rule.looks.len();
            let decided = self.look(look, number + 1, last, before.as_ref())?;
            if decided.verdict != Verdict::Open {
                return Ok(decided);
            }
            before = Some(decided);
        }
        Ok(before.unwrap_or_else(|| Decided {
            verdict: Verdict::Open,
            reason: "no look".to_owned(),
            looks: 0,
            findings: vec![],
            gates: vec![],
        }))
    }

    /// Whether an undecided case lacks seeds for a look.
    fn waiting(&self, look: &Look, before: Option<&Decided>) -> Option<String> {
        let open = |number: usize| before.is_none_or(|before| before.findings[number].verdict == Verdict::Open);
        let cases = self.sub_claim.cases.iter().enumerate().filter(|(number, _)| open(*number)).map(|(_, case)| case);
        let known = before.map_or(&[][..], |before| &before.gates);
        let gates = self.sub_claim.gates.iter().flat_map(|gate| gate.open(known));
        let fewest = cases.chain(gates).map(|case| self.evidence.common(case, look.seeds).len()).min()?;
        (fewest < look.seeds).then(|| format!("{fewest} of {} seeds", look.seeds))
    }

    fn look(&self, look: &Look, looks: usize, last: bool, before: Option<&Decided>) -> Result<Decided> {
        let mut findings = self.findings(look, before)?;
        self.decide_cases(&mut findings, look, last)?;
        let known = before.map_or(&[][..], |before| &before.gates);
        let gates = self.sub_claim.gates.iter().map(|gate| gate.found(look, self.rule, self.evidence, known));
        let gates = gates.collect::<Result<Vec<_>>>()?.concat();
        let failed = |holds: Option<bool>| gates.iter().find(|gate| gate.holds == holds);
        let (verdict, reason) = match (failed(Some(false)), failed(None)) {
            (Some(gate), _) => (Verdict::Untested, format!("{}: not so in {}", gate.gate, gate.case)),
            (None, Some(gate)) if last => (Verdict::Untested, format!("{}: not shown in {}", gate.gate, gate.case)),
            (None, Some(gate)) => (Verdict::Open, format!("{}: undecided in {}", gate.gate, gate.case)),
            (None, None) => (self.combine(&findings, look)?, String::new()),
        };
        Ok(Decided { verdict, reason, looks, findings, gates })
    }

    /// The findings at a look; cases that were decided before keep theirs.
    fn findings(&self, look: &Look, before: Option<&Decided>) -> Result<Vec<Finding>> {
        let each = |(number, case): (usize, &Contrast)| {
            let earlier = before.map(|before| &before.findings[number]);
            match earlier.filter(|finding| finding.verdict != Verdict::Open) {
                Some(finding) => Ok(finding.clone()),
                None => self.measure(case, look),
            }
        };
        self.sub_claim.cases.iter().enumerate().map(each).collect()
    }

    fn measure(&self, case: &Contrast, look: &Look) -> Result<Finding> {
        let endpoint = &self.sub_claim.endpoint;
        let task = case.task.as_ref().or(endpoint.task.as_ref());
        let asked =
            Effects { metric: &endpoint.metric, task, reading: endpoint.reading, over: self.over, rule: self.rule };
        let effects = self.evidence.effects(case, &asked, look.seeds);
        let values: Vec<f64> = effects.values().copied().collect();
        let mut finding = Finding {
            case: case.name.clone(),
            seeds: self.evidence.common(case, look.seeds).len(),
            effects,
            interval: None,
            p_holds: None,
            p_fails: None,
            magnitude: None,
            verdict: Verdict::Open,
        };
        if values.len() < 2 {
            return Ok(finding);
        }
        let (mean, delta) = (Student::of_mean(&values)?, endpoint.delta);
        let interval = mean.interval(look.alpha)?;
        let (above, below) = (mean.p_above(delta), mean.p_below(delta));
        let (holds, fails) = if endpoint.expect == Side::Above { (above, below) } else { (below, above) };
        (finding.p_holds, finding.p_fails, finding.interval) = (Some(holds), Some(fails), Some(interval));
        finding.magnitude = match () {
            () if interval.high < 0.0 => Some(Magnitude::Reversed),
            () if interval.low > -delta && interval.high < delta => Some(Magnitude::EquivalentToZero),
            () => None,
        };
        Ok(finding)
    }

    /// Decides the cases that are still open. The side on which one case decides the whole is corrected over all cases.
    fn decide_cases(&self, findings: &mut [Finding], look: &Look, last: bool) -> Result<()> {
        let existential = self.sub_claim.form == Form::Existential;
        let p = |finding: &Finding| if existential { finding.p_holds } else { finding.p_fails };
        let known: Vec<usize> = (0..findings.len()).filter(|&number| p(&findings[number]).is_some()).collect();
        let mut corrected = vec![1.0; findings.len()];
        let values: Vec<f64> = known.iter().filter_map(|&number| p(&findings[number])).collect();
        if !values.is_empty() {
            known.iter().zip(holm(&values)?).for_each(|(&number, p)| corrected[number] = p);
        }
        for (finding, corrected) in findings.iter_mut().zip(corrected) {
            if finding.verdict != Verdict::Open {
                continue;
            }
            let free = if existential { finding.p_fails } else { finding.p_holds };
            let free = free.is_some_and(|p| p <= look.alpha);
            let whole = corrected <= look.alpha;
            let (holds, fails) = if existential { (whole, free) } else { (free, whole) };
            finding.verdict = match () {
                () if 2 * finding.effects.len() < look.seeds || finding.interval.is_none() => Verdict::Untested,
                () if holds => Verdict::Holds,
                () if fails => Verdict::Fails,
                () if last => Verdict::AtThreshold,
                () => Verdict::Open,
            };
        }
        Ok(())
    }

    /// The verdict on the whole.
    fn combine(&self, findings: &[Finding], look: &Look) -> Result<Verdict> {
        use Verdict::{AtThreshold, Depends, Fails, Holds, Open, Untested};
        let any = |verdict| findings.iter().any(|finding| finding.verdict == verdict);
        let all = |verdict| findings.iter().all(|finding| finding.verdict == verdict);
        let existential = self.sub_claim.form == Form::Existential;
        Ok(match () {
            () if all(Holds) || (existential && any(Holds)) => Holds,
            () if all(Fails) => Fails,
            () if !existential && any(Fails) && any(Holds) && self.disagree(findings, look)? => Depends,
            () if !existential && any(Fails) => Fails,
            () if any(Untested) => Untested,
            () if any(Open) => Open,
            () => AtThreshold,
        })
    }

    /// Whether the effect of a case that holds differs from that of a case that fails, seed by seed.
    fn disagree(&self, findings: &[Finding], look: &Look) -> Result<bool> {
        let of = |verdict| findings.iter().filter(move |finding| finding.verdict == verdict);
        let pairs: Vec<(&Finding, &Finding)> =
            of(Verdict::Holds).flat_map(|holds| of(Verdict::Fails).map(move |fails| (holds, fails))).collect();
        let sign = if self.sub_claim.endpoint.expect == Side::Above { 1.0 } else { -1.0 };
        for (holds, fails) in &pairs {
            let difference = |(seed, d): (&u64, &f64)| Some(sign * (d - fails.effects.get(seed)?));
            let values: Vec<f64> = holds.effects.iter().filter_map(difference).collect();
            if values.len() >= 2 && Student::of_mean(&values)?.p_above(0.0) <= look.alpha / pairs.len() as f64 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
