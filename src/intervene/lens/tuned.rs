//! How is a tuned lens trained? One affine map for each depth, so that what the unembedding then reads comes close to the
//! model's output.

use std::collections::BTreeMap;
use std::path::Path;

use rand::Rng;
use rand::seq::SliceRandom;
use serde::Serialize;
use tch::nn::{self, OptimizerConfig};
use tch::{Kind, Tensor};

use super::{BLOCK, Lens, Place, Positions, number, rows_at};
use crate::error::{Error, Result};
use crate::model::{Model, Plan, Site, Tokens};
use crate::progress::Progress;
use crate::stats::stream;
use crate::table::{Keys, Observation, Table};
use crate::tensors::{Tensors, is_half, write_tensors};

/// Options of [`Lens::tuned`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TunedOptions {
    /// Steps of Adam. The step size falls linearly to 0.
    pub steps: usize,
    /// Positions per step.
    pub batch: usize,
    /// The first step size, for streams that are scaled to a variance of 1 in each dimension.
    pub rate: f64,
    /// The most positions that are read, drawn at random from those of the text.
    pub positions: usize,
    /// The share of them that training does not see, on which the lens is judged: whole prompts, as far as it goes.
    pub held_out: f64,
    /// How many tokens of a larger vocabulary each step compares: half of them the likeliest at the batch's positions, half a
    /// random sample of the others that stands for them all, weighted by how many it stands for. The judgement always has all tokens.
    pub vocabulary: usize,
    /// Seed of all draws.
    pub seed: u64,
}

impl Default for TunedOptions {
    fn default() -> Self {
        Self { steps: 60, batch: 64, rate: 0.003, positions: 1024, held_out: 0.1, vocabulary: 2048, seed: 0 }
    }
}

impl TunedOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// If a count is 0, there are fewer than 64 tokens to compare, the step size is not above 0, or the held-out share is not
    /// between 0 and 1.
    pub fn validate(&self) -> Result<()> {
        for (name, found, least) in [
            ("steps", self.steps, 1),
            ("batch", self.batch, 1),
            ("positions", self.positions, 2),
            ("vocabulary", self.vocabulary, 64),
        ] {
            if found < least {
                return Err(Error::argument(name, format!("{least} or more"), found));
            }
        }
        if !(self.rate > 0.0 && self.rate.is_finite()) {
            return Err(Error::argument("rate", "above 0", self.rate));
        }
        if !(self.held_out > 0.0 && self.held_out < 1.0) {
            return Err(Error::argument("held_out", "a share between 0 and 1", self.held_out));
        }
        Ok(())
    }
}

/// x + x A + b, with A `[d_model, d_model]` and b `[d_model]`.
#[derive(Debug)]
pub(super) struct Translator {
    matrix: Tensor,
    bias: Tensor,
}

impl Translator {
    #[cfg(test)]
    pub(super) fn identity(model: &Model) -> Self {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (model.kind(), model.device()));
        let width = model.config().d_model as i64;
        Self { matrix: zeros(&[width, width]), bias: zeros(&[width]) }
    }

    pub(super) fn apply(&self, x: &Tensor) -> Tensor {
        x + x.matmul(&self.matrix) + &self.bias
    }
}

impl<'a> Lens<'a> {
    /// Trains a tuned lens on a text: for each depth the affine map that minimises KL(p || q), in nats, mean over positions,
    /// where p is the model's output and q what the lens reads. The maps start at the identity, so training starts from the
    /// logit lens. [`Lens::held_out`] says how good it became on positions that training did not see.
    ///
    /// A few thousand tokens of the kind of text that is to be read are enough to be useful.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&(0..20).map(|i| (0..8).map(|j| (i * j + 3 * i) % 90).collect()).collect::<Vec<_>>())?;
    /// let lens = Lens::tuned(&model, &tokens, &TunedOptions { steps: 20, ..TunedOptions::default() })?;
    /// println!("{}", lens.held_out().unwrap());
    /// let table = lens.top(&tokens, 1)?;
    /// # assert_eq!(table.len(), 20 * 8 * 4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the options are invalid, the model is in half precision, the tokens do not fit it or give fewer than two positions, or it has no
    /// logits.
    pub fn tuned(model: &'a Model, tokens: &Tokens, options: &TunedOptions) -> Result<Self> {
        options.validate()?;
        if is_half(model.kind()) {
            let expected = "one in float32 or float64 to train a lens on; a trained lens serves half precision too";
            return Err(Error::argument("model", expected, format!("{:?}", model.kind())));
        }
        let mut lens = Self::logit(model);
        lens.need_logits()?;
        let (training, held_out) = split(tokens, options)?;
        let depths = lens.depths();
        let mut text = gather(model, tokens, &depths, &[training, held_out])?;
        let (held_out, training) = (text.pop().unwrap_or_default(), text.pop().unwrap_or_default());
        lens.translators = train(&lens, &training, options)?;
        lens.options = Some(options.clone());
        let what = serde_json::json!({"what": "tuned lens", "options": options, "tokens": tokens.provenance()});
        let rows = tch::no_grad(|| judge(&lens, &held_out))?;
        lens.held_out = Some(Table::new(rows, model.provenance(what, Some(options.seed))?)?);
        Ok(lens)
    }

