//! What each part of the model writes towards an answer, and what the model would answer at each depth.

use tch::{Kind, Tensor};

use super::{Metric, Output, Reader};
use crate::error::{Error, Result};
use crate::model::{EmbedProjection, Model, ModelConfig, NormKind, Plan, Run, Site, Tokens};
use crate::table::{Keys, Observation, Provenance, Table};

/// Which parts of the model write the answer? Direct logit attribution of a logit, or a logit difference, at each prompt's
/// last token.
///
/// The residual stream is a sum of terms t: embeddings, what each head writes, biases, what each MLP writes. With the final
/// norm's scale s frozen, each contributes (t / s) . (gamma * (W_U[:, correct] - W_U[:, wrong])), t centred where the norm
/// is a LayerNorm. The rows, with those of the biases of norm and unembedding, sum to it exactly
/// (Elhage et al. 2021). It counts only what a part writes directly, not what later parts make of it.
///
/// One row a term, mean over prompts; the column `site` says which: `embed`, `pos_embed`, `result` (with `layer` and
/// `head`), `attn_bias`, `mlp_out` (with `layer`), `ln_final_bias`, `unembed_bias`. Values are logits.
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
/// Where attention or MLPs end in a norm of their own, its divisor is frozen too. Where logits are capped, the terms sum to the
/// logit before the cap.
///
/// # Errors
/// Where the metric is no logit nor a difference of two, or the last residual stream is no sum of what parts wrote (norms
/// after each sum: BERT), or logits are not linear in it.
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
    let reader = Reader::new(model, metric, tokens, &Output::whole(run.get(last)?), usize::MAX)?;
    let mut terms = Terms { rows: vec![], metric: metric.name() };
    tch::no_grad(|| fill(&mut terms, model, &run, &reader))?;
    Table::new(terms.rows, provenance(model, "direct logit attribution", metric, tokens)?)
}

/// What the first residual stream is a sum of: its parts, or itself where a norm or a projection follows their sum.
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

fn fill(terms: &mut Terms<'_>, model: &Model, run: &Run, reader: &Reader<'_>) -> Result<()> {
    let (config, wiring) = (model.config(), model.wiring());
    let Some((direction, unembed_bias)) = reader.direction() else {
        let expected = "one whose logits are linear in the normalised residual stream";
        return Err(Error::argument("model", expected, &config.family));
    };
    let at = |site: Site| -> Result<Tensor> { Ok(reader.last(run.get(site)?)) };
    let mut through = direction.shallow_clone();
    if wiring.has_final_norm() {
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
        // z_h (W_O^h g), in the space of the head: nothing of the size of the heads' results is made.
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

/// What reads the centred stream, as what reads the stream.
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

/// What would the model answer if it stopped here? The logit lens: the metric of the residual stream at each depth, read
/// through the final norm and the unembedding (nostalgebraist 2020).
///
/// One row for the stream entering each layer (`resid_pre`), between attention and MLP (`resid_mid`) and leaving the last
/// layer (`resid_post`), mean over prompts. Early layers need not speak the unembedding's language: a low value there does
/// not show that the answer is not known.
///
/// # Errors
/// Where the metric does not fit the model.
pub fn logit_lens(model: &Model, tokens: &Tokens, metric: &Metric) -> Result<Table> {
    let config = model.config();
    let last = Site::ResidPost(config.n_layers - 1);
    let depths = (0..config.n_layers).flat_map(|layer| [Site::ResidPre(layer), Site::ResidMid(layer)]).chain([last]);
    let depths: Vec<Site> = depths.filter(|site| site.check(config).is_ok()).collect();
    let run = model.run(tokens, &Plan::new().taps(depths.iter().copied()))?;
    let end = |site: Site| -> Result<Output> { Ok(Output::whole(run.get(site)?)) };
    let rows = tch::no_grad(|| {
        let reader = Reader::new(model, metric, tokens, &end(last)?, usize::MAX)?;
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
