//! How can several threads read tensors at once, although tensors are not `Sync`?

use std::collections::BTreeMap;
use std::sync::OnceLock;

use tch::Tensor;

/// A type whose values consist only of tensors and of [`Sync`] data.
///
/// [`readable!`](super::readable) implements it for a struct and lets the compiler check every field.
///
/// # Safety
/// Several threads may hold a `&Self` at once, as long as none of them writes to the tensors in it. In particular, it
/// contains no `Cell`, `RefCell` or `OnceCell`.
pub(crate) unsafe trait Readable {}

// SAFETY: a `Tensor` is a pointer to a reference-counted `at::TensorImpl`. Its reference count is atomic, and so is
// that of its storage. libtorch's out-of-place operators only read their arguments, and libtorch documents that
// concurrent reads are safe while writes need locking. tch's error state and libtorch's modes (`no_grad`) are
// thread-local. tch withholds `Sync` because the same `&Tensor` also allows writes (`set_requires_grad`, `out`
// arguments, in-place operations on a shallow clone); the contract of `Shared::new` excludes these.
unsafe impl Readable for Tensor {}

// SAFETY: references, containers and locks hand out `&T`, and their own state is plain or atomic data. Other threads
// see a `OnceLock` that one thread fills either empty or complete; `T` is `Send` because another thread may drop it.
unsafe impl<T: Readable + ?Sized> Readable for &T {}
unsafe impl<T: Readable> Readable for Option<T> {}
unsafe impl<T: Readable> Readable for Vec<T> {}
unsafe impl<T: Readable + Send> Readable for OnceLock<T> {}
unsafe impl<K: Sync, T: Readable> Readable for BTreeMap<K, T> {}
unsafe impl<A: Readable, B: Readable> Readable for (A, B) {}

/// Implements [`Readable`] for a struct, given the names of all its fields: those with tensors first and, after the
/// semicolon, those that are [`Sync`]. A field that is neither, or that is left out, does not compile.
macro_rules! readable {
    ($name:ident $(<$life:lifetime>)? { $($held:ident),*; $($plain:ident),* }) => {
        // SAFETY: each field is `Readable` or `Sync`, which the compiler checks in the function below.
        unsafe impl $(<$life>)? $crate::workers::Readable for $name $(<$life>)? {}
        const _: () = {
            #[allow(dead_code)]
            fn fields $(<$life>)? ($name { $($held,)* $($plain),* }: &$name $(<$life>)?) {
                fn readable<T: $crate::workers::Readable>(_: &T) {}
                fn sync<T: Sync>(_: &T) {}
                $(readable($held);)*
                $(sync($plain);)*
            }
        };
    };
}
pub(crate) use readable;

/// A value that several threads read at once.
pub(crate) struct Shared<T>(T);

// SAFETY: `T` may be read by several threads at once, and the caller of `new` has promised that they only read.
unsafe impl<T: Readable> Sync for Shared<T> {}

impl<T: Readable> Shared<T> {
    /// Shares `of`.
    ///
    /// # Safety
    /// While the value is shared, no thread may write to a tensor in it or to one that shares its memory: no in-place
    /// operation, no `out` argument, no change of `requires_grad`, no gradients.
    pub(crate) unsafe fn new(of: T) -> Self {
        Self(of)
    }

    pub(crate) fn get(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    struct Holder {
        tensors: BTreeMap<usize, Vec<Tensor>>,
        made: OnceLock<Tensor>,
        factor: f64,
    }
    readable!(Holder { tensors, made; factor });

    /// Many threads clone, read and drop the same tensors, and race to fill the same cell.
    #[test]
    fn many_threads_read_and_fill_one_value() {
        let tensors = (0..4).map(|i| (i, vec![Tensor::full([8, 8], i as f64, (Kind::Double, Device::Cpu))]));
        let holder = Holder { tensors: tensors.collect(), made: OnceLock::new(), factor: 2.0 };
        // SAFETY: `read` below writes to none of the tensors.
        let shared = unsafe { Shared::new(&holder) };
        let read = || {
            let holder = shared.get();
            let sum = |all: &Vec<Tensor>| {
                all.iter().map(|x| x.shallow_clone().sum(Kind::Double).double_value(&[])).sum::<f64>()
            };
            let made = holder.made.get_or_init(|| holder.tensors[&3][0].matmul(&holder.tensors[&2][0]));
            holder.factor * holder.tensors.values().map(sum).sum::<f64>() + made.double_value(&[0, 0])
        };
        let expected = 2.0 * 64.0 * (0.0 + 1.0 + 2.0 + 3.0) + 8.0 * 3.0 * 2.0;
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| (0..100).all(|_| tch::no_grad(read) == expected))).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
        });
    }
}
