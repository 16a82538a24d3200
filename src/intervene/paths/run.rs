//! How do paths become a table? Part by part of the batch, and one block of senders at a time.

use std::collections::{BTreeMap, BTreeSet};

use ndarray::{Array2, ArrayView1};
use tch::Tensor;

use super::{Chain, Input, Paths, Receiver, Via};
use crate::error::Result;
use crate::intervene::engine::{
    Engine, Estimate, Explanation, Journal, Kept, Machine, Outcome, Part, Place, REFERENCE, Recording, Same, Setup,
    Strategy, Variant, aligned, side_by_side, to_array,
};
use crate::intervene::metric::{Metric, Output};
use crate::model::{Bank, Edit, Entry, Model, Plan, Site, Tokens, Wire, Wires};
use crate::progress::Progress;
use crate::table::{Keys, Provenance, Table};

/// Paths restricted to one part of the batch.
pub(super) struct Share<'a> {
    pub paths: &'a Paths<'a>,
    pub tokens: Tokens,
    pub other: Tokens,
    metrics: Vec<Metric>,
    pub part: Part,
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
    /// prompts' lengths, or options contradict each other; [`Error::Stopped`](crate::Error::Stopped) if it was stopped.
    pub fn run(&self) -> Result<Table> {
        let chains = &self.chains()?;
        let provenance = self.provenance()?;
        tch::no_grad(|| match self.options.estimate {
            Some(estimate) => self.estimated(chains, estimate, provenance),
            None => {
                let mut journal = self.options.open_journal(&provenance)?;
                let (outcome, values) = self.values(chains, journal.as_mut())?;
                let rows = chains.iter().zip(values.outer_iter());
                let rows = rows.map(|(chain, values)| outcome.rows(&self.keys(chain)?, &values.to_vec()));
                Table::new(rows.collect::<Result<Vec<_>>>()?.concat(), provenance)
            }
        })
    }

    /// The exact metrics of each path, `[path, cell]`.
    fn values(&self, chains: &[Chain], mut journal: Option<&mut Journal>) -> Result<(Outcome<'_>, Array2<f64>)> {
        let shares = self.shares(1)?;
        let mut outcome = Outcome::new(&self.options, self.pairs.denoises);
        let mut progress = Progress::new("paths", chains.len() * shares.len());
        let mut parts = vec![];
        for share in &shares {
            let engine = share.engine()?;
            let first = outcome.cells.len();
            share.add_to(&mut outcome, &engine)?;
            if let Some(journal) = &mut journal {
                journal.at(first);
            }
            parts.push(share.values(&engine, chains, journal.as_deref_mut(), &mut progress)?);
        }
        Ok((outcome, side_by_side(&parts)?))
    }

    /// The table of estimates, with the exact rows requested by [`Paths::exact`].
    fn estimated(&self, chains: &[Chain], estimate: Estimate, provenance: Provenance) -> Result<Table> {
        self.check_edges(estimate)?;
        let steps = if let Estimate::IntegratedGradients { steps } = estimate { steps } else { 1 };
        let mut outcome = Outcome::new(&self.options, self.pairs.denoises);
        let mut parts = vec![];
        for share in self.shares(self.model.config().n_layers.saturating_mul(steps))? {
            let engine = Engine::new(share.setup(), &[], &[])?;
            share.add_to(&mut outcome, &engine)?;
            let effects =
                (0..self.options.metrics.len()).map(|metric| share.edge_effects(&engine, chains, estimate, metric));
            parts.push(side_by_side(&effects.collect::<Result<Vec<_>>>()?)?);
        }
        let effects = side_by_side(&parts)?;
        let largest = outcome.largest(&effects, self.options.exact);
        let chosen: Vec<Chain> = largest.iter().map(|&number| chains[number].clone()).collect();
        let exact = if chosen.is_empty() { Array2::zeros((0, 0)) } else { self.values(&chosen, None)?.1 };
        let keys = chains.iter().map(|chain| self.keys(chain)).collect::<Result<Vec<Keys>>>()?;
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
        let chains = self.chains()?;
        tch::no_grad(|| {
            let explain = |share: &Share<'_>| {
                let variants = chains.iter().map(|chain| share.receiving(&self.receivers[chain.receiver], ""));
                let variants: Vec<Variant> = variants.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
                share.engine()?.explain(&variants)
            };
            Explanation::of_parts(self.shares(1)?.iter().map(explain))
        })
    }

    /// Splits the batch into parts that fit into memory if a pass holds its activations `held` times.
    fn shares(&self, held: usize) -> Result<Vec<Share<'_>>> {
        let batch = self.tokens.batch();
        let machine = Machine::of(self.model, Strategy::Auto, self.options.memory);
        let firsts = self.pairs.first_differences()?;
        let share = |part: Part, kept: usize| {
            let (tokens, other) = (part.tokens(self.tokens)?, part.tokens(self.other)?);
            let prompts = part.prompts().into_iter();
            let same = prompts.filter_map(|prompt| firsts.get(prompt).copied()).collect();
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
        let changes = whole.changes()?;
        let changed = changes.iter().filter(|variant| !setup.changes_nothing(variant));
        let places = changed.map(|variant| setup.place(variant)).collect::<Result<Vec<Place>>>()?;
        let kept = setup.base_bytes(&places, &self.needs()) + setup.bytes_at(&self.sent());
        let pass = places.iter().map(|place| setup.bytes(place.group)).max().unwrap_or(0).saturating_mul(held);
        let most = (0..=self.through.len()).map(|stage| setup.bytes_at(&self.reads(stage).0)).max().unwrap_or(0);
        let pass = pass.saturating_add(most);
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
        let vias = self.through.iter().flatten();
        let senders: Vec<Site> = self.sent().into_iter().chain(vias.clone().map(|via| via.node().site())).collect();
        let mut needs: Vec<(usize, Wire)> =
            vias.flat_map(|via| Entry::of_edited(&via.sites(), wiring).needs(wiring)).collect();
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
        let sites: BTreeSet<Site> = self.senders.iter().flatten().map(|sender| sender.node.site()).collect();
        sites.into_iter().collect()
    }

    /// The sites at which the receivers of a stage read, the last receivers after all stages, and how many layers must
    /// be computed to reach them.
    fn reads(&self, stage: usize) -> (Vec<Site>, usize) {
        let inputs: Vec<Input> = match self.through.get(stage) {
            Some(vias) => vias.iter().flat_map(|via| via.inputs(self.model)).collect(),
            None => self.receivers.iter().flatten().map(|receiver| receiver.input).collect(),
        };
        let sites: BTreeSet<Site> = inputs.iter().filter_map(|input| input.site()).collect();
        let last = sites.iter().filter_map(|site| site.layer()).max().map_or(0, |layer| layer + 1);
        let logits = inputs.contains(&Input::Logits);
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
        Engine::new(self.setup(), &self.changes()?, &self.paths.needs())
    }

    /// All that changes at once: senders, heads that send on, and receivers.
    fn changes(&self) -> Result<Vec<Variant>> {
        let vias = self.paths.through.iter().flatten().map(|via| self.variant(vec![via.node().edit("")]));
        Ok([self.senders()?, vias.collect(), self.receivers()?].concat())
    }

    /// A variant with these edits, as far as they are of this part's prompts.
    fn variant(&self, edits: Vec<Edit>) -> Variant {
        let variant = Variant { keys: Keys::default(), edits };
        self.part.variants(std::slice::from_ref(&variant)).pop().unwrap_or(variant)
    }

    fn senders(&self) -> Result<Vec<Variant>> {
        self.paths.senders.iter().map(|senders| Ok(self.variant(self.paths.sending(senders)?))).collect()
    }

    fn receivers(&self) -> Result<Vec<Variant>> {
        let all = self.paths.receivers.iter().map(|receivers| self.receiving(receivers, ""));
        Ok(all.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn receiving<'r>(&self, receivers: impl IntoIterator<Item = &'r Receiver>, key: &str) -> Result<Option<Variant>> {
        Ok(self.paths.receiving(receivers, key)?.map(|edits| self.variant(edits)))
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
        let (model, plan) = (self.model(), || Plan::new().taps(self.paths.sent()).plain(self.machine.plain));
        let run = model.run(&self.other, &plan())?;
        let mut bank = Bank::default();
        match self.paths.pairs.alignment()? {
            Some(alignment) => {
                let own = model.run(&self.tokens, &plan())?;
                for (site, x) in aligned(&own, &run, &alignment, self.part)? {
                    bank.insert(REFERENCE, site, x);
                }
            }
            None => bank.insert_run(REFERENCE, &run),
        }
        Ok(bank)
    }

    /// The metrics of each path, `[path, cell]`.
    fn values(
        &self,
        engine: &Engine<'_>,
        chains: &[Chain],
        journal: Option<&mut Journal>,
        progress: &mut Progress,
    ) -> Result<Array2<f64>> {
        let cells = engine.baseline.len();
        let mut values = Array2::zeros((chains.len(), cells));
        let mut left: BTreeMap<Vec<usize>, Vec<usize>> = BTreeMap::new();
        let senders = self.senders()?;
        for (number, chain) in chains.iter().enumerate() {
            let known = journal.as_ref().and_then(|journal| journal.get(number, cells));
            let same = self.setup().changes_nothing(&senders[chain.steps[0]]);
            match known.or(same.then_some(engine.baseline.as_slice())) {
                Some(known) => values.row_mut(number).assign(&ArrayView1::from(known)),
                None => left.entry(chain.steps.clone()).or_default().push(number),
            }
        }
        progress.add(chains.len() - left.values().map(Vec::len).sum::<usize>());
        let begin: BTreeSet<usize> = left.keys().map(|steps| steps[0]).collect();
        let begin = begin.into_iter().map(|sender| Carrier { steps: vec![sender], change: senders[sender].clone() });
        let begin: Vec<Carrier> = begin.collect();
        let mut walk = Walk { share: self, engine, chains, left, values, journal, progress };
        walk.send(&begin, &self.bank()?)?;
        Ok(walk.values)
    }
}

