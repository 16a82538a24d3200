//! How is work spread over the threads of this process?
//!
//! With many independent jobs, it is faster to run several at once, each on a thread of its own, than to run one after
//! another on all threads: no thread has to wait at the end of every product.

mod shared;
mod threads;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

pub(crate) use shared::{Readable, Shared, readable};
use threads::OwnThreads;

use crate::error::{Error, Result};

/// Runs `work` with libtorch limited to one thread, so that the result does not depend on the number of threads.
pub(crate) fn on_one_thread<R>(work: impl FnOnce() -> R) -> R {
    let _own = OwnThreads::set(1);
    work()
}

/// Runs `n` jobs on up to `threads` threads, which share libtorch's own, and passes each result to `done` on the
/// calling thread, in the order in which jobs finish. After `stop` is set or a job fails, no new job starts, and the
/// running ones are finished. Returns the number of jobs done.
pub(crate) fn spread<R: Send>(
    n: usize,
    threads: usize,
    stop: Option<&AtomicBool>,
    each: impl Fn(usize) -> Result<R> + Sync,
    mut done: impl FnMut(usize, R) -> Result<()>,
) -> Result<usize> {
    let goes_on = || !stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
    let threads = threads.min(n);
    if threads <= 1 {
        for job in 0..n {
            if !goes_on() {
                return Ok(job);
            }
            done(job, each(job)?)?;
        }
        return Ok(n);
    }
    let own = (tch::get_num_threads() / threads as i32).max(1);
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (send, receive) = mpsc::sync_channel(threads); // so that no worker runs far ahead of `done`
    let worker = |send: mpsc::SyncSender<(usize, Result<R>)>| {
        let _own = OwnThreads::set(own);
        while goes_on() && !failed.load(Ordering::Relaxed) {
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= n || send.send((job, each(job))).is_err() {
                break;
            }
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn({
                    let send = send.clone();
                    move || worker(send)
                })
            })
            .collect();
        drop(send);
        let mut result = Ok(0);
        for (job, found) in receive {
            let found = found.and_then(|found| done(job, found));
            result = match (result, found) {
                (Ok(finished), Ok(())) => Ok(finished + 1),
                (Ok(_), Err(reason)) => Err(reason),
                (Err(reason), _) => Err(reason),
            };
            failed.fetch_or(result.is_err(), Ordering::Relaxed);
        }
        // A panic ends a thread silently, so look for it here.
        let whole = workers.into_iter().map(|worker| worker.join().is_ok()).fold(true, |all, one| all & one);
        if whole { result } else { result.and(Err(Error::argument("work", "jobs that can be done", "a panic"))) }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    /// Every job runs once and is handed over, for any number of threads, and libtorch's number of threads is restored.
    #[test]
    fn every_job_is_done_once() {
        for threads in [0, 1, 3, 100] {
            let (before, mut found) = (tch::get_num_threads(), vec![0; 20]);
            let each = |job: usize| Ok(job * job);
            let done = spread(20, threads, None, each, |job, square| {
                found[job] += square;
                Ok(())
            });
            assert_eq!(done.unwrap(), 20);
            assert!(found.iter().enumerate().all(|(job, square)| *square == job * job));
            assert_eq!(tch::get_num_threads(), before);
        }
    }

    /// A failure in a job or in `done` stops the work and returns its error; jobs already running are handed over.
    #[test]
    fn a_failure_ends_the_work() {
        let fail = || Error::argument("job", "another", 5);
        for threads in [1, 4] {
            let each = |job: usize| if job == 5 { Err(fail()) } else { Ok(()) };
            assert!(spread(1000, threads, None, each, |_, ()| Ok(())).unwrap_err().to_string().contains("another"));
            let mut handed = 0;
            let refused = spread(1000, threads, None, Ok, |_, _| {
                handed += 1;
                if handed == 3 { Err(fail()) } else { Ok(()) }
            });
            assert!(refused.is_err() && handed < 1000);
        }
        let panics = |job: usize| if job == 1 { panic!("on purpose") } else { Ok(()) };
        assert!(spread(4, 2, None, panics, |_, ()| Ok(())).is_err());
    }

    /// No job starts after the work was stopped.
    #[test]
    fn stopped_work_says_how_far_it_came() {
        for threads in [1, 3] {
            let stop = AtomicBool::new(false);
            let each = |job: usize| {
                stop.fetch_or(job == 3, Ordering::Relaxed);
                Ok(())
            };
            assert!(spread(1000, threads, Some(&stop), each, |_, ()| Ok(())).unwrap() < 1000);
        }
    }
}
