//! What do the circuits of all heads say? The answers as tidy tables.

use ndarray::{Array1, Array2, Axis};
use rayon::prelude::*;
use serde_json::json;

use super::composition::{Composition, CompositionScores, composition};
use super::factored::Factored;
use super::heads::{Circuit, Circuits, Offset};
use super::similarity::{Measure, Similarity};
use super::spectrum::{Null, NullOptions, Ranks, null_spectra};
use super::subspace::random_overlap;
use crate::error::Result;
use crate::table::{Keys, Observation, Table};

impl Circuits {
    /// How many dimensions does each head's circuit use? Its spectrum and ranks, compared with random matrices.
    ///
    /// Rows per head: `norm` (Frobenius), `effective_rank`, `stable_rank`, `participation_ratio`, and one `singular_value` per
    /// component. `baseline` is the mean of the null distribution, `z_score` the distance from it in its standard deviations. A
    /// zero circuit has no ranks.
    ///
    /// # Errors
    /// If the options do not validate, weights are not finite, or LAPACK fails.
    pub fn svd(&self, circuit: Circuit, options: &NullOptions) -> Result<Table> {
        options.validate()?;
        let products = self.all(circuit)?;
        // Normal factors depend only on the shape, which all heads share.
        let shared = match options.null {
            Null::Gaussian => products.first().map(|first| null_of(first, options)).transpose()?,
            Null::Shuffled => None,
        };
        let rows = products.par_iter().zip(self.heads()).map(|(product, head)| {
            let own = shared.is_none().then(|| null_of(product, options)).transpose()?;
            let (sigma, norm) = (product.singular_values()?, product.norm()?);
            let keys = self.keys(head.layer, head.head);
            let Some(null) = own.as_ref().or(shared.as_ref()) else { return Ok(vec![]) };
            Ok(spectrum_rows(&keys, &sigma, norm, null))
        });
        let rows = rows.collect::<Result<Vec<_>>>()?.concat();
        Table::new(rows, self.provenance(json!({"svd": circuit, "null": options}), Some(options.seed)))
    }

    /// How much of what each head writes does each head of a later layer read? See [`composition`].
    ///
    /// # Errors
    /// If weights are not finite.
    pub fn composition_scores(&self, kind: Composition, offset: Offset) -> Result<CompositionScores> {
        let readers = match kind {
            Composition::V => self.all(Circuit::Ov)?,
            Composition::Q => self.all(Circuit::Qk(offset))?,
            Composition::K => self.all(Circuit::Qk(offset))?.iter().map(Factored::transpose).collect(),
        };
        composition(&self.all(Circuit::Ov)?, &readers, |j| self.before(j))
    }

    /// [`Circuits::composition_scores`] as a table: a row for each pair of heads whose first is in an earlier layer, with
    /// columns `from_layer, from_head, layer, head, metric, value, z_score`.
    ///
    /// # Errors
    /// As [`Circuits::composition_scores`].
    pub fn composition(&self, kind: Composition, offset: Offset) -> Result<Table> {
        let scores = self.composition_scores(kind, offset)?;
        let pairs = (0..self.heads().len()).flat_map(|to| (0..self.before(to)).map(move |from| [from, to]));
        let rows = pairs.map(|pair| self.pair_row(pair, kind.name(), &scores.value, &scores.z_score)).collect();
        Table::new(rows, self.provenance(json!({"composition": kind, "offset": offset}), None))
    }

    /// How alike are any two heads, by every [`Measure`]? A row per pair and measure, with columns `from_layer, from_head,
    /// layer, head, metric, value, z_score`; the earlier head of the pair is `from`.
    ///
    /// # Errors
    /// As [`Circuits::similarity`].
    pub fn similarities(&self, offset: Offset) -> Result<Table> {
        let mut rows = vec![];
        for measure in Measure::ALL {
            let Similarity { value, z_score, .. } = self.similarity(measure, offset)?;
            let pairs = (0..self.heads().len()).flat_map(|to| (0..to).map(move |from| [from, to]));
            rows.extend(pairs.map(|pair| self.pair_row(pair, measure.name(), &value, &z_score)));
        }
        Table::new(rows, self.provenance(json!({"similarity": Measure::ALL, "offset": offset}), None))
    }

    /// Do the heads of a layer share their subspaces more than random ones would? A row per layer and overlap: the mean over
    /// pairs of heads, with `baseline` for random subspaces and `z_score` the distance from it (pairs of random subspaces are
    /// independent). Heads that share a key/value head do not count as a pair for keys and values.
    ///
    /// # Errors
    /// As [`Circuits::similarity`].
    pub fn redundancy(&self) -> Result<Table> {
        let mut rows = vec![];
        for measure in Measure::ALL.into_iter().filter(|m| !matches!(m, Measure::QkCosine | Measure::OvCosine)) {
            let similarity = self.similarity(measure, Offset::default())?;
            rows.extend(
                self.heads()
                    .chunk_by(|a, b| a.layer == b.layer)
                    .map(|heads| self.redundancy_row(heads[0].layer, &similarity)),
            );
        }
        Table::new(rows, self.provenance(json!("redundancy"), None))
    }

