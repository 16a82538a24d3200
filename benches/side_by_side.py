#!/usr/bin/env python3
"""TransformerLens 4.3.0 and headscope on the same sweeps, side by side in one run.

    python3 -m venv lens4 && lens4/bin/pip install -r benches/requirements.txt
    lens4/bin/python benches/side_by_side.py [--rounds N] [--cells N] [--quick] [--case NAME] [--threads N]
        [--headscope PATH] [--smollm2 FOLDER]

Two cases, float32, CPU, all cores:

* `gpt2`: GPT-2 small's shape with random weights (written to a temporary folder in Hugging Face layout), 8 prompts of
  16 tokens. The corrupted prompts differ from the clean ones at every position, so that no cell of a sweep is without
  effect.
* `smollm2`: the bundled language model, from the folder that its first use leaves in headscope's cache, on 8 IOI
  prompts of 14 tokens. The corrupted prompts differ from position 9 on (there stands the subject for the second time),
  so that patching before it changes nothing in a causal model. headscope reads that from the tokens; TransformerLens
  runs the whole model for each cell.

TransformerLens is a `TransformerBridge` as `boot_transformers` makes it (the weights as they are), runs its own
`patching` functions, without gradients and with a cache of the one site; headscope runs its command. Each sweep takes
in, on both sides, the run that patches come from. The tools take turns, and the best of N rounds counts. What the
command takes to start and to load the model, measured in the same round with `headscope inspect`, is taken off; both
sides thus begin with a loaded model. The values of both are compared, cell by cell.

TransformerLens' loops take minutes; `--cells N` times them on N cells, drawn for each sweep, and extrapolates, as the
report says. headscope always computes all.

Prints a table and writes it to benches/results/side_by_side.md. `--quick` has 3 layers of GPT-2's shape, 6
cells of each sweep and one round, and writes nothing.

The machine should have nothing else to do: threads that wait at each other's barriers suffer out of proportion from a
third process, and TransformerLens, with many small steps, more than headscope. Where that cannot be had, the ratio of
processor seconds under `--threads 1` is still a fair one.
"""

import argparse
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from machine import CORES, ROOT, cache_folder, commit, processor

sys.path.insert(0, str(ROOT / "fixtures"))

import make_patching  # before transformer_lens: no progress bars, no hub
import numpy
import pandas
import torch
import transformers
from tokenizers import Tokenizer
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

PROMPTS, LENGTH, VOCAB = 8, 16, 50_257
SEED = 20263
RESULTS = ROOT / "benches" / "results" / "side_by_side.md"
HEADS, POSITIONS, ABLATED = (
    "z, every head; logit difference",
    "resid_pre, every layer x position; logit difference",
    "zero-ablation of every head; mean loss of all positions",
)

# Indirect object, subject, and a sentence whose braces are first name, second name, and the subject once more.
IOI = [
    ("John", "Mary", "When {} and {} went to the shops, {} gave the bag to"),
    ("Tom", "James", "When {} and {} walked to the park, {} gave the ball to"),
    ("Sarah", "Anna", "When {} and {} came to the house, {} gave the key to"),
    ("Peter", "Paul", "When {} and {} drove to the beach, {} handed the map to"),
    ("David", "Alice", "When {} and {} got to the office, {} gave the letter to"),
    ("Mark", "Kate", "When {} and {} went to the station, {} passed the ticket to"),
    ("Emma", "Jack", "When {} and {} ran to the garden, {} brought the flower to"),
    ("Henry", "Lucy", "When {} and {} went to the library, {} showed the book to"),
]
CHANGED, IOI_LENGTH = 9, 14


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


# ------------------------------------------------------------------------------------------------------------ cases

@dataclasses.dataclass
class Case:
    """A checkpoint in Hugging Face layout, pairs of prompts as token ids, and the sweeps that are timed on them."""

    title: str
    checkpoint: Path
    model: torch.nn.Module
    clean: numpy.ndarray
    corrupt: numpy.ndarray
    answers: numpy.ndarray
    sweeps: list


def gpt2_shape(folder, quick, _):
    layers = 3 if quick else 12
    rng = numpy.random.default_rng(SEED)
    clean = rng.integers(0, VOCAB, (PROMPTS, LENGTH))
    corrupt = (clean + rng.integers(1, VOCAB, clean.shape)) % VOCAB
    answers = rng.integers(0, VOCAB, (PROMPTS, 2))
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_layer=layers)).eval()
    model.save_pretrained(folder)
    shape = f"GPT-2 small's shape{f' with {layers} layers' if quick else ''}"
    title = f"{shape}, random weights, {PROMPTS} prompts of {LENGTH} tokens that differ at every position"
    return Case(title, folder, model, clean, corrupt, answers, [HEADS, POSITIONS, ABLATED])


