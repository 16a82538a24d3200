//! In which order does a model compute its values, and which does a change reach?

use super::BlockWiring;
use crate::model::arch::config::ModelConfig;
use crate::model::arch::wire::Wire;
use crate::site::Site;

/// The graphs of a model's blocks.
#[derive(Debug, Clone)]
pub(crate) struct Wiring {
    blocks: Vec<BlockWiring>,
    /// How many of them are an encoder's in front of a decoder.
    encoder: usize,
}

/// A place in the order of the forward pass: 0 for the embeddings, then one number per block, then one for what follows; and
/// the number within it. In an encoder-decoder, two more stand between the encoder's blocks and the decoder's, for the memory
/// and for the embeddings that the decoder reads.
type Point = (usize, usize);

impl Wiring {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let blocks = (0..config.n_layers).map(|layer| BlockWiring::new(config, layer)).collect();
        Self { blocks, encoder: config.encoder_layers() }
    }

    /// The number of layers of an encoder in front of a decoder.
    pub(crate) fn encoder(&self) -> usize {
        self.encoder
    }

    /// The graph of a layer's block.
    pub(crate) fn block(&self, layer: usize) -> &BlockWiring {
        &self.blocks[layer]
    }

    pub(crate) fn n_layers(&self) -> usize {
        self.blocks.len()
    }

    /// The place of a site in the forward pass.
    pub(crate) fn point(&self, site: Site) -> Point {
        let between = if self.encoder > 0 { 2 } else { 0 };
        let after = self.blocks.len() + between + 1;
        let embeddings = if self.encoder > 0 { self.memory_point() + 1 } else { 0 };
        match (site, site.layer().zip(Wire::of(site))) {
            (_, Some((layer, wire))) => {
                let block = self.blocks.get(layer);
                let within = block.and_then(|block| block.wires().position(|own| own == wire)).unwrap_or(usize::MAX);
                (layer + 1 + if layer < self.encoder { 0 } else { between }, within)
            }
            (Site::SourceEmbed, _) => (0, 0),
            (Site::SourcePosEmbed, _) => (0, 1),
            (Site::LnSourceEmbedScale, _) => (0, 3),
            (Site::LnMemoryScale, _) => (self.memory_point(), 0),
            (Site::Memory, _) => (self.memory_point(), 1),
            (Site::Embed, _) => (embeddings, 0),
            (Site::PosEmbed, _) => (embeddings, 1),
            (Site::TypeEmbed, _) => (embeddings, 2),
            (Site::LnFinalScale, _) => (after, 0),
            (Site::Logits, _) => (after, 1),
            _ => (embeddings, 3),
        }
    }

    /// The first number of the place of an encoder's memory.
    fn memory_point(&self) -> usize {
        self.encoder + 1
    }

    /// Whether a site comes after the last block.
    pub(crate) fn is_after_blocks(&self, site: Site) -> bool {
        matches!(site, Site::LnFinalScale | Site::Logits)
    }

    /// Whether a change at `site` can change what `tap` records.
    pub(crate) fn reaches(&self, site: Site, tap: Site) -> bool {
        let (from, to) = (self.point(site), self.point(tap));
        if self.encoder > 0 && from.0 <= self.memory_point() && to.0 > self.memory_point() {
            return self.remembers(tap);
        }
        let embeddings = [0, self.memory_point() + 1];
        let embeddings = if self.encoder > 0 { &embeddings[..] } else { &embeddings[..1] };
        match (site.layer().zip(Wire::of(site)), Wire::of(tap)) {
            (Some((layer, wire)), Some(tap)) if from.0 == to.0 => self.blocks[layer].reached(wire).has(tap),
            // Embeddings of tokens, positions and types do not depend on each other.
            _ if from.0 == to.0 && embeddings.contains(&from.0) => from == to || to.1 == 3,
            _ if from.0 == to.0 => from.1 <= to.1,
            // Keys and values of cross-attention are made of the memory alone.
            _ => from.0 < to.0 && !Wire::of(tap).is_some_and(Wire::is_of_source),
        }
    }

    /// Whether what a decoder holds at `tap` depends on the source.
    fn remembers(&self, tap: Site) -> bool {
        match tap.layer().zip(Wire::of(tap)) {
            Some((layer, wire)) if layer == self.encoder => self.blocks[layer].reached(Wire::Memory).has(wire),
            Some(_) => true,
            None => self.is_after_blocks(tap),
        }
    }

    /// Whether a change at `site` can change what the receiver at `input` reads.
    pub(crate) fn reaches_input(&self, site: Site, input: Site) -> bool {
        let Some((layer, wire)) = input.layer().zip(Wire::of(input)) else { return true };
        match self.blocks[layer].stream_read_by(wire).and_then(|stream| stream.site(layer)) {
            Some(stream) => self.reaches(site, stream),
            None => self.reaches(site, input) && site != input,
        }
    }

    /// Whether the last residual stream is the sum of the embeddings and the outputs of all sub-layers.
    pub(crate) fn adds_up(&self) -> bool {
        self.blocks.iter().skip(self.encoder).all(BlockWiring::adds_up)
    }
}
