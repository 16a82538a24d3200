//! What would a sweep find, to first order? Gradients estimate all variants from one backward pass.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::Array2;
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::intervene::engine::{Engine, Estimate, Gradients, Setup, Variant, back, to_array};
use crate::model::{Action, Bank, Edit, Entry, Joins, Pass, Past, Program, Selector, Site, Window, Wire, Wiring};

/// Estimates the effects of a sweep's variants.
pub(in crate::intervene) struct Estimator<'a> {
    setup: Setup<'a>,
    engine: &'a Engine<'a>,
    bank: &'a Bank,
    /// The unchanged run's values at every edited site, and the patterns of layers whose queries or keys are edited.
    values: BTreeMap<Site, Tensor>,
    /// The gradients there, with no layer blocked.
    gradients: Gradients,
    /// The number of the metric.
    metric: usize,
}

impl<'a> Estimator<'a> {
    pub(in crate::intervene) fn new(
        setup: Setup<'a>,
        engine: &'a Engine<'a>,
        bank: &'a Bank,
        variants: &[Variant],
        metric: usize,
    ) -> Result<Self> {
        let edits = variants.iter().flat_map(|variant| &variant.edits);
        let mut sites: BTreeSet<Site> = edits.map(|edit| edit.site).collect();
        sites.iter().try_for_each(|site| site.check(setup.model.config()))?;
        let patterns: Vec<Site> = sites.iter().filter_map(|site| pattern_of(*site)).collect();
        sites.extend(patterns);
        let mut estimator = Self { setup, engine, bank, values: BTreeMap::new(), gradients: Gradients::new(), metric };
        (estimator.values, estimator.gradients) = estimator.run(sites, None)?;
        Ok(estimator)
    }

    /// The estimated effect of every variant on every prompt, `[variant, batch]`.
    pub(in crate::intervene) fn effects(&self, variants: &[Variant], estimate: Estimate) -> Result<Array2<f64>> {
        match estimate {
            Estimate::Attribution => self.along(variants, &self.gradients, false),
            Estimate::IntegratedGradients { steps } => self.integrated(variants, steps),
            Estimate::AtpStar => {
                let layers = self.setup.model.config().n_layers;
                if layers < 2 {
                    return Err(Error::argument("model", "one with two layers or more, for AtP*", layers));
                }
                let mut sum = Array2::zeros((variants.len(), self.setup.tokens.batch()));
                for layer in 0..layers {
                    let (_, gradients) = self.run(self.values.keys().copied(), Some(layer))?;
                    sum += &self.along(variants, &gradients, true)?.mapv(f64::abs);
                }
                Ok(sum / (layers - 1) as f64)
            }
        }
    }

    /// The unchanged run's values at `sites` and the gradients there, which do not flow through layer `blocked`.
    fn run(
        &self,
        sites: impl IntoIterator<Item = Site>,
        blocked: Option<usize>,
    ) -> Result<(BTreeMap<Site, Tensor>, Gradients)> {
        let Setup { model, tokens, .. } = self.setup;
        let mut program = Program::taps(sites);
        program.differentiable = true;
        program.blocked = blocked;
        back(&self.setup, self.engine, &program, &Joins::whole(tokens.ids(model.device())), self.metric)
    }

    /// (a' - a) . gradient of each variant, summed over what it changes, `[variant, batch]`.
    fn along(&self, variants: &[Variant], gradients: &Gradients, through_softmax: bool) -> Result<Array2<f64>> {
        let mut products: Vec<(Site, Action, Option<Tensor>)> = vec![];
        let mut effects = Array2::zeros((variants.len(), self.setup.tokens.batch()));
        for (variant, mut row) in variants.iter().zip(effects.outer_iter_mut()) {
            for edit in &variant.edits {
                if through_softmax && pattern_of(edit.site).is_some() {
                    row += &self.through_softmax(edit, gradients)?;
                    continue;
                }
                let known = products.iter().position(|(site, action, _)| *site == edit.site && *action == edit.action);
                let place = match known {
                    Some(place) => place,
                    None => {
                        let product = gradients
                            .get(&edit.site)
                            .map(|gradient| Ok::<_, Error>(self.change(edit)? * gradient))
                            .transpose()?;
                        products.push((edit.site, edit.action.clone(), product));
                        products.len() - 1
                    }
                };
                if let Some(product) = &products[place].2 {
                    row += &self.sum_at(edit, product)?;
                }
            }
        }
        Ok(effects)
    }

