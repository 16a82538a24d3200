//! Rate and distortion: how much of each feature survives in k dimensions, the best ones or a head's own?

use ndarray::{Array1, Array2, Axis, concatenate, s};
use ndarray_linalg::{Cholesky, Diag, Eigh, SolveTriangular, UPLO};
use rayon::prelude::*;

use super::places::{Places, rows, rows_of};
use super::{InformationOptions, Target, number};
use crate::error::{Error, Result};
use crate::model::{Model, Site, Tokens, Wire, norm_parts};
use crate::stats::{BootstrapMethod, BootstrapOptions, Interval, bootstrap, shuffled};
use crate::table::{Keys, Observation, Table};

/// Ridge penalty of all regressions, in standardised inputs.
const RIDGE: f64 = 1e-3;

/// How much of each feature survives a head's projection to `d_head` dimensions, and how much could?
///
/// The features are the labels of the targets as 0-1 indicators, scaled to the same total variance. A head reads its
/// input x (the residual stream after the norm) as v = x W_V, of rank `d_head`. Linear regressions are fitted on one
/// half of the positions and tested on the other, both ways. A feature's distortion is the share of its variance that
/// is left unexplained; its survival is 1 minus the distortion (R^2):
/// - `survival_own`: the regression on the head's v;
/// - `survival_best`: the regression on the k coordinates of x that best predict all features together, the optimum of
///   reduced-rank regression of rank k (Izenman 1975); one row per layer and k;
/// - `baseline` of both: the regression on all of x.
///
/// If a head keeps what matters for one feature and drops another, its own survival exceeds the best joint one at the
/// same k for the first feature and falls short for the second. A random projection does neither. The values of k are
/// [`InformationOptions::dimensions`], by default the powers of two up to `d_head`; `survival_own` is at k = `d_head`.
/// Query heads that share a key/value head have the same v.
///
/// # Errors
/// If a token does not fit the model, an option is invalid, or a target is another head or has fewer than two labels
/// with ten positions each.
pub fn rank_survival(model: &Model, tokens: &Tokens, options: &InformationOptions) -> Result<Table> {
    options.validate()?;
    if options.targets.contains(&Target::Head) {
        return Err(Error::argument("target", "targets with labels, for what survives a projection", Target::Head));
    }
    let places = Places::new(model, tokens, options.samples, options.seed)?;
    let features = Features::new(&places, options)?;
    let sites: [fn(usize) -> Site; 2] = [Site::ResidPre, Site::V];
    let config = model.config();
    let d_head = config.d_head;
    let mut ranks: Vec<usize> = options.dimensions.clone();
    if ranks.is_empty() {
        ranks = (0..).map(|power| 1 << power).take_while(|k| *k < d_head).chain([d_head]).collect();
    }
    let mut table = vec![];
    for (layer, read) in places.read(&sites)?.iter().enumerate() {
        let mut x = rows(&read[0])?;
        if model.wiring().block(layer).step(Wire::AttnIn).is_some() {
            // The norm's own scale, shift and centring are linear, so the regressions absorb them.
            x /= &rows(&norm_parts(config.norm, &read[0], config.norm_eps).1)?;
        }
        let full = features.survival(&Projection::All, x.view())?;
        let answer = |projection: Projection, x: ndarray::ArrayView2<f64>, head: Option<usize>, k: usize| {
            let survival = features.survival(&projection, x)?;
            let metric = if head.is_some() { "survival_own" } else { "survival_best" };
            let row = |((target, interval), (_, whole)): ((Target, Interval), &(Target, Interval))| Observation {
                keys: Keys {
                    layer: number(layer),
                    site: Some("v".to_owned()),
                    head: head.and_then(number),
                    dimension: number(k),
                    task: Some(target.to_string()),
                    ..Keys::default()
                },
                metric: metric.to_owned(),
                value: interval.estimate,
                baseline: Some(whole.estimate),
                low: Some(interval.low),
                high: Some(interval.high),
                samples: number(x.nrows()),
                ..Observation::default()
            };
            Ok(survival.into_iter().zip(&full).map(row).collect::<Vec<_>>())
        };
        let best: Result<Vec<_>> = ranks.par_iter().map(|&k| answer(Projection::Best(k), x.view(), None, k)).collect();
        table.extend(best?.into_iter().flatten());
        let kv: Vec<Array2<f64>> = (0..config.n_kv_heads).map(|head| rows_of(&read[1], head)).collect::<Result<_>>()?;
        let own: Result<Vec<_>> = (0..config.n_heads)
            .into_par_iter()
            .map(|head| answer(Projection::All, kv[config.kv_head(head)].view(), Some(head), d_head))
            .collect();
        table.extend(own?.into_iter().flatten());
    }
    let what =
        serde_json::json!({"what": "rank survival", "options": options.provenance(), "tokens": tokens.provenance()});
    Table::new(table, model.provenance(what, Some(options.seed))?)
}

