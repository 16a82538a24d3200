//! Which features does an activation have? Sparse dictionaries (sparse autoencoders), read from files in SAELens' layout.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::Tensor;

use super::{Action, Edit, Function, Model, Run};
use crate::error::{Error, Result};
use crate::file;
use crate::site::{Axis, Site};
use crate::tensors::Tensors;

/// A sparse dictionary of one site (a sparse autoencoder; Bricken et al. 2023, Cunningham et al. 2023): an activation x
/// `[.., d_in]` is read as features f `[.., feature]`, few of which are not 0, and made from them again.
///
/// ```text
/// encode  f = activation((x - b_dec) W_enc + b_enc)     without b_dec if the config says so
/// decode  y = f W_dec + b_dec
/// error   x - y
/// ```
///
/// The activation is a ReLU, a JumpReLU (0 up to a threshold; Rajamanoharan et al. 2024), or the k largest (Gao et al. 2024).
/// At sites with a head axis the dictionary reads all heads in a row.
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let dictionary = Dictionary::load(&model, "fixtures/dictionaries/relu")?; // of resid_pre.1, 48 features
/// let tokens = model.tokens(&["the cat sat on the mat"])?;
/// let run = model.run(&tokens, &Plan::new().tap(dictionary.site()))?;
/// let x = run.get(dictionary.site())?; // [batch, position, d_model]
/// let features = dictionary.encode(x)?; // [batch, position, feature]
/// let error = dictionary.error(x)?;
/// assert_eq!(features.size()[2], 48);
/// // Feature 7 set to 0, whatever the dictionary does not explain left as it is:
/// let without = dictionary.with_features(x, &[(7, 0.0)])?;
/// let edit = Edit::new(dictionary.site(), Action::replace("without"));
/// let changed = model.run(&tokens, &Plan::new().with_tensor("without", dictionary.site(), &without).edit(edit))?;
/// # let _ = (error, changed);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug)]
pub struct Dictionary {
    site: Site,
    /// The shape of the site's axes that it reads: `[d_in]`, or `[head, d_head]`.
    shape: Vec<i64>,
    /// `[d_in, feature]`.
    w_enc: Tensor,
    b_enc: Tensor,
    /// `[feature, d_in]`.
    w_dec: Tensor,
    b_dec: Tensor,
    activation: Sparsity,
    /// Whether the decoder's bias is taken from what is encoded.
    centred: bool,
    /// The length of each feature's direction, if features are scaled by it.
    lengths: Option<Tensor>,
}

/// What makes features sparse.
#[derive(Debug)]
enum Sparsity {
    Relu,
    /// A ReLU that is 0 up to a threshold, `[feature]`.
    Jump(Tensor),
    /// The largest so many.
    Largest(i64),
}

/// `cfg.json`, as SAELens writes it: what stands under `metadata` in new files stands beside it in old ones.
#[derive(Deserialize)]
struct Config {
    #[serde(default = "standard")]
    architecture: String,
    d_in: i64,
    d_sae: i64,
    #[serde(default)]
    hook_name: Option<String>,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default = "yes")]
    apply_b_dec_to_input: bool,
    #[serde(default)]
    normalize_activations: Option<String>,
    #[serde(default)]
    activation_fn_str: Option<String>,
    #[serde(default)]
    activation_fn_kwargs: Arguments,
    #[serde(default)]
    k: Option<i64>,
    #[serde(default)]
    finetuning_scaling_factor: bool,
    #[serde(default)]
    rescale_acts_by_decoder_norm: bool,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    hook_name: Option<String>,
}

#[derive(Default, Deserialize)]
struct Arguments {
    #[serde(default)]
    k: Option<i64>,
}

fn standard() -> String {
    "standard".to_owned()
}

fn yes() -> bool {
    true
}

/// The files of a dictionary.
const CONFIG: &str = "cfg.json";
const WEIGHTS: &str = "sae_weights.safetensors";

impl Config {
    fn read(path: &Path) -> Result<Self> {
        let wrong = |reason: serde_json::Error| Error::Format {
            path: path.to_owned(),
            at: "the file".to_owned(),
            expected: "the config of a dictionary, as SAELens writes it".to_owned(),
            found: reason.to_string(),
        };
        serde_json::from_slice(&file::read(path)?).map_err(wrong)
    }

