//! Which head plays which role: choices of words against annotation.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::Array1;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::align::{Aligned, Item, Looking};
use super::annotation::Annotated;
use super::interval::Intervals;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::stats::Interval;
use crate::table::{Keys, Observation, Provenance, Table};

/// How roles are judged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoleOptions {
    /// Which of a word's tokens speak for it; the mean in a bidirectional model and the last in a causal one, unless said
    /// otherwise.
    pub looking: Option<Looking>,
    /// A role needs this many links in each half.
    pub least: usize,
    /// Draws of the null distribution.
    pub draws: usize,
    /// Bootstrap resamples of the texts for the intervals: 100 or more, or 0 for no intervals.
    pub resamples: usize,
    /// Confidence level of the intervals.
    pub confidence: f64,
    /// Other heads that are taken away to compare with, in [`Role::test`](super::Role::test).
    pub controls: usize,
    /// Most texts of the second half on which heads are taken away, in [`Role::test`](super::Role::test).
    pub texts: usize,
    /// Seed of the halves and of all draws.
    pub seed: u64,
}

impl Default for RoleOptions {
    fn default() -> Self {
        Self {
            looking: None,
            least: 20,
            draws: 1000,
            resamples: 1000,
            confidence: 0.95,
            controls: 19,
            texts: 100,
            seed: 0,
        }
    }
}

impl RoleOptions {
    /// Checks the options.
    ///
    /// # Errors
    /// If a number that must be at least 1 is 0, the confidence is not between 0 and 1, or there are 1 to 99 resamples, too few
    /// for an interval.
    pub fn validate(&self) -> Result<()> {
        let positive =
            [("least", self.least), ("draws", self.draws), ("controls", self.controls), ("texts", self.texts)];
        if let Some((name, _)) = positive.iter().find(|(_, n)| *n == 0) {
            return Err(Error::argument(name, "at least 1", 0));
        }
        let what = "one look at all links";
        for (name, n) in [("draws", self.draws), ("resamples", self.resamples), ("controls", self.controls)] {
            crate::take::at_most(name, n, 1_000_000, what)?;
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            return Err(Error::argument("confidence", "a number between 0 and 1", self.confidence));
        }
        self.intervals().validate()
    }

    pub(super) fn intervals(&self) -> Intervals {
        Intervals { resamples: self.resamples, level: self.confidence, seed: self.seed }
    }
}

/// What every head makes of every annotated link.
///
/// A word looks at another with the attention from its tokens, the mean of them (or the last), to the other's tokens, their sum.
/// A head is right about a link where, of all other words (in a causal model: those before), the one that it looks at most is
/// right (Clark et al. 2019). Texts longer than the model's context, words without a token of their own and links with fewer than
/// two words to choose from are left out.
///
/// ```
/// use headscope::heads::{Annotated, Link, RoleOptions, Roles};
/// use headscope::prelude::*;
/// let model = Model::load("fixtures/checkpoints/tiny-bert")?;
/// let link = |query, key| Link { role: "det_to_head".into(), query, keys: vec![key], among: None };
/// let text = Annotated { text: "the cat sat on the head".into(), words: vec![0..3, 4..7, 8..11, 12..14, 15..18, 19..23], links: vec![link(0, 1), link(4, 5)] };
/// let roles = Roles::measure(&model, &vec![text; 4], &RoleOptions { least: 2, ..RoleOptions::default() })?;
/// assert_eq!(roles.names(), ["det_to_head"]);
/// let best = roles.best()?; // chosen on one half of the texts, judged on the other
/// # assert_eq!(best.len(), 4);
/// # Ok::<(), headscope::Error>(())
/// ```
#[derive(Debug)]
pub struct Roles {
    pub(super) items: BTreeMap<String, Vec<Item>>,
    pub(super) n_heads: usize,
    /// The texts on which heads are chosen; they are judged on the others.
    chosen_on: BTreeSet<usize>,
    options: RoleOptions,
    provenance: Provenance,
}

/// A head's or an offset's right choices, and of how many.
struct Tally {
    right: usize,
    of: usize,
}

impl Tally {
    fn of<'a>(items: impl Iterator<Item = &'a Item>, place: impl Fn(&Item) -> i32) -> Self {
        let mut tally = Self { right: 0, of: 0 };
        for item in items {
            tally.right += usize::from(item.right.contains(&place(item)));
            tally.of += 1;
        }
        tally
    }

    fn accuracy(&self) -> f64 {
        self.right as f64 / self.of as f64
    }
}

/// The offsets among which the best fixed one is looked for.
const OFFSETS: std::ops::RangeInclusive<i32> = -10..=10;

