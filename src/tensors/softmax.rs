//! How is a softmax computed fast over the last axis, whatever its length?

use tch::{Device, Kind, TchError, Tensor};

use super::wide;

/// Shorter than a vector register: libtorch then takes the numbers one by one, at ten times the cost.
const FEW: i64 = 16;

/// exp(x) / sum(exp(x)) over the last axis.
pub(crate) fn softmax(x: &Tensor) -> Result<Tensor, TchError> {
    over_last(x, |x, axis| x.f_softmax(axis, None::<Kind>))
}

/// x - ln(sum(exp(x))) over the last axis; float32 for half precision.
pub(crate) fn log_softmax(x: &Tensor) -> Result<Tensor, TchError> {
    over_last(x, |x, axis| x.f_log_softmax(axis, wide(x.kind())))
}

/// Applies `of` along the last axis; if that is short, to a transposed copy, so that vector registers hold numbers of the other
/// axes.
fn over_last(x: &Tensor, of: impl Fn(&Tensor, i64) -> Result<Tensor, TchError>) -> Result<Tensor, TchError> {
    let (size, last) = (x.size(), x.dim() as i64 - 1);
    if x.device() != Device::Cpu || x.dim() < 2 || size[x.dim() - 1] >= FEW {
        return of(x, -1);
    }
    of(&x.f_flatten(0, last - 1)?.f_tr()?, 0)?.f_tr()?.f_view(size.as_slice())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Long or short, as it is or transposed: the same numbers and gradients as libtorch's.
    #[test]
    fn short_axes_give_the_same() {
        for (rows, n) in [(1, 1), (5, 3), (7, 15), (7, 16), (4, 40)] {
            for turned in [false, true] {
                let x = Tensor::randn([2, n, rows], (Kind::Double, Device::Cpu)).set_requires_grad(true);
                let y = if turned { x.transpose(1, 2) } else { x.view([2, rows, n]) };
                let weight = Tensor::randn_like(&y);
                let gradient = |of: &Tensor| Tensor::run_backward(&[(of * &weight).sum(None)], &[&x], true, false);
                let pairs = [
                    (softmax(&y).unwrap(), y.softmax(-1, None::<Kind>)),
                    (log_softmax(&y).unwrap(), y.log_softmax(-1, None::<Kind>)),
                ];
                for (found, expected) in pairs {
                    assert!(found.allclose(&expected, 1e-12, 1e-14, false), "{rows} x {n}");
                    let (found, expected) = (gradient(&found), gradient(&expected));
                    assert!(found[0].allclose(&expected[0], 1e-12, 1e-14, false), "gradient of {rows} x {n}");
                }
            }
        }
    }
}
