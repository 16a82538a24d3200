//! Which heads of a model do the same on given prompts? The similarity of every pair of heads.

use ndarray::{Array2, Axis, Ix2};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::batches::{batches, prompts, select};
use super::pattern::to_array;
use super::similarity::{DEAD, basis, correlations};
use crate::error::{Error, Result};
use crate::model::{Model, Site, Tokens};
use crate::progress::Progress;
use crate::table::{Keys, Observation, Table};
use crate::tensors::wide;

/// A measure of how alike two heads are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Similarity {
    /// `jensen_shannon`: the distance between their patterns, from 0 (the same) to 1 (never the same key). The mean
    /// over queries and prompts of the Jensen-Shannon divergence, divided by ln 2. Queries that see only one key do not
    /// count.
    JensenShannon,
    /// `cka`: linear CKA of the head outputs z W_O, from 0 to 1 (the same up to rotation, scale and shift). z depends
    /// on an arbitrary choice of basis; the head output does not.
    Cka,
    /// `cca`: the mean canonical correlation of z, from 0 to 1 (the same up to a linear map).
    Cca,
}

impl Similarity {
    /// The name of the measure in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::JensenShannon => "jensen_shannon",
            Self::Cka => "cka",
            Self::Cca => "cca",
        }
    }
}

/// Which heads do the same? One row per pair of heads: `from_layer`, `from_head` (the earlier one), `layer`, `head`.
///
/// A head that is dead on these prompts (its output is the same at every position) has no CKA or CCA; the values are
/// missing.
///
/// ```
/// use headscope::heads::{Similarity, similarity};
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = model.tokens(&["the cat sat on the mat", "a dog ran in the park"])?;
/// let pairs = similarity(&model, &tokens, Similarity::JensenShannon)?;
/// assert_eq!(pairs.len(), 12 * 11 / 2);
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// As [`similarity_matrix`].
pub fn similarity(model: &Model, tokens: &Tokens, measure: Similarity) -> Result<Table> {
    let matrix = similarity_matrix(model, tokens, measure)?;
    let heads = model.config().n_heads;
    let number = |n: usize| u32::try_from(n).ok();
    let row = |(a, b): (usize, usize)| {
        let (from_layer, from_head) = (number(a / heads), number(a % heads));
        let keys = Keys { from_layer, from_head, layer: number(b / heads), head: number(b % heads), ..Keys::default() };
        Observation { keys, metric: measure.name().to_owned(), value: matrix[[a, b]], ..Observation::default() }
    };
    let pairs = (0..matrix.nrows()).flat_map(|a| (a + 1..matrix.nrows()).map(move |b| (a, b)));
    let what = serde_json::json!({"what": "similarity", "measure": measure, "tokens": tokens.provenance()});
    Table::new(pairs.map(row).collect(), model.provenance(what, None)?)
}

/// [`similarity`] as a symmetric matrix over heads, numbered layer * heads + head. NaN for dead heads.
///
/// # Shapes
/// `[head, head]`.
///
/// # Errors
/// If a token does not fit the model, no query sees more than one key or, for CCA, there are at most `2 d_head`
/// positions.
pub fn similarity_matrix(model: &Model, tokens: &Tokens, measure: Similarity) -> Result<Array2<f64>> {
    match measure {
        Similarity::JensenShannon => divergences(model, tokens),
        Similarity::Cka => alignments(model, tokens),
        Similarity::Cca => mean_correlations(model, tokens),
    }
}