/// The part of its input that a regression may use.
enum Projection {
    /// All of it.
    All,
    /// The k coordinates that best predict all features together.
    Best(usize),
}

/// Indicators of the labels of all targets, side by side, and two halves of the places.
struct Features {
    targets: Vec<(Target, std::ops::Range<usize>)>,
    values: Array2<f64>,
    halves: [Vec<usize>; 2],
    level: f64,
    seed: u64,
}

impl Features {
    fn new(places: &Places, options: &InformationOptions) -> Result<Self> {
        let mut targets = vec![];
        let mut blocks = vec![];
        let mut first = 0;
        for &target in &options.targets {
            let mut block = places.labels(target, options)?.indicators();
            let total = block.var_axis(Axis(0), 0.0).sum();
            block /= total.sqrt();
            targets.push((target, first..first + block.ncols()));
            first += block.ncols();
            blocks.push(block);
        }
        let views: Vec<_> = blocks.iter().map(Array2::view).collect();
        let n = blocks.first().map_or(0, Array2::nrows);
        let values = concatenate(Axis(1), &views).map_err(|_| Error::argument("targets", "at least one", "none"))?;
        let order = shuffled(&(0..n).collect::<Vec<usize>>(), options.seed);
        let (a, b) = order.split_at(n / 2);
        let (level, seed) = (options.certainty.level, options.seed);
        Ok(Self { targets, values, halves: [a.to_vec(), b.to_vec()], level, seed })
    }

    /// The share of each target's variance explained on held-out places.
    fn survival(&self, projection: &Projection, x: ndarray::ArrayView2<f64>) -> Result<Vec<(Target, Interval)>> {
        let mut pairs: Vec<Vec<(f64, f64)>> = vec![vec![]; self.targets.len()];
        for (fit, test) in [(0, 1), (1, 0)].map(|(a, b)| (&self.halves[a], &self.halves[b])) {
            let take = |rows: &[usize]| (x.select(Axis(0), rows), self.values.select(Axis(0), rows));
            let ((x, y), (unseen, wanted)) = (take(fit), take(test));
            let mean = y.mean_axis(Axis(0)).unwrap_or_default();
            let residual = &wanted - &mean - &regress(&x, &(&y - &mean), &unseen, projection)?;
            let spread = &wanted - &mean;
            for (pairs, (_, columns)) in pairs.iter_mut().zip(&self.targets) {
                let squares = |values: &Array2<f64>| {
                    let part = values.slice(s![.., columns.clone()]);
                    part.rows().into_iter().map(|row| row.dot(&row)).collect::<Vec<f64>>()
                };
                pairs.extend(squares(&residual).into_iter().zip(squares(&spread)));
            }
        }
        let options = BootstrapOptions { resamples: 200, level: self.level, method: BootstrapMethod::Percentile };
        let told = |pairs: &[(f64, f64)]| {
            let (left, all) = pairs.iter().fold((0.0, 0.0), |(left, all), pair| (left + pair.0, all + pair.1));
            1.0 - left / all
        };
        let answer = |((target, _), pairs): (&(Target, _), &Vec<(f64, f64)>)| {
            Ok((*target, bootstrap(pairs, told, &options, self.seed)?))
        };
        self.targets.iter().zip(&pairs).map(answer).collect()
    }
}

/// Predicts centred features of held-out rows by ridge regression on known ones, of full or reduced rank.
fn regress(x: &Array2<f64>, y: &Array2<f64>, unseen: &Array2<f64>, projection: &Projection) -> Result<Array2<f64>> {
    let failed = || Error::linear_algebra("regressing features on a head's input");
    let mean = x.mean_axis(Axis(0)).unwrap_or_default();
    let spread: Array1<f64> = x.std_axis(Axis(0), 0.0).mapv(|s| if s > 0.0 { s } else { 1.0 });
    let (x, unseen) = ((x - &mean) / &spread, (unseen - &mean) / &spread);
    let mut gram = x.t().dot(&x) / x.nrows() as f64;
    gram.diag_mut().mapv_inplace(|value| value + RIDGE);
    let factor = gram.cholesky(UPLO::Lower).map_err(failed())?;
    let right = x.t().dot(y) / x.nrows() as f64;
    let half = factor.solve_triangular(UPLO::Lower, Diag::NonUnit, &right).map_err(failed())?;
    let weights = factor.t().to_owned().solve_triangular(UPLO::Upper, Diag::NonUnit, &half).map_err(failed())?;
    let Projection::Best(k) = projection else { return Ok(unseen.dot(&weights)) };
    // half^T half = B^T (X^T X / n + ridge) B, whose leading axes are those of the fitted features.
    let (_, axes) = half.t().dot(&half).eigh(UPLO::Lower).map_err(failed())?;
    let kept = axes.slice(s![.., axes.ncols().saturating_sub(*k)..]);
    Ok(unseen.dot(&weights.dot(&kept)).dot(&kept.t()))
}
