//! What does a plan do in a forward pass? The plan, checked against a model and a batch, applied to values as they are computed.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Kind, Tensor};

use super::bank::{Stored, once};
use super::plan::{Action, Edit, Plan};
use crate::error::{Error, Result};
use crate::model::arch::{BlockWiring, ModelConfig, Wire};
use crate::model::{Model, sent};
use crate::site::{Axis, Site};
use crate::tensors::wide;
use crate::text::Tokens;

/// A checked plan: what to record and what to change at each site.
#[derive(Debug)]
pub(crate) struct Program {
    taps: BTreeSet<Site>,
    ops: BTreeMap<Site, Vec<Op>>,
    pub(crate) differentiable: bool,
    /// Whether attention is computed step by step, and products by libtorch's default library.
    pub(crate) explicit: bool,
    /// Whether wide products are computed without a copy of the matrix.
    pub(crate) plain: bool,
    /// The layer whose outputs gradients do not flow back through.
    pub(crate) blocked: Option<usize>,
    /// The sites at which gradients are changed.
    gradients: BTreeSet<Site>,
}

/// Added to a mean square before the square root, so that nothing is divided by 0.
const SMALL: f64 = 1e-12;

/// An edit and the tensor that it needs, for some rows of the batch.
#[derive(Debug)]
struct Op {
    edit: Edit,
    /// First row and number of rows; `None` for the whole batch.
    rows: Option<(i64, i64)>,
    value: Option<Tensor>,
}

/// The part of a pass that an edit applies to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Window<'a> {
    /// First row and number of rows; `None` for the whole batch.
    pub rows: Option<(usize, usize)>,
    /// The first position that the pass computes.
    pub first: usize,
    /// The query heads that the rows contain; `None` for all.
    pub heads: Option<&'a [usize]>,
}

impl Program {
    /// A program that records `taps` and changes nothing.
    pub(crate) fn taps(taps: impl IntoIterator<Item = Site>) -> Self {
        Self {
            taps: taps.into_iter().collect(),
            ops: BTreeMap::new(),
            differentiable: false,
            explicit: false,
            plain: false,
            blocked: None,
            gradients: BTreeSet::new(),
        }
    }

    /// Computes wide products without a copy of the matrix.
    pub(crate) fn plain(mut self, plain: bool) -> Self {
        self.plain = plain;
        self
    }

    /// Also records these sites.
    pub(crate) fn recording(mut self, taps: impl IntoIterator<Item = Site>) -> Self {
        self.taps.extend(taps);
        self
    }

    /// Checks `plan` against a model and a batch.
    pub(crate) fn new(plan: &Plan, model: &Model, tokens: &Tokens) -> Result<Self> {
        let config = model.config();
        let mut program = Self::taps(plan.tapped(config)?);
        program.differentiable = plan.is_differentiable();
        program.explicit = plan.is_explicit();
        program.plain = plan.is_plain();
        program.gradients = plan.gradient_sites();
        if program.taps.is_empty() {
            let last = Site::ResidPost(config.n_layers.saturating_sub(1));
            program.taps.insert(if config.has_logits() { Site::Logits } else { last });
        }
        for edit in plan.edits() {
            let entry = edit.action.key().map(|key| plan.bank().get(key, edit.site)).transpose()?;
            program.push(edit.clone(), entry, &Window::default(), config, tokens)?;
        }
        program.check(model)?;
        Ok(program)
    }

    /// Computes what `edit` derives from `entry` (a mean, a basis) before threads share it, and fails if the two do not fit.
    pub(crate) fn prepare(edit: &Edit, entry: &Stored, config: &ModelConfig, tokens: &Tokens) -> Result<()> {
        edit.site.check(config)?;
        let (shape, side) = (edit.site.shape_for(config, tokens), edit.site.side(config.encoder_layers(), tokens));
        value_of(edit, Some(entry), &shape, side).map(drop)
    }

