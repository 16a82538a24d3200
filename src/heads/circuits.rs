//! What do the weights of a model's heads say? They become the input of [`circuits`](crate::circuits): float64 arrays with
//! norms folded in.

use std::sync::Arc;

use ndarray::{ArcArray1, ArcArray2, Array2, ArrayView1, ArrayView2};
use tch::{Kind, Tensor};

use crate::circuits::{Circuits, Factored, HeadWeights, Offset, copying_score, diagonal_ranks, top_k, top_k_accuracy};
use crate::error::{Error, Result};
use crate::memory::GiveBack;
use crate::model::{Linear, Model, Norm, NormAt, NormKind, QkNorm, Unembed, Wire, norm_parts, rotary_pairs};
use crate::progress::Progress;
use crate::table::{Keys, Observation, Table};

/// The number of rows of an embedding that are converted to float64 at a time.
const ROWS: i64 = 4096;

/// How the weights of heads are taken from a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct CircuitOptions {
    /// Whether the norm between residual stream and head in a pre-norm model is folded into the weights: `W <- diag(gamma) W` and
    /// `b <- b + beta W`, for LayerNorm also the subtraction of the mean. The division is left out; it changes no direction. In
    /// post-norm models there is nothing between the two.
    pub fold_norms: bool,
    /// Whether the mean over d_model is subtracted from what each head writes, if every norm is a LayerNorm, which subtracts it
    /// before anything reads it.
    pub centre_writing: bool,
}

impl Default for CircuitOptions {
    fn default() -> Self {
        Self { fold_norms: true, centre_writing: true }
    }
}

/// Which matrix turns directions of the residual stream into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vocabulary {
    /// The token embedding: which tokens lie in this direction?
    Embedding,
    /// The unembedding: which tokens does this direction raise?
    Unembedding,
}

impl Model {
    /// The weights of all heads, ready for questions about them; the model is not run.
    ///
    /// ```
    /// use headscope::circuits::{Composition, Offset};
    /// use headscope::heads::CircuitOptions;
    /// use headscope::model::Model;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let circuits = model.circuits(&CircuitOptions::default())?;
    /// assert_eq!(circuits.head(2, 3)?.qk(Offset::At(0))?.width(), 8);
    /// let table = circuits.composition(Composition::K, Offset::At(0))?;
    /// assert_eq!(table.columns(), ["from_layer", "from_head", "layer", "head", "metric", "value", "z_score"]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// Scores are not divided by `sqrt(d_head)`. In post-norm models there is more than a division between the heads of two layers
    /// (the norm of each block has weights), and composition leaves it out.
    ///
    /// # Errors
    /// If LAPACK or libtorch fail; for an encoder-decoder.
    pub fn circuits(&self, options: &CircuitOptions) -> Result<Circuits> {
        self.one_sequence("circuits")?;
        let mut heads = vec![];
        for layer in 0..self.config().n_layers {
            let (block, wiring) = (self.block(layer)?, self.wiring().block(layer));
            let norm = |at| block.norm(at).filter(|_| options.fold_norms);
            let before = norm(NormAt::Attn).filter(|_| wiring.step(Wire::AttnIn).is_some());
            let attn = &block.attn;
            let [q, k, v] = [&attn.q, &attn.k, &attn.v].map(|linear| self.read(linear, before));
            let [q, k] = [(q, &attn.q_norm), (k, &attn.k_norm)].map(|(x, norm)| self.through_qk_norm(x, norm, options));
            let (w_o, width) = (self.written(&attn.o.w, norm(NormAt::AttnOut), options), self.config().d_head as i64);
            let pairs = rotary_pairs(self.config(), layer);
            let rotary: Option<Arc<[f64]>> = pairs.as_ref().map(|all| all.iter().map(|(_, turn)| *turn).collect());
            let part = |(w, b): &(Tensor, Tensor), i: usize, turns: bool| {
                let order = pairs.as_ref().filter(|_| turns);
                let columns = |t: &Tensor| in_halves(&t.narrow(-1, i as i64 * width, width), order);
                Ok::<_, Error>((matrix(&columns(w))?, vector(&columns(b))?))
            };
            // Query heads of a group share the arrays of their key/value head.
            let of_group = |kv: usize| Ok::<_, Error>((part(&k, kv, true)?, part(&v, kv, false)?));
            let groups = (0..self.config().n_kv_heads).map(of_group).collect::<Result<Vec<_>>>()?;
            for head in 0..self.config().n_heads {
                let kv_head = self.config().kv_head(head);
                let ((w_q, b_q), ((w_k, b_k), (w_v, b_v))) = (part(&q, head, true)?, groups[kv_head].clone());
                let w_o = matrix(&w_o.narrow(0, head as i64 * width, width))?;
                let rotary = rotary.clone();
                heads.push(HeadWeights { layer, head, kv_head, w_q, w_k, w_v, w_o, b_q, b_k, b_v, rotary });
            }
        }
        Circuits::new(heads, self.provenance(serde_json::json!(options), None)?)
    }

