//! Which heads have roles, does the work depend on them, and is a role the work of one head?

use super::measure::Asked;
use crate::error::Result;
use crate::lab::streams::Purpose;
use crate::lab::trace::RoleScores;
use crate::stats::shuffled;
use crate::table::Observation;

/// A head has a role if it exceeds position and chance by this share of its attention.
pub(in crate::lab::experiment) const ROLE: f64 = 0.1;
/// The number of random groups beside those with a role.
const CONTROLS: u64 = 5;
/// Below this share of the learnable loss, the work of all heads is too little to divide it among them.
const LEAST: f64 = 0.1;

/// Heads by layer and number.
type Heads = Vec<(usize, usize)>;

/// The heads of each run that have a role, and the one that has most of it, as chosen on one half of the held-out sequences.
struct Chosen {
    best: Heads,
    groups: Vec<Heads>,
}

impl Chosen {
    /// `None` if a run has no such dependency.
    fn of(scores: &RoleScores, kind: usize, all: &Heads) -> Option<Self> {
        let mut chosen = Self { best: vec![], groups: vec![] };
        for run in 0..scores.attention.dim().0 {
            let beyond = |&head: &(usize, usize)| scores.beyond(run, head, kind);
            let known = all.iter().copied().filter(|head| !beyond(head).is_nan());
            chosen.best.push(known.max_by(|a, b| beyond(a).total_cmp(&beyond(b)))?);
            chosen.groups.push(all.iter().copied().filter(|head| beyond(head) > ROLE).collect());
        }
        Some(chosen)
    }
}

impl Asked<'_> {
    /// Rows about the roles of heads, one of each metric for each kind of dependency, and about attention at a fixed
    /// distance.
    pub(super) fn roles(&self) -> Result<Vec<Observation>> {
        let (choosing, judged) = (self.other.roles()?, self.probe.roles()?);
        let all: Heads = (0..self.layers).flat_map(|layer| (0..self.heads).map(move |head| (layer, head))).collect();
        let mut rows = self.positions()?;
        for (number, kind) in judged.kinds.iter().enumerate() {
            let Some(other) = choosing.kinds.iter().position(|name| name == kind) else { continue };
            let Some(chosen) = Chosen::of(&choosing, other, &all) else { continue };
            let mut found = vec![("role_attention", vec![]), ("role_beyond", vec![]), ("role_heads", vec![])];
            for (run, &(layer, head)) in chosen.best.iter().enumerate() {
                found[0].1.push(judged.attention[[run, layer, head, number]]);
                found[1].1.push(judged.beyond(run, (layer, head), number));
                found[2].1.push(chosen.groups[run].len() as f64);
            }
            found.extend(self.work_of(kind, &chosen, &all)?);
            rows.extend(found.into_iter().flat_map(|(metric, values)| self.of_task(kind, metric, &values)));
        }
        Ok(rows)
    }

    /// What the heads of a role do for its task: their cost as a group, that of other groups, and the best head's share.
    fn work_of(&self, kind: &str, chosen: &Chosen, all: &Heads) -> Result<Vec<(&'static str, Vec<f64>)>> {
        let task = self.tasks.iter().find(|info| info.name == kind && info.chance > info.floor);
        let Some(task) = task else { return Ok(vec![]) };
        let places = self.probe.places(kind)?;
        let lost = |absent: &[Heads]| -> Result<Vec<f64>> {
            let losses = self.probe.losses_at(&places, absent)?;
            Ok(losses.into_iter().map(|loss| loss / (task.chance - task.floor)).collect())
        };
        let whole = lost(&vec![vec![]; self.seeds.len()])?;
        let cost = |absent: &[Heads]| -> Result<Vec<f64>> { Ok(minus(&lost(absent)?, &whole)) };
        let group = cost(&chosen.groups)?;
        let control = self.control(chosen, all, &cost)?;
        let needed = minus(&group, &control);
        let exclusive = self.share_of_best(chosen, all, &cost)?;
        Ok(vec![
            ("role_group_cost", group),
            ("role_control_cost", control),
            ("role_needed", needed),
            ("role_exclusive", exclusive),
        ])
    }

    /// The mean cost of random groups as large as that of the role, from the other heads, or from all where the others are too
    /// few.
    fn control(&self, chosen: &Chosen, all: &Heads, cost: &dyn Fn(&[Heads]) -> Result<Vec<f64>>) -> Result<Vec<f64>> {
        let mut sum = vec![0.0; self.seeds.len()];
        if chosen.groups.iter().all(Vec::is_empty) {
            return Ok(sum);
        }
        for number in 0..CONTROLS {
            let draw = |(group, &seed): (&Heads, &u64)| {
                let others: Heads = all.iter().copied().filter(|head| !group.contains(head)).collect();
                let from = if others.len() < group.len() { all } else { &others };
                let mut drawn = shuffled(from, Purpose::Controls.seed(seed).wrapping_add(number));
                drawn.truncate(group.len());
                drawn
            };
            let groups: Vec<Heads> = chosen.groups.iter().zip(self.seeds).map(draw).collect();
            let costs = cost(&groups)?;
            sum.iter_mut().zip(costs).for_each(|(sum, cost)| *sum += cost);
        }
        Ok(sum.into_iter().map(|sum| sum / CONTROLS as f64).collect())
    }

    /// The best head's share of what all heads do at the role's places: its Shapley value beside all others as one player.
    /// With it missing alone the others may step in, without the others it may not suffice; the share is the mean of both
    /// views.
    fn share_of_best(
        &self,
        chosen: &Chosen,
        all: &Heads,
        cost: &dyn Fn(&[Heads]) -> Result<Vec<f64>>,
    ) -> Result<Vec<f64>> {
        let without = |kept: &dyn Fn((usize, usize), (usize, usize)) -> bool| {
            let of = |&best: &(usize, usize)| all.iter().copied().filter(|&head| !kept(head, best)).collect();
            cost(&chosen.best.iter().map(of).collect::<Vec<Heads>>())
        };
        let nothing = without(&|_, _| false)?;
        let others = without(&|head, best| head != best)?;
        let alone = without(&|head, best| head == best)?;
        let share = |((nothing, others), alone): ((f64, f64), f64)| match nothing >= LEAST {
            true => ((others + nothing - alone) / (2.0 * nothing)).clamp(0.0, 1.0),
            false => f64::NAN,
        };
        Ok(nothing.into_iter().zip(others).zip(alone).map(share).collect())
    }

    /// The largest share of a head's attention at a fixed distance; head and distance are chosen on one half of the held-out
    /// sequences.
    fn positions(&self) -> Result<Vec<Observation>> {
        let (choosing, judged) = (self.other.position_shares()?, self.probe.position_shares()?);
        let share = |run: usize| {
            let known = choosing.largest(run).filter(|(_, offset)| *offset < judged.attention.dim().3);
            known.map_or(f64::NAN, |((layer, head), offset)| judged.attention[[run, layer, head, offset]])
        };
        let shares: Vec<f64> = (0..self.seeds.len()).map(share).collect();
        Ok(self.of_runs("position_share", &shares))
    }

    fn of_task(&self, task: &str, metric: &str, values: &[f64]) -> Vec<Observation> {
        let mut rows = self.of_runs(metric, values);
        rows.iter_mut().for_each(|row| row.keys.task = Some(task.to_owned()));
        rows
    }
}

