//! How do predictions, rules and verdicts read as text? Their `Display` implementations.

use std::fmt;

use super::judge::{Finding, Judged};
use super::rule::{Case, Expect, Prediction, Rule};

impl fmt::Display for Prediction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { claim, text, metric, smallest, level, .. } = self;
        let expect = match self.expect {
            Expect::Greater => format!("above {}", level + smallest),
            Expect::Less => format!("below {}", level - smallest),
            Expect::Zero => format!("within {smallest} of {level}"),
        };
        let task = self.task.as_ref().map(|task| format!(" of {task}")).unwrap_or_default();
        let difference = if self.cases.iter().all(|case| case.against.is_some()) { "difference of " } else { "" };
        write!(out, "{claim}: {text}\n      {difference}{metric}{task} {expect}, {}", self.reading)?;
        if self.learned {
            write!(out, ", of runs that learned")?;
        }
        self.cases.iter().try_for_each(|case| write!(out, "\n      {case}"))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.name, self.cell)?;
        match &self.against {
            Some(other) => write!(out, " against {other}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { alpha, interval, least_seeds, learned } = self;
        write!(
            out,
            "supported beyond the smallest effect (BCa interval {interval} and exact sign-flip test), refuted on the other \
             side or within it (two one-sided t-tests), alpha {alpha} corrected for all cases of a claim (Holm), else \
             inconclusive; at least {least_seeds} pairs of seeds; learned: excess loss {learned} or less; mixed where parts \
             disagree; trends beside: Page's test on the seeds that cells share, Jonckheere's where they share none"
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:<13} {:<26}", self.verdict, self.case)?;
        if let Some(effect) = self.effect {
            write!(out, " {:>7.3} [{:.3}, {:.3}]", effect.estimate, effect.low, effect.high)?;
        }
        write!(out, "  n {}", self.effects.len())?;
        if self.unlearned > 0 {
            write!(out, " ({} runs did not learn)", self.unlearned)?;
        }
        write!(out, "  {}", self.reason)?;
        let p = [
            ("beyond", self.p_beyond),
            ("opposite", self.p_opposite),
            ("equivalent", self.p_equivalent),
            ("trend", self.p_trend),
        ];
        let p: Vec<String> = p.into_iter().filter_map(|(name, p)| Some(format!("{name} {:.3}", p?))).collect();
        if p.is_empty() { Ok(()) } else { write!(out, "\n{:22}p: {}", "", p.join(", ")) }
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Prediction { claim, text, metric, .. } = &self.prediction;
        write!(out, "  {claim} {:<13} {text} ({metric})", self.verdict)?;
        self.findings.iter().try_for_each(|finding| write!(out, "\n       {finding}"))
    }
}
