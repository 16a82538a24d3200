//! What does each component write towards an answer, and what would the model answer at each depth?

use tch::{Kind, Tensor};

use super::{Metric, Output, Readout};
use crate::error::{Error, Result};
use crate::intervene::lens::Lens;
use crate::intervene::residual::{Term, centred, check, each_term, sites};
use crate::model::{Model, Plan, Run, Site, Tokens};
use crate::table::{Observation, Table};

/// Which components write the answer? Direct logit attribution of a logit, or of a logit difference, at each prompt's
/// last token (Elhage et al. 2021).
///
/// The final residual stream is a sum of terms t: embeddings, head outputs, biases and MLP outputs. With the scale s of
/// the final norm frozen, each contributes `(t / s) . (gamma * (W_U[:, correct] - W_U[:, wrong]))`, where t is centred
/// if the norm is a LayerNorm. All rows, including those of the biases of the final norm and the unembedding, sum
/// exactly to the metric. Only direct effects count: not what later components compute from a term.
///
/// One row per term, mean over prompts, in logits. Column `site` names the term: `embed`, `pos_embed`, `type_embed`,
/// `result` (with `layer` and `head`), `attn_bias`, `attn_norm_bias`, `mlp_out` (with `layer`), `ln_final_bias`,
/// `unembed_bias`, or `resid_pre` if a norm or a projection follows the embeddings.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
/// let metric = Metric::logit_difference(3, 4);
/// let terms = direct_attribution(&model, &tokens, &metric)?;
/// let logits = model.run(&tokens, &Plan::new())?.logits()?.select(1, 4);
/// let difference = logits.double_value(&[0, 3]) - logits.double_value(&[0, 4]);
/// assert!((terms.f64("value")?.iter().sum::<f64>() - difference).abs() < 1e-4);
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// If a norm follows attention within the block, its scale is frozen too. If logits are capped, the terms sum to the
/// logit before the cap.
///
/// # Errors
/// If the metric is neither a logit nor a difference of two, if the final residual stream is not a sum of what
/// components write (post-norm models such as BERT), or if logits are not linear in the normalised stream.
pub fn direct_attribution(model: &Model, tokens: &Tokens, metric: &Metric) -> Result<Table> {
    let config = model.config();
    if !matches!(metric, Metric::Logit(_) | Metric::LogitDifference(..)) {
        return Err(Error::argument("metric", "a logit or a logit difference", metric.name()));
    }
    check(model)?;
    let last = Site::ResidPost(config.n_layers - 1);
    let mut sites = sites(model, last)?;
    sites.extend([Site::LnFinalScale, last].into_iter().filter(|site| site.check(config).is_ok()));
    let run = model.run(tokens, &Plan::new().taps(sites.iter().copied()))?;
    let reader = Readout::new(model, metric, tokens, &Output::whole(run.get(last)?), usize::MAX)?;
    let mut terms = Terms { rows: vec![], metric };
    tch::no_grad(|| fill(&mut terms, model, &run, &reader))?;
    let what = serde_json::json!({
        "what": "direct logit attribution", "metric": format!("{metric:?}"), "tokens": tokens.provenance(),
    });
    Table::new(terms.rows, model.provenance(what, None)?)
}

/// The rows gathered so far.
struct Terms<'a> {
    rows: Vec<Observation>,
    metric: &'a Metric,
}

impl Terms<'_> {
    fn push(&mut self, term: &Term, value: f64) {
        let (metric, unit) = (self.metric.name().to_owned(), self.metric.unit_of_rows());
        self.rows.push(Observation { keys: term.keys(), metric, value, unit, ..Observation::default() });
    }
}

fn fill(terms: &mut Terms<'_>, model: &Model, run: &Run, reader: &Readout<'_>) -> Result<()> {
    let config = model.config();
    let Some((direction, unembed_bias)) = reader.direction() else {
        let expected = "one whose logits are linear in the normalised residual stream";
        return Err(Error::argument("model", expected, &config.family));
    };
    let mut through = direction.shallow_clone();
    if config.has_final_norm() {
        if let Some((gamma, beta)) = model.final_norm_weights() {
            if let Some(beta) = beta {
                terms.push(&Term::new("ln_final_bias", None), mean(&direction.matmul(beta)));
            }
            through = &through * gamma;
        }
        through = centred(config.norm, &through) / reader.last(run.get(Site::LnFinalScale)?);
    }
    terms.push(&Term::new("unembed_bias", None), mean(&unembed_bias));
    let last = Site::ResidPost(config.n_layers - 1);
    each_term(
        model,
        run,
        last,
        |x| reader.last(x),
        |written| {
            let values = written.along(&through);
            if values.dim() == 1 {
                terms.push(&written.term, mean(&values));
            }
            for (head, value) in values.unbind(-1).iter().enumerate().filter(|_| values.dim() == 2) {
                terms.push(&Term { head: Some(head), ..written.term.clone() }, mean(value));
            }
            Ok(())
        },
    )
}

fn mean(values: &Tensor) -> f64 {
    values.to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
}

/// What would the model answer if it stopped at this depth? The logit lens: the metric of the residual stream at each
/// depth, read through the final norm and the unembedding (nostalgebraist 2020).
///
/// One row for the stream that enters each layer (`resid_pre`), the stream between attention and MLP (`resid_mid`), and
/// the stream that leaves the last layer (`resid_post`), mean over prompts. A low value at an early depth does not show
/// that the answer is unknown there: the stream need not yet be in the unembedding's basis.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
/// let lens = logit_lens(&model, &tokens, &Metric::Loss)?;
/// assert_eq!(lens.len(), 7); // two depths in each of 3 layers, and the end
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// If the metric does not fit the model.
pub fn logit_lens(model: &Model, tokens: &Tokens, metric: &Metric) -> Result<Table> {
    let config = model.config();
    let last = Site::ResidPost(config.n_layers - 1);
    let depths = (0..config.n_layers).flat_map(|layer| [Site::ResidPre(layer), Site::ResidMid(layer)]).chain([last]);
    let depths: Vec<Site> = depths.filter(|site| site.check(config).is_ok()).collect();
    Lens::logit(model).metric_at(&depths, tokens, metric)
}