    /// Adds an edit for the part of the pass given by `window`.
    pub(crate) fn push(
        &mut self,
        mut edit: Edit,
        entry: Option<&Stored>,
        window: &Window<'_>,
        config: &ModelConfig,
        tokens: &Tokens,
    ) -> Result<()> {
        edit.site.check(config)?;
        let Window { rows, first, heads } = *window;
        let side = edit.site.side(config.encoder_layers(), tokens);
        let positions = side.positions();
        let mut shape = edit.site.shape_for(config, tokens);
        shape[0] = rows.map_or(shape[0], |(_, n)| n as i64);
        edit.at.check(edit.site, &shape)?;
        let mut value = value_of(&edit, entry, &shape, side)?;
        // A basis or a matrix has only the last of the site's axes.
        let of_site = !matches!(edit.action, Action::Project { .. } | Action::Map { .. });
        if first > 0 {
            value = value.map(|v| if of_site { from_position(edit.site, &v, first, positions) } else { v });
            let computed = |all: Vec<usize>| all.into_iter().filter_map(|p| p.checked_sub(first)).collect();
            edit.at.positions = edit.at.positions.map(computed);
        }
        if let Some(heads) = heads {
            let numbers: Vec<usize> = heads.iter().map(|&head| head_at(edit.site, head, config)).collect();
            value = value.map(|v| if of_site { of_heads(edit.site, &v, &numbers) } else { v });
            let there = |asked: Vec<usize>| (0..heads.len()).filter(|&i| asked.contains(&numbers[i])).collect();
            edit.at.heads = edit.at.heads.map(there);
        }
        let rows = rows.map(|(first, n)| (first as i64, n as i64));
        self.ops.entry(edit.site).or_default().push(Op { edit, rows, value });
        Ok(())
    }

    /// Adds an edit that is known to fit the pass, as is its value. Rows and positions are counted from the first that the
    /// pass computes.
    pub(super) fn push_fitting(&mut self, edit: Edit, value: Option<Tensor>) {
        self.ops.entry(edit.site).or_default().push(Op { edit, rows: None, value });
    }

    /// Fails if a tapped site does not exist, or an edit can change nothing that is recorded.
    pub(crate) fn check(&self, model: &Model) -> Result<()> {
        self.taps.iter().try_for_each(|site| site.check(model.config()))?;
        let seen = |site: &Site| self.taps.iter().any(|tap| model.wiring().reaches(*site, *tap));
        match self.ops.keys().find(|site| !seen(site)) {
            Some(&site) => Err(Error::Edit {
                site,
                expected: "a tap that it can reach: at its site or one computed from it".into(),
                found: format!("taps {}", self.taps.iter().map(Site::to_string).collect::<Vec<_>>().join(", ")),
            }),
            None => Ok(()),
        }
    }

    /// Whether something is recorded or changed at `site`.
    pub(crate) fn touches(&self, site: Site) -> bool {
        self.taps.contains(&site) || self.ops.contains_key(&site)
    }

    /// Whether something is changed at `site`.
    pub(crate) fn edits(&self, site: Site) -> bool {
        self.ops.contains_key(&site)
    }

    /// Whether the gradient that flows back through `site` is changed.
    pub(crate) fn changes_gradient(&self, site: Site) -> bool {
        self.gradients.contains(&site)
    }

    pub(crate) fn records(&self, site: Site) -> bool {
        self.taps.contains(&site)
    }

    /// Whether attention edges are cut at `site`, so that a query may be left without keys.
    pub(crate) fn knocks_out(&self, site: Site) -> bool {
        self.ops.get(&site).is_some_and(|ops| ops.iter().any(|op| op.edit.action == Action::KnockOut))
    }

    /// The last step of a layer with an edit that distinguishes positions, if any: after it, positions can be left out.
    pub(crate) fn last_edited_by_position(&self, layer: usize, wiring: &BlockWiring) -> Option<usize> {
        let alike = |op: &Op| op.value.is_none() && op.edit.at.positions.is_none() && !op.edit.action.sees_all();
        let here = self.ops.iter().filter(|(site, ops)| {
            let by_position = site.axes().contains(&Axis::Position) && ops.iter().all(alike);
            site.layer() == Some(layer) && !by_position
        });
        here.filter_map(|(site, _)| wiring.made_in(Wire::of(*site)?)).max()
    }

