//! What a run recorded.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use tch::{Device, Kind, Tensor};

use super::site::Site;
use super::tokens::Tokens;
use crate::error::{Error, Result};
use crate::file;

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
        let path = path.as_ref();
        let stored = self.taps().map(|(site, tensor)| Ok((site.to_string(), Stored::of(site, tensor)?)));
        let stored = stored.collect::<Result<Vec<(String, Stored)>>>()?;
        let lengths = format!("{:?}", self.tokens.lengths());
        let metadata = [("headscope", env!("CARGO_PKG_VERSION").to_owned()), ("lengths", lengths)];
        let metadata = HashMap::from(metadata.map(|(name, value)| (name.to_owned(), value)));
        let wrong = |reason: safetensors::SafeTensorError| Error::Format {
            path: path.to_owned(),
            at: "tensors".to_owned(),
            expected: "tensors that safetensors can hold".to_owned(),
            found: reason.to_string(),
        };
        let views = stored.iter().map(|(name, stored)| Ok((name, stored.view().map_err(wrong)?)));
        let views = views.collect::<Result<Vec<_>>>()?;
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(wrong)?;
        file::write_bytes(path, &bytes)
    }
}

/// A tensor's bytes as safetensors wants them.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn of(site: Site, tensor: &Tensor) -> Result<Self> {
        let tensor = tensor.to_device(Device::Cpu).contiguous();
        let dtype = if tensor.kind() == Kind::Double { Dtype::F64 } else { Dtype::F32 };
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        let count = tensor.numel();
        tensor.f_copy_data_u8(&mut bytes, count).map_err(Error::torch(format!("reading `{site}`")))?;
        Ok(Self { dtype, shape: tensor.size().iter().map(|&n| n as usize).collect(), bytes })
    }

    fn view(&self) -> Result<TensorView<'_>, safetensors::SafeTensorError> {
        TensorView::new(self.dtype, self.shape.clone(), &self.bytes)
    }
}
