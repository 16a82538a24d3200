//! Devices: one build serves CPU and GPU.

use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use std::sync::Once;
use tch::{Cuda, Device};

use crate::error::{Error, Result};
use crate::memory;

/// Makes libtorch's CUDA half known, where it lies beside the CPU half.
///
/// Called before anything asks for a device; later calls do nothing.
fn ready() {
    static READY: Once = Once::new();
    READY.call_once(load_cuda);
}

/// Sets what makes sweeps and circuits fast and is the whole process's, so that the library leaves it alone: the `headscope`
/// command and the notebooks' kernel call this as they start, and so may a program of yours whose process it is. Without it
/// results are the same (of LAPACK's up to rounding), a sweep takes about an eighth longer, and more memory than its budget.
///
/// - glibc's allocator keeps memory that is freed, up to 1 GiB, instead of returning it to the system (`mallopt`:
///   `M_TOP_PAD`, `M_MMAP_MAX`, `M_TRIM_THRESHOLD`). Activations come and go by the hundred megabytes, and what the system
///   gives out again it clears first.
/// - MKL, where libtorch has it, does not keep the memory into which it packs matrices, a block for each shape, outside
///   every budget (`mkl_disable_fast_mm`).
/// - OpenBLAS, of which headscope uses LAPACK, computes on the calling thread (`openblas_set_num_threads(1)`; it has no
///   setting for a thread alone). headscope works on several matrices at once instead, and threads of threads fight.
///
/// The number of libtorch's threads stays as it is: where headscope needs another it sets that of its own threads.
///
/// ```
/// headscope::device::tune_process();
/// ```
pub fn tune_process() {
    static TUNED: Once = Once::new();
    TUNED.call_once(|| {
        keep_memory();
        disable_fast_mm();
        // SAFETY: OpenBLAS declares this function so; it waits for its threads and sets an integer.
        unsafe { openblas_set_num_threads(1) };
    });
}

unsafe extern "C" {
    fn openblas_set_num_threads(n: std::ffi::c_int);
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_memory() {
    const TRIM_THRESHOLD: std::ffi::c_int = -1;
    const MMAP_MAX: std::ffi::c_int = -4;
    const TOP_PAD: std::ffi::c_int = -2;
    unsafe extern "C" {
        fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
    }
    // SAFETY: glibc declares mallopt so, and it takes the allocator's lock to set a number; these three are its own
    // `M_TOP_PAD`, `M_MMAP_MAX` and `M_TRIM_THRESHOLD` of malloc.h. What glibc sets aside for each thread, 64 MiB at a time,
    // it keeps where more than the pad is to be left over.
    unsafe {
        mallopt(TOP_PAD, 1 << 27);
        mallopt(MMAP_MAX, 0);
        mallopt(TRIM_THRESHOLD, 1 << 30);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_memory() {}

fn disable_fast_mm() {
    type Disable = unsafe extern "C" fn() -> std::ffi::c_int;
    // SAFETY: where libtorch carries MKL, its function of this name has this type; it sets an integer.
    unsafe {
        if let Ok(disable) = Library::this().get::<Disable>(b"mkl_serv_disable_fast_mm\0") {
            disable();
        }
    }
}

/// The CUDA half registers itself when it is loaded; without it libtorch knows the CPU only.
fn load_cuda() {
    let Some(folder) = libtorch_folder() else { return };
    let library = folder.join("libtorch_cuda.so");
    if library.exists() {
        // SAFETY: loading runs libtorch's own initialisers, of the version that lies beside the half already loaded; it is
        // never unloaded.
        if let Ok(loaded) = unsafe { Library::open(Some(&library), RTLD_LAZY | RTLD_GLOBAL) } {
            std::mem::forget(loaded);
        }
    }
}

/// The folder from which this process loaded libtorch.
fn libtorch_folder() -> Option<PathBuf> {
    folder_of("libtorch_cpu.so", &std::fs::read_to_string("/proc/self/maps").ok()?)
}

/// The folder of a library in the format of `/proc/PID/maps`: a line ends in a path, which alone holds slashes, and may hold
/// spaces.
fn folder_of(library: &str, maps: &str) -> Option<PathBuf> {
    let paths = maps.lines().filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])));
    paths.into_iter().find(|path| path.file_name().is_some_and(|name| name == library))?.parent().map(Path::to_owned)
}

/// The devices that this process can compute on, the CPU first.
///
/// ```
/// assert_eq!(headscope::device::available()[0], tch::Device::Cpu);
/// ```
pub fn available() -> Vec<Device> {
    ready();
    let gpus = if Cuda::is_available() { Cuda::device_count() } else { 0 };
    std::iter::once(Device::Cpu).chain((0..usize::try_from(gpus).unwrap_or(0)).map(Device::Cuda)).collect()
}