    /// Whether anything is recorded after block `layer`.
    pub(crate) fn goes_past(&self, layer: usize, model: &Model) -> bool {
        let end = model.wiring().point(Site::ResidPost(layer));
        self.taps.iter().any(|site| model.wiring().point(*site) > end)
    }

    /// Whether one of the first `n` rows is changed at `site`.
    pub(crate) fn edits_rows(&self, site: Site, n: i64) -> bool {
        self.ops.get(&site).is_some_and(|ops| ops.iter().any(|op| op.rows.is_none_or(|(first, _)| first < n)))
    }

    /// The value at `site` after its edits; `x` holds the rows from `start` on.
    pub(crate) fn apply(&self, site: Site, x: Tensor, start: i64) -> Result<Tensor> {
        let Some(ops) = self.ops.get(&site) else { return Ok(x) };
        if ops.iter().all(|op| op.rows.is_none()) {
            return ops.iter().try_fold(x, |x, op| op.apply(&x));
        }
        // The variants of a sweep are stacked along the batch axis; each is changed only by its own edits.
        let here = |op: &Op| op.rows.is_none_or(|(first, _)| (start..start + x.size()[0]).contains(&first));
        if !ops.iter().any(here) {
            return Ok(x);
        }
        // One pass over the rows serves edits whose rows follow each other; edits of the whole batch take a pass of their own.
        let goes_on = |a: &Op, b: &Op| match (a.rows, b.rows) {
            (Some((first, n)), Some((next, _))) if a.rows != b.rows => next >= first + n,
            (a, b) => a == b,
        };
        ops.chunk_by(goes_on).try_fold(x, |x, ops| apply_in_order(ops, x, start))
    }
}

/// `x`, the rows from `start` on, after edits of the whole batch or of rows that follow each other.
fn apply_in_order(ops: &[Op], x: Tensor, start: i64) -> Result<Tensor> {
    let (mut pieces, mut done) = (vec![], 0);
    for group in ops.chunk_by(|a, b| a.rows == b.rows) {
        let (first, n) = group[0].rows.map_or((0, x.size()[0]), |(first, n)| (first - start, n));
        if first < 0 || first >= x.size()[0] {
            continue; // rows that are computed apart, or join later
        }
        if first > done {
            pieces.push(x.narrow(0, done, first - done));
        }
        pieces.push(group.iter().try_fold(x.narrow(0, first, n), |x, op| op.apply(&x))?);
        done = first + n;
    }
    if done < x.size()[0] {
        pieces.push(x.narrow(0, done, x.size()[0] - done));
    }
    Ok(if pieces.len() > 1 { Tensor::cat(&pieces, 0) } else { pieces.pop().unwrap_or(x) })
}

/// [`fitting`], where no real token is replaced by another run's padding.
fn value_of(edit: &Edit, entry: Option<&Stored>, shape: &[i64], tokens: &Tokens) -> Result<Option<Tensor>> {
    if let (Some(entry), Action::Replace { .. } | Action::Add { .. }) = (entry, &edit.action) {
        covers(edit, entry, tokens)?;
    }
    fitting(edit, entry, shape)
}

