//! How is a change of a few heads, or of one position, computed without the rest of the block?

use tch::Tensor;

use super::attention::{self, SomeHeads};
use super::join::{Entry, Joins, State, copies};
use super::pass::Pass;
use crate::error::{Error, Result};
use crate::model::arch::{Cut, Heads, Wire};

impl Pass<'_> {
    /// Adds rows that change only at the first computed position, after step `from`: the values up to step `to` are computed
    /// there, and are those of the unchanged run elsewhere.
    pub(super) fn first_position(
        &mut self,
        layer: usize,
        [from, to]: [usize; 2],
        n: i64,
        rows: i64,
        state: &mut State,
        joins: &Joins<'_>,
    ) -> Result<()> {
        let model = self.model;
        let wiring = model.wiring().block(layer);
        let (mut one, mut whole) = (State::default(), State::default());
        for wire in wiring.live(from).iter() {
            let new = self.edited_from(layer, wire, copies(&joins.unchanged(layer, wire)?, n), rows)?;
            one.set(wire, new.narrow(1, 0, 1));
            whole.set(wire, new);
        }
        self.start = Some(rows);
        for step in &wiring.steps()[from + 1..=to] {
            let value = self.compute(layer, step, &one)?;
            one.set(step.wire, value);
        }
        self.start = None;
        for wire in wiring.live(to).iter() {
            let new = match whole.take(wire) {
                Some(new) => new,
                None => {
                    let rest = copies(&joins.unchanged(layer, wire)?, n);
                    let rest = rest.narrow(1, 1, rest.size()[1] - 1);
                    self.edited_from(layer, wire, Tensor::cat(&[one.get(wire)?, &rest], 1), rows)?
                }
            };
            state.append(wire, new);
        }
        Ok(())
    }

    /// Adds rows in which some heads change: the unchanged residual stream plus (z - unchanged z) W_O of those heads.
    pub(super) fn some_heads(
        &mut self,
        layer: usize,
        entry: Entry,
        attend: bool,
        rows: i64,
        state: &mut State,
        joins: &Joins<'_>,
    ) -> Result<()> {
        let (Some(heads), Cut::After { step, .. }) = (joins.heads.get(&entry), entry.cut) else { return Ok(()) };
        self.start = Some(rows);
        let written = self.change_written(layer, step, &SomeHeads::new(self.model, heads), attend, joins);
        self.start = None;
        let (written, wiring) = (written?, self.model.wiring().block(layer));
        for wire in wiring.live(step).iter() {
            let unchanged = self.unchanged_rows(layer, wire, step, heads.len() as i64, joins)?;
            let new = if wire == wiring.steps()[step].wire { unchanged + &written } else { unchanged };
            state.append(wire, self.edited_from(layer, wire, new, rows)?);
        }
        Ok(())
    }

    /// What the change of some heads adds to the value of step `to`: `[copy * batch, position, d_model]`.
    fn change_written(
        &mut self,
        layer: usize,
        to: usize,
        some: &SomeHeads,
        attend: bool,
        joins: &Joins<'_>,
    ) -> Result<Tensor> {
        let wiring = self.model.wiring().block(layer);
        let there = |pass: &Self, wire: Wire| {
            let step = wiring.made_in(wire).unwrap_or(0);
            pass.unchanged_rows(layer, wire, step, 1, joins)
        };
        let before = some.of(&there(self, Wire::Z)?, 2);
        let z = match attend {
            true => {
                let q = some.of(&there(self, Wire::Q)?, 2);
                let [k, v] = [Wire::K, Wire::V].map(|wire| Ok::<_, Error>(some.of_kv(&there(self, wire)?, 2)));
                let qkv = [
                    self.edited(layer, Wire::Q, q)?,
                    self.edited(layer, Wire::K, k?)?,
                    self.edited(layer, Wire::V, v?)?,
                ];
                attention::heads(self, layer, &Heads::OWN, qkv, Some(some))?
            }
            false => before.shallow_clone(),
        };
        let change = self.trimmed(to, self.edited(layer, Wire::Z, z)? - before);
        let written = some.write(&change, &self.model.w_o(layer)?);
        let sums = to > wiring.output() && self.model.config().residual_scale != 1.0;
        Ok(if sums { written * self.model.config().residual_scale } else { written })
    }
}
