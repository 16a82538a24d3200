//! How does headscope's own format map to a model? `config.json` has any [`ModelConfig`] under the key `model`, and the
//! tensors are named as in [`Model::parameters`](crate::model::Model::parameters), with matrices stored `[in, out]`.
//! The lab saves its models in this format: attention-only models, heads of any width and models without norms, which
//! no published family's config can express.

use tch::Tensor;

use super::{Family, Tensors};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::Result;
use crate::model::{Linear, Make, ModelConfig, Norm, Weights};

pub(super) const FAMILY: Family =
    Family { name: NAME, config, tensors: Tensors::Read { settle: |_, _| {}, weights, superfluous: &[] } };

/// The value of `model_type`.
pub(crate) const NAME: &str = "headscope";
/// The key of `config.json` that holds the [`ModelConfig`].
pub(crate) const KEY: &str = "model";
/// The key of `config.json` that says how the weights were rewritten before they were saved.
pub(crate) const PROCESSING: &str = "processing";

fn config(json: &ConfigJson) -> Result<ModelConfig> {
    json.parsed(KEY, "a model's architecture")
}

fn weights(config: &ModelConfig, source: &Source) -> Result<Weights> {
    Weights::made(config, &mut Reader { source })
}

struct Reader<'a> {
    source: &'a Source,
}

impl Make for Reader<'_> {
    fn linear(&mut self, at: &str, name: &str, rows: usize, columns: usize, bias: bool) -> Result<Linear> {
        let w = self.source.matrix(&format!("{at}w_{name}"), rows, columns)?;
        Ok(Linear { w, b: bias.then(|| self.source.take(&format!("{at}b_{name}"), &[columns])).transpose()? })
    }

    fn tied(&mut self, w_e: &Tensor, bias: bool) -> Result<Linear> {
        let vocab = w_e.size()[0] as usize;
        Ok(Linear { w: w_e.tr(), b: bias.then(|| self.source.take("b_u", &[vocab])).transpose()? })
    }

    fn norm(&mut self, at: &str, name: &str, width: usize, bias: bool) -> Result<Norm> {
        let w = self.source.take(&format!("{at}{name}.w"), &[width])?;
        Ok(Norm { w, b: bias.then(|| self.source.take(&format!("{at}{name}.b"), &[width])).transpose()? })
    }

    fn table(&mut self, at: &str, name: &str, shape: &[usize], _: f64) -> Result<Tensor> {
        self.source.take(&format!("{at}{name}"), shape)
    }
}
