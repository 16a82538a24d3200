//! `headscope generate`: how does a model continue prompts, as it is or under edits?

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use headscope::model::{Action, Edit, Model, Plan, Site, Span};
use tch::Tensor;

use super::each::layer_head;
use super::{ModelArguments, NamedPrompts, SourceArguments, json};

/// Continue prompts.
///
/// Example: headscope generate openai-community/gpt2 --prompt "Once upon a time" --max-new 40
///
/// Steer: headscope generate openai-community/gpt2 --prompt "I think that" --steer resid_pre.6 --toward " wedding"
/// --factor 4
///
/// Without heads: headscope generate openai-community/gpt2 --prompt "When Mary and John" --ablate 9.6,9.9
///
/// Text is printed as it is written. Of several prompts the first is shown as it is written, and each next one from when
/// those before are finished; an empty line stands between them.
#[derive(Args)]
pub struct Generate {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    prompts: NamedPrompts,
    #[command(flatten)]
    source: SourceArguments,
    /// The most new tokens for each prompt; an end token, a stop text or the end of the context stops earlier
    #[arg(long, default_value_t = 100)]
    max_new: usize,
    /// 0 takes the likeliest token; above 0, tokens are sampled
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Sample only from this many likeliest tokens
    #[arg(long)]
    top_k: Option<usize>,
    /// Seed of the sampling; prompt i is sampled with seed + i
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End a prompt once its new text contains one of these texts, which is cut off
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    stop: Vec<String>,
    /// Print the stop text, too
    #[arg(long, requires = "stop")]
    keep_stop: bool,
    /// Print one JSON object per prompt, with ids, text and ending
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    edits: Edits,
}

/// What changes while the model reads and writes.
#[derive(Args)]
struct Edits {
    /// Heads whose output becomes zero
    #[arg(long, value_delimiter = ',', value_name = "LAYER.HEAD")]
    ablate: Vec<String>,
    /// Add a direction at this site, such as resid_pre.6: --direction, or --toward a text
    #[arg(long, value_name = "SITE")]
    steer: Option<Site>,
    /// The direction, [d_model]: a file's only tensor, or its tensor of the site's name
    #[arg(long, value_name = "FILE.safetensors", requires = "steer", conflicts_with = "toward")]
    direction: Option<PathBuf>,
    /// The direction is what the site holds at the last token of this text
    #[arg(long, value_name = "TEXT", requires = "steer")]
    toward: Option<String>,
    /// Less what it holds at the last token of this text
    #[arg(long, value_name = "TEXT", requires = "toward")]
    away: Option<String>,
    /// The factor of the direction
    #[arg(long, default_value_t = 1.0, requires = "steer", allow_negative_numbers = true)]
    factor: f64,
    /// Any edits: a JSON list such as [{"site": "z.3", "at": {"heads": [5]}, "action": {"scale": {"factor": 2}}}], or @FILE
    #[arg(long, value_name = "JSON|@FILE")]
    edits: Option<String>,
    /// Activations that edits refer to by a key: tensors named after sites, as `headscope activations` writes them
    #[arg(long, value_name = "KEY=FILE.safetensors", requires = "edits")]
    with: Vec<String>,
    /// Where edits without positions apply
    #[arg(long, value_enum, default_value_t = Where::Everywhere)]
    span: Where,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Where {
    /// In the prompts and at written tokens
    Everywhere,
    /// In the prompts
    Prompt,
    /// At written tokens
    Written,
}

impl Generate {
    pub fn run(&self) -> Result<()> {
        self.edits.check()?;
        let model = self.model.load()?;
        let tokens = self.source.read_before(self.prompts.tokens(&model)?, &model)?;
        let plan = self.edits.plan(&model)?;
        let mut generation = model.generate(&tokens).max_new(self.max_new).temperature(self.temperature);
        generation = generation.seed(self.seed).stop(&self.stop).plan(&plan).span(self.edits.span());
        if let Some(k) = self.top_k {
            generation = generation.top_k(k);
        }
        if self.keep_stop {
            generation = generation.keep_stop();
        }
        if !self.json {
            generation.print()?;
            return Ok(());
        }
        for (prompt, continuation) in generation.run()?.continuations.iter().enumerate() {
            let mut line = serde_json::to_value(continuation)?;
            line["prompt"] = prompt.into();
            println!("{line}");
        }
        Ok(())
    }
}

impl Edits {
    /// Rejects options that would have no effect.
    fn check(&self) -> Result<()> {
        if self.steer.is_some() && self.direction.is_none() && self.toward.is_none() {
            bail!("--steer: expected --direction or --toward with it");
        }
        if self.span != Where::Everywhere && self.ablate.is_empty() && self.steer.is_none() && self.edits.is_none() {
            bail!("--span: expected --ablate, --steer or --edits with it");
        }
        Ok(())
    }

    fn span(&self) -> Span {
        match self.span {
            Where::Everywhere => Span::Everywhere,
            Where::Prompt => Span::Prompt,
            Where::Written => Span::Written,
        }
    }

    fn plan(&self, model: &Model) -> Result<Plan> {
        let mut plan = Plan::new();
        for head in &self.ablate {
            let (layer, head) = layer_head(head)?;
            plan = plan.edit(Edit::new(Site::Z(layer), Action::Zero).head(head));
        }
        for with in &self.with {
            let Some((key, file)) = with.split_once('=') else { bail!("--with: expected KEY=FILE, found {with}") };
            for (name, tensor) in read(Path::new(file))? {
                plan = plan.with_tensor(key, name.parse()?, &tensor);
            }
        }
        if let Some(edits) = &self.edits {
            let edits: Vec<Edit> = json(edits, "--edits", "a list of edits, each with a site and an action")?;
            plan = edits.into_iter().fold(plan, Plan::edit);
        }
        let Some(site) = self.steer else { return Ok(plan) };
        let key = "the direction of --steer";
        let edit = Edit::new(site, Action::Add { key: key.to_owned(), alpha: self.factor });
        Ok(plan.with_tensor(key, site, &self.direction(model, site)?).edit(edit))
    }

    fn direction(&self, model: &Model, site: Site) -> Result<Tensor> {
        if let Some(file) = &self.direction {
            let mut tensors = read(file)?;
            if tensors.len() == 1 {
                return Ok(tensors.into_values().collect::<Vec<_>>().remove(0));
            }
            let Some(tensor) = tensors.remove(&site.to_string()) else {
                bail!(
                    "--direction: expected a file with one tensor, or with `{site}`, found {} tensors",
                    tensors.len()
                );
            };
            return Ok(tensor);
        }
        let last = |text: &str| -> Result<Tensor> {
            let run = model.run(&model.tokens(&[text])?, &Plan::new().tap(site))?;
            if matches!(site, Site::Scores(_) | Site::Pattern(_)) {
                bail!("--steer: expected a site with a position axis, found {site}");
            }
            Ok(run.get(site)?.get(0).get(-1))
        };
        let Some(toward) = &self.toward else { bail!("--steer: expected --direction or --toward with it") };
        let toward = last(toward)?;
        Ok(match &self.away {
            Some(away) => toward - last(away)?,
            None => toward,
        })
    }
}

/// The tensors of a safetensors file, by name.
fn read(file: &Path) -> Result<HashMap<String, Tensor>> {
    let doing = || format!("cannot read {}", file.display());
    std::fs::File::open(file).with_context(doing)?; // says why if it cannot be read
    let tensors = Tensor::read_safetensors(file).with_context(doing)?;
    Ok(tensors.into_iter().collect())
}