/// The beginning of paths, and the change of what its last component writes.
struct Carrier {
    /// The sender, and a head of each stage up to here.
    steps: Vec<usize>,
    change: Variant,
}

/// Follows paths from their senders on, stage by stage.
struct Walk<'w, 'a> {
    share: &'w Share<'a>,
    engine: &'w Engine<'w>,
    chains: &'w [Chain],
    /// The numbers of the chains to compute, by their steps.
    left: BTreeMap<Vec<usize>, Vec<usize>>,
    /// The metrics of each path, `[path, cell]`.
    values: Array2<f64>,
    journal: Option<&'w mut Journal>,
    progress: &'w mut Progress,
}

impl Walk<'_, '_> {
    /// Sends the changes of `carriers`, all of which are as far, to the receivers of the next stage.
    fn send(&mut self, carriers: &[Carrier], bank: &Bank) -> Result<()> {
        let (engine, paths) = (self.engine, self.share.paths);
        let Some(stage) = carriers.first().map(|carrier| carrier.steps.len() - 1) else { return Ok(()) };
        let (sites, layers) = paths.reads(stage);
        for block in carriers.chunks(engine.senders_at_once(&sites)) {
            engine.check_stop(self.progress)?;
            let sending: Vec<Variant> = block.iter().map(|carrier| carrier.change.clone()).collect();
            let first = engine.first_of_frozen(!sites.is_empty());
            let frozen = Recording { taps: &sites, layers, first, freeze: Some(paths.freeze) };
            let (end, taps, order) = engine.recorded(&sending, bank, &frozen)?;
            let read =
                Read { order: &order, taps: &taps, first: first as i64, batch: self.share.tokens.batch() as i64 };
            match paths.through.get(stage) {
                Some(vias) => self.send_through(block, vias, &read)?,
                None => {
                    self.receive(block, &read)?;
                    self.receive_logits(block, &end, &order)?;
                }
            }
        }
        Ok(())
    }

