//! What is asked of heads, and how.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::information::{Certainty, KsgOptions, ProbeFamily, ProbeOptions};
use crate::neural::NeuralOptions;

/// A label for each token of each prompt, where it has one.
pub type TokenLabels = Vec<Vec<Option<String>>>;

/// What of a head is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// What it gathers, z, of `d_head` dimensions.
    Z,
    /// What it writes, z W_O: as many dimensions, in coordinates that keep the residual stream's distances.
    O,
    /// The query's row of the pattern, one dimension a key.
    Pattern,
}

/// What it may say something about, at the position where it is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// The token before.
    PreviousToken,
    /// The token itself.
    CurrentToken,
    /// The token after.
    NextToken,
    /// The position in the prompt.
    Position,
    /// The label that was given to the token: its role.
    Role,
    /// Another head's source.
    Head,
}

/// Names on the command line and in tables.
macro_rules! named {
    ($type:ty, $argument:literal: $($name:literal => $variant:ident),*) => {
        impl $type {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// Their names.
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

/// How information is estimated.
#[derive(Debug, Clone, PartialEq)]
pub enum HeadEstimator {
    /// Nearest neighbours: Ross's estimator for labels, KSG-1 for another head. For few dimensions.
    Ksg(KsgOptions),
    /// As if sources were Gaussian with one covariance for all labels: `1/2 ln(|S| / |S within labels|)`.
    Gaussian,
    /// What a probe can use, held out.
    Vinfo(ProbeOptions),
    /// A trained lower bound.
    Neural(NeuralOptions),
}

impl HeadEstimator {
    /// The names that [`HeadEstimator::from_str`] knows.
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

    /// Standard deviation of the noise that is added unless another is asked for: none for probes, whose answer is finite
    /// without.
    pub fn usual_noise(&self) -> f64 {
        if matches!(self, Self::Vinfo(_)) { 0.0 } else { 0.5 }
    }

    /// Most dimensions that are used unless others are asked for.
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
                    let convergence = false; // each would train another critic; the interval and the wall stay
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
    /// What of each head is looked at.
    pub sources: Vec<Source>,
    /// What it may say something about.
    pub targets: Vec<Target>,
    /// How that is estimated.
    pub estimator: HeadEstimator,
    /// Numbers of leading principal coordinates of a source that are used, each in rows of its own; all where empty (4 for
    /// nearest neighbours).
    pub dimensions: Vec<usize>,
    /// Standard deviation of Gaussian noise on the source, which is first brought to a mean power of 1 a dimension; the
    /// estimator's usual one where absent.
    pub noise: Option<f64>,
    /// Most labels of a target: of tokens the most frequent, of positions so many stretches of equally many.
    pub classes: usize,
    /// Most positions that are looked at, drawn from all of them.
    pub samples: usize,
    /// For [`Target::Head`]: the head (layer, head) that all others are held against; every other one of the same layer where
    /// absent.
    pub other: Option<(usize, usize)>,
    /// For [`Target::Role`]: a label for each token of each prompt, where it has one.
    pub labels: Option<TokenLabels>,
    /// Whether whole layers, all heads side by side, are asked, too.
    pub layers: bool,
    /// Intervals, and shuffles for a p-value.
    pub certainty: Certainty,
    /// Seed of everything that is drawn.
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
    /// The noise that is added.
    pub fn sigma(&self) -> f64 {
        self.noise.unwrap_or_else(|| self.estimator.usual_noise())
    }

    /// Fails where an option makes no sense.
    ///
    /// # Errors
    /// Where nothing is asked, a number is too small, the noise is negative or not finite, or roles are asked for and no label
    /// is given.
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

    /// As it stands beside a table.
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
