//! Devices: one build serves CPU and GPU.

use std::path::Path;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY};
use std::sync::Once;
use tch::{Cuda, Device};

use crate::error::{Error, Result};

static READY: Once = Once::new();

/// Makes libtorch's CUDA half known, where it lies beside the CPU half, keeps LAPACK on one thread, and memory at hand.
///
/// Called before anything asks for a device; later calls do nothing.
pub(crate) fn ready() {
    READY.call_once(|| {
        load_cuda();
        keep_memory();
        // SAFETY: sets an integer inside OpenBLAS. Its threads would fight with libtorch's; headscope works on several
        // matrices at once instead.
        unsafe { openblas_set_num_threads(1) };
    });
}

unsafe extern "C" {
    fn openblas_set_num_threads(n: std::ffi::c_int);
}

/// Activations come and go by the hundred megabytes: memory given back to the system each time would have to be cleared
/// anew, which costs a sweep an eighth of its time. What glibc sets aside for each thread, 64 MiB at a time, it keeps where
/// more than that is to be left over.
fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        const TRIM_THRESHOLD: std::ffi::c_int = -1;
        const MMAP_MAX: std::ffi::c_int = -4;
        const TOP_PAD: std::ffi::c_int = -2;
        unsafe extern "C" {
            fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
        }
        // SAFETY: sets three numbers inside the allocator.
        unsafe {
            mallopt(TOP_PAD, 1 << 27);
            mallopt(MMAP_MAX, 0);
            mallopt(TRIM_THRESHOLD, 1 << 30);
        }
    }
    // MKL would keep what its products have packed matrices into, for every shape its own, beside any budget.
    type Forget = unsafe extern "C" fn() -> std::ffi::c_int;
    // SAFETY: where libtorch carries MKL, its function of this name has this type; it sets an integer.
    unsafe {
        if let Ok(forget) = Library::this().get::<Forget>(b"mkl_serv_disable_fast_mm\0") {
            forget();
        }
    }
}

/// The CUDA half registers itself when it is loaded; without it libtorch knows the CPU only.
fn load_cuda() {
    let Some(folder) = libtorch_folder() else { return };
    let library = folder.join("libtorch_cuda.so");
    if library.exists() {
        // SAFETY: libtorch's own library, of the version that lies beside the half already loaded.
        if let Ok(loaded) = unsafe { Library::open(Some(&library), RTLD_LAZY | RTLD_GLOBAL) } {
            std::mem::forget(loaded);
        }
    }
}

/// The folder from which this process loaded libtorch.
fn libtorch_folder() -> Option<std::path::PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps
        .lines()
        .find_map(|line| line.split_whitespace().nth(5).filter(|path| path.ends_with("/libtorch_cpu.so")))?;
    Path::new(path).parent().map(Path::to_owned)
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

/// Fails where the device is not there.
pub(crate) fn check(device: Device) -> Result<()> {
    let there = available();
    if there.contains(&device) {
        return Ok(());
    }
    Err(Error::argument("device", format!("one of {there:?}"), format!("{device:?}")))
}

/// Of a budget, what activations may take: a quarter is left for what products take for a moment, and for gaps in the heap.
pub(crate) fn usable(memory: usize) -> usize {
    memory - memory / 4
}

/// Bytes of memory that are free on a device: of the CPU what the system says that it can give, within the limits of this
/// process' control groups; of a GPU what its driver says. 1 GiB where neither is known.
pub(crate) fn free_memory(device: Device) -> usize {
    let free = match device {
        Device::Cpu => [free_of_system(), free_of_control_group()].into_iter().flatten().min(),
        Device::Cuda(number) => free_of_gpu(number),
        _ => None,
    };
    free.unwrap_or(1 << 30)
}

fn free_of_system() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok().map(|kib: usize| kib * 1024)
}

/// What is left below the limit of the group in which a container or a job of a cluster runs (version 2).
fn free_of_control_group() -> Option<usize> {
    let group = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = group.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mut free: Option<usize> = None;
    for folder in Path::new(path.trim_start_matches('/')).ancestors() {
        let number = |name: &str| {
            let text = std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(folder).join(name)).ok()?;
            text.trim().parse::<usize>().ok() // `max` where there is no limit
        };
        if let (Some(most), Some(taken)) = (number("memory.max"), number("memory.current")) {
            free = Some(free.unwrap_or(usize::MAX).min(most.saturating_sub(taken)));
        }
    }
    free
}

/// Of the CUDA runtime that libtorch has loaded. Memory that libtorch keeps for later counts as taken.
fn free_of_gpu(number: usize) -> Option<usize> {
    use std::ffi::c_int;
    type Device = unsafe extern "C" fn(c_int) -> c_int;
    type Current = unsafe extern "C" fn(*mut c_int) -> c_int;
    type Free = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;
    let loaded = Library::this();
    // SAFETY: the CUDA runtime's own functions, with its signatures; the device that was chosen is chosen again.
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