    /// Which logits does a head raise by attending to a token? `W_E W_V W_O W_U`, `[vocab, vocab]`, kept as factors. Row: the
    /// token attended to; column: the token whose logit changes. The final norm is folded in if the options say so.
    ///
    /// It ignores what other parts add to the embedding before the head reads it: in GPT-2 the first MLP matters much.
    ///
    /// ```
    /// use headscope::heads::CircuitOptions;
    /// use headscope::model::Model;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let ov = model.full_ov(0, 1, &CircuitOptions::default())?;
    /// assert_eq!(ov.left().nrows(), model.config().vocab);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::PartAbsent`] without embeddings; if the model has no linear unembedding, or there is no such head.
    pub fn full_ov(&self, layer: usize, head: usize, options: &CircuitOptions) -> Result<Factored> {
        let _free = GiveBack;
        let circuits = self.circuits(options)?;
        self.through_vocabulary(&circuits.head(layer, head)?.ov()?, options)
    }

    /// Which tokens does a head attend to from which, by their embeddings alone? `W_E W_Q R W_K^T W_E^T`, `[query, key]` over
    /// the vocabulary, kept as factors. If norms are folded in, each embedding is divided by its own scale, as a head of the first
    /// layer sees it.
    ///
    /// # Errors
    /// [`Error::PartAbsent`] without embeddings; if there is no such head.
    pub fn full_qk(&self, layer: usize, head: usize, offset: Offset, options: &CircuitOptions) -> Result<Factored> {
        self.require("a circuit over the vocabulary", &["w_e"])?;
        let _free = GiveBack;
        let (circuits, scale) = (self.circuits(options)?, options.fold_norms);
        let qk = circuits.head(layer, head)?.qk(offset)?;
        let query = self.embedded(&tensor(&qk.left()), scale)?;
        let key = self.embedded(&tensor(&qk.right().t()), scale)?;
        Factored::new(matrix(&query)?, matrix(&key)?.reversed_axes())
    }

    /// Which heads copy tokens? For every head `copying_score` (see [`copying_score`]) and, for each k of `top`, how often a
    /// token is among the k that its full OV circuit raises most (`top_1_accuracy`). The circuits over the vocabulary are computed
    /// in blocks of rows, which for a large vocabulary takes seconds per head; they are not computed if `top` is empty.
    ///
    /// # Errors
    /// As [`Model::full_ov`]; if a k is 0.
    pub fn copying(&self, top: &[usize], options: &CircuitOptions) -> Result<Table> {
        let circuits = self.circuits(options)?;
        let mut rows = vec![];
        let mut progress = Progress::new("heads", circuits.heads().len());
        let _free = GiveBack;
        for head in circuits.heads() {
            let circuit = self.through_vocabulary(&head.ov()?, options)?;
            let keys =
                Keys { layer: u32::try_from(head.layer).ok(), head: u32::try_from(head.head).ok(), ..Keys::default() };
            let mut row = |metric: String, value| {
                rows.push(Observation { keys: keys.clone(), metric, value, ..Observation::default() });
            };
            row("copying_score".to_owned(), copying_score(&circuit)?);
            let ranks = if top.is_empty() { vec![] } else { diagonal_ranks(&circuit)? };
            for &k in top {
                row(format!("top_{k}_accuracy"), top_k_accuracy(&ranks, k)?);
            }
            progress.add(1);
        }
        let what = serde_json::json!({"copying": options, "top": top});
        Table::new(rows, self.provenance(what, None)?)
    }

