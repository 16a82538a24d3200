//! What does each subcommand do? Parse arguments, call the library, print.

mod ablate;
mod activations;
mod attribute;
mod circuits;
mod each;
mod generate;
mod heads;
mod information;
mod inspect;
mod lab;
mod metric;
mod mi;
mod output;
mod patch;
mod paths;
mod roles;
mod scan;
mod verify;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use headscope::checkpoint::{LoadOptions, Preview};
use headscope::model::{Model, Tokens};
use tch::Kind;

/// Take transformers apart, head by head.
///
/// MODEL is a folder in Hugging Face layout (config.json, model.safetensors, tokenizer.json), a .gguf file, a bundled name
/// such as `smollm2` or `minilm`, or a hub id such as openai-community/gpt2.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what one looks at first: predictions, the lens, attribution, patterns, ablations
    Scan(scan::ScanCommand),
    /// Show a model's architecture, its sites, and the available devices
    Inspect(inspect::Inspect),
    /// Check a checkpoint: invariants, or another implementation's numbers site by site
    Verify(verify::Verify),
    /// Run prompts and write activations to a safetensors file
    Activations(activations::Activations),
    /// Ablate every head in turn and tabulate the effect on a metric
    Ablate(ablate::Ablate),
    /// Patch activations of one run into another and tabulate the effect on a metric
    Patch(patch::Patch),
    /// Analyse the weights of all heads: spectra, composition, similarity, copying, truncation
    Circuits(circuits::CircuitsCommand),
    /// Estimate from gradients what patching would find
    Attribute(attribute::Attribute),
    /// Patch paths from senders to receivers and tabulate the effect on a metric
    Paths(paths::Paths),
    /// Score what every head attends to, or compare every pair of heads
    Heads(heads::Heads),
    /// Find the head that plays each role in annotated text
    Roles(roles::RolesCommand),
    /// Estimate what heads tell about tokens, positions, roles and each other
    Information(information::Information),
    /// Estimate the mutual information of two arrays of samples
    Mi(mi::Mi),
    /// Continue a prompt
    Generate(generate::Generate),
    /// Train small transformers on languages with known structure
    Lab(lab::Lab),
    /// Print a completion script for your shell to source
    Completions {
        /// Your shell
        shell: clap_complete::Shell,
    },
}

/// Runs the requested subcommand.
pub fn run(arguments: Arguments) -> Result<()> {
    match arguments.command {
        Command::Scan(scan) => scan.run(),
        Command::Inspect(inspect) => inspect.run(),
        Command::Verify(verify) => verify.run(),
        Command::Activations(activations) => activations.run(),
        Command::Ablate(ablate) => ablate.run(),
        Command::Patch(patch) => patch.run(),
        Command::Circuits(circuits) => circuits.run(),
        Command::Attribute(attribute) => attribute.run(),
        Command::Paths(paths) => paths.run(),
        Command::Heads(heads) => heads.run(),
        Command::Roles(roles) => roles.run(),
        Command::Information(information) => information.run(),
        Command::Mi(mi) => mi.run(),
        Command::Generate(generate) => generate.run(),
        Command::Lab(lab) => lab.run(),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "headscope", &mut std::io::stdout());
            Ok(())
        }
    }
}

#[derive(Args)]
struct ModelArguments {
    /// A folder, a .gguf file, a bundled name, or a hub id; with @REVISION, that revision, or the folder's sub-folder
    model: String,
    /// The type of weights and activations
    #[arg(long, value_enum, default_value_t = Dtype::Float32)]
    dtype: Dtype,
    /// The device to compute on: cpu, cuda, cuda:1
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Revision on the hub: a branch, a tag or a commit; of a folder, the sub-folder
    #[arg(long)]
    revision: Option<String>,
    /// Whether texts begin with the beginning-of-sequence token; by default the tokenizer's own rule, which `inspect` shows
    #[arg(long, value_name = "true|false")]
    prepend_bos: Option<bool>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dtype {
    Float32,
    Float64,
    Float16,
    Bfloat16,
}

impl ModelArguments {
    fn load(&self) -> Result<Model> {
        Ok(Model::load_with(&self.model, &self.options()?)?)
    }

    /// What the headers say.
    fn preview(&self) -> Result<Preview> {
        Ok(Preview::of(&self.model, &self.options()?)?)
    }

