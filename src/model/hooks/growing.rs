//! How does a plan apply to sequences that grow token by token?

use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::bank::Stored;
use super::compiled::{Program, fitting, reaches};
use super::plan::{Action, Edit, Plan};
use crate::error::{Error, Result};
use crate::model::{Model, sent};
use crate::site::{Axis, Site};
use crate::text::Tokens;

/// The part of each sequence that the edits of a plan apply to while the model writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Span {
    /// The prompt and the written tokens.
    #[default]
    Everywhere,
    /// The tokens of each prompt.
    Prompt,
    /// The tokens that the model has written.
    Written,
}

impl Span {
    /// The positions of the span in a sequence of `end` tokens, the first `prompt` of which are its prompt.
    fn of(self, prompt: usize, end: usize) -> Range<usize> {
        match self {
            Self::Everywhere => 0..end,
            Self::Prompt => 0..prompt.min(end),
            Self::Written => prompt.min(end)..end,
        }
    }
}

/// A plan checked against a model and prompts that will be continued.
#[derive(Debug)]
pub(crate) struct Growing {
    edits: Vec<Ready>,
    taps: BTreeSet<Site>,
    explicit: bool,
    plain: bool,
    span: Span,
    /// The length of each prompt.
    prompts: Vec<usize>,
    /// Whether what is computed at a position may depend on later ones.
    whole: bool,
}

/// An edit with its value, which is as long as what it was taken from.
#[derive(Debug)]
struct Ready {
    edit: Edit,
    value: Option<Tensor>,
    /// The number of keys that the value has, if it differs from key to key.
    keys: Option<usize>,
}

impl Growing {
    /// Checks `plan` for prompts of which the model will read `reach` tokens each, written ones among them.
    pub(crate) fn new(plan: &Plan, model: &Model, tokens: &Tokens, reach: &[usize], span: Span) -> Result<Self> {
        let config = model.config();
        if plan.is_differentiable() {
            return Err(Error::argument("plan", "one without gradients, to generate", "a differentiable one"));
        }
        let taps = plan.tapped(config)?;
        taps.iter().try_for_each(|site| site.check(config))?;
        let (explicit, plain) = (plan.is_explicit(), plan.is_plain());
        let whole = config.depends_on_length(reach.iter().copied().max().unwrap_or(0));
        let mut all = Self { edits: vec![], taps, explicit, plain, span, prompts: tokens.lengths(), whole };
        for edit in plan.edits() {
            edit.site.check(config)?;
            let entry = edit.action.key().map(|key| plan.bank().get(key, edit.site)).transpose()?;
            let ready = all.ready(edit, entry, model, reach)?;
            all.whole |= ready.looks_ahead();
            all.edits.push(ready);
        }
        Ok(all)
    }

