//! How do paths become a table? Part by part of the batch, and one block of senders at a time.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array2, ArrayView1};
use tch::Tensor;

use super::{Input, Node, Paths};
use crate::error::Result;
use crate::intervene::engine::{
    Engine, Estimate, Explanation, Journal, Kept, Machine, Outcome, Part, Place, REFERENCE, Same, Setup, Strategy,
    Variant, side_by_side, to_array,
};
use crate::intervene::metric::Metric;
use crate::model::{Bank, Edit, Model, Plan, Site, Tokens, Wire, Wires};
use crate::progress::Progress;
use crate::table::{Keys, Provenance, Table};

/// The indices of a sender and a receiver.
pub(super) type Pair = (usize, usize);

/// Paths restricted to one part of the batch.
pub(super) struct Share<'a> {
    pub paths: &'a Paths<'a>,
    pub tokens: Tokens,
    pub other: Tokens,
    metrics: Vec<Metric>,
    part: Part,
    machine: Machine,
    kept: usize,
    /// For each prompt the first position at which the two runs can differ.
    same: Vec<usize>,
}

impl Paths<'_> {
    /// Runs the paths. Column `value` is the metric of each pair, column `baseline` that of the unpatched run.
    ///
    /// # Errors
    /// If a sender or receiver does not exist, no receiver comes after a sender, the two batches differ in their
    /// prompts' lengths, or options contradict each other; [`Error::Stopped`] if it was stopped.
    pub fn run(&self) -> Result<Table> {
        let pairs = self.pairs()?;
        let provenance = self.provenance()?;
        tch::no_grad(|| match self.options.estimate {
            Some(estimate) => self.estimated(&pairs, estimate, provenance),
            None => {
                let mut journal = self.options.open_journal(&provenance)?;
                let (outcome, values) = self.values(&pairs, journal.as_mut())?;
                let rows = pairs.iter().zip(values.outer_iter());
                let rows = rows.map(|(&(s, r), values)| outcome.rows(&self.keys(s, r), &values.to_vec()));
                Table::new(rows.collect::<Result<Vec<_>>>()?.concat(), provenance)
            }
        })
    }

    /// The exact metric of each pair, `[pair, cell]`.
    fn values(&self, pairs: &[Pair], mut journal: Option<&mut Journal>) -> Result<(Outcome<'_>, Array2<f64>)> {
        let shares = self.shares(1)?;
        let mut outcome = Outcome::new(&self.options, self.denoises);
        let mut progress = Progress::new("paths", pairs.len() * shares.len());
        let mut parts = vec![];
        for share in &shares {
            let engine = share.engine()?;
            let first = outcome.cells.len();
            share.add_to(&mut outcome, &engine)?;
            if let Some(journal) = &mut journal {
                journal.at(first);
            }
            parts.push(share.values(&engine, pairs, journal.as_deref_mut(), &mut progress)?);
        }
        Ok((outcome, side_by_side(&parts)?))
    }

    /// The table of estimates, with the exact rows requested by [`Paths::exact`].
    fn estimated(&self, pairs: &[Pair], estimate: Estimate, provenance: Provenance) -> Result<Table> {
        self.check_edges(estimate)?;
        let steps = if let Estimate::IntegratedGradients { steps } = estimate { steps } else { 1 };
        let mut outcome = Outcome::new(&self.options, self.denoises);
        let mut parts = vec![];
        for share in self.shares(self.model.config().n_layers.saturating_mul(steps))? {
            let engine = Engine::new(share.setup(), &[], &[])?;
            share.add_to(&mut outcome, &engine)?;
            let effects =
                (0..self.options.metrics.len()).map(|metric| share.edge_effects(&engine, pairs, estimate, metric));
            parts.push(side_by_side(&effects.collect::<Result<Vec<_>>>()?)?);
        }
        let effects = side_by_side(&parts)?;
        let largest = outcome.largest(&effects, self.options.exact);
        let chosen: Vec<Pair> = largest.iter().map(|&number| pairs[number]).collect();
        let exact = if chosen.is_empty() { Array2::zeros((0, 0)) } else { self.values(&chosen, None)?.1 };
        let keys: Vec<Keys> = pairs.iter().map(|&(s, r)| self.keys(s, r)).collect();
        outcome.estimated(estimate, &keys, &effects, &largest, &exact, provenance)
    }

    /// How would the paths be computed? Explains the receivers' passes, one per pair; the sender's pass before them,
    /// shared by all of its receivers, is not included. Computes only the unchanged run.
    ///
    /// ```
    /// use headscope::prelude::*;
    /// let model = Model::load("fixtures/checkpoints/tiny-gpt2")?;
    /// let (clean, corrupt) = (Tokens::new(&[vec![5, 6, 7, 8]])?, Tokens::new(&[vec![5, 60, 7, 8]])?);
    /// let paths = Paths::noise(&model, &clean, &corrupt).receivers(Input::queries(&model));
    /// println!("{}", paths.explain()?);
    /// # Ok::<(), headscope::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Paths::run`].
    pub fn explain(&self) -> Result<Explanation> {
        let pairs = self.pairs()?;
        tch::no_grad(|| {
            let variants = pairs.iter().filter_map(|&(_, r)| receiving(&self.receivers[r], ""));
            let variants: Vec<Variant> = variants.collect();
            Explanation::of_parts(self.shares(1)?.iter().map(|share| share.engine()?.explain(&variants)))
        })
    }

    /// Splits the batch into parts that fit into memory if a pass holds its activations `held` times.
    fn shares(&self, held: usize) -> Result<Vec<Share<'_>>> {
        let batch = self.tokens.batch();
        let machine = Machine::of(self.model, Strategy::Auto, self.options.memory);
        let share = |part: Part, kept: usize| {
            let (tokens, other) = (part.tokens(self.tokens)?, part.tokens(self.other)?);
            let same = tokens.first_differences(&other)?;
            Ok(Share {
                paths: self,
                same,
                tokens,
                other,
                metrics: part.metrics(&self.options.metrics)?,
                part,
                machine,
                kept,
            })
        };
        let whole: Share<'_> = share(Part::whole(batch), 0)?;
        let setup = whole.setup();
        let changes = [whole.senders(), whole.receivers()].concat();
        let places = changes.iter().map(|variant| setup.place(variant)).collect::<Result<Vec<Place>>>()?;
        let kept = setup.base_bytes(&places, &self.needs()) + setup.bytes_at(&self.sent());
        let pass = places.iter().map(|place| setup.bytes(place.group)).max().unwrap_or(0).saturating_mul(held);
        let pass = pass.saturating_add(setup.bytes_at(&self.reads().0));
        let most = if self.options.needs_whole_batch() {
            batch
        } else {
            machine.memory / (kept.saturating_add(pass) / batch).max(1)
        };
        Part::at_most(most, batch).into_iter().map(|part| share(part, kept / batch * part.n)).collect()
    }

    /// The values of the unpatched run that frozen components keep.
    fn needs(&self) -> Vec<(usize, Wire)> {
        let wiring = self.model.wiring();
        let senders: Vec<Site> = self.senders.iter().flatten().map(|node| node.site()).collect();
        let mut needs = vec![];
        for layer in 0..wiring.n_layers() {
            let taken = |edited: Wires| wiring.block(layer).frozen(self.freeze.mlps, edited).taken;
            needs.extend(taken(Wires::NONE).iter().map(|wire| (layer, wire)));
            if senders.contains(&Site::Z(layer)) {
                needs.extend(taken(Wires::NONE.with(Wire::Z)).iter().map(|wire| (layer, wire)));
            }
        }
        needs
    }

    /// The sites of the senders.
    fn sent(&self) -> Vec<Site> {
        let sites: BTreeSet<Site> = self.senders.iter().flatten().map(|node| node.site()).collect();
        sites.into_iter().collect()
    }

    /// The sites of the receivers, and how many layers must be computed to reach them.
    fn reads(&self) -> (Vec<Site>, usize) {
        let inputs = || self.receivers.iter().flatten();
        let sites: BTreeSet<Site> = inputs().filter_map(|input| input.site()).collect();
        let last = sites.iter().filter_map(|site| site.layer()).max().map_or(0, |layer| layer + 1);
        let logits = inputs().any(|input| *input == Input::Logits);
        (sites.into_iter().collect(), if logits { self.model.config().n_layers } else { last })
    }
}

