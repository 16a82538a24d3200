//! How does a model continue prompts? Token by token, with cached keys and values, under a plan.

mod choose;
mod text;
mod write;

use serde::{Deserialize, Serialize};

use super::{Model, Plan, Run, Span};
use crate::error::{Error, Result};
use crate::text::Tokens;

/// How to continue the prompts of a batch; created by [`Model::generate`], computed by [`Generation::run`].
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat", "a dog sat on"])?; // lengths may differ
/// let plain = model.generate(&tokens).max_new(5).run()?;
/// assert_eq!(plain.texts().len(), 2);
///
/// // The same with head 2 of layer 1 silent, in the prompts and while the model writes.
/// let plan = Plan::new().edit(Edit::new(Site::Z(1), Action::Zero).head(2));
/// let silent = model.generate(&tokens).max_new(5).plan(&plan).run()?;
/// assert_eq!(silent.continuations[0].ids.len(), 5);
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Batches
/// Each prompt is continued as if it were alone. Prompts of different lengths need no padding: all are read up to the end of
/// the shortest; from then on, a step adds one token to each, which is the next one of a longer prompt and a new one of any
/// other. While every remaining prompt still has tokens to read, a step adds several. A finished prompt leaves the batch.
///
/// # Plans
/// The model writes what it would write if the whole sequence were run under the plan ([`Model::run`]) for each new token.
/// With cached keys and values nothing is computed twice, since what a causal model computes at a position does not depend
/// on later tokens. The exceptions are edits that make it depend on them: those that put weights of later keys into
/// `pattern`, and those that normalise, project or map `scores` or `pattern` along the keys; and rotary positions whose
/// frequencies depend on the length, in texts beyond the original context. Then each prompt is run alone, from the
/// beginning for each token.
///
/// - An edit without positions applies at every position of the [span](Generation::span): by default in the prompt and
///   at every written token.
/// - An edit with positions applies at those, counted from the first token of the prompt, also where the token is yet to be
///   written.
/// - The model does not read the last token that it writes, so there is nothing to edit or record at its position.
/// - An activation of another run ([`Plan::with`]) has a length. An edit that would apply beyond its end is an error:
///   list positions, restrict the edits to the prompts ([`Span::Prompt`]), or give a tensor without a position axis.
///
/// # Steering
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// // The direction from one word to another, at the last position of each.
/// let site = Site::ResidPre(2);
/// let run = model.run(&model.tokens(&["cat", "dog"])?, &Plan::new().tap(site))?;
/// let direction = run.get(site)?.select(1, -1);
/// let direction = direction.get(1) - direction.get(0); // [d_model]
///
/// let steer = Edit::new(site, Action::Add { key: "dog".into(), alpha: 4.0 });
/// let plan = Plan::new().with_tensor("dog", site, &direction).edit(steer);
/// let tokens = model.tokens(&["the cat"])?;
/// model.generate(&tokens).max_new(8).plan(&plan).span(Span::Written).print()?; // to the terminal or the notebook's cell
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use = "nothing is written before `run`, `stream` or `print`"]
pub struct Generation<'a> {
    model: &'a Model,
    tokens: &'a Tokens,
    plan: Option<&'a Plan>,
    span: Span,
    max_new: usize,
    temperature: f64,
    top_k: Option<usize>,
    seed: u64,
    stop: Vec<String>,
    keep_stop: bool,
}

/// What the model has written after one prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuation {
    /// The new tokens, including those of a stop text and an end token.
    pub ids: Vec<i64>,
    /// Their text without special tokens, up to the stop text. Without a tokenizer, the ids in decimal.
    pub text: String,
    /// Why it ends.
    pub ending: Ending,
}

/// Why a continuation ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// It has as many tokens as were asked for.
    MaxNew,
    /// The model has written an end token ([`Origin::end_tokens`](super::Origin::end_tokens)).
    EndToken(i64),
    /// The text contains this stop text.
    Stop(String),
    /// The model's context is full.
    Context,
}

