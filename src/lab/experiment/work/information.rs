//! How much information about the answers does each head carry?

use ndarray::{Array2, ArrayView2};
use tch::{Kind, Tensor};

use super::measure::Asked;
use crate::error::{Error, Result};
use crate::information::{ProbeOptions, v_information_of_labels};
use crate::lab::language::Batch;
use crate::lab::trace::{Division, division};
use crate::model::Site;
use crate::table::Observation;

/// Minimum information that all heads together must carry about the mean task for an index of its division to be
/// meaningful, in nats.
const LEAST: f64 = 0.1;

impl Asked<'_> {
    /// V-information of a linear probe from each head's z about each task's answer, in nats (clamped at 0), and how the
    /// heads divide it.
    pub(super) fn information(&self) -> Result<Vec<Observation>> {
        let layer = self.layer;
        let run = self.probe.record([Site::Z(layer)])?;
        let z = run.get(Site::Z(layer))?.unflatten(0, [self.seeds.len() as i64, -1]);
        let mut rows = vec![];
        for (number, batch) in self.batches.iter().enumerate() {
            let mut found = Array2::zeros((self.heads, self.tasks.len()));
            for ((head, task), nats) in found.indexed_iter_mut() {
                let (x, labels) = samples(&z.get(number as i64).select(2, head as i64), batch, task)?;
                *nats = nats_of(x.view(), &labels, self.seeds[number])?;
                rows.push(self.detail(number, "information", (layer, head, task), *nats));
            }
            let carried = found.sum() / self.tasks.len() as f64;
            let index = if carried >= LEAST { division(found.view())? } else { None };
            let of = |value: fn(Division) -> f64| index.map_or(f64::NAN, value);
            rows.push(self.of_run(number, "information_specialisation", of(|index| index.specialisation)));
            rows.push(self.of_run(number, "information_division", of(|index| index.division)));
            for (task, info) in self.tasks.iter().enumerate() {
                let best = found.column(task).iter().copied().fold(0.0, f64::max);
                let mut row = self.of_run(number, "information_share", best / info.chance);
                row.keys.task = Some(info.name.clone());
                rows.push(row);
            }
        }
        Ok(rows)
    }
}

/// A head's z, `[row, position, d_head]`, at the positions where `task` is asked, and the answers counted from 0.
fn samples(z: &Tensor, batch: &Batch, task: usize) -> Result<(Array2<f64>, Vec<usize>)> {
    let (positions, width) = (z.size()[1], z.size()[2] as usize);
    let (mut places, mut labels) = (vec![], vec![]);
    for (row, sample) in batch.samples.iter().enumerate() {
        for target in sample.targets.iter().filter(|target| target.task == task) {
            places.push(row as i64 * positions + target.position as i64);
            labels.push((target.token - target.choices.start) as usize);
        }
    }
    let read = z.flatten(0, 1).index_select(0, &Tensor::from_slice(&places).to_device(z.device()));
    let values = Vec::<f64>::try_from(read.to_device(tch::Device::Cpu).to_kind(Kind::Double).flatten(0, -1));
    let values = values.map_err(Error::torch("reading z"))?;
    let wrong = |_| Error::Shape { at: "z".into(), expected: "[sample, d_head]".into(), found: read.size() };
    Ok((Array2::from_shape_vec((places.len(), width), values).map_err(wrong)?, labels))
}

/// V-information in nats; 0 for a dead head, whose z is constant.
fn nats_of(x: ArrayView2<f64>, labels: &[usize], seed: u64) -> Result<f64> {
    if x.rows().into_iter().all(|row| row == x.row(0)) {
        return Ok(0.0);
    }
    let options = ProbeOptions { convergence: false, ..ProbeOptions::default() };
    Ok(v_information_of_labels(x, labels, &options, seed)?.nats().max(0.0))
}
