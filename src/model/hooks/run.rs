//! What a run recorded.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

use super::function::Function;
use crate::error::{Error, Result};
use crate::site::{Axis, Site};
use crate::tensors::write_tensors;
use crate::text::Tokens;

/// Where the graph of a run is cut: what was computed, and the equal value with which the run went on.
#[derive(Debug)]
pub(crate) struct Joint {
    pub site: Site,
    pub before: Tensor,
    pub after: Tensor,
}

/// The activations that a [`Plan`](super::Plan) tapped, by site.
#[derive(Debug)]
pub struct Run {
    tokens: Tokens,
    taps: BTreeMap<Site, Tensor>,
    /// How many of the model's layers are an encoder's in front of a decoder.
    encoder_layers: usize,
    /// In the order in which they were computed, with what becomes of the gradient.
    joints: Vec<(Joint, Vec<Function>)>,
}

impl Run {
    pub(crate) fn new(tokens: Tokens, taps: BTreeMap<Site, Tensor>) -> Self {
        Self { tokens, taps, encoder_layers: 0, joints: vec![] }
    }

    /// A run of a model whose first layers are an encoder's.
    pub(crate) fn behind(mut self, encoder_layers: usize) -> Self {
        self.encoder_layers = encoder_layers;
        self
    }

    pub(crate) fn encoder_layers(&self) -> usize {
        self.encoder_layers
    }

    /// The prompts whose positions those of `site` are: those that were run, or their sources.
    pub(crate) fn side(&self, site: Site) -> &Tokens {
        site.side(self.encoder_layers, &self.tokens)
    }

    pub(crate) fn with_joints(mut self, joints: Vec<(Joint, Vec<Function>)>) -> Self {
        self.joints = joints;
        self
    }

    /// Where the graph is cut, in the order of computation, and what becomes of the gradient there.
    pub(crate) fn joints(&self) -> &[(Joint, Vec<Function>)] {
        &self.joints
    }

    /// The activation at `site`; its axes are [`Site::axes`].
    ///
    /// # Errors
    /// [`Error::NotTapped`] where the plan did not tap it.
    pub fn get(&self, site: Site) -> Result<&Tensor> {
        self.taps
            .get(&site)
            .ok_or_else(|| Error::NotTapped { site, tapped: self.taps.keys().map(Site::to_string).collect() })
    }

    /// The activation at `site` at each prompt's last token, without the position axis: `[batch, ..]`. At `scores` and
    /// `pattern` these are the last token's queries, `[batch, head, key]`. Where positions are those of an encoder-decoder's
    /// source, it is the source's last token.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7]])?;
    /// let run = model.run(&tokens, &Plan::new().taps(["logits", "z.*", "pattern.1"]))?;
    /// assert_eq!(run.last(Site::Z(2))?.size(), [2, 4, 8]); // position 4 of the first prompt, position 2 of the second
    /// assert_eq!(run.last(Site::Pattern(1))?.size(), [2, 4, 5]);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NotTapped`] where the plan did not tap it.
    pub fn last(&self, site: Site) -> Result<Tensor> {
        let x = self.get(site)?;
        let axis = site.axes().into_iter().position(Axis::is_of_positions).unwrap_or(1);
        let by_position = x.transpose(1, axis as i64).flatten(0, 1);
        Ok(by_position.index_select(0, &self.side(site).last_places().to_device(x.device())))
    }

    /// The logits, `[batch, position, vocab]`.
    ///
    /// # Errors
    /// [`Error::NotTapped`] where the plan did not tap them.
    pub fn logits(&self) -> Result<&Tensor> {
        self.get(Site::Logits)
    }

    /// The prompts that were run.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Everything recorded, sorted by site.
    pub fn taps(&self) -> impl Iterator<Item = (Site, &Tensor)> {
        self.taps.iter().map(|(site, tensor)| (*site, tensor))
    }

    /// Writes everything recorded as safetensors, each tensor named by its site; whole or not at all.
    ///
    /// # Errors
    /// Where the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let tensors: Vec<(String, &Tensor)> = self.taps().map(|(site, tensor)| (site.to_string(), tensor)).collect();
        let mut lengths = vec![("lengths", format!("{:?}", self.tokens.lengths()))];
        lengths.extend(self.tokens.source().map(|source| ("source_lengths", format!("{:?}", source.lengths()))));
        write_tensors(path.as_ref(), &tensors, &lengths)
    }
}