/// One written token, as [`Generation::stream`] shows it.
#[derive(Debug)]
pub struct Piece<'a> {
    /// The prompt that it continues.
    pub prompt: usize,
    /// The token.
    pub id: i64,
    /// The text that it adds; empty while a character is incomplete or the text may be the beginning of a stop text. The pieces of a prompt add up to the text of its continuation.
    pub text: &'a str,
    /// With the last token of a prompt: why there are no more.
    pub ending: Option<&'a Ending>,
}

/// What [`Generation::run`] returns.
#[derive(Debug)]
pub struct Generated {
    /// What was written after each prompt.
    pub continuations: Vec<Continuation>,
    /// What the plan's taps recorded at all tokens that the model has read: those of the prompts and all written ones but
    /// the last. [`Run::tokens`] are these tokens. At `scores`, keys after the query are minus infinity, whatever the edits.
    pub run: Run,
}

impl Generated {
    /// The text written after each prompt.
    pub fn texts(&self) -> Vec<&str> {
        self.continuations.iter().map(|continuation| continuation.text.as_str()).collect()
    }
}

impl Model {
    /// Continues the prompts in `tokens`.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::random(&ModelConfig::default(), 0)?;
    /// let written = model.generate(&Tokens::new(&[vec![1, 2, 3], vec![4]])?).max_new(4).run()?;
    /// assert_eq!(written.continuations[1].ids.len(), 4);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn generate<'a>(&'a self, tokens: &'a Tokens) -> Generation<'a> {
        Generation {
            model: self,
            tokens,
            plan: None,
            span: Span::default(),
            max_new: 50,
            temperature: 0.0,
            top_k: None,
            seed: 0,
            stop: vec![],
            keep_stop: false,
        }
    }
}

impl<'a> Generation<'a> {
    /// At most this many new tokens for each prompt, by default 50. An end token, a stop text or the end of the model's
    /// context stops a prompt earlier.
    pub fn max_new(mut self, tokens: usize) -> Self {
        self.max_new = tokens;
        self
    }

    /// With 0, the default, every token is the likeliest. Above, it is drawn from softmax(logits / temperature).
    pub fn temperature(mut self, temperature: f64) -> Self {
        self.temperature = temperature;
        self
    }

    /// Draws from this many likeliest tokens only.
    pub fn top_k(mut self, tokens: usize) -> Self {
        self.top_k = Some(tokens);
        self
    }

    /// The seed of the drawing, by default 0. Prompt `i` of a batch is drawn with `seed + i`, so that it is continued as alone
    /// with that seed, and copies of one prompt are continued in different ways.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Ends a prompt once what is written after it contains one of these texts, which is cut off. A text may be a special
    /// token, such as `<|im_end|>`.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = model.tokens(&["the cat"])?;
    /// let all = model.generate(&tokens).max_new(20).run()?.texts()[0].to_owned();
    /// let stop = all.chars().nth(3).map(String::from).unwrap_or_default(); // a letter that the model writes
    /// let written = model.generate(&tokens).max_new(20).stop([&stop]).run()?;
    /// assert_eq!(written.texts()[0], all.split(&stop).next().unwrap_or_default());
    /// assert_eq!(written.continuations[0].ending, Ending::Stop(stop));
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn stop(mut self, texts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.stop = texts.into_iter().map(Into::into).collect();
        self
    }

    /// Leaves the stop text at the end of the text.
    pub fn keep_stop(mut self) -> Self {
        self.keep_stop = true;
        self
    }

