//! How do the numbers of a GGUF file's tensor become those of Hugging Face's? llama.cpp reorders some rows, turns some matrices
//! and adds to some norms.

use tch::Tensor;

/// What was done to a tensor when it was written.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) enum Order {
    /// Nothing.
    #[default]
    Same,
    /// Each head's rows are in the order of interleaved rotary pairs: 0, d/2, 1, d/2 + 1, ... They are put back into halves.
    Interleaved { heads: usize },
    /// All queries, then all keys, then all values. Those of each key/value head are put back side by side.
    Parts { heads: usize, kv_heads: usize },
    /// Rows and columns were exchanged.
    Turned,
    /// This was added.
    Plus(f64),
}

impl Order {
    /// Whether a tensor of so many rows may be in this order; otherwise what was expected.
    pub(super) fn check(self, rows: usize) -> Result<(), String> {
        let of = |n: usize| n > 0 && rows.is_multiple_of(n);
        match self {
            Self::Same | Self::Turned | Self::Plus(_) => Ok(()),
            Self::Interleaved { heads } if of(heads.saturating_mul(2)) => Ok(()),
            Self::Interleaved { heads } => Err(format!("an even number of rows for each of {heads} heads")),
            Self::Parts { heads, kv_heads } => {
                let groups = kv_heads > 0 && heads.is_multiple_of(kv_heads);
                let whole = groups && of(heads.saturating_add(kv_heads.saturating_mul(2)));
                let expected = || format!("rows for {heads} queries and for keys and values of {kv_heads} heads");
                if whole { Ok(()) } else { Err(expected()) }
            }
        }
    }

    /// The tensor as it was before, from the tensor as it is stored.
    pub(super) fn undone(self, stored: &Tensor) -> Tensor {
        let size = stored.size();
        let rows = size.first().copied().unwrap_or(0);
        match self {
            Self::Same => stored.shallow_clone(),
            Self::Turned => stored.tr(),
            Self::Plus(added) => stored - added,
            Self::Interleaved { heads } => {
                let pairs = rows / (2 * heads as i64);
                stored.reshape([heads as i64, pairs, 2, -1]).transpose(1, 2).reshape(&size)
            }
            Self::Parts { heads, kv_heads } => {
                let [heads, groups] = [heads, kv_heads].map(|n| n as i64);
                let width = rows / (heads + 2 * groups);
                let part = |first: i64, n: i64| {
                    stored.narrow(0, first * width, n * width).reshape([groups, n / groups * width, -1])
                };
                let all = [part(0, heads), part(heads, groups), part(heads + groups, groups)];
                Tensor::cat(&all, 1).reshape(&size)
            }
        }
    }
}
