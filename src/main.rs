//! `headscope`: the library from a terminal. Exit codes: 0 done; 1 the work failed; 2 the call is at fault.

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

/// 2 where the call is at fault, as it is for what clap refuses: it would fail again wherever it is tried. 1 where the work
/// failed. The library says it of its own errors; the command refuses nothing but calls (`bail!`, a message without a cause),
/// and JSON it reads from arguments alone.
fn code(reason: &anyhow::Error) -> u8 {
    let own = reason.chain().len() == 1 && (reason.is::<String>() || reason.is::<&str>());
    let misuse = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<serde_json::Error>()
            || cause.is::<headscope::site::UnknownSite>()
            || cause.downcast_ref::<headscope::Error>().is_some_and(headscope::Error::is_misuse)
    };
    if own || reason.chain().any(misuse) { 2 } else { 1 }
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