def smollm2_ioi(_, __, checkpoint):
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

    def ids(texts):
        return numpy.array([tokenizer.encode(text).ids for text in texts])

    order = [(io, s) if i % 2 == 0 else (s, io) for i, (io, s, _) in enumerate(IOI)]  # who is named first
    clean = ids([text.format(*names, s) for names, (_, s, text) in zip(order, IOI)])
    corrupt = ids([text.format(*names, io) for names, (io, _, text) in zip(order, IOI)])
    answers = ids([f" {io} {s}" for io, s, _ in IOI])
    assert clean.shape == corrupt.shape == (len(IOI), IOI_LENGTH) and answers.shape == (len(IOI), 2)
    assert ((clean != corrupt) == (numpy.arange(IOI_LENGTH) == CHANGED)).all(), "only the second subject differs"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    title = f"SmolLM2-135M, {len(IOI)} IOI prompts of {IOI_LENGTH} tokens that differ at position {CHANGED}"
    return Case(title, checkpoint, model, clean, corrupt, answers, [HEADS, POSITIONS])


CASES = {"gpt2": gpt2_shape, "smollm2": smollm2_ioi}


# -------------------------------------------------------------------------------------------------- TransformerLens

class Lens:
    def __init__(self, case, cells):
        # Prompts are token ids; but a bridge wants some tokenizer, and finds none beside random weights.
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(ROOT / "fixtures" / "checkpoints" / "tiny-gpt2" / "tokenizer.json")
        )
        self.model = TransformerBridge.boot_transformers(
            str(case.checkpoint), hf_model=case.model, tokenizer=tokenizer, device="cpu", dtype=torch.float32
        )
        self.clean, self.corrupt, answers = map(torch.from_numpy, (case.clean, case.corrupt, case.answers))
        self.metric = lambda logits: make_patching.difference(logits, answers)
        self.cells = cells
        self.rng = numpy.random.default_rng(SEED)
        self.sweeps = {HEADS: self.heads, POSITIONS: self.positions, ABLATED: self.ablated}
        self.forward()  # warms up

    def forward(self):
        return self.model(self.corrupt)

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
        names = [f"blocks.{layer}.{site}" for layer in range(self.model.cfg.n_layers)]
        start, (_, cache) = timed(lambda: self.model.run_with_cache(self.clean, names_filter=names))
        index = pandas.DataFrame(cells, columns=["layer", "index"])
        seconds, values = timed(lambda: patching.generic_activation_patch(
            self.model, self.corrupt, cache, self.metric, setter, site.split("hook_")[1], index_df=index
        ))
        return start + weight * seconds, dict(zip(cells, values.tolist()))

    def heads(self):
        return self.patch("attn.hook_z", patching.layer_head_vector_patch_setter, self.model.cfg.n_heads)

    def positions(self):
        return self.patch("hook_resid_pre", patching.layer_pos_patch_setter, self.corrupt.shape[1])

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
    """`folder` holds the prompts, and the checkpoint unless that is elsewhere."""

    def __init__(self, program, folder, threads, checkpoint=None):
        self.program, self.folder, self.checkpoint = program, folder, checkpoint or folder
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self.sweeps = {HEADS: self.heads, POSITIONS: self.positions, ABLATED: self.ablated}

    def call(self, *words):
        words = [str(word) for word in (self.program, *words)]
        done = subprocess.run(words, capture_output=True, text=True, env=self.environment)
        if done.returncode:
            raise SystemExit(f"{words}: {done.stderr}")
        return done.stdout + done.stderr

    def start_and_load(self):
        return timed(lambda: self.call("inspect", self.checkpoint))[0]

    def sweep(self, verb, *words):
        """Seconds as `timed` has them, and the values."""
        table = self.folder / "table.json"
        seconds, _ = timed(lambda: self.call(verb, self.checkpoint, *words, "--top", "1", "--out", table))
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


# -------------------------------------------------------------------------------------------------------- measuring

def best(rounds):
    """The least clock time and the least processor time, each of any round."""
    return numpy.min(rounds, axis=0)


def compare(theirs, ours):
    """Cells, the largest difference between the tools, and the spread of the values, against which to see it."""
    assert theirs.keys() <= ours.keys(), "the tools swept different cells"
    apart = max(abs(theirs[cell] - ours[cell]) for cell in theirs)
    return len(ours), apart, max(ours.values()) - min(ours.values())


class Machine:
    """What else the timings depend on, looked at between them."""

    def __init__(self):
        self.rate, self.loads = 0.0, [os.getloadavg()[0]]

    def look(self):
        self.rate = max(self.rate, gigaflops())
        self.loads.append(os.getloadavg()[0])