    /// How well does a tuned lens read positions that training has not seen? KL(p || q), in nats, mean over these positions:
    /// for each depth a row with the logit lens (`method` is `logit_lens`) and one with this lens (`tuned_lens`). `None` for
    /// the logit lens, and for a lens read from a file.
    pub fn held_out(&self) -> Option<&Table> {
        self.held_out.as_ref()
    }

    /// Writes the maps of a tuned lens as safetensors, whole or not at all: `resid_pre.LAYER.matrix` and
    /// `resid_pre.LAYER.bias`, with the SHA-256 of the model as metadata.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9, 10], vec![9, 8, 7, 6, 5, 4]])?;
    /// let lens = Lens::tuned(&model, &tokens, &TunedOptions { steps: 2, ..TunedOptions::default() })?;
    /// let path = std::env::temp_dir().join(format!("headscope-lens-{}.safetensors", std::process::id()));
    /// lens.save(&path)?;
    /// let again = Lens::load(&model, &path)?;
    /// assert_eq!(again.top(&tokens, 1)?.f64("value")?, lens.top(&tokens, 1)?.f64("value")?);
    /// # let _ = std::fs::remove_file(path);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If this is the logit lens, which has nothing to save, or the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        if self.translators.is_empty() {
            return Err(Error::argument("lens", "a tuned lens", "the logit lens, which has nothing to save"));
        }
        let parts = self.translators.iter().flat_map(|(site, translator)| {
            [(format!("{site}.matrix"), &translator.matrix), (format!("{site}.bias"), &translator.bias)]
        });
        let tensors: Vec<(String, &Tensor)> = parts.collect();
        write_tensors(path.as_ref(), &tensors, &[(MODEL, self.model.sha256()?)])
    }

    /// Reads a tuned lens that [`Lens::save`] wrote.
    ///
    /// # Errors
    /// If the file cannot be read, is none of a tuned lens, or belongs to another model.
    pub fn load(model: &'a Model, path: impl AsRef<Path>) -> Result<Self> {
        let mut lens = Self::logit(model);
        lens.need_logits()?;
        let tensors = Tensors::read(path.as_ref(), model.kind(), model.device())?;
        let (found, expected) = (tensors.metadata(MODEL).unwrap_or_default().to_owned(), model.sha256()?);
        if found != expected {
            let path = path.as_ref().to_owned();
            let expected = format!("a tuned lens of this model, {expected}");
            return Err(Error::Format { path, at: format!("metadata `{MODEL}`"), expected, found });
        }
        let width = model.config().d_model as i64;
        for layer in 0..model.config().n_layers {
            let site = Site::ResidPre(layer);
            let matrix = tensors.get(&format!("{site}.matrix"), &[width, width])?;
            let bias = tensors.get(&format!("{site}.bias"), &[width])?;
            lens.translators.insert(site, Translator { matrix, bias });
        }
        Ok(lens)
    }
}

/// The key of the model's hash among a file's metadata.
const MODEL: &str = "model_sha256";

