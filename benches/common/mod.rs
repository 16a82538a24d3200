//! GPT-2 small's shape, prompts for it, and what a process has computed.
#![allow(dead_code)] // each benchmark compiles this file and uses what it needs

use headscope::model::{ModelConfig, Tokens};

/// GPT-2 small's shape with this many layers.
pub fn gpt2_small(n_layers: usize) -> ModelConfig {
    ModelConfig {
        family: "gpt2 small's shape".into(),
        n_layers,
        d_model: 768,
        n_heads: 12,
        n_kv_heads: 12,
        d_head: 64,
        d_mlp: 3072,
        vocab: 50_257,
        n_positions: 1024,
        tied_unembed: true,
        ..ModelConfig::default()
    }
}

/// `batch` prompts of `positions` tokens that look random; another seed gives others.
pub fn prompts(batch: i64, positions: i64, seed: i64) -> Tokens {
    prompts_of(50_257, batch, positions, seed)
}

/// [`prompts`] for a vocabulary of this size.
pub fn prompts_of(vocab: i64, batch: i64, positions: i64, seed: i64) -> Tokens {
    let row = |b: i64| (0..positions).map(|p| (b * 6007 + p * 911 + seed * 7919) % vocab).collect();
    Tokens::new(&(0..batch).map(row).collect::<Vec<Vec<i64>>>()).unwrap()
}

/// Seconds that the threads of this process have computed, as Linux counts them.
pub fn processor_seconds() -> f64 {
    let of = |folder: std::fs::DirEntry| std::fs::read_to_string(folder.path().join("schedstat")).unwrap_or_default();
    let all = std::fs::read_dir("/proc/self/task").unwrap().map(|folder| of(folder.unwrap()));
    all.filter_map(|text| text.split_whitespace().next()?.parse::<f64>().ok()).sum::<f64>() / 1e9
}