    /// Sends on what heads write when they read this.
    fn send_through(&mut self, block: &[Carrier], vias: &[Via], read: &Read<'_>) -> Result<()> {
        let (share, engine, paths) = (self.share, self.engine, self.share.paths);
        let bank = read.bank();
        let (mut next, mut variants): (Vec<Carrier>, Vec<Variant>) = (vec![], vec![]);
        for (row, carrier) in block.iter().enumerate() {
            let ends = paths.ends(&carrier.steps);
            for (number, via) in vias.iter().enumerate() {
                let steps = [carrier.steps.as_slice(), &[number]].concat();
                let next_left = self.left.range(steps.clone()..).next();
                if !next_left.is_some_and(|(left, _)| left.starts_with(&steps)) {
                    continue;
                }
                let reached = via.inputs(paths.model).into_iter();
                let reached = reached.filter(|input| ends.iter().any(|node| node.reaches(*input, paths.model)));
                let reached: Vec<Receiver> = reached.map(Receiver::from).collect();
                variants.extend(share.receiving(&reached, &row.to_string())?);
                next.push(Carrier { steps, change: share.variant(vec![via.node().edit(&next.len().to_string())]) });
            }
        }
        let sites: BTreeSet<Site> = vias.iter().map(|via| via.node().site()).collect();
        let sites: Vec<Site> = sites.into_iter().collect();
        let layers = vias.iter().map(|via| via.layer + 1).max().unwrap_or(0);
        let at_once = engine.senders_at_once(&sites);
        for (chunk, variants) in variants.chunks(at_once).enumerate() {
            let chunk = chunk * at_once..chunk * at_once + variants.len();
            let recording = Recording { taps: &sites, layers, first: read.first as usize, freeze: None };
            let (_, taps, order) = engine.recorded(variants, &bank, &recording)?;
            let written = Read { order: &order, taps: &taps, ..*read };
            let mut sent = Bank::default();
            written.insert_into(&mut sent, chunk.start);
            self.send(&next[chunk], &sent)?;
        }
        Ok(())
    }

