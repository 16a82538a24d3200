//! How is a large float32 product computed fast where MKL, libtorch's default library, leaves half of a processor idle?
//!
//! MKL uses AVX-512 on Intel's processors only; oneDNN, which libtorch also contains, uses it on all. It sums in a different
//! order, so results differ by rounding: a pass that must reproduce libtorch's own bits does without it. `HEADSCOPE_ONEDNN=0`
//! turns it off, and `1` turns it on for other processors too.

use std::sync::OnceLock;

use tch::{Device, Kind, TchError, Tensor};

/// With fewer rows or narrower matrices, converting the operands costs more than it gains.
const ROWS: i64 = 64;
const WIDTH: i64 = 256;

/// Whether oneDNN is faster here. The kind of processor decides, not a measurement, so that results do not change from one run
/// to the next.
fn is_faster() -> bool {
    static FASTER: OnceLock<bool> = OnceLock::new();
    let asked = || std::env::var("HEADSCOPE_ONEDNN").ok();
    *FASTER.get_or_init(|| {
        tch::utils::has_mkldnn() && asked().map_or_else(has_avx512_and_is_not_intel, |asked| asked == "1")
    })
}

#[cfg(target_arch = "x86_64")]
fn has_avx512_and_is_not_intel() -> bool {
    use std::arch::x86_64::__cpuid;
    let vendor = __cpuid(0);
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat();
    name != b"GenuineIntel" && std::arch::is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx512_and_is_not_intel() -> bool {
    false
}

/// Whether oneDNN should compute `x w`, with `x` of `[.., in]` and `w` of `[in, out]`.
pub(crate) fn serves(x: &Tensor, w: &Tensor) -> bool {
    let (rows, size) = (x.size().iter().rev().skip(1).product::<i64>(), w.size());
    serves_type(x.kind(), x.device())
        && rows >= ROWS
        && size.len() == 2
        && size.iter().all(|&n| n >= WIDTH)
        && !(x.requires_grad() || w.requires_grad())
}

/// `x w + b` by oneDNN.
pub(crate) fn product(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor, TchError> {
    let product = {
        let x = x.f_to_mkldnn(None)?;
        x.f_mkldnn_linear(&w.tr(), b)?
    };
    product.f_to_dense(None, false)
}

/// Whether oneDNN computes large products of this type on this device.
pub(crate) fn serves_type(kind: Kind, device: Device) -> bool {
    is_faster() && (kind, device) == (Kind::Float, Device::Cpu)
}

/// The same matrix, in the memory layout that [`product`] reads fastest, if oneDNN serves it.
pub(crate) fn laid_out(w: Tensor) -> Tensor {
    if is_turned(&w.size(), w.kind()) { w.tr().contiguous().tr() } else { w }
}

/// Uninitialised memory for a matrix `[in, out]`, in the layout that [`laid_out`] gives.
pub(crate) fn room_for(size: [i64; 2], kind: Kind, device: Device) -> Result<Tensor, TchError> {
    let [rows, columns] = size;
    match is_turned(&size, kind) {
        true => Ok(Tensor::f_empty([columns, rows], (kind, device))?.tr()),
        false => Tensor::f_empty(size, (kind, device)),
    }
}

/// Whether matrices of this size are stored column by column.
fn is_turned(size: &[i64], kind: Kind) -> bool {
    kind == Kind::Float && size.iter().all(|&n| n >= WIDTH) && is_faster()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

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

    /// Memory has the layout of a matrix that is laid out later.
    #[test]
    fn room_is_laid_out() {
        for (size, kind) in [([300, 256], Kind::Float), ([300, 255], Kind::Float), ([300, 256], Kind::Double)] {
            let room = room_for(size, kind, Device::Cpu).unwrap();
            let turned = laid_out(Tensor::zeros(size, (kind, Device::Cpu)));
            assert_eq!((room.size(), room.stride()), (turned.size(), turned.stride()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        /// Served are products of at least 64 rows with a single float32 matrix of at least 256 x 256 through which no gradient
        /// flows; a linear layer gives the same either way.
        #[test]
        fn what_is_served(
            rows in 32i64..96, inner in 192i64..320, columns in 192i64..320,
            double in any::<bool>(), stacked in any::<bool>(), gradient in any::<bool>(), bias in any::<bool>(),
        ) {
            let of = (if double { Kind::Double } else { Kind::Float }, Device::Cpu);
            let (x, w) = (Tensor::randn([1, rows, inner], of), Tensor::randn([inner, columns], of));
            let w = if stacked { w.unsqueeze(0) } else { w }.set_requires_grad(gradient);
            let listed = rows >= 64 && inner >= 256 && columns >= 256 && !double && !stacked && !gradient;
            prop_assert_eq!(serves(&x, &w), listed && is_faster());
            if listed {
                let b = bias.then(|| Tensor::randn([columns], of));
                let apart = product(&x, &w, b.as_ref()).unwrap() - x.linear(&w.tr(), b.as_ref());
                // Both round sums of up to 320 terms of unit variance: see tests/common/tolerance.rs.
                prop_assert!(apart.abs().max().double_value(&[]) < 1e-4);
            }
        }
    }
}
