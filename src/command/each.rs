//! Which parts of the model does a sweep change? One row per part, for all commands that sweep.

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use headscope::intervene::{Every, Subsets, Sweep, subsets};
use headscope::model::{Axis, Edit, ModelConfig, Site, Tokens};
use headscope::table::Keys;

#[derive(Args)]
pub struct EachArguments {
    /// The site to change in every layer: resid_pre, resid_mid, resid_post, attn_out, mlp_out, z, q, k, v, scores,
    /// pattern, mlp_post, ... [default: z, or scores for a knock-out]
    #[arg(long)]
    site: Option<String>,
    /// One row for each: layer, head, kv-head, position, query, key, edge (query,key), neuron, or a combination such as
    /// head,position [default: head if the site has heads, otherwise layer; head,edge for a knock-out]
    #[arg(long, value_enum, value_delimiter = ',')]
    each: Vec<Each>,
    /// Only rows for these layers
    #[arg(long, value_delimiter = ',', value_name = "LAYER")]
    layers: Vec<u32>,
    /// Only rows for these heads (at k and v, key/value heads)
    #[arg(long, value_delimiter = ',', value_name = "HEAD")]
    heads: Vec<u32>,
    /// Only rows for these positions (at scores and pattern, of the queries)
    #[arg(long, value_delimiter = ',', value_name = "POSITION")]
    positions: Vec<u32>,
    /// One row for each subset of these heads, changed together, instead of --each
    #[arg(long, value_delimiter = ',', value_name = "LAYER.HEAD", conflicts_with_all = ["site", "each", "layers", "heads", "positions"])]
    subsets: Vec<String>,
    /// A random sample of this many subsets, instead of all
    #[arg(long, value_name = "N", requires = "subsets")]
    drawn: Option<usize>,
    /// Seed of this sample
    #[arg(long, default_value_t = 0, requires = "drawn", value_name = "SEED")]
    drawn_seed: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Each {
    Layer,
    Head,
    KvHead,
    Position,
    Query,
    Key,
    Edge,
    Neuron,
}

impl Each {
    fn every(self) -> &'static [Every] {
        match self {
            Self::Layer => &[Every::Layer],
            Self::Head => &[Every::Head],
            Self::KvHead => &[Every::KvHead],
            Self::Position => &[Every::Position],
            Self::Query => &[Every::Query],
            Self::Key => &[Every::Key],
            Self::Edge => &[Every::Query, Every::Key],
            Self::Neuron => &[Every::Neuron],
        }
    }
}

impl EachArguments {
    /// The sweep with a variant for each requested row.
    pub fn apply<'a>(&self, sweep: Sweep<'a>, cuts: bool, config: &ModelConfig, tokens: &Tokens) -> Result<Sweep<'a>> {
        if !self.subsets.is_empty() {
            let parts = self.subsets.iter().map(|text| head(&sweep, text)).collect::<Result<Vec<Edit>>>()?;
            let drawn = |n| Subsets::Drawn { n, seed: self.drawn_seed };
            return Ok(sweep.sets(subsets(&parts, self.drawn.map_or(Subsets::All, drawn))?));
        }
        let site = self.site()?.unwrap_or(if cuts { Site::Scores(0) } else { Site::Z(0) });
        if cuts && !matches!(site, Site::Scores(_) | Site::CrossScores(_)) {
            let across = if config.encoder.is_some() { " or cross_scores" } else { "" };
            bail!("--kind knock-out: expected --site scores{across} with it, found {}", site.kind());
        }
        let every = self.every(site, cuts);
        let mut sweep = sweep.each(|layer| site.at_layer(layer), &every);
        let heads = if site.axes().contains(&Axis::KvHead) { config.n_kv_heads } else { config.n_heads };
        let positions = tokens.source().map_or(0, Tokens::positions).max(tokens.positions());
        type Column = fn(&Keys) -> Option<u32>;
        let narrowed: [(&str, &[u32], usize, Column); 3] = [
            ("--layers", &self.layers, config.n_layers, |keys| keys.layer),
            ("--heads", &self.heads, heads, |keys| keys.head.or(keys.kv_head)),
            ("--positions", &self.positions, positions, |keys| keys.position.or(keys.query)),
        ];
        for (name, asked, limit, column) in narrowed {
            if let Some(found) = asked.iter().find(|&&number| number as usize >= limit) {
                bail!("{name}: expected numbers below {limit}, found {found}");
            }
            if asked.is_empty() {
                continue;
            }
            if sweep.planned().iter().any(|variant| column(&variant.keys).is_none()) {
                bail!("{name}: expected --each with rows for them");
            }
            sweep = sweep.only(|keys| column(keys).is_some_and(|number| asked.contains(&number)));
        }
        Ok(sweep)
    }

    /// The site as given, with or without a layer: its name stands for the sites of all layers.
    pub fn site(&self) -> Result<Option<Site>> {
        let Some(site) = &self.site else { return Ok(None) };
        let named = site.parse::<Site>();
        Ok(Some(named.or_else(|reason| format!("{site}.0").parse().map_err(|_| reason))?))
    }

    fn every(&self, site: Site, cuts: bool) -> Vec<Every> {
        if !self.each.is_empty() {
            return self.each.iter().flat_map(|each| each.every()).copied().collect();
        }
        let headed = site.axes().iter().any(|axis| matches!(axis, Axis::Head | Axis::KvHead));
        match (headed, cuts) {
            (true, true) => vec![Every::Head, Every::Query, Every::Key],
            (true, false) => vec![Every::Head],
            _ => vec![Every::Layer],
        }
    }
}

/// A layer and a head, written LAYER.HEAD.
pub fn layer_head(text: &str) -> Result<(usize, usize)> {
    let numbers = text.split_once('.').and_then(|(layer, head)| Some((layer.parse().ok()?, head.parse().ok()?)));
    let Some(numbers) = numbers else { bail!("expected a head as LAYER.HEAD, found {text}") };
    Ok(numbers)
}

/// Parses a head of the form LAYER.HEAD.
fn head(sweep: &Sweep<'_>, text: &str) -> Result<Edit> {
    let (layer, head) = layer_head(text)?;
    Ok(sweep.edit(Site::Z(layer)).head(head))
}