    /// Checks one edit, and that what it reads is there at every position that it will apply to.
    fn ready(&self, edit: &Edit, entry: Option<&Stored>, model: &Model, reach: &[usize]) -> Result<Ready> {
        let (site, config, batch) = (edit.site, model.config(), reach.len());
        let longest = reach.iter().copied().max().unwrap_or(0);
        edit.at.check(site, &site.shape(config, batch, longest))?;
        let wrong = |expected: String, found: String| Err(Error::Edit { site, expected, found });
        let needed: Vec<usize> = (0..batch)
            .map(|prompt| self.positions(edit, prompt, 0..reach[prompt]).last().map_or(0, |&p| p + 1))
            .collect();
        let last = needed.iter().copied().max().unwrap_or(0);
        if last == 0 {
            let expected = "positions that the sequences will have, in the span of the plan".to_owned();
            return wrong(expected, format!("sequences that end at {longest} positions"));
        }
        let of_keys = site.axes().contains(&Axis::Key);
        if matches!(edit.action, Action::Project { .. } | Action::Map { .. }) {
            if of_keys && reach.iter().any(|&end| end != longest) | self.prompts.iter().any(|&n| n != longest) {
                return wrong("a matrix for an axis that does not grow".to_owned(), format!("{site}, with a key axis"));
            }
            let value = fitting(edit, entry, &site.shape(config, batch, longest))?;
            return Ok(Ready { edit: edit.clone(), value, keys: None });
        }
        // A run, or a mean over one, has an activation at each position of its own; a tensor with one may be for all.
        let of_run = entry.is_some_and(|entry| entry.lengths.is_some()) || matches!(edit.action, Action::Mean { .. });
        let own = |wanted: fn(&Axis) -> bool| {
            let size = entry.and_then(|entry| size_along(site, &entry.tensor, wanted));
            size.filter(|&n| of_run || n > 1)
        };
        let (positions, keys) = (own(|axis| axis.is_of_positions()), own(|axis| *axis == Axis::Key));
        let value = fitting(edit, entry, &site.shape(config, batch, positions.or(keys).unwrap_or(longest)))?;
        if let (Some(entry), Action::Replace { .. } | Action::Add { .. }) = (entry, &edit.action) {
            reaches(site, entry, &needed)?;
        }
        let addressed = |key: &&usize| **key < last;
        let last_key =
            edit.at.keys.as_ref().map_or(last, |keys| keys.iter().filter(addressed).max().map_or(0, |k| k + 1));
        for (there, needed, axis) in [(positions, last, "position"), (keys, last_key, "key")] {
            if let Some(there) = there.filter(|&there| there < needed) {
                let expected =
                    format!("an activation that reaches {axis} {}, or an edit of fewer positions", needed - 1);
                return wrong(expected, format!("{there} positions"));
            }
        }
        Ok(Ready { edit: edit.clone(), value, keys })
    }

    /// Whether what is computed at a position may depend on later ones, so that nothing can be kept of earlier steps.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether something is changed.
    pub(crate) fn has_edits(&self) -> bool {
        !self.edits.is_empty()
    }

    /// Whether something is recorded.
    pub(crate) fn records(&self) -> bool {
        !self.taps.is_empty()
    }

    /// Whether something is recorded or changed after the last block.
    pub(crate) fn touches_end(&self) -> bool {
        let end = |site: &Site| matches!(site, Site::LnFinalScale | Site::Logits);
        self.taps.iter().any(end) || self.edits.iter().any(|ready| end(&ready.edit.site))
    }

    /// The taps and edits of a pass over some positions of some prompts, with earlier positions cached.
    pub(crate) fn program(&self, prompts: &[usize], computed: Range<usize>) -> Program {
        let mut program = Program::taps(self.taps.iter().copied()).plain(self.plain);
        program.explicit = self.explicit;
        for ready in &self.edits {
            // Rows that change at the same positions change together.
            let mut groups: Vec<(Vec<usize>, Vec<usize>)> = vec![];
            for (row, &prompt) in prompts.iter().enumerate() {
                let positions = self.positions(&ready.edit, prompt, computed.clone());
                match groups.iter_mut().find(|(known, _)| *known == positions) {
                    Some((_, rows)) => rows.push(row),
                    None => groups.push((positions, vec![row])),
                }
            }
            for (positions, rows) in groups {
                if let Some(edit) = ready.edit_at(&positions, rows, prompts.len(), &computed) {
                    program.push_fitting(edit, ready.value_at(prompts, &computed));
                }
            }
        }
        program
    }

    /// The positions among `computed` at which an edit applies to a prompt, sorted.
    fn positions(&self, edit: &Edit, prompt: usize, computed: Range<usize>) -> Vec<usize> {
        if edit.at.prompts.as_ref().is_some_and(|prompts| !prompts.contains(&prompt)) {
            return vec![];
        }
        let span = self.span.of(self.prompts[prompt], computed.end);
        let there = span.start.max(computed.start)..span.end;
        let listed = |p: &usize| edit.at.positions.as_ref().is_none_or(|listed| listed.contains(p));
        there.filter(listed).collect()
    }
}

