//! What is a residual stream a sum of, and how does it grow with depth? Its terms as vectors, and as one table of what each
//! contributes.

mod terms;

use tch::{Kind, Tensor};

pub use self::terms::Term;
pub(in crate::intervene) use self::terms::{centred, check, each_term, of_attention, sites};
use super::metric::Answer;
use crate::error::{Error, Result};
use crate::model::{Model, Plan, Run, Site, Tokens};
use crate::table::{Keys, Observation, Provenance, Table};
use crate::take;

/// Vectors of the residual stream, one for each [`Term`], prompt and position: the terms that a stream is the sum of
/// ([`Residual::of`]), or the streams at each depth ([`accumulated_residual`]).
///
/// The vectors themselves are [`values`](Self::values), `[term, batch, position, d_model]`; [`norms`](Self::norms),
/// [`projection`](Self::projection) and [`logits`](Self::logits) make one table of them, with a row for each term, prompt
/// and position.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
/// let residual = Residual::of(&model, &tokens)?;
/// println!("{}", residual.norms()?.top(5)?);
/// let run = model.run(&tokens, &Plan::new().tap(Site::ResidPost(2)))?;
/// let error = (residual.sum() - run.get(Site::ResidPost(2))?).abs().max();
/// assert!(error.double_value(&[]) < 1e-4); // the terms sum to the stream
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug)]
pub struct Residual<'a> {
    model: &'a Model,
    tokens: Tokens,
    terms: Vec<Term>,
    /// `[term, batch, position, d_model]`.
    values: Tensor,
    /// The divisor of the final norm, `[batch, position, 1]`, if there is such a norm.
    scale: Option<Tensor>,
    /// Whether each entry is a whole stream, instead of a term of one.
    whole: bool,
    normalised: bool,
    provenance: Provenance,
}

/// How does the residual stream grow? The stream that enters each block (`resid_pre.LAYER`), and the one that leaves the
/// last (`resid_post.LAYER`); TransformerLens' `accumulated_resid`. Its `apply_ln` normalises each depth by its own
/// statistics, as [`Lens`](super::Lens) does; [`Residual::normalised`] has the divisor of the run's last stream for all.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?; // 3 layers
/// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
/// let depths = accumulated_residual(&model, &tokens)?;
/// assert_eq!(depths.values().size(), [4, 1, 5, 32]);
/// assert_eq!(depths.last().size(), [4, 1, 32]); // at each prompt's last token
/// let curve = depths.logits(3)?.filtered(|row| row.keys.position == Some(4))?.curve("layer")?;
/// # assert_eq!(curve.len(), 4);
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// If the tokens do not fit the model, or the vectors do not fit in memory.
pub fn accumulated_residual<'a>(model: &'a Model, tokens: &Tokens) -> Result<Residual<'a>> {
    let layers = model.config().n_layers;
    let depths: Vec<Site> = (0..layers).map(Site::ResidPre).chain([Site::ResidPost(layers - 1)]).collect();
    room(model, tokens, depths.len())?;
    let run = run(model, tokens, &depths)?;
    let values = depths.iter().map(|site| run.get(*site)).collect::<Result<Vec<_>>>()?;
    let terms = depths.iter().map(|site| Term::new(site.kind(), site.layer())).collect();
    Residual::new(model, tokens, &run, terms, Tensor::stack(&values, 0), true)
}

