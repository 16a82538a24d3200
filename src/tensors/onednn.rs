//! Large float32 products on processors on which MKL, libtorch's first choice, leaves half of them idle.
//!
//! Of AVX-512, MKL makes use on Intel's processors only; oneDNN, which libtorch carries too, on all. Its sums run in another
//! order, so that results differ by rounding: a pass that must give libtorch's own bits does without. `HEADSCOPE_ONEDNN=0`
//! forbids it, and `1` asks for it on other processors too.

use std::sync::OnceLock;

use tch::{Device, Kind, TchError, Tensor};

/// Fewer rows or narrower matrices are not worth the way there.
const ROWS: i64 = 64;
const WIDTH: i64 = 256;

/// Whether oneDNN is the faster one here; of the kind of processor, not of a measurement, so that results don't change from
/// one run to the next.
fn is_faster() -> bool {
    static FASTER: OnceLock<bool> = OnceLock::new();
    let asked = || std::env::var("HEADSCOPE_ONEDNN").ok();
    *FASTER.get_or_init(|| tch::utils::has_mkldnn() && asked().map_or_else(wide_and_not_intels, |asked| asked == "1"))
}

#[cfg(target_arch = "x86_64")]
fn wide_and_not_intels() -> bool {
    use std::arch::x86_64::__cpuid;
    let vendor = __cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat();
    name != b"GenuineIntel" && std::arch::is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn wide_and_not_intels() -> bool {
    false
}

/// Whether `x w` should go that way: `x` `[.., in]`, `w` `[in, out]`.
pub(crate) fn serves(x: &Tensor, w: &Tensor) -> bool {
    let (rows, size) = (x.size().iter().rev().skip(1).product::<i64>(), w.size());
    serves_type(x.kind(), x.device())
        && rows >= ROWS
        && size.len() == 2
        && size.iter().all(|&n| n >= WIDTH)
        && !(x.requires_grad() || w.requires_grad())
}

/// `x w + b`.
pub(crate) fn product(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor, TchError> {
    let product = {
        let x = x.f_to_mkldnn(None)?;
        x.f_mkldnn_linear(&w.tr(), b)?
    };
    product.f_to_dense(None, false)
}

/// Whether products of this type on this device go that way, where they are large enough.
pub(crate) fn serves_type(kind: Kind, device: Device) -> bool {
    is_faster() && (kind, device) == (Kind::Float, Device::Cpu)
}

/// The same matrix, laid out as [`product`] reads it where it serves.
pub(crate) fn laid_out(w: Tensor) -> Tensor {
    if is_turned(&w.size(), w.kind()) { w.tr().contiguous().tr() } else { w }
}

/// Room for a matrix `[in, out]`, laid out as by [`laid_out`].
pub(crate) fn room_for(size: [i64; 2], kind: Kind, device: Device) -> Result<Tensor, TchError> {
    let [rows, columns] = size;
    match is_turned(&size, kind) {
        true => Ok(Tensor::f_empty([columns, rows], (kind, device))?.tr()),
        false => Tensor::f_empty(size, (kind, device)),
    }
}

/// Whether matrices of this size are laid out column by column.
fn is_turned(size: &[i64], kind: Kind) -> bool {
    kind == Kind::Float && size.iter().all(|&n| n >= WIDTH) && is_faster()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Both libraries give the same product, of either layout, with and without a bias.
    #[test]
    fn both_products_agree() {
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (x, w, b) = (random(&[5, 20, 300]), random(&[300, 400]), random(&[400]));
        for w in [w.shallow_clone(), laid_out(w.shallow_clone()), random(&[400, 300]).tr()] {
            for b in [None, Some(&b)] {
                let expected = x.linear(&w.tr(), b);
                let found = product(&x, &w, b).unwrap();
                assert_eq!(found.size(), [5, 20, 400]);
                assert!((found - expected).abs().max().double_value(&[]) < 1e-4);
            }
        }
    }

    /// Room is laid out as a matrix that is turned later.
    #[test]
    fn room_is_laid_out() {
        for (size, kind) in [([300, 256], Kind::Float), ([300, 255], Kind::Float), ([300, 256], Kind::Double)] {
            let room = room_for(size, kind, Device::Cpu).unwrap();
            let turned = laid_out(Tensor::zeros(size, (kind, Device::Cpu)));
            assert_eq!((room.size(), room.stride()), (turned.size(), turned.stride()));
        }
    }

    /// Whatever gradients go through, is narrow, few, or of another type, goes libtorch's usual way.
    #[test]
    fn what_is_not_served() {
        let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
        let (x, w) = (zeros(&[64, 256], Kind::Float), zeros(&[256, 256], Kind::Float));
        assert_eq!(serves(&x, &w), is_faster());
        assert!(!serves(&x.narrow(0, 0, 63), &w));
        assert!(!serves(&x, &w.narrow(1, 0, 255)));
        assert!(!serves(&zeros(&[64, 256], Kind::Double), &zeros(&[256, 256], Kind::Double)));
        assert!(!serves(&x, &w.unsqueeze(0)));
        assert!(!serves(&x, &w.set_requires_grad(true)));
    }
}
