//! At which positions does a change apply, and which position of the other run stands for which of this one?

use std::collections::BTreeMap;

use serde::Serialize;
use tch::{Kind, Tensor};

use super::Part;
use crate::error::{Error, Result};
use crate::model::{Axis, Edit, Run, Site, Tokens};
use crate::text::Prompts;

/// Positions at which a component sends, receives or changes: one in every prompt.
///
/// ```
/// use headscope::prelude::*;
/// assert_eq!(At::from(3), At::Position(3));
/// assert_eq!(At::from("S2+1"), At::Name("S2+1".into()));
/// assert_eq!(At::from(vec![3, 4]), At::Each(vec![3, 4])); // of two prompts
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum At {
    /// The same position in every prompt.
    Position(usize),
    /// A position for each prompt.
    Each(Vec<usize>),
    /// A named position of [`Prompts`], such as `END` or `S2-1`.
    Name(String),
}

impl From<usize> for At {
    fn from(position: usize) -> Self {
        Self::Position(position)
    }
}

impl From<Vec<usize>> for At {
    fn from(positions: Vec<usize>) -> Self {
        Self::Each(positions)
    }
}

impl From<&str> for At {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl At {
    /// What stands in a table.
    pub(in crate::intervene) fn label(&self) -> String {
        match self {
            Self::Position(position) => position.to_string(),
            Self::Each(_) => "each".to_owned(),
            Self::Name(name) => name.clone(),
        }
    }
}

/// The batch that is changed and the batch that patches come from.
#[derive(Clone, Copy)]
pub(in crate::intervene) struct Pairs<'a> {
    pub tokens: &'a Tokens,
    /// `None` if nothing is patched.
    pub other: Option<&'a Tokens>,
    /// The pairs that both come from, if they are [`Prompts`].
    pub prompts: Option<&'a Prompts>,
    /// Whether the corrupted prompts are changed.
    pub denoises: bool,
}

/// For each position of each prompt the position of the other run that stands for it, if one does.
pub(in crate::intervene) type Alignment = Vec<Vec<Option<usize>>>;

impl<'a> Pairs<'a> {
    /// The two batches of `prompts`.
    pub(in crate::intervene) fn of(prompts: &'a Prompts, denoises: bool) -> Self {
        let (clean, corrupt) = (prompts.clean(), prompts.corrupt());
        let (tokens, other) = if denoises { (corrupt, clean) } else { (clean, corrupt) };
        Self { tokens, other: Some(other), prompts: Some(prompts), denoises }
    }

    /// The position in each prompt.
    pub(in crate::intervene) fn positions(&self, at: &At) -> Result<Vec<usize>> {
        let batch = self.tokens.batch();
        let positions = match (at, self.prompts) {
            (At::Position(position), _) => vec![*position; batch],
            (At::Each(positions), _) if positions.len() != batch => {
                return Err(Error::argument("at", format!("a position for each of {batch} prompts"), positions.len()));
            }
            (At::Each(positions), _) => positions.clone(),
            (At::Name(name), Some(prompts)) if self.denoises => prompts.corrupt_position(name)?,
            (At::Name(name), Some(prompts)) => prompts.position(name)?,
            (At::Name(name), None) => {
                let expected =
                    "a number: only `Prompts` have names for positions (Sweep::denoising, Paths::noising ..)";
                return Err(Error::argument("at", expected, format!("`{name}`")));
            }
        };
        for (prompt, (&position, length)) in positions.iter().zip(self.tokens.lengths()).enumerate() {
            if position >= length {
                let (at, found, limit) = (format!("prompt {prompt}"), position as i64, length as i64);
                return Err(Error::OutOfRange { at, axis: "position", found, limit });
            }
        }
        Ok(positions)
    }

    /// An edit at these positions only: one edit for each position that some prompts have.
    pub(in crate::intervene) fn narrowed(&self, edit: Edit, at: Option<&At>) -> Result<Vec<Edit>> {
        let Some(at) = at else { return Ok(vec![edit]) };
        let mut prompts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (prompt, position) in self.positions(at)?.into_iter().enumerate() {
            if edit.at.prompts.as_ref().is_none_or(|asked| asked.contains(&prompt)) {
                prompts.entry(position).or_default().push(prompt);
            }
        }
        let all = self.tokens.batch();
        let at = |(position, prompts): (usize, Vec<usize>)| match prompts.len() == all {
            true => edit.clone().position(position),
            false => edit.clone().position(position).prompts(prompts),
        };
        Ok(prompts.into_iter().map(at).collect())
    }

