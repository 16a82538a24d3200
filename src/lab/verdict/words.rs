//! How do sub-claims, rules and verdicts read as text? Their `Display` implementations.

use std::fmt;

use super::claim::{Contrast, Form, Setting, Side, SubClaim};
use super::first;
use super::gate::{Gate, Limit};
use super::judge::{Decided, Finding, Judged, Judgement, Magnitude, Verdict};
use super::rule::Rule;

impl Verdict {
    /// The verdict in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::Fails => "fails",
            Self::Depends => "depends",
            Self::AtThreshold => "at the threshold",
            Self::Open => "open",
            Self::Untested => "untested",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}

impl Setting {
    /// The setting in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::MadeUp => "made-up languages",
            Self::NaturalText => "natural text",
            Self::RealModels => "real models",
        }
    }
}

impl Form {
    /// The form in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Universal => "in every case",
            Self::Existential => "in at least one case",
            Self::Directional => "in the one case",
            Self::Interaction => "the effect differs, in every case",
        }
    }
}

impl fmt::Display for Contrast {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:", self.name)?;
        for (number, term) in self.terms.iter().enumerate() {
            let sign = if term.weight < 0.0 { "-" } else { "+" };
            if number > 0 || term.weight < 0.0 {
                write!(out, " {sign}")?;
            }
            if term.weight.abs() != 1.0 {
                write!(out, " {}", term.weight.abs())?;
            }
            write!(out, " {}", term.cell)?;
        }
        if let Some(whole) = &self.relative_to {
            write!(out, ", relative to {whole}")?;
        }
        if self.level != 0.0 {
            write!(out, " - {}", self.level)?;
        }
        Ok(())
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = match self.limit {
            Limit::Above(x) => format!("above {x}"),
            Limit::Below(x) => format!("below {x}"),
            Limit::Within(x) => format!("within {x} of 0"),
        };
        let cases: Vec<&str> = self.cases.iter().map(|case| case.name.as_str()).collect();
        write!(out, "gate: {} ({} {limit}; {})", self.text, self.metric, cases.join(", "))
    }
}

impl fmt::Display for SubClaim {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoint = &self.endpoint;
        let side = if endpoint.expect == Side::Above { "above" } else { "below" };
        let task = endpoint.task.as_ref().map(|task| format!(" of {task}")).unwrap_or_default();
        let among = if endpoint.given_learning { "runs that learned" } else { "all runs" };
        write!(out, "{}: {} ({}, {})", self.id, self.text, self.setting.name(), self.form.name())?;
        write!(
            out,
            "\n      {}{task} {side} {} ({}), {}, {among}",
            endpoint.metric, endpoint.delta, endpoint.scale, endpoint.reading
        )?;
        self.cases.iter().try_for_each(|case| write!(out, "\n      {case}"))?;
        self.gates.iter().try_for_each(|gate| write!(out, "\n      {gate}"))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let looks: Vec<String> =
            self.looks.iter().map(|look| format!("{} seeds at {}", look.seeds, look.alpha)).collect();
        write!(
            out,
            "looks at {} (one-sided); in a case, holds where the t-interval lies on the claimed side of delta, fails where \
             it lies on the other; in every case: all must hold, or one fails (Holm); in at least one: the mirror image; \
             gates first; learned: excess loss {} or less",
            looks.join(", "),
            self.learned
        )
    }
}

impl Finding {
    /// The effect with its interval, such as `0.312 [0.280, 0.344]`; empty with fewer than two effects.
    pub fn effect(&self) -> String {
        self.interval.map_or_else(String::new, |effect| {
            let Interval3 { estimate, low, high } = Interval3::of(&effect);
            format!("{estimate} [{low}, {high}]")
        })
    }
}

/// The numbers of an interval with three decimals, without a minus in front of zero.
struct Interval3 {
    estimate: String,
    low: String,
    high: String,
}

impl Interval3 {
    fn of(interval: &crate::stats::Interval) -> Self {
        let number = |x: f64| {
            let text = format!("{x:.3}");
            if text == "-0.000" { "0.000".to_owned() } else { text }
        };
        Self { estimate: number(interval.estimate), low: number(interval.low), high: number(interval.high) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:<16} {:<28} {:>24}", self.verdict, self.case, self.effect())?;
        write!(out, "  n {} of {}", self.effects.len(), self.seeds)?;
        match self.magnitude {
            Some(Magnitude::EquivalentToZero) => write!(out, ", equivalent to 0"),
            Some(Magnitude::Reversed) => write!(out, ", reversed"),
            None => Ok(()),
        }
    }
}

impl Decided {
    fn told(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.findings.iter().try_for_each(|finding| write!(out, "\n       {finding}"))?;
        for gate in self.gates.iter().filter(|gate| gate.holds != Some(true)) {
            let known = if gate.holds.is_some() { "fails" } else { "is undecided" };
            write!(out, "\n       gate {known}: {} ({})", gate.gate, gate.case)?;
        }
        Ok(())
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (claim, decided) = (&self.sub_claim, self.decided());
        write!(out, "  {} {}: {}", claim.id, decided.verdict, claim.text)?;
        if claim.setting != Setting::MadeUp {
            write!(out, " ({})", claim.setting.name())?;
        }
        if !decided.reason.is_empty() {
            write!(out, " ({})", decided.reason)?;
        }
        if self.differs() {
            write!(out, "; over all runs: {}", self.all.verdict)?;
        }
        decided.told(out)
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.experiment, self.title)?;
        if !self.missing_cells.is_empty() {
            write!(out, "\n  {} of {} cells are missing", self.missing_cells.len(), self.cells)?;
        }
        self.notes.iter().try_for_each(|note| write!(out, "\n  note: {note}"))?;
        self.sub_claims.iter().try_for_each(|judged| write!(out, "\n{judged}"))?;
        if !self.first.is_empty() {
            let claims = first::claims(&self.first);
            let claims: Vec<String> = claims.iter().map(|(claim, verdict)| format!("{claim} {verdict}")).collect();
            write!(out, "\n  by the first rule, for comparison: {}", claims.join(", "))?;
        }
        self.first.iter().try_for_each(|judged| {
            let first::Judged { prediction, verdict, .. } = judged;
            write!(out, "\n    {} {verdict}: {} ({})", prediction.claim, prediction.text, prediction.metric)
        })
    }
}
