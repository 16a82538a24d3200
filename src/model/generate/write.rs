//! The loop: which tokens does each step read, and which prompts does it continue?

use std::collections::BTreeMap;
use std::ops::Range;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::choose::likeliest;
use super::text::Text;
use super::{Continuation, Ending, Generated, Generation, Piece};
use crate::error::{Error, Result};
use crate::model::{Growing, Joins, KvCache, Model, Pass, Past, Plan, Program, Run};
use crate::site::{Axis, Site};
use crate::text::{Decoder, HasTokenizer, Tokenizer, Tokens};

/// A generation that has been checked.
pub(super) struct Writer<'a> {
    generation: &'a Generation<'a>,
    growing: Growing,
    /// Special tokens among the stop texts.
    stop_ids: Vec<(i64, String)>,
    /// The types of each prompt's tokens, if there are any.
    types: Option<Vec<Vec<i64>>>,
    records: Records,
}

/// A prompt that is being continued.
struct Row<'a> {
    prompt: usize,
    /// Its tokens and those written after it.
    known: Vec<i64>,
    rng: ChaCha8Rng,
    text: Text<'a>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(generation: &'a Generation<'a>) -> Result<Self> {
        generation.check()?;
        let Generation { model, tokens, .. } = *generation;
        let stops = &generation.stop;
        if !stops.is_empty() {
            let _ = model.need_tokenizer()?;
        }
        let id = |stop: &String| Some((model.tokenizer()?.special(stop)?, stop.clone()));
        let most = model.config().n_positions;
        let reach: Vec<usize> =
            tokens.lengths().into_iter().map(|n| n.saturating_add(generation.max_new - 1).min(most)).collect();
        let none = Plan::new();
        let growing = Growing::new(generation.plan.unwrap_or(&none), model, tokens, &reach, generation.span)?;
        if growing.has_edits() || growing.records() {
            model.one_sequence("generation under a plan")?;
        }
        let types = tokens.types(model.device()).map(Vec::<Vec<i64>>::try_from);
        let types = types.transpose().map_err(Error::torch("reading token types"))?;
        let stop_ids = stops.iter().filter_map(id).collect();
        Ok(Self { generation, growing, stop_ids, types, records: Records::default() })
    }

    /// Whether every prompt is read by itself, and from its start for each token.
    fn is_whole(&self) -> bool {
        self.growing.is_whole() || self.generation.model.attends_across()
    }

    fn tokenizer(&self) -> Option<&'a Tokenizer> {
        self.generation.model.tokenizer()
    }

    /// The text of a prompt.
    pub(super) fn prompt(&self, prompt: usize) -> Result<String> {
        let ids = self.generation.tokens.row(prompt);
        match self.tokenizer() {
            Some(tokenizer) => tokenizer.decode(ids),
            None => Ok(ids.iter().map(|id| format!("{id} ")).collect()),
        }
    }

    /// Writes until every prompt has ended.
    pub(super) fn write(mut self, mut each: impl FnMut(&Piece<'_>)) -> Result<Generated> {
        let rows = (0..self.generation.tokens.batch()).map(|prompt| self.row(prompt)).collect::<Result<Vec<_>>>()?;
        let mut done = BTreeMap::new();
        if self.is_whole() {
            for row in rows {
                self.rows(vec![row], &mut done, &mut each)?;
            }
        } else {
            self.rows(rows, &mut done, &mut each)?;
        }
        let tokens = self.read(&done)?;
        let taps = self.records.joined(&tokens, self.generation.model)?;
        let encoder = self.generation.model.config().encoder_layers();
        Ok(Generated { continuations: done.into_values().collect(), run: Run::new(tokens, taps).behind(encoder) })
    }

    fn row(&self, prompt: usize) -> Result<Row<'a>> {
        let known = self.generation.tokens.row(prompt).to_vec();
        let decoder = self.tokenizer().map(|tokenizer| Decoder::after(tokenizer, &known)).transpose()?;
        let rng = ChaCha8Rng::seed_from_u64(self.generation.seed.wrapping_add(prompt as u64));
        Ok(Row { prompt, known, rng, text: Text::new(decoder) })
    }

    /// Continues rows until all have ended.
    fn rows(
        &mut self,
        mut rows: Vec<Row<'a>>,
        done: &mut BTreeMap<usize, Continuation>,
        each: &mut impl FnMut(&Piece<'_>),
    ) -> Result<()> {
        let mut cache = KvCache::default();
        let mut program = None;
        while !rows.is_empty() {
            if self.is_whole() {
                cache = KvCache::default();
            }
            let first = cache.positions() as usize;
            let end = rows.iter().map(|row| row.known.len()).min().unwrap_or(first);
            let logits = tch::no_grad(|| self.step(&rows, &mut cache, first..end, &mut program))?;
            let best = likeliest(&logits)?;
            let (mut kept, mut going) = (vec![], vec![]);
            for (i, mut row) in rows.into_iter().enumerate() {
                if row.known.len() == end {
                    let id = match self.generation.temperature == 0.0 {
                        true => best[i],
                        false => self.generation.draw(&logits.get(i as i64), &mut row.rng)?,
                    };
                    if let Some(ending) = self.add(&mut row, id, end, each)? {
                        let ids = row.known.split_off(self.generation.tokens.row(row.prompt).len());
                        done.insert(row.prompt, Continuation { ids, text: row.text.finish(), ending });
                        continue;
                    }
                }
                kept.push(i as i64);
                going.push(row);
            }
            if kept.len() < best.len() {
                cache.select(&Tensor::from_slice(&kept).to_device(self.generation.model.device()));
                program = None;
            }
            rows = going;
        }
        Ok(())
    }

    /// Adds a token to a row, of which the model has read `read`; why it is the last one, if it is.
    fn add(
        &self,
        row: &mut Row<'a>,
        id: i64,
        read: usize,
        each: &mut impl FnMut(&Piece<'_>),
    ) -> Result<Option<Ending>> {
        let Generation { model, tokens, max_new, ref stop, keep_stop, .. } = *self.generation;
        row.known.push(id);
        let by_id = self.stop_ids.iter().find(|(own, _)| *own == id).map(|(_, text)| Ending::Stop(text.clone()));
        let ended = match by_id {
            Some(ending) => Some(ending),
            None if model.origin().end_tokens.contains(&id) => Some(Ending::EndToken(id)),
            None if row.known.len() - tokens.row(row.prompt).len() >= max_new => Some(Ending::MaxNew),
            None if read >= model.config().n_positions => Some(Ending::Context),
            None => None,
        };
        let stopped = row.text.push(id, ended.is_some(), stop, keep_stop)?;
        let ending = stopped.map(Ending::Stop).or(ended);
        let text = row.text.unseen(ending.is_some(), stop);
        each(&Piece { prompt: row.prompt, id, text, ending: ending.as_ref() });
        Ok(ending)
    }

    /// Reads the tokens of all rows at some positions, those before which are cached, and returns the logits after the last,
    /// `[row, vocab]`.
    fn step(
        &mut self,
        rows: &[Row<'a>],
        cache: &mut KvCache,
        positions: Range<usize>,
        program: &mut Option<Program>,
    ) -> Result<Tensor> {
        let model = self.generation.model;
        let prompts: Vec<usize> = rows.iter().map(|row| row.prompt).collect();
        let program = match program {
            Some(program) if !self.growing.has_edits() => program,
            slot => slot.insert(self.growing.program(&prompts, positions.clone())),
        };
        let flat: Vec<i64> = rows.iter().flat_map(|row| &row.known[positions.clone()]).copied().collect();
        let ids = Tensor::from_slice(&flat).view([rows.len() as i64, -1]).to_device(model.device());
        let types = self.types.as_ref().map(|types| {
            let of = |&prompt: &usize| self.types_of(&types[prompt], prompt, positions.end);
            let flat: Vec<i64> = prompts.iter().flat_map(of).collect();
            Tensor::from_slice(&flat).view([rows.len() as i64, -1]).to_device(model.device())
        });
        let pass = Pass::over(model, program, positions.len(), None, Past::Growing(cache)).with_types(types);
        let mut pass = match model.attends_across() {
            true => pass.with_source(&self.generation.tokens.select(&prompts)?),
            false => pass,
        };
        let x = pass.residual(&Joins::whole(ids), model.config().n_layers)?;
        let last = |x: &Tensor| x.narrow(1, x.size()[1] - 1, 1);
        let logits = match self.growing.touches_end() {
            true => last(&pass.logits(&x)?),
            false => pass.logits(&last(&x))?,
        };
        if self.growing.records() {
            let (taps, _) = pass.into_records();
            self.records.add(prompts, positions, taps, self.is_whole());
        }
        Ok(logits.squeeze_dim(1))
    }

    /// The types of a prompt's first tokens; written ones continue the last.
    fn types_of(&self, types: &[i64], prompt: usize, end: usize) -> Vec<i64> {
        let own = &types[..self.generation.tokens.row(prompt).len()];
        let last = own.last().copied().unwrap_or(0);
        own.iter().copied().chain(std::iter::repeat(last)).take(end).collect()
    }

    /// The tokens that the model has read.
    fn read(&self, done: &BTreeMap<usize, Continuation>) -> Result<Tokens> {
        let Generation { tokens, .. } = *self.generation;
        let written = |prompt: &usize| {
            let ids = done.get(prompt).map_or(&[][..], |continuation| &continuation.ids);
            &ids[..ids.len().saturating_sub(1)]
        };
        let prompts: Vec<usize> = (0..tokens.batch()).collect();
        let rows: Vec<Vec<i64>> = prompts.iter().map(|p| [tokens.row(*p), written(p)].concat()).collect();
        let types = self
            .types
            .as_ref()
            .map(|types| prompts.iter().map(|&p| self.types_of(&types[p], p, rows[p].len())).collect::<Vec<_>>());
        let read = Tokens::owning(rows)?.with_pad(tokens.pad());
        let read = match tokens.source() {
            Some(source) => read.with_source(source.clone())?,
            None => read,
        };
        let read = match types {
            Some(types) => read.with_types(types)?,
            None => read,
        };
        if !tokens.has_pieces() {
            return Ok(read);
        }
        let piece = |&id: &i64| self.tokenizer().map_or_else(|| id.to_string(), |tokenizer| tokenizer.piece(id));
        let pieces =
            prompts.iter().map(|p| tokens.pieces(*p).into_iter().chain(written(p).iter().map(piece)).collect());
        read.with_pieces(pieces.collect())
    }
}

/// What the steps recorded.
#[derive(Default)]
struct Records {
    parts: Vec<Part>,
}

/// What one step recorded: of which prompts, and at which positions.
struct Part {
    prompts: Vec<usize>,
    positions: Range<usize>,
    taps: BTreeMap<Site, Tensor>,
}

impl Records {
    /// Adds a step's, which with `whole` replaces what earlier ones recorded of the same prompts.
    fn add(&mut self, prompts: Vec<usize>, positions: Range<usize>, taps: BTreeMap<Site, Tensor>, whole: bool) {
        if whole {
            self.parts.retain(|part| part.prompts != prompts);
        }
        self.parts.push(Part { prompts, positions, taps });
    }

    /// Every site's activations at all `tokens`, as one run would have recorded them: zeros at padding.
    fn joined(&self, tokens: &Tokens, model: &Model) -> Result<BTreeMap<Site, Tensor>> {
        let sites = self.parts.first().map(|part| part.taps.keys().copied().collect::<Vec<_>>()).unwrap_or_default();
        let mut all = BTreeMap::new();
        for site in sites {
            let shape = site.shape(model.config(), tokens.batch(), tokens.positions());
            // Keys after a query are hidden from it.
            let rest = if matches!(site, Site::Scores(_)) { f64::NEG_INFINITY } else { 0.0 };
            let mut whole = Tensor::full(shape, rest, (model.kind(), model.device()));
            for part in &self.parts {
                let Some(taps) = part.taps.get(&site) else { continue };
                for (row, &prompt) in part.prompts.iter().enumerate() {
                    put(site, &whole.get(prompt as i64), &taps.get(row as i64), &part.positions)?;
                }
            }
            if matches!(site, Site::Scores(_)) {
                // An edit may have filled those that a step saw, which depends on how many positions it read.
                let n = tokens.positions() as i64;
                let later = Tensor::ones([n, n], (Kind::Bool, model.device())).triu(1);
                whole = whole.masked_fill(&later, rest);
            }
            all.insert(site, whole);
        }
        Ok(all)
    }
}

/// Writes what one row holds at some positions to its place among all positions.
fn put(site: Site, whole: &Tensor, own: &Tensor, positions: &Range<usize>) -> Result<()> {
    let mut place = whole.shallow_clone();
    for (i, axis) in site.axes().iter().skip(1).enumerate() {
        let range = match axis {
            Axis::Position | Axis::Query => positions.clone(),
            Axis::Key => 0..positions.end,
            _ => continue,
        };
        place = place.narrow(i as i64, range.start as i64, range.len() as i64);
    }
    place.f_copy_(own).map(drop).map_err(Error::torch(format!("joining what was recorded at `{site}`")))
}
