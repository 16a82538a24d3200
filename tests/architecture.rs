//! The house: imports point down, maths floors know no tensors, files stay small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};

/// The top-level modules from the ground floor up. A module imports from lower floors, and from its own name.
const FLOORS: [&[&str]; 10] = [
    &["site", "memory"],
    &["error"],
    &["file", "lbfgs", "progress", "take", "workers"],
    &["device", "table", "tensors", "text"],
    &["circuits", "stats"],
    &["information", "model"],
    &["checkpoint", "neural", "intervene"],
    &["heads", "verify"],
    &["view"],
    &["lab"],
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(sources(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            all.push(path);
        }
    }
    all.sort();
    all
}

/// The top-level module that a file belongs to; nothing for the roots and for the command.
fn module(path: &Path) -> Option<String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let first = path.strip_prefix(src).unwrap().components().next().unwrap().as_os_str().to_str().unwrap().to_owned();
    let name = first.trim_end_matches(".rs").to_owned();
    (!["lib", "main", "prelude", "command"].contains(&name.as_str())).then_some(name)
}

/// The top-level modules that a file names through `crate::`, outside comments.
fn imports(text: &str) -> Vec<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let rest = code.split("crate::").skip(1);
    rest.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

fn library() -> Vec<(PathBuf, String, String)> {
    let files = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    files
        .into_iter()
        .filter_map(|path| Some((path.clone(), module(&path)?, fs::read_to_string(&path).unwrap())))
        .collect()
}

#[test]
fn imports_point_down() {
    for (path, from, text) in library() {
        let own = floor(&from).unwrap_or_else(|| panic!("{}: module `{from}` has no floor", path.display()));
        for to in imports(&text).into_iter().filter(|to| *to != from && floor(to).is_some()) {
            assert!(floor(&to).unwrap() < own, "{}: `{from}` (floor {own}) imports `{to}`", path.display());
        }
    }
}

#[test]
fn maths_floors_know_no_tensors() {
    for (path, module, text) in library() {
        if ["circuits", "information", "stats"].contains(&module.as_str()) {
            assert!(!text.contains("tch::"), "{} names tch", path.display());
        }
    }
}

#[test]
fn files_stay_small() {
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 520, "{} has {lines} lines", path.display());
    }
}

#[test]
fn no_machine_paths() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in sources(&root.join("src")).into_iter().chain(sources(&root.join("tests"))) {
        let text = fs::read_to_string(&path).unwrap();
        for bad in [concat!("/ro", "ot/"), concat!("/wo", "rk/")] {
            assert!(!text.contains(bad), "{} holds {bad}", path.display());
        }
    }
}
