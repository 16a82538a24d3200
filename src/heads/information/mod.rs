//! What do heads tell about the tokens around them, and about each other?

mod coordinates;
mod options;
mod places;
mod rank;
mod together;

use ndarray::{Array1, Array2, Axis, s};
use rayon::prelude::*;
use tch::Tensor;

pub use options::{HeadEstimator, InformationOptions, Source, Target, TokenLabels};
pub use rank::rank_survival;
pub use together::{layer_information, pair_information};

use super::align::Aligned;
use super::annotation::Annotated;
use crate::error::{Error, Result};
use crate::information::{
    Estimate, Estimator, GaussianOptions, ProbeOptions, Warning, discrete_information, mutual_information,
    v_information, v_information_of_labels,
};
use crate::model::{Model, Site, Tokens};
use crate::neural::{NeuralOptions, neural_information, neural_information_of_labels, one_hot};
use crate::progress::Progress;
use crate::table::{Keys, Observation, Table};
use coordinates::{Coordinates, capacity};
use places::{Labels, Places};

/// What does each head (and each layer) tell about the previous token, the current token, the next token, the position,
/// a role, or another head?
///
/// In nats, one row per source, number of dimensions and target: metric `information`, with its interval, `samples`,
/// and reasons to doubt the value in `warnings`.
///
/// # What the numbers mean
/// A head's output is a deterministic function of the tokens. With continuous outputs and no noise it therefore
/// "contains" all of them, however little of that a later layer can use; such numbers are artefacts of bins or
/// neighbours. Three quantities are finite and meaningful:
/// - [`HeadEstimator::Vinfo`]: what a probe can use (V-information; Xu et al. 2020), on held-out samples.
/// - Information with noise: the source is scaled to a mean power of 1 per dimension, and Gaussian noise of standard
///   deviation sigma is added, so that k dimensions carry at most `k/2 ln(1 + 1/sigma^2)`, given in rows of metric
///   `capacity`. Compare only numbers with the same sigma. Without noise, rows of all other estimators carry a warning.
/// - The number of dimensions that it takes ([`InformationOptions::dimensions`]), and what survives in them
///   ([`rank_survival`]).
///
/// Rows of metric `entropy` give all there is to know about each target. If shuffles are requested, rows of metric
/// `p_value` give how often shuffled labels score as high. If the estimator fails on a head, the value is missing, and
/// `warnings` has the reason. The intervals treat positions as independent samples, which positions of one prompt are
/// not: prefer many short prompts to a few long ones.
///
/// The dimensions of a source are its leading principal coordinates over the sampled positions.
///
/// # Errors
/// If a token does not fit the model, an option is invalid, or a target has fewer than two labels with ten positions
/// each.
///
/// ```
/// use headscope::heads::{InformationOptions, Source, Target, head_information};
/// use headscope::prelude::*;
/// let model = Model::load("induction")?; // small, bundled
/// let tokens = Tokens::new(&(0..40).map(|i| (0..20).map(|j| 1 + (i * 7 + j * (3 + i % 5)) % 11).collect()).collect::<Vec<_>>())?;
/// let options = InformationOptions { targets: vec![Target::PreviousToken], layers: false, ..InformationOptions::default() };
/// let table = head_information(&model, &tokens, &options)?;
/// assert_eq!(table.largest("value", 1)?.columns(), table.columns());
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn head_information(model: &Model, tokens: &Tokens, options: &InformationOptions) -> Result<Table> {
    options.validate()?;
    let asked = Asked::new(model, tokens, options)?;
    let about = &asked.about;
    let mut rows: Vec<Observation> = about.labels.iter().map(|(target, labels)| entropy(*target, labels)).collect();
    let mut progress = Progress::new("layers", model.config().n_layers);
    let other = options.other.map(|(layer, head)| asked.other(layer, head)).transpose()?;
    for layer in 0..model.config().n_layers {
        let parts = asked.parts(layer)?;
        let questions: Vec<PartQuestion> =
            parts.iter().flat_map(|part| about.questions(part, &parts, other.as_ref())).collect();
        let answers: Vec<Vec<Observation>> = match options.estimator {
            // libtorch's tensors stay on this thread, and libtorch has its own threads.
            HeadEstimator::Neural(_) => questions.iter().map(|question| about.answer(question)).collect(),
            _ => questions.par_iter().map(|question| about.answer(question)).collect(),
        };
        rows.extend(answers.into_iter().flatten());
        progress.add(1);
    }
    let what =
        serde_json::json!({"what": "head information", "options": options.provenance(), "tokens": tokens.provenance()});
    Table::new(rows, model.provenance(what, Some(options.seed))?)
}

