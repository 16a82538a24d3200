//! `headscope roles`: which head plays which role in annotated text?

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use headscope::heads::{Annotated, Role, RoleOptions, Roles, read_conllu, read_gap};
use headscope::table::Table;

use super::ModelArguments;
use super::output::reserve;

/// Find the head that plays each role in annotated text, and judge it on text that it was not chosen on.
///
/// Example: headscope roles minilm --conllu en_ewt-ud-dev.conllu --out roles.parquet
///
/// One line per role: nsubj_to_head is from each subject to its verb, nsubj_to_dependent the reverse. Each line has the
/// accuracy of the best head and of the best fixed offset on the second half of the texts, and p: could distances alone
/// explain it?
#[derive(Args)]
pub struct RolesCommand {
    #[command(flatten)]
    model: ModelArguments,
    /// Universal Dependencies: relations between words, and names
    #[arg(long, value_name = "FILE")]
    conllu: Option<PathBuf>,
    /// GAP: which of two names a pronoun refers to
    #[arg(long, value_name = "FILE.tsv")]
    gap: Option<PathBuf>,
    /// Use only this many texts of each file, from its start
    #[arg(long)]
    limit: Option<usize>,
    /// Ablate the best head for this role, and control heads for comparison
    #[arg(long, value_name = "ROLE", conflicts_with = "every_head")]
    test: Option<String>,
    /// Write the accuracy of every head, not only of the best
    #[arg(long)]
    every_head: bool,
    /// The fewest links that a role needs in each half
    #[arg(long, default_value_t = RoleOptions::default().least)]
    least: usize,
    /// Seed of the halves and of all random draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The file to write: .parquet, .csv or .json
    #[arg(long, value_name = "TABLE")]
    out: Option<PathBuf>,
}

impl RolesCommand {
    pub fn run(&self) -> Result<()> {
        let _reserved = reserve(self.out.as_deref())?;
        let mut texts: Vec<Annotated> = vec![];
        let most = self.limit.unwrap_or(usize::MAX);
        if let Some(path) = &self.conllu {
            texts.extend(read_conllu(path)?.into_iter().take(most));
        }
        if let Some(path) = &self.gap {
            texts.extend(read_gap(path)?.into_iter().take(most));
        }
        if texts.is_empty() {
            bail!("--conllu, --gap: expected a file with at least one annotated text");
        }
        let model = self.model.load()?;
        let options = RoleOptions { least: self.least, seed: self.seed, ..RoleOptions::default() };
        let table = match &self.test {
            Some(role) => Role::new(role).test(&model, &texts, &options)?,
            None => {
                let roles = Roles::measure(&model, &texts, &options)?;
                let best = roles.best()?;
                show(&best)?;
                if self.every_head { roles.table()? } else { best }
            }
        };
        if self.test.is_some() {
            println!("{table}");
        }
        if let Some(out) = &self.out {
            table.write(out)?;
            println!("{} rows written to {}", table.len(), out.display());
        }
        Ok(())
    }
}

/// Prints one line per role.
fn show(best: &Table) -> Result<()> {
    let text = |name: &str| -> Result<Vec<String>> {
        Ok(best.frame().column(name)?.str()?.iter().map(|text| text.unwrap_or_default().to_owned()).collect())
    };
    let (roles, metrics) = (text("task")?, text("metric")?);
    let (layers, heads) = (best.f64("layer")?, best.f64("head")?);
    let (values, baselines) = (best.f64("value")?, best.f64("baseline")?);
    println!("{:<28} {:>6} {:>9} {:>13} {:>6} {:>6}", "role", "head", "accuracy", "fixed offset", "links", "p");
    for row in (0..best.len()).filter(|&row| metrics[row] == "accuracy") {
        let of = |metric: &str| {
            let found = (0..best.len()).find(|&other| roles[other] == roles[row] && metrics[other] == metric);
            found.map_or(f64::NAN, |other| values[other])
        };
        let head = format!("{}.{}", layers[row], heads[row]);
        let (offset, links, p) = (format!("{:.3} ({:+})", baselines[row], of("offset")), of("links"), of("p_value"));
        println!("{:<28} {head:>6} {:>9.3} {offset:>13} {links:>6} {p:>6.3}", roles[row], values[row]);
    }
    Ok(())
}
