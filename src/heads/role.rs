//! Which head plays which role? The words that heads attend to, compared with annotation.

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

/// How to judge roles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RoleOptions {
    /// Which tokens of a word count as the query; by default the mean over them in a bidirectional model, and the last
    /// one in a causal model.
    pub looking: Option<Looking>,
    /// The fewest links that a role needs in each half.
    pub least: usize,
    /// The number of draws from the null distribution.
    pub draws: usize,
    /// Bootstrap resamples of the texts for the intervals: at least 100, or 0 for no intervals.
    pub resamples: usize,
    /// Confidence level of the intervals.
    pub confidence: f64,
    /// The number of control heads in [`Role::test`](super::Role::test).
    pub controls: usize,
    /// The most texts of the second half on which heads are ablated in [`Role::test`](super::Role::test).
    pub texts: usize,
    /// Seed of the halves and of all random draws.
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
    /// If a number that must be at least 1 is 0, the confidence is not between 0 and 1, or there are 1 to 99 resamples,
    /// too few for an interval.
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

/// The choices of every head on every annotated link.
///
/// The attention of a word to another is the mean over the query word's tokens (or its last token) of the summed
/// attention to the other word's tokens. A head is correct on a link if, among all other words (in a causal model: all
/// earlier ones), the word that it attends to most is a correct one (Clark et al. 2019). Texts longer than the model's
/// context, words without a token of their own and links with fewer than two candidate words are left out.
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

/// How many choices of a head or an offset are correct, and out of how many.
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

/// The offsets considered for the best fixed one.
const OFFSETS: std::ops::RangeInclusive<i32> = -10..=10;

impl Roles {
    /// Runs the model over the texts once and records the choices of every head.
    ///
    /// # Errors
    /// If the model has no tokenizer, no text fits it, a link or word lies outside its text, or an option is invalid.
    pub fn measure(model: &Model, texts: &[Annotated], options: &RoleOptions) -> Result<Self> {
        Self::of(model, texts, options, None)
    }

    /// [`Roles::measure`], for a single role if one is given.
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

    /// The roles with at least one link that can be judged.
    pub fn names(&self) -> Vec<&str> {
        self.items.keys().map(String::as_str).collect()
    }

    /// How often is every head correct? One row per role (`task`) and head, on all texts; `baseline` is the best fixed
    /// offset.
    ///
    /// # Errors
    /// If polars rejects the columns.
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

    /// Which head plays each role, and is it more than its position? Four rows per role (`task`), about the head that
    /// is correct most often on one half of the texts:
    ///
    /// - `accuracy`: how often it is correct on the other half, with a bootstrap interval over texts. `baseline`: the
    ///   same for the fixed offset that is correct most often on the first half. Both are chosen and judged on
    ///   different texts.
    /// - `offset`: that offset, in words.
    /// - `links`: the number of links that the accuracy is over.
    /// - `p_value`: could some head be correct as often if heads knew only distances? Each draw moves the correct word
    ///   of every link to the place of another link's correct word, in the same role and for all heads alike. The
    ///   p-value is the share of draws in which the best of all heads is at least as often correct as the best is on
    ///   the data. This is a max-statistic permutation test on all texts, which accounts for the number of heads.
    ///
    /// Roles with too few links in a half are left out.
    ///
    /// # Errors
    /// If no role has enough links.
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

    /// The head and the offset that are correct most often on the texts for choosing; `None` if either half has too few
    /// links.
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

    /// Whether heads are judged on this text.
    pub(super) fn judges(&self, text: usize) -> bool {
        !self.chosen_on.contains(&text)
    }

    /// The interval of a head's accuracy, from a bootstrap over texts.
    fn interval(&self, judged: &[&Item], head: usize) -> Result<Option<Interval>> {
        let texts: Vec<&[&Item]> = judged.chunk_by(|a, b| a.text == b.text).collect();
        let tally = |items: &&[&Item]| Tally::of(items.iter().copied(), |item| item.found[head]);
        let right: Array1<f64> = texts.iter().map(|items| tally(items).right as f64).collect();
        let of: Array1<f64> = texts.iter().map(|items| items.len() as f64).collect();
        self.options.intervals().ratio(right, of)
    }

    /// The max-statistic permutation test of [`Roles::best`].
    fn p_value(&self, items: &[Item]) -> f64 {
        // For each link, the heads that attend to each place: most draws involve few heads.
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

/// Another link of the role whose correct places exist for this link too; the link itself if twenty draws find none.
fn another(link: usize, items: &[Item], rng: &mut ChaCha8Rng) -> usize {
    let mut draws = (0..20).map(|_| rng.random_range(0..items.len()));
    draws.find(|&other| items[other].right.iter().all(|&place| items[link].has(place))).unwrap_or(link)
}

fn heads_by_place(found: &[i32]) -> BTreeMap<i32, Vec<usize>> {
    let mut heads: BTreeMap<i32, Vec<usize>> = BTreeMap::new();
    found.iter().enumerate().for_each(|(head, place)| heads.entry(*place).or_default().push(head));
    heads
}

/// The first item of largest worth.
fn best_of<T: Copy + Default>(all: impl IntoIterator<Item = T>, worth: impl Fn(&T) -> usize) -> T {
    let better = |best: Option<(T, usize)>, next: T| match best {
        Some((_, most)) if most >= worth(&next) => best,
        _ => Some((next, worth(&next))),
    };
    all.into_iter().fold(None, better).map(|(best, _)| best).unwrap_or_default()
}
