//! A forward pass written out step by step, head by head, for the tests to compare with: no batching tricks, no fast paths,
//! nothing of the library but the names of parameters and sites.
#![allow(clippy::assign_op_pattern)] // the operators that assign work in place

use std::collections::{BTreeMap, HashMap};

use headscope::model::{
    Activation, EmbedProjection, Model, ModelConfig, NormKind, NormPlace, Parallel, Position, QkNorm, Rotary,
    RotaryScaling, Site, Tokens, Unembed,
};
use tch::{Kind, Tensor};

/// What every site of `model` holds for `tokens`, all of one length.
pub fn forward(model: &Model, tokens: &Tokens) -> BTreeMap<Site, Tensor> {
    let w: HashMap<String, Tensor> =
        model.parameters().into_iter().map(|(name, t)| (name, t.shallow_clone())).collect();
    let mut pass = Reference { config: model.config(), w, taps: BTreeMap::new() };
    pass.run(tokens);
    pass.taps
}

struct Reference<'a> {
    config: &'a ModelConfig,
    w: HashMap<String, Tensor>,
    taps: BTreeMap<Site, Tensor>,
}

impl Reference<'_> {
    fn run(&mut self, tokens: &Tokens) {
        let config = self.config;
        let memory = tokens.source().map(|source| self.encoded(source));
        let rows: Vec<i64> = tokens.rows().concat();
        let (batch, positions) = (tokens.batch() as i64, tokens.positions() as i64);
        let ids = Tensor::from_slice(&rows).view([batch, positions]);
        let mut x = self.w["w_e"].index_select(0, &ids.flatten(0, 1)).view([batch, positions, -1]) * config.embed_scale;
        if matches!(config.embed_projection, EmbedProjection::Tokens(_)) {
            x = self.linear("", "embed", &x);
        }
        self.keep(Site::Embed, &x);
        if config.n_token_types > 0 {
            let types = self.w["w_type"].get(0).expand_as(&x);
            self.keep(Site::TypeEmbed, &types);
            x = &x + types;
        }
        if matches!(config.position, Position::Learned | Position::Sinusoidal) {
            let own = match config.uncounted {
                None => self.w["w_pos"].narrow(0, 0, positions).unsqueeze(0).expand_as(&x),
                Some(token) => self.counted(tokens, token).view_as(&x),
            };
            self.keep(Site::PosEmbed, &own);
            x = x + own;
        }
        if config.embed_norm {
            x = self.norm("ln_embed", Some(Site::LnEmbedScale), &x);
        }
        if matches!(config.embed_projection, EmbedProjection::Sum(_)) {
            x = self.linear("", "embed", &x);
        }
        for layer in config.encoder_layers()..config.n_layers {
            x = self.block(layer, x, memory.as_ref());
        }
        if config.norm_place != NormPlace::Post {
            x = self.norm("ln_final", Some(Site::LnFinalScale), &x);
        }
        self.logits(x);
    }

    /// What an encoder makes of the source.
    fn encoded(&mut self, source: &Tokens) -> Tensor {
        let config = self.config;
        let (batch, positions) = (source.batch() as i64, source.positions() as i64);
        let ids = Tensor::from_slice(&source.rows().concat());
        let w_e = self.w.get("source.w_e").unwrap_or(&self.w["w_e"]);
        let mut x = w_e.index_select(0, &ids).view([batch, positions, -1]) * config.embed_scale;
        self.keep(Site::SourceEmbed, &x);
        if let Some(w_pos) = self.w.get("source.w_pos") {
            let own = w_pos.narrow(0, 0, positions).unsqueeze(0).expand_as(&x);
            self.keep(Site::SourcePosEmbed, &own);
            x = x + own;
        }
        if config.embed_norm {
            x = self.norm("source.ln_embed", Some(Site::LnSourceEmbedScale), &x);
        }
        for layer in 0..config.encoder_layers() {
            x = self.block(layer, x, None);
        }
        if config.norm_place != NormPlace::Post {
            x = self.norm("source.ln_final", Some(Site::LnMemoryScale), &x);
        }
        self.keep(Site::Memory, &x);
        x
    }

    /// Cross-attention, and the residual stream after it.
    fn across(&mut self, layer: usize, at: &str, x: Tensor, memory: &Tensor) -> Tensor {
        let config = self.config;
        let (heads, kv_heads) = (config.n_heads as i64, config.n_kv_heads as i64);
        let (norm, scale, own) = (format!("{at}ln_cross"), Some(Site::LnCrossScale(layer)), format!("{at}cross."));
        let pre = config.norm_place == NormPlace::Pre;
        let read = if pre { self.norm(&norm, scale, &x) } else { x.shallow_clone() };
        let q = self.linear(&own, "q", &read).unflatten(-1, [heads, -1]);
        let [k, v] = ["k", "v"].map(|name| self.linear(&own, name, memory).unflatten(-1, [kv_heads, -1]));
        self.keep(Site::CrossQ(layer), &q);
        self.keep(Site::CrossK(layer), &k);
        self.keep(Site::CrossV(layer), &v);
        let factor = config.attention_scale.unwrap_or((config.d_head as f64).powf(-0.5));
        let w_o = self.w[&format!("{own}w_o")].unflatten(0, [heads, -1]);
        let (mut scores_of, mut patterns, mut zs, mut results) = (vec![], vec![], vec![], vec![]);
        for head in 0..heads {
            let kv = head / (heads / kv_heads);
            let scores = q.select(2, head).matmul(&k.select(2, kv).transpose(1, 2)) * factor;
            let pattern = scores.softmax(-1, Kind::Double);
            let z = pattern.matmul(&v.select(2, kv));
            results.push(z.matmul(&w_o.get(head)));
            scores_of.push(scores);
            patterns.push(pattern);
            zs.push(z);
        }
        self.keep(Site::CrossScores(layer), &Tensor::stack(&scores_of, 1));
        self.keep(Site::CrossPattern(layer), &Tensor::stack(&patterns, 1));
        self.keep(Site::CrossZ(layer), &Tensor::stack(&zs, 2));
        self.keep(Site::CrossResult(layer), &Tensor::stack(&results, 2));
        let sum = results.into_iter().reduce(|a, b| a + b).unwrap();
        let out = self.w.get(&format!("{own}b_o")).map_or_else(|| sum.shallow_clone(), |b| &sum + b);
        self.keep(Site::CrossOut(layer), &out);
        let mut after = x + out * config.residual_scale;
        if config.norm_place == NormPlace::Post {
            after = self.norm(&norm, scale, &after);
        }
        self.keep(Site::ResidCross(layer), &after);
        after
    }

    fn logits(&mut self, mut x: Tensor) {
        let config = self.config;
        if config.unembed == Unembed::None {
            return;
        }
        if self.w.contains_key("w_transform") {
            x = self.linear("", "transform", &x);
        }
        if config.unembed == Unembed::MaskedLm {
            x = activate(&x, config.lm_head.activation.unwrap_or(config.activation));
            x = self.layer_norm("ln_transform", &x);
        }
        let mut logits = self.linear("", "u", &x) * config.logit_scale;
        if let Some(cap) = config.logit_cap {
            logits = (logits / cap).tanh() * cap;
        }
        self.keep(Site::Logits, &logits);
    }

    fn block(&mut self, layer: usize, x: Tensor, memory: Option<&Tensor>) -> Tensor {
        let config = self.config;
        let (cycle, own) = (config.block_cycle, config.blocks());
        let turn = layer / cycle * (own / cycle) / (config.n_layers / cycle);
        let at = format!("blocks.{}.", turn * cycle + layer % cycle);
        let scale = config.residual_scale;
        let (before, on_output) = match config.norm_place {
            NormPlace::Pre => (true, false),
            NormPlace::Post => (false, false),
            NormPlace::Sandwich => (true, true),
            NormPlace::Output => (false, true),
        };
        let after = config.norm_place == NormPlace::Post;
        self.keep(Site::ResidPre(layer), &x);
        let through_norm = before && !config.layer(layer).no_attn_norm;
        let read = if through_norm {
            self.norm(&format!("{at}ln1"), Some(Site::Ln1Scale(layer)), &x)
        } else {
            x.shallow_clone()
        };
        let mut attn = self.attention(layer, &at, &read);
        if on_output {
            attn = self.norm(&format!("{at}ln1_post"), Some(Site::Ln1PostScale(layer)), &attn);
        }
        self.keep(Site::AttnOut(layer), &attn);
        let mut mid = &x + &attn * scale;
        if after {
            mid = self.norm(&format!("{at}ln1"), Some(Site::Ln1Scale(layer)), &mid);
        }
        let serial = config.parallel == Parallel::No;
        if serial {
            self.keep(Site::ResidMid(layer), &mid);
        }
        if let Some(memory) = memory {
            mid = self.across(layer, &at, mid, memory);
        }
        if config.d_mlp == 0 {
            self.keep(Site::ResidPost(layer), &mid);
            return mid;
        }
        let source = if serial { &mid } else { &x };
        let mlp_in = match config.parallel {
            Parallel::OneNorm => read,
            _ if before => self.norm(&format!("{at}ln2"), Some(Site::Ln2Scale(layer)), source),
            _ => source.shallow_clone(),
        };
        let mut mlp = self.mlp(layer, &at, &mlp_in);
        if on_output {
            mlp = self.norm(&format!("{at}ln2_post"), Some(Site::Ln2PostScale(layer)), &mlp);
        }
        self.keep(Site::MlpOut(layer), &mlp);
        let mut out = mid + mlp * scale;
        if after {
            out = self.norm(&format!("{at}ln2"), Some(Site::Ln2Scale(layer)), &out);
        }
        self.keep(Site::ResidPost(layer), &out);
        out
    }

    /// What the heads of a layer write together, one head and one query after another.
    fn attention(&mut self, layer: usize, at: &str, x: &Tensor) -> Tensor {
        let config = self.config;
        let (heads, kv_heads, d_head) = (config.n_heads, config.n_kv_heads, config.d_head as i64);
        let split = |t: Tensor, n: usize| {
            let t = t.unflatten(-1, [n as i64, d_head]);
            config.clip_qkv.map_or_else(|| t.shallow_clone(), |most| t.clamp(-most, most))
        };
        let with_positions = match config.position {
            Position::Shortformer => x + self.w["w_pos"].narrow(0, 0, x.size()[1]),
            _ => x.shallow_clone(),
        };
        let q = split(self.linear(at, "q", &with_positions), heads);
        let k = split(self.linear(at, "k", &with_positions), kv_heads);
        let v = split(self.linear(at, "v", x), kv_heads);
        self.keep(Site::Q(layer), &q);
        self.keep(Site::K(layer), &k);
        self.keep(Site::V(layer), &v);
        let (q, k) = (self.qk_norm(at, "q_norm", q), self.qk_norm(at, "k_norm", k));
        let (q, k) = match config.rotary(layer) {
            Some(rotary) => (rotate(&q, &rotary), rotate(&k, &rotary)),
            None => (q, k),
        };
        let positions = x.size()[1];
        let mut factor = config.attention_scale.unwrap_or((config.d_head as f64).powf(-0.5));
        if config.scale_by_layer {
            factor /= (layer + 1) as f64;
        }
        let w_o = self.w[&format!("{at}w_o")].view([heads as i64, d_head, -1]);
        let (mut scores_of, mut patterns, mut zs, mut results) = (vec![], vec![], vec![], vec![]);
        for head in 0..heads {
            let kv = (head / (heads / kv_heads)) as i64;
            let (q, k, v) = (q.select(2, head as i64), k.select(2, kv), v.select(2, kv)); // [batch, position, d_head]
            let mut scores = q.matmul(&k.transpose(1, 2)) * factor;
            scores = scores + self.bias(layer, head, positions);
            if let Some(cap) = config.score_cap {
                scores = (scores / cap).tanh() * cap;
            }
            let scores = scores.masked_fill(&self.hidden(layer, positions), f64::NEG_INFINITY);
            let largest = scores.amax([-1i64].as_slice(), true);
            let weights = (&scores - &largest).exp();
            let mut sum = weights.sum_dim_intlist([-1i64].as_slice(), true, None::<Kind>);
            if config.sinks {
                sum = sum + (self.w[&format!("{at}sinks")].get(head as i64) - largest).exp();
            }
            let pattern = weights / sum;
            let z = pattern.matmul(&v);
            results.push(z.matmul(&w_o.get(head as i64)));
            scores_of.push(scores);
            patterns.push(pattern);
            zs.push(z);
        }
        self.keep(Site::Scores(layer), &Tensor::stack(&scores_of, 1));
        self.keep(Site::Pattern(layer), &Tensor::stack(&patterns, 1));
        self.keep(Site::Z(layer), &Tensor::stack(&zs, 2));
        self.keep(Site::Result(layer), &Tensor::stack(&results, 2));
        let sum = results.into_iter().reduce(|a, b| a + b).unwrap();
        match self.w.get(&format!("{at}b_o")) {
            Some(b) => sum + b,
            None => sum,
        }
    }

    fn mlp(&mut self, layer: usize, at: &str, x: &Tensor) -> Tensor {
        let config = self.config;
        let Some(experts) = config.experts.filter(|_| config.layer(layer).d_mlp.is_none()) else {
            let (pre, post) = self.hidden_layer(at, x);
            self.keep(Site::MlpPre(layer), &pre);
            self.keep(Site::MlpPost(layer), &post);
            return self.linear(at, "out", &post);
        };
        let all = self.linear(at, "router", x).softmax(-1, Kind::Double);
        let smallest = all.topk(experts.top_k as i64, -1, true, true).0.narrow(-1, experts.top_k as i64 - 1, 1);
        let mut weights = all.masked_fill(&all.lt_tensor(&smallest), 0.0);
        if experts.normalised {
            weights = &weights / weights.sum_dim_intlist([-1i64].as_slice(), true, None::<Kind>);
        }
        self.keep(Site::Router(layer), &weights);
        let mut sum = x.zeros_like();
        for number in 0..experts.n {
            let own = format!("{at}experts.{number}.");
            let (_, post) = self.hidden_layer(&own, x);
            sum = sum + self.linear(&own, "out", &post) * weights.narrow(-1, number as i64, 1);
        }
        if let Some(shared) = experts.shared {
            let own = format!("{at}shared.");
            let mut out = self.linear(&own, "out", &self.hidden_layer(&own, x).1);
            if shared.gated {
                out = out * (self.linear(at, "shared_gate", x).neg().exp() + 1.0).reciprocal();
            }
            sum = sum + out;
        }
        sum
    }

    /// The argument of an MLP's activation, and what its output projection reads.
    fn hidden_layer(&self, at: &str, x: &Tensor) -> (Tensor, Tensor) {
        let config = self.config;
        let pre = self.linear(at, if config.gated_mlp { "gate" } else { "in" }, x);
        let mut post = match config.gate_limit {
            Some(limit) => {
                let up = self.linear(at, "in", x).clamp(-limit, limit) + 1.0;
                activate(&pre.clamp_max(limit), config.activation) * up
            }
            None if config.gated_mlp => activate(&pre, config.activation) * self.linear(at, "in", x),
            None => activate(&pre, config.activation),
        };
        if config.mlp_norm {
            post = self.layer_norm(&format!("{at}ln_mlp"), &post);
        }
        (pre, post)
    }

    fn keep(&mut self, site: Site, x: &Tensor) {
        self.taps.insert(site, x.copy());
    }

    fn linear(&self, at: &str, name: &str, x: &Tensor) -> Tensor {
        let y = x.matmul(&self.w[&format!("{at}w_{name}")]);
        match self.w.get(&format!("{at}b_{name}")) {
            Some(b) => y + b,
            None => y,
        }
    }

    fn norm(&mut self, name: &str, site: Option<Site>, x: &Tensor) -> Tensor {
        if self.config.norm == NormKind::None {
            return x.shallow_clone();
        }
        let (mean, scale) = moments(self.config.norm, x, self.config.norm_eps);
        if let Some(site) = site {
            self.keep(site, &scale);
        }
        let y = (x - mean) / scale * &self.w[&format!("{name}.w")];
        match self.w.get(&format!("{name}.b")) {
            Some(b) => y + b,
            None => y,
        }
    }

    /// A LayerNorm, whatever the model's own norms are.
    fn layer_norm(&self, name: &str, x: &Tensor) -> Tensor {
        let (mean, scale) = moments(NormKind::Layer, x, self.config.norm_eps);
        let y = (x - mean) / scale * &self.w[&format!("{name}.w")];
        self.w.get(&format!("{name}.b")).map_or_else(|| y.shallow_clone(), |b| &y + b)
    }

    /// The position of each token, one after another, where one token does not count.
    fn counted(&self, tokens: &Tokens, uncounted: i64) -> Tensor {
        let mut all = vec![];
        for row in tokens.rows() {
            let mut before = 0;
            for &id in row {
                before += i64::from(id != uncounted);
                all.push(if id == uncounted { 0 } else { before });
            }
        }
        self.w["w_pos"].index_select(0, &Tensor::from_slice(&all))
    }

    fn qk_norm(&mut self, at: &str, name: &str, x: Tensor) -> Tensor {
        match self.config.qk_norm {
            QkNorm::None => x,
            QkNorm::Head => self.norm(&format!("{at}{name}"), None, &x),
            QkNorm::EachHead if self.config.norm == NormKind::None => x,
            QkNorm::EachHead => {
                let (mean, scale) = moments(self.config.norm, &x, self.config.norm_eps);
                let w = &self.w[&format!("{at}{name}.w")];
                (&x - mean) / scale * w.view([x.size()[2], x.size()[3]])
            }
            QkNorm::All => self.norm(&format!("{at}{name}"), None, &x.flatten(2, 3)).view_as(&x),
        }
    }

    /// What relative positions add to the scores of a head, `[query, key]`.
    fn bias(&self, layer: usize, head: usize, positions: i64) -> Tensor {
        let config = self.config;
        let number = |query: i64, key: i64| match config.position {
            Position::Alibi => -slope(head, config.n_heads) * (query - key).abs() as f64,
            Position::RoundedAlibi => {
                let short = |x: f64| Tensor::from(x).to_kind(Kind::BFloat16).double_value(&[]);
                short(short(slope(head, config.n_heads)) * key as f64) / (config.d_head as f64).sqrt()
            }
            Position::Buckets { n, max_distance } => {
                let bucket = bucket(key - query, n as i64, max_distance as f64, !config.is_causal(layer));
                let name = if layer < config.encoder_layers() { "source.w_rel" } else { "w_rel" };
                self.w[name].double_value(&[bucket, head as i64])
            }
            _ => 0.0,
        };
        let all: Vec<f64> =
            (0..positions).flat_map(|q| (0..positions).map(move |k| (q, k))).map(|(q, k)| number(q, k)).collect();
        Tensor::from_slice(&all).view([positions, positions])
    }

    /// True where a query does not see a key.
    fn hidden(&self, layer: usize, positions: i64) -> Tensor {
        let window = self.config.layer(layer).window.map(|window| window as i64);
        let hides = |query: i64, key: i64| {
            let far = |most: i64| (query - key).abs() > most;
            match self.config.is_causal(layer) {
                true => key > query || window.is_some_and(|window| query - key >= window),
                false => window.is_some_and(|window| far(window / 2)),
            }
        };
        let all: Vec<bool> =
            (0..positions).flat_map(|q| (0..positions).map(move |k| (q, k))).map(|(q, k)| hides(q, k)).collect();
        Tensor::from_slice(&all).view([positions, positions])
    }
}

