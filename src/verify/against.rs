//! Does another implementation find the same, site by site?

use std::path::Path;

use tch::{Device, Kind, Tensor};

use super::{Check, Verification, rounding, roundoff, terms};
use crate::error::{Error, Result};
use crate::model::{Model, Plan, Tokens};
use crate::site::Site;
use crate::tensors::Tensors;

/// The names in a file.
pub(super) const TOKENS: &str = "tokens";
pub(super) const LOGITS: &str = "logits";
pub(super) const LAST: &str = "last_hidden_state";
pub(super) const STATES: &str = "hidden_states";
pub(super) const PATTERNS: &str = "attentions";

/// What a tensor of the file is to us.
enum Ours {
    Site(Site),
    /// The last residual stream, through the norm after the last block if there is one.
    Last,
}

impl Model {
    /// Compares the model with a file of what another implementation computed, site by site: see [`verify`](crate::verify).
    ///
    /// The file is safetensors: `tokens` `[batch, position]` (int64) and any of `logits` `[batch, position, vocab]`,
    /// `hidden_states.L` `[batch, position, d_model]` (what enters block L; of the number of layers, the normalised last one),
    /// `attentions.L` `[batch, head, query, key]` and `last_hidden_state`, as [`Model::verify_script`] writes them. Bounds follow
    /// from the coarser of the file's type and the model's.
    ///
    /// # Errors
    /// If the file cannot be read, lacks tokens or has nothing to compare, has a tensor of another name or shape, or if its
    /// tokens do not fit the model. A difference is no error here: [`Verification::require`] makes it one.
    pub fn verify_against(&self, path: impl AsRef<Path>) -> Result<Verification> {
        let path = path.as_ref();
        let file = Tensors::read_with_ids(path, &[TOKENS], Kind::Double, Device::Cpu)?;
        let tokens = self.tokens_of(&file, path)?;
        let mut found = Verification::new(self, &tokens, "against a file")?;
        let compared = file.names().filter(|name| *name != TOKENS);
        let compared = compared.map(|name| Ok((name, self.named_in_file(name, path)?))).collect::<Result<Vec<_>>>()?;
        if compared.is_empty() {
            return Err(wrong(path, "the file", format!("{LOGITS}, {STATES}.0 or {PATTERNS}.0"), "only tokens"));
        }
        let last = Site::ResidPost(self.config().n_layers - 1);
        let sites = compared.iter().map(|(_, ours)| if let Ours::Site(site) = ours { *site } else { last });
        let run = self.run(&tokens, &Plan::new().taps(sites))?;
        let terms = terms(self.config(), tokens.positions());
        for (name, ours) in compared {
            let (site, value, layers) = match ours {
                Ours::Site(site) => {
                    let layers = site.layer().unwrap_or(self.config().n_layers) + 1;
                    (Some(site), run.get(site)?.shallow_clone(), layers)
                }
                Ours::Last => (None, self.final_norm(run.get(last)?), self.config().n_layers + 1),
            };
            let expected = file.get(name, &value.size())?;
            let kind = file.kind(name).filter(|kind| roundoff(*kind) > roundoff(self.kind())).unwrap_or(self.kind());
            found.compare("file", site, [&value, &expected], 0.0, rounding(kind, layers, terms))?;
        }
        let depth = |check: &Check| check.site.map_or((usize::MAX, 1), |site| self.wiring().point(site));
        found.checks.sort_by_key(depth);
        Ok(found)
    }

    fn tokens_of(&self, file: &Tensors, path: &Path) -> Result<Tokens> {
        let Some(ids) = file.find(TOKENS).filter(|ids| ids.dim() == 2 && ids.kind() == Kind::Int64) else {
            let found = file.find(TOKENS).map_or_else(|| "nothing".to_owned(), |ids| format!("{:?}", ids.size()));
            return Err(wrong(path, TOKENS, "int64 token ids [batch, position]".to_owned(), &found));
        };
        let row = |ids: Tensor| Vec::<i64>::try_from(ids).map_err(Error::torch("reading token ids"));
        let rows = ids.unbind(0).into_iter().map(row).collect::<Result<Vec<_>>>()?;
        Tokens::from_ids(self, &rows)
    }

    fn named_in_file(&self, name: &str, path: &Path) -> Result<Ours> {
        let layers = self.config().n_layers;
        let (kind, number) = name.split_once('.').unwrap_or((name, ""));
        let ours = match (kind, number.parse::<usize>().ok()) {
            (LOGITS, None) if number.is_empty() => Ours::Site(Site::Logits),
            (LAST, None) if number.is_empty() => Ours::Last,
            (STATES, Some(layer)) if layer == layers => Ours::Last,
            (STATES, Some(layer)) if layer < layers => Ours::Site(Site::ResidPre(layer)),
            (PATTERNS, Some(layer)) if layer < layers => Ours::Site(Site::Pattern(layer)),
            _ => {
                let expected = format!("{LOGITS}, {LAST}, {STATES}.0 to {layers} or {PATTERNS}.0 to {}", layers - 1);
                return Err(wrong(path, "the names of the tensors", expected, &format!("`{name}`")));
            }
        };
        Ok(ours)
    }
}

fn wrong(path: &Path, at: &str, expected: String, found: &str) -> Error {
    Error::Format { path: path.to_owned(), at: at.to_owned(), expected, found: found.to_owned() }
}
