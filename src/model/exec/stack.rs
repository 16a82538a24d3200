//! How do several models of one architecture run as one? Every parameter has a leading `run` axis, and the rows of a batch are
//! ordered by run. Small models leave a processor idle; many of them at once do not.

use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::model::{Model, Origin, Position};

impl Model {
    /// Several models of one architecture as one, with their parameters along a leading `run` axis; a single model stays as it
    /// is. The tokenizer is that of the first model.
    ///
    /// # Errors
    /// If there is no model, two differ in architecture, type or device, or several have token types, experts, attention sinks or
    /// relative buckets.
    pub(crate) fn stacked(models: &[Self]) -> Result<Self> {
        let first = models.first().ok_or_else(|| Error::argument("models", "at least one", "none"))?;
        first.require("stacking", &["w_e", "w_pos", "mlp", "ln_final", "w_u"])?;
        let alike = |model: &Self| {
            let same = |(a, b): ((String, &Tensor), (String, &Tensor))| a.0 == b.0 && a.1.size() == b.1.size();
            let (own, its) = (first.parameters(), model.parameters());
            (model.config(), model.kind, model.device) == (first.config(), first.kind, first.device)
                && own.len() == its.len()
                && own.into_iter().zip(its).all(same)
        };
        if let Some(other) = models.iter().position(|model| !alike(model)) {
            let found = format!("another in model {other}");
            return Err(Error::argument("models", "one architecture, type and device", found));
        }
        let single = [
            ("token types", first.config.n_token_types > 0),
            ("positions that count tokens", first.config.uncounted.is_some()),
            ("positions for queries and keys", first.config.position == Position::Shortformer),
            ("experts", first.config.experts.is_some()),
            ("attention sinks", first.config.sinks),
            ("an encoder in front of a decoder", first.config.encoder.is_some()),
            ("relative buckets", matches!(first.config.position, Position::Buckets { .. })),
        ];
        if let Some((what, _)) = single.iter().find(|(_, has)| *has && models.len() > 1) {
            return Err(Error::argument("models", format!("one only, as it has {what}"), models.len()));
        }
        let all: Vec<Vec<(String, &Tensor)>> = models.iter().map(Self::parameters).collect();
        let mut number = 0..;
        Ok(first.with_parameters(|old| match (models.len(), number.next()) {
            (2.., Some(i)) => Tensor::stack(&all.iter().map(|own| own[i].1).collect::<Vec<_>>(), 0),
            _ => old.shallow_clone(),
        }))
    }

    /// The length of the `run` axis; 1 if there is none.
    pub(crate) fn runs(&self) -> usize {
        if self.weights_are_stacked() { self.weights.w_e.size()[0] as usize } else { 1 }
    }

    /// Whether parameters have a `run` axis.
    pub(crate) fn weights_are_stacked(&self) -> bool {
        self.weights.w_e.dim() == 3
    }

    /// One of the models along the `run` axis, with its own copy of the parameters.
    pub(crate) fn unstacked(&self, run: usize) -> Self {
        let stacked = self.runs() > 1;
        self.with_parameters(|old| if stacked { old.get(run as i64).copy() } else { old.copy() })
    }

    /// The same model with every parameter replaced by `each(parameter)`, in the order of [`Model::parameters`].
    pub(crate) fn with_parameters(&self, mut each: impl FnMut(&Tensor) -> Tensor) -> Self {
        let (name, processing) = (self.origin.name.clone(), self.origin.processing.clone());
        let origin = Origin { name, processing, ..Origin::default() };
        Self::new(self.config.clone(), self.weights.rebuilt(&mut |_, old| each(old)), origin, self.tokenizer.clone())
    }
}

/// The embeddings of `ids`, `[row, position]` to `[row, position, d_model]`.
pub(super) fn look_up(w_e: &Tensor, ids: &Tensor) -> Result<Tensor> {
    if w_e.dim() == 2 {
        return Ok(rows(w_e, ids));
    }
    let (runs, vocab) = (w_e.size()[0], w_e.size()[1]);
    if ids.size()[0] % runs != 0 {
        let expected = format!("as many rows for each of {runs} runs");
        return Err(Error::argument("tokens", expected, ids.size()[0]));
    }
    let first = Tensor::arange(runs, (Kind::Int64, ids.device())).view([-1, 1, 1]) * vocab;
    let own = (ids.view([runs, -1, ids.size()[1]]) + first).view_as(ids);
    Ok(rows(&w_e.flatten(0, 1), &own))
}

/// The rows of `w` at `ids`, by the operation with the faster gradient; on a GPU that one would not be deterministic.
fn rows(w: &Tensor, ids: &Tensor) -> Tensor {
    match w.requires_grad() && w.device() == Device::Cpu {
        true => w.index_select(0, &ids.flatten(0, -1)).unflatten(0, ids.size()),
        false => Tensor::embedding(w, ids, -1, false, false),
    }
}

/// `x`, `[position, d_model]` or with a leading `run` axis, repeated for `rows` rows.
pub(super) fn each_row(x: &Tensor, rows: i64) -> Tensor {
    let size = x.size();
    let own = |runs: i64| x.unsqueeze(1).expand([runs, rows / runs, size[1], size[2]], false).flatten(0, 1);
    if x.dim() == 3 { own(size[0]) } else { x.unsqueeze(0).expand([rows, size[0], size[1]], false) }
}

/// `x`, `[row, position, d_model]`, with `own`, `[position, d_model]` or with a leading `run` axis, added to every row.
pub(super) fn add_to_each_row(x: &Tensor, own: &Tensor) -> Tensor {
    match own.dim() {
        3 => (x.unflatten(0, [own.size()[0], -1]) + own.unsqueeze(1)).flatten(0, 1),
        _ => x + own,
    }
}

/// The part of each head in `x`, `[.., head, a]`, times its own matrix of `w`, `[head, a, b]`: `[.., head, b]`. If `w` has a
/// `run` axis, before that of heads or merged with it, the first axis of `x` is ordered by run. There is one product per head,
/// over all rows.
pub(crate) fn each_head(x: &Tensor, w: &Tensor) -> Tensor {
    let (size, w) = (x.size(), w.flatten(0, -3));
    let [leading @ .., heads, a] = size.as_slice() else { return x.shallow_clone() };
    let runs = w.size()[0] / heads;
    let products = by_run(&x.reshape([-1, *heads, *a]), runs).bmm(&w);
    products.unflatten(0, [runs, *heads]).transpose(1, 2).flatten(0, 1).unflatten(0, leading)
}

/// `[row, head, a]` as `[run * head, row, a]`.
pub(super) fn by_run(x: &Tensor, runs: i64) -> Tensor {
    let (heads, a) = (x.size()[1], x.size()[2]);
    x.reshape([runs, -1, heads, a]).transpose(1, 2).reshape([runs * heads, -1, a])
}
