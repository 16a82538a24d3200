//! The one table of tolerances, with the derivation of every bound, and the comparisons that use it.

use headscope::model::ModelConfig;
use headscope::verify::{rounding, roundoff};
use serde_json::Value;
use tch::{Kind, Tensor};

/// How far two computations of the same quantity may lie apart, in units of the *scale* of what is compared: the root mean
/// square of a tensor's finite elements; for a single number, its magnitude or 1, whichever is larger.
///
/// # float32
///
/// [`rounding`] derives the bound `6 (L + 1) u sqrt(9 n)` of a tensor's scale, with the unit roundoff `u` = 2^-24, the layers `L`
/// and the longest sum `n`: 4.9e-5 for the GPT-2 fixture (`L` = 3, `n` = 128).
///
/// A bound that every correct implementation keeps says little about one that is slightly wrong. Golden tests therefore
/// also hold our error to a multiple of that of another implementation: [`assert_as_accurate`].
///
/// # float64
///
/// The same formula with `u` = 2^-53 gives 9e-14. The bounds leave three digits above that for tables in which results of
/// different sizes meet (effects beside losses), and stay four digits below anything that passed through float32.
///
/// # float16 and bfloat16
///
/// The same formula with `u` = 2^-11 and 2^-8, where products sum in float32 and round once ([`rounding`]): 0.05 and 0.4 of the
/// scale for the worst element at `L` = 3, six standard deviations of 0.8 % and 6.6 %. Of such bounds the sharper is the other
/// one: no farther from the float64 truth than transformers in the same type ([`assert_as_accurate`]).
#[derive(Debug, Clone, Copy)]
pub enum Tol {
    /// The same formula in another order of summation, through a whole model no larger than those of the tests.
    Model(Kind),
    /// Through a whole model of so many layers, whose longest sum has so many terms ([`Tol::of`]).
    Deep { kind: Kind, layers: usize, terms: usize },
    /// One layer's identity, or one product.
    Layer(Kind),
    /// float64 through so many layers, with rotary tables that are float32 in one of the two computations. An angle is a
    /// position times a frequency, so it is off by `u` times the position, and a table's entry with it: as if a sum of
    /// position^2 terms were rounded.
    Tables { layers: usize, positions: usize },
    /// A few float64 operations on numbers of order one: shares, probabilities, cosines.
    Number,
    /// A float64 formula over thousands of samples: sums in another order of logarithms, distances and ratios.
    Samples,
    /// A float64 layer whose relative errors are multiplied by this condition number, which the test derives.
    Conditioned(f64),
    /// A float64 derivative beside a fourth-order finite difference with a step h between 1e-4 and 1e-3. It is off by
    /// h^4 / 30 times the fifth derivative, and by rounding divided by h: 1e-13 to 1e-9 for derivatives up to 1e3.
    Difference,
    /// Bit for bit: both sides do the same operations in the same order, in one process.
    Exact,
}

/// Layers, and terms of the longest sum, of the largest model that the tests draw or keep as a fixture (`tiny-gpt2`).
const SMALL: (usize, usize) = (3, 128);

/// [`Tol::Samples`] as a number.
pub const ROUNDING: f64 = 1e-9;

/// Terms of the longest sum of a forward pass. Sums over keys are shorter in all tests.
fn terms(config: &ModelConfig) -> usize {
    config.d_model.max(config.d_mlp).max(config.n_heads * config.d_head)
}

impl Tol {
    /// For a whole pass through a model.
    pub fn of(config: &ModelConfig, kind: Kind) -> Self {
        Self::Deep { kind, layers: config.n_layers, terms: terms(config) }
    }

    /// The largest error that is allowed, in units of the scale.
    pub fn bound(self) -> f64 {
        match self {
            Self::Model(Kind::Double) | Self::Deep { kind: Kind::Double, .. } => 1e-10,
            Self::Layer(Kind::Double) => 1e-11,
            Self::Model(kind) => rounding(kind, SMALL.0 + 1, SMALL.1),
            Self::Deep { kind, layers, terms } => rounding(kind, layers + 1, terms),
            Self::Layer(kind) => rounding(kind, 1, SMALL.1),
            Self::Tables { layers, positions } => rounding(Kind::Float, layers + 1, positions * positions),
            Self::Number => 1e-12,
            Self::Samples => ROUNDING,
            Self::Conditioned(number) => Self::Layer(Kind::Double).bound() * number,
            Self::Difference => 1e-6,
            Self::Exact => 0.0,
        }
    }
}

