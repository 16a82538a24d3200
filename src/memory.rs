//! How much memory is free?

use std::path::Path;

/// What is assumed to be free if the system does not say.
pub(crate) const UNKNOWN: usize = 1 << 30;

/// The part of a budget that activations may use. A quarter is left for temporaries of matrix products and for heap
/// fragmentation.
pub(crate) fn usable(memory: usize) -> usize {
    memory - memory / 4
}

/// Free system memory in bytes: what the system reports as available, within the limits of this process's control
/// groups.
pub(crate) fn free() -> usize {
    [free_of_system(), free_of_control_group()].into_iter().flatten().min().unwrap_or(UNKNOWN)
}

fn free_of_system() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok().map(|kib: usize| kib * 1024)
}

/// What is left below the limits of the control group (version 2) that a container or a cluster job runs in.
fn free_of_control_group() -> Option<usize> {
    let group = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = group.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mut free: Option<usize> = None;
    for folder in Path::new(path.trim_start_matches('/')).ancestors() {
        let number = |name: &str| {
            let text = std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(folder).join(name)).ok()?;
            text.trim().parse::<usize>().ok() // `max` if there is no limit
        };
        if let (Some(most), Some(taken)) = (number("memory.max"), number("memory.current")) {
            free = Some(free.unwrap_or(usize::MAX).min(most.saturating_sub(taken)));
        }
    }
    free
}
