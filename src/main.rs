//! `headscope`: the library from a terminal. Exit codes: 0 done, 1 failed, 2 misused.

mod command;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    end_with_closed_pipes();
    headscope::device::tune_process();
    match command::run(command::Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {}", told(&reason));
            ExitCode::FAILURE
        }
    }
}

/// Ends quietly when a reader such as `head` has had enough, as other commands do; Rust ignores that signal.
fn end_with_closed_pipes() {
    const SIGPIPE: i32 = 13;
    const DEFAULT: usize = 0;
    unsafe extern "C" {
        fn signal(signal: i32, handler: usize) -> usize;
    }
    // SAFETY: the C library declares `signal` so, with a pointer-sized handler of which 0 is the default action; no other
    // thread has been started, and no handler of ours is replaced.
    unsafe { signal(SIGPIPE, DEFAULT) };
}

/// An error and its causes, each once and in a line.
fn told(reason: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in reason.chain() {
        let cause = cause.to_string();
        let line = cause.lines().next().unwrap_or_default();
        if !text.contains(line) {
            text = if text.is_empty() { line.to_owned() } else { format!("{text}: {line}") };
        }
    }
    text
}
