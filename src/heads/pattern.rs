//! How does a given attention pattern score? Dense tensor operations, with one contraction for all scores that are edge
//! weights.

use ndarray::{Array2, Array3};
use tch::{Device, Kind, Tensor};

use super::score::{PatternScore, Prompt};
use crate::error::{Error, Result};

/// The largest offset considered for a head's favourite.
pub(super) const REACH: usize = 16;

/// The scores' weights on a batch of prompts: computed once, then applied to the pattern of every layer.
///
/// ```
/// use headscope::heads::{PatternScore, Prompt, Targets};
/// use tch::{Kind, Tensor};
/// // A head that always attends to the previous token (the first token attends to itself).
/// let pattern = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]).view([1, 1, 3, 3]);
/// let scores = [PatternScore::PreviousToken, PatternScore::Distance];
/// let targets = Targets::new(&scores, &[Prompt::new(&[5, 6, 7], true)], Kind::Double, tch::Device::Cpu)?;
/// let measured = targets.measure(&pattern)?;
/// assert_eq!(measured.value[[0, 0, 0]], 1.0);
/// assert_eq!(measured.uniform[[0, 0]], (1.0 / 2.0 + 1.0 / 3.0) / 2.0);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug)]
pub struct Targets {
    scores: Vec<PatternScore>,
    /// The weights of the edges, divided by the number of queries that count: `[batch, score, query * key]`.
    weights: Tensor,
    /// The variance that shuffling a query's attention adds to a score, per unit of the attention's own spread:
    /// `[batch, score, query]`.
    spread: Tensor,
    /// One over the number of keys that a query sees, `[batch, 1, query]`.
    share: Tensor,
    /// At queries that see more than one key, one over the number of such queries; 0 elsewhere, `[batch, 1, query]`.
    choice: Tensor,
    /// The scores of uniform attention, `[batch, score]`; NaN if no query of the prompt counts.
    uniform: Array2<f64>,
    /// How often uniform attention falls on each offset, `[batch, offset]`.
    uniform_offsets: Array2<f64>,
}

/// The scores of the heads of one layer, prompt by prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// The scores, `[batch, head, score]`; NaN if no query of the prompt counts.
    pub value: Array3<f64>,
    /// Their variances when the attention of every query is shuffled over the keys that it sees, `[batch, head,
    /// score]`.
    pub shuffled: Array3<f64>,
    /// The scores of uniform attention over the keys seen, `[batch, score]`; also the means over shuffles.
    pub uniform: Array2<f64>,
    /// How often the key of largest weight is at each offset from its query, -16 to 16: `[batch, head, offset]`.
    pub offsets: Array3<f64>,
}

/// The sums behind the weights, from one pass over the edges of a prompt.
struct Walk {
    weights: Vec<f64>,
    spread: Vec<f64>,
    uniform: f64,
}

impl Targets {
    /// Prepares `scores` on `prompts`, for patterns of the given type on the given device. Prompts are padded on the
    /// right to the longest.
    ///
    /// # Errors
    /// If there are no scores or no prompts, or the offset of a score is 0.
    pub fn new(scores: &[PatternScore], prompts: &[Prompt], kind: Kind, device: Device) -> Result<Self> {
        scores.iter().try_for_each(|score| score.validate())?;
        let longest = prompts.iter().map(Prompt::len).max().unwrap_or(0);
        if scores.is_empty() || longest == 0 {
            let found = format!("{} scores and {} prompts", scores.len(), prompts.len());
            return Err(Error::argument("scores, prompts", "at least one score, and a prompt with a token", found));
        }
        let (mut weights, mut spread) = (vec![], vec![]);
        let mut uniform = Array2::from_elem((prompts.len(), scores.len()), f64::NAN);
        for (b, prompt) in prompts.iter().enumerate() {
            for (s, &score) in scores.iter().enumerate() {
                let walk = walk(score, prompt, longest);
                weights.extend(walk.weights);
                spread.extend(walk.spread);
                uniform[[b, s]] = walk.uniform;
            }
        }
        let tensor =
            |values: &[f64], shape: &[i64]| Tensor::from_slice(values).view(shape).to_kind(kind).to_device(device);
        let (batch, n, n_scores) = (prompts.len() as i64, longest as i64, scores.len() as i64);
        let each = |of: &dyn Fn(&Prompt, usize) -> f64| {
            let queries = prompts.iter().flat_map(|prompt| (0..longest).map(move |q| (prompt, q)));
            queries.map(|(prompt, q)| if q < prompt.len() { of(prompt, q) } else { 0.0 }).collect::<Vec<f64>>()
        };
        Ok(Self {
            scores: scores.to_vec(),
            weights: tensor(&weights, &[batch, n_scores, n * n]),
            spread: tensor(&spread, &[batch, n_scores, n]),
            share: tensor(&each(&|prompt, q| 1.0 / prompt.seen(q) as f64), &[batch, 1, n]),
            choice: tensor(&each(&choice), &[batch, 1, n]),
            uniform,
            uniform_offsets: uniform_offsets(prompts),
        })
    }

