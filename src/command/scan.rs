//! `headscope scan`: what does one look at first?

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::{Metric, Scan, ScanOptions};
use headscope::model::Site;
use headscope::table::{Observation, Table};
use headscope::view::attention_heads;

use super::metric::AnswerArguments;
use super::{ModelArguments, NamedPrompts};

/// Show what one looks at first: tokens, next tokens, the logit lens, direct attribution, the strongest heads' patterns, and
/// what the metric loses without the ten strongest heads and MLPs.
///
/// Example: headscope scan smollm2 --prompt "When Mary and John went to the shop, John gave a drink to" --correct " Mary"
/// --wrong " John" --out scan
///
/// The metric is the logit of the model's own first choice, that of --correct, or the difference of --correct and --wrong.
/// What a model has no part of (BERT predicts no next token) is left out, with a line that says so.
#[derive(Args)]
pub struct ScanCommand {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    prompts: NamedPrompts,
    #[command(flatten)]
    answers: AnswerArguments,
    /// Tokens to show at each depth
    #[arg(long, default_value_t = ScanOptions::default().tokens)]
    top_k: usize,
    /// Heads and MLPs to attribute to and to ablate
    #[arg(long, default_value_t = ScanOptions::default().parts)]
    top: usize,
    /// Heads whose patterns are shown
    #[arg(long, default_value_t = ScanOptions::default().heads)]
    heads: usize,
    /// The folder to write tables and a page with pictures (page.html) to
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// The format of the tables
    #[arg(long, value_enum, default_value_t = Format::Parquet, requires = "out")]
    format: Format,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Parquet,
    Csv,
    Json,
}

impl Format {
    fn ending(self) -> &'static str {
        match self {
            Self::Parquet => "parquet",
            Self::Csv => "csv",
            Self::Json => "json",
        }
    }
}

/// Prompts that are printed one by one.
const PROMPTS: usize = 3;
/// Tokens of a prompt whose patterns are printed as grids.
const LONGEST: usize = 64;
/// Characters per line.
const WIDE: usize = 100;

impl ScanCommand {
    pub fn run(&self) -> Result<()> {
        for (name, asked) in [("--top-k", self.top_k), ("--top", self.top), ("--heads", self.heads)] {
            if asked == 0 {
                bail!("{name}: expected at least 1, found 0");
            }
        }
        if let Some(out) = &self.out {
            std::fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
        }
        let model = self.model.load()?;
        let tokens = self.prompts.tokens(&model)?;
        let metric = match self.answers.given().then(|| self.answers.read(&model)).transpose()? {
            Some((correct, Some(wrong))) => Some(Metric::LogitDifference(correct, wrong)),
            Some((correct, None)) => Some(Metric::Logit(correct)),
            None => None,
        };
        let options = ScanOptions { metric, tokens: self.top_k, parts: self.top, heads: self.heads };
        let scan = Scan::of(&model, &tokens, &options)?;
        println!("{}", scan.model);
        for reason in &scan.left_out {
            println!("left out: {reason}");
        }
        for prompt in 0..tokens.batch().min(PROMPTS) {
            show_prompt(&scan, prompt)?;
        }
        if tokens.batch() > PROMPTS {
            println!("\nand {} more prompts, whose rows are in the tables of --out", tokens.batch() - PROMPTS);
        }
        show_effects(&scan)?;
        self.out.as_deref().map_or(Ok(()), |out| write(&scan, out, self.format))
    }
}

/// Prints what is one prompt's own.
fn show_prompt(scan: &Scan, prompt: usize) -> Result<()> {
    let own = |row: &Observation| row.keys.prompt == u32::try_from(prompt).ok();
    let pieces = scan.tokens.pieces(prompt);
    println!("\nprompt {prompt}, {} tokens", pieces.len());
    let numbered = pieces.iter().enumerate().map(|(at, piece)| format!("{at} {}", shown(piece)));
    println!("{}", wrapped(numbered, "  "));
    if let Some(predictions) = scan.predictions()? {
        println!("\nnext token");
        for row in predictions.filtered(own)?.rows()? {
            println!("  {:.4}  {}", row.value, shown(row.keys.token.as_deref().unwrap_or_default()));
        }
    }
    if let Some(lens) = scan.last_of_lens()? {
        println!("\nlogit lens at the last token: the likeliest next tokens at each depth");
        let rows = by_depth(&lens.filtered(own)?)?;
        for depth in rows.chunk_by(|a, b| (a.keys.layer, &a.keys.site) == (b.keys.layer, &b.keys.site)) {
            let name = depth.first().map_or_else(String::new, site);
            let tokens = depth.iter().map(|row| {
                let token = row.keys.token.as_deref().unwrap_or_default();
                format!("{:<14}", format!("{:.2} {}", row.value, shown(token)))
            });
            println!("  {name:<14}{}", tokens.collect::<String>().trim_end());
        }
    }
    show_patterns(scan, prompt)
}

/// Prints what the strongest heads attend to.
fn show_patterns(scan: &Scan, prompt: usize) -> Result<()> {
    let seen = if scan.lens.is_some() { "from the last token" } else { "mean over queries" };
    println!("\nthe strongest heads' attention, {seen}");
    for &(layer, head) in &scan.heads {
        let of = |row: &Observation| {
            let number = |n: usize| u32::try_from(n).ok();
            let keys = &row.keys;
            (keys.prompt, keys.layer, keys.head) == (number(prompt), number(layer), number(head))
        };
        let keys = scan.attention.filtered(of)?.top(4)?.rows()?.into_iter().map(|row| {
            let (at, token) = (row.keys.key.unwrap_or_default(), row.keys.token.unwrap_or_default());
            format!("{:.2} {at} {}", row.value, shown(&token))
        });
        println!("  {:<6}{}", format!("{layer}.{head}"), keys.collect::<Vec<_>>().join("   "));
    }
    match scan.tokens.row(prompt).len() {
        length if length <= LONGEST => print!("\n{}", attention_heads(&scan.patterns, &scan.heads, prompt)?.text()?),
        length => println!("\nthe patterns of {length} tokens are too wide to print: --out draws them in page.html"),
    }
    Ok(())
}