/// A device by name: `cpu`, `cuda`, `cuda:1`.
///
/// # Errors
/// [`Error::Argument`] where the name is another one, or the device is not there.
pub fn parse(name: &str) -> Result<Device> {
    let found = match name.split_once(':') {
        None if name == "cpu" => Some(Device::Cpu),
        None if name == "cuda" => Some(Device::Cuda(0)),
        Some(("cuda", index)) => index.parse().ok().map(Device::Cuda),
        _ => None,
    };
    let device = found.ok_or_else(|| Error::argument("device", "cpu, cuda or cuda:N", name))?;
    check(device)?;
    Ok(device)
}

/// A device's name, as [`parse`] reads it.
///
/// ```
/// use headscope::device;
/// assert_eq!(device::name(tch::Device::Cuda(1)), "cuda:1");
/// assert_eq!(device::parse(&device::name(tch::Device::Cpu))?, tch::Device::Cpu);
/// # Ok::<(), headscope::Error>(())
/// ```
pub fn name(device: Device) -> String {
    match device {
        Device::Cpu => "cpu".to_owned(),
        Device::Cuda(number) => format!("cuda:{number}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Fails where the device is not there.
pub(crate) fn check(device: Device) -> Result<()> {
    let there = available();
    if there.contains(&device) {
        return Ok(());
    }
    let there: Vec<String> = there.into_iter().map(name).collect();
    Err(Error::argument("device", format!("one that is there: {}", there.join(", ")), name(device)))
}

/// Bytes of memory that are free on a device: of the CPU what the system says that it can give, within the limits of this
/// process' control groups; of a GPU what its driver says. 1 GiB where neither is known.
pub(crate) fn free_memory(device: Device) -> usize {
    let free = match device {
        Device::Cpu => Some(memory::free()),
        Device::Cuda(number) => free_of_gpu(number),
        _ => None,
    };
    free.unwrap_or(memory::UNKNOWN)
}

/// Of the CUDA runtime that libtorch has loaded. Memory that libtorch keeps for later counts as taken.
fn free_of_gpu(number: usize) -> Option<usize> {
    use std::ffi::c_int;
    type Device = unsafe extern "C" fn(c_int) -> c_int;
    type Current = unsafe extern "C" fn(*mut c_int) -> c_int;
    type Free = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;
    let loaded = Library::this();
    // SAFETY: the CUDA runtime declares these functions so, and the pointers are to live variables of the types that it fills.
    // The device that was chosen, which is a thread's own, is chosen again.
    unsafe {
        let set = loaded.get::<Device>(b"cudaSetDevice\0").ok()?;
        let current = loaded.get::<Current>(b"cudaGetDevice\0").ok()?;
        let info = loaded.get::<Free>(b"cudaMemGetInfo\0").ok()?;
        let (mut before, mut free, mut total) = (0, 0, 0);
        if current(&raw mut before) != 0 || set(c_int::try_from(number).ok()?) != 0 {
            return None;
        }
        let known = info(&raw mut free, &raw mut total) == 0;
        set(before);
        known.then_some(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_on_paths_with_spaces() {
        let maps = "\
7f01d0a00000-7f01d0b00000 r-xp 00000000 fe:00 11   /usr/lib/libc.so.6
7f01d0c00000-7f01d0d00000 rw-p 00000000 00:00 0    [heap]
7f01d0e00000-7f01d0f00000 rw-p 00000000 00:00 0
7f01d1000000-7f01d1100000 r--p 00000000 fe:00 12   /data/not libtorch_cpu.so.bak/lib
7f01d2000000-7f01d2100000 r--p 00000000 fe:00 13                 /home/a user/my  torch/lib/libtorch_cpu.so";
        assert_eq!(folder_of("libtorch_cpu.so", maps), Some(PathBuf::from("/home/a user/my  torch/lib")));
        assert_eq!(folder_of("libc.so.6", maps), Some(PathBuf::from("/usr/lib")));
        assert_eq!(folder_of("libtorch_cuda.so", maps), None);
    }

    /// The process in which the test runs has loaded libtorch.
    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_knows_its_libtorch() {
        assert!(Device::Cpu == available()[0] && libtorch_folder().is_some_and(|folder| folder.is_absolute()));
    }

    /// Called by many threads at once, while others allocate and compute, it changes no result.
    #[test]
    fn tuning_is_done_once_and_changes_nothing() {
        let product = || {
            let x = tch::Tensor::arange(10_000, (tch::Kind::Double, Device::Cpu)).view([100, 100]);
            // Whole numbers: the order of summation does not matter.
            x.matmul(&x).sum(tch::Kind::Double).double_value(&[])
        };
        let before = product();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    tune_process();
                    assert_eq!(product(), before);
                });
            }
        });
        assert_eq!(product(), before);
    }

    /// A GPU says what it has free, up to what it has; where there is none, a GiB is assumed.
    #[test]
    fn free_memory_of_gpus() {
        for number in 0..2 {
            let there = available().contains(&Device::Cuda(number));
            let free = free_memory(Device::Cuda(number));
            assert!(if there { (1 << 20..1 << 40).contains(&free) } else { free == 1 << 30 }, "{number}: {free}");
        }
    }
}
