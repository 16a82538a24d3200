//! The house: imports point down, maths floors know no tensors, files stay small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};

/// Each top-level module and its floor. A module may import from lower floors, and from its own name only.
const FLOORS: [(&str, u8); 18] = [
    ("error", 0),
    ("file", 0),
    ("memory", 0),
    ("progress", 0),
    ("table", 0),
    ("workers", 0),
    ("take", 0),
    ("device", 1),
    ("circuits", 1),
    ("information", 1),
    ("stats", 1),
    ("model", 2),
    ("neural", 2),
    ("checkpoint", 2),
    ("intervene", 3),
    ("heads", 3),
    ("view", 4),
    ("lab", 4),
];

/// Pairs that may import each other: an error names the site where it happened, a checkpoint makes a model that carries
/// its tokenizer, tables and files report errors.
const TOGETHER: [(&str, &str); 4] =
    [("error", "model"), ("model", "checkpoint"), ("table", "error"), ("file", "error")];

/// Pairs on one floor of which the first may import the second: what a head does is tested by taking it away, and what the lab
/// found is drawn.
const BESIDE: [(&str, &str); 3] = [("heads", "intervene"), ("information", "stats"), ("lab", "view")];

fn floor(module: &str) -> Option<u8> {
    FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor)
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
            let together = TOGETHER
                .iter()
                .any(|pair| *pair == (from.as_str(), to.as_str()) || *pair == (to.as_str(), from.as_str()));
            let beside = BESIDE.contains(&(from.as_str(), to.as_str()));
            let down = floor(&to).unwrap() < own || (own == 0 && floor(&to) == Some(0));
            assert!(down || together || beside, "{}: `{from}` (floor {own}) imports `{to}`", path.display());
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
