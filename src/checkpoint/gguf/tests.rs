//! Every coding against llama.cpp's own Python package, headers that lie, and the folder that a file becomes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::path::PathBuf;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::*;
use crate::checkpoint::coding::GGML;
use crate::checkpoint::order::Order;
use crate::checkpoint::source::Place;
use crate::model::{Model, Plan, Site};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/gguf").join(name)
}

/// Each coding decodes to the same bits as in `gguf`, as a matrix, and as one long row of which no part is a row.
#[test]
fn codings() {
    let path = fixture("codings.gguf");
    let golden = Tensor::read_safetensors(fixture("codings.safetensors")).unwrap();
    for flat in [false, true] {
        let file = File::open(&path).unwrap();
        let header = Header::read(&path, &file).unwrap();
        assert_eq!((header.tensors.len(), golden.len()), (GGML.len(), GGML.len()));
        let place = |(name, info): (String, header::TensorInfo)| {
            let shape = if flat { vec![info.shape.iter().product()] } else { info.shape };
            (name, Place { file: 0, coding: Ok(info.coding), shape, bytes: info.bytes, order: Order::Same })
        };
        let places = header.tensors.into_iter().map(place).collect();
        let source = Source::of_file(&path, file, places, Kind::Double, Device::Cpu).unwrap();
        for (name, expected) in &golden {
            let shape: Vec<usize> = source.shapes().find(|(own, _)| own == name).unwrap().1.to_vec();
            let found = source.take(name, &shape).unwrap();
            assert!(found.flatten(0, -1).equal(&expected.to_kind(Kind::Double).flatten(0, -1)), "{name}");
            assert!(found.std(true).double_value(&[]) > 0.1, "{name}: numbers that differ");
        }
    }
}

/// A folder that a file was converted to is the same model, and is left as it is the second time.
#[test]
fn conversion() {
    let folder = tempfile::tempdir().unwrap();
    let path = fixture("tiny-llama.gguf");
    converted(&path, folder.path()).unwrap();
    let (file, made) =
        (Model::load(path.to_str().unwrap()).unwrap(), Model::load(folder.path().to_str().unwrap()).unwrap());
    assert_eq!(file.config(), made.config());
    assert_eq!(file.origin().end_tokens, [2]);
    assert_eq!(made.origin().end_tokens, [2]);
    for ((name, a), (_, b)) in file.parameters().iter().zip(made.parameters()) {
        assert!(a.equal(b), "{name}");
    }
    let text = ["The station, 17 apples\n and naïve 👍"];
    let tokens = file.tokens(&text).unwrap();
    assert_eq!(tokens, made.tokens(&text).unwrap());
    let plan = Plan::new().tap(Site::Logits);
    let logits = |model: &Model| model.run(&tokens, &plan).unwrap().get(Site::Logits).unwrap().copy();
    assert!(logits(&file).equal(&logits(&made)));
    let all: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(all.len(), 3, "{all:?}");
    let config: Json = serde_json::from_slice(&fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(config["converted_from"]["sha256"], crate::file::sha256(&fs::read(&path).unwrap()));
    let times = || fs::metadata(folder.path().join("model.safetensors")).unwrap().modified().unwrap();
    let before = times();
    converted(&path, folder.path()).unwrap();
    assert_eq!(before, times());
}

/// A file that fails in the middle leaves no folder that could be taken for a model.
#[test]
fn failed_conversion() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut bytes = fs::read(fixture("tiny-llama.gguf")).unwrap();
    let length = bytes.len();
    bytes[length - 128..].fill(0xff); // the last norm: no numbers
    fs::write(&path, &bytes).unwrap();
    let error = converted(&path, folder.path()).unwrap_err();
    assert!(matches!(&error, Error::NotFinite { at, .. } if at.contains("model.norm.weight")), "{error}");
    assert!(!is_converted(folder.path()));
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["model.gguf"]);
}

/// Reads all that a file has.
fn read(bytes: &[u8]) -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spoilt.gguf");
    fs::write(&path, bytes).unwrap();
    let gguf = Gguf::open(&path, Kind::Float, Device::Cpu)?;
    for (name, shape) in gguf.source.shapes() {
        gguf.source.take(name, shape).map(drop)?;
    }
    Model::load(path.to_str().unwrap()).map(drop)
}

