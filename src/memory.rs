//! How much memory is free.

use std::path::Path;

/// What counts as free where nothing says how much is.
pub(crate) const UNKNOWN: usize = 1 << 30;

/// Of a budget, what activations may take: a quarter is left for what products take for a moment, and for gaps in the heap.
pub(crate) fn usable(memory: usize) -> usize {
    memory - memory / 4
}

/// Bytes of the system's memory that are free: what the system says that it can give, within the limits of this process'
/// control groups.
pub(crate) fn free() -> usize {
    [free_of_system(), free_of_control_group()].into_iter().flatten().min().unwrap_or(UNKNOWN)
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
