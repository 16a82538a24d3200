//! How many threads libtorch uses for what one thread of ours computes.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::sync::LazyLock;

use libloading::os::unix::Library;

/// Until it is dropped, also by a panic, libtorch computes with so many threads whatever this thread asks for. Other threads
/// keep their number, and so do those that are started meanwhile.
pub(crate) struct OwnThreads {
    openmp: c_int,
    mkl: c_int,
    /// It belongs to the thread that made it.
    here: PhantomData<*const ()>,
}

impl OwnThreads {
    pub(crate) fn set(n: i32) -> Self {
        // A thread's first question makes libtorch give it the number of the process, which would undo what is set here.
        let openmp = tch::get_num_threads();
        Self { openmp, mkl: set(n, n), here: PhantomData }
    }
}

impl Drop for OwnThreads {
    fn drop(&mut self) {
        set(self.openmp, self.mkl);
    }
}

/// The setters of OpenMP and of MKL that concern the calling thread alone.
struct Setters {
    openmp: unsafe extern "C" fn(c_int),
    /// Returns what was set before; 0 is the number of the process.
    mkl: Option<unsafe extern "C" fn(c_int) -> c_int>,
}

/// Sets both, and returns what MKL had. `tch::set_num_threads` would also set the number of the process, of which threads
/// take theirs when they first ask libtorch for something.
fn set(openmp: c_int, mkl: c_int) -> c_int {
    static SETTERS: LazyLock<Option<Setters>> = LazyLock::new(Setters::find);
    let Some(setters) = &*SETTERS else {
        tch::set_num_threads(openmp);
        return mkl;
    };
    // SAFETY: both are of the types that OpenMP and MKL declare, and set an integer of this thread.
    unsafe {
        (setters.openmp)(openmp);
        setters.mkl.map_or(mkl, |set| set(mkl))
    }
}

impl Setters {
    /// Those of the libraries that libtorch uses. Nothing where it has no OpenMP, or where the one that is found is not its.
    fn find() -> Option<Self> {
        let this = Library::this();
        // SAFETY: functions of the OpenMP and MKL interfaces, with the types that these declare; the libraries that hold them
        // are never unloaded, since libtorch needs them.
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

    /// The number is this thread's alone, also for threads that are started meanwhile, and is given back, innermost first.
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