    /// Which `k` tokens does a direction of the residual stream, `[d_model]`, stand for? With its inner product with each. This is
    /// how the singular vectors of a head are read. Their sign is arbitrary: ask for the negative direction too.
    ///
    /// # Errors
    /// [`Error::PartAbsent`] if the checkpoint has no such matrix, [`Error::Shape`] for a direction of another width.
    pub fn top_tokens(
        &self,
        direction: &ArrayView1<'_, f64>,
        through: Vocabulary,
        k: usize,
    ) -> Result<Vec<(i64, f64)>> {
        if direction.len() != self.config().d_model {
            let (at, found) = ("direction".to_owned(), vec![direction.len() as i64]);
            return Err(Error::Shape { at, expected: format!("[{}]", self.config().d_model), found });
        }
        let direction = Tensor::from_slice(&direction.to_vec()).unsqueeze(1);
        let scores = match through {
            Vocabulary::Embedding => {
                self.require("reading a direction through the embedding", &["w_e"])?;
                self.embedded(&direction, false)?
            }
            Vocabulary::Unembedding => {
                self.unembedded(&direction.tr(), &CircuitOptions { fold_norms: true, centre_writing: false })?.tr()
            }
        };
        let scores: Vec<f64> = matrix(&scores)?.iter().copied().collect();
        Ok(top_k(&scores, k).into_iter().map(|(token, score)| (token as i64, score)).collect())
    }

    fn through_vocabulary(&self, ov: &Factored, options: &CircuitOptions) -> Result<Factored> {
        self.require("a circuit over the vocabulary", &["w_e", "w_u"])?;
        let left = self.embedded(&tensor(&ov.left()), false)?;
        let right = self.unembedded(&tensor(&ov.right()), options)?;
        Factored::new(matrix(&left)?, matrix(&right)?)
    }

    /// `W_E w`, `[vocab, k]`, in float64, a block of rows at a time; if `scaled`, each embedding is divided by its norm's scale.
    fn embedded(&self, w: &Tensor, scaled: bool) -> Result<Tensor> {
        let blocks = (0..self.config().vocab as i64).step_by(ROWS as usize).map(|start| {
            let rows = plain(&self.weights().w_e.narrow(0, start, ROWS.min(self.config().vocab as i64 - start)));
            let rows = match scaled && self.config().norm != NormKind::None {
                true => {
                    let (_, scale) = norm_parts(self.config().norm, &rows, self.config().norm_eps);
                    rows / scale
                }
                false => rows,
            };
            rows.f_matmul(w)
        });
        let blocks = blocks.collect::<Result<Vec<_>, _>>().map_err(Error::torch("a product with the embedding"))?;
        Ok(Tensor::cat(&blocks, 0))
    }

    /// `w W_U`, `[k, vocab]`, in float64, a block of columns at a time.
    fn unembedded(&self, w: &Tensor, options: &CircuitOptions) -> Result<Tensor> {
        self.require("a circuit over the vocabulary", &["w_u"])?;
        let head =
            self.weights().unembedding.as_ref().filter(|_| matches!(self.config().unembed, Unembed::Linear { .. }));
        let Some(head) = head.filter(|_| self.weights().projection.is_none()) else {
            return Err(Error::argument(
                "model",
                "one whose logits are linear in the residual stream",
                &self.config().family,
            ));
        };
        let mut w = plain(w);
        if let Some(norm) = self.weights().ln_final.as_ref().filter(|_| options.fold_norms) {
            if self.config().norm == NormKind::Layer {
                w = &w - w.mean_dim([-1i64].as_slice(), true, None::<Kind>);
            }
            w = &w * plain(&norm.w); // not in place: it may be the model's own
        }
        let vocab = self.config().vocab as i64;
        let blocks = (0..vocab)
            .step_by(ROWS as usize)
            .map(|start| w.f_matmul(&plain(&head.linear.w.narrow(1, start, ROWS.min(vocab - start)))));
        let blocks = blocks.collect::<Result<Vec<_>, _>>().map_err(Error::torch("a product with the unembedding"))?;
        Ok(Tensor::cat(&blocks, 1))
    }

