//! How far is a long computation? A bar on a terminal, a line every few seconds in a notebook, nothing in a pipe.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::Error;

/// Progress towards a known total.
pub(crate) struct Progress {
    what: &'static str,
    total: u64,
    done: u64,
    shown: Shown,
}

enum Shown {
    Bar(ProgressBar),
    Lines { pace: Pace, last: Instant },
    Nothing,
}

const BETWEEN_LINES: Duration = Duration::from_secs(3);

/// How fast it goes: when which number of steps was done. The first report of steps only sets the clock: what comes before
/// it (the unpatched run, caches, threads that start) happens once.
#[derive(Default)]
struct Pace {
    first: Option<(Instant, u64)>,
}

impl Pace {
    fn note(&mut self, now: Instant, done: u64) {
        self.first.get_or_insert((now, done));
    }

    /// The time for the remaining steps, if steps have been done since the clock was set for at least as long as
    /// `BETWEEN_LINES`.
    fn left(&self, now: Instant, done: u64, total: u64) -> Option<Duration> {
        let (since, from) = self.first?;
        let (took, steps) = (now.duration_since(since), done.saturating_sub(from));
        let enough = steps > 0 && took >= BETWEEN_LINES;
        enough.then(|| took.mul_f64(total.saturating_sub(done) as f64 / steps as f64))
    }
}

impl Progress {
    /// A counter for `total` steps of `what`.
    pub(crate) fn new(what: &'static str, total: usize) -> Self {
        let shown = if std::env::var_os("EVCXR_IS_RUNTIME").is_some() {
            Shown::Lines { pace: Pace::default(), last: Instant::now() }
        } else if std::io::stderr().is_terminal() {
            Shown::Bar(bar(what, total as u64))
        } else {
            Shown::Nothing
        };
        Self { what, total: total as u64, done: 0, shown }
    }

    /// The error of a computation that was stopped from outside.
    pub(crate) fn stopped(&self) -> Error {
        Error::Stopped { what: self.what, done: self.done, total: self.total }
    }

    /// Records `n` more finished steps.
    pub(crate) fn add(&mut self, n: usize) {
        self.done += n as u64;
        match &mut self.shown {
            Shown::Bar(bar) => bar.set_position(self.done),
            Shown::Lines { pace, last } => {
                let now = Instant::now();
                pace.note(now, self.done);
                if now.duration_since(*last) >= BETWEEN_LINES && self.done < self.total {
                    println!("{}", line(self.what, self.done, self.total, pace.left(now, self.done, self.total)));
                    *last = now;
                }
            }
            Shown::Nothing => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

fn line(what: &str, done: u64, total: u64, left: Option<Duration>) -> String {
    let left = left.map_or_else(String::new, |left| format!(", about {} s left", left.as_secs_f64().ceil()));
    format!("{what}: {done} of {total}{left}")
}

fn bar(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len}, {eta} left");
    let bar = ProgressBar::new(total).with_message(what);
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_start_does_not_count() {
        let (start, mut pace) = (Instant::now(), Pace::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        // Thirty seconds before the first ten steps are done, then ten steps in two seconds.
        pace.note(at(30), 10);
        assert_eq!(pace.left(at(30), 10, 110), None);
        pace.note(at(32), 20);
        assert_eq!(pace.left(at(32), 20, 110), None, "too little to go by");
        pace.note(at(34), 30);
        assert_eq!(pace.left(at(34), 30, 110), Some(Duration::from_secs(16)));
        assert_eq!(pace.left(at(50), 110, 110), Some(Duration::ZERO));
        assert_eq!(pace.left(at(50), 130, 110), Some(Duration::ZERO));
    }

    #[test]
    fn lines_are_those_that_the_notebooks_runner_knows() {
        assert_eq!(line("heads", 3, 270, None), "heads: 3 of 270");
        assert_eq!(line("heads", 3, 270, Some(Duration::from_millis(4200))), "heads: 3 of 270, about 5 s left");
    }
}