/// The tensor that an action needs, in a shape that broadcasts against the site's `shape`.
pub(super) fn fitting(edit: &Edit, entry: Option<&Stored>, shape: &[i64]) -> Result<Option<Tensor>> {
    let site = edit.site;
    if edit.action == Action::KnockOut && !matches!(site, Site::Scores(_) | Site::CrossScores(_)) {
        let expected = "a `scores` or `cross_scores` site for a knock-out".into();
        return Err(Error::Edit { site, expected, found: site.to_string() });
    }
    let Some(entry) = entry else { return Ok(None) };
    let found = entry.tensor.size();
    let wrong = |expected: String| Err(Error::Edit { site, expected, found: format!("{found:?}") });
    match &edit.action {
        Action::Mean { .. } => {
            if found.len() != shape.len() || found[1..] != shape[1..] {
                return wrong(format!("a reference of shape [any, {:?}]", &shape[1..]));
            }
            entry.mean(site).map(Some)
        }
        Action::Replace { .. } | Action::Add { .. } => {
            let fits = found.len() <= shape.len()
                && found.iter().rev().zip(shape.iter().rev()).all(|(f, s)| f == s || *f == 1);
            if !fits {
                return wrong(format!("a tensor that broadcasts to {shape:?}"));
            }
            Ok(Some(entry.tensor.shallow_clone()))
        }
        Action::Project { .. } => {
            let width = shape.last().copied().unwrap_or(0);
            if found.len() != 2 || found[1] != width || found[0] > width || found[0] == 0 {
                return wrong(format!("a basis of shape [k, {width}] with 1 <= k <= {width}"));
            }
            once(&entry.made.basis, || orthonormal(site, &entry.tensor)).map(Some)
        }
        Action::Map { .. } => {
            let width = shape.last().copied().unwrap_or(0);
            if found != [width, width] {
                return wrong(format!("a matrix of shape [{width}, {width}]"));
            }
            Ok(Some(entry.tensor.shallow_clone()))
        }
        Action::Zero | Action::Scale { .. } | Action::Normalise | Action::Custom(_) | Action::KnockOut => Ok(None),
    }
}

/// Fails if another run's activation would replace a real token by padding. Only prompts are broadcast.
fn covers(edit: &Edit, entry: &Stored, tokens: &Tokens) -> Result<()> {
    let needed = tokens.lengths().into_iter().enumerate().map(|(prompt, length)| {
        let addressed = edit.at.prompts.as_ref().is_none_or(|prompts| prompts.contains(&prompt));
        match &edit.at.positions {
            _ if !addressed => 0,
            Some(positions) => positions.iter().filter(|&&p| p < length).max().map_or(0, |&p| p + 1),
            None => length,
        }
    });
    reaches(edit.site, entry, &needed.collect::<Vec<_>>())
}

/// Fails if a run that an edit reads has fewer tokens of a prompt than `needed`.
pub(super) fn reaches(site: Site, entry: &Stored, needed: &[usize]) -> Result<()> {
    let Some(lengths) = &entry.lengths else { return Ok(()) };
    if lengths.len() != 1 && lengths.len() != needed.len() {
        let expected = format!("a run of 1 or {} prompts", needed.len());
        return Err(Error::Edit { site, expected, found: format!("{}", lengths.len()) });
    }
    for (prompt, &needed) in needed.iter().enumerate() {
        let there = lengths[if lengths.len() == 1 { 0 } else { prompt }];
        if there < needed {
            let expected = format!("a run that reaches position {} for prompt {prompt}", needed - 1);
            return Err(Error::Edit { site, expected, found: format!("a prompt of {there} tokens") });
        }
    }
    Ok(())
}

/// An orthonormal basis `[d, rank]` of the span of the rows of `basis`.
fn orthonormal(site: Site, basis: &Tensor) -> Result<Tensor> {
    let svd = basis.to_kind(Kind::Double).f_svd(true, true);
    let (_, values, columns) = svd.map_err(Error::torch("orthonormalising a basis"))?;
    let largest = values.max().double_value(&[]);
    if !(largest.is_finite() && largest > 0.0) {
        let expected = "a basis of finite rows, not all zero".to_owned();
        return Err(Error::Edit { site, expected, found: format!("a largest singular value of {largest}") });
    }
    let rank = values.gt(largest * 1e-10).sum(Kind::Int64).int64_value(&[]);
    Ok(columns.narrow(1, 0, rank))
}