    /// a' - a if an edit's action applied to the whole site.
    fn change(&self, edit: &Edit) -> Result<Tensor> {
        let site = edit.site;
        let value = &self.values[&site];
        let change = self.edited(edit, value)? - value;
        if i64::try_from(change.isfinite().all()).map_err(Error::torch("checking a change"))? == 0 {
            let expected = "an edit with a finite change; cut an edge by zeroing `pattern`".to_owned();
            return Err(Error::Edit { site, expected, found: "an infinite one".to_owned() });
        }
        Ok(change)
    }

    fn edited(&self, edit: &Edit, value: &Tensor) -> Result<Tensor> {
        let whole = Edit { at: Selector::default(), ..edit.clone() };
        let mut program = Program::taps([]);
        self.push(&mut program, &whole, &Window::default())?;
        program.apply(edit.site, value.shallow_clone(), 0)
    }

    fn push(&self, program: &mut Program, edit: &Edit, window: &Window<'_>) -> Result<()> {
        let entry = edit.action.key().map(|key| self.bank.get(key, edit.site)).transpose()?;
        program.push(edit.clone(), entry, window, self.setup.model.config(), self.setup.tokens)
    }

    /// The sum per prompt over the part of a site that an edit selects.
    fn sum_at(&self, edit: &Edit, product: &Tensor) -> Result<ndarray::Array1<f64>> {
        // Checks the selector against the site as an exact run does.
        self.push(&mut Program::taps([]), edit, &Window::default())?;
        let axes = edit.site.axes();
        let index = |indices: &[usize]| {
            let unique: BTreeSet<i64> = indices.iter().map(|&index| index as i64).collect();
            Tensor::from_slice(&unique.into_iter().collect::<Vec<_>>()).to_device(product.device())
        };
        let mut part = product.shallow_clone();
        for (i, axis) in axes.iter().enumerate().skip(1) {
            if let Some(indices) = edit.at.on(*axis, i + 1 == axes.len()) {
                part = part.index_select(i as i64, &index(indices));
            }
        }
        let mut sums = part.flatten(1, -1).sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
        if let Some(prompts) = edit.at.on(axes[0], false) {
            let here = sums.zeros_like().index_fill(0, &index(prompts), 1.0);
            sums = &sums * here; // not `*=`, which is in place
        }
        Ok(to_array(&sums.unsqueeze(0).to_device(tch::Device::Cpu))?.row(0).to_owned())
    }

    /// (pattern' - pattern) . gradient, where pattern' is computed from the edited queries or keys.
    fn through_softmax(&self, edit: &Edit, gradients: &Gradients) -> Result<ndarray::Array1<f64>> {
        let Setup { model, tokens, .. } = self.setup;
        let (Some(layer), Some(site)) = (edit.site.layer(), pattern_of(edit.site)) else {
            return Ok(ndarray::Array1::zeros(tokens.batch()));
        };
        let Some(gradient) = gradients.get(&site) else {
            return Ok(ndarray::Array1::zeros(tokens.batch()));
        };
        let mut program = Program::taps([site]);
        self.push(&mut program, edit, &Window { rows: Some((0, tokens.batch())), ..Window::default() })?;
        let joins = self.joins(before_pattern(layer, site, model.wiring()), 1);
        let pass = Pass::over(model, &program, tokens.positions(), model.hidden_padding(tokens), Past::None);
        let mut pass = pass.with_types(tokens.types(model.device())).with_source(tokens);
        let _ = pass.residual(&joins, layer + 1)?; // for the pattern
        let (taps, _) = pass.into_records();
        let pattern = taps.get(&site).ok_or(Error::NotTapped { site, tapped: vec![] })?;
        let product = (pattern - &self.values[&site]) * gradient;
        self.sum_at(&Edit::new(site, Action::Zero), &product)
    }

