//! What do several components do together? Variants that change a whole set of them, and the subsets of a set.

use std::collections::BTreeSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::intervene::engine::Variant;
use crate::model::{Action, Axis, Edit, ModelConfig, Selector};
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
pub(super) fn together(edits: Vec<Edit>, config: &ModelConfig) -> Variant {
    let name = set_name(&edits, config);
    let keys = Keys { set: Some(name), parts: u32::try_from(edits.len()).ok(), ..Keys::default() };
    Variant { keys, edits }
}

/// The names of what several edits change, joined by `+`. Heads of one layer are named together: `z.3.1.5` for heads 1
/// and 5, `z.3.2-6` for a run of three or more, and `z.3.*` for all.
pub(in crate::intervene) fn set_name(edits: &[Edit], config: &ModelConfig) -> String {
    let mut named: Vec<Edit> = vec![];
    for edit in edits {
        let same_but_heads = |other: &&mut Edit| {
            let at = Selector { heads: edit.at.heads.clone(), ..other.at.clone() };
            other.site == edit.site && other.action == edit.action && other.at.heads.is_some() && at == edit.at
        };
        match (&edit.at.heads, named.iter_mut().find(same_but_heads)) {
            (Some(heads), Some(known)) => known.at.heads.get_or_insert_default().extend(heads),
            _ => named.push(edit.clone()),
        }
    }
    named.iter().map(|edit| name_of(edit, config)).collect::<Vec<_>>().join("+")
}

/// The name of what an edit changes: `z.3.5` is head 5 of layer 3, `z.3.5@2` that head at position 2, `pattern.3.5@7,2`
/// its attention from position 7 to position 2, and `mlp_post.3:12` neuron 12.
fn name_of(edit: &Edit, config: &ModelConfig) -> String {
    let with = |sign: &str, indices: &Option<Vec<usize>>| {
        indices.as_ref().map_or_else(String::new, |indices| format!("{sign}{}", ranges(indices)))
    };
    let at = &edit.at;
    let all = if edit.site.axes().contains(&Axis::KvHead) { config.n_kv_heads } else { config.n_heads };
    let every = at.heads.as_ref().is_some_and(|heads| all > 1 && (0..all).all(|head| heads.contains(&head)));
    let heads = if every { ".*".to_owned() } else { with(".", &at.heads) };
    let keys = if at.positions.is_none() { with("@,", &at.keys) } else { with(",", &at.keys) };
    let prompts = with("#", &at.prompts);
    let function = match &edit.action {
        Action::Custom(function) => format!("[{}]", function.name()),
        _ => String::new(),
    };
    format!("{}{heads}{}{keys}{}{prompts}{function}", edit.site, with("@", &at.positions), with(":", &at.features))
}

/// Indices, sorted, each once; three or more that follow one another as a range: `1.3-6.9`.
fn ranges(indices: &[usize]) -> String {
    let sorted: Vec<usize> = indices.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
    let runs = sorted.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, _, .., last] => format!("{first}-{last}"),
        few => few.iter().map(usize::to_string).collect::<Vec<_>>().join("."),
    });
    runs.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Site;

    #[test]
    fn names_of_sets_are_short_and_still_say_which() {
        let config = ModelConfig { n_heads: 9, n_kv_heads: 3, ..ModelConfig::default() };
        let of = |edits: Vec<Edit>| set_name(&edits, &config);
        let q = |head| Edit::new(Site::Q(23), Action::Zero).head(head);
        assert_eq!(of((0..9).map(q).collect()), "q.23.*");
        assert_eq!(of((0..8).map(q).collect()), "q.23.0-7");
        assert_eq!(of([5, 1, 0].map(q).into()), "q.23.0.1.5");
        assert_eq!(of(vec![Edit::new(Site::K(2), Action::Zero).heads([2, 0, 1])]), "k.2.*");
        let mlp = Edit::new(Site::MlpPost(1), Action::Zero).features([4, 9, 5, 6]);
        assert_eq!(of(vec![q(3), mlp, q(4)]), "q.23.3.4+mlp_post.1:4-6.9");
        // Heads at other positions, and other layers, are other parts.
        let late = |head| q(head).position(7);
        let other = Edit::new(Site::Q(2), Action::Zero).head(0);
        assert_eq!(of(vec![q(0), late(0), late(1), other]), "q.23.0+q.23.0.1@7+q.2.0");
        // A whole site is not the same edit as all of its heads.
        assert_eq!(
            of(vec![Edit::new(Site::Z(0), Action::Zero), Edit::new(Site::Z(0), Action::Zero).head(1)]),
            "z.0+z.0.1"
        );
    }
}