impl<'a> Share<'a> {
    pub(super) fn model(&self) -> &'a Model {
        self.paths.model
    }

    pub(super) fn setup(&self) -> Setup<'_> {
        Setup {
            model: self.paths.model,
            tokens: &self.tokens,
            metrics: &self.metrics,
            per_token: self.paths.options.per_token,
            strategy: Strategy::Auto,
            machine: self.machine,
            kept: self.kept,
            same: Same { before: &self.same, action: None },
            stop: self.paths.options.stop,
        }
    }

    fn engine(&self) -> Result<Engine<'_>> {
        Engine::new(self.setup(), &[self.senders(), self.receivers()].concat(), &self.paths.needs())
    }

    fn senders(&self) -> Vec<Variant> {
        self.paths.senders.iter().map(|nodes| sending(nodes)).collect()
    }

    fn receivers(&self) -> Vec<Variant> {
        self.paths.receivers.iter().filter_map(|inputs| receiving(inputs, "")).collect()
    }

    /// Adds the cells and the baseline of this part.
    fn add_to(&self, outcome: &mut Outcome<'_>, engine: &Engine<'_>) -> Result<()> {
        let other = match self.paths.options.normalised {
            true => Some(Engine::new(Setup { tokens: &self.other, ..self.setup() }, &[], &[])?.baseline),
            false => None,
        };
        outcome.add(self.part, engine.reader.cells()?, &engine.baseline, other)
    }

    /// The senders' activations in the other run.
    pub(super) fn bank(&self) -> Result<Bank> {
        let mut bank = Bank::default();
        bank.insert_run(
            REFERENCE,
            &self.model().run(&self.other, &Plan::new().taps(self.paths.sent()).plain(self.machine.plain))?,
        );
        Ok(bank)
    }

    /// The metric of each pair, `[pair, cell]`.
    fn values(
        &self,
        engine: &Engine<'_>,
        pairs: &[Pair],
        mut journal: Option<&mut Journal>,
        progress: &mut Progress,
    ) -> Result<Array2<f64>> {
        let cells = engine.baseline.len();
        let mut values = Array2::zeros((pairs.len(), cells));
        let mut left: BTreeMap<usize, Vec<usize>> = BTreeMap::new(); // pairs by sender
        for (number, &(s, _)) in pairs.iter().enumerate() {
            match journal.as_ref().and_then(|journal| journal.get(number, cells)) {
                Some(known) => values.row_mut(number).assign(&ArrayView1::from(known)),
                None => left.entry(s).or_default().push(number),
            }
        }
        progress.add(pairs.len() - left.values().map(Vec::len).sum::<usize>());
        let bank = self.bank()?;
        let (taps, layers) = self.paths.reads();
        let senders: Vec<usize> = left.keys().copied().collect();
        for block in senders.chunks(engine.senders_at_once(&taps)) {
            engine.check_stop(progress)?;
            let sending: Vec<Variant> = block.iter().map(|&s| sending(&self.paths.senders[s])).collect();
            let first = engine.first_of_frozen(!taps.is_empty());
            let (end, taps, order) = engine.frozen(&sending, &bank, &taps, self.paths.freeze, layers, first)?;
            let here: Vec<usize> = block.iter().flat_map(|s| &left[s]).copied().collect();
            let read =
                Read { block, order: &order, taps: &taps, first: first as i64, batch: self.tokens.batch() as i64 };
            let (variants, numbers, bank) = read.variants(self.paths, pairs, &here);
            let kept = journal.as_deref_mut().map(|journal| Kept { journal, numbers: &numbers });
            let found = engine.values(&variants, &bank, kept, progress)?;
            for (number, found) in numbers.iter().zip(found.outer_iter()) {
                values.row_mut(*number).assign(&found);
            }
            let to_logits: BTreeMap<usize, usize> = here
                .iter()
                .filter(|&&n| self.paths.receivers[pairs[n].1] == [Input::Logits])
                .map(|&n| (pairs[n].0, n))
                .collect();
            if to_logits.is_empty() {
                continue;
            }
            let direct = to_array(&engine.reader.read(&end)?)?;
            for (row, found) in direct.outer_iter().enumerate() {
                let Some(&number) = to_logits.get(&block[order[row]]) else { continue };
                values.row_mut(number).assign(&found);
                if let Some(journal) = &mut journal {
                    journal.push(number, found.iter().copied())?;
                }
            }
            if let Some(journal) = &mut journal {
                journal.flush()?;
            }
            progress.add(to_logits.len());
        }
        Ok(values)
    }
}