/// The dependency relation of the word of each token, at the last token of each word of annotated texts. Returns the
/// texts as tokens, and a label per token for [`InformationOptions::labels`].
///
/// # Errors
/// If the model has no tokenizer, or no text fits its context.
pub fn token_roles(model: &Model, annotated: &[Annotated]) -> Result<(Tokens, TokenLabels)> {
    let aligned = Aligned::new(model, annotated)?;
    let labels = aligned.roles(annotated);
    Ok((aligned.tokens, labels))
}

/// One source of one head, or of a whole layer.
struct Part {
    layer: usize,
    head: Option<usize>,
    source: Source,
    coordinates: Coordinates,
}

/// What a question about a part is about.
enum About<'a> {
    Labels(Target, &'a Labels),
    Part(&'a Part),
}

struct PartQuestion<'a> {
    part: &'a Part,
    dimension: usize,
    about: About<'a>,
}

/// The model's activations, and the questions about them.
struct Asked<'a> {
    model: &'a Model,
    /// The activations of each layer and source.
    read: Vec<Vec<Tensor>>,
    about: Asking<'a>,
}

/// The questions, without tensors, so that several threads can share them.
struct Asking<'a> {
    options: &'a InformationOptions,
    labels: Vec<(Target, Labels)>,
}

impl<'a> Asked<'a> {
    fn new(model: &'a Model, tokens: &'a Tokens, options: &'a InformationOptions) -> Result<Self> {
        let places = Places::new(model, tokens, options.samples, options.seed)?;
        let mut targets = options.targets.clone();
        targets.sort();
        targets.dedup();
        targets.retain(|target| *target != Target::Head);
        let labels = targets.into_iter().map(|target| Ok((target, places.labels(target, options)?)));
        let labels = labels.collect::<Result<Vec<_>>>()?;
        let site = |source: &Source| -> fn(usize) -> Site {
            match source {
                Source::Z | Source::O => Site::Z,
                Source::Pattern => Site::Pattern,
            }
        };
        let read = places.read(&options.sources.iter().map(site).collect::<Vec<_>>())?;
        Ok(Self { model, read, about: Asking { options, labels } })
    }

    /// The sources of every head in a layer, and those of the whole layer.
    fn parts(&self, layer: usize) -> Result<Vec<Part>> {
        let heads = self.model.config().n_heads;
        let w_o = self.model.w_o(layer)?;
        let mut parts = vec![];
        for (place, &source) in self.about.options.sources.iter().enumerate() {
            let tensor = &self.read[layer][place];
            let all: Vec<Array2<f64>> =
                (0..heads).map(|head| coordinates::of_head(tensor, source, head, &w_o)).collect::<Result<_>>()?;
            let part = |head: Option<usize>, rows: &Array2<f64>| -> Result<Part> {
                let number = (layer * (heads + 1) + head.map_or(heads, |head| head)) * 3 + source as usize;
                Ok(Part { layer, head, source, coordinates: Coordinates::new(rows.view(), number)? })
            };
            let of_heads = all.par_iter().enumerate().map(|(head, rows)| part(Some(head), rows));
            parts.extend(of_heads.collect::<Result<Vec<Part>>>()?);
            if self.about.options.layers && heads > 1 {
                let views: Vec<_> = all.iter().map(Array2::view).collect();
                let beside = ndarray::concatenate(Axis(1), &views);
                let shape = |_| Error::argument("model", "heads of one width", heads);
                parts.push(part(None, &beside.map_err(shape)?)?);
            }
        }
        Ok(parts)
    }

