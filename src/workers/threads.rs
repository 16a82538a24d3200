//! How many threads does libtorch use for one of our threads?

use std::ffi::c_int;
use std::marker::PhantomData;
use std::sync::LazyLock;

use libloading::os::unix::Library;

/// Until this is dropped (by a panic, too), libtorch uses the given number of threads for all that the current thread
/// computes. Other threads keep their number, including those started in the meantime.
pub(crate) struct OwnThreads {
    openmp: c_int,
    mkl: c_int,
    /// Makes the type `!Send`: it belongs to the thread that created it.
    here: PhantomData<*const ()>,
}

impl OwnThreads {
    pub(crate) fn set(n: i32) -> Self {
        // The first query from a thread makes libtorch apply the process-wide number, which would undo what is set
        // here.
        let openmp = tch::get_num_threads();
        Self { openmp, mkl: set(n, n), here: PhantomData }
    }
}

impl Drop for OwnThreads {
    fn drop(&mut self) {
        set(self.openmp, self.mkl);
    }
}

/// The setters of OpenMP and MKL that affect only the calling thread.
struct Setters {
    openmp: unsafe extern "C" fn(c_int),
    /// Returns the previous value; 0 stands for the process-wide number.
    mkl: Option<unsafe extern "C" fn(c_int) -> c_int>,
}

/// Sets both and returns MKL's previous value. `tch::set_num_threads` would also change the process-wide number, which
/// threads adopt on their first query to libtorch.
fn set(openmp: c_int, mkl: c_int) -> c_int {
    static SETTERS: LazyLock<Option<Setters>> = LazyLock::new(Setters::find);
    let Some(setters) = &*SETTERS else {
        tch::set_num_threads(openmp);
        return mkl;
    };
    // SAFETY: both have the types that OpenMP and MKL declare, and set an integer of this thread.
    unsafe {
        (setters.openmp)(openmp);
        setters.mkl.map_or(mkl, |set| set(mkl))
    }
}

impl Setters {
    /// Finds the setters in the libraries that libtorch uses. Returns `None` if libtorch has no OpenMP, or if the
    /// OpenMP found is not the one that it uses.
    fn find() -> Option<Self> {
        let this = Library::this();
        // SAFETY: these functions of the OpenMP and MKL interfaces have the declared types, and their libraries are
        // never unloaded because libtorch needs them.
        let (openmp, mkl) = unsafe {
            let openmp = this.get::<unsafe extern "C" fn(c_int)>(b"omp_set_num_threads\0").ok()?;
            let mkl = this.get::<unsafe extern "C" fn(c_int) -> c_int>(b"MKL_Set_Num_Threads_Local\0");
            (*openmp, mkl.ok().map(|mkl| *mkl))
        };
        let before = tch::get_num_threads();
        // SAFETY: as above.
        let seen = |n: c_int| unsafe {
            openmp(n);
            tch::get_num_threads() == n
        };
        (seen(before + 1) && seen(before)).then_some(Self { openmp, mkl })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn elsewhere() -> i32 {
        std::thread::spawn(tch::get_num_threads).join().unwrap()
    }

    /// The number applies to one thread only, not to threads started in the meantime, and is restored, innermost first.
    #[test]
    fn the_number_is_of_one_thread_and_given_back() {
        assert!(Setters::find().is_some(), "libtorch's OpenMP was not found");
        let (before, others) = (tch::get_num_threads(), elsewhere());
        for n in [1, 3, 7] {
            let _outer = OwnThreads::set(n);
            assert_eq!((tch::get_num_threads(), elsewhere()), (n, others));
            {
                let _inner = OwnThreads::set(n + 1);
                assert_eq!((tch::get_num_threads(), elsewhere()), (n + 1, others));
            }
            assert_eq!(tch::get_num_threads(), n);
        }
        assert_eq!((tch::get_num_threads(), elsewhere()), (before, others));
        let panics = || {
            let _own = OwnThreads::set(5);
            panic!("on purpose")
        };
        assert!(std::panic::catch_unwind(panics).is_err());
        assert_eq!((tch::get_num_threads(), elsewhere()), (before, others));
    }
}
