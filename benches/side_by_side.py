#!/usr/bin/env python3
"""TransformerLens 3.9.0 and headscope on the same sweeps, side by side in one run.

    python3 -m venv peers && peers/bin/pip install -r fixtures/requirements.txt
    peers/bin/python benches/side_by_side.py [--rounds N] [--cells N] [--quick] [--threads N] [--headscope PATH]

GPT-2 small's shape with random weights (written to a temporary folder in Hugging Face layout), 8 prompts of 16 tokens,
float32, CPU, all cores. The corrupted prompts differ from the clean ones at every position, so that no cell of a sweep
is without effect. TransformerLens runs its own `patching` functions, without gradients and with a cache of the one
site; headscope runs its command. Each sweep takes in, on both sides, the run that patches come from. The tools take
turns, and the best of N rounds counts. What the command takes to start and to load the model, measured in the same
round with `headscope inspect`, is taken off; both sides thus begin with a loaded model. The values of both are
compared, cell by cell.

TransformerLens' loops take minutes; `--cells N` times them on N cells, drawn anew for each sweep, and extrapolates, as the
table says. headscope always computes all.

Prints a table and writes it to benches/results/side_by_side.md. `--quick` has 3 layers and one round, writes nothing.

The machine should have nothing else to do: threads that wait at each other's barriers suffer out of proportion from a
third process, and TransformerLens, with many small steps, more than headscope. Where that cannot be had, the ratio of
processor seconds under `--threads 1` is still a fair one.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORES = len(os.sched_getaffinity(0))
sys.path.insert(0, str(ROOT / "fixtures"))

import make_patching  # before transformer_lens: no progress bars, no hub
import numpy
import pandas
import torch
import transformers
from transformer_lens import patching
from transformers import GPT2Config, GPT2LMHeadModel

PROMPTS, LENGTH, VOCAB = 8, 16, 50_257
SEED = 20263
RESULTS = ROOT / "benches" / "results" / "side_by_side.md"


def gigaflops():
    """The machine's own rate at a large float32 matrix product, best of several."""
    rows, inner, columns = 2048, 768, 3072
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    best = 0.0
    for _ in range(12):
        start = time.perf_counter()
        left @ right
        best = max(best, 2e-9 * rows * inner * columns / (time.perf_counter() - start))
    return best


def timed(call):
    """Seconds of the clock and of processors (this process's and its commands'), and what `call` returns."""
    def now():
        return numpy.array([time.perf_counter(), sum(os.times()[:4])])
    start = now()
    value = call()
    return now() - start, value


# -------------------------------------------------------------------------------------------------- TransformerLens

class Lens:
    def __init__(self, model, clean, corrupt, answers, cells):
        self.model = make_patching.hooked(model, torch.float32)
        self.clean, self.corrupt, self.cells = clean, corrupt, cells
        self.metric = lambda logits: make_patching.difference(logits, answers)
        self.rng = numpy.random.default_rng(SEED)
        self.forward()  # warms up

    def forward(self):
        self.model(self.corrupt)

    def sample(self, second):
        """(layer, head or position) of all cells or of some, and as how many each counts."""
        cells = [(layer, i) for layer in range(self.model.cfg.n_layers) for i in range(second)]
        if not self.cells or self.cells >= len(cells):
            return cells, 1.0
        chosen = sorted(self.rng.choice(len(cells), self.cells, replace=False))
        return [cells[i] for i in chosen], len(cells) / self.cells

    def patch(self, site, setter, second):
        """Seconds of the whole sweep, and the values of the cells that were timed."""
        cells, weight = self.sample(second)

        def wanted(name):
            return name.endswith(f".hook_{site}")

        start, (_, cache) = timed(lambda: self.model.run_with_cache(self.clean, names_filter=wanted))
        index = pandas.DataFrame(cells, columns=["layer", "index"])
        seconds, values = timed(lambda: patching.generic_activation_patch(
            self.model, self.corrupt, cache, self.metric, setter, site, index_df=index
        ))
        return start + weight * seconds, dict(zip(cells, values.tolist()))

    def heads(self):
        return self.patch("z", patching.layer_head_vector_patch_setter, self.model.cfg.n_heads)

    def positions(self):
        return self.patch("resid_pre", patching.layer_pos_patch_setter, LENGTH)

    def ablated(self):
        def loss(layer, head):
            def zero(z, hook):
                z[:, :, head] = 0.0
                return z
            hooks = [(f"blocks.{layer}.attn.hook_z", zero)]
            return self.model.run_with_hooks(self.corrupt, return_type="loss", fwd_hooks=hooks).item()
        cells, weight = self.sample(self.model.cfg.n_heads)
        seconds, values = timed(lambda: {cell: loss(*cell) for cell in cells})
        return weight * seconds, values