/// The positions to train on and those to judge on: prompts in random order, the last positions of which are held out.
fn split(tokens: &Tokens, options: &TunedOptions) -> Result<(Vec<Place>, Vec<Place>)> {
    let mut rng = stream(options.seed, 0);
    let mut prompts: Vec<usize> = (0..tokens.batch()).collect();
    prompts.shuffle(&mut rng);
    let of_prompt = |prompt: usize| (0..tokens.row(prompt).len()).map(move |position| (prompt, position));
    let mut training: Vec<Place> = prompts.into_iter().flat_map(of_prompt).collect();
    if training.len() < 2 {
        return Err(Error::argument("tokens", "at least 2 positions, one of them held out", training.len()));
    }
    let n = ((training.len() as f64 * options.held_out).round() as usize).clamp(1, training.len() - 1);
    let mut held_out = training.split_off(training.len() - n);
    let most = options.positions.min(training.len() + held_out.len());
    let kept = ((most as f64 * options.held_out).round() as usize).clamp(1, most - 1);
    for (places, most) in [(&mut training, most - kept), (&mut held_out, kept)] {
        places.shuffle(&mut rng);
        places.truncate(most.max(1));
    }
    Ok((training, held_out))
}

/// The streams at some places, `[place, d_model]`, by depth.
type Text = BTreeMap<Site, Tensor>;

/// Prompts that are run at a time.
const AT_ONCE: usize = 16;

/// The streams at each of some sets of places, read a few prompts at a time.
fn gather(model: &Model, tokens: &Tokens, depths: &[Site], sets: &[Vec<Place>]) -> Result<Vec<Text>> {
    let mut parts: Vec<BTreeMap<Site, Vec<Tensor>>> = sets.iter().map(|_| BTreeMap::new()).collect();
    model.one_sequence("a lens")?;
    let prompts: Vec<usize> = (0..tokens.batch()).collect();
    for some in prompts.chunks(AT_ONCE) {
        let here: Vec<Vec<Place>> = sets.iter().map(|places| within(places, some)).collect();
        if here.iter().all(Vec::is_empty) {
            continue;
        }
        let run = model.run(&tokens.select(some)?, &Plan::new().taps(depths))?;
        for (parts, places) in parts.iter_mut().zip(&here).filter(|(_, places)| !places.is_empty()) {
            for &site in depths {
                parts.entry(site).or_default().push(rows_at(run.get(site)?, places));
            }
        }
    }
    let joined = |parts: BTreeMap<Site, Vec<Tensor>>| {
        parts.into_iter().map(|(site, parts)| (site, Tensor::cat(&parts, 0))).collect()
    };
    Ok(parts.into_iter().map(joined).collect())
}

/// The places in some consecutive prompts, counted from the first of them.
fn within(places: &[Place], prompts: &[usize]) -> Vec<Place> {
    let first = prompts.first().copied().unwrap_or(0);
    let inside = places.iter().filter(|(prompt, _)| prompts.contains(prompt));
    inside.map(|&(prompt, position)| (prompt - first, position)).collect()
}

/// The map of one depth while it is trained. It acts on streams of mean 0 and variance 1 in each dimension, and its output is
/// scaled as the last stream is: one step size then serves all depths and models.
struct Draft {
    matrix: Tensor,
    bias: Tensor,
    mean: Tensor,
    deviation: Tensor,
    scale: f64,
}

impl Draft {
    fn new(path: &nn::Path<'_>, streams: &Tensor, scale: f64) -> Self {
        let width = streams.size()[1];
        let zeros =
            |name: &str, shape: &[i64]| path.var_copy(name, &Tensor::zeros(shape, (streams.kind(), streams.device())));
        let mean = streams.mean_dim([0i64].as_slice(), false, None::<Kind>);
        let deviation = (streams - &mean).square().mean_dim([0i64].as_slice(), false, None::<Kind>).sqrt();
        // Dimensions that hardly vary, and all of a single position, are not enlarged.
        let rms = |x: &Tensor| x.square().mean(None::<Kind>).sqrt().double_value(&[]);
        let (spread, size) = (rms(&deviation), rms(streams));
        let floor = if spread > 1e-6 * size { 0.03 * spread } else { size.max(1e-6) };
        let deviation = deviation.clamp_min(floor);
        Self { matrix: zeros("matrix", &[width, width]), bias: zeros("bias", &[width]), mean, deviation, scale }
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let seen = (x - &self.mean) / &self.deviation;
        x + (seen.matmul(&self.matrix) + &self.bias) * self.scale
    }

    /// The same map without the scales.
    fn finished(&self) -> Translator {
        let matrix = self.matrix.detach() / self.deviation.unsqueeze(1) * self.scale;
        let bias = self.bias.detach() * self.scale - self.mean.matmul(&matrix);
        Translator { matrix, bias }
    }
}

