//! Which commit was this program built from?
//!
//! The commit is looked up at run time: if a build script wrote it into the library, every commit would recompile the
//! library. The answer comes from the clone in which the program was built, provided that no source file there is newer
//! than the program.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The sources of the program.
const SOURCES: [&str; 4] = ["src", "build.rs", "Cargo.toml", "Cargo.lock"];

/// The commit, with `+dirty` if sources had uncommitted changes; `unknown` outside a clone, or if the clone's sources
/// are newer than the program. If the environment variable `HEADSCOPE_COMMIT` is set at build time, its value is
/// returned instead; this serves programs that run on machines without the clone.
pub(super) fn commit() -> &'static str {
    static COMMIT: OnceLock<String> = OnceLock::new();
    COMMIT.get_or_init(|| {
        let built = || std::env::current_exe().ok()?.metadata().ok()?.modified().ok();
        let of_clone = || of_clone(Path::new(env!("CARGO_MANIFEST_DIR")), built()?);
        let told = option_env!("HEADSCOPE_COMMIT").map(str::to_owned);
        told.or_else(of_clone).unwrap_or_else(|| "unknown".to_owned())
    })
}

/// The commit of the clone at `root`, for a program built there at time `built`.
fn of_clone(root: &Path, built: SystemTime) -> Option<String> {
    if !root.join(".git").exists() || SOURCES.iter().any(|source| younger(&root.join(source), built)) {
        return None;
    }
    let head = git(root, &["rev-parse", "HEAD"])?;
    let changed = git(root, &[&["status", "--porcelain", "--"], SOURCES.as_slice()].concat())?;
    Some(if changed.is_empty() { head } else { format!("{head}+dirty") })
}

/// Whether a file, or any file in a folder, was written after `built`.
fn younger(path: &Path, built: SystemTime) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.any(|entry| entry.is_ok_and(|entry| younger(&entry.path(), built))),
        Err(_) => path.metadata().and_then(|file| file.modified()).is_ok_and(|written| written > built),
    }
}

/// Output of git for the clone at `root`; `None` if git fails or is not installed.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(root).arg("--no-optional-locks").args(arguments);
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(name); // git sets these in its hooks, where they refer to another clone
    }
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_clone_says_its_commit_while_the_program_is_of_its_sources() {
        let folder = tempfile::tempdir().unwrap();
        let (root, later) = (folder.path(), SystemTime::now() + Duration::from_secs(3600));
        std::fs::create_dir(root.join("src")).unwrap();
        std::fs::write(root.join("src/lib.rs"), "one").unwrap();
        assert_eq!(of_clone(root, later), None, "no clone");
        if git(root, &["init", "-q"]).is_none() {
            return; // git is not installed: the commit is unknown, as asserted above
        }
        assert_eq!(of_clone(root, later), None, "no commit yet");
        let name = ["-c", "user.name=a", "-c", "user.email=a@b"];
        git(root, &["add", "."]).unwrap();
        git(root, &[name.as_slice(), &["commit", "-q", "-m", "one"]].concat()).unwrap();
        let head = git(root, &["rev-parse", "HEAD"]).unwrap();
        assert_eq!(of_clone(root, later), Some(head.clone()));
        std::fs::write(root.join("notes"), "not a source").unwrap();
        assert_eq!(of_clone(root, later), Some(head.clone()));
        std::fs::write(root.join("src/lib.rs"), "another").unwrap();
        assert_eq!(of_clone(root, later), Some(format!("{head}+dirty")));
        let before = SystemTime::now() - Duration::from_secs(3600);
        assert_eq!(of_clone(root, before), None, "a source is younger than the program");
    }
}
