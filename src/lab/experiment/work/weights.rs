//! Do the heads of existing models' layers use different directions of the residual stream? Asked of their weights.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::{Computed, Input, load, row, spread};
use crate::circuits::{Offset, Side};
use crate::error::{Error, Result};
use crate::heads::CircuitOptions;
use crate::lab::streams::Purpose;
use crate::model::{Model, ModelConfig};
use crate::table::{Keys, Observation, Table};

/// Do the heads of a layer read and write different directions of the residual stream, compared with heads rotated at
/// random? See [`Circuits::alignments`](crate::circuits::Circuits::alignments).
///
/// Weights are given once and for all, so a run is a *layer*: seed `first + i` stands for layer i of all layers of the
/// models, in an order that spreads any first few over models and depths. Layers beyond the last have no value. An interval
/// over runs thus says how layers differ; it neither covers other models nor another training of these.
///
/// Rows: `separation`, 1 minus the alignment over the one expected by chance, for `task` `reads` (the mean of queries, keys and
/// values) and `writes`: 1 if heads use orthogonal directions, 0 by chance, negative if they share them.
/// `separation_unfolded` is that of the bare matrices, without the weights of the norm before the layer, which all its heads
/// have in common. The alignments themselves, with `baseline` and `z_score`, name the model and the layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsOf {
    /// Bundled names, folders (also looked up in `HEADSCOPE_DATA`) or Hugging Face Hub ids.
    pub models: Vec<String>,
    /// A control: every run draws the weights of a layer of the same shape, as at the start of training.
    pub random: bool,
    /// The seed of the first layer.
    pub first: u64,
}

/// A layer of one of the models.
struct Place<'a> {
    name: &'a str,
    model: &'a Model,
    layer: usize,
}

impl WeightsOf {
    pub(super) fn compute(&self, seeds: &[u64]) -> Result<Computed> {
        let models = self.load()?;
        let inputs = models.iter().map(|(name, model)| Ok(Input { name: (*name).to_owned(), sha256: model.sha256()? }));
        let mut computed = Computed { read: inputs.collect::<Result<_>>()?, ..Computed::default() };
        let places: Vec<Place<'_>> = models
            .iter()
            .flat_map(|(name, model)| (0..model.config().n_layers).map(move |layer| Place { name, model, layer }))
            .collect();
        let mut known = BTreeMap::new();
        for &seed in seeds {
            let number = seed.checked_sub(self.first).and_then(|number| usize::try_from(number).ok());
            let place = number.filter(|number| *number < places.len()).map(|n| &places[spread(n, places.len())]);
            computed.rows.extend(match place {
                None => missing(seed),
                Some(place) if self.random => {
                    let drawn = one_layer_as(place.model.config(), seed)?;
                    computed.parameters.insert(seed, drawn.sha256()?);
                    rows(seed, place, 0, &tables(&drawn)?)?
                }
                Some(place) => {
                    if !known.contains_key(place.name) {
                        known.insert(place.name, tables(place.model)?);
                    }
                    rows(seed, place, place.layer, &known[place.name])?
                }
            });
        }
        Ok(computed)
    }

    /// The checkpoints, with their hashes.
    pub(super) fn inputs(&self) -> Result<Vec<Input>> {
        let input = |(name, model): (&str, Model)| Ok(Input { name: name.to_owned(), sha256: model.sha256()? });
        self.load()?.into_iter().map(input).collect()
    }

    fn load(&self) -> Result<Vec<(&str, Model)>> {
        if self.models.is_empty() {
            return Err(Error::argument("models", "at least one", 0));
        }
        self.models.iter().map(|name| Ok((name.as_str(), load(name)?))).collect()
    }
}

/// A layer of a model's shape, with weights as at the start of training.
fn one_layer_as(config: &ModelConfig, seed: u64) -> Result<Model> {
    // Neither embeddings nor MLPs are asked about.
    let small =
        ModelConfig { n_layers: 1, n_blocks: 0, block_cycle: 1, vocab: 1, n_positions: 1, d_mlp: 0, ..config.clone() };
    let config = ModelConfig { layers: config.layers.iter().take(1).cloned().collect(), experts: None, ..small };
    Model::initial(&config, Purpose::Weights.seed(seed), 1.0, tch::Kind::Double, tch::Device::Cpu)
}

/// The alignments of all layers, with norms folded in and without.
fn tables(model: &Model) -> Result<[Table; 2]> {
    let of = |fold: bool| {
        let options = CircuitOptions { fold_norms: fold, centre_writing: fold };
        model.circuits(&options)?.alignments(Offset::At(0))
    };
    Ok([of(true)?, of(false)?])
}

/// The rows of a seed whose layer does not exist.
fn missing(seed: u64) -> Vec<Observation> {
    let both =
        ["reads", "writes"].into_iter().flat_map(|task| ["separation", "separation_unfolded"].map(|m| (m, task)));
    both.map(|(metric, task)| of_task(seed, metric, task, f64::NAN)).collect()
}

fn of_task(seed: u64, metric: &str, task: &str, value: f64) -> Observation {
    let mut row = row(seed, 0, metric, value);
    row.keys.task = Some(task.to_owned());
    row
}

/// The rows of a layer: `at` is its index in the tables.
fn rows(seed: u64, place: &Place<'_>, at: usize, tables: &[Table; 2]) -> Result<Vec<Observation>> {
    let mut all = vec![];
    for (metric, table) in ["separation", "separation_unfolded"].into_iter().zip(tables) {
        let own: Vec<Observation> =
            table.rows()?.into_iter().filter(|row| row.keys.layer == u32::try_from(at).ok()).collect();
        let separation = |sides: &[Side]| {
            let of_side = |side: &Side| {
                let row = own.iter().find(|row| row.metric == side.name());
                row.map_or(f64::NAN, |row| 1.0 - row.value / row.baseline.unwrap_or(f64::NAN))
            };
            sides.iter().map(of_side).sum::<f64>() / sides.len() as f64
        };
        all.push(of_task(seed, metric, "reads", separation(&[Side::Queries, Side::Keys, Side::Values])));
        all.push(of_task(seed, metric, "writes", separation(&[Side::Writes])));
        if metric == "separation" {
            all.extend(own.into_iter().map(|row| Observation { keys: keys(seed, place), ..row }));
        }
    }
    Ok(all)
}

fn keys(seed: u64, place: &Place<'_>) -> Keys {
    Keys {
        model: Some(place.name.to_owned()),
        layer: u32::try_from(place.layer).ok(),
        seed: Some(seed),
        step: Some(0),
        ..Keys::default()
    }
}
