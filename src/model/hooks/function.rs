//! What if an activation becomes something that no other action says? A function of your own.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize};
use tch::Tensor;

use crate::error::{Error, Result};
use crate::site::Site;

/// A function of activations, or of gradients.
type Apply = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// A function that an edit applies to the activations at its site ([`Action::Custom`](super::Action::Custom)), or a plan
/// to gradients ([`Plan::on_gradient`](super::Plan::on_gradient)).
///
/// It receives the whole site of the batch, in the axes of [`Site::axes`], and returns a tensor of the same shape. The
/// edit's selector says which part of it is taken over.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9]])?;
/// let clip = Function::new("clip", |x| Ok(x.clamp(-1.0, 1.0))).by_row().version("1");
/// let table = Sweep::ablate(&model, &tokens, Ablation::Zero)
///     .each_with(Site::MlpPost, Every::Layer, Action::Custom(clip))
///     .run()?;
/// assert_eq!(table.len(), 3);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Clone)]
pub struct Function {
    name: String,
    version: Option<String>,
    by_row: bool,
    apply: Arc<Apply>,
}

impl Function {
    /// A function with a name for provenance. It may own tensors; threads of a sweep call it one after another.
    pub fn new(name: &str, apply: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static) -> Self {
        Self { name: name.to_owned(), version: None, by_row: false, apply: Arc::new(in_turn(apply)) }
    }

    /// Promises that each row along the last axis becomes a function of that row alone: no prompt, position or head has
    /// an influence on another. A sweep then computes the edit wherever it joins the pass; without this promise, it
    /// computes all positions and heads of the block.
    pub fn by_row(mut self) -> Self {
        self.by_row = true;
        self
    }

    /// A version, to be changed whenever the function changes. A sweep with a journal needs one.
    pub fn version(mut self, version: &str) -> Self {
        self.version = Some(version.to_owned());
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether rows are independent of each other; see [`Function::by_row`].
    pub fn is_by_row(&self) -> bool {
        self.by_row
    }

    pub(crate) fn has_version(&self) -> bool {
        self.version.is_some()
    }

    /// The value at a site.
    pub(crate) fn value(&self, site: Site, x: &Tensor) -> Result<Tensor> {
        let value = (self.apply)(x)?;
        if value.size() == x.size() {
            return Ok(value.to_kind(x.kind()).to_device(x.device()));
        }
        let expected = format!("{:?} from `{}`, as it received", x.size(), self.name);
        Err(Error::Shape { at: format!("edit at `{site}`"), expected, found: value.size() })
    }
}

/// A function that several threads may hold, and call in turn: tensors that it owns are not `Sync`.
pub(crate) fn in_turn(
    function: impl Fn(&Tensor) -> Result<Tensor> + Send + 'static,
) -> impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static {
    let function = Mutex::new(function);
    move |x| {
        // A function that panicked has changed nothing: it is called by reference.
        let function = function.lock().unwrap_or_else(PoisonError::into_inner);
        function(x)
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version.as_ref().map_or_else(String::new, |version| format!(", version {version}"));
        write!(f, "{}{version}", self.name)
    }
}

/// Two functions are the same if they are one: functions cannot be compared by what they do.
impl PartialEq for Function {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.apply, &other.apply) && self.by_row == other.by_row && self.version == other.version
    }
}

impl Serialize for Function {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        (&self.name, &self.version).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Function {
    fn deserialize<D: Deserializer<'de>>(_: D) -> std::result::Result<Self, D::Error> {
        Err(serde::de::Error::custom("expected an action that is data, found a function, which cannot be read"))
    }
}
