//! What do the encoders share? BERT's blocks under other names: a table of them gives the weights.

use tch::Tensor;

use super::{Reader, unembedding};
use crate::checkpoint::config_json::ConfigJson;
use crate::checkpoint::source::Source;
use crate::error::{Error, Result};
use crate::model::{Linear, Make, ModelConfig, Norm, NormKind, NormPlace, Position, Unembed, Weights};

/// Where a family keeps each part of an encoder.
pub(super) struct Names {
    /// The prefix of all tensors but those of the head, in a checkpoint with a head.
    pub model: &'static str,
    /// The parts outside the blocks and the head: `w_e`, `w_pos`, `w_type`, `ln_embed`, `embed`, `ln_final`.
    pub around: &'static [(&'static str, &'static str)],
    /// What the names of a block begin with.
    pub block: fn(usize, &ModelConfig) -> String,
    /// The parts of a block: `q`, `k`, `v`, `o`, `ln1`, `ln2`, `in`, `gate`, `out`.
    pub parts: &'static [(&'static str, Stored)],
    /// The masked-language-model head.
    pub head: Head,
}

/// Where a part of a block is stored.
#[derive(Clone, Copy)]
pub(super) enum Stored {
    /// In a tensor of its own.
    As(&'static str),
    /// In a tensor that several parts share, as this one of so many.
    In(&'static str, usize, usize),
}

/// The names of a masked-language-model head.
pub(super) struct Head {
    pub dense: &'static str,
    pub norm: &'static str,
    pub decoder: &'static str,
    /// The bias of the logits, if it has a name beside that of the decoder's bias.
    pub bias: Option<&'static str>,
}

/// What the configs of most encoders have in common: a bidirectional model with norms after the sums, with heads that divide
/// `d_model`, and with a masked-language-model head if the tensor `head` is there.
pub(super) fn base(json: &ConfigJson, source: &Source, keys: [&str; 3], head: &str) -> Result<ModelConfig> {
    let [d_model_key, n_heads_key, eps_key] = keys;
    let (d_model, n_heads) = (json.usize(d_model_key)?, json.usize(n_heads_key)?);
    if n_heads == 0 || !d_model.is_multiple_of(n_heads) {
        let expected = format!("a divisor of {d_model_key} = {d_model}");
        return Err(json.wrong(n_heads_key, &expected, n_heads.to_string()));
    }
    let has_head = source.has(head);
    Ok(ModelConfig {
        family: json.str("model_type")?.to_owned(),
        d_model,
        n_heads,
        n_kv_heads: n_heads,
        d_head: d_model / n_heads,
        vocab: json.usize("vocab_size")?,
        n_positions: json.opt_usize("max_position_embeddings")?.unwrap_or(512),
        causal: false,
        norm: NormKind::Layer,
        norm_eps: json.opt_f64(eps_key)?.unwrap_or(1e-12),
        norm_place: NormPlace::Post,
        embed_norm: true,
        position: Position::Learned,
        unembed: if has_head { Unembed::MaskedLm } else { Unembed::None },
        tied_unembed: has_head && json.bool_or("tie_word_embeddings", true)?,
        ..ModelConfig::default()
    })
}

/// The weights under these names.
pub(super) fn weights(config: &ModelConfig, source: &Source, names: &Names) -> Result<Weights> {
    let probe = names.around.first().map_or("", |(_, name)| name);
    let reader = Reader::new(source, names.model, &format!("{probe}.weight"));
    Weights::made(config, &mut ByName { config, reader, names })
}

/// Whether a tensor belongs to a pooler or to a head for another task: these read the residual stream and do not add to it.
pub(super) fn is_other_head(name: &str) -> bool {
    let under = name.split_once('.').map_or("", |(_, rest)| rest);
    let others = ["pooler.", "classifier.", "qa_outputs.", "embeddings.position_ids"];
    others.iter().any(|part| name.starts_with(part) || under.starts_with(part))
}

struct ByName<'a> {
    config: &'a ModelConfig,
    reader: Reader<'a>,
    names: &'a Names,
}

impl ByName<'_> {
    /// Where a part is stored; `at` is `blocks.N.` for the parts of a block.
    fn find(&self, at: &str, name: &str) -> Result<Stored> {
        let missing = || Error::argument("family", format!("a name for {at}{name}"), "none");
        match at {
            "" => self.names.around.iter().find(|(own, _)| *own == name).map(|(_, found)| Stored::As(found)),
            _ => self.names.parts.iter().find(|(own, _)| *own == name).map(|(_, found)| *found),
        }
        .ok_or_else(missing)
    }

