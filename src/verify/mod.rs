//! Does headscope compute a checkpoint as its authors meant it? Checks of a user's own checkpoint.
//!
//! [`Model::verify`] needs nothing but the model: it checks what any correct forward pass obeys.
//!
//! | check | what is the same |
//! |---|---|
//! | `causality` | the residual streams and logits before a position, whatever stands from there on (causal models) |
//! | `additivity` | a block's output, and its input plus what attention and MLP write; attention's output, and the sum over heads |
//! | `patterns` | the sum of each query's pattern, and 1 |
//! | `patch from self` | the output, and that of a run in which a site of every layer is replaced by its own value |
//! | `padding` | the output at the tokens of a prompt alone, and in a batch with longer prompts |
//!
//! [`Model::verify_against`] compares with another implementation, site by site: with a file of transformers' logits, hidden
//! states and attentions, which the ten lines of [`Model::verify_script`] make.
//!
//! Every check has a bound that follows from the type of the numbers and from the depth of the site, derived at [`rounding`].
//! What passes is right up to rounding; what fails is not explained by rounding.
//!
//! These checks can pass although both sides are wrong in the same way: the invariants say nothing about a wrong activation
//! function or wrong rotary frequencies. The file does.

mod against;
mod bound;
mod invariants;
mod script;

use std::fmt;

use serde_json::json;
use tch::Tensor;

pub use self::bound::{rounding, roundoff, terms};
use crate::error::{Error, Result};
use crate::model::{Model, Tokens};
use crate::site::Site;
use crate::table::{Keys, Observation, Provenance, Table};

/// One comparison of two computations of the same.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// What was checked: a row of the table [above](self), or `file`.
    pub name: &'static str,
    /// The site, if it is one; otherwise the output of a model without logits.
    pub site: Option<Site>,
    /// The largest difference, in units of the scale (the root mean square) of what is compared.
    pub difference: f64,
    /// The largest difference that rounding explains.
    pub bound: f64,
    /// The index of the largest difference, along the axes of the site.
    pub at: Vec<i64>,
    /// Our value there.
    pub found: f64,
    /// The value that it is compared with.
    pub expected: f64,
}

impl Check {
    /// Whether rounding explains the difference.
    pub fn passed(&self) -> bool {
        self.difference <= self.bound
    }

    /// Compares two tensors of one shape. `scale` is the size of what they were computed from, if that is larger than they are.
    fn of(
        name: &'static str,
        site: Option<Site>,
        [found, expected]: [&Tensor; 2],
        scale: f64,
        bound: f64,
    ) -> Result<Self> {
        if found.size() != expected.size() {
            let at = site.map_or_else(|| "last hidden state".to_owned(), |site| site.to_string());
            return Err(Error::Shape { at, expected: format!("{:?}", found.size()), found: expected.size() });
        }
        let flat = |x: &Tensor| x.detach().to_device(tch::Device::Cpu).to_kind(tch::Kind::Double).flatten(0, -1);
        let (a, b) = (flat(found), flat(expected));
        let same = a.eq_tensor(&b); // also where both are infinite
        let error = (&a - &b).abs().masked_fill(&same, 0.0);
        let error = error.masked_fill(&error.isnan(), f64::INFINITY);
        let worst = error.argmax(0, false).int64_value(&[]);
        let scale = scale_of(&b).max(scale);
        Ok(Self {
            name,
            site,
            difference: error.double_value(&[worst]) / if scale > 0.0 { scale } else { 1.0 },
            bound,
            at: unravelled(worst, &found.size()),
            found: a.double_value(&[worst]),
            expected: b.double_value(&[worst]),
        })
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let site = self.site.map_or_else(|| "last hidden state".to_owned(), |site| site.to_string());
        let Self { name, difference, bound, at, found, expected, .. } = self;
        let verdict = if self.passed() { "pass" } else { "FAIL" };
        if *difference == 0.0 {
            return write!(f, "{verdict}  {name} at {site}: identical, {bound:.1e} of the scale allowed");
        }
        write!(
            f,
            "{verdict}  {name} at {site}: off by {difference:.1e} of the scale, {bound:.1e} allowed; largest at {at:?}: \
             {found:.6} where {expected:.6} was expected"
        )
    }
}

/// What [`Model::verify`] or [`Model::verify_against`] found.
#[derive(Debug, Clone)]
pub struct Verification {
    /// Every comparison, in the order of the checks and of the sites.
    pub checks: Vec<Check>,
    /// Checks that the architecture leaves out, with the reason.
    pub left_out: Vec<String>,
    provenance: Provenance,
}