    /// Fails where the dictionary computes something that this module does not.
    fn check(&self, path: &Path) -> Result<()> {
        let wrong = |at: &str, expected: &str, found: &dyn ToString| {
            let (at, expected) = (format!("`{at}`"), expected.to_owned());
            Err(Error::Format { path: path.to_owned(), at, expected, found: found.to_string() })
        };
        if self.d_in < 1 || self.d_sae < 1 {
            return wrong("d_in, d_sae", "sizes of 1 or more", &format!("{}, {}", self.d_in, self.d_sae));
        }
        match self.normalize_activations.as_deref() {
            None | Some("none") => {}
            Some(other) => return wrong("normalize_activations", "none", &other),
        }
        match self.activation_fn_str.as_deref() {
            None | Some("relu" | "topk") => {}
            Some(other) => return wrong("activation_fn_str", "relu or topk", &other),
        }
        if self.finetuning_scaling_factor {
            return wrong("finetuning_scaling_factor", "false", &true);
        }
        Ok(())
    }

    fn activation(&self, path: &Path, tensors: &Tensors) -> Result<Sparsity> {
        let wrong = |at: &str, expected: String, found: String| {
            Err(Error::Format { path: path.to_owned(), at: format!("`{at}`"), expected, found })
        };
        let largest = self.architecture == "topk" || self.activation_fn_str.as_deref() == Some("topk");
        match self.architecture.as_str() {
            "standard" | "topk" if largest => match self.k.or(self.activation_fn_kwargs.k) {
                Some(k) if (1..=self.d_sae).contains(&k) => Ok(Sparsity::Largest(k)),
                found => wrong("k", format!("1 to {} features", self.d_sae), format!("{found:?}")),
            },
            "standard" => Ok(Sparsity::Relu),
            "jumprelu" => Ok(Sparsity::Jump(tensors.get("threshold", &[self.d_sae])?)),
            other => wrong("architecture", "standard, jumprelu or topk".to_owned(), other.to_owned()),
        }
    }

    fn site(&self, path: &Path) -> Result<Site> {
        let name = self.metadata.hook_name.as_deref().or(self.hook_name.as_deref()).unwrap_or_default();
        site_of(name).ok_or_else(|| Error::Format {
            path: path.to_owned(),
            at: "`hook_name`".to_owned(),
            expected: "the name of a site in TransformerLens, such as blocks.3.hook_resid_pre".to_owned(),
            found: format!("`{name}`"),
        })
    }
}

fn finite(value: f64) -> Result<()> {
    if value.is_finite() { Ok(()) } else { Err(Error::argument("values", "finite values of features", value)) }
}

/// The site of a hook of TransformerLens.
fn site_of(hook: &str) -> Option<Site> {
    let parts: Vec<&str> = hook.split('.').collect();
    let (layer, name) = match parts.as_slice() {
        ["hook_embed"] => return Some(Site::Embed),
        ["hook_pos_embed"] => return Some(Site::PosEmbed),
        ["blocks", layer, rest @ ..] => (layer.parse().ok()?, rest.join(".")),
        _ => return None,
    };
    Some(match name.as_str() {
        "hook_resid_pre" => Site::ResidPre(layer),
        "hook_resid_mid" => Site::ResidMid(layer),
        "hook_resid_post" => Site::ResidPost(layer),
        "hook_attn_out" => Site::AttnOut(layer),
        "hook_mlp_out" => Site::MlpOut(layer),
        "attn.hook_q" => Site::Q(layer),
        "attn.hook_k" => Site::K(layer),
        "attn.hook_v" => Site::V(layer),
        "attn.hook_z" => Site::Z(layer),
        "mlp.hook_pre" => Site::MlpPre(layer),
        "mlp.hook_post" => Site::MlpPost(layer),
        _ => return None,
    })
}

