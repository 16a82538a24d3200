//! How large is a model, and how much memory does it compute in? From its configuration alone.

use tch::{Device, Kind, Tensor};

use super::config::{LayerConfig, ModelConfig};
use super::weights::{Linear, Make, Norm, Weights};
use super::wiring::Wiring;
use crate::error::{Error, Result};

/// Counts the parameters that are asked for, and makes none.
#[derive(Default)]
struct Counted(usize);

impl Counted {
    fn add(&mut self, rows: usize, columns: usize, bias: bool) {
        let all = rows.saturating_mul(columns).saturating_add(if bias { columns } else { 0 });
        self.0 = self.0.saturating_add(all);
    }
}

impl Make for Counted {
    fn linear(&mut self, _: &str, _: &str, rows: usize, columns: usize, bias: bool) -> Result<Linear> {
        self.add(rows, columns, bias);
        Ok(Linear { w: Tensor::new(), b: None })
    }

    fn tied(&mut self, w_e: &Tensor, bias: bool) -> Result<Linear> {
        self.add(0, w_e.size()[0] as usize, bias);
        Ok(Linear { w: Tensor::new(), b: None })
    }

    fn norm(&mut self, _: &str, _: &str, width: usize, bias: bool) -> Result<Norm> {
        self.add(1, width, bias);
        Ok(Norm { w: Tensor::new(), b: None })
    }

    fn table(&mut self, _: &str, _: &str, shape: &[usize], _: f64) -> Result<Tensor> {
        self.add(1, shape.iter().fold(1, |n, &length| n.saturating_mul(length)), false);
        // As many rows, without a column.
        Ok(Tensor::zeros([shape.first().map_or(0, |&rows| rows as i64), 0], (Kind::Float, Device::Cpu)))
    }
}

impl ModelConfig {
    /// The number of parameters of a model of this architecture; a tied unembedding counts once.
    ///
    /// ```
    /// use headscope::model::{Model, ModelConfig};
    /// let config = ModelConfig { n_layers: 3, ..ModelConfig::default() };
    /// assert_eq!(config.n_parameters()?, Model::random(&config, 0)?.n_parameters());
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the config does not [validate](ModelConfig::validate).
    pub fn n_parameters(&self) -> Result<usize> {
        self.validate()?;
        if self.encoder.is_some() {
            let mut counted = Counted::default();
            Weights::made(self, &mut counted)?;
            return Ok(counted.0);
        }
        let of = |layer: &LayerConfig, n: usize| {
            let mut counted = Counted::default();
            let blocks = Self { n_layers: n, n_blocks: n, block_cycle: 1, layers: vec![layer.clone()], ..self.clone() };
            Weights::made(&blocks, &mut counted)?;
            Ok::<_, Error>(counted.0)
        };
        // Blocks may differ; each kind is counted once.
        let mut kinds: Vec<(LayerConfig, usize)> = vec![];
        let mut sum = 0usize;
        for block in 0..self.blocks() {
            let layer = self.layer(block);
            let known = kinds.iter().find(|(kind, _)| *kind == layer).map(|(_, size)| *size);
            let size = match known {
                Some(size) => size,
                None => of(&layer, 2)? - of(&layer, 1)?,
            };
            if known.is_none() {
                kinds.push((layer, size));
            }
            sum = sum.saturating_add(size);
        }
        let (first, size) = (self.layer(0), kinds.first().map_or(0, |(_, size)| *size));
        Ok(sum.saturating_add(of(&first, 1)? - size))
    }

    /// Estimated peak bytes of the activations of a pass over so many tokens, each of which attends to `keys` positions: as if a
    /// block held all of its values until its end, the widest one twice, three patterns if it computes patterns, and with `logits`
    /// the logits.
    pub(crate) fn pass_bytes(&self, wiring: &Wiring, kind: Kind, size: PassSize) -> usize {
        let PassSize { tokens, keys, logits, patterns } = size;
        let widths = |layer| wiring.block(layer).steps().iter().map(|step| step.wire.width(self));
        let of_block = |layer| widths(layer).sum::<usize>() + widths(layer).max().unwrap_or(0);
        let width = (0..self.n_layers).map(of_block).max().unwrap_or(0);
        let experts = self.experts.map_or(0, |experts| 3 * experts.top_k * self.d_mlp);
        let pattern = if patterns { 3 * tokens * keys * self.n_heads } else { 0 };
        let logits = if logits { tokens * self.vocab } else { 0 };
        (tokens * (width + experts) + pattern + logits) * kind.elt_size_in_bytes()
    }

    /// Estimated bytes that a plain run takes beside the weights, for a batch of prompts of so many positions: its activations
    /// at their peak, and the logits of all positions.
    ///
    /// Where attention is fused, patterns are not kept. What taps and edits keep is not counted, nor what a matrix product takes
    /// for itself.
    pub fn run_bytes(&self, kind: Kind, prompts: usize, positions: usize) -> usize {
        let wiring = Wiring::new(self);
        let fused = (0..self.n_layers).all(|layer| wiring.block(layer).attend.is_fusable());
        let tokens = prompts.saturating_mul(positions);
        self.pass_bytes(
            &wiring,
            kind,
            PassSize { tokens, keys: positions, logits: self.has_logits(), patterns: !fused },
        )
    }
}

/// What a pass computes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PassSize {
    /// The tokens whose activations are computed.
    pub tokens: usize,
    /// The positions that each attends to.
    pub keys: usize,
    /// Whether the logits of all of them are computed.
    pub logits: bool,
    /// Whether patterns are.
    pub patterns: bool,
}
