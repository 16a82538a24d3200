//! How important is each head? Losses under ablation, and Shapley values.

use ndarray::{Array3, Axis, concatenate};
use tch::{Kind, Tensor};

use super::probe::{Probe, array};
use crate::error::{Error, Result};
use crate::intervene::{Ablation, MOST, shapley_values};
use crate::lab::prepared::Predicted;
use crate::model::{Entry, Joins, Pass, Past, Program, Unchanged, Wire};

/// Memory limit in bytes for the stacked variants.
const BUDGET: i64 = 1 << 26;

/// Values of the residual stream in a block, by name.
type Stream = Vec<(Wire, Tensor)>;

impl Probe {
    /// The loss of every task with some of a layer's heads ablated, for several sets of heads at once.
    ///
    /// The z of an ablated head is replaced by 0, or by its mean over the held-out sequences at each position,
    /// excluding padding. Everything up to the layer's z is computed once; the rest of the forward pass runs for all
    /// sets stacked.
    ///
    /// # Shapes
    /// `[run, set, task]`, in nats.
    ///
    /// # Errors
    /// If there is no such layer or head, or the ablation is neither zero nor mean.
    pub fn losses_without(&self, layer: usize, absent: &[Vec<usize>], ablation: Ablation) -> Result<Array3<f64>> {
        self.check_layer(layer)?;
        if let Ablation::Resample { .. } = ablation {
            return Err(Error::argument("ablation", "zero or mean", "resample"));
        }
        let heads = self.model.config().n_heads;
        if let Some(&bad) = absent.iter().flatten().find(|&&head| head >= heads) {
            let (at, found, limit) = ("absent heads".to_owned(), bad as i64, heads as i64);
            return Err(Error::OutOfRange { at, axis: "head", found, limit });
        }
        tch::no_grad(|| {
            let (stream, [z, other]) = self.base(layer, ablation)?;
            let size = |x: &Tensor| x.numel() as i64;
            let resid = size(&stream[0].1);
            let logits = resid / self.model.config().d_model as i64 * self.held.columns.1;
            let width = 3 * stream.len() as i64 * resid + 2 * size(&z) + 3 * logits;
            let at_once = (BUDGET / (width * self.model.kind().elt_size_in_bytes() as i64)).max(1);
            let mut all = vec![];
            for sets in absent.chunks(at_once as usize) {
                let mask: Vec<bool> = sets.iter().flat_map(|set| (0..heads).map(|head| set.contains(&head))).collect();
                let mask = Tensor::from_slice(&mask).to_device(self.model.device());
                let z = other.where_self(&mask.view([1, sets.len() as i64, 1, 1, heads as i64, 1]), &z);
                all.push(array::<ndarray::Ix3>(&self.onwards(layer, &stream, &z)?, "losses")?);
            }
            let views: Vec<_> = all.iter().map(|part| part.view()).collect();
            let nothing = |_| Error::argument("absent", "at least one set of heads", absent.len());
            concatenate(Axis(1), &views).map_err(nothing)
        })
    }

    /// How important is each head of a layer for each task? Shapley values of the task's loss in nats, over all subsets
    /// of the layer's heads; see [`shapley_values`]. A useful head has a positive value.
    ///
    /// # Shapes
    /// `[run, head, task]`.
    ///
    /// # Errors
    /// As for [`Probe::losses_without`]; also if a layer has more than 12 heads.
    pub fn shapley(&self, layer: usize, ablation: Ablation) -> Result<Array3<f64>> {
        let heads = self.model.config().n_heads;
        if heads > MOST {
            return Err(Error::argument("n_heads", format!("at most {MOST}, to enumerate all subsets"), heads));
        }
        let subsets = (0..1usize << heads).map(|mask| (0..heads).filter(|head| mask >> head & 1 == 1).collect());
        let losses = self.losses_without(layer, &subsets.collect::<Vec<_>>(), ablation)?;
        let mut phi = Array3::zeros((self.runs(), heads, self.tasks.len()));
        for run in 0..self.runs() {
            for task in 0..self.tasks.len() {
                let values: Vec<f64> = losses.index_axis(Axis(0), run).column(task).to_vec();
                let of_heads = shapley_values(&values)?;
                of_heads.into_iter().enumerate().for_each(|(head, value)| phi[[run, head, task]] = value);
            }
        }
        Ok(phi)
    }

