//! `headscope`: the library from a terminal. Exit codes: 0 done, 1 failed, 2 misused.

mod command;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    end_with_closed_pipes();
    match command::run(command::Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("error: {reason:#}");
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
