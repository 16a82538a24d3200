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
