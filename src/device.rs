//! Which devices can this process compute on? One build serves CPU and GPU.

use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use std::sync::Once;
use tch::{Cuda, Device};

use crate::error::{Error, Result};
use crate::memory;

/// Loads libtorch's CUDA library if it lies next to the CPU library.
///
/// Called before any question about devices; later calls do nothing.
fn ready() {
    static READY: Once = Once::new();
    READY.call_once(load_cuda);
}

/// Tunes this process for fast sweeps and circuits.
///
/// These settings are global to the process, so the library leaves them alone. The `headscope` command and the notebook
/// kernel call this function when they start; call it from your own program if it owns its process. Without it, results
/// are the same (those of LAPACK up to rounding), but a sweep takes about an eighth longer and uses more memory than
/// its budget.
///
/// - glibc's allocator keeps up to 1 GiB of freed memory instead of returning it to the system (`mallopt`: `M_TOP_PAD`,
///   `M_MMAP_MAX`, `M_TRIM_THRESHOLD`). Activations are allocated and freed by the hundred megabytes, and the system
///   clears every page that it hands out again.
/// - MKL, if libtorch uses it, does not keep the buffers into which it packs matrices, one per shape, outside every
///   budget (`mkl_disable_fast_mm`).
/// - OpenBLAS, which provides headscope's LAPACK, computes on the calling thread (`openblas_set_num_threads(1)`; it has
///   no setting per thread). headscope works on several matrices at once instead, and nested threads would compete.
///
/// The number of libtorch's threads is unchanged: if headscope needs another number, it sets it for its own threads
/// only.
///
/// ```
/// headscope::device::tune_process();
/// ```
pub fn tune_process() {
    static TUNED: Once = Once::new();
    TUNED.call_once(|| {
        keep_memory();
        disable_fast_mm();
        // SAFETY: this is OpenBLAS's declaration of the function, which waits for its threads and sets an integer.
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
    // SAFETY: this is glibc's declaration of `mallopt`, which takes the allocator's lock to set a number. The three
    // parameters are `M_TOP_PAD`, `M_MMAP_MAX` and `M_TRIM_THRESHOLD` of malloc.h. The pad also makes glibc keep the 64
    // MiB that it reserves for each thread: it returns a reserve only if more than the pad would remain.
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
    // SAFETY: in a libtorch with MKL, the function of this name has this type; it sets an integer.
    unsafe {
        if let Ok(disable) = Library::this().get::<Disable>(b"mkl_serv_disable_fast_mm\0") {
            disable();
        }
    }
}

/// Loads the CUDA library, which registers itself. Without it, libtorch only knows the CPU.
fn load_cuda() {
    let Some(folder) = libtorch_folder() else { return };
    let library = folder.join("libtorch_cuda.so");
    if library.exists() {
        // SAFETY: loading runs libtorch's own initialisers, of the same version as the library already loaded next to
        // it. It is never unloaded.
        if let Ok(loaded) = unsafe { Library::open(Some(&library), RTLD_LAZY | RTLD_GLOBAL) } {
            std::mem::forget(loaded);
        }
    }
}

/// The folder from which this process loaded libtorch.
fn libtorch_folder() -> Option<PathBuf> {
    folder_of("libtorch_cpu.so", &std::fs::read_to_string("/proc/self/maps").ok()?)
}

/// The folder of a library, given text in the format of `/proc/PID/maps`. Each line ends in a path, the only field with
/// slashes; paths may contain spaces.
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

/// Parses the name of a device: `cpu`, `cuda` or `cuda:1`.
///
/// # Errors
/// If the name is unknown or the device is not available ([`Error::Argument`]).
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

/// The name of a device, as [`parse`] reads it.
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

/// Returns an error if the device is not available.
pub(crate) fn check(device: Device) -> Result<()> {
    let there = available();
    if there.contains(&device) {
        return Ok(());
    }
    let there: Vec<String> = there.into_iter().map(name).collect();
    Err(Error::argument("device", format!("one that is there: {}", there.join(", ")), name(device)))
}

/// Free memory of a device, in bytes. For the CPU: what the system reports as available, within the limits of this
/// process's control groups. For a GPU: what its driver reports. 1 GiB if neither is known.
pub(crate) fn free_memory(device: Device) -> usize {
    let free = match device {
        Device::Cpu => Some(memory::free()),
        Device::Cuda(number) => free_of_gpu(number),
        _ => None,
    };
    free.unwrap_or(memory::UNKNOWN)
}

/// Free memory according to the CUDA runtime that libtorch has loaded. Memory that libtorch caches counts as used.
fn free_of_gpu(number: usize) -> Option<usize> {
    use std::ffi::c_int;
    type Device = unsafe extern "C" fn(c_int) -> c_int;
    type Current = unsafe extern "C" fn(*mut c_int) -> c_int;
    type Free = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;
    let loaded = Library::this();
    // SAFETY: these are the CUDA runtime's declarations, and the pointers are to live variables of the types that it
    // fills. The current device, which is per thread, is restored.
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

    /// The process that runs the test has loaded libtorch.
    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_knows_its_libtorch() {
        assert!(Device::Cpu == available()[0] && libtorch_folder().is_some_and(|folder| folder.is_absolute()));
    }

    /// Tuning changes no result, even when many threads call it at once while others allocate and compute.
    #[test]
    fn tuning_is_done_once_and_changes_nothing() {
        let product = || {
            let x = tch::Tensor::arange(10_000, (tch::Kind::Double, Device::Cpu)).view([100, 100]);
            // Integers, so that the order of summation does not matter.
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

    /// A GPU reports its free memory, at most what it has; without a GPU, 1 GiB is assumed.
    #[test]
    fn free_memory_of_gpus() {
        for number in 0..2 {
            let there = available().contains(&Device::Cuda(number));
            let free = free_memory(Device::Cuda(number));
            assert!(if there { (1 << 20..1 << 40).contains(&free) } else { free == 1 << 30 }, "{number}: {free}");
        }
    }
}
