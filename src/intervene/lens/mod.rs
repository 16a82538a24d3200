//! What would the model answer if it stopped at this depth, and what does each head write? Lenses read the residual stream
//! as tokens.

mod tuned;

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use self::tuned::Translator;
pub use self::tuned::TunedOptions;
use super::metric::{Metric, Output, Readout};
use super::residual::{centred, check, of_attention};
use crate::error::{Error, Result};
use crate::model::{Model, Plan, Run, Site, Tokens};
use crate::table::{Keys, Observation, Provenance, Table};

/// A lens: the residual stream at each depth, read as tokens.
///
/// The **logit lens** ([`Lens::logit`]; nostalgebraist 2020) reads the stream x at any depth through the final norm and the
/// unembedding, as if the model ended there. Early streams need not be in the basis that the unembedding reads, so a low
/// probability there does not show that the answer is unknown. The **tuned lens** ([`Lens::tuned`]; Belrose et al. 2023)
/// first translates each depth by an affine map x + A x + b, trained so that what is read comes close to the model's output.
///
/// Depths are the streams that enter each layer (`resid_pre`) and the one that leaves the last (`resid_post`), where both
/// lenses read the model's own output.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat sat on the mat"])?;
/// let table = Lens::logit(&model).top(&tokens, 3)?; // at every depth and position
/// assert_eq!(table.columns(), ["prompt", "layer", "site", "position", "rank", "token", "metric", "value"]);
/// let picture = view::lens(&table)?; // the first choice in each cell
/// let curve = Lens::logit(&model).metric(&tokens, &Metric::Loss)?.curve("layer")?;
/// # assert!(picture.as_str().starts_with("<svg") && curve.len() == 4);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug)]
pub struct Lens<'a> {
    model: &'a Model,
    /// The maps of a tuned lens, by depth.
    translators: BTreeMap<Site, Translator>,
    /// How a tuned lens was trained.
    options: Option<TunedOptions>,
    held_out: Option<Table>,
    positions: Positions,
}

/// Where a lens reads.
#[derive(Debug, Clone)]
enum Positions {
    All,
    Last,
    These(Vec<usize>),
}

/// A place where a lens reads: a prompt and a position.
type Place = (usize, usize);

/// The most logits computed at a time.
const BLOCK: usize = 1 << 24;

impl<'a> Lens<'a> {
    /// The logit lens of a model.
    pub fn logit(model: &'a Model) -> Self {
        let positions = Positions::All;
        Self { model, translators: BTreeMap::new(), options: None, held_out: None, positions }
    }

