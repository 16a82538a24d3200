#!/usr/bin/env python3
"""The Jupyter kernel "Rust (headscope)".

    kernel.py install                 builds what a kernel needs and tells the project's Jupyter about it
    kernel.py launch CONNECTION_FILE  what Jupyter runs

The kernel is evcxr_jupyter. Left alone it compiles every dependency anew for every kernel. Here `install` builds the
facade crate in the clone's own build folder (so tests and notebooks share their dependencies), and takes a snapshot of it
that later builds don't disturb. Every kernel then works in a small folder of its own, and for a cell runs only rustc
(see cargo.sh). Any number of notebooks can run at once.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / ".cargo"))
import outline  # noqa: E402
import setup  # noqa: E402
from setup import Missing, cache, link, locked, quoted, run, rustc, say, tool, whole, write  # noqa: E402

NAME = "headscope"
# The library as notebooks get it: optimised like its dependencies. Tests check it with debug assertions.
PROFILE = [
    part
    for key in ("opt-level=3", "debug=false", "debug-assertions=false", "overflow-checks=false")
    for part in ("--config", f"profile.dev.package.headscope.{key}")
]
# What a cell costs is compiling it: nothing in it is worth optimising.
FLAGS = [
    "--crate-name=ctx",
    "--edition=2024",
    "--crate-type=cdylib",
    "--error-format=json",
    "--json=diagnostic-rendered-ansi",
    "-Cprefer-dynamic",
    "-Copt-level=0",
    "-Cdebug-assertions=on",
    "-Coverflow-checks=on",
    "-Cstrip=debuginfo",
]
# What a kernel does while it starts. The variables are there to make type inference read what cells will need, and gone
# when the first cell runs; with the `?`, evcxr expects one in every cell and compiles none twice for it. evcxr asks for a
# backtrace of every panic, which shows only its own frames.
PRELUDE = """use headscope::prelude::*;
use headscope::{ndarray, polars, rayon, serde_json, tch};
unsafe { std::env::set_var("RUST_BACKTRACE", "0") };
headscope::device::tune_process();
let warm_tensor = headscope::tch::Tensor::from_slice(&[0f32]).size();
let warm_table = headscope::polars::prelude::DataFrame::empty();
let warm_names = warm_table.get_column_names_owned();
let warm_array = headscope::ndarray::Array2::<f64>::zeros((1, 1));
let warm_text = warm_array.iter().map(|x| format!("{x}")).collect::<Vec<String>>();
let warm_number = "1".parse::<f64>()?;
drop((warm_tensor, warm_table, warm_names, warm_array, warm_text, warm_number));
"""
# The crates whose types can appear in a cell. Type inference reads their sources in every kernel, and reading the other
# 360 takes ten seconds.
READ = re.compile(
    r"tch|ndarray|num-(traits|complex)|rayon(-core)?|serde(_core|_json)?|either|half|indexmap|compact_str|bitflags"
    r"|polars(-(arrow|buffer|core|dtype|error|io|ops|schema|utils))?"
)


def home():
    """The folder in the cache that holds this clone's kernels."""
    return cache() / "kernels" / hashlib.sha256(str(ROOT).encode()).hexdigest()[:12]


# --- install


def install():
    evcxr = cache() / f"evcxr_jupyter-{setup.EVCXR}" / "bin" / "evcxr_jupyter"
    if not evcxr.exists():
        raise Missing("evcxr_jupyter is not there. Try: make kernel")
    with locked(f"kernel-{home().name}"):
        artifacts = build()
        stamp = hashlib.sha256(repr(FLAGS).encode() + PRELUDE.encode())
        for file in sorted([*HERE.glob("*.sh"), *HERE.glob("*.py"), ROOT / ".cargo" / "local.toml", *artifacts]):
            seen = os.stat(file)
            stamp.update(f"{file} {seen.st_size} {seen.st_mtime_ns}\n".encode())
        folder = home() / stamp.hexdigest()[:16]
        if not folder.exists():
            with whole(folder) as made:
                snapshot(made, folder, artifacts)
            say(f"the kernel is ready ({folder.name})")
        link(home() / "current", folder)
        write(home() / "clone", f"{ROOT}\n")
        clean()
        forget()
    announce()


