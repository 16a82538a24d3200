//! What do several components do together? Variants that change a whole set of them, and the subsets of a set.

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::intervene::engine::Variant;
use crate::model::Edit;
use crate::table::Keys;

/// Which subsets of a set of edits to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subsets {
    /// All non-empty subsets, of at most 16 edits.
    All,
    /// Distinct non-empty subsets, drawn uniformly.
    Drawn {
        /// Number of subsets.
        n: usize,
        /// Seed of the draw.
        seed: u64,
    },
}

/// The largest set whose subsets are all computed.
const MOST: usize = 16;

/// What do several components do together? The subsets of `parts`, for [`Sweep::sets`](super::Sweep::sets).
///
/// ```
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
/// let tokens = Tokens::new(&[vec![5, 6, 7, 8, 9], vec![9, 8, 7, 6, 5]])?;
/// let sweep = Sweep::ablate(&model, &tokens, Ablation::Mean);
/// let parts = [sweep.edit(Site::Z(0)).head(3), sweep.edit(Site::Z(1)).head(2), sweep.edit(Site::MlpOut(1))];
/// let table = sweep.sets(subsets(&parts, Subsets::All)?).run()?;
/// assert_eq!(table.len(), 7);
/// # Ok::<(), headscope::Error>(())
/// ```
///
/// # Errors
/// If `parts` is empty, if all subsets of more than 16 parts are requested, or if the number of subsets to draw is 0 or
/// more than half of all non-empty ones.
pub fn subsets(parts: &[Edit], which: Subsets) -> Result<Vec<Vec<Edit>>> {
    if parts.is_empty() {
        return Err(Error::argument("parts", "at least one", "none"));
    }
    let of =
        |mask: &Vec<bool>| parts.iter().zip(mask).filter(|(_, in_it)| **in_it).map(|(part, _)| part.clone()).collect();
    let masks = match which {
        Subsets::All if parts.len() > MOST => {
            return Err(Error::argument(
                "parts",
                format!("at most {MOST} for all subsets, or drawn ones"),
                parts.len(),
            ));
        }
        Subsets::All => {
            (1..1usize << parts.len()).map(|mask| (0..parts.len()).map(|i| mask >> i & 1 == 1).collect()).collect()
        }
        Subsets::Drawn { n, seed } => drawn(parts.len(), n, seed)?,
    };
    Ok(masks.iter().map(of).collect())
}

/// `n` distinct non-empty masks over `parts` parts, in the order in which they were drawn.
fn drawn(parts: usize, n: usize, seed: u64) -> Result<Vec<Vec<bool>>> {
    // Rejection sampling of nearly all subsets would take long to find the last ones.
    let most = if parts < 40 { ((1usize << parts) - 1) / 2 } else { usize::MAX };
    if n == 0 || n > most.max(1) {
        let expected = format!("1 to {} subsets of {parts} parts; of few parts, all can be had", most.max(1));
        return Err(Error::argument("subsets", expected, n));
    }
    crate::take::fits("subsets", n, parts * (2 + size_of::<Edit>()))?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut seen, mut masks) = (BTreeSet::new(), vec![]);
    while masks.len() < n {
        let mask: Vec<bool> = (0..parts).map(|_| rng.random()).collect();
        if mask.contains(&true) && seen.insert(mask.clone()) {
            masks.push(mask);
        }
    }
    Ok(masks)
}

/// The variant in which all of `edits` apply; column `set` names them and `parts` counts them.
pub(super) fn together(edits: Vec<Edit>) -> Variant {
    let names: Vec<String> = edits.iter().map(name_of).collect();
    let keys = Keys { set: Some(names.join("+")), parts: u32::try_from(edits.len()).ok(), ..Keys::default() };
    Variant { keys, edits }
}

/// The name of what an edit changes: `z.3.5` is head 5 of layer 3, `z.3.5@2` that head at position 2, `pattern.3.5@7,2`
/// its attention from position 7 to position 2, and `mlp_post.3:12` neuron 12.
pub(in crate::intervene) fn name_of(edit: &Edit) -> String {
    let list = |indices: &[usize]| indices.iter().map(usize::to_string).collect::<Vec<_>>().join(".");
    let with = |sign: &str, indices: &Option<Vec<usize>>| {
        indices.as_ref().map_or_else(String::new, |indices| format!("{sign}{}", list(indices)))
    };
    let at = &edit.at;
    let keys = if at.positions.is_none() { with("@,", &at.keys) } else { with(",", &at.keys) };
    let prompts = with("#", &at.prompts);
    format!(
        "{}{}{}{keys}{}{prompts}",
        edit.site,
        with(".", &at.heads),
        with("@", &at.positions),
        with(":", &at.features)
    )
}
