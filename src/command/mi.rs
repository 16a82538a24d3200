//! `headscope mi`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use headscope::information::{
    Certainty, Estimate, Estimator, ProbeFamily, ProbeOptions, mutual_information, v_information,
    v_information_of_labels,
};
use headscope::neural::{Bound, NeuralOptions, neural_information, one_hot};
use ndarray::{Array2, ArrayView2};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;

/// Estimate what two arrays of samples share: their mutual information, in nats.
///
/// Example: headscope mi arrays.safetensors --x z --y target --estimator ksg --k 5 --json
///
/// Arrays are [sample, dimension], or [sample] for one dimension. The interval covers chance, not bias; warnings say what speaks
/// against the estimate.
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
    /// How: gaussian (linear dependence only), ksg, ksg2, lnc (nearest neighbours), ross (y are labels), binned, cca; vinfo,
    /// vinfo-mlp (what a linear probe or a small network can use of x, held out); infonce, nwj, mine (trained lower bounds)
    #[arg(long, default_value = "ksg", value_parser = names())]
    estimator: String,
    /// y are labels, not numbers: for vinfo, vinfo-mlp, infonce, nwj and mine
    #[arg(long)]
    labels: bool,
    /// Number of neighbours; for ksg, ksg2, lnc and ross
    #[arg(long)]
    k: Option<usize>,
    /// Seed of all that is drawn
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

impl Mi {
    pub fn run(&self) -> Result<()> {
        let bytes = std::fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let tensors = SafeTensors::deserialize(&bytes)
            .with_context(|| format!("{}: expected a safetensors file", self.file.display()))?;
        let (x, y) = (array(&tensors, &self.x, &self.file)?, array(&tensors, &self.y, &self.file)?);
        let found = self.estimate(x.view(), y.view())?;
        if self.json {
            print_json(&found)
        } else {
            print(&found, &self.x, &self.y)
        }
        Ok(())
    }

    fn estimate(&self, x: ArrayView2<f64>, y: ArrayView2<f64>) -> Result<Estimate> {
        let (level, permutations) = (self.level, self.permutations);
        if Estimator::NAMES.contains(&self.estimator.as_str()) {
            if self.labels {
                bail!("--labels: expected one of vinfo, vinfo-mlp, infonce, nwj, mine, found {}", self.estimator);
            }
            let mut estimator: Estimator = self.estimator.parse()?;
            if let Some(k) = self.k {
                estimator = estimator.with_k(k)?;
            }
            let certainty = Certainty { level, permutations, ..Certainty::default() };
            return Ok(mutual_information(x, y, &estimator, &certainty, self.seed)?);
        }
        if self.k.is_some() {
            bail!("--k: expected an estimator with neighbours, ksg, ksg2, lnc or ross, found {}", self.estimator);
        }
        let classes = if self.labels { Some(labels(y)?) } else { None };
        if let Ok(bound) = self.estimator.parse::<Bound>() {
            let options = NeuralOptions { bound, level, permutations, ..NeuralOptions::default() };
            let hot =
                classes.map(|labels| one_hot(&labels, labels.iter().max().map_or(0, |most| most + 1))).transpose()?;
            let y = hot.unwrap_or_else(|| y.to_owned());
            return Ok(neural_information(x, y.view(), &options, self.seed)?);
        }
        let network = self.estimator == "vinfo-mlp";
        let family = if network { ProbeFamily::Network { hidden: 32 } } else { ProbeFamily::Linear };
        let options = ProbeOptions { family, level, permutations, ..ProbeOptions::default() };
        match classes {
            Some(labels) => Ok(v_information_of_labels(x, &labels, &options, self.seed)?),
            None => Ok(v_information(x, y, &options, self.seed)?),
        }
    }
}

/// Equal rows as one label, numbered from 0 in their order.
fn labels(y: ArrayView2<f64>) -> Result<Vec<usize>> {
    if let Some(found) = y.iter().find(|value| !value.is_finite()) {
        bail!("y: expected finite labels, found {found}");
    }
    let rows: Vec<Vec<f64>> = y.rows().into_iter().map(|row| row.to_vec()).collect();
    let order = |a: &Vec<f64>, b: &Vec<f64>| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal);
    let mut distinct = rows.clone();
    distinct.sort_by(order);
    distinct.dedup();
    Ok(rows.iter().filter_map(|row| distinct.binary_search_by(|other| order(other, row)).ok()).collect())
}

/// An array of numbers of any type, as [sample, dimension].
fn array(tensors: &SafeTensors, name: &str, file: &Path) -> Result<Array2<f64>> {
    let Ok(tensor) = tensors.tensor(name) else {
        let mut names = tensors.names();
        names.sort_unstable();
        bail!("{}: there is no array `{name}`; expected one of {}", file.display(), names.join(", "));
    };
    let shape = match *tensor.shape() {
        [samples] => (samples, 1),
        [samples, dimensions] => (samples, dimensions),
        ref other => bail!("{name}: expected shape [sample, dimension] or [sample], found {other:?}"),
    };
    macro_rules! read {
        ($type:ty, $bytes:literal) => {
            tensor.data().chunks_exact($bytes).filter_map(|bytes| bytes.try_into().ok()).map(<$type>::from_le_bytes)
        };
    }
    let values: Vec<f64> = match tensor.dtype() {
        Dtype::F64 => read!(f64, 8).collect(),
        Dtype::F32 => read!(f32, 4).map(f64::from).collect(),
        Dtype::F16 => read!(half::f16, 2).map(f64::from).collect(),
        Dtype::BF16 => read!(half::bf16, 2).map(f64::from).collect(),
        Dtype::I64 => read!(i64, 8).map(|value| value as f64).collect(),
        Dtype::I32 => read!(i32, 4).map(f64::from).collect(),
        Dtype::I16 => read!(i16, 2).map(f64::from).collect(),
        Dtype::I8 => read!(i8, 1).map(f64::from).collect(),
        Dtype::U8 | Dtype::BOOL => tensor.data().iter().copied().map(f64::from).collect(),
        other => bail!("{name}: expected floating point or integer numbers, found {other:?}"),
    };
    Ok(Array2::from_shape_vec(shape, values)?)
}

fn print_json(found: &Estimate) {
    let warnings: Vec<String> = found.warnings.iter().map(ToString::to_string).collect();
    let value = json!({
        "estimate": found.nats(), "low": found.interval.low, "high": found.interval.high, "level": found.interval.level,
        "unit": "nats", "estimator": found.estimator, "n": found.n, "dimensions": found.dimensions, "p": found.p,
        "convergence": found.convergence, "warnings": warnings,
    });
    println!("{value:#}");
}

fn print(found: &Estimate, x: &str, y: &str) {
    let interval = found.interval;
    println!(
        "I({x}; {y}) = {:.4} nats, {:.0} % interval {:.4} to {:.4}",
        interval.estimate,
        100.0 * interval.level,
        interval.low,
        interval.high
    );
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