/// Prints direct attribution beside ablation.
fn show_effects(scan: &Scan) -> Result<()> {
    let rows = scan.ablation.rows()?;
    let Some(first) = rows.first() else { return Ok(()) };
    let prompts = if scan.tokens.batch() > 1 { ", mean over prompts" } else { "" };
    println!("\n{} {:.4}{prompts}", first.metric, first.baseline.unwrap_or(f64::NAN));
    if let Some(curve) = &scan.curve {
        let depths = by_depth(curve)?.into_iter().map(|row| format!("{} {:.2}", site(&row), row.value));
        println!("by depth\n{}", wrapped(depths, "  "));
    }
    show_parts(&rows, &scan.attribution.as_ref().map(Table::rows).transpose()?.unwrap_or_default());
    Ok(())
}

/// Whether a row of direct attribution is one of a head or an MLP.
fn is_part(row: &Observation) -> bool {
    matches!(row.keys.site.as_deref(), Some("result" | "mlp_out"))
}

/// Prints what heads and MLPs write directly, and what an ablation of each changes.
fn show_parts(ablated: &[Observation], direct: &[Observation]) {
    let place = |row: &Observation| (row.keys.layer, row.keys.head);
    let written = |row: &Observation| direct.iter().find(|term| is_part(term) && place(term) == place(row));
    let mut rows: Vec<(Option<f64>, &Observation)> =
        ablated.iter().map(|row| (written(row).map(|term| term.value), row)).collect();
    rows.sort_by(|a, b| b.0.map(f64::abs).unwrap_or(0.0).total_cmp(&a.0.map(f64::abs).unwrap_or(0.0)));
    let (what, column) = match direct {
        [] => ("the heads and MLPs without which it changes most (set to 0)", String::new()),
        _ => (
            "the heads and MLPs that write most of it directly, and what it is without each (set to 0)",
            format!("{:>10}", "direct"),
        ),
    };
    println!("\n{what}\n  {:<10}{column}{:>10}{:>10}", "", "without", "change");
    for (direct, row) in &rows {
        let direct = direct.map_or_else(String::new, |value| format!("{value:>+10.3}"));
        let change = row.value - row.baseline.unwrap_or(f64::NAN);
        println!("  {:<10}{direct}{:>10.3}{change:>+10.3}", part(row), row.value);
    }
    if !direct.is_empty() {
        let (parts, others): (Vec<_>, Vec<_>) = direct.iter().partition(|row| is_part(row));
        let sum = |rows: &[&Observation]| rows.iter().map(|row| row.value).sum::<f64>();
        let (n, parts, others) = (parts.len(), sum(&parts), sum(&others));
        println!("all {n} heads and MLPs write {parts:+.3}, embeddings and biases {others:+.3}");
    }
}

/// Writes the tables and the page.
fn write(scan: &Scan, out: &Path, format: Format) -> Result<()> {
    let tables = [
        ("tokens", Some(&scan.input)),
        ("lens", scan.lens.as_ref()),
        ("curve", scan.curve.as_ref()),
        ("attribution", scan.attribution.as_ref()),
        ("attention", Some(&scan.attention)),
        ("ablation", Some(&scan.ablation)),
    ];
    let mut written = vec![];
    for (name, table) in tables.into_iter().filter_map(|(name, table)| Some((name, table?))) {
        let name = format!("{name}.{}", format.ending());
        table.write(out.join(&name))?;
        written.push(name);
    }
    scan.page()?.save(out.join("page.html"))?;
    println!("\nwritten to {}: {}, page.html", out.display(), written.join(", "));
    Ok(())
}

/// The rows of a table in the order of the forward pass; those of one depth as they are.
fn by_depth(table: &Table) -> Result<Vec<Observation>> {
    let mut rows = table.rows()?;
    rows.sort_by_key(|row| site(row).parse::<Site>().ok());
    Ok(rows)
}

/// The name of a row's place, `resid_pre.3`.
fn site(row: &Observation) -> String {
    let site = row.keys.site.as_deref().unwrap_or_default();
    row.keys.layer.map_or_else(|| site.to_owned(), |layer| format!("{site}.{layer}"))
}

/// `2.5` for a head, `MLP 3`.
fn part(row: &Observation) -> String {
    let layer = row.keys.layer.unwrap_or_default();
    row.keys.head.map_or_else(|| format!("MLP {layer}"), |head| format!("{layer}.{head}"))
}

/// A token in quotes, with line breaks escaped.
fn shown(token: &str) -> String {
    format!("{token:?}")
}

/// Texts in lines of at most [`WIDE`] characters.
fn wrapped(texts: impl Iterator<Item = String>, indent: &str) -> String {
    let (mut lines, mut line) = (vec![], String::new());
    for text in texts {
        if !line.is_empty() && line.chars().count() + 2 + text.chars().count() > WIDE {
            lines.push(std::mem::take(&mut line));
        }
        line.push_str(if line.is_empty() { indent } else { "  " });
        line.push_str(&text);
    }
    lines.push(line);
    lines.join("\n")
}