/// The mean (0 where the norm takes none off) and the divisor of a norm.
fn moments(kind: NormKind, x: &Tensor, eps: f64) -> (Tensor, Tensor) {
    let average = |x: &Tensor| x.mean_dim([-1i64].as_slice(), true, Kind::Double);
    let mean = if kind == NormKind::Layer { average(x) } else { average(x).zeros_like() };
    let scale = (average(&(x - &mean).square()) + eps).sqrt();
    (mean, scale)
}

fn activate(x: &Tensor, activation: Activation) -> Tensor {
    let half = |inner: Tensor| (inner + 1.0) * x * 0.5;
    match activation {
        Activation::Gelu => half((x / 2f64.sqrt()).erf()),
        Activation::GeluTanh => {
            half(((x + x.pow_tensor_scalar(3) * 0.044715) * (2.0 / std::f64::consts::PI).sqrt()).tanh())
        }
        Activation::GeluBloom => half(((x + x.pow_tensor_scalar(3) * 0.044715) * 0.79788456).tanh()),
        Activation::GeluQuick => x / ((x * -1.702).exp() + 1.0),
        Activation::Relu => x.clamp_min(0.0),
        Activation::ReluSquared => x.clamp_min(0.0).square(),
        Activation::Silu => x / (x.neg().exp() + 1.0),
        Activation::Tanh => x.tanh(),
        Activation::Solu => {
            let weights = x.exp();
            x * &weights / weights.sum_dim_intlist([-1i64].as_slice(), true, None::<Kind>)
        }
    }
}

