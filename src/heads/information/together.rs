//! What do the heads of a layer share, and what do pairs of them tell only together?

use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;

use super::{Asked, Asking, HeadEstimator, InformationOptions, Part, Target, number};
use crate::error::{Error, Result};
use crate::information::{
    BinnedOptions, Certainty, Estimate, Estimator, GaussianOptions, Redundancy, decomposition_of_samples,
    o_information, total_correlation,
};
use crate::model::{Model, Tokens};
use crate::neural::one_hot;
use crate::table::{Keys, Observation, Table};

/// Default number of principal coordinates per head: few, because all heads of a layer enter one estimate.
const DIMENSIONS: usize = 2;

/// Do the heads of a layer repeat each other, or do they tell something only together?
///
/// For each layer, the total correlation of its heads' sources (0 if they are independent) and their O-information
/// (positive for redundancy, negative for synergy; Rosas et al. 2019), in nats, as metrics `total_correlation` and
/// `o_information`. The estimator is nearest neighbours for [`HeadEstimator::Ksg`], and Gaussian for all others. The
/// noise is as in [`InformationOptions::noise`], by default 0.5. Each head enters with its leading
/// [`InformationOptions::dimensions`], by default 2.
///
/// # Errors
/// If a token does not fit the model, an option is invalid, or a layer has fewer than two heads.
pub fn layer_information(model: &Model, tokens: &Tokens, options: &InformationOptions) -> Result<Table> {
    let options = &prepared(options, vec![]);
    let asked = Asked::new(model, tokens, options)?;
    if model.config().n_heads < 2 {
        return Err(Error::argument("model", "two heads a layer or more", model.config().n_heads));
    }
    let estimator = match &options.estimator {
        HeadEstimator::Ksg(options) => Estimator::Ksg(options.clone()),
        _ => Estimator::Gaussian(GaussianOptions::default()),
    };
    let mut rows = vec![];
    for layer in 0..model.config().n_layers {
        let parts = asked.parts(layer)?;
        for (&source, &k) in
            options.sources.iter().flat_map(|source| options.dimensions.iter().map(move |k| (source, k)))
        {
            let heads: Vec<&Part> = parts.iter().filter(|part| part.source == source && alive(part)).collect();
            let values: Vec<Array2<f64>> = heads.iter().map(|part| leading(part, k, options)).collect();
            let views: Vec<ArrayView2<f64>> = values.iter().map(Array2::view).collect();
            let keys = Keys {
                method: Some(estimator.name().to_owned()),
                layer: number(layer),
                site: Some(source.to_string()),
                dimension: number(k),
                ..Keys::default()
            };
            let (certainty, seed) = (&options.certainty, options.seed);
            rows.push(row(&keys, "total_correlation", total_correlation(&views, &estimator, certainty, seed)));
            if views.len() > 2 {
                rows.push(row(&keys, "o_information", o_information(&views, &estimator, certainty, seed)));
            }
        }
    }
    let what = serde_json::json!({"what": "layer information", "options": options.provenance(), "tokens": tokens.provenance()});
    Table::new(rows, model.provenance(what, Some(options.seed))?)
}