    /// Reads only each prompt's last token.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?; // 3 layers
    /// let tokens = model.tokens(&["the cat sat on the mat", "a dog ran"])?;
    /// assert_eq!(Lens::logit(&model).last().top(&tokens, 5)?.len(), 2 * 4 * 5);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn last(self) -> Self {
        Self { positions: Positions::Last, ..self }
    }

    /// Reads only these positions, in the prompts that have them.
    pub fn positions(self, positions: impl IntoIterator<Item = usize>) -> Self {
        Self { positions: Positions::These(positions.into_iter().collect()), ..self }
    }

    /// `logit_lens` or `tuned_lens`.
    pub fn name(&self) -> &'static str {
        if self.translators.is_empty() { "logit_lens" } else { "tuned_lens" }
    }

    /// The logits that the lens reads from streams `[.., d_model]` at `site`: `[.., vocab]`.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7]])?;
    /// let run = model.run(&tokens, &Plan::new().tap(Site::ResidMid(1)))?;
    /// let logits = Lens::logit(&model).read(Site::ResidMid(1), run.get(Site::ResidMid(1))?)?;
    /// assert_eq!(logits.size()[..2], [1, 3]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the model has no logits, the streams are of another width, or a tuned lens was not trained at `site`.
    pub fn read(&self, site: Site, streams: &Tensor) -> Result<Tensor> {
        self.need_logits()?;
        let width = self.model.config().d_model as i64;
        if streams.size().last() != Some(&width) {
            let expected = format!("[.., d_model = {width}]");
            return Err(Error::Shape { at: "streams".into(), expected, found: streams.size() });
        }
        let streams = streams.to_device(self.model.device()).to_kind(self.model.kind());
        self.model.unembed(&self.translated(site, &streams)?)
    }

    /// The `k` likeliest next tokens at every depth and position. Columns `prompt`, `layer`, `site` and `position` say where,
    /// `rank` (0 is the likeliest) and `token` say which; the value is the probability. [`view::lens`](crate::view::lens())
    /// draws it.
    ///
    /// # Errors
    /// If the tokens or positions do not fit the model, it has no logits, or `k` is 0 or more than the vocabulary.
    pub fn top(&self, tokens: &Tokens, k: usize) -> Result<Table> {
        self.check_k(k)?;
        let depths = self.depths();
        let run = self.model.run(tokens, &Plan::new().taps(&depths))?;
        let places = self.places(tokens)?;
        let mut rows = vec![];
        tch::no_grad(|| {
            let read = |site: &Site| self.translated(*site, &rows_at(run.get(*site)?, &places));
            let streams = depths.iter().map(read).collect::<Result<Vec<_>>>()?;
            // All depths together: the unembedding, the largest matrix of a small model, is read once.
            let read = |x: &Tensor| Ok(self.model.unembed(x)?.log_softmax(-1, None::<Kind>)); // float32 in half precision
            let found = self.ranked(&Tensor::cat(&streams, 0), k, read)?;
            for (site, found) in depths.iter().zip(found.chunks((places.len() * k).max(1))) {
                let keys = Keys { site: Some(site.kind().into()), layer: number(site.layer()), ..Keys::default() };
                rows.extend(self.rows(&keys, &places, found.to_vec(), "probability", None, f64::exp));
            }
            Table::new(rows, self.provenance("top tokens", tokens, k)?)
        })
    }

    /// What does each head write? The `k` tokens whose logits each head raises most, directly: what it adds to the residual
    /// stream, read through the final norm, with its divisor in the run, and the unembedding. Columns as in [`Lens::top`],
    /// with `head`; the value is what the head adds to the logit. Column `site` is `result`.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?; // 3 layers of 4 heads
    /// let tokens = model.tokens(&["the cat sat on the mat"])?;
    /// let table = Lens::logit(&model).last().heads(&tokens, 2)?;
    /// assert_eq!(table.len(), 12 * 2);
    /// println!("{}", table.top(5)?);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Lens::top`]; if the last residual stream is not a sum of what heads write, or logits are not linear in the
    /// normalised stream; and for a tuned lens, which translates whole streams.
    pub fn heads(&self, tokens: &Tokens, k: usize) -> Result<Table> {
        self.check_k(k)?;
        check(self.model)?;
        if !self.translators.is_empty() {
            return Err(Error::argument("lens", "the logit lens, for what heads write", "a tuned lens"));
        }
        let config = self.model.config();
        let of_layer = |layer| [Site::Z(layer), Site::Ln1PostScale(layer)];
        let sites = (0..config.n_layers).flat_map(of_layer).chain([Site::LnFinalScale]);
        let run = self.model.run(tokens, &Plan::new().taps(sites.filter(|site| site.check(config).is_ok())))?;
        let places = self.places(tokens)?;
        tch::no_grad(|| {
            let ids = Tensor::arange(config.vocab as i64, (Kind::Int64, self.model.device()));
            let Some((directions, _)) = self.model.logit_directions(&ids) else {
                let expected = "one whose logits are linear in the normalised residual stream";
                return Err(Error::argument("model", expected, &config.family));
            };
            let mut rows = vec![];
            for layer in 0..config.n_layers {
                rows.extend(self.of_layer(layer, &run, &places, &directions, k)?);
            }
            Table::new(rows, self.provenance("what heads write", tokens, k)?)
        })
    }

    /// The rows of [`Lens::heads`] for one layer.
    fn of_layer(
        &self,
        layer: usize,
        run: &Run,
        places: &[Place],
        directions: &Tensor,
        k: usize,
    ) -> Result<Vec<Observation>> {
        let config = self.model.config();
        let like =
            Tensor::zeros([places.len() as i64, config.d_model as i64], (self.model.kind(), self.model.device()));
        let mut written = like.shallow_clone();
        of_attention(self.model, run, layer, &|x: &Tensor| rows_at(x, places), &mut |term| {
            if term.term.site == "result" {
                written = term.vectors(&like); // [place, head, d_model]
            }
            Ok(())
        })?;
        if let Ok(scale) = run.get(Site::LnFinalScale) {
            written = centred(config.norm, &written) / rows_at(scale, places).unsqueeze(-2);
            written =
                self.model.final_norm_weights().map_or_else(|| written.shallow_clone(), |(gamma, _)| &written * gamma);
        }
        let mut rows = vec![];
        for (head, written) in written.unbind(1).iter().enumerate() {
            let keys = Keys {
                site: Some("result".into()),
                layer: number(Some(layer)),
                head: number(Some(head)),
                ..Keys::default()
            };
            let found = self.ranked(written, k, |x| Ok(x.matmul(&directions.tr())))?;
            rows.extend(self.rows(&keys, places, found, "logit", Some("logits"), |logit| logit));
        }
        Ok(rows)
    }

    /// A metric of what the lens reads at each depth, mean over prompts: one row for the stream that enters each layer, and
    /// one for the stream that leaves the last. [`logit_lens`](super::logit_lens) has the streams between attention and MLP,
    /// too. The metric decides which positions are read.
    ///
    /// # Errors
    /// If the metric does not fit the model.
    pub fn metric(&self, tokens: &Tokens, metric: &Metric) -> Result<Table> {
        self.metric_at(&self.depths(), tokens, metric)
    }

    /// [`Lens::metric`] at these depths.
    pub(in crate::intervene) fn metric_at(&self, depths: &[Site], tokens: &Tokens, metric: &Metric) -> Result<Table> {
        self.model.one_sequence("a lens")?;
        let last = Site::ResidPost(self.model.config().n_layers - 1);
        let run = self.model.run(tokens, &Plan::new().taps(depths).tap(last))?;
        let rows = tch::no_grad(|| {
            let reader = Readout::new(self.model, metric, tokens, &Output::whole(run.get(last)?), usize::MAX)?;
            let row = |site: &Site| {
                let keys = Keys { site: Some(site.kind().to_owned()), layer: number(site.layer()), ..Keys::default() };
                let values = reader.read(&Output::whole(&self.translated(*site, run.get(*site)?)?))?;
                let value = values.mean(Kind::Double).double_value(&[]);
                let (metric, unit) = (metric.name().to_owned(), metric.unit_of_rows());
                Ok(Observation { keys, metric, value, unit, ..Observation::default() })
            };
            depths.iter().map(row).collect::<Result<Vec<_>>>()
        })?;
        let what = serde_json::json!({
            "what": self.name().replace('_', " "),
            "metric": format!("{metric:?}"),
            "tuned": self.options,
            "tokens": tokens.provenance(),
        });
        Table::new(rows, self.model.provenance(what, None)?)
    }

    fn depths(&self) -> Vec<Site> {
        let layers = self.model.config().n_layers;
        (0..layers).map(Site::ResidPre).chain([Site::ResidPost(layers - 1)]).collect()
    }

    /// Streams as the unembedding is to read them.
    fn translated(&self, site: Site, streams: &Tensor) -> Result<Tensor> {
        let last = Site::ResidPost(self.model.config().n_layers - 1);
        match self.translators.get(&site) {
            Some(translator) => Ok(translator.apply(streams)),
            None if self.translators.is_empty() || site == last => Ok(streams.shallow_clone()),
            None => {
                let there = self.translators.keys().map(Site::to_string).collect::<Vec<_>>().join(", ");
                Err(Error::argument("site", format!("a depth of the tuned lens: {there}, {last}"), site))
            }
        }
    }

    /// The `k` largest of what `read` makes of each row of `streams`: ids and values, row by row.
    fn ranked(&self, streams: &Tensor, k: usize, read: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Vec<(i64, f64)>> {
        let at_once = (BLOCK / self.model.config().vocab.max(1)).max(1) as i64;
        let mut found = vec![];
        for rows in streams.split(at_once, 0) {
            let (values, ids) = read(&rows)?.topk(k as i64, -1, true, true);
            let values = Vec::<f64>::try_from(values.to_kind(Kind::Double).flatten(0, -1));
            let ids = Vec::<i64>::try_from(ids.flatten(0, -1));
            let reading = || Error::torch("reading the top tokens");
            found.extend(ids.map_err(reading())?.into_iter().zip(values.map_err(reading())?));
        }
        Ok(found)
    }

    /// The rows of one depth or head: for each place, its tokens in order.
    fn rows(
        &self,
        keys: &Keys,
        places: &[Place],
        found: Vec<(i64, f64)>,
        metric: &str,
        unit: Option<&str>,
        value: fn(f64) -> f64,
    ) -> Vec<Observation> {
        let k = found.len() / places.len().max(1);
        let piece = |id: i64| self.model.tokenizer().map_or_else(|| id.to_string(), |tokenizer| tokenizer.piece(id));
        let row = |(at, (id, found)): (usize, (i64, f64))| {
            let (prompt, position) = places[at / k];
            let keys = Keys {
                prompt: number(Some(prompt)),
                position: number(Some(position)),
                rank: number(Some(at % k)),
                token: Some(piece(id)),
                ..keys.clone()
            };
            let (metric, unit) = (metric.to_owned(), unit.map(str::to_owned));
            Observation { keys, metric, value: value(found), unit, ..Observation::default() }
        };
        found.into_iter().enumerate().map(row).collect()
    }

    /// The places to read; padding is none.
    fn places(&self, tokens: &Tokens) -> Result<Vec<Place>> {
        let lengths = tokens.lengths();
        let limit = tokens.positions();
        if let Positions::These(positions) = &self.positions {
            if positions.is_empty() {
                return Err(Error::argument("positions", "at least one", "none"));
            }
            if let Some(&found) = positions.iter().find(|&&position| position >= limit) {
                let (found, limit) = (found as i64, limit as i64);
                return Err(Error::OutOfRange { at: "lens".into(), axis: "position", found, limit });
            }
        }
        let here = |position: usize, length: usize| match &self.positions {
            Positions::All => true,
            Positions::Last => position + 1 == length,
            Positions::These(positions) => positions.contains(&position),
        };
        let of_prompt = |(prompt, &length): (usize, &usize)| {
            (0..length)
                .filter(move |&position| here(position, length))
                .map(move |position| (prompt, position))
                .collect()
        };
        Ok(lengths.iter().enumerate().flat_map::<Vec<Place>, _>(of_prompt).collect())
    }

    fn need_logits(&self) -> Result<()> {
        match self.model.config().has_logits() {
            true => Ok(()),
            false => Err(Error::argument("model", "one with logits, for a lens", &self.model.config().family)),
        }
    }

    fn check_k(&self, k: usize) -> Result<()> {
        self.model.one_sequence("a lens")?;
        self.need_logits()?;
        let vocab = self.model.config().vocab;
        if k == 0 || k > vocab {
            return Err(Error::argument("k", format!("1 to {vocab} tokens"), k));
        }
        Ok(())
    }

    fn provenance(&self, what: &str, tokens: &Tokens, k: usize) -> Result<Provenance> {
        let what = serde_json::json!({
            "what": what, "lens": self.name(), "k": k, "tuned": self.options, "tokens": tokens.provenance(),
        });
        self.model.provenance(what, None)
    }
}