    /// The matrix and bias of a projection with `norm` folded in, in float64.
    fn read(&self, linear: &Linear, norm: Option<&Norm>) -> (Tensor, Tensor) {
        let mut w = plain(&linear.w);
        let width = w.size()[1];
        let mut b = linear.b.as_ref().map_or_else(|| Tensor::zeros([width], (Kind::Double, w.device())), plain);
        if let Some(norm) = norm {
            if let Some(beta) = &norm.b {
                b = &b + plain(beta).unsqueeze(0).matmul(&w).squeeze_dim(0);
            }
            w = plain(&norm.w).unsqueeze(1) * w;
            if self.config().norm == NormKind::Layer {
                w = &w - w.mean_dim([0i64].as_slice(), true, None::<Kind>);
            }
        }
        (w, b)
    }

    /// A projection to queries or keys with the weights of their norm folded in; the division is left out, as with other norms.
    fn through_qk_norm(
        &self,
        (w, b): (Tensor, Tensor),
        norm: &Option<Norm>,
        options: &CircuitOptions,
    ) -> (Tensor, Tensor) {
        let Some(norm) = norm.as_ref().filter(|_| options.fold_norms) else { return (w, b) };
        let gamma = plain(&norm.w);
        let gamma = match self.config().qk_norm {
            QkNorm::Head => gamma.repeat([w.size()[1] / gamma.size()[0]]),
            QkNorm::EachHead | QkNorm::All | QkNorm::None => gamma,
        };
        (w * &gamma, b * gamma)
    }

    /// The output matrices of the heads, `[n_heads * d_head, d_model]`, in float64, with the norm on the output folded in.
    fn written(&self, w_o: &Tensor, norm: Option<&Norm>, options: &CircuitOptions) -> Tensor {
        let mut w = plain(w_o);
        let centred = |w: Tensor| &w - w.mean_dim([-1i64].as_slice(), true, None::<Kind>);
        if let Some(norm) = norm {
            w = if self.config().norm == NormKind::Layer { centred(w) } else { w } * plain(&norm.w);
        }
        if options.centre_writing && self.config().norm == NormKind::Layer { centred(w) } else { w }
    }
}

/// The columns of a head, reordered so that column i is rotated with column i + d_head / 2.
fn in_halves(t: &Tensor, pairs: Option<&Vec<([usize; 2], f64)>>) -> Tensor {
    let Some(pairs) = pairs else { return t.shallow_clone() };
    let order: Vec<i64> =
        [0, 1].into_iter().flat_map(|half| pairs.iter().map(move |(pair, _)| pair[half] as i64)).collect();
    t.index_select(-1, &Tensor::from_slice(&order))
}

/// Detached, in float64 on the CPU.
fn plain(t: &Tensor) -> Tensor {
    t.detach().to_device(tch::Device::Cpu).to_kind(Kind::Double)
}

fn matrix(t: &Tensor) -> Result<ArcArray2<f64>> {
    let (rows, columns) = (t.size()[0] as usize, t.size()[1] as usize);
    let matrix = Array2::from_shape_vec((rows, columns), values(t)?);
    matrix.map(Array2::into_shared).map_err(|_| wrong_axes(t, "[row, column]"))
}

fn vector(t: &Tensor) -> Result<ArcArray1<f64>> {
    Ok(ArcArray1::from_vec(values(t)?))
}

fn values(t: &Tensor) -> Result<Vec<f64>> {
    Vec::try_from(t.contiguous().flatten(0, -1)).map_err(Error::torch("reading a weight"))
}

fn wrong_axes(t: &Tensor, expected: &str) -> Error {
    Error::Shape { at: "weight".to_owned(), expected: expected.to_owned(), found: t.size() }
}

fn tensor(matrix: &ArrayView2<'_, f64>) -> Tensor {
    let (rows, columns) = matrix.dim();
    let values: Vec<f64> = matrix.iter().copied().collect();
    Tensor::from_slice(&values).view([rows as i64, columns as i64])
}
