//! How does a sweep become a table? Part by part of the batch: read the activations that edits need, run the variants,
//! collect the rows.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::Array2;
use tch::Tensor;

use super::Sweep;
use super::ablation::{self, Ablation};
use super::change::{Change, Direction};
use super::estimate::{self, Estimator};
use crate::error::{Error, Result};
use crate::file::sha256;
use crate::intervene::engine::{
    Alignment, Engine, Estimate, Explanation, Journal, Kept, Machine, Outcome, Pairs, Part, Place, REFERENCE, Same,
    Setup, Strategy, Variant, aligned, check_prompts, side_by_side,
};
use crate::intervene::metric::Metric;
use crate::model::{Action, Bank, Edit, Means, Plan, Prompts, Site, Tokens, Wire};
use crate::progress::Progress;
use crate::table::{Keys, Provenance, Table};

/// A sweep restricted to one part of its batch.
struct Share {
    part: Part,
    tokens: Tokens,
    variants: Vec<Variant>,
    metrics: Vec<Metric>,
    /// Bytes taken by the unchanged run and by the activations that edits read.
    kept: usize,
    /// For each prompt the first position at which the reference can differ from it.
    same: Vec<usize>,
}

/// How the batch of a sweep is computed: its parts, and what all parts share.
struct Course {
    parts: Vec<Part>,
    machine: Machine,
    /// Bytes kept of the unchanged run and the reference runs, for all prompts together.
    kept: usize,
    /// Means over all reference prompts.
    means: BTreeMap<Site, Tensor>,
    /// For each prompt the reference prompt drawn for it, if the ablation resamples.
    draws: Option<Vec<usize>>,
    /// For each prompt the first position at which the reference can differ from it.
    same: Vec<usize>,
    /// How positions of unequal prompts correspond.
    alignment: Option<Alignment>,
}