impl Dictionary {
    /// Reads a dictionary from a folder with `cfg.json` and `sae_weights.safetensors`, as SAELens writes them, in the type
    /// and on the device of the model whose site it reads. Architectures `standard`, `jumprelu` and `topk`.
    ///
    /// # Errors
    /// If a file is missing, damaged or of another shape than the config says; if the dictionary does something else (gates,
    /// normalises its input); if the model has no such site, or it is of another width.
    pub fn load(model: &Model, folder: impl AsRef<Path>) -> Result<Self> {
        let path: PathBuf = folder.as_ref().join(CONFIG);
        let config = Config::read(&path)?;
        config.check(&path)?;
        let site = config.site(&path)?;
        site.check(model.config())?;
        let tensors = Tensors::read(&folder.as_ref().join(WEIGHTS), model.kind(), model.device())?;
        let shape = site.shape(model.config(), 1, 1).split_off(2);
        if shape.iter().product::<i64>() != config.d_in {
            let expected = format!("the width of `{site}` in this model, {}", shape.iter().product::<i64>());
            return Err(Error::Format { path, at: "`d_in`".into(), expected, found: config.d_in.to_string() });
        }
        let (d_in, d_sae) = (config.d_in, config.d_sae);
        let w_dec = tensors.get("W_dec", &[d_sae, d_in])?;
        let length = |w: &Tensor| w.square().sum_dim_intlist([-1i64].as_slice(), false, None::<tch::Kind>).sqrt();
        Ok(Self {
            site,
            shape,
            w_enc: tensors.get("W_enc", &[d_in, d_sae])?,
            b_enc: tensors.get("b_enc", &[d_sae])?,
            b_dec: tensors.get("b_dec", &[d_in])?,
            activation: config.activation(&path, &tensors)?,
            centred: config.apply_b_dec_to_input,
            lengths: config.rescale_acts_by_decoder_norm.then(|| length(&w_dec)),
            w_dec,
        })
    }

    /// The site that it reads.
    pub fn site(&self) -> Site {
        self.site
    }

    /// The number of features.
    pub fn n_features(&self) -> usize {
        self.b_enc.numel()
    }

