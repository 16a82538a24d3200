//! Where do heads attend: to the tokens that a prediction depends on, and to the same tokens as other heads?

use std::collections::BTreeMap;

use ndarray::{Array2, Array3, Array4};
use tch::{Kind, Tensor};

use super::probe::{Probe, array};
use crate::error::{Error, Result};
use crate::lab::language::Batch;
use crate::model::Site;

/// How much each head attends to what predictions depend on, by kind of dependency.
#[derive(Debug, Clone, PartialEq)]
pub struct RoleScores {
    /// The kinds of dependency that occur, in the order of the language's tasks.
    pub kinds: Vec<String>,
    /// Mean over queries of the attention to the query's sources, `[run, layer, head, kind]`; if a query has several
    /// sources, their sum. NaN if a run has no such dependency.
    pub attention: Array4<f64>,
    /// The same for uniform attention, `[run, kind]`.
    pub uniform: Array2<f64>,
}

/// Weighted edges, the same number for each run.
struct Edges {
    kinds: Vec<String>,
    /// `row * query * key` within the run, `[run, edge]`.
    index: Tensor,
    /// At each edge's kind, 1 over the run's number of queries of the kind; 0 elsewhere. `[run, edge, kind]`.
    weight: Tensor,
    uniform: Array2<f64>,
}

impl Probe {
    /// Do heads attend to the annotated sources? Mean attention from `query` to `source`, over all dependencies of a
    /// kind.
    ///
    /// # Errors
    /// If the language has no dependencies, or libtorch fails.
    pub fn roles(&self) -> Result<RoleScores> {
        let config = self.model.config();
        let edges = self.edges()?;
        let run = self.record((0..config.n_layers).map(Site::Pattern))?;
        let mut layers = vec![];
        for layer in 0..config.n_layers {
            // [run, head, row * query * key]
            let pattern = run.get(Site::Pattern(layer))?.unflatten(0, [self.held.runs, -1]);
            let pattern = pattern.transpose(1, 2).flatten(2, 4);
            let index = edges.index.unsqueeze(1);
            let index = index.expand([pattern.size()[0], pattern.size()[1], index.size()[2]], false);
            let read = pattern.f_gather(2, &index, false).and_then(|read| read.f_bmm(&edges.weight));
            layers.push(read.map_err(Error::torch("reading patterns"))?);
        }
        let mut attention: Array4<f64> = array(&Tensor::stack(&layers, 1), "roles")?;
        for ((run, _, _, kind), value) in attention.indexed_iter_mut() {
            if edges.uniform[[run, kind]].is_nan() {
                *value = f64::NAN;
            }
        }
        Ok(RoleScores { kinds: edges.kinds, attention, uniform: edges.uniform })
    }

    fn edges(&self) -> Result<Edges> {
        let occurs = |kind: &&String| {
            let samples = self.batches.iter().flat_map(|batch| &batch.samples);
            samples.flat_map(|sample| &sample.dependencies).any(|dependency| dependency.kind == **kind)
        };
        let kinds: Vec<String> = self.tasks.iter().filter(occurs).cloned().collect();
        if kinds.is_empty() {
            return Err(Error::argument("language", "annotated dependencies", "none"));
        }
        let positions = self.held.positions();
        let mut uniform = Array2::from_elem((self.batches.len(), kinds.len()), f64::NAN);
        let mut all = vec![];
        for (run, batch) in self.batches.iter().enumerate() {
            let (sources, queries) = sources(batch, &kinds);
            let mut own = vec![];
            for ((row, query, kind), sources) in sources {
                let weight = 1.0 / queries[kind];
                let cell = &mut uniform[[run, kind]];
                *cell = if cell.is_nan() { 0.0 } else { *cell } + weight * sources.len() as f64 / (query + 1) as f64;
                let first = (row * positions as usize + query) * positions as usize;
                own.extend(sources.into_iter().map(|source| ((first + source) as i64, kind, weight)));
            }
            all.push(own);
        }
        let n = all.iter().map(Vec::len).max().unwrap_or(0);
        let mut index = vec![0i64; all.len() * n];
        let mut weight = vec![0.0; all.len() * n * kinds.len()];
        for (run, own) in all.iter().enumerate() {
            for (number, &(edge, kind, share)) in own.iter().enumerate() {
                index[run * n + number] = edge;
                weight[(run * n + number) * kinds.len() + kind] = share;
            }
        }
        let device = self.model.device();
        let shape = [all.len() as i64, n as i64, kinds.len() as i64];
        let weight = Tensor::from_slice(&weight).view(shape).to_kind(self.model.kind()).to_device(device);
        let index = Tensor::from_slice(&index).view([shape[0], shape[1]]).to_device(device);
        Ok(Edges { kinds, index, weight, uniform })
    }

    /// How differently do the heads of a layer attend? The Jensen-Shannon divergence between the patterns of every pair
    /// of heads, divided by ln 2: from 0 (identical) to 1 (disjoint keys). Averaged over the positions at which
    /// predictions are made and which have more than one key.
    ///
    /// # Shapes
    /// `[run, head, head]`; NaN if a run has no such position.
    ///
    /// # Errors
    /// If there is no such layer.
    pub fn pattern_distance(&self, layer: usize) -> Result<Array3<f64>> {
        self.check_layer(layer)?;
        let run = self.record([Site::Pattern(layer)])?;
        let pattern = self.held.pick(&run.get(Site::Pattern(layer))?.transpose(1, 2)); // [run * place, 1, head, key]
        let pattern = self.by_run(&pattern).transpose(1, 2); // [run, head, place, key]
        let heads = pattern.size()[1];
        let choice = self.by_run(&self.held.positions_of_places().unsqueeze(1)).gt(0);
        let counts = self.held.predicted() * choice.to_kind(pattern.kind());
        let share = (&counts / counts.sum_dim_intlist([1i64].as_slice(), true, None::<Kind>)).unsqueeze(-1);
        let entropy = |p: &Tensor| -(p.clamp_min(1e-37).log() * p).sum_dim_intlist([3i64].as_slice(), false, None);
        let own = entropy(&pattern); // [run, head, place]
        let mut rows = vec![];
        for head in 0..heads {
            let between = entropy(&((&pattern + pattern.narrow(1, head, 1)) * 0.5));
            let apart = (between - (&own + own.narrow(1, head, 1)) * 0.5).clamp_min(0.0) / 2f64.ln();
            rows.push(apart.f_bmm(&share).map_err(Error::torch("comparing patterns"))?.squeeze_dim(2).clamp_max(1.0));
        }
        array(&Tensor::stack(&rows, 1), "distances of patterns")
    }
}

/// A query: row, position, and the index of its kind of dependency.
type Query = (usize, usize, usize);

/// The sources of every query, and the number of queries of each kind.
fn sources(batch: &Batch, kinds: &[String]) -> (BTreeMap<Query, Vec<usize>>, Vec<f64>) {
    let mut sources: BTreeMap<Query, Vec<usize>> = BTreeMap::new();
    for (row, sample) in batch.samples.iter().enumerate() {
        for one in &sample.dependencies {
            if let Some(kind) = kinds.iter().position(|kind| *kind == one.kind) {
                sources.entry((row, one.query, kind)).or_default().push(one.source);
            }
        }
    }
    let mut queries = vec![0.0; kinds.len()];
    sources.keys().for_each(|(_, _, kind)| queries[*kind] += 1.0);
    (sources, queries)
}