impl Sweep<'_> {
    /// Runs the sweep. Column `value` is the metric of each variant, column `baseline` that of the unchanged run.
    ///
    /// # Errors
    /// If a token, an edit or the metric does not fit the model, the reference does not fit the batch, or options
    /// contradict each other; [`Error::Stopped`] if it was stopped.
    pub fn run(&self) -> Result<Table> {
        let variants = &self.checked()?;
        let provenance = self.provenance(variants)?;
        tch::no_grad(|| match self.options.estimate {
            Some(estimate) => self.estimated(variants, estimate, provenance),
            None => {
                let mut journal = self.options.open_journal(&provenance)?;
                let (outcome, values) = self.values(variants, journal.as_mut())?;
                let rows = variants.iter().zip(values.outer_iter());
                let rows = rows.map(|(variant, values)| outcome.rows(&variant.keys, &values.to_vec()));
                Table::new(rows.collect::<Result<Vec<_>>>()?.concat(), provenance)
            }
        })
    }

    /// The metric of each variant, `[variant, cell]`.
    fn values(&self, variants: &[Variant], mut journal: Option<&mut Journal>) -> Result<(Outcome<'_>, Array2<f64>)> {
        let course = self.course(variants, &[], 1)?;
        let mut outcome = self.outcome();
        let mut progress = Progress::new("variants", variants.len() * course.parts.len());
        let (mut parts, numbers): (Vec<_>, Vec<usize>) = (vec![], (0..variants.len()).collect());
        for &part in &course.parts {
            let share = self.share(part, variants, &course)?;
            let bank = self.bank(&share, &course)?;
            let engine = Engine::new(self.setup(&share, course.machine), &share.variants, &[])?;
            let first = outcome.cells.len();
            outcome.add(part, engine.reader.cells()?, &engine.baseline, self.other_end(&share, &course)?)?;
            let kept = journal.as_mut().map(|journal| {
                journal.at(first);
                Kept { journal, numbers: &numbers }
            });
            parts.push(engine.values(&share.variants, &bank, kept, &mut progress)?);
        }
        Ok((outcome, side_by_side(&parts)?))
    }

    /// The table of estimates, with the exact rows requested by [`Sweep::exact`].
    fn estimated(&self, variants: &[Variant], estimate: Estimate, provenance: Provenance) -> Result<Table> {
        let needs = estimate::needs(variants, self.model.wiring());
        let course = self.course(variants, &needs, self.model.config().n_layers)?;
        let (mut outcome, mut parts) = (self.outcome(), vec![]);
        for &part in &course.parts {
            let share = self.share(part, variants, &course)?;
            let bank = self.bank(&share, &course)?;
            let setup = self.setup(&share, course.machine);
            let engine = Engine::new(setup, &share.variants, &needs)?;
            outcome.add(part, engine.reader.cells()?, &engine.baseline, self.other_end(&share, &course)?)?;
            let effects = (0..share.metrics.len()).map(|metric| {
                Estimator::new(setup, &engine, &bank, &share.variants, metric)?.effects(&share.variants, estimate)
            });
            parts.push(side_by_side(&effects.collect::<Result<Vec<_>>>()?)?);
        }
        let effects = side_by_side(&parts)?;
        let largest = outcome.largest(&effects, self.options.exact);
        let chosen: Vec<Variant> = largest.iter().map(|&number| variants[number].clone()).collect();
        let exact = if chosen.is_empty() { Array2::zeros((0, 0)) } else { self.values(&chosen, None)?.1 };
        let keys: Vec<Keys> = variants.iter().map(|variant| variant.keys.clone()).collect();
        outcome.estimated(estimate, &keys, &effects, &largest, &exact, provenance)
    }

    /// How would the sweep be computed? Which variants are stacked and where they join the pass, how many
    /// multiplications that takes compared with one whole pass per variant, and how much memory. Computes only the
    /// unchanged run.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let explained = Sweep::ablate(&model, &tokens, Ablation::Zero).explain()?;
    /// assert!(explained.needed < explained.naive);
    /// println!("{explained}");
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Sweep::run`].
    pub fn explain(&self) -> Result<Explanation> {
        let variants = &self.checked()?;
        tch::no_grad(|| {
            let course = self.course(variants, &[], 1)?;
            let explain = |&part: &Part| {
                let share = self.share(part, variants, &course)?;
                Engine::new(self.setup(&share, course.machine), &share.variants, &[])?.explain(&share.variants)
            };
            Explanation::of_parts(course.parts.iter().map(explain))
        })
    }

    fn outcome(&self) -> Outcome<'_> {
        let denoises = self.change == Change::Patch(Direction::Denoise);
        Outcome::new(&self.options, denoises)
    }

    /// Plans the batch. `held` is how many times a variant's activations are held at once: the number of layers if
    /// gradients flow back through them.
    fn course(&self, variants: &[Variant], more: &[(usize, Wire)], held: usize) -> Result<Course> {
        let batch = self.tokens.batch();
        check_prompts(variants, self.model.config(), self.tokens)?;
        let machine = Machine::of(self.model, self.strategy, self.options.memory);
        let read = reads(variants, |action| !matches!(action, Action::Mean { .. }));
        let draws = match self.change {
            Change::Ablation(Ablation::Resample { seed }) if !read.is_empty() => {
                Some(ablation::draw(self.tokens, self.reference_tokens(), seed)?)
            }
            _ => None,
        };
        let share = Share {
            part: Part::whole(batch),
            tokens: self.tokens.clone(),
            variants: vec![],
            metrics: self.options.metrics.clone(),
            kept: 0,
            same: self.same(draws.as_deref())?,
        };
        let setup = self.setup(&share, machine);
        let places = variants.iter().map(|variant| setup.place(variant)).collect::<Result<Vec<Place>>>()?;
        let kept = setup.base_bytes(&places, more) + setup.bytes_at(&read);
        let pass = places.iter().map(|place| setup.bytes(place.group)).max().unwrap_or(0) * held;
        // The naive strategy is not split.
        let mut edits = variants.iter().flat_map(|variant| &variant.edits);
        let sees_all = edits.any(|edit| edit.action.sees_all());
        let whole = self.strategy == Strategy::Naive || self.options.needs_whole_batch() || sees_all;
        let most = if whole { batch } else { machine.memory / ((kept + pass) / batch).max(1) };
        let means = self.means(variants, most.max(1), machine.plain)?;
        let (same, alignment) = (share.same, self.pairs().alignment()?);
        Ok(Course { parts: Part::at_most(most, batch), machine, kept, means, draws, same, alignment })
    }

    /// For each prompt the first position at which what this sweep's own action writes can differ from the unchanged
    /// run: the first token that differs from the reference's. Empty if nothing is known.
    fn same(&self, draws: Option<&[usize]>) -> Result<Vec<usize>> {
        let reference = self.reference_tokens();
        match (self.change, draws) {
            (Change::Patch(_), _) => self.pairs().first_differences(),
            (Change::Ablation(Ablation::Resample { .. }), Some(draws)) => {
                self.tokens.first_differences(&reference.select(draws)?)
            }
            (Change::Ablation(Ablation::Mean), _) => {
                // Up to where all reference prompts are the same, their mean is what each of them has.
                let first = reference.select(&vec![0; reference.batch()])?;
                let common = reference.first_differences(&first)?.into_iter().min().unwrap_or(0);
                let ours = self.tokens.first_differences(&reference.select(&vec![0; self.tokens.batch()])?)?;
                Ok(ours.into_iter().map(|first| first.min(common)).collect())
            }
            _ => Ok(vec![]),
        }
    }

    fn share(&self, part: Part, variants: &[Variant], course: &Course) -> Result<Share> {
        Ok(Share {
            part,
            tokens: part.tokens(self.tokens)?,
            variants: part.variants(variants),
            metrics: part.metrics(&self.options.metrics)?,
            kept: course.kept / part.of * part.n,
            same: part.prompts().into_iter().filter_map(|prompt| course.same.get(prompt).copied()).collect(),
        })
    }

    fn setup<'b>(&'b self, share: &'b Share, machine: Machine) -> Setup<'b> {
        let (model, per_token, strategy, stop) = (self.model, self.options.per_token, self.strategy, self.options.stop);
        Setup {
            model,
            tokens: &share.tokens,
            metrics: &share.metrics,
            per_token,
            strategy,
            machine,
            kept: share.kept,
            same: Same { before: &share.same, action: Some(&self.action) },
            stop,
        }
    }

    /// The metric of the run that patches come from, if values are normalised.
    fn other_end(&self, share: &Share, course: &Course) -> Result<Option<Vec<f64>>> {
        let Some(other) = self.other.filter(|_| self.options.normalised) else { return Ok(None) };
        let tokens = share.part.tokens(other)?;
        let setup = Setup { tokens: &tokens, ..self.setup(share, course.machine) };
        Ok(Some(Engine::new(setup, &[], &[])?.baseline))
    }

    fn reference_tokens(&self) -> &Tokens {
        self.other.or(self.references).unwrap_or(self.tokens)
    }

    /// Means over all reference prompts at the sites where an edit reads a mean, computed `at_once` prompts at a time.
    fn means(&self, variants: &[Variant], at_once: usize, plain: bool) -> Result<BTreeMap<Site, Tensor>> {
        let sites = reads(variants, |action| matches!(action, Action::Mean { .. }));
        let mut means = Means::default();
        if sites.is_empty() {
            return Ok(BTreeMap::new());
        }
        let reference = self.reference_tokens();
        self.check_reference(reference)?;
        for part in Part::at_most(at_once, reference.batch()) {
            let run =
                self.model.run(&part.tokens(reference)?, &Plan::new().taps(sites.iter().copied()).plain(plain))?;
            for (site, tensor) in run.taps() {
                let side = run.side(site);
                let valid = side.is_padded().then(|| side.valid(self.model.device()));
                means.add(site, tensor, valid.as_ref());
            }
        }
        means.finish(Some(self.tokens), self.model.config().encoder_layers())
    }

    /// Fails if the reference is shorter than the batch.
    fn check_reference(&self, reference: &Tokens) -> Result<()> {
        let sides = [Some((reference, self.tokens)), reference.source().zip(self.tokens.source())];
        for (reference, tokens) in sides.into_iter().flatten().filter(|_| self.prompts.is_none()) {
            if reference.positions() < tokens.positions() {
                let expected = format!("prompts of at least {} tokens, as the batch has", tokens.positions());
                return Err(Error::argument("reference", expected, reference.positions()));
            }
        }
        Ok(())
    }

    /// The activations that edits read: the user's own, and those of the reference run, of the drawn prompts if the
    /// ablation resamples.
    fn bank(&self, share: &Share, course: &Course) -> Result<Bank> {
        for edit in share.variants.iter().flat_map(|variant| &variant.edits) {
            if let Action::Mean { key } = &edit.action
                && key != REFERENCE
            {
                let _ = self.bank.get(key, edit.site)?.mean(edit.site)?; // over all prompts, not just this part's
            }
        }
        let Part { first, n, of } = share.part;
        let mut bank = self.bank.part(first, n, of, self.model.device());
        let sites = reads(&share.variants, |action| !matches!(action, Action::Mean { .. }));
        if !sites.is_empty() {
            let reference = self.reference_tokens();
            let drawn = match &course.draws {
                Some(draws) => reference.select(&draws[first..first + n])?,
                None if reference.batch() == of => share.part.tokens(reference)?,
                None => reference.clone(),
            };
            self.check_reference(&drawn)?;
            // Positions after the batch's last one are of no use. They are cut off after the run: a model that is not
            // causal must see the whole reference.
            let run = self.model.run(&drawn, &Plan::new().taps(sites).plain(course.machine.plain))?;
            let mut own = Bank::default();
            match &course.alignment {
                Some(alignment) => {
                    // Positions without a counterpart keep their own activations.
                    let sites: Vec<Site> = run.taps().map(|(site, _)| site).collect();
                    let ours = self.model.run(&share.tokens, &Plan::new().taps(sites).plain(course.machine.plain))?;
                    for (site, x) in aligned(&ours, &run, alignment, share.part)? {
                        own.insert(REFERENCE, site, x);
                    }
                }
                None => {
                    own.insert_run(REFERENCE, &run);
                    own.cut(self.tokens, self.model.config().encoder_layers());
                }
            }
            bank.extend(own);
        }
        for (site, mean) in &course.means {
            bank.insert_mean(REFERENCE, *site, mean.shallow_clone());
        }
        Ok(bank)
    }

    /// The two batches.
    fn pairs(&self) -> Pairs<'_> {
        let denoises = self.change == Change::Patch(Direction::Denoise);
        Pairs { tokens: self.tokens, other: self.other, prompts: self.prompts, denoises }
    }

    /// The variants, at the positions that were asked for, if all options fit together.
    fn checked(&self) -> Result<Vec<Variant>> {
        self.check()?;
        let Some(at) = &self.at else { return Ok(self.variants.clone()) };
        self.model.one_sequence("`Sweep::at`")?;
        let pairs = self.pairs();
        let narrowed = |variant: &Variant| {
            let edits = variant.edits.iter().map(|edit| match &edit.at.positions {
                Some(positions) => {
                    Err(Error::argument("at", "edits of all positions", format!("one of positions {positions:?}")))
                }
                None => pairs.narrowed(edit.clone(), Some(at)),
            });
            let keys = Keys { at: Some(at.label()), ..variant.keys.clone() };
            Ok(Variant { keys, edits: edits.collect::<Result<Vec<_>>>()?.concat() })
        };
        self.variants.iter().map(narrowed).collect()
    }

    /// Fails if a journal could not tell an edit's function from another.
    fn check_told_apart(&self) -> Result<()> {
        let mut edits = self.variants.iter().flat_map(|variant| &variant.edits);
        let unknown = edits.find_map(|edit| match &edit.action {
            Action::Custom(function) if !function.has_version() => Some(function),
            _ => None,
        });
        match unknown.filter(|_| self.options.journal.is_some()) {
            Some(function) => {
                let expected = "functions with a version (Function::version), changed whenever the function changes";
                Err(Error::argument("journal", expected, format!("`{}` without one", function.name())))
            }
            None => Ok(()),
        }
    }

    fn check(&self) -> Result<()> {
        if self.variants.is_empty() {
            return Err(Error::argument("variants", "at least one", "none"));
        }
        if self.variants.iter().any(|variant| variant.edits.is_empty()) {
            return Err(Error::argument("variant", "at least one edit", "none"));
        }
        if self.bank.entries().any(|(key, ..)| key == REFERENCE) {
            let expected = format!("another key than `{REFERENCE}`, which is what a patch or an ablation reads");
            return Err(Error::argument("with", expected, REFERENCE));
        }
        self.options.check()?;
        self.check_told_apart()?;
        let mut edits = self.variants.iter().flat_map(|variant| &variant.edits);
        let reads = edits.any(|edit| edit.action.key() == Some(REFERENCE));
        if self.references.is_some() && (self.other.is_some() || !reads) {
            let found = if self.other.is_some() { "a patch, which has its own" } else { "edits that read none" };
            return Err(Error::argument("reference", "an ablation by means or resampling", found));
        }
        let Change::Patch(_) = self.change else {
            let found = if self.change == Change::KnockOut { "a knock-out" } else { "an ablation" };
            return if self.options.normalised { Err(Error::argument("normalised", "a patch", found)) } else { Ok(()) };
        };
        self.pairs().alignment().map(drop)
    }

    fn provenance(&self, variants: &[Variant]) -> Result<Provenance> {
        let edits: Vec<&Edit> = variants.iter().flat_map(|variant| &variant.edits).collect();
        let sites: BTreeSet<Site> = edits.iter().map(|edit| edit.site).collect();
        let options = serde_json::json!({
            "change": self.change,
            "sites": sites,
            "variants": variants.len(),
            "edits": sha256(serde_json::json!(edits).to_string().as_bytes()),
            "at": self.at.as_ref().map(|at| self.pairs().positions(at)).transpose()?,
            "strategy": format!("{:?}", self.strategy),
            "tokens": self.tokens.provenance(),
            "reference": self.other.or(self.references).map(Tokens::provenance),
            "prompts": self.prompts.map(Prompts::provenance),
        });
        let mut options = self.options.describe(options);
        let mut activations = serde_json::Map::new();
        for (key, site, tensor) in self.bank.entries() {
            let flat = tensor.to_kind(tch::Kind::Double).flatten(0, -1).to_device(tch::Device::Cpu);
            let values = Vec::<f64>::try_from(flat).map_err(Error::torch("reading an activation"))?;
            let bytes: Vec<u8> = values.into_iter().flat_map(f64::to_le_bytes).collect();
            let entry = serde_json::json!({ "shape": tensor.size(), "sha256": sha256(&bytes) });
            activations.insert(format!("{key}@{site}"), entry);
        }
        if !activations.is_empty() {
            options["activations"] = activations.into();
        }
        self.model.provenance(options, self.change.seed())
    }
}

/// The sites at which an edit whose action satisfies `wanted` reads the reference run.
fn reads(variants: &[Variant], wanted: impl Fn(&Action) -> bool) -> Vec<Site> {
    let edits = variants.iter().flat_map(|variant| &variant.edits);
    let edits = edits.filter(|edit| edit.action.key() == Some(REFERENCE) && wanted(&edit.action));
    edits.map(|edit| edit.site).collect::<BTreeSet<Site>>().into_iter().collect()
}