def build():
    """Builds the facade crate and returns the files that it is made of."""
    command = [tool("cargo"), "rustc", "-p", "headscope-kernel", "--lib", "--message-format=json-render-diagnostics"]
    command += [*PROFILE, "--", "-Cprefer-dynamic"]
    environment = {key: value for key, value in os.environ.items() if key not in ("RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS")}
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    artifacts, told = [], False
    for line in child.stdout:
        message = json.loads(line)
        if message["reason"] == "compiler-artifact":
            artifacts += [Path(name) for name in message["filenames"] if name.endswith((".rlib", ".rmeta", ".so"))]
            if not message["fresh"] and not told:
                say("building the library for notebooks (a minute or two; ten on two cores where nothing is built yet)")
                told = True
    if child.wait() != 0:
        raise Missing("the library does not build (see above). Mend it, then: make kernel")
    return artifacts


def snapshot(made, folder, artifacts):
    """Fills the folder `made`, which will be known as `folder`."""
    deps = made / "deps"
    deps.mkdir()
    for file in artifacts:
        # The files of dependencies are replaced by later builds, not written to, so a hard link keeps this state. The
        # library's own are copied.
        own = "headscope" in file.name
        with contextlib.suppress(FileExistsError):
            (share if not own else shutil.copy2)(file, deps / file.name)
    configuration(made, folder)
    standard(made)
    metadata(made, folder)
    cargo_home = os.environ.get("CARGO_HOME") or os.path.expanduser("~/.cargo")
    flags = [*FLAGS, f"-Ldependency={folder}/deps", f"--extern=headscope={folder}/deps/libheadscope_kernel.so"]
    torch, libtch = (ROOT / "libtorch").resolve() / "lib", setup.libtch()
    flags += [f"-Lnative={torch}", f"-Lnative={libtch}"]
    bin_ = made / "home" / "bin"
    bin_.mkdir(parents=True)
    text = (HERE / "cargo.sh").read_text(encoding="utf-8")
    for name, value in {
        "CARGO_HOME": shell(cargo_home),
        "PATH": shell(os.environ["PATH"]),
        "CARGO": shell(tool("cargo")),
        "RUSTC": shell(f"{sysroot()}/bin/rustc"),
        "FLAGS": " ".join(shell(flag) for flag in flags),
        "METADATA": shell(folder / "metadata.json"),
        "PYTHON": shell(sys.executable),
        "HINT": shell(folder / "home" / "hint.py"),
    }.items():
        text = text.replace(f"@{name}@", value)
    write(bin_ / "cargo", text)
    shutil.copy2(HERE / "hint.py", made / "home" / "hint.py")
    # evcxr asks rustup for the tools before it looks at the PATH.
    write(
        bin_ / "rustup",
        '#!/bin/sh\ncase "$*" in\n'
        f"    *'which cargo') echo {shell(folder / 'home/bin/cargo')} ;;\n"
        f"    *'which rustc') echo {shell(f'{sysroot()}/bin/rustc')} ;;\n"
        "    *) exit 1 ;;\nesac\n",
    )
    for name in ("cargo", "rustup"):
        (bin_ / name).chmod(0o755)
    # The standard library, the library's own shared object, libtorch and its shim: no cell has a path to them built in.
    paths = [f"{sysroot()}/lib/rustlib/{rustc()[0]}/lib", folder / "deps", torch, libtch]
    environment = {
        "LIBTORCH": torch.parent,
        "OMP_WAIT_POLICY": "passive",  # two notebooks at once share the cores
        "MIMALLOC_PURGE_DELAY": "0",  # evcxr's own allocator keeps no memory that type inference has given back
        "LD_LIBRARY_PATH": ":".join(str(path) for path in paths),
        "EVCXR_CONFIG_DIR": folder / "config",
        "CARGO_HOME": folder / "home",
        "CARGO_NET_OFFLINE": "true",
        "RUST_SRC_PATH": folder / "std",
        "HEADSCOPE_CACHE": cache(),
    }
    write(made / "environment.json", json.dumps({key: str(value) for key, value in environment.items()}, indent=1))
    (made / "lock").touch()