    /// Edits and records while the model reads and writes. The rules are [above](Generation#plans).
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = model.tokens(&["the cat"])?;
    /// let written = model.generate(&tokens).max_new(5).plan(&Plan::new().tap(Site::Z(0))).run()?;
    /// let read = tokens.positions() as i64 + 4; // all but the last token
    /// assert_eq!(written.run.get(Site::Z(0))?.size(), [1, read, 4, 8]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn plan(mut self, plan: &'a Plan) -> Self {
        self.plan = Some(plan);
        self
    }

    /// Restricts the plan's edits to the prompts, or to the written tokens.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (tokens, others) = (model.tokens(&["the cat"])?, model.tokens(&["the dog"])?);
    /// # let others = Tokens::new(&[others.row(0).iter().copied().cycle().take(tokens.positions()).collect()])?;
    /// // Activation patching: the prompt's residual stream is that of another prompt.
    /// let other = model.run(&others, &Plan::new().tap(Site::ResidPost(1)))?;
    /// let plan = Plan::new().with("other", &other).edit(Edit::new(Site::ResidPost(1), Action::replace("other")));
    /// let patched = model.generate(&tokens).max_new(5).plan(&plan).span(Span::Prompt).run()?;
    /// assert_eq!(patched.continuations[0].ids.len(), 5);
    /// // Beyond the other prompt's end there is nothing to patch with.
    /// assert!(model.generate(&tokens).max_new(5).plan(&plan).run().is_err());
    /// # Ok::<(), headscope::Error>(())
    /// ```
    pub fn span(mut self, span: Span) -> Self {
        self.span = span;
        self
    }

    /// Writes.
    ///
    /// # Errors
    /// If the model is not causal or has no logits, an option makes no sense, a prompt or an edit does not fit the
    /// model, an edit could not apply anywhere or would read an activation beyond its end, there are stop texts but no
    /// tokenizer, or logits are not finite.
    pub fn run(&self) -> Result<Generated> {
        self.stream(|_| {})
    }

    /// [`Generation::run`], showing `each` token as it is written. The tokens of different prompts alternate.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = model.tokens(&["the cat", "a dog"])?;
    /// let mut texts = vec![String::new(); 2];
    /// let written = model.generate(&tokens).max_new(5).stream(|piece| texts[piece.prompt] += piece.text)?;
    /// assert_eq!(texts, written.texts());
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Generation::run`].
    pub fn stream(&self, each: impl FnMut(&Piece<'_>)) -> Result<Generated> {
        write::Writer::new(self)?.write(each)
    }

    /// [`Generation::run`], printing each prompt and its continuation as it is written: on a terminal, and in a notebook
    /// below its cell. Of several prompts the first is shown as it is written, and each next one from when those
    /// before are finished; an empty line stands between them.
    ///
    /// # Errors
    /// As [`Generation::run`].
    pub fn print(&self) -> Result<Generated> {
        self.print_to(&mut std::io::stdout())
    }

    /// [`Generation::print`] to any output.
    ///
    /// # Errors
    /// As [`Generation::run`].
    pub fn print_to(&self, out: &mut impl std::io::Write) -> Result<Generated> {
        let writer = write::Writer::new(self)?;
        let prompts = (0..self.tokens.batch()).map(|prompt| writer.prompt(prompt)).collect::<Result<Vec<_>>>()?;
        let mut turns = text::Turns::new(prompts);
        // A closed output is no reason to lose what is being written.
        let mut print = |text: &str| drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
        print(&turns.begin());
        writer.write(|piece| print(&turns.text(piece)))
    }

    /// Fails if an option makes no sense.
    fn check(&self) -> Result<()> {
        let config = self.model.config();
        if !(config.causal && config.has_logits()) {
            return Err(Error::argument("model", "a causal model with logits, to generate", &config.family));
        }
        self.model.check_tokens(self.tokens)?;
        if self.max_new == 0 {
            return Err(Error::argument("max_new", "at least 1", 0));
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::argument("temperature", "a finite number, at least 0", self.temperature));
        }
        if self.top_k == Some(0) {
            return Err(Error::argument("top_k", "at least 1", 0));
        }
        if self.top_k.is_some() && self.temperature == 0.0 {
            let found = "0, which takes the likeliest token";
            return Err(Error::argument("top_k", "a temperature above 0 with it", found));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::argument("stop", "texts that are not empty", "an empty one"));
        }
        if self.keep_stop && self.stop.is_empty() {
            return Err(Error::argument("keep_stop", "stop texts with it", "none"));
        }
        Ok(())
    }
}
