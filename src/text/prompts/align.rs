//! Which token of the corrupt prompt stands for which token of the clean one?

use super::{Marks, Prompts};
use crate::error::{Error, Result};
use crate::text::Tokens;

impl Prompts {
    /// For each position of a clean prompt, the position of the corrupt prompt that stands for it, if one does.
    ///
    /// Named positions stand for each other. So do the tokens between two named positions, one by one, where they are
    /// equally many in both prompts. Where they are not, only those stand for each other that are the same from the
    /// left or the right on: in `John Smith` against `John`, `Smith` has no counterpart.
    ///
    /// # Errors
    /// If there is no such prompt ([`Error::OutOfRange`]), or names stand in different orders in the two prompts.
    pub fn alignment(&self, prompt: usize) -> Result<Vec<Option<usize>>> {
        let (clean, corrupt) = (self.clean().row(prompt), self.corrupt().row(prompt));
        if clean.is_empty() {
            let (found, limit) = (prompt as i64, self.len() as i64);
            return Err(Error::OutOfRange { at: "prompts".into(), axis: "prompt", found, limit });
        }
        let mut map = vec![None; clean.len()];
        let (mut a, mut b) = (0, 0);
        for (x, y) in self.anchors(prompt)? {
            between(clean, corrupt, (a, x), (b, y), &mut map);
            if let Some(at) = map.get_mut(x) {
                *at = Some(y);
            }
            (a, b) = (x + 1, y + 1);
        }
        between(clean, corrupt, (a, clean.len()), (b, corrupt.len()), &mut map);
        Ok(map)
    }

    /// Checks that every token of each prompt stands for one of its partner: then the pairs are equally long.
    ///
    /// # Errors
    /// [`Error::Argument`], with the first tokens that do not stand for each other.
    pub fn check_aligned(&self) -> Result<()> {
        for prompt in 0..self.len() {
            let map = self.alignment(prompt)?;
            let reached: Vec<usize> = map.iter().flatten().copied().collect();
            let alone = |tokens: &Tokens, has: &dyn Fn(usize) -> bool| -> Vec<String> {
                let pieces = tokens.pieces(prompt).into_iter().enumerate();
                pieces.filter(|(at, _)| !has(*at)).map(|(at, piece)| format!("`{piece}` at {at}")).collect()
            };
            let left = alone(self.clean(), &|at| map.get(at).copied().flatten().is_some());
            let right = alone(self.corrupt(), &|at| reached.contains(&at));
            if !(left.is_empty() && right.is_empty()) {
                let said = |side: &[String]| if side.is_empty() { "no token".to_owned() } else { side.join(", ") };
                let expected = "prompts whose tokens stand for each other (names for positions that do would help)";
                let found = format!(
                    "in pair {prompt}, {} of the clean prompt against {} of the corrupt one",
                    said(&left),
                    said(&right)
                );
                return Err(Error::argument("prompts", expected, found));
            }
        }
        Ok(())
    }

    /// The named positions of a pair, in order, each once.
    fn anchors(&self, prompt: usize) -> Result<Vec<(usize, usize)>> {
        let of = |marks: &Marks| Some((*marks.clean.get(prompt)?, *marks.corrupt.get(prompt)?, marks.name.clone()));
        let mut all: Vec<_> = self.marks.iter().filter_map(of).collect();
        all.sort();
        all.dedup_by_key(|(clean, corrupt, _)| (*clean, *corrupt));
        for pair in all.windows(2) {
            if let [(a, b, first), (x, y, second)] = pair
                && (x <= a || y <= b)
            {
                let found = format!("{a} and {x} in the clean prompt, {b} and {y} in the corrupt one of pair {prompt}");
                return Err(Error::argument("position", format!("`{first}` before `{second}`"), found));
            }
        }
        Ok(all.into_iter().map(|(clean, corrupt, _)| (clean, corrupt)).collect())
    }
}

/// Aligns the tokens of `clean` from `.0` up to `.1` with those of `corrupt`.
fn between(clean: &[i64], corrupt: &[i64], (a, x): (usize, usize), (b, y): (usize, usize), map: &mut [Option<usize>]) {
    let (left, right) = (clean.get(a..x).unwrap_or_default(), corrupt.get(b..y).unwrap_or_default());
    let (from_left, from_right) = if left.len() == right.len() {
        (left.len(), 0)
    } else {
        let same = left.iter().zip(right).take_while(|(one, other)| one == other).count();
        let most = left.len().min(right.len()) - same;
        let same_end = left.iter().rev().zip(right.iter().rev()).take(most).take_while(|(one, other)| one == other);
        (same, same_end.count())
    };
    for i in 0..from_left {
        map[a + i] = Some(b + i);
    }
    for i in 1..=from_right {
        map[x - i] = Some(y - i);
    }
}