/// `x` `[batch, position, head, d_head]`, pair by pair turned by angles of its position; the tables are float32.
fn rotate(x: &Tensor, rotary: &Rotary) -> Tensor {
    let d_head = x.size()[3];
    let width = rotary.width.map_or(d_head, |width| width as i64);
    let mut columns: Vec<Tensor> = x.unbind(3);
    for pair in 0..width / 2 {
        let exponent = Tensor::from_slice(&[2 * pair]).to_kind(Kind::Float) / width as f64;
        let frequency = frequency(rotary, pair, width, x.size()[1] as usize, &exponent);
        let positions = Tensor::arange(x.size()[1], (Kind::Float, tch::Device::Cpu));
        let angle = positions * frequency;
        let factor = match rotary.scaling {
            RotaryScaling::Yarn { attention, .. } | RotaryScaling::Long { attention, .. } => attention,
            _ => 1.0,
        };
        let table = |values: Tensor| (values * factor).to_kind(Kind::Double);
        let (cos, sin) = (table(angle.cos()), table(angle.sin()));
        let (cos, sin) = (cos.view([1, -1, 1]), sin.view([1, -1, 1]));
        let [a, b] =
            if rotary.interleaved { [2 * pair, 2 * pair + 1] } else { [pair, pair + width / 2] }.map(|i| i as usize);
        let (x, y) = (columns[a].shallow_clone(), columns[b].shallow_clone());
        columns[a] = &x * &cos - &y * &sin;
        columns[b] = y * cos + x * sin;
    }
    Tensor::stack(&columns, 3)
}