/// What do two heads of a layer tell about a target redundantly, each alone, and only together?
///
/// Partial information decomposition with the minimum as redundancy (MMI; Barrett 2015) and a Gaussian model of the
/// sources. For each pair (`from_head`, `head`) and target: the metrics `redundant`, `unique_1` (of `from_head`),
/// `unique_2` (of `head`) and `synergistic`, in nats. Noise and dimensions as in [`layer_information`].
///
/// # Errors
/// As [`layer_information`]; also if a target has fewer than two labels with ten positions each.
pub fn pair_information(model: &Model, tokens: &Tokens, options: &InformationOptions) -> Result<Table> {
    let options = &prepared(options, options.targets.clone());
    options.validate()?;
    if options.targets.contains(&Target::Head) {
        return Err(Error::argument("target", "targets with labels, for pairs of heads", Target::Head));
    }
    let asked = Asked::new(model, tokens, options)?;
    let mut rows = vec![];
    for layer in 0..model.config().n_layers {
        let parts: Vec<Part> = asked.parts(layer)?.into_iter().filter(alive).collect();
        let pairs = (0..parts.len()).flat_map(|a| (a + 1..parts.len()).map(move |b| (a, b)));
        let pairs: Vec<(usize, usize)> = pairs.filter(|&(a, b)| parts[a].source == parts[b].source).collect();
        let about = &asked.about;
        let answers: Result<Vec<Vec<Observation>>> =
            pairs.par_iter().map(|&(a, b)| of_pair(about, &parts[a], &parts[b])).collect();
        rows.extend(answers?.into_iter().flatten());
    }
    let what =
        serde_json::json!({"what": "pair information", "options": options.provenance(), "tokens": tokens.provenance()});
    Table::new(rows, model.provenance(what, Some(options.seed))?)
}

fn of_pair(asked: &Asking, first: &Part, second: &Part) -> Result<Vec<Observation>> {
    let options = asked.options;
    let mut rows = vec![];
    for (target, labels) in &asked.labels {
        let (places, known) = labels.known();
        let y = one_hot(&known, labels.classes)?;
        for &k in &options.dimensions {
            let source = |part: &Part| leading(part, k, options).select(ndarray::Axis(0), &places);
            let keys = Keys {
                method: Some("mmi".to_owned()),
                from_layer: number(first.layer),
                from_head: first.head.and_then(number),
                layer: number(second.layer),
                head: second.head.and_then(number),
                site: Some(first.source.to_string()),
                dimension: number(k),
                task: Some(target.to_string()),
                ..Keys::default()
            };
            let parts = decomposition_of_samples(
                y.slice(s![.., 1..]),
                source(first).view(),
                source(second).view(),
                Redundancy::Mmi,
                &BinnedOptions::default(),
                &options.certainty,
                options.seed,
            );
            match parts {
                Ok(parts) => rows.extend([
                    row(&keys, "redundant", Ok(parts.redundant)),
                    row(&keys, "unique_1", Ok(parts.unique_1)),
                    row(&keys, "unique_2", Ok(parts.unique_2)),
                    row(&keys, "synergistic", Ok(parts.synergistic)),
                ]),
                Err(reason) => rows.push(row(&keys, "redundant", Err(reason))),
            }
        }
    }
    Ok(rows)
}

/// The options with default dimensions and noise, and without whole layers.
fn prepared(options: &InformationOptions, targets: Vec<Target>) -> InformationOptions {
    let mut options = InformationOptions { layers: false, targets, ..options.clone() };
    if options.dimensions.is_empty() {
        options.dimensions = vec![DIMENSIONS];
    }
    options.noise = options.noise.or(Some(HeadEstimator::Gaussian.usual_noise()));
    let halves = options.certainty.halves.min(16);
    options.certainty = Certainty { halves, ..options.certainty };
    options
}

fn alive(part: &Part) -> bool {
    part.coordinates.rank() > 0
}

fn leading(part: &Part, k: usize, options: &InformationOptions) -> Array2<f64> {
    part.coordinates.leading(k.min(part.coordinates.rank()), options.sigma(), options.seed)
}

fn row(keys: &Keys, metric: &str, found: Result<Estimate>) -> Observation {
    let empty = Observation {
        keys: keys.clone(),
        metric: metric.to_owned(),
        unit: Some("nats".into()),
        ..Observation::default()
    };
    match found {
        Ok(found) => {
            let warnings = found.warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            Observation {
                value: found.nats(),
                low: found.interval.map(|interval| interval.low),
                high: found.interval.map(|interval| interval.high),
                samples: number(found.n),
                warnings: (!warnings.is_empty()).then_some(warnings),
                ..empty
            }
        }
        Err(reason) => Observation { value: f64::NAN, warnings: Some(reason.to_string()), ..empty },
    }
}