fn train(lens: &Lens<'_>, text: &Text, options: &TunedOptions) -> Result<BTreeMap<Site, Translator>> {
    let torch = || Error::torch("training a tuned lens");
    let model = lens.model;
    let last = Site::ResidPost(model.config().n_layers - 1);
    let end = text.get(&last).ok_or(Error::NotTapped { site: last, tapped: vec![] })?;
    let scale = end.square().mean(None::<Kind>).sqrt().double_value(&[]);
    let mut vars = nn::VarStore::new(model.device());
    vars.set_kind(model.kind());
    let drafts: Vec<(Site, Draft, &Tensor)> = text
        .iter()
        .filter(|(site, _)| **site != last)
        .map(|(site, streams)| {
            (*site, Draft::new(&(vars.root() / site.to_string().replace('.', "_")), streams, scale), streams)
        })
        .collect();
    let mut adam = nn::Adam::default().build(&vars, options.rate).map_err(torch())?;
    let mut rng = stream(options.seed, 1);
    let mut progress = Progress::new("steps", options.steps);
    let n = end.size()[0];
    for step in 0..options.steps {
        adam.set_lr(options.rate * (1.0 - step as f64 / options.steps as f64));
        let rows: Vec<i64> = (0..options.batch.min(n as usize)).map(|_| rng.random_range(0..n)).collect();
        let rows = Tensor::from_slice(&rows).to_device(model.device());
        let some = tch::no_grad(|| Compared::new(model, &end.index_select(0, &rows), options, &mut rng))?;
        adam.zero_grad();
        for (_, draft, streams) in &drafts {
            let loss = tch::with_grad(|| some.kl(model, &draft.apply(&streams.index_select(0, &rows))))?;
            loss.f_backward().map_err(torch())?;
        }
        adam.step();
        progress.add(1);
    }
    Ok(tch::no_grad(|| drafts.iter().map(|(site, draft, _)| (*site, draft.finished())).collect()))
}

/// What a step compares: the model's output at its positions, over all tokens or a sample of them.
struct Compared {
    /// The tokens, if they are a sample.
    ids: Option<Tensor>,
    /// ln of how many tokens each stands for, `[id]`.
    weights: Tensor,
    /// ln p of the model's output, `[place, id]`.
    log_p: Tensor,
}

impl Compared {
    fn new(model: &Model, end: &Tensor, options: &TunedOptions, rng: &mut impl Rng) -> Result<Self> {
        let log_p = model.unembed(end)?.log_softmax(-1, None::<Kind>);
        let vocab = model.config().vocab as i64;
        let all = (log_p.kind(), log_p.device());
        if vocab <= options.vocabulary as i64 {
            return Ok(Self { ids: None, weights: Tensor::zeros([vocab], all), log_p });
        }
        // The likeliest tokens of the batch, and others at random.
        let n = options.vocabulary as i64 / 2;
        let (_, chosen) = log_p.exp().mean_dim([0i64].as_slice(), false, None::<Kind>).topk(n, -1, true, false);
        let others = Tensor::ones([vocab], (Kind::Bool, log_p.device())).index_fill(0, &chosen, 0.0);
        let others = others.nonzero().squeeze_dim(1);
        let (there, drawn) = (others.size()[0], options.vocabulary as i64 - n);
        let places = rand::seq::index::sample(rng, there as usize, drawn as usize).into_iter();
        let places =
            Tensor::from_slice(&places.map(|place| place as i64).collect::<Vec<_>>()).to_device(log_p.device());
        let stands_for = (there as f64 / drawn as f64).ln();
        let weights = Tensor::cat(&[Tensor::zeros([n], all), Tensor::full([drawn], stands_for, all)], 0);
        let ids = Tensor::cat(&[chosen, others.index_select(0, &places)], 0);
        Ok(Self { log_p: log_p.index_select(1, &ids), ids: Some(ids), weights })
    }

    /// KL(p || q), mean over places, where q is read from `streams`. Over a sample, sums over tokens are estimated without
    /// bias from those compared.
    fn kl(&self, model: &Model, streams: &Tensor) -> Result<Tensor> {
        let logits = match &self.ids {
            Some(ids) => model.unembed_some(streams, ids)?,
            None => model.unembed(streams)?,
        };
        let log_q = &logits - (&logits + &self.weights).logsumexp([-1i64].as_slice(), true);
        let terms = (&self.log_p + &self.weights).exp() * (&self.log_p - log_q);
        Ok(terms.sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>).mean(None::<Kind>))
    }
}