def measure(case, folder, program, machine, arguments):
    """Times each sweep with both tools in turns: the section of the report on this case, and the command's version."""
    for name in ["clean", "corrupt", "answers"]:
        (folder / f"{name}.json").write_text(json.dumps(getattr(case, name).tolist()))
    lens = Lens(case, arguments.cells)
    command = Command(program, folder, arguments.threads, case.checkpoint)
    command.start_and_load()  # the checkpoint is in the page cache from here on
    forward = []
    theirs, ours, started = ({name: [] for name in case.sweeps} for _ in range(3))
    agreement = {}
    for turn in range(arguments.rounds):
        for name in case.sweeps:
            machine.look()
            forward.append(timed(lens.forward)[0])
            seconds, expected = lens.sweeps[name]()
            theirs[name].append(seconds)
            started[name].append(command.start_and_load())
            seconds, found = command.sweeps[name]()
            ours[name].append(seconds)
            agreement[name] = compare(expected, found)
            clocks = theirs[name][-1][0], seconds[0], started[name][-1][0], os.getloadavg()[0]
            report = "TransformerLens {:.2f} s, headscope {:.2f} s with {:.2f} s to start and load (load {:.1f})"
            print(f"round {turn + 1}: {name}: {report.format(*clocks)}", flush=True)
    lines = [
        f"## {case.title}",
        "",
        "| sweep | cells | TransformerLens (s) | headscope (s) | ratio | ratio of processor seconds "
        "| start and load, taken off (s) | largest difference of values | their spread |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name in case.sweeps:
        (load, _), slow, fast = best(started[name]), best(theirs[name]), best(ours[name]) - best(started[name])
        ratio = slow / fast
        cells, apart, spread = agreement[name]
        lines.append(
            f"| {name} | {cells} | {slow[0]:.2f} | {fast[0]:.2f} | {ratio[0]:.1f} x | {ratio[1]:.1f} x | {load:.2f} "
            f"| {apart:.1e} | {spread:.2g} |"
        )
    return [*lines, "", f"One forward pass of TransformerLens takes {best(forward)[0]:.2f} s.", ""]


# ------------------------------------------------------------------------------------------------------------- main

def parse():
    parser = argparse.ArgumentParser(description="Times TransformerLens and headscope side by side.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool does each sweep [default: 3]")
    parser.add_argument("--cells", type=int, default=0, help="TransformerLens' share of each sweep [default: all]")
    parser.add_argument("--quick", action="store_true", help="3 layers, 6 cells, one round; nothing is written")
    parser.add_argument("--case", choices=CASES, help="only this case; nothing is written [default: all]")
    parser.add_argument("--threads", type=int, default=CORES, help="for both tools [default: all cores]")
    parser.add_argument("--headscope", type=Path, default=ROOT / "target" / "debug" / "headscope", help="the command")
    parser.add_argument("--smollm2", type=Path, default=cache_folder() / "smollm2", help="its folder [default: cached]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file to write")
    arguments = parser.parse_args()
    if not arguments.headscope.is_file():
        parser.error(f"{arguments.headscope} is not there: `cargo build` makes it")
    if arguments.case != "gpt2" and not (arguments.smollm2 / "model.safetensors").is_file():
        parser.error(f"{arguments.smollm2} has no model.safetensors: `headscope inspect smollm2` makes it")
    if arguments.quick:
        arguments.rounds, arguments.cells = 1, arguments.cells or 6
    return arguments


def main():
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(SEED)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    built, machine, sections = commit(), Machine(), []
    with tempfile.TemporaryDirectory() as temporary:
        program = Path(temporary) / "headscope"  # a copy: a build in the meantime does not change what is measured
        program.write_bytes(arguments.headscope.read_bytes())
        program.chmod(0o755)
        described = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        for name, make in CASES.items():
            if arguments.case in (None, name):
                folder = Path(temporary) / name
                folder.mkdir()
                case = make(folder, arguments.quick, arguments.smollm2)
                sections += measure(case, folder, program, machine, arguments)

    sampled = f" TransformerLens is timed on {arguments.cells} cells of each sweep and extrapolated."
    text = "\n".join([
        "# TransformerLens and headscope, side by side",
        "",
        f"Written by `benches/side_by_side.py` on {datetime.date.today()}. float32, CPU; the best of "
        f"{arguments.rounds}, the tools taking turns.{sampled if arguments.cells else ''}",
        "",
        *sections,
        "## How",
        "",
        f"- TransformerLens {version('transformer_lens')} (`TransformerBridge`, weights as they are) on PyTorch "
        f"{torch.__version__} and transformers {transformers.__version__}; {described} ({built}).",
        f"- Threads: {arguments.threads}, on {CORES} cores of {processor()}; a large float32 matrix product reaches "
        f"{machine.rate:.0f} GFLOP/s. Load average of the last minute, this included: {min(machine.loads):.1f} to "
        f"{max(machine.loads):.1f}.",
        "- Timed on both sides: the run that patches come from, the sweep, the metric. headscope's start and loading "
        "are taken off as `inspect` takes them.",
        *([f"- HEADSCOPE_ONEDNN={os.environ['HEADSCOPE_ONEDNN']}."] if "HEADSCOPE_ONEDNN" in os.environ else []),
        "- The spread is the largest value less the smallest.",
        "",
    ])
    print("\n" + text)
    if not arguments.quick and not arguments.case:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
        print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
