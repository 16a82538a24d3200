//! `headscope attribute`: what would patching find, estimated from gradients?

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::Estimate;

use super::patch::Patch;

/// Estimate the results of `headscope patch` from gradients, with exact values for the largest estimates.
///
/// Example: headscope attribute MODEL --clean @clean.json --corrupt @corrupt.json --site z --each head --method
/// attribution --exact 20 --metric logit-difference --answers @pairs.json --out effects.parquet
#[derive(Args)]
pub struct Attribute {
    #[command(flatten)]
    patch: Patch,
    /// The estimator
    #[arg(long, value_enum, default_value_t = Method::Attribution)]
    method: Method,
    /// Steps of integrated gradients [default: 5]
    #[arg(long)]
    steps: Option<usize>,
    /// Also compute this many of the largest estimates exactly
    #[arg(long, default_value_t = 0, value_name = "N")]
    exact: usize,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Method {
    Attribution,
    IntegratedGradients,
    AtpStar,
}

impl Attribute {
    pub fn run(&self) -> Result<()> {
        let estimate = match self.method {
            Method::Attribution => Estimate::Attribution,
            Method::IntegratedGradients => Estimate::IntegratedGradients { steps: self.steps.unwrap_or(5) },
            Method::AtpStar => Estimate::AtpStar,
        };
        if self.steps.is_some() && self.method != Method::IntegratedGradients {
            bail!("--steps: expected --method integrated-gradients with it");
        }
        self.patch.run_with(|sweep, output| output.finish_estimate(sweep.estimate(estimate).exact(self.exact)))
    }
}
