//! Which commit this program was built from.
//!
//! It is asked for at run time: a build script that wrote it into the library would have the library compiled again after
//! every commit. The answer is that of the clone that the program was built in, as long as no source there is younger than
//! the program.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// What the program is built from.
const SOURCES: [&str; 4] = ["src", "build.rs", "Cargo.toml", "Cargo.lock"];

/// The commit, with `+dirty` where sources had been changed since; `unknown` outside a clone, and where the clone's sources
/// are no longer those that the program was built from. A build with the environment variable `HEADSCOPE_COMMIT` set, for
/// programs that run where the clone is not, says what that says.
pub(super) fn commit() -> &'static str {
    static COMMIT: OnceLock<String> = OnceLock::new();
    COMMIT.get_or_init(|| {
        let built = || std::env::current_exe().ok()?.metadata().ok()?.modified().ok();
        let of_clone = || of_clone(Path::new(env!("CARGO_MANIFEST_DIR")), built()?);
        let told = option_env!("HEADSCOPE_COMMIT").map(str::to_owned);
        told.or_else(of_clone).unwrap_or_else(|| "unknown".to_owned())
    })
}

/// The commit of the clone at `root`, for a program that was built there at the given time.
fn of_clone(root: &Path, built: SystemTime) -> Option<String> {
    if !root.join(".git").exists() || SOURCES.iter().any(|source| younger(&root.join(source), built)) {
        return None;
    }
    let head = git(root, &["rev-parse", "HEAD"])?;
    let changed = git(root, &[&["status", "--porcelain", "--"], SOURCES.as_slice()].concat())?;
    Some(if changed.is_empty() { head } else { format!("{head}+dirty") })
}

/// Whether a file, or one in a folder, was written after `built`.
fn younger(path: &Path, built: SystemTime) -> bool {
    match std::fs::read_dir(path) {
        Ok(mut entries) => entries.any(|entry| entry.is_ok_and(|entry| younger(&entry.path(), built))),
        Err(_) => path.metadata().and_then(|file| file.modified()).is_ok_and(|written| written > built),
    }
}

/// What git prints about the clone at `root`; nothing where it fails or is not there.
fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(root).arg("--no-optional-locks").args(arguments);
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"] {
        command.env_remove(name); // set in a hook of git's, about another clone
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
            return; // no git here: nothing is known, as above
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