impl Ready {
    /// Whether the edit may put something at a position that depends on later ones, or on how many there are.
    fn looks_ahead(&self) -> bool {
        let site = self.edit.site;
        match &self.edit.action {
            action if action.sees_all() => true,
            _ if !site.axes().contains(&Axis::Key) => false,
            Action::Zero | Action::Scale { .. } | Action::KnockOut => false,
            Action::Normalise | Action::Project { .. } | Action::Map { .. } | Action::Custom(_) => true,
            // Scores of later keys are masked after every edit; weights of later keys are not.
            Action::Mean { .. } | Action::Replace { .. } | Action::Add { .. } => {
                matches!(site, Site::Pattern(_)) && self.value.as_ref().is_none_or(weighs_later_keys)
            }
        }
    }

    /// The edit at some `positions` of some `rows` among `all`, counted from the first that is computed; `None` if it changes
    /// nothing there.
    fn edit_at(&self, positions: &[usize], rows: Vec<usize>, all: usize, computed: &Range<usize>) -> Option<Edit> {
        let mut edit = self.edit.clone();
        let keys = self.keys.unwrap_or(usize::MAX).min(computed.end);
        if let Some(listed) = &mut edit.at.keys {
            listed.retain(|&key| key < keys);
        } else if keys < computed.end {
            edit.at.keys = Some((0..keys).collect());
        }
        if positions.is_empty() || edit.at.keys.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        let local = || positions.iter().map(|p| p - computed.start).collect();
        edit.at.positions = (positions.len() < computed.len()).then(local);
        edit.at.prompts = (rows.len() < all).then_some(rows);
        Some(edit)
    }

    /// The value for some prompts and positions, and all keys up to there. It is padded with zeros, which nothing reads.
    fn value_at(&self, prompts: &[usize], computed: &Range<usize>) -> Option<Tensor> {
        let value = self.value.as_ref()?;
        if matches!(self.edit.action, Action::Project { .. } | Action::Map { .. }) {
            return Some(value.shallow_clone());
        }
        let axes = self.edit.site.axes();
        let missing = axes.len() - value.dim();
        let mut value = value.shallow_clone();
        for (i, axis) in axes.iter().skip(missing).enumerate() {
            let (here, size) = (i as i64, value.size()[i]);
            let own_keys = *axis == Axis::Key && self.keys.is_some();
            value = match axis {
                Axis::Batch if size > 1 => {
                    let rows: Vec<i64> = prompts.iter().map(|&prompt| prompt as i64).collect();
                    value.index_select(here, &sent(&Tensor::from_slice(&rows), value.device()))
                }
                _ if own_keys => part(&value, here, &(0..computed.end)),
                _ if axis.is_of_positions() && size > 1 => part(&value, here, computed),
                _ => value,
            };
        }
        Some(value)
    }
}

/// The length of a tensor along an axis of a site; it may have only the last of the site's axes.
fn size_along(site: Site, x: &Tensor, wanted: fn(&Axis) -> bool) -> Option<usize> {
    let axes = site.axes();
    let axis = axes.iter().position(wanted)?.checked_sub(axes.len().checked_sub(x.dim())?)?;
    Some(x.size()[axis] as usize)
}

/// A range of a tensor along an axis, padded with zeros if the tensor ends before.
fn part(x: &Tensor, axis: i64, range: &Range<usize>) -> Tensor {
    let size = x.size()[axis as usize] as usize;
    let (start, end) = (range.start.min(size), range.end.min(size));
    let there = x.narrow(axis, start as i64, (end - start) as i64);
    if end == range.end {
        return there;
    }
    let mut shape = x.size();
    shape[axis as usize] = (range.len() - (end - start)) as i64;
    Tensor::cat(&[there, Tensor::zeros(shape, (x.kind(), x.device()))], axis)
}

/// Whether weights, `[.., query, key]`, are not 0 at keys after the query.
fn weighs_later_keys(x: &Tensor) -> bool {
    let size = x.size();
    let square = size.len() >= 2 && size[size.len() - 1] == size[size.len() - 2];
    let later = || x.triu(1).count_nonzero(None).int64_value(&[]) > 0;
    !square || size[size.len() - 1] == 1 || later()
}
