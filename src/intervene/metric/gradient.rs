//! How does a metric change with an activation? Its gradient at any site.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::{Metric, Output, Readout};
use crate::error::{Error, Result};
use crate::model::{Model, Plan, Run, Site, Tap, Tokens};

impl Model {
    /// The gradient of a metric with respect to activations, in the run of a plan: `d m / d a` at each of `sites`, in the
    /// shape of the site, where m is the sum over prompts. A prompt's metric depends on its own activations alone, so each
    /// prompt's rows hold the gradient of its own metric. The result is a [`Run`] whose activations are the gradients.
    ///
    /// Sites are named as in [`Plan::tap`], patterns among them. What the plan edits is edited, and gradients are those of
    /// the activations after the edits. A site that does not affect the metric has a gradient of 0.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let gradients = model.gradient(&tokens, Plan::new(), &Metric::logit_difference(3, 4), ["z.*", "resid_pre.0"])?;
    /// assert_eq!(gradients.get(Site::Z(1))?.size(), [1, 5, 4, 8]); // [batch, position, head, d_head]
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the tokens, the plan, a site or the metric does not fit the model, or the metric has no gradient (`accuracy` and
    /// `rank`). That of a metric which compares with the unchanged run (`kl`, `embedding_distance`) is 0 there, which is an
    /// error where the plan changes nothing.
    pub fn gradient<T: Into<Tap>>(
        &self,
        tokens: &Tokens,
        plan: Plan,
        metric: &Metric,
        sites: impl IntoIterator<Item = T>,
    ) -> Result<Run> {
        if metric.is_relative() && plan.edits().is_empty() {
            let expected = "one with a gradient at the unchanged run, or a plan with edits";
            return Err(Error::argument("metric", expected, metric.name()));
        }
        let wanted = Plan::new().taps(sites).tapped(self.config())?;
        let run = self.run(tokens, &plan.taps(&wanted).tap(end(self, metric)).differentiable())?;
        gradients(&run, self, metric, &wanted.into_iter().collect::<Vec<_>>(), false)
    }
}

impl Run {
    /// The gradient of a metric of this run with respect to its activations at `sites`, as in [`Model::gradient`]. The run is
    /// one of a [differentiable](Plan::differentiable) plan that taps the sites and the logits (the last `resid_post` of a
    /// model without logits); gradients of several metrics can be taken of one run.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let run = model.run(&tokens, &Plan::new().taps(["pattern.1", "mlp_out.*", "logits"]).differentiable())?;
    /// let loss = run.gradient(&model, &Metric::Loss, ["pattern.1"])?;
    /// let logit = run.gradient(&model, &Metric::logit(3), ["mlp_out.*"])?;
    /// // To first order, what the MLPs add to the logit:
    /// let added = (run.get(Site::MlpOut(2))? * logit.get(Site::MlpOut(2))?).sum(Kind::Float);
    /// # let _ = (loss, added);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the run did not record a site or its end, the plan was not differentiable, the metric does not fit the model or
    /// has no gradient.
    pub fn gradient<T: Into<Tap>>(
        &self,
        model: &Model,
        metric: &Metric,
        sites: impl IntoIterator<Item = T>,
    ) -> Result<Self> {
        let wanted = Plan::new().taps(sites).tapped(model.config())?;
        gradients(self, model, metric, &wanted.into_iter().collect::<Vec<_>>(), true)
    }
}

/// Where a metric reads a run.
fn end(model: &Model, metric: &Metric) -> Site {
    match model.config().has_logits() && !matches!(metric, Metric::EmbeddingDistance) {
        true => Site::Logits,
        false => Site::ResidPost(model.config().n_layers - 1),
    }
}

/// The end of a run, as metrics read it.
fn output(run: &Run, end: Site) -> Result<Output> {
    let read = run.get(end)?;
    match end {
        // Nothing reads the stream where there are logits, but for the size of the batch.
        Site::Logits => Ok(Output { logits: Some(read.shallow_clone()), ..Output::whole(&read.detach()) }),
        _ => Ok(Output::whole(read)),
    }
}

/// The gradients at `sites`; `keep` keeps the graph for others.
fn gradients(run: &Run, model: &Model, metric: &Metric, sites: &[Site], keep: bool) -> Result<Run> {
    if matches!(metric, Metric::Rank(_) | Metric::Accuracy) {
        return Err(Error::argument("metric", "one with a gradient", metric.name()));
    }
    if sites.is_empty() {
        return Err(Error::argument("sites", "at least one", "none"));
    }
    let (tokens, end) = (run.tokens(), end(model, metric));
    let inputs = sites.iter().map(|site| run.get(*site)).collect::<Result<Vec<_>>>()?;
    if !run.get(end)?.requires_grad() {
        return Err(Error::argument("run", "one of a differentiable plan", "one without a graph"));
    }
    let reader = tch::no_grad(|| bound(metric, model, run))?;
    let back = |total: &Tensor, inputs: &[&Tensor], keep: bool| {
        Tensor::f_run_backward(&[total], inputs, keep, false).map_err(Error::torch("the gradient of the metric"))
    };
    let (found, changed) = tch::with_grad(|| {
        let mut total = Readout::values_of(&[&reader], &output(run, end)?)?.remove(0).sum(Kind::Double);
        // From the last joint to the first: what flows on is what the functions make of the gradient, as that of a product.
        let mut changed = BTreeMap::new();
        for (joint, functions) in run.joints().iter().rev() {
            let gradient = back(&total, &[&joint.after], true)?.remove(0);
            let gradient = if gradient.defined() { gradient } else { joint.after.zeros_like() };
            let sent =
                functions.iter().try_fold(gradient, |gradient, function| function.value(joint.site, &gradient))?;
            total = &total + (&joint.before * &sent).sum(Kind::Double); // not `+=`, which is in place
            changed.insert(joint.site, sent);
        }
        Ok::<_, Error>((back(&total, &inputs, keep)?, changed))
    })?;
    let found = sites.iter().zip(found).map(|(site, found)| match changed.get(site) {
        Some(changed) => changed.shallow_clone(),
        None => found,
    });
    let of = |((site, value), found): ((&Site, &&Tensor), Tensor)| {
        (*site, if found.defined() { found } else { value.zeros_like() })
    };
    let gradients = Run::new(tokens.clone(), sites.iter().zip(&inputs).zip(found).map(of).collect());
    Ok(gradients.behind(run.encoder_layers()))
}

/// A metric bound to the prompts of a run.
fn bound<'a>(metric: &'a Metric, model: &'a Model, run: &Run) -> Result<Readout<'a>> {
    let (tokens, end) = (run.tokens(), end(model, metric));
    let (found, shape) = (run.get(end)?.size(), end.shape_for(model.config(), tokens));
    if found != shape {
        let expected = format!("the one of the run, whose `{end}` is {found:?}");
        return Err(Error::argument("model", expected, format!("{shape:?}")));
    }
    // What a relative metric compares with is the run without edits.
    let base = match metric.is_relative() {
        true => output(&model.run(tokens, &Plan::new().tap(end))?, end)?,
        false => output(run, end)?,
    };
    Readout::new(model, metric, tokens, &base, usize::MAX)
}

/// The metric of each prompt of a run.
pub(super) fn values(metric: &Metric, model: &Model, run: &Run) -> Result<Vec<f64>> {
    let read = tch::no_grad(|| bound(metric, model, run)?.read(&output(run, end(model, metric))?))?;
    Vec::try_from(read.flatten(0, -1)).map_err(Error::torch("reading a metric"))
}