def sysroot():
    return run([tool("rustc"), "--print", "sysroot"], "to build", "", stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.strip()


def share(file, target):
    try:
        os.link(file.resolve(), target)
    except OSError:
        shutil.copy2(file, target)


def shell(value):
    text = str(value)
    return "'" + text.replace("'", "'\\''") + "'"


def dependency():
    return f'{{ package = "headscope-kernel", path = {quoted(HERE)} }}'


def configuration(made, folder):
    """evcxr's start-up: it loads the library before the reader has finished the first paragraph."""
    write(
        made / "config" / "evcxr.toml",
        "[evcxr]\n"
        'opt_level = "0"\n'
        "offline_mode = true\n"
        f"prelude = {quoted(PRELUDE)}\n\n"
        "[dependencies]\n"
        f"headscope = {dependency()}\n",
    )


def metadata(made, folder):
    """What `cargo metadata` says about a cell: the map of sources that type inference reads.

    Only the crates whose types can appear in a cell are kept: reading the others costs seconds in every kernel.
    """
    host, _ = rustc()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch).resolve()
        (scratch / "src").mkdir()
        (scratch / "src" / "lib.rs").touch()
        package = '[package]\nname = "ctx"\nversion = "1.0.0"\nedition = "2024"\n\n[lib]\ncrate-type = ["cdylib"]\n\n[dependencies]\n'
        for name, text in (("metadata.json.empty", package), ("metadata.json", package + f"headscope = {dependency()}\n")):
            (scratch / "Cargo.toml").write_text(text, encoding="utf-8")
            shutil.copy2(ROOT / "Cargo.lock", scratch / "Cargo.lock")
            command = [tool("cargo"), "metadata", "--format-version=1", "--offline", "--filter-platform", host]
            shown = run(
                [*command, "--manifest-path", scratch / "Cargo.toml"], "for type inference", "Try: cargo fetch", stdout=subprocess.PIPE, text=True
            )
            graph = prune(json.loads(shown.stdout), made, folder)
            write(made / name, json.dumps(graph).replace(str(scratch), "@HERE@") + "\n")


def prune(graph, made, folder):
    """Keeps the crates of `READ`, and points at outlines of their sources."""
    kept = {}
    for package in graph["packages"]:
        package["targets"] = [one for one in package["targets"] if library(one)]
        package["dependencies"] = [one for one in package["dependencies"] if not one["kind"]]
        if package["name"] != "ctx":
            own = package["source"] is None
            if not own and not READ.fullmatch(package["name"]):
                continue
            name, root = f"{package['name']}-{package['version']}", Path(package["manifest_path"]).parent
            if not (made / "source" / name).exists():
                outline.copy(root / "src", made / "source" / name / "src", documented=own)
                shutil.copy2(package["manifest_path"], made / "source" / name / "Cargo.toml")
            package["manifest_path"] = str(folder / "source" / name / "Cargo.toml")
            package["targets"] = [{**one, "src_path": one["src_path"].replace(str(root), str(folder / "source" / name), 1)} for one in package["targets"]]
        kept[package["id"]] = package
    graph["packages"] = list(kept.values())
    nodes = [node for node in graph["resolve"]["nodes"] if node["id"] in kept]
    for node in nodes:
        node["dependencies"] = [one for one in node["dependencies"] if one in kept]
        node["deps"] = [one for one in node["deps"] if one["pkg"] in kept]
    graph["resolve"]["nodes"] = nodes
    return graph


def library(target):
    return any(kind in ("lib", "rlib", "dylib", "cdylib") for kind in target["kind"])