# -------------------------------------------------------------------------------------------------------- headscope

class Command:
    def __init__(self, program, folder, threads):
        self.program, self.folder = program, folder
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.own_time = "--time" in self.call("patch", "--help")

    def call(self, *words):
        words = [str(word) for word in (self.program, *words)]
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment)
        if done.returncode:
            raise SystemExit(f"{words}: {done.stderr}")
        return done.stdout + done.stderr

    def start_and_load(self):
        return timed(lambda: self.call("inspect", self.folder))[0]

    def sweep(self, verb, *words):
        """Seconds as `timed` has them, the clock's being the command's own if it reports them, and the values."""
        table = self.folder / "table.json"
        more = ["--time"] if self.own_time else []
        seconds, printed = timed(
            lambda: self.call(verb, self.folder, *words, "--top", "1", "--out", table, *more)
        )
        if self.own_time:
            seconds[0] = float(re.search(r"time\D*([\d.]+) ?s", printed)[1])
        values = {}
        for row in json.loads(table.read_text()):
            values[row["layer"], row.get("head", row.get("position"))] = row["value"]
        return seconds, values

    def patch(self, site, each):
        given = {key: f"@{self.folder}/{key}.json" for key in ["clean", "corrupt", "answers"]}
        words = [word for key, value in given.items() for word in (f"--{key}", value)]
        return self.sweep("patch", *words, "--metric", "logit-difference", "--site", site, "--each", each)

    def heads(self):
        return self.patch("z", "head")

    def positions(self):
        return self.patch("resid_pre", "position")

    def ablated(self):
        return self.sweep("ablate", "--tokens", f"@{self.folder}/corrupt.json", "--kind", "zero", "--metric", "loss")


# ------------------------------------------------------------------------------------------------------------- main

def best(rounds):
    """The least clock time and the least processor time, each of any round."""
    return numpy.min(rounds, axis=0)


def compare(theirs, ours):
    """Cells, the largest difference between the tools, and the spread of the values, against which to see it."""
    assert theirs.keys() <= ours.keys(), "the tools swept different cells"
    apart = max(abs(theirs[cell] - ours[cell]) for cell in theirs)
    return len(ours), apart, max(ours.values()) - min(ours.values())


