//! How far may two correct computations of the same lie apart?

use tch::Kind;

use crate::model::ModelConfig;

/// Sums that follow one another in a layer: its two norms, the projection to queries, keys and values, the scores, the
/// softmax, z, the output projection, and the two projections of the MLP.
const CHAINED: f64 = 9.0;
/// Standard deviations.
const SURE: f64 = 6.0;

/// Half the distance from 1 to the next number: the largest relative error of one rounding.
///
/// ```
/// use headscope::verify::roundoff;
/// assert_eq!(roundoff(tch::Kind::Float), 2f64.powi(-24));
/// assert_eq!(roundoff(tch::Kind::BFloat16), 2f64.powi(-8));
/// ```
pub fn roundoff(kind: Kind) -> f64 {
    // Of the significand, with its leading one.
    let bits = match kind {
        Kind::Double => 53,
        Kind::Half => 11,
        Kind::BFloat16 => 8,
        _ => 24,
    };
    2f64.powi(-bits)
}

/// Terms of the longest sum of a forward pass over so many positions.
pub fn terms(config: &ModelConfig, positions: usize) -> usize {
    config.d_model.max(config.d_mlp).max(config.n_heads * config.d_head).max(positions)
}

/// How far apart two computations of an activation may lie that has passed so many layers, in units of its *scale*: the root
/// mean square of a tensor's finite elements.
///
/// Let `u` be the unit roundoff ([`roundoff`]) and `n` the terms of the longest sum ([`terms`]). One operation errs by at most
/// `u` times the size of its result, with either sign and, in practice, independently of all others (Higham and Mary, "A new
/// approach to probabilistic rounding error analysis", SIAM J. Sci. Comput. 41, 2019).
///
/// - A **sum** rounds `n` partial sums. Where terms have either sign, these are no larger than the scale of the results, so
///   the standard deviation of the error is at most `u sqrt(n)` of that scale. In half precision (float16, bfloat16) products
///   sum in float32 and round once: `u`, and once more for what is done to each element after it.
/// - A **layer** chains nine sums. Independent errors add in squares: `u sqrt(9 n)`, in half precision `u sqrt(9 * 2)`.
/// - The **depth** counts linearly. The independent errors of `L` layers would add to only `sqrt(L)` times that of one, but the
///   residual stream hands the errors of early layers to all later ones, which may enlarge them. The factor `sqrt(L)` between
///   the two is the allowance for that. The final norm and the unembedding count as one more layer.
/// - Of a tensor's many elements the worst is judged: **six** standard deviations leave one in 10^9 outside.
///
/// Together `6 L u sqrt(9 n)`. Nothing in it depends on the processor, on the order of summation, or on whether attention is
/// fused.
pub fn rounding(kind: Kind, layers: usize, terms: usize) -> f64 {
    let rounded = if matches!(kind, Kind::Half | Kind::BFloat16) { 2.0 } else { terms as f64 };
    SURE * layers as f64 * roundoff(kind) * (CHAINED * rounded).sqrt()
}