/// What does each head of a layer add to the residual stream? `[batch, position, head, d_model]`, without the bias of the
/// output projection. Where a norm follows attention within the block, its divisor is that of the run, and where sub-layers
/// are scaled, so are heads: the heads and the biases of [`Residual`] sum to what attention adds.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let heads = head_results(&model, &Tokens::new(&[vec![5, 6, 7, 8, 9]])?, 1)?;
/// assert_eq!(heads.size(), [1, 5, 4, 32]);
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// If the tokens do not fit the model, or it has no such layer.
pub fn head_results(model: &Model, tokens: &Tokens, layer: usize) -> Result<Tensor> {
    model.one_sequence("`head_results` (a plan can tap `result` of any)")?;
    let mut sites = vec![Site::Z(layer), Site::AttnOut(layer), Site::Ln1PostScale(layer)];
    sites[0].check(model.config())?;
    sites.retain(|site| site.check(model.config()).is_ok());
    let run = model.run(tokens, &Plan::new().taps(sites))?;
    let like = run.get(Site::AttnOut(layer))?;
    let mut found = None;
    tch::no_grad(|| {
        of_attention(model, &run, layer, &Tensor::shallow_clone, &mut |written| {
            if written.term.site == "result" {
                found = Some(written.vectors(like));
            }
            Ok(())
        })
    })?;
    found.ok_or(Error::NotTapped { site: Site::Result(layer), tapped: vec![] })
}

/// A run that records `sites` and the divisor of the final norm.
fn run(model: &Model, tokens: &Tokens, sites: &[Site]) -> Result<Run> {
    model.one_sequence("the terms of a residual stream")?;
    let last = [Site::LnFinalScale].into_iter().filter(|site| site.check(model.config()).is_ok());
    model.run(tokens, &Plan::new().taps(sites.iter().copied().chain(last)))
}

/// Fails if `terms` vectors for each token do not fit in memory. They are held twice while they are gathered.
fn room(model: &Model, tokens: &Tokens, terms: usize) -> Result<()> {
    let each = tokens.batch() * tokens.positions() * model.config().d_model * model.kind().elt_size_in_bytes();
    take::fits("terms", terms, 2 * each)
}

impl<'a> Residual<'a> {
    /// The terms of the last residual stream: embeddings, what each head writes, what each MLP writes, biases of attention.
    /// Where a norm follows attention within the block, heads are scaled by its divisor in the run.
    ///
    /// # Errors
    /// If the tokens do not fit the model, if its streams are not sums of what components write (post-norm models such as
    /// BERT), or if the vectors do not fit in memory.
    pub fn of(model: &'a Model, tokens: &Tokens) -> Result<Self> {
        Self::at(model, tokens, Site::ResidPost(model.config().n_layers - 1))
    }

    /// The terms of the stream at `site`: `resid_pre`, `resid_mid` or `resid_post` of a layer.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let names = |residual: Residual| residual.terms().iter().map(ToString::to_string).collect::<Vec<_>>();
    /// let first = names(Residual::at(&model, &tokens, Site::ResidMid(0))?);
    /// assert_eq!(first, ["embed", "pos_embed", "result.0.0", "result.0.1", "result.0.2", "result.0.3", "attn_bias.0"]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Residual::of`], and if the site is another one.
    pub fn at(model: &'a Model, tokens: &Tokens, site: Site) -> Result<Self> {
        check(model)?;
        let mut sites = sites(model, site)?;
        let config = model.config();
        room(model, tokens, 4 + config.n_layers * (config.n_heads + 3))?;
        sites.push(site);
        let run = run(model, tokens, &sites)?;
        let stream = run.get(site)?;
        let (mut terms, mut values) = (vec![], vec![]);
        tch::no_grad(|| {
            each_term(model, &run, site, Tensor::shallow_clone, |written| {
                let vectors = written.vectors(stream);
                match vectors.dim() == stream.dim() {
                    true => {
                        terms.push(written.term);
                        values.push(vectors);
                    }
                    false => {
                        for (head, vectors) in vectors.unbind(2).into_iter().enumerate() {
                            terms.push(Term { head: Some(head), ..written.term.clone() });
                            values.push(vectors);
                        }
                    }
                }
                Ok(())
            })
        })?;
        Self::new(model, tokens, &run, terms, Tensor::stack(&values, 0), false)
    }

