//! What does a forward pass cost at GPT-2 small's shape (random weights)? Bare, with taps, and beside the same products
//! written by hand.
//!
//! `cargo bench --bench forward` times all; with `-- --by-hand` only the last, which it prints and writes to
//! `benches/results/forward.md`.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use common::{gpt2_small, prompts};
use criterion::{Criterion, criterion_group};
use headscope::model::{Model, Plan, Site, Tokens};
use tch::{Kind, Tensor};

fn forward(c: &mut Criterion) {
    headscope::device::tune_process();
    let model = Model::random(&gpt2_small(12), 0).unwrap();
    let tokens = prompts(8, 16, 0);
    type Make = fn() -> Plan;
    let plans: [(&str, Make); 4] = [
        ("logits", || Plan::new()),
        ("last residual only", || Plan::new().tap(Site::ResidPost(11))),
        ("all patterns", || Plan::new().taps((0..12).map(Site::Pattern)).tap(Site::Logits)),
        ("all sites", || Plan::new().taps(Site::all(&gpt2_small(12)))),
    ];
    let mut group = c.benchmark_group("forward_gpt2_small_8x16");
    group.sample_size(10);
    for (name, plan) in plans {
        group.bench_function(name, |b| b.iter(|| model.run(&tokens, &plan()).unwrap()));
    }
    group.finish();
}

/// GPT-2's forward pass with nothing around it: a model's own parameters and libtorch's operations, line by line.
struct ByHand<'a> {
    parameters: BTreeMap<String, &'a Tensor>,
    /// Whether products go through oneDNN, not through libtorch's first choice.
    onednn: bool,
}

impl ByHand<'_> {
    fn product(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Tensor {
        match self.onednn {
            true => x.g_to_mkldnn(None).mkldnn_linear(&w.tr(), b).to_dense(None, false),
            false => x.linear(&w.tr(), b),
        }
    }

    fn linear(&self, x: &Tensor, at: &str, name: &str) -> Tensor {
        let [w, b] = ["w", "b"].map(|kind| self.parameters[&format!("{at}{kind}_{name}")]);
        self.product(x, w, Some(b))
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let [w, b] = ["w", "b"].map(|kind| self.parameters[&format!("{name}.{kind}")]);
        x.layer_norm([768], Some(w), Some(b), 1e-5, false)
    }

    fn logits(&self, ids: &Tensor) -> Tensor {
        let (w_e, positions) = (self.parameters["w_e"], ids.size()[1]);
        let mut x = Tensor::embedding(w_e, ids, -1, false, false) + self.parameters["w_pos"].narrow(0, 0, positions);
        for layer in 0..12 {
            let at = format!("blocks.{layer}.");
            let read = self.norm(&x, &format!("{at}ln1"));
            let [q, k, v] =
                ["q", "k", "v"].map(|name| self.linear(&read, &at, name).unflatten(-1, [12, 64]).transpose(1, 2));
            let z = Tensor::scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, true, None, false);
            x = &x + self.linear(&z.transpose(1, 2).flatten(2, 3), &at, "o");
            let read = self.norm(&x, &format!("{at}ln2"));
            x = &x + self.linear(&self.linear(&read, &at, "in").gelu("tanh"), &at, "out");
        }
        self.product(&self.norm(&x, "ln_final"), &w_e.tr(), None)
    }
}

fn ids(tokens: &Tokens) -> Tensor {
    let rows: Vec<Tensor> = (0..tokens.batch()).map(|row| Tensor::from_slice(tokens.row(row))).collect();
    Tensor::stack(&rows, 0)
}

/// Seconds that the calling thread has computed, as Linux counts them: another process only takes turns with it.
fn thread_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}

fn timed(work: &dyn Fn() -> Tensor) -> f64 {
    let start = thread_seconds();
    drop(work());
    thread_seconds() - start
}

/// The median, and the two numbers between which it lies with 95 % confidence, by their ranks.
fn median(mut of: Vec<f64>) -> (f64, [f64; 2]) {
    of.sort_by(f64::total_cmp);
    let away = (0.98 * (of.len() as f64).sqrt()).ceil() as usize;
    let middle = of.len() / 2;
    (of[middle], [of[middle.saturating_sub(away)], of[(middle + away).min(of.len() - 1)]])
}

/// Ours and the one by hand take turns, on one thread; the ratio is that of each pair.
fn ratio(model: &Model, hand: &ByHand<'_>, tokens: &Tokens, pairs: usize) -> (f64, [f64; 2], f64) {
    let ids = ids(tokens);
    let ours = || tch::no_grad(|| model.run(tokens, &Plan::new()).unwrap().logits().unwrap().shallow_clone());
    let by_hand = || tch::no_grad(|| hand.logits(&ids));
    let (found, expected) = (ours(), by_hand());
    let apart = ((found - &expected).square().mean(Kind::Double) / expected.square().mean(Kind::Double)).sqrt();
    assert!(apart.double_value(&[]) < 1e-5, "the two differ: {apart:?}");
    let mut seconds = f64::INFINITY;
    let one = |pair: usize| {
        let (own, other) = match pair % 2 {
            0 => (timed(&ours), timed(&by_hand)),
            _ => {
                let other = timed(&by_hand);
                (timed(&ours), other)
            }
        };
        seconds = seconds.min(own);
        own / other
    };
    let (middle, interval) = median((0..pairs).map(one).collect());
    (middle, interval, seconds)
}

fn by_hand() {
    headscope::device::tune_process();
    tch::set_num_threads(1);
    let model = Model::random(&gpt2_small(12), 0).unwrap();
    let parameters: BTreeMap<String, &Tensor> = model.parameters().into_iter().collect();
    let hands = [false, true].map(|onednn| ByHand { parameters: parameters.clone(), onednn });
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let mut out = format!(
        "# A forward pass beside the same products by hand\n\nWritten by `cargo bench --bench forward -- --by-hand`. GPT-2 small's shape, random weights, float32, one thread of an {}.\nBy hand: the faster of MKL's and oneDNN's products. Processor seconds of alternating pairs: the median ratio and its 95 % interval.\n\n| prompts x tokens | by hand with | seconds | ours / by hand | interval |\n|---|---|---:|---:|---:|\n",
        processor.map_or("unknown processor", |(_, name)| name),
    );
    for (batch, positions, pairs) in [(8, 64, 21), (8, 16, 41), (1, 16, 61)] {
        let tokens = prompts(batch, positions, 0);
        let ids = ids(&tokens);
        let best = |hand: &ByHand<'_>| {
            tch::no_grad(|| (0..3).map(|_| timed(&|| hand.logits(&ids))).fold(f64::INFINITY, f64::min))
        };
        let hand = if best(&hands[1]) < best(&hands[0]) { &hands[1] } else { &hands[0] };
        let (middle, [low, high], seconds) = ratio(&model, hand, &tokens, pairs);
        let library = if hand.onednn { "oneDNN" } else { "MKL" };
        let row = format!("| {batch} x {positions} | {library} | {seconds:.3} | {middle:.3} | {low:.3} to {high:.3} |");
        writeln!(out, "{row}").unwrap();
    }
    print!("{out}");
    std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/results/forward.md"), out).unwrap();
}

criterion_group!(benches, forward);

fn main() {
    if !std::env::args().any(|argument| argument == "--by-hand") {
        benches();
        Criterion::default().configure_from_args().final_summary();
    }
    // `cargo test --benches` asks whether it starts.
    if !std::env::args().any(|argument| argument == "--test") {
        by_hand();
    }
}