impl Roles {
    /// Runs the model over the texts once and notes every head's choices.
    ///
    /// # Errors
    /// Where the model has no tokenizer, no text fits it, a link or word lies outside its text, or an option makes no sense.
    pub fn measure(model: &Model, texts: &[Annotated], options: &RoleOptions) -> Result<Self> {
        Self::of(model, texts, options, None)
    }

    /// [`Roles::measure`] of one role only, where one is named.
    pub(super) fn of(model: &Model, texts: &[Annotated], options: &RoleOptions, role: Option<&str>) -> Result<Self> {
        options.validate()?;
        let aligned = Aligned::new(model, texts)?;
        let usual = if model.config().causal { Looking::Last } else { Looking::Mean };
        let looking = options.looking.unwrap_or(usual);
        let mut items: BTreeMap<String, Vec<Item>> = BTreeMap::new();
        for item in aligned.items(model, texts, looking, role)? {
            items.entry(item.role.clone()).or_default().push(item);
        }
        items.values_mut().for_each(|items| items.sort_by_key(|item| item.text));
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(options.seed));
        let chosen_on = order.into_iter().take(texts.len() / 2).collect();
        let what = serde_json::json!({"what": "roles", "options": options, "looking": looking,
            "texts": texts.len(), "sha256": crate::file::sha256(format!("{texts:?}").as_bytes()), "texts that fit": aligned.texts.len()});
        let provenance = model.provenance(what, Some(options.seed))?;
        Ok(Self { items, n_heads: model.config().n_heads, chosen_on, options: options.clone(), provenance })
    }

    /// The roles of which there are links that could be judged.
    pub fn names(&self) -> Vec<&str> {
        self.items.keys().map(String::as_str).collect()
    }

    /// How often is every head right? One row a role (`task`) and head, on all texts; `baseline` is the best fixed offset.
    ///
    /// # Errors
    /// Where polars refuses the columns.
    pub fn table(&self) -> Result<Table> {
        let mut rows = vec![];
        for (role, items) in &self.items {
            let offset = best_of(OFFSETS, |&offset| Tally::of(items.iter(), |_| offset).right);
            let baseline = Some(Tally::of(items.iter(), |_| offset).accuracy());
            for head in 0..items.first().map_or(0, |item| item.found.len()) {
                let value = Tally::of(items.iter(), |item| item.found[head]).accuracy();
                let metric = "accuracy".to_owned();
                rows.push(Observation {
                    keys: self.keys(role, head),
                    metric,
                    value,
                    baseline,
                    ..Observation::default()
                });
            }
        }
        Table::new(rows, self.provenance.clone())
    }

    /// Which head plays each role, and is it more than its position? Four rows a role (`task`), of the head that is right most
    /// often on one half of the texts:
    ///
    /// - `accuracy`: how often it is right on the other half, with a bootstrap interval over texts; `baseline`: the same for the
    ///   fixed offset that is right most often on the first half. Both are chosen and judged on different texts.
    /// - `offset`: that offset, in words.
    /// - `links`: how many links the accuracy is over.
    /// - `p_value`: could any head be right so often if all that it knew were distances? Each link's right word is moved to where
    ///   another link of the role has its own, for all heads alike; the share of such draws in which the best of all heads is as
    ///   right as the best really is (a max-statistic permutation test on all texts, which allows for there being many heads).
    ///
    /// Roles with too few links in a half are left out.
    ///
    /// # Errors
    /// Where no role has enough links.
    pub fn best(&self) -> Result<Table> {
        Table::new(self.best_rows()?, self.provenance.clone())
    }

    /// The rows of [`Roles::best`].
    pub(super) fn best_rows(&self) -> Result<Vec<Observation>> {
        let mut rows = vec![];
        for (role, items) in &self.items {
            let Some((head, offset)) = self.choose(items) else { continue };
            let judged: Vec<&Item> = items.iter().filter(|item| !self.chosen_on.contains(&item.text)).collect();
            let tally = |place: &dyn Fn(&Item) -> i32| Tally::of(judged.iter().copied(), place).accuracy();
            let interval = self.interval(&judged, head)?;
            let row = |metric: &str, value: f64| Observation {
                keys: self.keys(role, head),
                metric: metric.to_owned(),
                value,
                ..Observation::default()
            };
            rows.push(Observation {
                baseline: Some(tally(&|_| offset)),
                low: interval.map(|interval| interval.low),
                high: interval.map(|interval| interval.high),
                ..row("accuracy", tally(&|item| item.found[head]))
            });
            rows.push(row("offset", f64::from(offset)));
            rows.push(row("links", judged.len() as f64));
            rows.push(row("p_value", self.p_value(items)));
        }
        if rows.is_empty() {
            let most = self.items.iter().map(|(role, items)| format!("{role}: {}", items.len())).collect::<Vec<_>>();
            let expected = format!("a role with {} links in each half", self.options.least);
            return Err(Error::argument("texts", expected, most.join(", ")));
        }
        Ok(rows)
    }

    pub(super) fn provenance(&self) -> Provenance {
        self.provenance.clone()
    }

    pub(super) fn keys(&self, role: &str, head: usize) -> Keys {
        let number = |n: usize| u32::try_from(n).ok();
        let (layer, head) = (number(head / self.n_heads), number(head % self.n_heads));
        Keys { task: Some(role.to_owned()), layer, head, ..Keys::default() }
    }

    /// The head and the offset that are right most often where they are chosen; nothing where either half has too few links.
    pub(super) fn choose(&self, items: &[Item]) -> Option<(usize, i32)> {
        let (here, there): (Vec<&Item>, Vec<&Item>) =
            items.iter().partition(|item| self.chosen_on.contains(&item.text));
        if here.len().min(there.len()) < self.options.least {
            return None;
        }
        let right = |place: &dyn Fn(&Item) -> i32| Tally::of(here.iter().copied(), place).right;
        let head = best_of(0..here[0].found.len(), |&head| right(&|item| item.found[head]));
        Some((head, best_of(OFFSETS, |&offset| right(&|_| offset))))
    }

    /// Whether a text is one on which heads are judged.
    pub(super) fn judges(&self, text: usize) -> bool {
        !self.chosen_on.contains(&text)
    }

    /// The interval of a head's accuracy, by the bootstrap over texts.
    fn interval(&self, judged: &[&Item], head: usize) -> Result<Option<Interval>> {
        let texts: Vec<&[&Item]> = judged.chunk_by(|a, b| a.text == b.text).collect();
        let tally = |items: &&[&Item]| Tally::of(items.iter().copied(), |item| item.found[head]);
        let right: Array1<f64> = texts.iter().map(|items| tally(items).right as f64).collect();
        let of: Array1<f64> = texts.iter().map(|items| items.len() as f64).collect();
        self.options.intervals().ratio(right, of)
    }

    /// The max-statistic permutation test of [`Roles::best`].
    fn p_value(&self, items: &[Item]) -> f64 {
        // The heads that look at each place, for each link: most draws touch few heads.
        let looking: Vec<BTreeMap<i32, Vec<usize>>> = items.iter().map(|item| heads_by_place(&item.found)).collect();
        let n = items.first().map_or(0, |item| item.found.len());
        let most = |right: &dyn Fn(usize) -> usize| {
            let mut counts = vec![0usize; n];
            for (link, looking) in looking.iter().enumerate() {
                let heads = items[right(link)].right.iter().filter_map(|place| looking.get(place)).flatten();
                heads.for_each(|&head| counts[head] += 1);
            }
            counts.into_iter().max().unwrap_or(0)
        };
        let observed = most(&|link| link);
        let extreme = (0..self.options.draws).into_par_iter().filter(|&draw| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.options.seed);
            rng.set_stream(draw as u64 + 1);
            let drawn: Vec<usize> = (0..items.len()).map(|link| another(link, items, &mut rng)).collect();
            most(&|link| drawn[link]) >= observed
        });
        (1 + extreme.count()) as f64 / (1 + self.options.draws) as f64
    }
}

/// Another link of the role whose right places exist for this one too; itself where twenty draws find none.
fn another(link: usize, items: &[Item], rng: &mut ChaCha8Rng) -> usize {
    let mut draws = (0..20).map(|_| rng.random_range(0..items.len()));
    draws.find(|&other| items[other].right.iter().all(|&place| items[link].has(place))).unwrap_or(link)
}

fn heads_by_place(found: &[i32]) -> BTreeMap<i32, Vec<usize>> {
    let mut heads: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    found.iter().enumerate().for_each(|(head, place)| heads.entry(*place).or_default().push(head));
    heads
}

/// The first of those of largest worth.
fn best_of<T: Copy + Default>(all: impl IntoIterator<Item = T>, worth: impl Fn(&T) -> usize) -> T {
    let better = |best: Option<(T, usize)>, next: T| match best {
        Some((_, most)) if most >= worth(&next) => best,
        _ => Some((next, worth(&next))),
    };
    all.into_iter().fold(None, better).map(|(best, _)| best).unwrap_or_default()
}