fn sending(nodes: &[Node]) -> Variant {
    Variant { keys: Keys::default(), edits: nodes.iter().map(|node| node.edit()).collect() }
}

/// The variant in which receivers take their activations from the bank's `key`. `None` for the logits.
fn receiving(inputs: &[Input], key: &str) -> Option<Variant> {
    let edits: Option<Vec<Edit>> = inputs.iter().map(|input| input.edit(key)).collect();
    Some(Variant { keys: Keys::default(), edits: edits? })
}

/// What the receivers read when a block of senders is patched.
struct Read<'a> {
    /// Indices of the senders.
    block: &'a [usize],
    /// The position in `block` of the sender of each copy of the batch in `taps`.
    order: &'a [usize],
    taps: &'a BTreeMap<Site, Tensor>,
    /// The first position in `taps`.
    first: i64,
    batch: i64,
}

impl Read<'_> {
    /// What was recorded, at all positions: those before the first are never read.
    fn from_the_start(&self, x: &Tensor) -> Tensor {
        let mut before = x.size();
        before[1] = self.first;
        Tensor::cat(&[Tensor::zeros(&before, (x.kind(), x.device())), x.shallow_clone()], 1)
    }

    /// The variants in which receivers read this, the indices of their pairs (from `here`), and the bank with what they
    /// read.
    fn variants(&self, paths: &Paths<'_>, pairs: &[Pair], here: &[usize]) -> (Vec<Variant>, Vec<usize>, Bank) {
        let (mut variants, mut numbers, mut bank) = (vec![], vec![], Bank::default());
        for (row, &place) in self.order.iter().enumerate() {
            let key = self.block[place].to_string();
            for (&site, tensor) in self.taps {
                // Rows that join the pass after a site are missing from its record: no path leads there.
                let start = row as i64 * self.batch;
                if start < tensor.size()[0] {
                    bank.insert(&key, site, self.from_the_start(&tensor.narrow(0, start, self.batch)));
                }
            }
            for &number in here.iter().filter(|&&number| pairs[number].0 == self.block[place]) {
                let (s, r) = pairs[number];
                let mut inputs = paths.receivers[r].clone();
                // A receiver before the sender keeps its unchanged input.
                inputs.retain(|input| paths.senders[s].iter().any(|node| node.reaches(*input, paths.model)));
                if let Some(variant) = receiving(&inputs, &key) {
                    variants.push(variant);
                    numbers.push(number);
                }
            }
        }
        (variants, numbers, bank)
    }
}
