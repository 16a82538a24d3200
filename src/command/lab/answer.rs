//! How does the command line say what the experiments answer? `headscope lab answer`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use headscope::lab::{Results, Tongue};

/// Say what all experiments answer: a table of sub-claims and a few paragraphs.
///
/// Example: headscope lab answer notebooks/results --into README.md
///
/// Verdicts and numbers are computed from the results. With --into, they replace what stands between the lines
/// `<!-- answer -->` and `<!-- /answer -->` of a Markdown file.
#[derive(Args)]
pub struct Answer {
    /// Results folders of experiments, or folders that contain them
    #[arg(required = true, value_name = "DIR")]
    folders: Vec<PathBuf>,
    /// Language
    #[arg(long, value_enum, default_value = "en")]
    language: Language,
    /// Markdown file into which the answer is written, between its markers
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
}

/// A language of the answer.
#[derive(Clone, Copy, ValueEnum)]
enum Language {
    /// English
    En,
    /// Chinese
    Zh,
}

impl Answer {
    pub fn run(&self) -> Result<()> {
        let all = self.folders.iter().map(Results::read_all).collect::<headscope::Result<Vec<_>>>()?;
        let results: Vec<Results> = all.into_iter().flatten().map(|(_, results)| results).collect();
        let tongue = match self.language {
            Language::En => Tongue::English,
            Language::Zh => Tongue::Chinese,
        };
        let answer = headscope::lab::Answer::of(&results)?;
        let Some(path) = &self.into else {
            print!("{}", answer.markdown(tongue));
            return Ok(());
        };
        answer.write_into(path, tongue)?;
        println!("written to {}", path.display());
        Ok(())
    }
}