    /// The reader of the block that `at` names, or of what is outside the blocks.
    fn under(&self, at: &str) -> Reader<'_> {
        let number = at.strip_prefix("blocks.").and_then(|rest| rest.strip_suffix('.')).and_then(|n| n.parse().ok());
        match number {
            Some(number) => self.reader.under(&(self.names.block)(number, self.config)),
            None => Reader { source: self.reader.source, prefix: self.reader.prefix.clone() },
        }
    }

    fn head(&self) -> Reader<'_> {
        Reader { source: self.reader.source, prefix: String::new() }
    }

    /// The bias of the logits. A tied head may have one bias under two names; an untied one has two, and the decoder's is used.
    fn bias(&self, vocab: usize) -> Result<Tensor> {
        let (head, decoder) = (self.head(), format!("{}.bias", self.names.head.decoder));
        let source = self.reader.source;
        let own = self.names.head.bias.filter(|name| source.has(name));
        let own = own.map(|name| Ok::<_, Error>((name, head.take(name, &[vocab])?))).transpose()?;
        match own {
            Some((_, own)) if !source.has(&decoder) => Ok(own),
            None => head.take(&decoder, &[vocab]),
            Some((name, own)) => {
                let found = head.take(&decoder, &[vocab])?;
                if self.config.tied_unembed && !found.equal(&own) {
                    return Err(Error::Format {
                        path: source.folder().to_owned(),
                        at: format!("tensor `{decoder}`"),
                        expected: format!("the same values as in `{name}`, to which it is tied"),
                        found: "others".to_owned(),
                    });
                }
                Ok(found)
            }
        }
    }
}

impl Make for ByName<'_> {
    fn linear(&mut self, at: &str, name: &str, rows: usize, columns: usize, bias: bool) -> Result<Linear> {
        match (at, name) {
            ("", "transform") => return self.head().linear(self.names.head.dense, rows, columns, bias),
            ("", "u") => {
                let Linear { w, .. } = self.head().linear(self.names.head.decoder, rows, columns, false)?;
                return Ok(Linear { w, b: bias.then(|| self.bias(columns)).transpose()? });
            }
            _ => {}
        }
        match self.find(at, name)? {
            Stored::As(own) => self.under(at).linear(own, rows, columns, bias),
            Stored::In(shared, part, parts) => {
                let all = self.under(at).linear(shared, rows, parts * columns, bias)?;
                let (first, n) = ((part * columns) as i64, columns as i64);
                Ok(Linear { w: all.w.narrow(1, first, n), b: all.b.map(|b| b.narrow(0, first, n)) })
            }
        }
    }

    fn tied(&mut self, w_e: &Tensor, bias: bool) -> Result<Linear> {
        let decoder = format!("{}.weight", self.names.head.decoder);
        let w = unembedding(self.reader.source, &decoder, w_e, true)?;
        let vocab = w_e.size()[0] as usize;
        Ok(Linear { w, b: bias.then(|| self.bias(vocab)).transpose()? })
    }

    fn norm(&mut self, at: &str, name: &str, width: usize, bias: bool) -> Result<Norm> {
        if name == "ln_transform" {
            return self.head().norm(self.names.head.norm, width, bias);
        }
        match self.find(at, name)? {
            Stored::As(own) | Stored::In(own, ..) => self.under(at).norm(own, width, bias),
        }
    }

    fn table(&mut self, at: &str, name: &str, shape: &[usize], _: f64) -> Result<Tensor> {
        let Stored::As(own) = self.find(at, name)? else { return self.reader.take(name, shape) };
        let own = format!("{own}.weight");
        match (name, self.config.uncounted) {
            // The table begins with rows for ids below the padding's, which no position has.
            ("w_pos", Some(padding)) => {
                let unused = usize::try_from(padding).unwrap_or(0);
                let all = self.reader.take(&own, &[shape[0] + unused, shape[1]])?;
                Ok(all.narrow(0, unused as i64, shape[0] as i64))
            }
            _ => self.reader.take(&own, shape),
        }
    }
}