    /// The head that all others are compared with, in each source.
    fn other(&self, layer: usize, head: usize) -> Result<Vec<Part>> {
        let config = self.model.config();
        for (axis, found, limit) in [("layer", layer, config.n_layers), ("head", head, config.n_heads)] {
            if found >= limit {
                let (found, limit) = (found as i64, limit as i64);
                return Err(Error::OutOfRange { at: "other".into(), axis, found, limit });
            }
        }
        Ok(self.parts(layer)?.into_iter().filter(|part| part.head == Some(head)).collect())
    }
}

impl Asking<'_> {
    /// The numbers of dimensions for which a part is asked.
    fn dimensions(&self, part: &Part) -> Vec<usize> {
        let rank = part.coordinates.rank();
        let mut all: Vec<usize> = self.options.dimensions.iter().map(|&k| k.min(rank)).collect();
        if all.is_empty() {
            all.push(rank.min(self.options.estimator.most_dimensions()));
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn questions<'q>(
        &'q self,
        part: &'q Part,
        parts: &'q [Part],
        other: Option<&'q Vec<Part>>,
    ) -> Vec<PartQuestion<'q>> {
        let labels = self.labels.iter().map(|(target, labels)| About::Labels(*target, labels));
        let mut about: Vec<About> = labels.collect();
        if self.options.targets.contains(&Target::Head) && part.head.is_some() {
            // A probe reads one head from another and so has a direction; the other estimators are symmetric.
            let directed = matches!(self.options.estimator, HeadEstimator::Vinfo(_));
            let same = |to: &Part| to.source == part.source && (to.layer, to.head) != (part.layer, part.head);
            let fits =
                |to: &&Part| to.head.is_some() && same(to) && (other.is_some() || directed || to.head < part.head);
            about.extend(other.map_or(parts, Vec::as_slice).iter().filter(fits).map(About::Part));
        }
        let mut all = vec![];
        for dimension in self.dimensions(part) {
            all.extend(about.iter().map(|about| {
                let about = match about {
                    About::Labels(target, labels) => About::Labels(*target, labels),
                    About::Part(part) => About::Part(part),
                };
                PartQuestion { part, dimension, about }
            }));
        }
        all
    }

    /// The rows that answer a question.
    fn answer(&self, question: &PartQuestion) -> Vec<Observation> {
        let PartQuestion { part, dimension, about } = question;
        let sigma = self.options.sigma();
        let mut keys = Keys {
            method: Some(self.options.estimator.name().to_owned()),
            layer: number(part.layer),
            site: Some(part.source.to_string()),
            head: part.head.and_then(number),
            dimension: number(*dimension),
            ..Keys::default()
        };
        match about {
            About::Labels(target, _) => keys.task = Some(target.to_string()),
            About::Part(other) => {
                keys.task = Some(Target::Head.to_string());
                (keys.from_layer, keys.from_head) = (number(other.layer), other.head.and_then(number));
            }
        }
        let row = |metric: &str, value: f64| Observation {
            keys: keys.clone(),
            metric: metric.to_owned(),
            value,
            unit: (metric != "p_value").then(|| "nats".to_owned()),
            ..Observation::default()
        };
        if part.coordinates.rank() == 0 || matches!(about, About::Part(other) if other.coordinates.rank() == 0) {
            let warnings = Some("dead: the same at every position, so it says nothing".to_owned());
            return vec![Observation { low: Some(0.0), high: Some(0.0), warnings, ..row("information", 0.0) }];
        }
        let mut rows = vec![];
        match self.estimate(part, *dimension, about) {
            Ok(found) => {
                let warnings = found.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                rows.push(Observation {
                    low: found.interval.map(|interval| interval.low),
                    high: found.interval.map(|interval| interval.high),
                    samples: number(found.n),
                    warnings: (!warnings.is_empty()).then_some(warnings),
                    ..row("information", found.nats())
                });
                rows.extend(found.p.map(|p| row("p_value", p)));
            }
            Err(reason) => {
                rows.push(Observation { warnings: Some(reason.to_string()), ..row("information", f64::NAN) });
            }
        }
        if sigma > 0.0 {
            rows.push(row("capacity", capacity(*dimension, sigma)));
        }
        rows
    }

    fn estimate(&self, part: &Part, dimension: usize, about: &About) -> Result<Estimate> {
        let (sigma, seed) = (self.options.sigma(), self.options.seed);
        let x = part.coordinates.leading(dimension, sigma, seed);
        let mut found = match about {
            About::Labels(_, labels) => {
                let (places, known) = labels.known();
                self.of_labels(x.select(Axis(0), &places), &known, labels.classes)?
            }
            About::Part(other) => {
                let k = dimension.min(other.coordinates.rank());
                self.of_numbers(x, other.coordinates.leading(k, sigma, seed))?
            }
        };
        if sigma == 0.0 && !matches!(self.options.estimator, HeadEstimator::Vinfo(_)) {
            found.warnings.push(Warning::Noiseless);
        }
        Ok(found)
    }

    fn of_labels(&self, x: Array2<f64>, labels: &[usize], classes: usize) -> Result<Estimate> {
        let (certainty, seed) = (&self.options.certainty, self.options.seed);
        match &self.options.estimator {
            HeadEstimator::Ksg(options) => {
                let y = Array1::from_iter(labels.iter().map(|&label| label as f64)).insert_axis(Axis(1));
                mutual_information(x.view(), y.view(), &Estimator::Ross(options.clone()), certainty, seed)
            }
            HeadEstimator::Gaussian => {
                let y = one_hot(labels, classes)?; // the first column follows from the others
                let estimator = Estimator::Gaussian(GaussianOptions::default());
                let found = mutual_information(x.view(), y.slice(s![.., 1..]), &estimator, certainty, seed)?;
                Ok(found.below(discrete_information(labels, labels, false)?))
            }
            HeadEstimator::Vinfo(options) => v_information_of_labels(x.view(), labels, &self.probe(options), seed),
            HeadEstimator::Neural(options) => {
                neural_information_of_labels(x.view(), labels, &self.critic(options), seed)
            }
        }
    }

    fn of_numbers(&self, x: Array2<f64>, y: Array2<f64>) -> Result<Estimate> {
        let (certainty, seed) = (&self.options.certainty, self.options.seed);
        let by = |estimator: Estimator| mutual_information(x.view(), y.view(), &estimator, certainty, seed);
        match &self.options.estimator {
            HeadEstimator::Ksg(options) => by(Estimator::Ksg(options.clone())),
            HeadEstimator::Gaussian => by(Estimator::Gaussian(GaussianOptions::default())),
            HeadEstimator::Vinfo(options) => v_information(x.view(), y.view(), &self.probe(options), seed),
            HeadEstimator::Neural(options) => neural_information(x.view(), y.view(), &self.critic(options), seed),
        }
    }

    fn probe(&self, options: &ProbeOptions) -> ProbeOptions {
        let certainty = &self.options.certainty;
        ProbeOptions { level: certainty.level, permutations: certainty.permutations, ..options.clone() }
    }

    fn critic(&self, options: &NeuralOptions) -> NeuralOptions {
        let certainty = &self.options.certainty;
        NeuralOptions { level: certainty.level, permutations: certainty.permutations, ..options.clone() }
    }
}

/// The entropy of a target's labels.
fn entropy(target: Target, labels: &Labels) -> Observation {
    let known = labels.known().1;
    let value = discrete_information(&known, &known, false).unwrap_or(f64::NAN);
    let keys = Keys { task: Some(target.to_string()), ..Keys::default() };
    Observation {
        keys,
        metric: "entropy".into(),
        value,
        unit: Some("nats".into()),
        samples: number(known.len()),
        ..Observation::default()
    }
}

/// A number as a key of a table.
fn number(value: usize) -> Option<u32> {
    u32::try_from(value).ok()
}