fn minus(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::lab::language::{Batch, English, Language};
    use crate::lab::trace::Probe;
    use crate::model::{Action, Edit, Model, ModelConfig, NormKind, Position, QkvBias, Site};
    use tch::{Device, Kind, Tensor};

    const HEADS: usize = 4;
    const SEEDS: [u64; 2] = [3, 4];

    /// Where a hand-built head looks.
    #[derive(Clone, Copy)]
    enum Looks {
        /// At the sources of an entity; where there are none, at its own place.
        Entity,
        /// This many tokens back.
        Back(usize),
        /// Everywhere alike.
        Around,
    }

    fn stories() -> Language {
        Language::English(English { length: 40 })
    }

    /// Four heads that write each surname that they see; the patterns are put in by edits.
    fn copying() -> Model {
        let language = stories();
        let vocab = language.vocab();
        let config = ModelConfig {
            d_model: vocab,
            n_heads: HEADS,
            n_kv_heads: HEADS,
            d_head: 12,
            d_mlp: 0,
            vocab,
            n_positions: 40,
            norm: NormKind::None,
            position: Position::None,
            qkv_bias: QkvBias::NONE,
            attn_out_bias: false,
            ..ModelConfig::default()
        };
        let model = Model::random_as(&config, 0, Kind::Double, Device::Cpu).unwrap();
        let first = language.words().unwrap().iter().position(|word| word == "Adler").unwrap() as i64;
        let eye = Tensor::eye(vocab as i64, (Kind::Double, Device::Cpu));
        let surnames = eye.narrow(1, first, 12);
        for (name, tensor) in model.parameters() {
            let value = match name.as_str() {
                "w_e" | "w_u" => eye.shallow_clone(),
                "blocks.0.w_v" => surnames.repeat([1, HEADS as i64]),
                "blocks.0.w_o" => (&surnames * 20.0).tr().repeat([HEADS as i64, 1]),
                _ => tensor.zeros_like(),
            };
            tch::no_grad(|| tensor.shallow_clone().copy_(&value));
        }
        model
    }

    fn patterns(batch: &Batch, heads: [Looks; HEADS]) -> Tensor {
        let n = 40;
        let mut all = vec![0.0; batch.samples.len() * HEADS * n * n];
        for (row, sample) in batch.samples.iter().enumerate() {
            let mut sources: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            let own = sample.dependencies.iter().filter(|one| one.kind == "entity");
            own.for_each(|one| sources.entry(one.query).or_default().push(one.source));
            for (head, looks) in heads.into_iter().enumerate() {
                for query in 0..n {
                    let keys = match looks {
                        Looks::Entity => sources.get(&query).cloned().unwrap_or_else(|| vec![query]),
                        Looks::Back(offset) => vec![query.saturating_sub(offset)],
                        Looks::Around => (0..=query).collect(),
                    };
                    for key in &keys {
                        all[((row * HEADS + head) * n + query) * n + key] = 1.0 / keys.len() as f64;
                    }
                }
            }
        }
        Tensor::from_slice(&all).view([-1, HEADS as i64, n as i64, n as i64])
    }

    /// What is measured of two models whose heads look so, by metric: the values of the entity role, or of the run.
    fn measured(heads: [Looks; HEADS]) -> BTreeMap<String, Vec<f64>> {
        let (language, model) = (stories(), copying());
        let batches = |number| SEEDS.map(|seed| language.batch(48, seed, number).unwrap()).to_vec();
        let probe = |batches: &[Batch]| {
            let own: Vec<Tensor> = batches.iter().map(|batch| patterns(batch, heads)).collect();
            let own = Tensor::cat(&own, 0);
            let edit = Edit::new(Site::Pattern(0), Action::custom("planted", move |_| Ok(own.shallow_clone())));
            let models = Model::stacked(&SEEDS.map(|_| copying())).unwrap();
            Probe::of(models, &language, batches).unwrap().edits(vec![edit])
        };
        let (judging, choosing) = (batches(0), batches(1));
        let asked = Asked {
            probe: &probe(&judging),
            other: &probe(&choosing),
            model: &model,
            language: &language,
            batches: &judging,
            tasks: &language.tasks(),
            weights: &[],
            seeds: &SEEDS,
            step: 0,
            layers: 1,
            layer: 0,
            heads: HEADS,
            width: 12,
        };
        let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
        let ours = |row: &Observation| row.keys.task.as_deref().is_none_or(|task| task == "entity");
        for row in asked.roles().unwrap().into_iter().filter(ours) {
            found.entry(row.metric).or_default().push(row.value);
        }
        found
    }

    fn within(found: &BTreeMap<String, Vec<f64>>, metric: &str, (low, high): (f64, f64)) {
        let values = &found[metric];
        assert!(values.len() == 2 && values.iter().all(|x| (low..=high).contains(x)), "{metric}: {values:?}");
    }

    /// A positive control: one head finds the sources, another keeps to a distance, two look at their own place. The role is found, the work
    /// depends on it, on no other group, and on that one head.
    #[test]
    fn a_planted_head_has_the_role() {
        let found = measured([Looks::Back(0), Looks::Entity, Looks::Back(1), Looks::Back(0)]);
        within(&found, "role_attention", (0.999, 1.001));
        within(&found, "role_beyond", (0.5, 1.0));
        within(&found, "role_heads", (1.0, 1.0));
        within(&found, "role_group_cost", (0.8, 1.5));
        within(&found, "role_control_cost", (-0.1, 0.1));
        within(&found, "role_needed", (0.8, 1.5));
        within(&found, "role_exclusive", (0.9, 1.0));
        within(&found, "position_share", (0.999, 1.001));
    }

    /// Two heads that do the same are needed as a group, and neither is the one.
    #[test]
    fn a_role_of_two_heads_is_not_exclusive() {
        let found = measured([Looks::Entity, Looks::Back(0), Looks::Entity, Looks::Back(0)]);
        within(&found, "role_heads", (2.0, 2.0));
        within(&found, "role_needed", (0.8, 1.5));
        within(&found, "role_exclusive", (0.4, 0.6));
        within(&found, "position_share", (0.0, 0.5));
    }

    /// A negative control: heads that keep to a distance have no role, whatever the distance, and a group of none costs nothing.
    #[test]
    fn a_fixed_offset_is_no_role() {
        let best = stories().batch(500, 0, 0).unwrap().best_offset("entity").unwrap().offset;
        let found = measured([Looks::Back(1), Looks::Back(best), Looks::Back(5), Looks::Around]);
        within(&found, "role_beyond", (-1.0, 1e-9));
        for metric in ["role_heads", "role_group_cost", "role_control_cost", "role_needed"] {
            within(&found, metric, (0.0, 0.0));
        }
        within(&found, "position_share", (0.9, 1.001));
    }
}