/// The root mean square of the finite elements.
pub fn scale(of: &Tensor) -> f64 {
    let of = flat64(of);
    let finite = of.masked_select(&of.isfinite());
    if finite.numel() == 0 { 0.0 } else { finite.square().mean(None::<Kind>).sqrt().double_value(&[]) }
}

fn flat64(tensor: &Tensor) -> Tensor {
    tensor.to_kind(Kind::Double).flatten(0, -1)
}

/// Fails with the worst index and both values where the tensors differ by more than the tolerance, in units of the scale of
/// what is expected. Of expected zeros nothing can be said so: that is [`assert_zero`].
#[track_caller]
pub fn assert_close(what: &str, found: &Tensor, expected: &Tensor, tol: Tol) {
    assert_close_at(what, found, expected, scale(expected), tol);
}

/// [`assert_close`] with the scale of what the tensors were computed from, where they are differences of larger numbers.
#[track_caller]
pub fn assert_close_at(what: &str, found: &Tensor, expected: &Tensor, scale: f64, tol: Tol) {
    assert_eq!(found.size(), expected.size(), "{what}: shapes");
    assert!(found.numel() > 0, "{what}: nothing to compare");
    let (found, expected) = (flat64(found), flat64(expected));
    let same = found.eq_tensor(&expected); // also where both are infinite
    let error = (&found - &expected).abs().masked_fill(&same, 0.0);
    let error = error.masked_fill(&error.isnan(), f64::INFINITY);
    let worst = error.argmax(0, false).int64_value(&[]);
    let (error, a, b) = (error.double_value(&[worst]), found.double_value(&[worst]), expected.double_value(&[worst]));
    assert!(
        error <= tol.bound() * scale,
        "{what}: {a:e} where {b:e} was expected at flat index {worst}, error {error:e} at a scale of {scale:e}, {tol:?} \
         allows {:e} of that",
        tol.bound()
    );
}

/// Fails where a tensor that was computed from numbers of this scale is not zero up to rounding.
#[track_caller]
pub fn assert_zero(what: &str, found: &Tensor, scale: f64, tol: Tol) {
    assert_close_at(what, found, &found.zeros_like(), scale, tol);
}

/// [`assert_close`] for a number.
#[track_caller]
pub fn assert_near(what: &str, found: f64, expected: f64, tol: Tol) {
    let error = (found - expected).abs() / expected.abs().max(1.0);
    assert!(error <= tol.bound(), "{what}: {found:e} where {expected:e} was expected, error {error:e}, {tol:?}");
}

/// Fails where two documents differ in anything but their numbers, or in a number by more than the tolerance.
#[track_caller]
pub fn assert_same(what: &str, found: &Value, expected: &Value, tol: Tol) {
    match (found, expected) {
        (Value::Number(a), Value::Number(b)) => assert_near(what, a.as_f64().unwrap(), b.as_f64().unwrap(), tol),
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{what}");
            a.iter().zip(b).enumerate().for_each(|(i, (a, b))| assert_same(&format!("{what}[{i}]"), a, b, tol));
        }
        (Value::Object(a), Value::Object(b)) => {
            assert!(a.keys().eq(b.keys()), "{what}: {:?} where {:?} were expected", a.keys(), b.keys());
            a.iter().for_each(|(key, a)| assert_same(&format!("{what}.{key}"), a, &b[key], tol));
        }
        _ => assert_eq!(found, expected, "{what}"),
    }
}

/// Fails where our result is farther from the float64 truth than a small multiple of another implementation's result of the
/// same type, both as root mean squares over the tensor, of which single elements say little.
///
/// The multiple is what the order of summation can make: the error of `n` terms summed one after another grows as
/// `sqrt(n)`, of pairs of pairs as `sqrt(log2 n)`, so one implementation may be `sqrt(n / log2 n)` times as far off as
/// the other (4.3 for 128 terms) with neither being wrong. Two units in the last place of the scale are granted beside,
/// since the other may be exact where there is little to round.
#[track_caller]
pub fn assert_as_accurate(what: &str, ours: &Tensor, other: &Tensor, truth: &Tensor, config: &ModelConfig) {
    let truth = flat64(truth);
    let error = |found: &Tensor| scale(&(flat64(found) - &truth));
    let terms = terms(config) as f64;
    let multiple = (terms / terms.log2()).sqrt();
    let floor = 4.0 * roundoff(ours.kind()) * scale(&truth);
    let (ours, other) = (error(ours), error(other));
    assert!(
        ours <= multiple * other + floor,
        "{what}: {ours:e} from the truth, where the other implementation is {other:e}; {multiple:.1} times that and \
         {floor:e} are allowed"
    );
}