def standard(made):
    """Outlines of the standard library, without its dependencies."""
    sources = Path(sysroot()) / "lib/rustlib/src/rust/library"
    if sources.exists():
        # Without its manifest type inference takes the crates as they lie and does not ask for what they depend on.
        for name in ("core", "alloc", "std"):
            outline.copy(sources / name / "src", made / "std" / name / "src", documented=False)


# --- the folder of kernels


def clean():
    """Removes the folders of kernels that have ended, and snapshots that no kernel uses any more."""
    current = (home() / "current").resolve()
    for folder in [*home().glob("session-*"), *(path for path in home().iterdir() if (path / "environment.json").exists())]:
        if folder.resolve() == current or folder.is_symlink():
            continue
        with contextlib.suppress(OSError), open(folder / "lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def forget():
    """Removes the kernels of clones that are no longer there."""
    for note in home().parent.glob("*/clone"):
        if not Path(note.read_text(encoding="utf-8").strip()).exists():
            shutil.rmtree(note.parent, ignore_errors=True)


def announce():
    """Writes the kernel's description into the project's Python environment, which several clones can share."""
    python = ROOT / ".venv" / "bin" / "python"
    if not python.exists():
        raise Missing("the Python environment is not there. Try: make python")
    folder = ROOT / ".venv" / "share" / "jupyter" / "kernels" / NAME
    write(folder / "launch.py", LAUNCH.replace("@ROOT@", repr(str(ROOT))))
    description = {
        "argv": [str(python), str(folder.resolve() / "launch.py"), "{connection_file}"],
        "display_name": "Rust (headscope)",
        "language": "rust",
        "interrupt_mode": "message",
    }
    description["argv"][0] = str(python.absolute().parent.parent.resolve() / "bin" / "python")
    write(folder / "kernel.json", json.dumps(description, indent=1) + "\n")


# Runs the kernel of the clone that the notebook lies in; else of the clone that was set up last.
LAUNCH = '''import os
import sys

folders = [os.environ.get("HEADSCOPE_ROOT"), os.getcwd()]
while folders[-1] != os.path.dirname(folders[-1]):
    folders.append(os.path.dirname(folders[-1]))
for folder in [*folders, @ROOT@]:
    program = os.path.join(folder or "", "notebooks", "kernel", "kernel.py")
    if folder and os.path.exists(program):
        os.execv(sys.executable, [sys.executable, program, "launch", sys.argv[1]])
sys.exit("headscope: no clone of headscope found; run `make kernel` in one")
'''


# --- launch


def launch(connection):
    current = home() / "current"
    if not current.exists():
        raise Missing(f"this clone has no kernel yet. Try: make -C {ROOT} kernel")
    folder = current.resolve()
    environment = {**os.environ, **json.loads((folder / "environment.json").read_text(encoding="utf-8"))}
    environment["PATH"] = f"{folder}/home/bin:{os.environ['PATH']}"
    for name in ("RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_TARGET_DIR", "CARGO"):
        environment.pop(name, None)
    session = Path(tempfile.mkdtemp(prefix="session-", dir=home()))
    environment["EVCXR_TMPDIR"] = str(session)
    # Both locks are handed on to the kernel and end with it, however it ends: then `clean` may remove what they guard.
    for place in (folder, session):
        file = os.open(place / "lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(file, fcntl.LOCK_SH)
        os.set_inheritable(file, True)
    clean()
    evcxr = cache() / f"evcxr_jupyter-{setup.EVCXR}" / "bin" / "evcxr_jupyter"
    # It tells there where its configuration lies; what goes wrong goes to stderr.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.execve(evcxr, [str(evcxr), "--control_file", connection], environment)


def main():
    try:
        if sys.argv[1:] == ["install"]:
            start = time.monotonic()
            install()
            if time.monotonic() - start > 5:
                say(f"kernel: done in {time.monotonic() - start:.0f} s")
        elif len(sys.argv) == 3 and sys.argv[1] == "launch":
            launch(sys.argv[2])
        else:
            print(__doc__, file=sys.stderr)
            return 2
    except Missing as error:
        print(f"headscope: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
