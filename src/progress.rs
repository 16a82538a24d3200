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
    Lines { started: Instant, last: Instant },
    Nothing,
}

const BETWEEN_LINES: Duration = Duration::from_secs(3);

impl Progress {
    /// A counter for `total` steps of `what`.
    pub(crate) fn new(what: &'static str, total: usize) -> Self {
        let shown = if std::env::var_os("EVCXR_IS_RUNTIME").is_some() {
            Shown::Lines { started: Instant::now(), last: Instant::now() }
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
            Shown::Lines { started, last } if last.elapsed() >= BETWEEN_LINES => {
                let left = started
                    .elapsed()
                    .mul_f64((self.total - self.done.min(self.total)) as f64 / self.done.max(1) as f64);
                if left.as_secs() > 0 {
                    println!("{}: {} of {}, about {} s left", self.what, self.done, self.total, left.as_secs());
                }
                *last = Instant::now();
            }
            _ => {}
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

fn bar(what: &'static str, total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len}, {eta} left");
    let bar = ProgressBar::new(total).with_message(what);
    match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}
