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
#[derive(Args)]
pub struct Inspect {
    #[command(flatten)]
    model: ModelArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Inspect {
    pub fn run(&self) -> Result<()> {
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
            let all = json!({"config": config, "parameters": model.n_parameters(), "sha256": sha256,
                "devices": devices, "sites": sites, "tensors": parameters});
            println!("{}", serde_json::to_string_pretty(&all)?);
            return Ok(());
        }
        let line = |name: &str, value: String| println!("{name:<14} {value}");
        line("model", self.model.model.clone());
        line("family", config.family.clone());
        line("parameters", with_commas(model.n_parameters()));
        line("layers", config.n_layers.to_string());
        line("heads", heads(&model));
        line("d_model", config.d_model.to_string());
        line("d_mlp", config.d_mlp.to_string());
        line("vocabulary", config.vocab.to_string());
        line("context", format!("{} tokens", config.n_positions));
        line("attention", if config.causal { "causal" } else { "bidirectional" }.to_owned());
        line("norms", format!("{}, {}", config.norm.name(), config.norm_place.name()));
        line("positions", config.position.name().to_owned());
        if !model.absent().is_empty() {
            line("absent", format!("{}: for questions about weights only", model.absent().join(", ")));
        }
        line("output", if config.has_logits() { "logits" } else { "residual stream (an encoder)" }.to_owned());
        line("tokenizer", if model.tokenizer().is_some() { "yes" } else { "none: give token ids" }.to_owned());
        line("sha256", sha256);
        line("devices", devices.join(", "));
        line("sites", sites(&model));
        Ok(())
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

fn with_commas(n: usize) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}