/// KL(p || q) over all tokens at each depth, of the logit lens and of the tuned one.
fn judge(lens: &Lens<'_>, text: &Text) -> Result<Vec<Observation>> {
    let model = lens.model;
    let last = Site::ResidPost(model.config().n_layers - 1);
    let end = text.get(&last).ok_or(Error::NotTapped { site: last, tapped: vec![] })?;
    let (plain, n) = (Lens { positions: Positions::All, ..Lens::logit(model) }, end.size()[0]);
    let at_once = (BLOCK / model.config().vocab.max(1)).max(1) as i64;
    let mut sums: BTreeMap<(Site, &'static str), f64> = BTreeMap::new();
    for first in (0..n).step_by(at_once as usize) {
        let rows = |x: &Tensor| x.narrow(0, first, at_once.min(n - first));
        let log_p = model.unembed(&rows(end))?.log_softmax(-1, None::<Kind>);
        for ((site, streams), lens) in text.iter().flat_map(|depth| [(depth, &plain), (depth, lens)]) {
            let log_q = lens.read(*site, &rows(streams))?.log_softmax(-1, None::<Kind>);
            let kl = (log_p.exp() * (&log_p - log_q)).sum(Kind::Double).double_value(&[]);
            *sums.entry((*site, lens.name())).or_default() += kl;
        }
    }
    let row = |((site, method), sum): ((Site, &str), f64)| Observation {
        keys: Keys {
            method: Some(method.to_owned()),
            site: Some(site.kind().to_owned()),
            layer: number(site.layer()),
            ..Keys::default()
        },
        metric: "kl".to_owned(),
        value: sum / n as f64,
        unit: Some("nats".to_owned()),
        samples: u32::try_from(n).ok(),
        ..Observation::default()
    };
    Ok(sums.into_iter().map(row).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::model::ModelConfig;

    /// Over draws of the sample, what it stands for is the sum over all tokens.
    #[test]
    fn a_sample_stands_for_all_tokens() {
        let config = ModelConfig { vocab: 500, ..ModelConfig::default() };
        let model = Model::random_as(&config, 1, Kind::Double, tch::Device::Cpu).unwrap();
        let [end, early] = [3.0, 5.0].map(|at| {
            let n = 2 * config.d_model as i64;
            (Tensor::arange(n, (Kind::Double, tch::Device::Cpu)) * at).sin().view([2, -1])
        });
        let options = TunedOptions { vocabulary: 64, ..TunedOptions::default() };
        let mut rng = stream(5, 0);
        let all = model.unembed(&early).unwrap().logsumexp([-1i64].as_slice(), false);
        let (mut sums, mut shares, draws) = (vec![], vec![], 400);
        for _ in 0..draws {
            let some = Compared::new(&model, &end, &options, &mut rng).unwrap();
            let ids = some.ids.as_ref().unwrap();
            assert_eq!(ids.numel(), 64);
            let logits = model.unembed_some(&early, ids).unwrap() + &some.weights;
            let sum = (logits.logsumexp([-1i64].as_slice(), false) - &all).exp();
            sums.push(sum.double_value(&[1]));
            shares.push((&some.log_p + &some.weights).exp().get(0).sum(Kind::Double).double_value(&[]));
        }
        for found in [sums, shares] {
            let mean = found.iter().sum::<f64>() / f64::from(draws);
            let spread = found.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(draws - 1);
            let error = (spread / f64::from(draws)).sqrt();
            assert!(error > 0.0 && (mean - 1.0).abs() < 6.0 * error, "{mean} +- {error}");
        }
    }

    /// With all tokens compared, what is minimised is the divergence itself.
    #[test]
    fn all_tokens_give_the_divergence() {
        let model = Model::random_as(&ModelConfig::default(), 2, Kind::Double, tch::Device::Cpu).unwrap();
        let x = |at: f64| (Tensor::arange(64, (Kind::Double, tch::Device::Cpu)) * at).sin().view([2, 32]);
        let options = TunedOptions::default();
        let some = Compared::new(&model, &x(3.0), &options, &mut stream(0, 0)).unwrap();
        let [p, q] = [3.0, 5.0].map(|at| model.unembed(&x(at)).unwrap().softmax(-1, None::<Kind>));
        let expected = (&p * (p.log() - q.log())).sum(Kind::Double).double_value(&[]) / 2.0;
        let found = some.kl(&model, &x(5.0)).unwrap().double_value(&[]);
        assert!((found - expected).abs() < 1e-12 && expected > 1e-3, "{found} beside {expected}");
    }
}