/// Radians per position of one pair of coordinates, in float32.
fn frequency(rotary: &Rotary, pair: i64, width: i64, positions: usize, exponent: &Tensor) -> Tensor {
    let wave = |base: f64| Tensor::pow_scalar(base, exponent);
    let plain = wave(rotary.base).reciprocal();
    let turns = 2.0 * std::f64::consts::PI;
    match &rotary.scaling {
        RotaryScaling::None => plain,
        RotaryScaling::Linear { factor } => plain / *factor,
        RotaryScaling::Llama3 { factor, low, high, original_positions } => {
            let length = plain.reciprocal() * turns;
            match length.double_value(&[0]) {
                length if length > original_positions / low => plain / *factor,
                length if length < original_positions / high => plain,
                _ => {
                    let share = (length.reciprocal() * *original_positions - *low) / (high - low);
                    (1.0 - &share) * &plain / *factor + share * plain
                }
            }
        }
        RotaryScaling::Yarn { factor, fast, slow, original_positions, truncate, .. } => {
            let number = |n: f64| width as f64 * (original_positions / (n * turns)).ln() / (2.0 * rotary.base.ln());
            let (mut first, mut last) = (number(*fast), number(*slow));
            if *truncate {
                (first, last) = (first.floor(), last.ceil());
            }
            (first, last) = (first.max(0.0), last.min(width as f64 - 1.0));
            if first == last {
                last += 0.001;
            }
            let number = Tensor::from_slice(&[pair as f32]);
            let kept = 1.0 - ((number - first) / (last - first)).clamp(0.0, 1.0);
            (wave(rotary.base) * *factor).reciprocal() * (1.0 - &kept) + plain * kept
        }
        RotaryScaling::Long { short, long, original_positions, .. } => {
            let divisor = if positions > *original_positions { long } else { short }[pair as usize];
            (Tensor::from_slice(&[divisor as f32]) * wave(rotary.base)).reciprocal()
        }
        RotaryScaling::Dynamic { factor, original_positions } => {
            let own = *original_positions as f64;
            let growth = factor * (positions as f64).max(own) / own - (factor - 1.0);
            wave(rotary.base * growth.powf(width as f64 / (width as f64 - 2.0))).reciprocal()
        }
    }
}

/// The slope of a head, as in the authors' code: a power of two of heads has a geometric series.
fn slope(head: usize, heads: usize) -> f64 {
    let power = if heads.is_power_of_two() { heads } else { heads.next_power_of_two() / 2 };
    // In float32, as in transformers.
    let of = |n: usize, i: usize| {
        let power = Tensor::from_slice(&[i as f32 + 1.0]);
        Tensor::from(2f64.powf(-8.0 / n as f64) as f32).pow(&power).double_value(&[0])
    };
    if head < power { of(power, head) } else { of(2 * power, 2 * (head - power)) }
}

/// The bucket of a relative position, as in T5.
fn bucket(relative: i64, buckets: i64, most: f64, both: bool) -> i64 {
    let n = if both { buckets / 2 } else { buckets };
    let (first, distance) =
        if both { (if relative > 0 { n } else { 0 }, relative.abs()) } else { (0, (-relative).max(0)) };
    let exact = n / 2;
    if distance < exact {
        return first + distance;
    }
    let log = (distance as f32 / exact as f32).ln() / ((most / exact as f64).ln() as f32);
    first + (exact + (log * (n - exact) as f32) as i64).min(n - 1)
}
