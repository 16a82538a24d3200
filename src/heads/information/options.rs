//! What can be asked about the information in heads, and how is it estimated?

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::information::{Certainty, KsgOptions, ProbeFamily, ProbeOptions};
use crate::neural::NeuralOptions;

/// A label for each token of each prompt, if it has one.
pub type TokenLabels = Vec<Vec<Option<String>>>;

/// The activations of a head to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// z, the attention-weighted values, with `d_head` dimensions.
    Z,
    /// The head output z W_O, in `d_head` coordinates that preserve distances in the residual stream.
    O,
    /// The query's row of the attention pattern, one dimension per key.
    Pattern,
}

/// What a source may tell about, at the position of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The previous token.
    PreviousToken,
    /// The current token.
    CurrentToken,
    /// The next token.
    NextToken,
    /// The position in the prompt.
    Position,
    /// The label given to the token: its role.
    Role,
    /// Another head's source.
    Head,
}

/// Names on the command line and in tables.
macro_rules! named {
    ($type:ty, $argument:literal: $($name:literal => $variant:ident),*) => {
        impl $type {
            /// All variants.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// The names of all variants.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// The name in tables and on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }
        }

        impl FromStr for $type {
            type Err = Error;

            fn from_str(name: &str) -> Result<Self> {
                let found = Self::ALL.iter().copied().find(|one| one.name() == name);
                found.ok_or_else(|| Error::argument($argument, Self::NAMES.join(", "), name))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

named!(Source, "source": "z" => Z, "o" => O, "pattern" => Pattern);
named!(Target, "target": "previous-token" => PreviousToken, "current-token" => CurrentToken, "next-token" => NextToken,
    "position" => Position, "role" => Role, "head" => Head);

/// How to estimate information.
#[derive(Debug, Clone, PartialEq)]
pub enum HeadEstimator {
    /// Nearest neighbours: Ross's estimator for labels, KSG-1 for another head. For few dimensions.
    Ksg(KsgOptions),
    /// A Gaussian model of the source with one covariance for all labels: `1/2 ln(|S| / |S within labels|)`.
    Gaussian,
    /// What a probe can use, on held-out samples.
    Vinfo(ProbeOptions),
    /// A trained lower bound.
    Neural(NeuralOptions),
}

impl HeadEstimator {
    /// The names that [`HeadEstimator::from_str`] accepts.
    pub const NAMES: [&'static str; 7] = ["vinfo", "vinfo-mlp", "ksg", "gaussian", "infonce", "nwj", "mine"];

    /// The name in tables and on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ksg(_) => "ksg",
            Self::Gaussian => "gaussian",
            Self::Vinfo(options) => options.name(),
            Self::Neural(options) => options.bound.name(),
        }
    }

    /// The default standard deviation of the noise: 0 for probes, whose result is finite without noise, and 0.5
    /// otherwise.
    pub fn usual_noise(&self) -> f64 {
        if matches!(self, Self::Vinfo(_)) { 0.0 } else { 0.5 }
    }

    /// The most dimensions that are used by default.
    pub(super) fn most_dimensions(&self) -> usize {
        if matches!(self, Self::Ksg(_)) { 4 } else { usize::MAX }
    }
}

impl FromStr for HeadEstimator {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "ksg" => Ok(Self::Ksg(KsgOptions::default())),
            "gaussian" => Ok(Self::Gaussian),
            "vinfo" => Ok(Self::Vinfo(ProbeOptions::default())),
            "vinfo-mlp" => {
                let family = ProbeFamily::Network { hidden: 32 };
                Ok(Self::Vinfo(ProbeOptions { family, ..ProbeOptions::default() }))
            }
            other => match other.parse() {
                Ok(bound) => {
                    let convergence = false; // it would train more critics; the interval and the other warnings stay
                    Ok(Self::Neural(NeuralOptions { bound, convergence, ..NeuralOptions::default() }))
                }
                Err(_) => Err(Error::argument("estimator", Self::NAMES.join(", "), other)),
            },
        }
    }
}

/// Options of [`head_information`](super::head_information).
#[derive(Debug, Clone, PartialEq)]
pub struct InformationOptions {
    /// The activations of each head to look at.
    pub sources: Vec<Source>,
    /// What they may tell about.
    pub targets: Vec<Target>,
    /// How to estimate it.
    pub estimator: HeadEstimator,
    /// Numbers of leading principal coordinates of a source to use, with separate rows for each. Empty for all (4 for
    /// nearest neighbours).
    pub dimensions: Vec<usize>,
    /// Standard deviation of Gaussian noise on the source, which is first scaled to a mean power of 1 per dimension. By
    /// default the estimator's usual noise, [`HeadEstimator::usual_noise`].
    pub noise: Option<f64>,
    /// The most labels of a target: the most frequent tokens, or ranges of positions with equally many samples.
    pub classes: usize,
    /// The most positions to use, drawn from all of them.
    pub samples: usize,
    /// For [`Target::Head`]: the head (layer, head) to compare all others with; by default every other head of the same
    /// layer.
    pub other: Option<(usize, usize)>,
    /// For [`Target::Role`]: a label for each token of each prompt, if it has one.
    pub labels: Option<TokenLabels>,
    /// Whether to include whole layers, with all heads concatenated.
    pub layers: bool,
    /// Intervals, and shuffles for a p-value.
    pub certainty: Certainty,
    /// Seed of all random draws.
    pub seed: u64,
}

impl Default for InformationOptions {
    fn default() -> Self {
        Self {
            sources: vec![Source::Z],
            targets: vec![Target::PreviousToken, Target::CurrentToken, Target::NextToken, Target::Position],
            estimator: HeadEstimator::Vinfo(ProbeOptions::default()),
            dimensions: vec![],
            noise: None,
            classes: 24,
            samples: 2000,
            other: None,
            labels: None,
            layers: true,
            certainty: Certainty::default(),
            seed: 0,
        }
    }
}

impl InformationOptions {
    /// The standard deviation of the noise.
    pub fn sigma(&self) -> f64 {
        self.noise.unwrap_or_else(|| self.estimator.usual_noise())
    }

    /// Checks the options.
    ///
    /// # Errors
    /// If there is no source or target, a number is too small, the noise is negative or not finite, or roles are
    /// requested without labels.
    pub fn validate(&self) -> Result<()> {
        if self.sources.is_empty() || self.targets.is_empty() {
            return Err(Error::argument("sources, targets", "at least one of each", "none"));
        }
        for (name, found, least) in [("classes", self.classes, 2), ("samples", self.samples, 20)] {
            if found < least {
                return Err(Error::argument(name, format!("{least} or more"), found));
            }
        }
        if self.dimensions.contains(&0) {
            return Err(Error::argument("dimensions", "1 or more", 0));
        }
        if !(self.sigma() >= 0.0 && self.sigma().is_finite()) {
            return Err(Error::argument("noise", "0 or more", self.sigma()));
        }
        if self.targets.contains(&Target::Role) && self.labels.is_none() {
            return Err(Error::argument("labels", "a label for each token, to ask about roles", "none"));
        }
        match &self.estimator {
            HeadEstimator::Ksg(options) => options.validate()?,
            HeadEstimator::Vinfo(options) => options.validate()?,
            HeadEstimator::Neural(options) => options.validate()?,
            HeadEstimator::Gaussian => {}
        }
        self.certainty.validate()
    }

    /// The options as recorded in a table's provenance.
    pub(super) fn provenance(&self) -> serde_json::Value {
        let names = |names: Vec<&str>| names.join(", ");
        serde_json::json!({
            "sources": names(self.sources.iter().map(|source| source.name()).collect()),
            "targets": names(self.targets.iter().map(|target| target.name()).collect()),
            "estimator": format!("{:?}", self.estimator), "dimensions": self.dimensions, "noise": self.sigma(),
            "classes": self.classes, "samples": self.samples, "other": self.other, "layers": self.layers,
            "certainty": self.certainty,
        })
    }
}
