//! `headscope inspect`: what is in a model?

use anyhow::Result;
use clap::Args;
use headscope::device;
use headscope::model::{Model, Site};
use serde_json::json;

use super::ModelArguments;

/// Show a model's architecture, its sites, and the available devices.
///
/// Example: headscope inspect minilm
///
/// What loading and a run will take of memory is printed first, from the headers of the files alone; --headers stops there.
#[derive(Args)]
pub struct Inspect {
    #[command(flatten)]
    model: ModelArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show what the headers say, and load nothing
    #[arg(long)]
    headers: bool,
    /// The length of the prompt for which a run's memory is estimated; by default 1024 or the model's context
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    length: Option<u32>,
}

/// Tokens of the prompt for which a run's memory is estimated.
const LENGTH: usize = 1024;

impl Inspect {
    pub fn run(&self) -> Result<()> {
        let preview = self.model.preview()?;
        let length = self.length.map_or(LENGTH.min(preview.config.n_positions), |length| length as usize);
        let memory = json!({"load": preview.load_bytes(), "run": preview.run_bytes(1, length), "tokens": length});
        let line = |name: &str, value: String| println!("{name:<14} {value}");
        if !self.json {
            line("model", self.model.model.clone());
            let [load, run] = [preview.load_bytes(), preview.run_bytes(1, length)].map(mebibytes);
            line("memory", format!("{load} to load, {run} more for a run over {length} tokens (from the headers)"));
        }
        if self.headers {
            let parameters = preview.parameters;
            match self.json {
                true => {
                    let all = json!({"config": preview.config, "parameters": parameters, "memory": memory});
                    println!("{}", serde_json::to_string_pretty(&all)?);
                }
                false => line("parameters", with_commas(parameters)),
            }
            return Ok(());
        }
        let model = self.model.load()?;
        let config = model.config();
        let sha256 = model.sha256()?;
        let devices: Vec<String> = device::available().into_iter().map(device::name).collect();
        if self.json {
            let parameters: Vec<_> = model
                .parameters()
                .into_iter()
                .map(|(name, tensor)| json!({"name": name, "shape": tensor.size()}))
                .collect();
            let sites: Vec<Site> = Site::all(config);
            let bos =
                bos(&model).map(|(id, token, prepended)| json!({"id": id, "token": token, "prepended": prepended}));
            let all = json!({"bos": bos, "memory": memory, "config": config, "parameters": model.n_parameters(), "sha256": sha256,
                "devices": devices, "sites": sites, "tensors": parameters});
            println!("{}", serde_json::to_string_pretty(&all)?);
            return Ok(());
        }
        line("family", config.family.clone());
        line("parameters", with_commas(model.n_parameters()));
        line("layers", layers(&model));
        line("heads", heads(&model));
        line("d_model", config.d_model.to_string());
        line("d_mlp", config.d_mlp.to_string());
        line("vocabulary", config.vocab.to_string());
        line("context", format!("{} tokens", config.n_positions));
        let attention = match (config.encoder, config.causal) {
            (Some(_), _) => "bidirectional in the encoder, causal and to the source in the decoder",
            (None, true) => "causal",
            (None, false) => "bidirectional",
        };
        line("attention", attention.to_owned());
        line("norms", format!("{}, {}", config.norm.name(), config.norm_place.name()));
        line("positions", config.position.name().to_owned());
        if !model.absent().is_empty() {
            line("absent", format!("{}: for questions about weights only", model.absent().join(", ")));
        }
        line("output", if config.has_logits() { "logits" } else { "residual stream (an encoder)" }.to_owned());
        line("tokenizer", if model.tokenizer().is_some() { "yes" } else { "none: give token ids" }.to_owned());
        if let Some((id, token, prepended)) = bos(&model) {
            let does = if prepended { "before every text" } else { "not put before texts" };
            line("bos", format!("`{token}` ({id}), {does}; --prepend-bos changes that"));
        }
        line("sha256", sha256);
        line("devices", devices.join(", "));
        line("sites", sites(&model));
        Ok(())
    }
}

/// The token that says that a text begins, its text, and whether texts begin with it.
fn bos(model: &Model) -> Option<(i64, String, bool)> {
    let tokenizer = model.tokenizer()?;
    let id = tokenizer.bos()?;
    Some((id, tokenizer.piece(id), tokenizer.prepends_bos()))
}

fn layers(model: &Model) -> String {
    let (all, encoder) = (model.config().n_layers, model.config().encoder_layers());
    if encoder == 0 {
        all.to_string()
    } else {
        format!("{all}: {encoder} of the encoder, then {} of the decoder", all - encoder)
    }
}

fn heads(model: &Model) -> String {
    let config = model.config();
    let shared = match config.n_kv_heads == config.n_heads {
        true => String::new(),
        false => format!(", {} key/value heads", config.n_kv_heads),
    };
    format!("{} a layer of {} dimensions{shared}", config.n_heads, config.d_head)
}

/// The names of the sites, each once for all layers.
fn sites(model: &Model) -> String {
    let mut names: Vec<String> = Site::all(model.config())
        .into_iter()
        .map(|site| if site.layer().is_some() { format!("{}.L", site.kind()) } else { site.to_string() })
        .collect();
    let mut seen = std::collections::BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names.join(" ")
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn with_commas(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}