/// Whatever bytes are changed or missing: an error, or a model of other numbers, and never a panic.
#[test]
fn spoilt_files() {
    let whole = fs::read(fixture("tiny-llama.gguf")).unwrap();
    assert!(read(&whole).is_ok());
    let rng = &mut ChaCha8Rng::seed_from_u64(0);
    for length in (0..200).chain((200..whole.len()).step_by(977)).chain([whole.len() - 1]) {
        assert!(read(&whole[..length]).is_err(), "the first {length} bytes");
    }
    let mut refused = 0;
    for case in 0..400 {
        let mut bytes = whole.clone();
        // The counts, types and lengths are near the start, and among the tensors after the vocabulary.
        let range = [0..1_200, 15_500..17_000, 1_200..15_500][case % 3].clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(range.clone());
            bytes[at] = if rng.random() { rng.random() } else { 0xff };
        }
        refused += usize::from(read(&bytes).is_err());
    }
    assert!(refused > 100, "{refused}");
}

/// Headers that promise more than there is are refused before anything is allocated for them, and say where.
#[test]
fn lies() {
    let whole = fs::read(fixture("tiny-llama.gguf")).unwrap();
    let find = |text: &str| whole.windows(text.len()).position(|part| part == text.as_bytes()).unwrap();
    let says = |at: usize, with: &[u8], parts: &[&str]| {
        let mut bytes = whole.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        let error = read(&bytes).unwrap_err().to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "`{error}` does not say `{part}`"));
    };
    let most = u64::MAX.to_le_bytes();
    says(0, b"GGML", &["GGUF"]);
    says(4, &1_u32.to_le_bytes(), &["version 2 or 3", "found 1"]);
    says(4, &3_u32.to_be_bytes(), &["little-endian"]);
    says(8, &most, &["tensors", "18446744073709551615"]);
    says(16, &most, &["values", "18446744073709551615"]);
    says(24, &most, &["bytes of text"]);
    let architecture = find("general.architecture") + "general.architecture".len();
    says(architecture, &99_u32.to_le_bytes(), &["general.architecture", "type of value", "99"]);
    says(architecture + 4, &most, &["general.architecture", "bytes of text"]);
    says(architecture + 12, b"mamba", &["general.architecture", "one of bloom", "llama", "mamba"]);
    let tokens = find("tokenizer.ggml.tokens") + "tokenizer.ggml.tokens".len();
    says(tokens + 4, &9_u32.to_le_bytes(), &["tokenizer.ggml.tokens", "array of arrays"]);
    says(tokens + 8, &most, &["tokenizer.ggml.tokens", "at most"]);
    says(
        find("tokenizer.ggml.pre") + "tokenizer.ggml.pre".len() + 12,
        b"llamaX",
        &["tokenizer.ggml.pre", "llamaX", "smollm", "llama-bpe"],
    );
    says(
        find("llama.rope.dimension_count") + "llama.rope.dimension_count".len() + 4,
        &6_u32.to_le_bytes(),
        &["dimension_count", "8", "6"],
    );
    says(
        find("llama.attention.head_count_kv") + "llama.attention.head_count_kv".len() + 4,
        &3_u32.to_le_bytes(),
        &["blk.0.attn_k", "3 heads"],
    );
    says(find("llama.vocab_size") + 12, b"bite", &["llama.vocab_bite", "known here"]);
    says(find("llama.block_count") + 6, b"clock", &["llama.block_count", "nothing"]);
    // A tensor's entry: name, axes, sizes, type, offset.
    let entry = find("blk.0.ffn_gate.weight") + "blk.0.ffn_gate.weight".len();
    says(entry, &0_u32.to_le_bytes(), &["blk.0.ffn_gate.weight", "1 to 4 axes"]);
    says(entry + 4, &most, &["blk.0.ffn_gate.weight"]);
    says(entry + 4, &(1_u64 << 40).to_le_bytes(), &["blk.0.ffn_gate.weight", "the file's length"]);
    says(entry + 4, &31_u64.to_le_bytes(), &["blk.0.ffn_gate.weight", "multiple of 32"]);
    says(entry + 4, &0_u64.to_le_bytes(), &["blk.0.ffn_gate.weight", "at least 1"]);
    says(entry + 20, &13_u32.to_le_bytes(), &["blk.0.ffn_gate.weight", "Q4_K, Q6_K", "Q5_K"]);
    says(entry + 20, &77_u32.to_le_bytes(), &["type 77"]);
    says(entry + 24, &most, &["blk.0.ffn_gate.weight", "offset"]);
    says(entry - "ffn_gate.weight".len(), b"ffn_goat", &["model.layers.0.mlp.gate_proj.weight", "is missing"]);
}

/// Two threads (or processes) that convert at once: one does, the other waits.
#[test]
fn conversions_side_by_side() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..3).map(|_| scope.spawn(|| converted(&fixture("tiny-llama.gguf"), folder.path()))).collect();
        all.into_iter().for_each(|one| one.join().unwrap().unwrap());
    });
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
}