def processor():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description="Times TransformerLens and headscope side by side.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool does each sweep [default: 3]")
    parser.add_argument("--cells", type=int, default=0, help="TransformerLens' share of each sweep [default: all]")
    parser.add_argument("--quick", action="store_true", help="3 layers, one round; nothing is written")
    parser.add_argument("--threads", type=int, default=CORES, help="for both tools [default: all cores]")
    parser.add_argument("--headscope", type=Path, default=ROOT / "target" / "debug" / "headscope", help="the command")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file to write")
    arguments = parser.parse_args()
    if not arguments.headscope.is_file():
        parser.error(f"{arguments.headscope} is not there: `cargo build` makes it")
    layers, rounds = (3, 1) if arguments.quick else (12, arguments.rounds)
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(SEED)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def git(*words):
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") + (", with changes" if git("status", "--porcelain", "src") else "")
    rng = numpy.random.default_rng(SEED)
    clean = rng.integers(0, VOCAB, (PROMPTS, LENGTH))
    corrupt = (clean + rng.integers(1, VOCAB, clean.shape)) % VOCAB
    answers = rng.integers(0, VOCAB, (PROMPTS, 2))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_layer=layers)).eval()
        model.save_pretrained(folder)
        for name, value in {"clean": clean, "corrupt": corrupt, "answers": answers}.items():
            (folder / f"{name}.json").write_text(json.dumps(value.tolist()))
        program = folder / "headscope"  # a copy: a build in the meantime does not change what is measured
        program.write_bytes(arguments.headscope.read_bytes())
        program.chmod(0o755)

        tensors = (torch.from_numpy(value) for value in (clean, corrupt, answers))
        lens = Lens(model, *tensors, arguments.cells)
        del model
        command = Command(program, folder, arguments.threads)
        described = command.call("--version").strip()
        command.start_and_load()  # the checkpoint is in the page cache from here on
        sweeps = {
            "z, every head; logit difference": "heads",
            "resid_pre, every layer x position; logit difference": "positions",
            "zero-ablation of every head; mean loss of all positions": "ablated",
        }
        rate, forward, loads = 0.0, float("inf"), [os.getloadavg()[0]]
        theirs, ours, started = ({name: [] for name in sweeps} for _ in range(3))
        agreement = {}
        for turn in range(rounds):
            for name, method in sweeps.items():
                rate, forward = max(rate, gigaflops()), min(forward, timed(lens.forward)[0][0])
                seconds, expected = getattr(lens, method)()
                theirs[name].append(seconds)
                started[name].append(command.start_and_load() * [not command.own_time, 1])
                seconds, found = getattr(command, method)()
                ours[name].append(seconds)
                agreement[name] = compare(expected, found)
                loads.append(os.getloadavg()[0])
                clocks = theirs[name][-1][0], seconds[0], started[name][-1][0], loads[-1]
                report = "TransformerLens {:.2f} s, headscope {:.2f} s with {:.2f} s to start and load (load {:.1f})"
                print(f"round {turn + 1}: {name}: {report.format(*clocks)}", flush=True)

    product = f"a large float32 matrix product reaches {rate:.0f} GFLOP/s"

    lines = [
        "| sweep | cells | TransformerLens (s) | headscope (s) | ratio | ratio of processor seconds "
        "| start and load, taken off (s) | largest difference of values | their spread |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in sweeps:
        (load, _), slow, fast = best(started[name]), best(theirs[name]), best(ours[name]) - best(started[name])
        ratio = slow / fast
        cells, apart, spread = agreement[name]
        lines.append(
            f"| {name} | {cells} | {slow[0]:.2f} | {fast[0]:.2f} | {ratio[0]:.1f} x | {ratio[1]:.1f} x | {load:.2f} "
            f"| {apart:.1e} | {spread:.2g} |"
        )
    text = "\n".join([
        "# TransformerLens and headscope, side by side",
        "",
        f"Written by `benches/side_by_side.py` on {datetime.date.today()}. GPT-2 small's shape"
        f"{f' with {layers} layers' if arguments.quick else ''}, random weights, {PROMPTS} prompts of {LENGTH} tokens, "
        f"float32, CPU; the best of {rounds}, the tools taking turns."
        + (f" TransformerLens is timed on {arguments.cells} cells of each sweep and extrapolated." if arguments.cells else ""),
        "",
        *lines,
        "",
        f"- TransformerLens {version('transformer_lens')} on PyTorch {torch.__version__}, one forward pass "
        f"{forward:.2f} s; {described} ({commit}).",
        f"- Threads: {arguments.threads}, on {CORES} cores of {processor()}; {product}. "
        f"Load average of the last minute, this included: {min(loads):.1f} to {max(loads):.1f}.",
        "- Timed on both sides: the run that patches come from, the sweep, the metric. headscope's start and loading "
        + f"are {'not in the time that it reports' if command.own_time else 'taken off as `inspect` takes them'}.",
        *([f"- HEADSCOPE_ONEDNN={os.environ['HEADSCOPE_ONEDNN']}."] if "HEADSCOPE_ONEDNN" in os.environ else []),
        "- Every corrupted prompt differs from its clean one at every position. The spread is the largest value less "
        "the smallest.",
        "",
    ])
    print("\n" + text)
    if not arguments.quick:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
        print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
