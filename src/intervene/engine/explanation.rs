//! How would a sweep be computed, in words and numbers?

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::error::{Error, Result};

/// How a sweep would be computed, and at what cost compared with one whole pass per variant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// The groups of variants that go through the layers together.
    pub groups: Vec<PlannedGroup>,
    /// Multiplications needed, including those of the unchanged run.
    pub needed: f64,
    /// Multiplications of one whole pass per variant and one for the unchanged run.
    pub naive: f64,
    /// How many stacks may be computed at once, each on its own threads.
    pub stacks: usize,
    /// Bytes available to stacked activations.
    pub budget: usize,
    /// Bytes of the unchanged run and of the activations that edits read.
    pub kept: usize,
    /// Variants with a function that sees all positions and heads of its site, so that nothing is left out there.
    pub computed_whole: usize,
    /// Variants that are not computed, because they cannot change anything: they patch what is the same in both runs.
    pub no_ops: usize,
    /// The number of parts that the batch is split into because memory does not hold all prompts at once.
    pub parts: usize,
}

impl Explanation {
    /// The explanation of a batch, from those of its parts.
    pub(in crate::intervene) fn of_parts(parts: impl Iterator<Item = Result<Self>>) -> Result<Self> {
        let mut whole: Option<Self> = None;
        for part in parts {
            let part = part?;
            whole = Some(match whole {
                Some(whole) => whole.and(&part),
                None => part,
            });
        }
        whole.ok_or_else(|| Error::argument("tokens", "at least one prompt", "none"))
    }

    /// Adds the explanation of another part of the batch.
    fn and(mut self, part: &Self) -> Self {
        for group in &part.groups {
            let alike =
                |known: &&mut PlannedGroup| known.first_position == group.first_position && known.joins == group.joins;
            match self.groups.iter_mut().find(alike) {
                Some(known) => known.needed += group.needed,
                None => self.groups.push(group.clone()),
            }
        }
        self.needed += part.needed;
        self.naive += part.naive;
        self.parts += part.parts;
        self.no_ops = self.no_ops.min(part.no_ops);
        self
    }
}

/// A group of variants that go through the layers together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedGroup {
    /// The number of variants.
    pub variants: usize,
    /// The first position computed.
    pub first_position: usize,
    /// How many variants join at each layer.
    pub joins: BTreeMap<usize, usize>,
    /// How many variants go in a stack.
    pub at_once: usize,
    /// Estimated bytes of a stack.
    pub bytes: usize,
    /// Multiplications needed.
    pub needed: f64,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for group in &self.groups {
            let (from, to) = (group.joins.keys().next(), group.joins.keys().next_back());
            writeln!(
                f,
                "{} variants join at layers {} to {}, positions from {} on: {} at once, {}, {} multiplications",
                group.variants,
                from.copied().unwrap_or(0),
                to.copied().unwrap_or(0),
                group.first_position,
                group.at_once,
                mebibytes(group.bytes),
                large(group.needed),
            )?;
        }
        writeln!(
            f,
            "in all {} multiplications; one whole pass per variant takes {}, {:.1} times as many",
            large(self.needed),
            large(self.naive),
            self.naive / self.needed.max(1.0)
        )?;
        if self.computed_whole > 0 {
            writeln!(
                f,
                "{} variants apply a function to whole sites: all positions are computed",
                self.computed_whole
            )?;
        }
        if self.no_ops > 0 {
            writeln!(f, "{} variants cannot change anything and are not computed", self.no_ops)?;
        }
        if self.parts > 1 {
            writeln!(f, "the prompts are computed in {} parts, one after another; each as above", self.parts)?;
        }
        if self.stacks > 1 {
            writeln!(f, "up to {} stacks are computed side by side", self.stacks)?;
        }
        let (kept, budget) = (mebibytes(self.kept), mebibytes(self.budget));
        write!(f, "unchanged activations take {kept}, stacked ones at most {budget} more")
    }
}

/// Formats a large number: `12.30 G`.
fn large(n: f64) -> String {
    let scale = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")].into_iter().find(|(unit, _)| n >= *unit);
    scale.map_or_else(|| format!("{n:.0}"), |(unit, name)| format!("{:.2} {name}", n / unit))
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
