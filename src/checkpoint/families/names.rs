//! How are a checkpoint's tensors found? By a table for each family, from headscope's names of parameters to its own.

use std::collections::BTreeMap;

use tch::Tensor;

use crate::checkpoint::source::Source;
use crate::error::{Error, Result};
use crate::model::{Linear, Make, ModelConfig, Norm, QkNorm, Unembed, Weights, sinusoids};

/// What a family's checkpoints call the parameters of a model, and how they store them.
///
/// Each table pairs headscope's name of a parameter with the family's, without `.weight` and `.bias`. If a parameter is listed
/// twice, the first name that the checkpoint has is used.
pub(crate) struct Names {
    /// What begins all names but those of the head, in files saved from a model with a head.
    pub prefix: &'static str,
    /// Outside blocks: `w_e`, `w_pos`, `w_type` and `w_rel` (tables), `ln_embed` and `ln_final` (norms), and `embed`, the
    /// projection of embeddings that are narrower than the residual stream. Of the encoder in front of a decoder `source.w_e`,
    /// `source.w_pos`, `source.w_rel`, `source.ln_embed` and `source.ln_final`.
    pub outside: &'static [(&'static str, &'static str)],
    /// What begins the names of a block, with `{}` for its number; a second `{}` is for its number in the group of blocks that
    /// repeat together, and the first then for that of the group.
    pub block: &'static str,
    /// In a block: `q`, `k` and `v`, or `qkv` for one tensor that has all of them; `o`; the norms `ln1`, `ln1_post`, `ln2`,
    /// `ln2_post`, `ln_cross`, `q_norm` and `k_norm` (`{}` for the number of a head, if each has its own); `sinks`; `in` and
    /// `out`, in a gated MLP `gate` (which goes through the activation), `in` and `out`, or `gate_in` for one tensor of both;
    /// `router`, and after `experts.` and `shared.` the names of their MLPs, with `{}` for the number of an expert;
    /// `shared_gate`; for cross-attention `cross.q`, `cross.k`, `cross.v` and `cross.o`. A norm without weights has an empty
    /// name.
    pub inside: &'static [(&'static str, &'static str)],
    /// In a block, names of parameters that `inside` does not list: those of the family that this one resembles, or those that
    /// the blocks of an encoder and of a decoder share.
    pub otherwise: &'static [(&'static str, &'static str)],
    /// What begins the names of a block of an encoder-decoder's decoder, whose blocks are counted from 0 again.
    pub decoder: &'static str,
    /// What is in the decoder's blocks, if names there differ from those in the encoder's.
    pub inside_decoder: &'static [(&'static str, &'static str)],
    /// In the head: `u`; `b_u`, if the bias of the logits is not `u`'s; `transform` and `ln_transform`.
    pub head: &'static [(&'static str, &'static str)],
    /// How matrices of blocks lie in their tensors; all others are `[out, in]`.
    pub matrices: Matrices,
    /// How `qkv` is put together.
    pub qkv: Qkv,
    /// How `gate_in` is put together.
    pub gate_in: GateIn,
    /// What is added to the stored weights of norms.
    pub norm_offset: f64,
    /// How many rows of `w_pos` come before that of the first position; where a token does not count, as many as its id.
    pub position_offset: usize,
    /// Tensors that may repeat the token embeddings, where encoder and decoder share them.
    pub repeats: &'static [&'static str],
    /// Tensors whose names contain one of these may be left over.
    pub superfluous: &'static [&'static str],
}

/// What begins the names of heads for other tasks, which read the residual stream and do not contribute to it.
pub(super) const OTHER_HEADS: [&str; 3] = ["score.", "classifier.", "qa_outputs."];

/// How matrices lie in their tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matrices {
    /// `[out, in]`
    OutIn,
    /// `[in, out]`
    InOut,
}

/// How queries, keys and values share a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Qkv {
    /// All queries, then all keys, then all values.
    Parts,
    /// For each key/value head its queries, its keys and its values.
    Groups,
}

/// How the two projections of a gated MLP share a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GateIn {
    /// One after the other.
    Halves,
    /// Column by column.
    Alternating,
}