fn number(n: Option<usize>) -> Option<u32> {
    n.and_then(|n| u32::try_from(n).ok())
}

/// The rows of an activation `[batch, position, ..]` at some places, `[place, ..]`.
fn rows_at(x: &Tensor, places: &[Place]) -> Tensor {
    let positions = x.size()[1];
    let flat: Vec<i64> = places.iter().map(|&(prompt, position)| prompt as i64 * positions + position as i64).collect();
    x.flatten(0, 1).index_select(0, &Tensor::from_slice(&flat).to_device(x.device()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;

    /// Maps that are the identity read what the logit lens reads, to the last bit.
    #[test]
    fn identity_maps_are_the_logit_lens() {
        let model = Model::random(&ModelConfig::default(), 3).unwrap();
        let tokens = Tokens::new(&[vec![1, 2, 3, 4], vec![7, 8, 9]]).unwrap();
        let mut tuned = Lens::logit(&model);
        for layer in 0..model.config().n_layers {
            tuned.translators.insert(Site::ResidPre(layer), Translator::identity(&model));
        }
        let (tuned, logit) = (tuned.top(&tokens, 50).unwrap(), Lens::logit(&model).top(&tokens, 50).unwrap());
        assert_eq!(tuned.rows().unwrap(), logit.rows().unwrap());
    }
}