impl Verification {
    fn new(model: &Model, tokens: &Tokens, how: &str) -> Result<Self> {
        let what = json!({"verify": how, "tokens": tokens.provenance()});
        Ok(Self { checks: vec![], left_out: vec![], provenance: model.provenance(what, None)? })
    }

    /// Compares two tensors of one shape: [`Check::of`]. A bound that allows any difference makes no check.
    fn compare(
        &mut self,
        name: &'static str,
        site: Option<Site>,
        pair: [&Tensor; 2],
        scale: f64,
        bound: f64,
    ) -> Result<()> {
        if bound >= 1.0 {
            let at = site.map_or("last hidden state", Site::kind);
            let reason = format!("{name} at {at}: so deep in half precision, rounding alone may change anything");
            if !self.left_out.contains(&reason) {
                self.left_out.push(reason);
            }
            return Ok(());
        }
        self.checks.push(Check::of(name, site, pair, scale, bound)?);
        Ok(())
    }

    /// Whether every check passed.
    pub fn passed(&self) -> bool {
        self.checks.iter().all(Check::passed)
    }

    /// Fails unless every check passed.
    ///
    /// # Errors
    /// [`Error::NotVerified`] with the check that failed by most.
    pub fn require(&self) -> Result<()> {
        let failed = self.checks.iter().filter(|check| !check.passed());
        let excess = |check: &Check| check.difference / check.bound;
        match failed.clone().max_by(|a, b| excess(a).total_cmp(&excess(b))) {
            None => Ok(()),
            Some(worst) => {
                Err(Error::NotVerified { failed: failed.count(), checks: self.checks.len(), worst: worst.to_string() })
            }
        }
    }

    /// For each check and kind of site, the comparison that came closest to its bound, or exceeded it by most.
    pub fn closest(&self) -> Vec<&Check> {
        let kind = |check: &Check| check.site.map_or("", Site::kind);
        let share = |check: &Check| check.difference / check.bound;
        let mut closest: Vec<&Check> = vec![];
        for check in &self.checks {
            match closest.iter_mut().find(|known| known.name == check.name && kind(known) == kind(check)) {
                Some(known) if share(check) > share(known) => *known = check,
                Some(_) => {}
                None => closest.push(check),
            }
        }
        closest
    }

    /// One row per comparison: `metric` is the check, `value` the largest difference in units of the scale, `high` its bound.
    ///
    /// # Errors
    /// If polars rejects the columns.
    pub fn table(&self) -> Result<Table> {
        let row = |check: &Check| {
            let layer = check.site.and_then(Site::layer).and_then(|layer| u32::try_from(layer).ok());
            let site = check.site.map_or_else(|| "last_hidden_state".to_owned(), |site| site.kind().to_owned());
            let failed = || format!("{:.6} where {:.6} was expected at {:?}", check.found, check.expected, check.at);
            Observation {
                keys: Keys { layer, site: Some(site), ..Keys::default() },
                metric: check.name.to_owned(),
                value: check.difference,
                unit: Some("of the scale".to_owned()),
                high: Some(check.bound),
                warnings: (!check.passed()).then(failed),
                ..Observation::default()
            }
        };
        Table::new(self.checks.iter().map(row).collect(), self.provenance.clone())
    }
}

/// The root mean square of the finite elements.
fn scale_of(x: &Tensor) -> f64 {
    let finite = x.to_kind(tch::Kind::Double).masked_select(&x.isfinite());
    if finite.numel() == 0 { 0.0 } else { finite.square().mean(None::<tch::Kind>).sqrt().double_value(&[]) }
}

/// The index along each axis of a flat index.
fn unravelled(flat: i64, size: &[i64]) -> Vec<i64> {
    let mut rest = flat;
    let mut at: Vec<i64> = size
        .iter()
        .rev()
        .map(|&n| {
            let here = rest % n.max(1);
            rest /= n.max(1);
            here
        })
        .collect();
    at.reverse();
    at
}

impl Tokens {
    /// Two prompts of made-up token ids, always the same for the same architecture, to verify a model with: up to 12 tokens
    /// from the whole vocabulary.
    ///
    /// # Errors
    /// If the model reads no token.
    pub fn for_verification(model: &Model) -> Result<Self> {
        const LENGTH: usize = 12;
        let config = model.config();
        let length = LENGTH.min(config.n_positions);
        // A multiplicative sequence (Knuth), spread over the vocabulary.
        let spread = |i: usize| (i as u64 + 1) * 2_654_435_761 % (1 << 32);
        let id = |i: usize| ((spread(i) * config.vocab as u64) >> 32) as i64;
        let rows: Vec<Vec<i64>> =
            (0..2).map(|row| (0..length).map(|position| id(row * length + position)).collect()).collect();
        Self::from_ids(model, &rows)
    }
}
