//! Where do heads attend: to the tokens that a prediction depends on, or to a place at a fixed distance?

use std::collections::BTreeMap;

use ndarray::{Array2, Array4, Axis};
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
    /// The same for a head that always attends to the one fixed offset which finds most sources, `[run, kind]`.
    pub offset: Array2<f64>,
}

impl RoleScores {
    /// By how much a head's attention to the sources exceeds both what the best fixed offset and what uniform attention
    /// gives; NaN if the run has no such dependency.
    ///
    /// No attention that depends on distances alone gets above 0, whether it is spread or not; nor does a head's own
    /// attention if sources are shuffled among queries, which leaves their distances.
    pub fn beyond(&self, run: usize, (layer, head): (usize, usize), kind: usize) -> f64 {
        let (uniform, offset) = (self.uniform[[run, kind]], self.offset[[run, kind]]);
        self.attention[[run, layer, head, kind]] - if uniform > offset { uniform } else { offset }
    }
}

/// How much each head attends at each fixed distance.
#[derive(Debug, Clone, PartialEq)]
pub struct PositionShares {
    /// Mean over queries of the attention this many tokens before them, `[run, layer, head, offset]`, from offset 0 on
    /// up to half of the longest sequence. Queries that have no token there are left out.
    pub attention: Array4<f64>,
}

impl PositionShares {
    /// The head and the offset of the largest share in a run, the query itself left out: whatever stands there, this head
    /// attends to it. `None` if no head attends to any earlier token.
    pub fn largest(&self, run: usize) -> Option<((usize, usize), usize)> {
        let own = self.attention.index_axis(Axis(0), run);
        let shares = own.indexed_iter().filter(|((.., offset), share)| *offset > 0 && share.is_finite());
        shares.max_by(|a, b| a.1.total_cmp(b.1)).map(|((layer, head, offset), _)| ((layer, head), offset))
    }
}

/// Weighted edges, the same number for each run.
struct Edges {
    kinds: Vec<String>,
    /// `row * query * key` within the run, `[run, edge]`.
    index: Tensor,
    /// At each edge's kind, 1 over the run's number of queries of the kind; 0 elsewhere. `[run, edge, kind]`.
    weight: Tensor,
    uniform: Array2<f64>,
    offset: Array2<f64>,
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
        Ok(RoleScores { kinds: edges.kinds, attention, uniform: edges.uniform, offset: edges.offset })
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
        let mut offset = uniform.clone();
        let mut all = vec![];
        for (run, batch) in self.batches.iter().enumerate() {
            for (kind, name) in kinds.iter().enumerate() {
                offset[[run, kind]] = batch.best_offset(name).map_or(f64::NAN, |best| best.share);
            }
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
        Ok(Edges { kinds, index, weight, uniform, offset })
    }

    /// How much does each head attend at fixed distances, whatever stands there?
    ///
    /// # Errors
    /// If libtorch fails.
    pub fn position_shares(&self) -> Result<PositionShares> {
        let run = self.record((0..self.model.config().n_layers).map(Site::Pattern))?;
        let valid = self.held.tokens.valid(self.model.device()).to_kind(self.model.kind());
        let by_run = |x: Tensor| x.unflatten(0, [self.held.runs, -1]);
        let mut layers = vec![];
        for layer in 0..self.model.config().n_layers {
            let pattern = run.get(Site::Pattern(layer))?;
            let share = |offset: i64| {
                let queries = by_run(valid.narrow(1, offset, self.held.positions() - offset)).unsqueeze(2);
                let there = by_run(pattern.diagonal(-offset, 2, 3)); // [run, row, head, query]
                let sum = |x: Tensor| x.sum_dim_intlist([1i64, 3].as_slice(), false, None::<Kind>);
                sum(there * &queries) / sum(queries.shallow_clone())
            };
            let offsets: Vec<Tensor> = (0..=self.held.positions() / 2).map(share).collect();
            layers.push(Tensor::stack(&offsets, 2)); // [run, head, offset]
        }
        Ok(PositionShares { attention: array(&Tensor::stack(&layers, 1), "attention at fixed distances")? })
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