/// Jensen-Shannon divergences of the patterns, divided by ln 2.
fn divergences(model: &Model, tokens: &Tokens) -> Result<Array2<f64>> {
    let torch = || Error::torch("comparing patterns");
    let config = model.config();
    let n = config.n_layers * config.n_heads;
    let all = prompts(model, tokens)?;
    let counted = all.iter().filter(|prompt| prompt.len() > 1).count();
    if counted == 0 {
        return Err(Error::argument("tokens", "a prompt of two tokens or more", "none"));
    }
    let mut sums = Array2::zeros((n, n));
    let mut progress = Progress::new("prompts", tokens.batch());
    for number in batches(model, tokens).into_iter().flatten() {
        let (prompt, length) = (&all[number], all[number].len());
        progress.add(1);
        if length < 2 {
            continue;
        }
        // Only edges that can carry attention, of the queries that see more than one key.
        let forced = usize::from(prompt.seen(0) < 2);
        let edges =
            (forced..length).flat_map(|query| (0..prompt.seen(query)).map(move |key| (query * length + key) as i64));
        let edges = Tensor::from_slice(&edges.collect::<Vec<i64>>()).to_device(model.device());
        let mut patterns = vec![];
        model.each_layer(&select(tokens, &[number])?, &[Site::Pattern], |layer, run| {
            let pattern = run.get(Site::Pattern(layer))?.to_kind(wide(model.kind()));
            patterns.push(pattern.squeeze_dim(0).flatten(1, 2).index_select(1, &edges));
            Ok(())
        })?;
        let patterns = Tensor::cat(&patterns, 0); // [head, edge]
        let entropy = |p: &Tensor| -(p.clamp_min(1e-37).log() * p).sum_dim_intlist([1i64].as_slice(), false, None);
        let own = entropy(&patterns);
        for a in 0..n {
            let others = patterns.narrow(0, a as i64, (n - a) as i64);
            let between = others.f_add(&others.get(0)).map_err(torch())? * 0.5;
            let half = (own.narrow(0, a as i64, (n - a) as i64) + own.get(a as i64)) * 0.5;
            let row = (entropy(&between) - half).clamp_min(0.0) / ((length - forced) as f64 * 2f64.ln());
            for (b, value) in to_array(&row, (1, 1, n - a))?.iter().enumerate() {
                sums[[a, a + b]] += value.min(1.0) / counted as f64;
            }
        }
    }
    Ok(symmetric(sums))
}

/// z of every head at every real position, `[position, head, d_head]` per layer, in double precision.
fn gathered(model: &Model, tokens: &Tokens) -> Result<Vec<Tensor>> {
    let mut layers: Vec<Vec<Tensor>> = (0..model.config().n_layers).map(|_| vec![]).collect();
    for numbers in batches(model, tokens) {
        let some = select(tokens, &numbers)?;
        let valid = some.valid(model.device()).flatten(0, 1).nonzero().squeeze_dim(1);
        model.each_layer(&some, &[Site::Z], |layer, run| {
            let z = run.get(Site::Z(layer))?.flatten(0, 1).index_select(0, &valid);
            layers[layer].push(z.to_kind(Kind::Double));
            Ok(())
        })?;
    }
    Ok(layers.iter().map(|pieces| Tensor::cat(pieces, 0)).collect())
}