    /// The values that follow a layer's heads beside their z, each `[run, 1, row, position, d_model]`; z, `[run, 1, row, position,
    /// head, d_head]`; and what it becomes where a head is absent, broadcast against it. In the last layer only the places that
    /// are read, as rows of one position.
    fn base(&self, layer: usize, ablation: Ablation) -> Result<(Stream, [Tensor; 2])> {
        let wiring = self.model.wiring().block(layer);
        let live = wiring.live(wiring.attend_step());
        let mut values = self.values(layer, live)?;
        let z = values.remove(&(layer, Wire::Z)).ok_or_else(|| Error::argument("layer", "one with heads", layer))?;
        let other = match ablation {
            Ablation::Zero => z.zeros_like(),
            _ => self.mean_by_position(&z),
        };
        let read = self.is_last(layer);
        let by_run = |x: Tensor| {
            let x = if read { self.held.pick(&x) } else { x };
            x.unflatten(0, [self.held.runs, -1]).unsqueeze(1)
        };
        let stream = values.into_iter().map(|((_, wire), x)| (wire, by_run(x))).collect();
        Ok((stream, [by_run(z), by_run(other)]))
    }

    /// Whether nothing after the layer's heads mixes positions.
    fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.model.config().n_layers
    }

    /// Each run's mean over rows at each position, expanded to every row of `x`, `[run * row, position, ..]`.
    fn mean_by_position(&self, x: &Tensor) -> Tensor {
        let valid = self.held.tokens.valid(x.device()).to_kind(x.kind()).unsqueeze(-1).unsqueeze(-1);
        let by_run = |x: &Tensor| x.unflatten(0, [self.held.runs, -1]);
        let sum = |x: Tensor| by_run(&x).sum_dim_intlist([1i64].as_slice(), true, None::<Kind>);
        let mean = sum(x * &valid) / sum(valid).clamp_min(1.0);
        mean.expand_as(&by_run(x)).flatten(0, 1)
    }

    /// The losses `[run, variant, task]` from a layer's z on, `[run, variant, row, position, head, d_head]`.
    fn onwards(&self, layer: usize, stream: &Stream, z: &Tensor) -> Result<Tensor> {
        let config = self.model.config();
        let (variants, positions) = (z.size()[1], z.size()[3]);
        let each = |x: &Tensor| {
            let width = config.d_model as i64;
            x.expand([self.held.runs, variants, z.size()[2], positions, width], false).reshape([-1, positions, width])
        };
        let mut base: Unchanged = stream.iter().map(|(wire, x)| ((layer, *wire), each(x))).collect();
        base.insert((layer, Wire::Z), z.flatten(0, 2));
        // What the models' own edits make of this layer's z is in it already.
        let mut program = Program::taps([]);
        for edit in self.edits.iter().filter(|edit| edit.site.layer() > Some(layer)) {
            program.push(edit.clone(), None, &Default::default(), config, &self.held.tokens)?;
        }
        let entry = Entry::after(layer, self.model.wiring().block(layer).attend_step());
        let joins = Joins::at(entry, 1, self.held.ids.shallow_clone(), Some(&base));
        let wanted = self.held.wanted().filter(|_| !self.is_last(layer));
        let wanted = wanted.map(|wanted| {
            let by_run = wanted.view([self.held.runs, 1, -1]);
            by_run.expand([self.held.runs, variants, by_run.size()[2]], false).flatten(0, 2)
        });
        let mut pass = Pass::over(&self.model, &program, positions as usize, None, Past::None).only(wanted);
        let mut x = pass.residual(&joins, config.n_layers)?;
        if let (Predicted::Some(_), false) = (&self.held.places, self.is_last(layer)) {
            x = self.held.pick_variants(&x, variants);
        }
        self.held.losses(&pass.some_logits(&x, self.held.columns)?, variants)
    }
}