impl Names {
    /// Nothing named yet.
    pub(crate) const NONE: Self = Self {
        prefix: "",
        outside: &[],
        block: "",
        inside: &[],
        otherwise: &[],
        decoder: "",
        inside_decoder: &[],
        head: &[],
        matrices: Matrices::OutIn,
        qkv: Qkv::Parts,
        gate_in: GateIn::Halves,
        norm_offset: 0.0,
        position_offset: 0,
        repeats: &[],
        superfluous: &[],
    };

    /// What the parameters of a block are called, with those of the family's own table first.
    fn in_block(&self, decoder: bool) -> impl Iterator<Item = (&'static str, &'static str)> {
        let inside = if decoder && !self.inside_decoder.is_empty() { self.inside_decoder } else { self.inside };
        let is_own = |name: &str| inside.iter().any(|(own, _)| *own == name);
        inside.iter().chain(self.otherwise.iter().filter(move |(name, _)| !is_own(name))).copied()
    }

    /// Leaves out the head that `source` does not have: it was saved from a model that ends in the residual stream.
    pub(super) fn settle(&self, config: &mut ModelConfig, source: &Source) {
        let named =
            |own: &str| self.head.iter().any(|(name, stem)| *name == own && source.has(&format!("{stem}.weight")));
        let absent = match config.unembed {
            Unembed::None => true,
            Unembed::Linear { .. } if named("u") => false,
            Unembed::Linear { .. } => {
                let other = OTHER_HEADS.iter().any(|head| source.has_prefix(head));
                other || !config.tied_unembed && !source.has_prefix(self.prefix)
            }
            // A head for another task may have a transform, too.
            Unembed::MaskedLm => !named("transform") || source.has("classifier.weight"),
        };
        // Where the bias of the logits has a name of its own, it may be left out (BART).
        if let (Unembed::Linear { bias: true }, Some((_, own))) =
            (config.unembed, self.head.iter().find(|(n, _)| *n == "b_u"))
            && config.encoder.is_some()
        {
            config.unembed = Unembed::Linear { bias: source.has(own) };
        }
        if absent {
            (config.unembed, config.tied_unembed) = (Unembed::None, false);
        }
    }

    /// Reads the weights that `config` asks for, and checks every tensor against it.
    pub(super) fn weights(&self, config: &ModelConfig, source: &Source) -> Result<Weights> {
        let prefix = if source.has_prefix(self.prefix) { self.prefix } else { "" };
        let is_there = |(name, stem): (&str, &str)| {
            let of_mlp = ["gate", "in", "gate_in"].contains(&name.rsplit('.').next().unwrap_or(name));
            of_mlp && source.has_part(&format!(".{}", stem.split("{}").next().unwrap_or(stem)))
        };
        let stripped = !self.in_block(false).any(is_there);
        let mut reader = Reader { names: self, config, source, prefix, stripped, shared: BTreeMap::new(), block: None };
        let weights = Weights::made(config, &mut reader)?;
        self.check_repeats(config, prefix, &weights, source)?;
        Ok(weights)
    }

