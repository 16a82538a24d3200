//! How does a user run the library from a terminal? Through the `headscope` command.
//!
//! Exit codes: 0 on success, 1 if the work failed, 2 if the call is wrong.

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
            ExitCode::from(code(&reason))
        }
    }
}

/// Ends quietly when a reader such as `head` closes the pipe, as other commands do. Rust ignores the signal by default.
fn end_with_closed_pipes() {
    const SIGPIPE: i32 = 13;
    const DEFAULT: usize = 0;
    unsafe extern "C" {
        fn signal(signal: i32, handler: usize) -> usize;
    }
    // SAFETY: this is the C library's declaration of `signal`, with a pointer-sized handler of which 0 is the default
    // action. No other thread has been started, and no handler of ours is replaced.
    unsafe { signal(SIGPIPE, DEFAULT) };
}

/// The exit code: 2 if the call is wrong and would fail anywhere, as for what clap rejects; 1 if the work failed. The
/// library classifies its own errors. The command itself only ever rejects calls (`bail!`, a message without a cause),
/// and it reads JSON from arguments alone.
fn code(reason: &anyhow::Error) -> u8 {
    let own = reason.chain().len() == 1 && (reason.is::<String>() || reason.is::<&str>());
    let misuse = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<serde_json::Error>()
            || cause.is::<headscope::site::UnknownSite>()
            || cause.downcast_ref::<headscope::Error>().is_some_and(headscope::Error::is_misuse)
    };
    if own || reason.chain().any(misuse) { 2 } else { 1 }
}

/// An error and its causes on one line, each once.
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
