//! `headscope`: the library from a terminal. Exit codes: 0 done, 1 failed, 2 misused.

mod command;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    end_with_closed_pipes();
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
    // SAFETY: sets the default action of a signal before any thread is started.
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
