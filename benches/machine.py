"""What the benchmarks that stand beside a Python peer say about the machine and the build."""

import os
import platform
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0))


def processor():
    """The processor's name; where a virtual machine hides the model, its family, model and stepping, too."""
    lines = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    about = {}
    for key, value in lines:
        about.setdefault(key.strip(), value.strip())
    if "model name" not in about:
        return platform.processor()
    return "{model name} (family {cpu family}, model {model}, stepping {stepping})".format_map(about)


def cache_folder():
    """As headscope finds it."""
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("HEADSCOPE_CACHE") or Path(user) / "headscope")


def commit():
    """The last one of the sources that the command is built from."""
    def git(*words):
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()
    changed = ", with changes" if git("status", "--porcelain", "src") else ""
    return git("log", "-1", "--format=%h", "--", "src") + changed
