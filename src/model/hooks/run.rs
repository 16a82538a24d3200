//! What a run recorded.

use std::collections::BTreeMap;
use std::path::Path;

use tch::Tensor;

use crate::error::{Error, Result};
use crate::site::Site;
use crate::tensors::write_tensors;
use crate::text::Tokens;

/// The activations that a [`Plan`](super::Plan) tapped, by site.
#[derive(Debug)]
pub struct Run {
    tokens: Tokens,
    taps: BTreeMap<Site, Tensor>,
}

impl Run {
    pub(crate) fn new(tokens: Tokens, taps: BTreeMap<Site, Tensor>) -> Self {
        Self { tokens, taps }
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
        let lengths = format!("{:?}", self.tokens.lengths());
        write_tensors(path.as_ref(), &tensors, &[("lengths", lengths)])
    }
}