    fn joins(&self, entry: Entry, n: i64) -> Joins<'_> {
        let ids = self.setup.tokens.ids(self.setup.model.device());
        Joins::at(entry, n, ids, Some(self.engine.unchanged()))
    }

    /// [`Estimate::IntegratedGradients`]; all steps of a site are stacked in one pass.
    fn integrated(&self, variants: &[Variant], steps: usize) -> Result<Array2<f64>> {
        self.setup.check_steps(steps)?;
        let mut kinds: Vec<(Site, Action)> = vec![];
        for edit in variants.iter().flat_map(|variant| &variant.edits) {
            if !kinds.contains(&(edit.site, edit.action.clone())) {
                kinds.push((edit.site, edit.action.clone()));
            }
        }
        let mut effects = Array2::zeros((variants.len(), self.setup.tokens.batch()));
        for (site, action) in kinds {
            let gradients = self.mean_gradient(&Edit::new(site, action.clone()), steps)?;
            let of_kind = |variant: &Variant| Variant {
                keys: variant.keys.clone(),
                edits: variant
                    .edits
                    .iter()
                    .filter(|edit| edit.site == site && edit.action == action)
                    .cloned()
                    .collect(),
            };
            effects += &self.along(&variants.iter().map(of_kind).collect::<Vec<_>>(), &gradients, false)?;
        }
        Ok(effects)
    }

    /// The mean gradient along the straight line from a site's unchanged value to its edited one.
    fn mean_gradient(&self, edit: &Edit, steps: usize) -> Result<Gradients> {
        let Setup { model, tokens, .. } = self.setup;
        let (site, batch) = (edit.site, tokens.batch());
        let (value, change) = (&self.values[&site], self.change(edit)?);
        let mut bank = Bank::default();
        let mut program = Program::taps([site]);
        program.differentiable = true;
        for step in 0..steps {
            let key = step.to_string();
            let share = (step as f64 + 0.5) / steps as f64;
            bank.insert(&key, site, value + &change * share);
            let window = Window { rows: Some((step * batch, batch)), ..Window::default() };
            let edit = Edit::new(site, Action::replace(&key));
            program.push(edit, Some(bank.get(&key, site)?), &window, model.config(), tokens)?;
        }
        let entry = Entry::of_edited(&[site], model.wiring());
        let (_, gradients) = back(&self.setup, self.engine, &program, &self.joins(entry, steps as i64), self.metric)?;
        let mean =
            |all: Tensor| all.unflatten(0, [steps as i64, batch as i64]).mean_dim([0i64].as_slice(), false, None);
        Ok(gradients.into_iter().map(|(site, all)| (site, mean(all))).collect())
    }
}

/// The pattern computed from a layer's queries or keys.
fn pattern_of(site: Site) -> Option<Site> {
    match site {
        Site::Q(layer) | Site::K(layer) => Some(Site::Pattern(layer)),
        Site::CrossQ(layer) | Site::CrossK(layer) => Some(Site::CrossPattern(layer)),
        _ => None,
    }
}

/// Just before the step in which a layer's pattern is computed.
fn before_pattern(layer: usize, pattern: Site, wiring: &Wiring) -> Entry {
    Entry::after(layer, wiring.block(layer).fires_in(pattern).unwrap_or(1) - 1)
}

/// The values of the unchanged run that the passes of an estimate start from.
pub(super) fn needs(variants: &[Variant], wiring: &Wiring) -> Vec<(usize, Wire)> {
    let sites: BTreeSet<Site> = variants.iter().flat_map(|variant| &variant.edits).map(|edit| edit.site).collect();
    let entries = sites.into_iter().flat_map(|site| {
        let attends = pattern_of(site).zip(site.layer());
        let attends = attends.map(|(pattern, layer)| before_pattern(layer, pattern, wiring));
        [Some(Entry::of_edited(&[site], wiring)), attends]
    });
    entries.flatten().flat_map(|entry| entry.needs(wiring)).collect()
}