/// Linear CKA of z W_O, computed in d_head dimensions: with C the cross-covariance of two heads' z, and G = W_O W_O^T,
/// |(z W_O)^T (z' W_O')|_F^2 = <C, G C G'>.
fn alignments(model: &Model, tokens: &Tokens) -> Result<Array2<f64>> {
    let torch = || Error::torch("comparing what heads write");
    let config = model.config();
    let (n, d) = ((config.n_layers * config.n_heads) as i64, config.d_head as i64);
    let z = Tensor::cat(&gathered(model, tokens)?, 1); // [position, head, d_head]
    let moving = &z - z.mean_dim([0i64].as_slice(), true, None);
    let grams: Result<Vec<Tensor>> = (0..config.n_layers)
        .map(|layer| {
            let w = model.w_o(layer)?.to_kind(Kind::Double);
            w.f_matmul(&w.transpose(1, 2)).map_err(torch())
        })
        .collect();
    let grams = Tensor::cat(&grams?, 0); // [head, d_head, d_head]
    let flat = moving.flatten(1, 2);
    let mut squares = Array2::zeros((n as usize, n as usize));
    for a in 0..n {
        let cross = moving.select(1, a).tr().f_matmul(&flat).map_err(torch())?; // [d_head, head * d_head]
        let cross = cross.view([d, n, d]).transpose(0, 1); // [head, d_head, d_head]
        let mapped = grams.get(a).f_matmul(&cross).and_then(|x| x.f_matmul(&grams)).map_err(torch())?;
        let row = (cross * mapped).sum_dim_intlist([1i64, 2].as_slice(), false, None);
        squares
            .row_mut(a as usize)
            .assign(&to_array(&row, (1, 1, n as usize))?.index_axis(Axis(0), 0).index_axis(Axis(0), 0));
    }
    let size = |x: &Tensor| -> Result<Vec<f64>> {
        let size = (x.permute([1, 0, 2]).f_matmul(&outputs(model)?).map_err(torch())?).square();
        let size = size.sum_dim_intlist([1i64, 2].as_slice(), false, None).sqrt();
        Ok(to_array(&size, (1, 1, n as usize))?.into_iter().collect())
    };
    let (whole, moves) = (size(&z)?, size(&moving)?);
    let dead = |a: usize| moves[a] <= DEAD * whole[a];
    let value = |(a, b): (usize, usize)| match dead(a) || dead(b) {
        true => f64::NAN,
        false => (squares[[a, b]] / (squares[[a, a]] * squares[[b, b]]).sqrt()).clamp(0.0, 1.0),
    };
    Ok(symmetric(Array2::from_shape_fn((n as usize, n as usize), value)))
}

/// The output matrices of all heads, `[head, d_head, d_model]`, in double precision.
fn outputs(model: &Model) -> Result<Tensor> {
    let all: Result<Vec<Tensor>> = (0..model.config().n_layers).map(|layer| model.w_o(layer)).collect();
    Ok(Tensor::cat(&all?, 0).to_kind(Kind::Double))
}

/// The mean canonical correlations of z.
fn mean_correlations(model: &Model, tokens: &Tokens) -> Result<Array2<f64>> {
    let config = model.config();
    let positions: usize = tokens.lengths().iter().sum();
    if positions <= 2 * config.d_head {
        return Err(Error::argument(
            "tokens",
            format!("more than {} positions in all, twice d_head", 2 * config.d_head),
            positions,
        ));
    }
    let mut bases = vec![];
    for layer in gathered(model, tokens)? {
        for head in 0..config.n_heads {
            let z = to_array(&layer.select(1, head as i64), (1, positions, config.d_head))?;
            let z = z.index_axis_move(Axis(0), 0).into_dimensionality::<Ix2>();
            let z = z.map_err(|_| Error::Shape {
                at: "z".into(),
                expected: "[position, d_head]".into(),
                found: layer.size(),
            })?;
            bases.push(basis(z.view())?);
        }
    }
    let pair = |(a, b): (usize, usize)| match (&bases[a], &bases[b]) {
        (Some(x), Some(y)) => {
            let values = correlations(x, y)?;
            Ok(((a, b), values.iter().sum::<f64>() / values.len() as f64))
        }
        _ => Ok(((a, b), f64::NAN)),
    };
    let pairs: Vec<(usize, usize)> = (0..bases.len()).flat_map(|a| (a..bases.len()).map(move |b| (a, b))).collect();
    let values: Vec<((usize, usize), f64)> = pairs.into_par_iter().map(pair).collect::<Result<_>>()?;
    let mut matrix = Array2::zeros((bases.len(), bases.len()));
    values.into_iter().for_each(|(place, value)| matrix[place] = value);
    Ok(symmetric(matrix))
}

/// Mirrors the upper triangle.
fn symmetric(matrix: Array2<f64>) -> Array2<f64> {
    Array2::from_shape_fn(matrix.dim(), |(a, b)| matrix[[a.min(b), a.max(b)]])
}
