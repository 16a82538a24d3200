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

/// Gives the heap's free pages back to the system when it is dropped, at the end of a computation that took much more than
/// what usually goes on: a tuned process (`tune_process`) would keep up to 1 GiB.
pub(crate) struct GiveBack;

impl Drop for GiveBack {
    fn drop(&mut self) {
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        {
            unsafe extern "C" {
                fn malloc_trim(pad: usize) -> std::ffi::c_int;
            }
            // SAFETY: this is glibc's declaration of `malloc_trim`, which takes each arena's lock and returns pages that no
            // allocation uses.
            unsafe { malloc_trim(0) };
        }
    }
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn resident() -> usize {
        // Exact, unlike the counters in `statm`, which lag.
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<usize>().unwrap() * 1024
    }

    /// `unsafe`: many threads allocate and write while memory is given back; nothing of theirs changes.
    #[test]
    fn what_is_free_goes_back_and_what_is_used_stays() {
        let work = |seed: u8| {
            let kept: Vec<Vec<u8>> = (0..64).map(|n| vec![seed ^ n; 40_000 + 977 * usize::from(n)]).collect();
            for round in 0..50 {
                drop(vec![round; 100_000]);
                drop(GiveBack);
            }
            kept.iter().enumerate().all(|(n, bytes)| bytes.iter().all(|byte| *byte == seed ^ n as u8))
        };
        let threads: Vec<_> = (0..4).map(|seed| std::thread::spawn(move || work(seed))).collect();
        assert!(threads.into_iter().all(|thread| thread.join().unwrap()));
        let blocks: Vec<Vec<u8>> = (0..2000).map(|_| vec![1; 100_000]).collect();
        // What lies above them in the heap: without it glibc would give them back by itself.
        let above = vec![1u8; 100_000];
        drop(blocks);
        let before = resident();
        drop(GiveBack);
        let after = resident();
        assert!(after + 100_000_000 < before, "{after} of {before} bytes are still there");
        assert!(above.iter().all(|byte| *byte == 1));
    }
}
