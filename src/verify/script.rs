//! Which lines of Python make the file to compare with?

use std::path::Path;

use super::against::{LAST, LOGITS, PATTERNS, STATES, TOKENS};
use crate::checkpoint::is_own_format;
use crate::error::{Error, Result};
use crate::model::{Model, Tokens};

impl Model {
    /// Ten lines of Python that make the file for [`Model::verify_against`]: what transformers computes from the same checkpoint
    /// for the same tokens, in float32. For a GGUF file, transformers needs the Python package `gguf`.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-llama")?;
    /// let script = model.verify_script(&Tokens::for_verification(&model)?, "golden.safetensors")?;
    /// assert!(script.contains("transformers") && script.lines().count() == 10);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If transformers cannot read the checkpoint because it is in headscope's own format, or because the model was made in
    /// memory; if the prompts differ in length.
    pub fn verify_script(&self, tokens: &Tokens, file: &str) -> Result<String> {
        if tokens.is_padded() {
            return Err(Error::argument("tokens", "prompts of one length", format!("{:?}", tokens.lengths())));
        }
        let from = self.python_source()?;
        let rows = serde_json::json!(tokens.rows());
        let file = python_text(file);
        Ok(format!(
            r#"import torch, transformers
from safetensors.torch import save_file
source, {TOKENS} = dict({from}), torch.tensor({rows})
names = transformers.AutoConfig.from_pretrained(**source).architectures or ["AutoModelForCausalLM"]
model = getattr(transformers, names[0]).from_pretrained(**source, dtype=torch.float32, attn_implementation="eager").eval()
with torch.no_grad(): out = model({TOKENS}, output_hidden_states=True, output_attentions=True)
file = {{"{TOKENS}": {TOKENS}, "{LOGITS}" if "{LOGITS}" in out else "{LAST}": out[0]}}
for i, x in enumerate(out.hidden_states): file[f"{STATES}.{{i}}"] = x.contiguous()
for i, x in enumerate(out.attentions): file[f"{PATTERNS}.{{i}}"] = x.contiguous()
save_file({{name: x.clone() for name, x in file.items()}}, {file})
"#
        ))
    }

    /// The arguments of `from_pretrained`.
    fn python_source(&self) -> Result<String> {
        let origin = self.origin();
        let unreadable = |found: &str| Error::argument("model", "a checkpoint that transformers reads", found);
        let file = origin.files.first().ok_or_else(|| unreadable("a model that was made in memory"))?;
        let folder = file.parent().unwrap_or(Path::new("."));
        if is_own_format(folder) {
            return Err(unreadable("one in headscope's own format"));
        }
        let path = python_text(&folder.to_string_lossy());
        Ok(match file.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) {
            true => {
                let name = python_text(&file.file_name().unwrap_or_default().to_string_lossy());
                format!("pretrained_model_name_or_path={path}, gguf_file={name}")
            }
            false => format!("pretrained_model_name_or_path={path}"),
        })
    }
}

/// A text as Python writes it: JSON's escapes are Python's.
fn python_text(text: &str) -> String {
    serde_json::json!(text).to_string()
}
