//! `headscope mi`: how much do two arrays of samples share?

mod array;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use headscope::Error;
use headscope::information::{
    Certainty, Estimate, Estimator, ProbeFamily, ProbeOptions, mutual_information, v_information,
    v_information_of_labels,
};
use headscope::neural::{Bound, NeuralOptions, neural_information, neural_information_of_labels};
use ndarray::{Array1, Array2, Axis};
use safetensors::SafeTensors;
use serde_json::json;

use array::Array;

/// Estimate the mutual information of two arrays of samples, in nats.
///
/// Example: headscope mi arrays.safetensors --x z --y target --estimator ksg --k 5 --json
///
/// Arrays are [sample, dimension], or [sample] for one dimension, of floating-point numbers, whole numbers or booleans.
/// The interval covers chance, not bias; warnings give reasons to doubt the estimate.
#[derive(Args)]
pub struct Mi {
    /// A safetensors file
    file: PathBuf,
    /// Name of the first array
    #[arg(long, value_name = "NAME")]
    x: String,
    /// Name of the second array
    #[arg(long, value_name = "NAME")]
    y: String,
    /// The estimator: gaussian (linear dependence only); ksg, ksg2, lnc (nearest neighbours); ross (y holds labels);
    /// binned; cca; vinfo, vinfo-mlp (what a linear probe or a small network can use of x, on held-out samples);
    /// infonce, nwj, mine (trained lower bounds)
    #[arg(long, default_value = "ksg", value_parser = names())]
    estimator: String,
    /// y holds labels (whole numbers or booleans), not quantities: for vinfo, vinfo-mlp, infonce, nwj and mine; always
    /// on for ross
    #[arg(long)]
    labels: bool,
    /// Number of neighbours, less than half of the number of samples; for ksg, ksg2, lnc and ross
    #[arg(long)]
    k: Option<usize>,
    /// Seed of all random draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Confidence level of the interval
    #[arg(long, default_value_t = 0.95)]
    level: f64,
    /// Shuffles of y for a p-value against no dependence; 0 for none
    #[arg(long, default_value_t = 0)]
    permutations: usize,
    /// Print JSON: estimate, low, high, unit, warnings, ...
    #[arg(long)]
    json: bool,
}

/// The names of all estimators.
fn names() -> Vec<&'static str> {
    Estimator::NAMES.into_iter().chain(["vinfo", "vinfo-mlp"]).chain(Bound::NAMES).collect()
}

/// An estimator with its options.
enum Method {
    Samples(Estimator, Certainty),
    Critic(NeuralOptions),
    Probe(ProbeOptions),
}

/// y in the form that the method takes.
enum Target {
    Numbers(Array2<f64>),
    Labels(Vec<usize>),
}

impl Mi {
    pub fn run(&self) -> Result<()> {
        let method = self.method()?;
        let bytes = std::fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let tensors = SafeTensors::deserialize(&bytes)
            .with_context(|| format!("{}: expected a safetensors file", self.file.display()))?;
        let x = Array::read(&tensors, &self.x, &self.file)?.numbers()?;
        let y = Array::read(&tensors, &self.y, &self.file)?;
        let labels = self.labels || matches!(method, Method::Samples(Estimator::Ross(_), _));
        let y = if labels { Target::Labels(y.labels()?) } else { Target::Numbers(y.numbers()?) };
        let found = method.estimate(x, y, self.seed)?;
        if self.json {
            print_json(&found, self.level)
        } else {
            print(&found, &self.x, &self.y)
        }
        Ok(())
    }

    /// The requested method, checked before any file is read.
    fn method(&self) -> Result<Method> {
        let (level, permutations) = (self.level, self.permutations);
        if let Ok(mut estimator) = self.estimator.parse::<Estimator>() {
            if self.labels && !matches!(estimator, Estimator::Ross(_)) {
                let expected = "one of ross, vinfo, vinfo-mlp, infonce, nwj, mine";
                bail!(self.misuse("--labels", expected));
            }
            if let Some(k) = self.k {
                estimator = estimator.with_k(k)?;
            }
            let certainty = Certainty { level, permutations, ..Certainty::default() };
            certainty.validate()?;
            return Ok(Method::Samples(estimator, certainty));
        }
        if self.k.is_some() {
            bail!(self.misuse("--k", "an estimator with neighbours, ksg, ksg2, lnc or ross"));
        }
        if let Ok(bound) = self.estimator.parse::<Bound>() {
            let options = NeuralOptions { bound, level, permutations, ..NeuralOptions::default() };
            options.validate()?;
            return Ok(Method::Critic(options));
        }
        let network = self.estimator == "vinfo-mlp";
        let family = if network { ProbeFamily::Network { hidden: 32 } } else { ProbeFamily::Linear };
        let options = ProbeOptions { family, level, permutations, ..ProbeOptions::default() };
        options.validate()?;
        Ok(Method::Probe(options))
    }

    fn misuse(&self, name: &'static str, expected: &str) -> Error {
        Error::Argument { name, expected: expected.to_owned(), found: self.estimator.clone() }
    }
}

impl Method {
    fn estimate(&self, x: Array2<f64>, y: Target, seed: u64) -> headscope::Result<Estimate> {
        let x = x.view();
        match (self, y) {
            (Self::Samples(estimator, certainty), Target::Numbers(y)) => {
                mutual_information(x, y.view(), estimator, certainty, seed)
            }
            (Self::Samples(estimator, certainty), Target::Labels(labels)) => {
                let y = Array1::from_iter(labels.iter().map(|&label| label as f64)).insert_axis(Axis(1));
                mutual_information(x, y.view(), estimator, certainty, seed)
            }
            (Self::Critic(options), Target::Numbers(y)) => neural_information(x, y.view(), options, seed),
            (Self::Critic(options), Target::Labels(labels)) => neural_information_of_labels(x, &labels, options, seed),
            (Self::Probe(options), Target::Numbers(y)) => v_information(x, y.view(), options, seed),
            (Self::Probe(options), Target::Labels(labels)) => v_information_of_labels(x, &labels, options, seed),
        }
    }
}

fn print_json(found: &Estimate, level: f64) {
    let interval = found.interval;
    let warnings: Vec<String> = found.warnings.iter().map(ToString::to_string).collect();
    let value = json!({
        "estimate": found.nats(), "low": interval.map(|interval| interval.low), "high": interval.map(|interval| interval.high),
        "level": level,
        "unit": "nats", "estimator": found.estimator, "n": found.n, "dimensions": found.dimensions, "p": found.p,
        "convergence": found.convergence, "warnings": warnings,
    });
    println!("{value:#}");
}

fn print(found: &Estimate, x: &str, y: &str) {
    let interval = found.interval.map_or(String::new(), |interval| {
        // Enough digits that 0.95 is shown as 95, and 0.999 not as 100.
        let level = format!("{:.6}", 100.0 * interval.level);
        let level = level.trim_end_matches('0').trim_end_matches('.');
        format!(", {level} % interval {:.4} to {:.4}", interval.low, interval.high)
    });
    println!("I({x}; {y}) = {:.4} nats{interval}", found.nats());
    let dimensions: Vec<String> = found.dimensions.iter().map(ToString::to_string).collect();
    println!("by {}, {} samples, dimensions {}", found.estimator, found.n, dimensions.join(" and "));
    if let Some(p) = found.p {
        println!("p = {p:.4} against no dependence");
    }
    let steps: Vec<String> = found.convergence.iter().map(|(n, nats)| format!("{nats:.4} from {n}")).collect();
    println!("convergence: {}", steps.join(", "));
    for warning in &found.warnings {
        println!("warning: {warning}");
    }
}