/// The part of a value for positions from `first` on. It may have only the last few of the site's axes.
fn from_position(site: Site, value: &Tensor, first: usize, positions: usize) -> Tensor {
    let axes = site.axes();
    let missing = axes.len() - value.dim().min(axes.len());
    let mut value = value.shallow_clone();
    for (i, axis) in axes.iter().enumerate().skip(missing) {
        let here = (i - missing) as i64;
        if axis.is_of_positions() && value.size()[i - missing] == positions as i64 {
            value = value.narrow(here, first as i64, (positions - first) as i64);
        }
    }
    value
}

/// The index of query head `head` on the head axis of a site: at `k` and `v`, that of its key/value head.
fn head_at(site: Site, head: usize, config: &ModelConfig) -> usize {
    if site.axes().contains(&Axis::KvHead) { head * config.n_kv_heads / config.n_heads } else { head }
}

/// The part of a value for some heads. It may have only the last few of the site's axes.
fn of_heads(site: Site, value: &Tensor, heads: &[usize]) -> Tensor {
    let axes = site.axes();
    let missing = axes.len() - value.dim().min(axes.len());
    let axis = axes.iter().position(|axis| matches!(axis, Axis::Head | Axis::KvHead));
    match axis.and_then(|axis| axis.checked_sub(missing)).filter(|&axis| value.size()[axis] > 1) {
        Some(axis) => {
            let heads: Vec<i64> = heads.iter().map(|&head| head as i64).collect();
            value.index_select(axis as i64, &sent(&Tensor::from_slice(&heads), value.device()))
        }
        None => value.shallow_clone(),
    }
}

impl Op {
    fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let site = self.edit.site;
        let new = match &self.edit.action {
            Action::Custom(function) => function.value(site, x)?,
            _ => self.new_value(x).map_err(Error::torch(format!("edit at `{site}`")))?,
        };
        Ok(match self.mask(x) {
            Some(mask) => new.where_self(&mask, x),
            None => new,
        })
    }

    fn new_value(&self, x: &Tensor) -> Result<Tensor, tch::TchError> {
        let value = || {
            self.value.as_ref().map_or_else(|| x.zeros_like(), |value| value.to_device(x.device()).to_kind(x.kind()))
        };
        Ok(match &self.edit.action {
            Action::Custom(_) => x.shallow_clone(), // computed by the caller, since it may fail otherwise
            Action::Zero => x.zeros_like(),
            Action::Scale { factor } => x * *factor,
            Action::Normalise => {
                let own = x.to_kind(wide(x.kind()));
                let square = own.square().mean_dim([-1i64].as_slice(), true, None::<Kind>);
                (own / (square + SMALL).sqrt()).to_kind(x.kind())
            }
            Action::Mean { .. } | Action::Replace { .. } => value().f_expand_as(x)?,
            Action::Add { alpha, .. } => x + value() * *alpha,
            Action::Project { keep, .. } => {
                let q = value();
                let inside = x.f_matmul(&q)?.f_matmul(&q.tr())?;
                if *keep { inside } else { x - inside }
            }
            Action::Map { .. } => x.f_matmul(&value())?,
            Action::KnockOut => x.full_like(f64::NEG_INFINITY),
        })
    }

    /// True where the edit applies, broadcast against `x`; `None` if it applies everywhere.
    fn mask(&self, x: &Tensor) -> Option<Tensor> {
        let (axes, shape) = (self.edit.site.axes(), x.size());
        let mut mask: Option<Tensor> = None;
        for (i, axis) in axes.iter().enumerate() {
            let Some(indices) = self.edit.at.on(*axis, i + 1 == axes.len()) else { continue };
            let mut on = vec![false; shape[i] as usize];
            for &index in indices {
                on[index] = true; // in range: the selector was checked against this shape
            }
            let mut view = vec![1i64; shape.len()];
            view[i] = shape[i];
            let on = sent(&Tensor::from_slice(&on).to_kind(Kind::Bool).view(view.as_slice()), x.device());
            mask = Some(match mask {
                Some(mask) => mask.logical_and(&on),
                None => on,
            });
        }
        mask
    }
}

#[cfg(test)]
mod tests;