    /// True at these positions, `[batch, position]`.
    pub(in crate::intervene) fn mask(&self, at: &At) -> Result<Tensor> {
        let positions: Vec<i64> = self.positions(at)?.into_iter().map(|position| position as i64).collect();
        let all = Tensor::arange(self.tokens.positions() as i64, (Kind::Int64, tch::Device::Cpu));
        Ok(all.unsqueeze(0).eq_tensor(&Tensor::from_slice(&positions).unsqueeze(1)))
    }

    /// For each prompt the first position at which the two runs can differ; see [`Tokens::first_differences`].
    pub(in crate::intervene) fn first_differences(&self) -> Result<Vec<usize>> {
        let Some(other) = self.other else { return Ok(vec![]) };
        let mut firsts = self.tokens.first_differences(other)?;
        for (first, map) in firsts.iter_mut().zip(self.alignment()?.iter().flatten()) {
            let moved = map.iter().enumerate().position(|(position, there)| *there != Some(position));
            *first = moved.map_or(*first, |moved| moved.min(*first));
        }
        Ok(firsts)
    }

    /// How positions of unequal prompts correspond; `None` if all prompts are as long as their partners.
    ///
    /// # Errors
    /// If prompts differ in length and nothing says which tokens stand for each other.
    pub(in crate::intervene) fn alignment(&self) -> Result<Option<Alignment>> {
        let Some(other) = self.other else { return Ok(None) };
        let sources = [self.tokens, other].map(|tokens| tokens.source().map(Tokens::lengths));
        if let [Some(own), Some(others)] = &sources
            && own != others
        {
            let expected = format!("sources of the same lengths, {own:?}");
            return Err(Error::argument("clean, corrupt", expected, format!("{others:?}")));
        }
        let (lengths, others) = (self.tokens.lengths(), other.lengths());
        if lengths == others {
            return Ok(None);
        }
        let Some(prompts) = self.prompts else {
            let expected =
                format!("prompts of the same lengths, {lengths:?} (or `Prompts`, whose names align positions)");
            return Err(Error::argument("clean, corrupt", expected, format!("{others:?}")));
        };
        let mut all = vec![];
        for (prompt, &length) in lengths.iter().enumerate() {
            let clean = prompts.alignment(prompt)?;
            all.push(match self.denoises {
                false => clean,
                true => {
                    let mut ours = vec![None; length];
                    for (position, there) in clean.iter().enumerate() {
                        if let Some(ours) = there.and_then(|there| ours.get_mut(there)) {
                            *ours = Some(position);
                        }
                    }
                    ours
                }
            });
        }
        Ok(Some(all))
    }
}

/// The activations of the `other` run, moved to the positions of this run that they stand for. Positions without a
/// counterpart keep what they have in `own`.
///
/// # Errors
/// If a site has key positions, whose order an alignment does not keep.
pub(in crate::intervene) fn aligned(
    own: &Run,
    other: &Run,
    alignment: &Alignment,
    part: Part,
) -> Result<Vec<(Site, Tensor)>> {
    let (batch, positions) = (own.tokens().batch(), own.tokens().positions());
    let there = other.tokens().positions() as i64;
    let (mut flat, mut known) = (vec![], vec![]);
    for (row, map) in part.prompts().into_iter().filter_map(|prompt| alignment.get(prompt)).enumerate() {
        for position in 0..positions {
            let found = map.get(position).copied().flatten();
            flat.push(row as i64 * there + found.unwrap_or(0) as i64);
            known.push(found.is_some());
        }
    }
    let mut all = vec![];
    for (site, x) in other.taps() {
        if site.axes().into_iter().any(Axis::is_of_keys) {
            let expected = "a site without key positions: the prompts differ in length".to_owned();
            return Err(Error::Edit { site, expected, found: site.to_string() });
        }
        let ours = own.get(site)?;
        let index = Tensor::from_slice(&flat).to_device(x.device());
        let moved = x.flatten(0, 1).index_select(0, &index).unflatten(0, [batch as i64, positions as i64]);
        let mut shape = vec![1i64; ours.dim()];
        (shape[0], shape[1]) = (batch as i64, positions as i64);
        let known = Tensor::from_slice(&known).view(shape.as_slice()).to_device(x.device());
        all.push((site, moved.where_self(&known, ours)));
    }
    Ok(all)
}