    /// Fails if a second table of token embeddings holds others.
    fn check_repeats(&self, config: &ModelConfig, prefix: &str, weights: &Weights, source: &Source) -> Result<()> {
        let shared = config.encoder.is_none_or(|encoder| encoder.vocab.is_none());
        let names = self.repeats.iter().map(|name| format!("{prefix}{name}.weight"));
        for name in names.filter(|name| shared && source.has(name)) {
            if !source.repeats(&name, &weights.w_e)? {
                return Err(Error::Format {
                    path: source.folder().to_owned(),
                    at: format!("tensor `{name}`"),
                    expected: "the token embeddings, which encoder and decoder share".to_owned(),
                    found: "others".to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// Reads the parameters of one checkpoint.
struct Reader<'a> {
    names: &'a Names,
    config: &'a ModelConfig,
    source: &'a Source,
    prefix: &'a str,
    /// Whether no block has an MLP. The rest of such a checkpoint still answers questions about attention weights.
    stripped: bool,
    /// The tensors of the current block that hold several parameters.
    shared: BTreeMap<String, Tensor>,
    block: Option<usize>,
}

/// Where a parameter is stored.
struct Place {
    /// The name of its tensors without `.weight` and `.bias`; empty if it is not stored.
    stem: String,
    part: Part,
    /// The number of the expert, if all have one tensor.
    expert: Option<usize>,
    matrices: Matrices,
}

/// Which part of a tensor a parameter is.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Whole,
    /// The queries, keys or values.
    Qkv(usize),
    /// The first or second projection of a gated MLP.
    GateIn(usize),
}

/// What the prefix of a parameter's name says: `blocks.3.experts.5.`.
struct At<'a> {
    block: Option<usize>,
    group: &'a str,
    expert: Option<usize>,
}

impl<'a> At<'a> {
    fn new(at: &'a str) -> Self {
        if !at.starts_with("blocks.") {
            return Self { block: None, group: at.trim_end_matches('.'), expert: None };
        }
        let mut parts = at.split_terminator('.').skip(1);
        let block = parts.next().and_then(|number| number.parse().ok());
        let group = parts.next().unwrap_or_default();
        Self { block, group, expert: parts.next().and_then(|number| number.parse().ok()) }
    }
}

impl Reader<'_> {
    /// Where the parameter `name` after the prefix `at` is stored.
    fn find(&self, at: &str, name: &str) -> Result<Place> {
        let At { block, group, expert } = At::new(at);
        let key = |name: &str| if group.is_empty() { name.to_owned() } else { format!("{group}.{name}") };
        let index = |all: &[&str]| all.iter().position(|own| *own == name);
        let qkv = index(&["q", "k", "v"]).map(|i| (key("qkv"), Part::Qkv(i)));
        let gate_in = index(&["gate", "in"]).map(|i| (key("gate_in"), Part::GateIn(i)));
        let own = [Some((key(name), Part::Whole)), qkv, gate_in];
        let matrices = if block.is_some() { self.names.matrices } else { Matrices::OutIn };
        let mut found = vec![];
        for (name, before, stem) in self.listed(block) {
            for (_, part) in own.iter().flatten().filter(|(key, _)| key == name) {
                let each = expert.filter(|_| stem.contains("{}"));
                let whole = each.map_or_else(|| stem.to_owned(), |each| stem.replace("{}", &each.to_string()));
                let stem = if stem.is_empty() { String::new() } else { format!("{before}{whole}") };
                found.push(Place { stem, part: *part, expert: expert.filter(|_| each.is_none()), matrices });
            }
        }
        let there = found.iter().position(|place| self.has(place)).unwrap_or(0);
        if found.is_empty() {
            let expected = format!("a name for `{at}{name}` in the family's table");
            return Err(Error::argument("names", expected, "none"));
        }
        Ok(found.swap_remove(there))
    }

    /// The names that may hold for a parameter in this block, or outside blocks: headscope's, what comes before the family's,
    /// and the family's.
    fn listed(&self, block: Option<usize>) -> Vec<(&'static str, String, &'static str)> {
        let after = |before: String| move |(name, stem): (_, _)| (name, before.clone(), stem);
        let prefixed = after(self.prefix.to_owned() + &block.map(|block| self.block(block)).unwrap_or_default());
        match block {
            Some(block) => self.names.in_block(self.in_decoder(block).is_some()).map(prefixed).collect(),
            None => {
                let head = self.names.head.iter().copied().map(after(String::new()));
                self.names.outside.iter().copied().map(prefixed).chain(head).collect()
            }
        }
    }

    /// The number of a decoder's block that follows those of an encoder.
    fn in_decoder(&self, block: usize) -> Option<usize> {
        self.config.encoder.and_then(|encoder| block.checked_sub(encoder.n_layers))
    }

    /// What begins the names of a block.
    fn block(&self, number: usize) -> String {
        if let Some(number) = self.in_decoder(number) {
            return self.names.decoder.replacen("{}", &number.to_string(), 1);
        }
        let cycle = self.config.block_cycle;
        let (group, inner) = ((number / cycle).to_string(), (number % cycle).to_string());
        self.names.block.replacen("{}", &group, 1).replacen("{}", &inner, 1)
    }

    /// Whether a parameter is stored there.
    fn has(&self, place: &Place) -> bool {
        self.source.has(&place.stem) || self.source.has(&format!("{}.weight", place.stem))
    }

    /// A matrix, `[in, out]`.
    fn matrix(&mut self, place: &Place, rows: usize, columns: usize) -> Result<Tensor> {
        let whole = self.whole(place.part, columns);
        let name = if place.expert.is_some() { place.stem.clone() } else { format!("{}.weight", place.stem) };
        let read = |source: &Source, stack: Option<usize>| match (stack, place.matrices) {
            (Some(n), _) => source.take(&name, &[n, rows, whole]),
            (None, Matrices::InOut) => source.matrix(&name, rows, whole),
            (None, Matrices::OutIn) => Ok(source.take(&name, &[whole, rows])?.tr()),
        };
        self.part(place, &name, read)
    }

    /// A bias, `[out]`.
    fn bias(&mut self, place: &Place, columns: usize) -> Result<Tensor> {
        let whole = self.whole(place.part, columns);
        let joint = if place.expert.is_some() { "_" } else { "." };
        let name = format!("{}{joint}bias", place.stem);
        let read = |source: &Source, stack: Option<usize>| match stack {
            Some(n) => source.take(&name, &[n, whole]),
            None => source.take(&name, &[whole]),
        };
        self.part(place, &name, read)
    }

    /// The width of the tensor in which a parameter of width `columns` is stored.
    fn whole(&self, part: Part, columns: usize) -> usize {
        let ModelConfig { n_heads, n_kv_heads, d_head, .. } = *self.config;
        match part {
            Part::Whole => columns,
            Part::Qkv(_) => (n_heads + 2 * n_kv_heads) * d_head,
            Part::GateIn(_) => 2 * columns,
        }
    }

    /// A part of the tensor `name`, which is read once if it has several.
    fn part(
        &mut self,
        place: &Place,
        name: &str,
        read: impl Fn(&Source, Option<usize>) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let stack = place.expert.and(self.config.experts).map(|experts| experts.n);
        if place.part == Part::Whole && stack.is_none() {
            return read(self.source, stack);
        }
        if !self.shared.contains_key(name) {
            self.shared.insert(name.to_owned(), read(self.source, stack)?);
        }
        let whole = self.shared.get(name).map(Tensor::shallow_clone).unwrap_or_default();
        let own = place.expert.map_or_else(|| whole.shallow_clone(), |expert| whole.get(expert as i64));
        Ok(self.cut(&own, place.part))
    }

    /// A part of the last axis.
    fn cut(&self, x: &Tensor, part: Part) -> Tensor {
        let ModelConfig { n_heads, n_kv_heads, d_head, .. } = *self.config;
        let [heads, kv_heads, width] = [n_heads, n_kv_heads, d_head].map(|n| n as i64);
        match (part, self.names.qkv, self.names.gate_in) {
            (Part::Whole, ..) => x.shallow_clone(),
            (Part::Qkv(which), Qkv::Parts, _) => {
                let [first, n] = [[0, heads], [heads, kv_heads], [heads + kv_heads, kv_heads]][which];
                x.narrow(-1, first * width, n * width)
            }
            (Part::Qkv(which), Qkv::Groups, _) => {
                let group = heads / kv_heads;
                let [first, n] = [[0, group], [group, 1], [group + 1, 1]][which];
                x.unflatten(-1, [kv_heads, group + 2, width]).narrow(-2, first, n).flatten(-3, -1)
            }
            (Part::GateIn(which), _, GateIn::Halves) => {
                let half = x.size()[x.dim() - 1] / 2;
                x.narrow(-1, which as i64 * half, half)
            }
            (Part::GateIn(which), _, GateIn::Alternating) => x.unflatten(-1, [-1, 2]).select(-1, which as i64),
        }
    }

    /// The bias of the logits. It may have two names; they hold the same values if the head is tied, and otherwise that of `u`
    /// is used.
    fn bias_of_logits(&mut self, place: &Place, columns: usize) -> Result<Tensor> {
        let (decoder, names) = (format!("{}.bias", place.stem), self.names);
        let Some((_, own)) = names.head.iter().find(|(name, _)| *name == "b_u") else {
            return self.bias(place, columns);
        };
        // BART's has an axis of prompts, too.
        if self.source.shape(own) == Some(&[1, columns]) {
            return Ok(self.source.take(own, &[1, columns])?.get(0));
        }
        match (self.source.has(own), self.source.has(&decoder)) {
            (false, true) => return self.bias(place, columns),
            (_, false) => return self.source.take(own, &[columns]),
            (true, true) => {}
        }
        let own = self.source.take(own, &[columns])?;
        let found = self.source.take(&decoder, &[columns])?;
        if self.config.tied_unembed && !found.equal(&own) {
            return Err(Error::Format {
                path: self.source.folder().to_owned(),
                at: format!("tensor `{decoder}`"),
                expected: "the same values as in the bias to which it is tied".to_owned(),
                found: "others".to_owned(),
            });
        }
        Ok(found)
    }

    /// The weights of a norm as they are stored, `[width]`.
    fn norm_weight(&self, place: &Place, name: &str, width: usize) -> Result<Tensor> {
        let d_head = self.config.d_head;
        let each_head = self.config.qk_norm == QkNorm::EachHead && matches!(name, "q_norm" | "k_norm");
        if each_head && place.stem.contains("{}") {
            let own = |head: usize| format!("{}.weight", place.stem.replace("{}", &head.to_string()));
            let all = (0..width / d_head).map(|head| self.source.take(&own(head), &[d_head]));
            return Ok(Tensor::cat(&all.collect::<Result<Vec<_>>>()?, 0));
        }
        let weight = format!("{}.weight", place.stem);
        match each_head {
            true => Ok(self.source.take(&weight, &[width / d_head, d_head])?.flatten(0, 1)),
            false => self.source.take(&weight, &[width]),
        }
    }
}

impl Make for Reader<'_> {
    fn linear(&mut self, at: &str, name: &str, rows: usize, columns: usize, bias: bool) -> Result<Linear> {
        let block = At::new(at).block;
        if block != self.block {
            (self.block, self.shared) = (block, BTreeMap::new());
        }
        if !self.keeps(at, name) && name == "u" {
            return Ok(Linear { w: self.source.empty(rows).tr(), b: None });
        }
        let place = self.find(at, name)?;
        let w = self.matrix(&place, rows, columns)?;
        let b = match name {
            "u" => bias.then(|| self.bias_of_logits(&place, columns)),
            _ => bias.then(|| self.bias(&place, columns)),
        };
        Ok(Linear { w, b: b.transpose()? })
    }

    fn tied(&mut self, w_e: &Tensor, bias: bool) -> Result<Linear> {
        let place = self.find("", "u")?;
        let name = format!("{}.weight", place.stem);
        let shape: Vec<usize> = w_e.size().iter().map(|&n| n as usize).collect();
        // A file that claims tied embeddings but has a different matrix was trained untied; its matrix is used, as in
        // transformers.
        let own = self.source.has(&name) && !self.source.repeats(&name, w_e)?;
        let w = if own { self.source.take(&name, &shape)?.tr() } else { w_e.tr() };
        Ok(Linear { w, b: bias.then(|| self.bias_of_logits(&place, shape[0])).transpose()? })
    }

    fn norm(&mut self, at: &str, name: &str, width: usize, bias: bool) -> Result<Norm> {
        let place = self.find(at, name)?;
        if place.stem.is_empty() {
            return Ok(Norm { w: self.source.ones(width), b: None });
        }
        let w = self.norm_weight(&place, name, width)? + self.names.norm_offset;
        Ok(Norm { w, b: bias.then(|| self.bias(&place, width)).transpose()? })
    }

    fn table(&mut self, at: &str, name: &str, shape: &[usize], _: f64) -> Result<Tensor> {
        if !self.keeps(at, name) {
            return Ok(self.source.empty(shape[1]));
        }
        let place = self.find(at, name)?;
        let bare = self.source.has(&place.stem);
        let full = if bare { place.stem } else { format!("{}.weight", place.stem) };
        let offset = match (name, self.config.uncounted) {
            ("w_pos", Some(token)) => usize::try_from(token).unwrap_or(0),
            ("w_pos", None) => self.names.position_offset,
            _ => 0,
        };
        let mut stored = shape.to_vec();
        stored[0] += offset;
        Ok(self.source.take(&full, &stored)?.narrow(0, offset as i64, shape[0] as i64))
    }

    fn sinusoids(&mut self, at: &str, name: &str, shape: &[usize]) -> Result<Tensor> {
        let place = self.find(at, name)?;
        if self.has(&place) {
            return self.table(at, name, shape, 1.0);
        }
        let like = self.source.empty(1);
        Ok(sinusoids(shape, like.kind(), like.device()))
    }

    fn keeps(&self, at: &str, name: &str) -> bool {
        !self.stripped || self.find(at, name).is_ok_and(|place| self.has(&place))
    }
}
