//! How are a tensor's numbers coded in its file? As floats, or rounded in blocks that share a scale, as in GGUF files.
//!
//! The layouts of the blocks are those of ggml (`ggml-common.h`); `d` and `m` are float16. With `q` the whole number of a
//! weight:
//!
//! | coding | weights in a block | bytes | value |
//! |---|---|---|---|
//! | Q4_0 | 32 | 18 | `d (q - 8)` |
//! | Q4_1 | 32 | 20 | `d q + m` |
//! | Q8_0 | 32 | 34 | `d q` |
//! | Q4_K | 256 | 144 | `d s q - m t`, with 6-bit `s` and `t` for each 32 weights |
//! | Q6_K | 256 | 210 | `d s (q - 32)`, with an 8-bit `s` for each 16 weights |

use half::f16;
use tch::Kind;

/// How numbers are coded.
#[derive(Debug, Clone, Copy)]
pub(super) enum Coding {
    /// Each by itself.
    Floats(Kind),
    /// In blocks.
    Blocks(&'static Blocks),
}

/// Numbers in blocks that share scales.
#[derive(Debug)]
pub(super) struct Blocks {
    /// The numbers in a block.
    pub numbers: usize,
    /// The bytes of a block.
    pub bytes: usize,
    /// Decodes one block: exactly so many bytes, into exactly so many numbers.
    decode: fn(&[u8], &mut [f32]),
}

const Q4_0: Blocks = Blocks { numbers: 32, bytes: 18, decode: q4_0 };
const Q4_1: Blocks = Blocks { numbers: 32, bytes: 20, decode: q4_1 };
const Q8_0: Blocks = Blocks { numbers: 32, bytes: 34, decode: q8_0 };
const Q4_K: Blocks = Blocks { numbers: 256, bytes: 144, decode: q4_k };
const Q6_K: Blocks = Blocks { numbers: 256, bytes: 210, decode: q6_k };

/// The codings of GGUF files that are read, with their names and ggml's numbers for them.
pub(super) const GGML: [(u32, &str, Coding); 9] = [
    (0, "F32", Coding::Floats(Kind::Float)),
    (1, "F16", Coding::Floats(Kind::Half)),
    (2, "Q4_0", Coding::Blocks(&Q4_0)),
    (3, "Q4_1", Coding::Blocks(&Q4_1)),
    (8, "Q8_0", Coding::Blocks(&Q8_0)),
    (12, "Q4_K", Coding::Blocks(&Q4_K)),
    (14, "Q6_K", Coding::Blocks(&Q6_K)),
    (28, "F64", Coding::Floats(Kind::Double)),
    (30, "BF16", Coding::Floats(Kind::BFloat16)),
];

/// What ggml calls the codings that are not read.
pub(super) const GGML_OTHERS: [(u32, &str); 20] = [
    (6, "Q5_0"),
    (7, "Q5_1"),
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (13, "Q5_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (29, "IQ1_M"),
];

impl Coding {
    /// The numbers that cannot be read apart.
    pub(super) fn numbers(self) -> usize {
        match self {
            Self::Floats(_) => 1,
            Self::Blocks(blocks) => blocks.numbers,
        }
    }

    /// The bytes of [`Coding::numbers`].
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Floats(kind) => kind.elt_size_in_bytes(),
            Self::Blocks(blocks) => blocks.bytes,
        }
    }

    /// The type of the numbers once decoded.
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Floats(kind) => kind,
            Self::Blocks(_) => Kind::Float,
        }
    }
}

impl Blocks {
    /// Decodes whole blocks.
    pub(super) fn decode(&self, bytes: &[u8], numbers: &mut Vec<f32>) {
        numbers.clear();
        numbers.resize(bytes.len() / self.bytes * self.numbers, 0.0);
        for (block, out) in bytes.chunks_exact(self.bytes).zip(numbers.chunks_exact_mut(self.numbers)) {
            (self.decode)(block, out);
        }
    }
}

/// The float16 at the start of `bytes`, and what follows it.
fn scale(bytes: &[u8]) -> (f32, &[u8]) {
    match bytes.split_first_chunk() {
        Some((first, rest)) => (f16::from_le_bytes(*first).to_f32(), rest),
        None => (f32::NAN, bytes),
    }
}

/// The low halves of bytes come first, then the high halves.
fn halves(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        *low = value(byte & 15);
        *high = value(byte >> 4);
    }
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let (d, quants) = scale(block);
    halves(quants, out, |q| d * (f32::from(q) - 8.0));
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, rest) = scale(block);
    let (m, quants) = scale(rest);
    halves(quants, out, |q| d * f32::from(q) + m);
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let (d, quants) = scale(block);
    for (quant, out) in quants.iter().zip(out) {
        *out = d * f32::from(quant.cast_signed());
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let (d, rest) = scale(block);
    let (m, rest) = scale(rest);
    let (scales, quants) = rest.split_at(12);
    // Eight 6-bit scales and eight 6-bit minima; the upper two bits of the last four of each are with the first four.
    let packed = |i: usize, first: usize| {
        let (low, high) = (scales[first + i % 4], scales[8 + i % 4]);
        let nibble = if first == 0 { high & 15 } else { high >> 4 };
        f32::from(if i < 4 { low & 63 } else { nibble | ((low >> 6) << 4) })
    };
    for (pair, (quants, out)) in quants.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
        let [first, second] = [2 * pair, 2 * pair + 1].map(|i| (d * packed(i, 0), m * packed(i, 4)));
        let (low, high) = out.split_at_mut(32);
        for ((byte, low), high) in quants.iter().zip(low).zip(high) {
            *low = first.0 * f32::from(byte & 15) - first.1;
            *high = second.0 * f32::from(byte >> 4) - second.1;
        }
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, rest) = block.split_at(128);
    let (high, rest) = rest.split_at(64);
    let (scales, d) = rest.split_at(16);
    let d = scale(d).0;
    // Two halves of 128 weights, each in four quarters of 32: the low 4 bits of quarters 0 and 2 share 32 bytes, as do those
    // of 1 and 3, and the upper 2 bits of all four share 32 others.
    for half in 0..2 {
        for i in 0..128 {
            let (quarter, at) = (i / 32, i % 32);
            let byte = low[half * 64 + (quarter % 2) * 32 + at];
            let lower = if quarter < 2 { byte & 15 } else { byte >> 4 };
            let upper = (high[half * 32 + at] >> (2 * quarter)) & 3;
            let quant = f32::from(lower | (upper << 4)) - 32.0;
            let own = f32::from(scales[half * 8 + i / 16].cast_signed());
            out[half * 128 + i] = d * own * quant;
        }
    }
}