    /// Scores the pattern of a layer.
    ///
    /// # Shapes
    /// `pattern` is `[batch, head, query, key]`, for the prompts that the targets were made for.
    ///
    /// # Errors
    /// If the shape is a different one.
    pub fn measure(&self, pattern: &Tensor) -> Result<Measured> {
        let (batch, n_scores) = self.uniform.dim();
        let n = self.choice.size()[2];
        let heads = match *pattern.size().as_slice() {
            [b, heads, q, k] if (b, q, k) == (batch as i64, n, n) => heads,
            _ => {
                let expected = format!("[batch = {batch}, head, query = {n}, key = {n}]");
                return Err(Error::Shape { at: "pattern".into(), expected, found: pattern.size() });
            }
        };
        let torch = || Error::torch("scoring a pattern");
        let pattern = &pattern.to_kind(self.weights.kind());
        let last = [-1i64].as_slice();
        let value = pattern.flatten(2, 3).f_matmul(&self.weights.transpose(1, 2)).map_err(torch())?;
        // The spread of a query's attention: the sum of squares about the mean of its weights, which sum to 1.
        let own = pattern.square().sum_dim_intlist(last, false, None) - &self.share;
        let shuffled = own.clamp_min(0.0).f_matmul(&self.spread.transpose(1, 2)).map_err(torch())?;
        let shape = (batch, heads as usize, n_scores);
        let (mut value, shuffled) = (to_array(&value, shape)?, to_array(&shuffled, shape)?);
        for (s, score) in self.scores.iter().enumerate() {
            if *score == PatternScore::Entropy {
                let logs = pattern.clamp_min(1e-37).log();
                let entropy = -(logs * pattern).sum_dim_intlist(last, false, None);
                let mean = (entropy * &self.choice).sum_dim_intlist(last, false, None).unsqueeze(-1);
                value.slice_mut(ndarray::s![.., .., s..=s]).assign(&to_array(&mean, (batch, heads as usize, 1))?);
            }
        }
        for ((b, _, s), value) in value.indexed_iter_mut() {
            if self.uniform[[b, s]].is_nan() {
                *value = f64::NAN;
            }
        }
        let offsets = if self.scores.contains(&PatternScore::Positional) {
            to_array(&self.favourites(pattern, heads), (batch, heads as usize, 2 * REACH + 1))?
        } else {
            Array3::zeros((batch, heads as usize, 0))
        };
        Ok(Measured { value, shuffled, uniform: self.uniform.clone(), offsets })
    }

    /// How often the key of largest weight is at each offset, `[batch, head, offset]`.
    fn favourites(&self, pattern: &Tensor, heads: i64) -> Tensor {
        let (batch, _, n) = self.choice.size3().unwrap_or_default();
        let query = Tensor::arange(n, (Kind::Int64, pattern.device()));
        let (_, key) = pattern.max_dim(-1, false);
        let reach = REACH as i64;
        // Offsets out of range fall into a last bin of their own.
        let bin = key - query + reach;
        let bin = bin.where_scalarother(&bin.ge(0).logical_and(&bin.le(2 * reach)), 2 * reach + 1);
        let counts = Tensor::zeros([batch, heads, 2 * reach + 2], (pattern.kind(), pattern.device()));
        counts.scatter_add(2, &bin, &self.choice.expand([batch, heads, n], false)).narrow(2, 0, 2 * reach + 1)
    }

    /// How often uniform attention falls on each offset, `[batch, offset]`.
    pub(super) fn uniform_offsets(&self) -> &Array2<f64> {
        &self.uniform_offsets
    }
}

/// At a query that sees more than one key, one over the number of such queries; 0 elsewhere.
fn choice(prompt: &Prompt, query: usize) -> f64 {
    let forced = usize::from(prompt.seen(0) < 2);
    if prompt.seen(query) < 2 { 0.0 } else { 1.0 / (prompt.len() - forced) as f64 }
}

/// The weights of a score on the edges of one prompt, `[query, key]` of the padded size, and the sums that go with
/// them.
fn walk(score: PatternScore, prompt: &Prompt, padded: usize) -> Walk {
    let mut walk = Walk { weights: vec![0.0; padded * padded], spread: vec![0.0; padded], uniform: 0.0 };
    let mut counted = 0usize;
    for query in 0..prompt.len() {
        let seen = prompt.seen(query);
        let row = &mut walk.weights[query * padded..][..seen];
        row.iter_mut().enumerate().for_each(|(key, weight)| *weight = score.weight(prompt, query, key));
        let mean = row.iter().sum::<f64>() / seen as f64;
        let spread = row.iter().map(|weight| (weight - mean).powi(2)).sum::<f64>();
        if row.iter().all(|weight| *weight == row[0]) {
            row.fill(0.0);
        } else {
            counted += 1;
            walk.uniform += mean;
            walk.spread[query] = spread / (seen - 1) as f64;
        }
        if score == PatternScore::Entropy && seen > 1 {
            counted += 1;
            walk.uniform += (seen as f64).ln();
        }
    }
    let over = counted as f64; // 0 / 0 = NaN is the missing value
    walk.uniform /= over;
    if counted > 0 {
        walk.weights.iter_mut().for_each(|weight| *weight /= over);
        walk.spread.iter_mut().for_each(|spread| *spread /= over * over);
    }
    walk
}

/// How often uniform attention falls on each offset, `[batch, offset]`.
fn uniform_offsets(prompts: &[Prompt]) -> Array2<f64> {
    let mut offsets = Array2::zeros((prompts.len(), 2 * REACH + 1));
    for (b, prompt) in prompts.iter().enumerate() {
        for query in 0..prompt.len() {
            for key in query.saturating_sub(REACH)..prompt.seen(query).min(query + REACH + 1) {
                offsets[[b, key + REACH - query]] += choice(prompt, query) / prompt.seen(query) as f64;
            }
        }
    }
    offsets
}

/// A tensor of three axes as an ndarray, in double precision.
pub(super) fn to_array(tensor: &Tensor, shape: (usize, usize, usize)) -> Result<Array3<f64>> {
    let flat = Vec::<f64>::try_from(tensor.to_kind(Kind::Double).to_device(Device::Cpu).contiguous().flatten(0, -1));
    let flat = flat.map_err(Error::torch("reading scores"))?;
    Array3::from_shape_vec(shape, flat).map_err(|_| Error::Shape {
        at: "scores".into(),
        expected: format!("{shape:?}"),
        found: tensor.size(),
    })
}