    fn options(&self) -> Result<LoadOptions> {
        let kind = match self.dtype {
            Dtype::Float32 => Kind::Float,
            Dtype::Float64 => Kind::Double,
            Dtype::Float16 => Kind::Half,
            Dtype::Bfloat16 => Kind::BFloat16,
        };
        let device = headscope::device::parse(&self.device)?;
        Ok(LoadOptions { kind, device, revision: self.revision.clone(), prepend_bos: self.prepend_bos })
    }
}

/// The prompts: texts, a file of texts, or token ids.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct PromptArguments {
    /// One or more prompts
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    text: Vec<String>,
    /// A file with one prompt per line
    #[arg(long, value_name = "FILE")]
    text_file: Option<PathBuf>,
    /// Token ids: a JSON list of lists, or @FILE with such a list
    #[arg(long, value_name = "JSON|@FILE")]
    tokens: Option<String>,
}

/// [`PromptArguments`] that may be omitted.
struct OptionalPrompts(Option<PromptArguments>);

impl OptionalPrompts {
    const GROUP: &str = "PromptArguments";
}

impl Args for OptionalPrompts {
    fn augment_args(command: clap::Command) -> clap::Command {
        PromptArguments::augment_args(command).mut_group(Self::GROUP, |group| group.required(false))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OptionalPrompts {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = matches.contains_id(Self::GROUP).then(|| PromptArguments::from_arg_matches(matches));
        Ok(Self(given.transpose()?))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl PromptArguments {
    fn tokens(&self, model: &Model) -> Result<Tokens> {
        if let Some(tokens) = &self.tokens {
            let rows: Vec<Vec<i64>> = json(tokens, "--tokens", "a list of lists of token ids")?;
            return Ok(Tokens::from_ids(model, &rows)?);
        }
        let Some(file) = &self.text_file else { return Ok(model.tokens(&self.text)?) };
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        Ok(model.tokens(&lines)?)
    }
}

/// What the encoder of an encoder-decoder reads; the prompts are then its decoder's.
#[derive(Args)]
#[group(id = "SourceArguments", multiple = false)]
struct SourceArguments {
    /// For an encoder-decoder: what its encoder reads for each prompt, which is then the decoder's
    #[arg(long, num_args = 1.., value_name = "TEXT")]
    source: Vec<String>,
    /// The same as token ids: a JSON list of lists, or @FILE with such a list
    #[arg(long, value_name = "JSON|@FILE")]
    source_tokens: Option<String>,
}

impl SourceArguments {
    /// The prompts with their sources, if some are given.
    fn read_before(&self, tokens: Tokens, model: &Model) -> Result<Tokens> {
        let source = match &self.source_tokens {
            Some(ids) => Tokens::new(&json::<Vec<Vec<i64>>>(ids, "--source-tokens", "a list of lists of token ids")?)?,
            None if self.source.is_empty() => return Ok(tokens),
            None => model.tokens(&self.source)?,
        };
        Ok(tokens.with_source(source)?)
    }
}

/// [`PromptArguments`] whose texts are called `--prompt`.
#[derive(Args)]
#[group(id = "NamedPrompts", required = true, multiple = false)]
struct NamedPrompts {
    /// One or more prompts
    #[arg(long, num_args = 1.., value_name = "TEXT", visible_alias = "text")]
    prompt: Vec<String>,
    /// A file with one prompt per line
    #[arg(long, value_name = "FILE")]
    text_file: Option<PathBuf>,
    /// Token ids: a JSON list of lists, or @FILE with such a list
    #[arg(long, value_name = "JSON|@FILE")]
    tokens: Option<String>,
}

impl NamedPrompts {
    fn tokens(&self, model: &Model) -> Result<Tokens> {
        let Self { prompt, text_file, tokens } = self;
        let given = PromptArguments { text: prompt.clone(), text_file: text_file.clone(), tokens: tokens.clone() };
        given.tokens(model)
    }
}

/// Parses a JSON argument, given directly or as @FILE.
fn json<T: serde::de::DeserializeOwned>(given: &str, name: &str, expected: &str) -> Result<T> {
    let text = match given.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).with_context(|| format!("{name}: cannot read {file}"))?,
        None => given.to_owned(),
    };
    serde_json::from_str(&text).with_context(|| format!("{name}: expected {expected}"))
}