    /// Computes the metrics where receivers read this.
    fn receive(&mut self, block: &[Carrier], read: &Read<'_>) -> Result<()> {
        let paths = self.share.paths;
        let (mut variants, mut numbers) = (vec![], vec![]);
        for (row, carrier) in block.iter().enumerate() {
            let ends = paths.ends(&carrier.steps);
            for &number in self.left.get(&carrier.steps).into_iter().flatten() {
                // A receiver before the sender keeps its unchanged input.
                let all = paths.receivers[self.chains[number].receiver].iter();
                let reached = all.filter(|one| ends.iter().any(|node| node.reaches(one.input, paths.model)));
                if let Some(variant) = self.share.receiving(reached, &row.to_string())? {
                    variants.push(variant);
                    numbers.push(number);
                }
            }
        }
        let kept = self.journal.as_deref_mut().map(|journal| Kept { journal, numbers: &numbers });
        let found = self.engine.values(&variants, &read.bank(), kept, self.progress)?;
        for (number, found) in numbers.iter().zip(found.outer_iter()) {
            self.values.row_mut(*number).assign(&found);
        }
        Ok(())
    }

    /// Reads the metrics of paths that end at the logits from the end of the frozen pass.
    fn receive_logits(&mut self, block: &[Carrier], end: &Output, order: &[usize]) -> Result<()> {
        let receivers = &self.share.paths.receivers;
        let is_logits =
            |number: usize| receivers[self.chains[number].receiver].iter().all(|one| one.input == Input::Logits);
        let mut ends: Vec<(usize, usize)> = vec![];
        for (row, &carrier) in order.iter().enumerate() {
            let here = self.left.get(&block[carrier].steps).into_iter().flatten();
            ends.extend(here.filter(|&&number| is_logits(number)).map(|&number| (row, number)));
        }
        if ends.is_empty() {
            return Ok(());
        }
        let found = to_array(&self.engine.reader.read(end)?)?;
        for (row, number) in ends {
            self.values.row_mut(number).assign(&found.row(row));
            if let Some(journal) = &mut self.journal {
                journal.push(number, found.row(row).iter().copied())?;
            }
            self.progress.add(1);
        }
        self.journal.as_mut().map_or(Ok(()), |journal| journal.flush())
    }
}

/// What was recorded when a block of changes was sent.
#[derive(Clone, Copy)]
struct Read<'a> {
    /// The number in the block of each copy of the batch in `taps`.
    order: &'a [usize],
    taps: &'a BTreeMap<Site, Tensor>,
    /// The first position in `taps`.
    first: i64,
    batch: i64,
}

impl Read<'_> {
    /// What was recorded for each change, by its number in the block.
    fn bank(&self) -> Bank {
        let mut bank = Bank::default();
        self.insert_into(&mut bank, 0);
        bank
    }

    /// Inserts what was recorded for each change, by its number in the block counted from `start`.
    fn insert_into(&self, bank: &mut Bank, start: usize) {
        for (row, &number) in self.order.iter().enumerate() {
            for (&site, tensor) in self.taps {
                // Rows that join the pass after a site are missing from its record: no path leads there.
                let there = row as i64 * self.batch;
                if there < tensor.size()[0] {
                    let x = self.at_all_positions(tensor.narrow(0, there, self.batch));
                    bank.insert(&(start + number).to_string(), site, x);
                }
            }
        }
    }

    /// What was recorded, at all positions: those before the first are never read.
    fn at_all_positions(&self, x: Tensor) -> Tensor {
        if self.first == 0 {
            return x;
        }
        let mut before = x.size();
        before[1] = self.first;
        Tensor::cat(&[Tensor::zeros(&before, (x.kind(), x.device())), x], 1)
    }
}
