//! What does each component write towards an answer, and what would the model answer at each depth?

use tch::{Kind, Tensor};

use super::{Metric, Output, Readout};
use crate::error::{Error, Result};
use crate::model::{EmbedProjection, Model, ModelConfig, NormKind, Plan, Run, Site, Tokens};
use crate::table::{Keys, Observation, Provenance, Table};

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
    let (config, wiring) = (model.config(), model.wiring());
    if !matches!(metric, Metric::Logit(_) | Metric::LogitDifference(..)) {
        return Err(Error::argument("metric", "a logit or a logit difference", metric.name()));
    }
    if !wiring.adds_up() {
        return Err(Error::argument("model", "one whose last residual stream is a sum", &config.family));
    }
    let last = Site::ResidPost(config.n_layers - 1);
    let mut sites = embeddings(config);
    sites.extend([Site::LnFinalScale, last]);
    let of_layer = |l| [Site::Z(l), Site::AttnOut(l), Site::Ln1PostScale(l), Site::MlpOut(l)];
    sites.extend((0..config.n_layers).flat_map(of_layer));
    sites.retain(|site| site.check(config).is_ok());
    let run = model.run(tokens, &Plan::new().taps(sites.iter().copied()))?;
    let reader = Readout::new(model, metric, tokens, &Output::whole(run.get(last)?), usize::MAX)?;
    let mut terms = Terms { rows: vec![], metric: metric.name() };
    tch::no_grad(|| fill(&mut terms, model, &run, &reader))?;
    Table::new(terms.rows, provenance(model, "direct logit attribution", metric, tokens)?)
}

/// The terms of the first residual stream: the embeddings, or the stream itself if a norm or a projection follows them.
fn embeddings(config: &ModelConfig) -> Vec<Site> {
    match config.embed_norm || matches!(config.embed_projection, EmbedProjection::Sum(_)) {
        true => vec![Site::ResidPre(0)],
        false => [Site::Embed, Site::PosEmbed, Site::TypeEmbed]
            .into_iter()
            .filter(|site| site.check(config).is_ok())
            .collect(),
    }
}

/// The rows gathered so far.
struct Terms<'a> {
    rows: Vec<Observation>,
    metric: &'a str,
}

impl Terms<'_> {
    fn push(&mut self, site: &str, layer: Option<usize>, head: Option<usize>, value: f64) {
        let number = |n: Option<usize>| n.and_then(|n| u32::try_from(n).ok());
        let keys = Keys { site: Some(site.to_owned()), layer: number(layer), head: number(head), ..Keys::default() };
        self.rows.push(Observation { keys, metric: self.metric.to_owned(), value, ..Observation::default() });
    }
}

fn fill(terms: &mut Terms<'_>, model: &Model, run: &Run, reader: &Readout<'_>) -> Result<()> {
    let config = model.config();
    let Some((direction, unembed_bias)) = reader.direction() else {
        let expected = "one whose logits are linear in the normalised residual stream";
        return Err(Error::argument("model", expected, &config.family));
    };
    let at = |site: Site| -> Result<Tensor> { Ok(reader.last(run.get(site)?)) };
    let mut through = direction.shallow_clone();
    if config.has_final_norm() {
        if let Some((gamma, beta)) = model.final_norm_weights() {
            if let Some(beta) = beta {
                terms.push("ln_final_bias", None, None, mean(&direction.matmul(beta)));
            }
            through = &through * gamma;
        }
        through = centred(config, &through) / at(Site::LnFinalScale)?;
    }
    let dot = |t: &Tensor| mean(&(t * &through).sum_dim_intlist([-1i64].as_slice(), false, None));
    terms.push("unembed_bias", None, None, mean(&unembed_bias));
    for site in embeddings(config) {
        terms.push(site.kind(), site.layer(), None, dot(&at(site)?));
    }
    let through = &through * config.residual_scale;
    let dot = |t: &Tensor| mean(&(t * &through).sum_dim_intlist([-1i64].as_slice(), false, None));
    for layer in 0..config.n_layers {
        let mut through = through.shallow_clone();
        if let Some(norm) = model.attn_out_norm(layer)? {
            if let Some(beta) = &norm.b {
                terms.push("attn_norm_bias", Some(layer), None, mean(&through.matmul(beta)));
            }
            through = centred(config, &(&through * &norm.w)) / at(Site::Ln1PostScale(layer))?;
        }
        // z_h (W_O^h g), within the space of the head: head outputs in d_model are never materialised.
        let readers = model.w_o(layer)?.matmul(&through.tr()).permute([2, 0, 1]);
        let heads = (at(Site::Z(layer))? * readers).sum_dim_intlist([2i64].as_slice(), false, None);
        for (head, value) in heads.unbind(1).iter().enumerate() {
            terms.push("result", Some(layer), Some(head), mean(value));
        }
        if let Some(b_o) = model.b_o(layer)? {
            terms.push("attn_bias", Some(layer), None, mean(&through.matmul(b_o)));
        }
        if config.has_mlp() {
            terms.push("mlp_out", Some(layer), None, dot(&at(Site::MlpOut(layer))?));
        }
    }
    Ok(())
}

/// A direction that reads the centred stream, turned into one that reads the stream itself.
fn centred(config: &ModelConfig, through: &Tensor) -> Tensor {
    match config.norm {
        NormKind::Layer => through - through.mean_dim([-1i64].as_slice(), true, None::<Kind>),
        NormKind::Rms | NormKind::None => through.shallow_clone(),
    }
}

fn mean(values: &Tensor) -> f64 {
    values.to_kind(Kind::Double).mean(Kind::Double).double_value(&[])
}

fn provenance(model: &Model, what: &str, metric: &Metric, tokens: &Tokens) -> Result<Provenance> {
    let metric = format!("{metric:?}");
    model.provenance(serde_json::json!({"what": what, "metric": metric, "tokens": tokens.provenance()}), None)
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
    let run = model.run(tokens, &Plan::new().taps(depths.iter().copied()))?;
    let end = |site: Site| -> Result<Output> { Ok(Output::whole(run.get(site)?)) };
    let rows = tch::no_grad(|| {
        let reader = Readout::new(model, metric, tokens, &end(last)?, usize::MAX)?;
        let row = |site: Site| {
            let layer = site.layer().and_then(|layer| u32::try_from(layer).ok());
            let keys = Keys { site: Some(site.kind().to_owned()), layer, ..Keys::default() };
            let value = mean(&reader.read(&end(site)?)?);
            Ok(Observation { keys, metric: metric.name().to_owned(), value, ..Observation::default() })
        };
        depths.iter().map(|&site| row(site)).collect::<Result<Vec<_>>>()
    })?;
    Table::new(rows, provenance(model, "logit lens", metric, tokens)?)
}