    fn new(
        model: &'a Model,
        tokens: &Tokens,
        run: &Run,
        terms: Vec<Term>,
        values: Tensor,
        whole: bool,
    ) -> Result<Self> {
        let scale = run.get(Site::LnFinalScale).ok().map(Tensor::shallow_clone);
        let what = if whole { "accumulated residual stream" } else { "terms of the residual stream" };
        let provenance = model.provenance(serde_json::json!({"what": what, "tokens": tokens.provenance()}), None)?;
        Ok(Self { model, tokens: tokens.clone(), terms, values, scale, whole, normalised: false, provenance })
    }

    /// What the vectors are, in the order of [`values`](Self::values).
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The vectors, `[term, batch, position, d_model]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// The vectors of one term by its name, such as `result.2.5` or `mlp_out.0`: `[batch, position, d_model]`.
    ///
    /// # Errors
    /// If there is no such term.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let names: Vec<String> = self.terms.iter().map(Term::to_string).collect();
        match names.iter().position(|known| known == name) {
            Some(number) => Ok(self.values.get(number as i64)),
            None => Err(Error::argument("term", format!("one of {}", names.join(", ")), name)),
        }
    }

    /// The vectors at one position, `[term, batch, d_model]`.
    ///
    /// # Errors
    /// If no prompt has this position.
    pub fn position(&self, position: usize) -> Result<Tensor> {
        let (found, limit) = (position as i64, self.tokens.positions() as i64);
        if found >= limit {
            return Err(Error::OutOfRange { at: "residual stream".into(), axis: "position", found, limit });
        }
        Ok(self.values.select(2, found))
    }

    /// The vectors at each prompt's last token, `[term, batch, d_model]`.
    pub fn last(&self) -> Tensor {
        self.values.flatten(1, 2).index_select(1, &self.tokens.last_places().to_device(self.values.device()))
    }

    /// The sum of all terms, `[batch, position, d_model]`: the stream, if these are the terms of one.
    pub fn sum(&self) -> Tensor {
        self.values.sum_dim_intlist([0i64].as_slice(), false, None::<Kind>)
    }

    /// The vectors after the final norm, with its divisor in the run for all of them: `t / s * gamma`, where t is centred if
    /// the norm is a LayerNorm. The norm's bias becomes the term `ln_final_bias`, so that the terms of the last stream sum
    /// to what the unembedding reads; to whole streams it is added. Without a final norm nothing changes.
    ///
    /// # Errors
    /// If the vectors are normalised already.
    pub fn normalised(&self) -> Result<Self> {
        if self.normalised {
            return Err(Error::argument("residual", "vectors that are not normalised yet", "normalised ones"));
        }
        let (mut terms, mut values) = (self.terms.clone(), self.values.shallow_clone());
        tch::no_grad(|| {
            let Some(scale) = &self.scale else { return };
            values = centred(self.model.config().norm, &values) / scale;
            let Some((gamma, beta)) = self.model.final_norm_weights() else { return };
            values = &values * gamma;
            match beta {
                Some(beta) if self.whole => values = &values + beta,
                Some(beta) => {
                    terms.push(Term::new("ln_final_bias", None));
                    values = Tensor::cat(&[values.shallow_clone(), beta.expand_as(&values.narrow(0, 0, 1))], 0);
                }
                None => {}
            }
        });
        let (model, tokens) = (self.model, self.tokens.clone());
        let (scale, provenance) = (self.scale.as_ref().map(Tensor::shallow_clone), self.provenance.clone());
        Ok(Self { model, tokens, terms, values, scale, whole: self.whole, normalised: true, provenance })
    }

    /// How long is each vector? Its Euclidean norm, one row for each term, prompt and position.
    ///
    /// # Errors
    /// If polars rejects the table.
    pub fn norms(&self) -> Result<Table> {
        let norms =
            tch::no_grad(|| self.values.square().sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>).sqrt());
        self.table("norm", None, &self.terms, &norms)
    }

    /// How far does each vector reach along a direction? Its component along `direction`, which is taken as a unit vector;
    /// one row for each term, prompt and position.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
    /// let w_e = model.parameters()[0].1; // [vocab, d_model]
    /// let table = Residual::of(&model, &tokens)?.projection(&(w_e.get(3) - w_e.get(4)))?;
    /// assert_eq!(table.columns(), ["prompt", "layer", "site", "head", "position", "metric", "value"]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the direction is not `[d_model]`, or zero.
    pub fn projection(&self, direction: &Tensor) -> Result<Table> {
        let width = self.model.config().d_model as i64;
        if direction.size() != [width] {
            let (at, expected) = ("direction".to_owned(), format!("[d_model = {width}]"));
            return Err(Error::Shape { at, expected, found: direction.size() });
        }
        let direction = direction.detach().to_device(self.values.device()).to_kind(self.values.kind());
        let length = direction.square().sum(None::<Kind>).sqrt().double_value(&[]);
        if !(length > 0.0 && length.is_finite()) {
            return Err(Error::argument("direction", "one of finite length above 0", length));
        }
        let along = tch::no_grad(|| self.values.matmul(&(direction / length)));
        self.table("projection", None, &self.terms, &along)
    }

    /// What does each vector add to the logit of `answer`, directly? Read through the final norm, with its divisor in the
    /// run, and the unembedding, at every position: one row for each term, prompt and position. The bias of the
    /// unembedding is the term `unembed_bias`, and is added to whole streams. The rows of one position sum to the logit,
    /// before it is capped.
    ///
    /// # Errors
    /// If the answer does not fit the model, or logits are not linear in the normalised stream.
    pub fn logits(&self, answer: impl Into<Answer>) -> Result<Table> {
        if !self.normalised {
            return self.normalised()?.logits(answer);
        }
        let config = self.model.config();
        let linear = || {
            Error::argument("model", "one whose logits are linear in the normalised residual stream", &config.family)
        };
        if !config.has_logits() {
            return Err(linear());
        }
        let ids =
            Tensor::from_slice(&answer.into().ids(self.model, self.tokens.batch())?).to_device(self.model.device());
        let (terms, logits) = tch::no_grad(|| {
            let (direction, bias) = self.model.logit_directions(&ids).ok_or_else(linear)?;
            let along =
                (&self.values * direction.unsqueeze(1)).sum_dim_intlist([-1i64].as_slice(), false, None::<Kind>);
            let (bias, mut terms) = (bias.unsqueeze(1), self.terms.clone());
            if self.whole {
                return Ok::<_, Error>((terms, along + bias));
            }
            terms.push(Term::new("unembed_bias", None));
            let bias = bias.expand_as(&along.get(0)).unsqueeze(0);
            Ok((terms, Tensor::cat(&[along, bias], 0)))
        })?;
        self.table("logit", Some("logits"), &terms, &logits)
    }

    /// A row for each number of `[term, batch, position]`; padding has none.
    fn table(&self, metric: &str, unit: Option<&str>, terms: &[Term], numbers: &Tensor) -> Result<Table> {
        let numbers = numbers.to_kind(Kind::Double).to_device(tch::Device::Cpu).contiguous().flatten(0, -1);
        let numbers = Vec::<f64>::try_from(numbers).map_err(Error::torch("reading a residual stream"))?;
        let (lengths, positions) = (self.tokens.lengths(), self.tokens.positions());
        let number = |n: usize| u32::try_from(n).ok();
        let mut rows = Vec::with_capacity(numbers.len());
        for (place, value) in numbers.into_iter().enumerate() {
            let (term, prompt, position) =
                (place / (lengths.len() * positions), place / positions % lengths.len(), place % positions);
            if position < lengths[prompt] {
                let keys = Keys { prompt: number(prompt), position: number(position), ..terms[term].keys() };
                let unit = unit.map(str::to_owned);
                rows.push(Observation { keys, metric: metric.to_owned(), value, unit, ..Observation::default() });
            }
        }
        Table::new(rows, self.provenance.clone())
    }
}