    /// The features of an activation of the site, `[.., d_in]` (or `[.., head, d_head]`) to `[.., feature]`.
    ///
    /// # Errors
    /// If the activation is of another shape.
    pub fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.flat(x)?;
        let x = if self.centred { x - &self.b_dec } else { x };
        let mut before = x.matmul(&self.w_enc) + &self.b_enc;
        if let Some(lengths) = &self.lengths {
            before = &before * lengths; // not `*=`, which is in place
        }
        Ok(match &self.activation {
            Sparsity::Relu => before.relu(),
            Sparsity::Jump(threshold) => before.relu() * before.gt_tensor(threshold).to_kind(before.kind()),
            Sparsity::Largest(k) => {
                let (values, features) = before.topk(*k, -1, true, false);
                before.zeros_like().scatter(-1, &features, &values.relu())
            }
        })
    }

    /// The activation made from features, `[.., feature]` to the site's shape.
    ///
    /// # Errors
    /// If there is another number of features.
    pub fn decode(&self, features: &Tensor) -> Result<Tensor> {
        let n = self.n_features() as i64;
        if features.size().last() != Some(&n) {
            let expected = format!("[.., feature = {n}]");
            return Err(Error::Shape { at: "features".into(), expected, found: features.size() });
        }
        let features = self.here(features);
        let features = match &self.lengths {
            Some(lengths) => features / lengths,
            None => features,
        };
        let y = features.matmul(&self.w_dec) + &self.b_dec;
        let size = y.size();
        Ok(y.reshape([&size[..size.len() - 1], &self.shape].concat()))
    }

    /// What the dictionary does not explain, x - decode(encode(x)), in the shape of x.
    ///
    /// # Errors
    /// As [`Dictionary::encode`].
    pub fn error(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.here(x);
        Ok(&x - self.decode(&self.encode(&x)?)?.view_as(&x))
    }

    /// The activation in which some features, by number, have these values instead, everywhere; other features and the error
    /// stay as they are.
    ///
    /// # Errors
    /// As [`Dictionary::encode`], and if there is no such feature or a value is not finite.
    pub fn with_features(&self, x: &Tensor, values: &[(usize, f64)]) -> Result<Tensor> {
        let x = &self.here(x);
        let features = self.encode(x)?;
        let mut changed = features.shallow_clone();
        for &(feature, value) in values {
            self.check(feature)?;
            finite(value)?;
            let at = Tensor::from_slice(&[feature as i64]).to_device(x.device());
            changed = changed.index_fill(-1, &at, value);
        }
        Ok(x + (self.decode(&changed)? - self.decode(&features)?).view_as(x))
    }

    /// An edit in which some features, by number, have these values, and the rest of the activation stays as it is:
    /// ablation of a feature with value 0, steering with a large one. Narrow it to positions as any edit.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let dictionary = Dictionary::load(&model, "fixtures/dictionaries/relu")?;
    /// let tokens = model.tokens(&["the cat sat on the mat"])?;
    /// // What does each of the first ten features do?
    /// let edits = (0..10).map(|feature| Ok(vec![dictionary.edit(&[(feature, 0.0)])?]));
    /// let sweep = Sweep::ablate(&model, &tokens, Ablation::Zero).metric(Metric::Kl);
    /// let table = sweep.sets(edits.collect::<Result<Vec<_>>>()?).run()?;
    /// assert_eq!(table.len(), 10);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// If there is no such feature, or a value is not finite.
    pub fn edit(&self, values: &[(usize, f64)]) -> Result<Edit> {
        for &(feature, value) in values {
            self.check(feature)?;
            finite(value)?;
        }
        let names: Vec<String> = values.iter().map(|(feature, value)| format!("feature {feature} = {value}")).collect();
        let (own, values) = (self.shared(), values.to_vec());
        let function = Function::new(&names.join(", "), move |x| own.with_features(x, &values));
        // At sites with heads, features are of all heads together.
        let function = if self.shape.len() == 1 { function.by_row() } else { function };
        Ok(Edit::new(self.site, Action::Custom(function)))
    }

    /// The same dictionary over the same memory.
    fn shared(&self) -> Self {
        let activation = match &self.activation {
            Sparsity::Relu => Sparsity::Relu,
            Sparsity::Jump(threshold) => Sparsity::Jump(threshold.shallow_clone()),
            Sparsity::Largest(k) => Sparsity::Largest(*k),
        };
        Self {
            site: self.site,
            shape: self.shape.clone(),
            w_enc: self.w_enc.shallow_clone(),
            b_enc: self.b_enc.shallow_clone(),
            w_dec: self.w_dec.shallow_clone(),
            b_dec: self.b_dec.shallow_clone(),
            activation,
            centred: self.centred,
            lengths: self.lengths.as_ref().map(Tensor::shallow_clone),
        }
    }

    /// The direction that a feature writes, in the site's shape: `[d_in]`, or `[head, d_head]`.
    ///
    /// # Errors
    /// If there is no such feature.
    pub fn direction(&self, feature: usize) -> Result<Tensor> {
        self.check(feature)?;
        Ok(self.w_dec.get(feature as i64).reshape(self.shape.as_slice()))
    }

    /// The features of a run that tapped the site, `[batch, position, feature]`.
    ///
    /// # Errors
    /// [`Error::NotTapped`] if it did not.
    pub fn features(&self, run: &Run) -> Result<Tensor> {
        self.encode(run.get(self.site)?)
    }

    /// A tensor in the type and on the device of the dictionary.
    fn here(&self, x: &Tensor) -> Tensor {
        x.to_device(self.w_enc.device()).to_kind(self.w_enc.kind())
    }

    fn check(&self, feature: usize) -> Result<()> {
        let (found, limit) = (feature as i64, self.n_features() as i64);
        if found < limit {
            return Ok(());
        }
        Err(Error::OutOfRange { at: format!("dictionary of `{}`", self.site), axis: "feature", found, limit })
    }

    /// `[.., d_in]`, of heads in a row where the site has heads.
    fn flat(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.here(x);
        let (size, d_in) = (x.size(), self.b_dec.numel() as i64);
        if size.last() == Some(&d_in) && self.shape.len() == 1 {
            return Ok(x);
        }
        if self.shape.len() > 1 && size.ends_with(&self.shape) {
            return Ok(x.flatten(-(self.shape.len() as i64), -1));
        }
        let heads = self.site.axes().iter().any(|axis| matches!(axis, Axis::Head | Axis::KvHead));
        let axes = if heads { "head, d_head" } else { "d_in" };
        Err(Error::Shape {
            at: "activation".into(),
            expected: format!("[.., {axes}] = [.., {:?}]", self.shape),
            found: size,
        })
    }
}
