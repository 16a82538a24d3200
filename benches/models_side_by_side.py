#!/usr/bin/env python3
"""Plain use of a model with transformers and with headscope, side by side in one run.

    python3 -m venv lens4 && lens4/bin/pip install -r benches/requirements.txt
    cargo build --release --bench models
    lens4/bin/python benches/models_side_by_side.py [--rounds N] [--threads N] [--headscope PATH] [--smollm2 FOLDER]

Two checkpoints in float32 on the CPU: GPT-2 small's shape with random weights, and the bundled SmolLM2-135M. For each:

* a forward pass of 8 prompts of 64 tokens to all logits: transformers with each of its attention implementations, of
  which the fastest counts;
* the same with every site tapped, in headscope;
* 64 tokens written after a prompt of 16, greedily, with cached keys and values on both sides;
* a process that loads the checkpoint and computes the first logits: its seconds, and the most memory that it holds
  beyond what the libraries take, relative to the weights.

A process of each tool loads the model and waits; they take turns, one round after another, and ratios are medians of
the rounds. Both sides must agree on the last logit and on the tokens that they write.

Prints a table and writes it to benches/results/models_side_by_side.md. The machine should have nothing else to do.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from machine import CORES, ROOT, cache_folder, commit, processor

RESULTS = ROOT / "benches" / "results" / "models_side_by_side.md"
IMPLEMENTATIONS = ("sdpa", "eager")
NEW = 64


# ------------------------------------------------------------------------------------------- the peer, in a process

def peak():
    """The most memory that this process has held, in bytes, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def peer(folder):
    """The same protocol as benches/models.rs."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.set_grad_enabled(False)

    def prompts(batch, positions):
        return torch.tensor([[(b * 6007 + p * 911) % vocab for p in range(positions)] for b in range(batch)])

    def timed(work):
        start, before = time.perf_counter(), time.process_time()
        found = work()
        return {"seconds": time.perf_counter() - start, "processor": time.process_time() - before, "found": found}

    def forward(batch, positions):
        return model(prompts(batch, positions)).logits.flatten()[-1].item()

    def generate():
        ids = model.generate(prompts(1, 16), max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        return ids[0, 16:].tolist()

    # The classes of the architecture are imported when they are first asked for: not part of loading.
    auto = transformers.AutoModelForCausalLM
    auto.from_config(transformers.AutoConfig.from_pretrained(folder, num_hidden_layers=1, vocab_size=8))
    before = peak()
    start = time.perf_counter()
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    vocab = model.config.vocab_size
    found = forward(1, 16)
    first = {"seconds": time.perf_counter() - start, "found": found, "before": before, "peak": peak()}
    print(json.dumps(first), flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "forward":
            model.set_attn_implementation(words[1])
            print(json.dumps(timed(lambda: forward(8, 64))), flush=True)
        else:
            model.set_attn_implementation(IMPLEMENTATIONS[0])
            print(json.dumps(timed(generate)), flush=True)


# -------------------------------------------------------------------------------------------------------- measuring

class Process:
    """A tool with a model loaded, which does what it is told."""

    def __init__(self, words, threads):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment)
        self.first = json.loads(self.child.stdout.readline())

    def ask(self, *words):
        self.child.stdin.write(" ".join(words) + "\n")
        self.child.stdin.flush()
        return json.loads(self.child.stdout.readline())

    def end(self):
        self.child.stdin.close()
        self.child.wait()


def gpt2_shape(folder):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(20264)
    GPT2LMHeadModel(GPT2Config()).eval().save_pretrained(folder)
    return folder


def weights(folder):
    """Bytes of the weights in float32, without the head that is tied."""
    from safetensors import safe_open

    total = 0
    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():
                size = 4
                for n in opened.get_slice(name).get_shape():
                    size *= n
                total += size
    return total


def measure(title, folder, arguments):
    ours_words = [str(arguments.headscope), str(folder)]
    theirs_words = [sys.executable, __file__, "--peer", str(folder)]
    loads = {"ours": [], "theirs": []}
    for _ in range(arguments.rounds):
        for name, words in (("theirs", theirs_words), ("ours", ours_words)):
            process = Process(words, arguments.threads)
            loads[name].append(process.first)
            process.end()
    ours, theirs = Process(ours_words, arguments.threads), Process(theirs_words, arguments.threads)
    rounds = []
    for turn in range(arguments.rounds + 1):
        row = {name: theirs.ask("forward", name) for name in IMPLEMENTATIONS}
        row["forward"], row["tapped"] = ours.ask("forward"), ours.ask("tapped")
        row["their generate"], row["generate"] = theirs.ask("generate"), ours.ask("generate")
        if turn:  # the first warms up
            rounds.append({name: (found["seconds"], found["processor"]) for name, found in row.items()})
            print(f"{title}, round {turn}: {rounds[-1]}", flush=True)
        apart = abs(row["forward"]["found"] - row["sdpa"]["found"])
        assert apart < 1e-3 * max(1.0, abs(row["sdpa"]["found"])), "the tools compute different logits"
        written = row["generate"]["found"]
        assert written == row["their generate"]["found"] and len(written) == NEW, "the tools write different tokens"
    ours.end()
    theirs.end()

    def clock(name):
        return statistics.median(row[name][0] for row in rounds)

    def ratio(name, peer):
        """Of clock and of processor seconds."""
        return [statistics.median(row[name][i] / row[peer][i] for row in rounds) for i in (0, 1)]

    fastest = min(IMPLEMENTATIONS, key=clock)
    load = {name: statistics.median(one["seconds"] for one in all_of) for name, all_of in loads.items()}
    held = {name: max(one["peak"] - one["before"] for one in all_of) / weights(folder) for name, all_of in loads.items()}
    plain, tapped, faster = ratio("forward", fastest), ratio("tapped", "forward"), ratio("their generate", "generate")
    rows = [
        ("", "transformers", "headscope", "headscope / transformers", "in processor seconds"),
        ("---", "---:", "---:", "---:", "---:"),
        ("forward, 8 x 64 tokens", f"{clock(fastest):.3f} s ({fastest})", f"{clock('forward'):.3f} s",
         f"{plain[0]:.2f}", f"{plain[1]:.2f}"),
        ("the same, every site tapped", "", f"{clock('tapped'):.3f} s", f"{tapped[0]:.2f} of the plain one",
         f"{tapped[1]:.2f}"),
        (f"{NEW} tokens written", f"{NEW / clock('their generate'):.1f} tokens/s", f"{NEW / clock('generate'):.1f} tokens/s",
         f"{faster[0]:.1f} times as fast", f"{faster[1]:.1f}"),
        ("load to first logits", f"{load['theirs']:.2f} s", f"{load['ours']:.2f} s",
         f"{load['ours'] / load['theirs']:.2f}", ""),
        ("peak memory beyond the libraries, of the weights", f"{held['theirs']:.2f}", f"{held['ours']:.2f}", "", ""),
    ]
    return [f"## {title}", "", *(f"| {' | '.join(row)} |" for row in rows), ""]


def parse():
    parser = argparse.ArgumentParser(description="Times transformers and headscope side by side.")
    parser.add_argument("--rounds", type=int, default=7, help="how often each tool does each thing [default: 7]")
    parser.add_argument("--threads", type=int, default=CORES, help="for both tools [default: all cores]")
    parser.add_argument("--headscope", type=Path, help="the bench's program [default: the newest in target/release]")
    parser.add_argument("--smollm2", type=Path, default=cache_folder() / "smollm2", help="its folder [default: cached]")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file to write")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.peer and not arguments.headscope:
        built = [file for file in (ROOT / "target/release/deps").glob("models-*") if not file.suffix]
        arguments.headscope = max(built, key=lambda file: file.stat().st_mtime, default=None)
        if not arguments.headscope:
            parser.error("no program: `cargo build --release --bench models` makes it")
    return arguments


def main():
    arguments = parse()
    if arguments.peer:
        peer(arguments.peer)
        return
    with tempfile.TemporaryDirectory() as temporary:
        sections = measure("GPT-2 small's shape, random weights", gpt2_shape(temporary), arguments)
        sections += measure("SmolLM2-135M", arguments.smollm2, arguments)
    text = "\n".join([
        "# transformers and headscope, side by side",
        "",
        f"Written by `benches/models_side_by_side.py` on {datetime.date.today()}. float32, CPU; medians of "
        f"{arguments.rounds} rounds in which the tools take turns.",
        "",
        *sections,
        f"transformers {version('transformers')} on PyTorch {version('torch')}; headscope {commit()}. Threads: "
        f"{arguments.threads}, on {CORES} cores of {processor()}. Load average of the last minute, this included: "
        f"{os.getloadavg()[0]:.1f}.",
        "",
    ])
    print("\n" + text)
    arguments.out.write_text(text, encoding="utf-8")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