    fn redundancy_row(&self, layer: usize, similarity: &Similarity) -> Observation {
        let of_layer: Vec<usize> = (0..self.heads().len()).filter(|&i| self.heads()[i].layer == layer).collect();
        let shares = |i: usize, j: usize| self.heads()[i].kv_head == self.heads()[j].kv_head;
        let pairs = of_layer.iter().flat_map(|&i| of_layer.iter().map(move |&j| (i, j)));
        let values: Vec<f64> = pairs
            .filter(|&(i, j)| i < j && !(similarity.measure.is_of_kv_head() && shares(i, j)))
            .map(|pair| similarity.value[pair])
            .filter(|value| value.is_finite())
            .collect();
        let value = values.iter().sum::<f64>() / values.len() as f64;
        let d_head = self.heads()[0].w_q.ncols().min(self.d_model());
        let (mean, deviation) = random_overlap(d_head, d_head, self.d_model());
        let z_score = (value - mean) / (deviation / (values.len() as f64).sqrt());
        Observation {
            keys: Keys { layer: u32::try_from(layer).ok(), ..Keys::default() },
            metric: similarity.measure.name().to_owned(),
            value,
            baseline: Some(mean),
            z_score: Some(z_score).filter(|z| z.is_finite()),
            ..Observation::default()
        }
    }

    fn pair_row(&self, [from, to]: [usize; 2], metric: &str, value: &Array2<f64>, z: &Array2<f64>) -> Observation {
        let (sender, receiver) = (&self.heads()[from], &self.heads()[to]);
        let keys = Keys {
            from_layer: u32::try_from(sender.layer).ok(),
            from_head: u32::try_from(sender.head).ok(),
            ..self.keys(receiver.layer, receiver.head)
        };
        Observation {
            keys,
            metric: metric.to_owned(),
            value: value[[from, to]],
            z_score: Some(z[[from, to]]).filter(|z| z.is_finite()),
            ..Observation::default()
        }
    }

    fn keys(&self, layer: usize, head: usize) -> Keys {
        Keys { layer: u32::try_from(layer).ok(), head: u32::try_from(head).ok(), ..Keys::default() }
    }
}

/// A null distribution of spectra of norm 1, and of their ranks.
struct NullOf {
    /// Mean and standard deviation of each singular value.
    sigma: [Array1<f64>; 2],
    /// Mean and standard deviation of each rank, in the order of [`Ranks::named`].
    ranks: [[f64; 2]; 3],
}

fn null_of(product: &Factored, options: &NullOptions) -> Result<NullOf> {
    let spectra = null_spectra(product, options)?;
    let norm = spectra.row(0).mapv(|value| value * value).sum().sqrt();
    let moments = |values: &[f64]| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        [mean, (squares / (values.len() as f64 - 1.0)).sqrt()]
    };
    let ranks: Vec<Option<Ranks>> = spectra.rows().into_iter().map(|row| Ranks::of(&row.to_vec()).ok()).collect();
    let of_rank = |i: usize| {
        let values: Vec<f64> = ranks.iter().flatten().map(|ranks| ranks.named()[i].1).collect();
        moments(&values)
    };
    let unit = &spectra / norm.max(f64::MIN_POSITIVE);
    let sigma = [unit.mean_axis(Axis(0)).unwrap_or_default(), unit.std_axis(Axis(0), 1.0)];
    Ok(NullOf { sigma, ranks: [of_rank(0), of_rank(1), of_rank(2)] })
}

fn spectrum_rows(keys: &Keys, sigma: &Array1<f64>, norm: f64, null: &NullOf) -> Vec<Observation> {
    let row = |keys: Keys, metric: &str, value: f64, [mean, deviation]: [f64; 2]| Observation {
        keys,
        metric: metric.to_owned(),
        value,
        baseline: Some(mean).filter(|mean| mean.is_finite()),
        z_score: Some((value - mean) / deviation).filter(|z| z.is_finite() && norm > 0.0),
        ..Observation::default()
    };
    let mut rows = vec![row(keys.clone(), "norm", norm, [f64::NAN; 2])];
    // A zero circuit has no rank of any kind.
    if let Ok(ranks) = Ranks::of(&sigma.to_vec()) {
        rows.extend(
            ranks.named().into_iter().zip(null.ranks).map(|((name, value), m)| row(keys.clone(), name, value, m)),
        );
    }
    rows.extend(sigma.iter().enumerate().map(|(i, &value)| {
        let keys = Keys { component: u32::try_from(i).ok(), ..keys.clone() };
        row(keys, "singular_value", value, [null.sigma[0][i] * norm, null.sigma[1][i] * norm])
    }));
    rows
}
