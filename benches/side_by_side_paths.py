#!/usr/bin/env python3
"""TransformerLens 3.9.0 and headscope on path patching and on attention-edge knock-out, side by side in one run.

    python3 -m venv peers && peers/bin/pip install -r fixtures/requirements.txt
    peers/bin/python benches/side_by_side_paths.py [--rounds N] [--quick] [--threads N] [--headscope PATH]

TransformerLens stays at 3.9.0 here: the loops below are written for its HookedTransformer, which version 4 no longer has
(side_by_side.py is run with 4.3.0). The set-up is that of side_by_side.py's first case: GPT-2 small's shape with random
weights, 8 prompts of 16 tokens, float32, CPU, all cores. TransformerLens' loops take minutes, so that each is timed on
a sample and extrapolated, as the table says.

* Paths: every head of an earlier one of the layers 2, 5 and 8 to the query of every head of a later one, 432 pairs.
  Exact path patching as a user of TransformerLens writes it with hooks: one run a sender, its z corrupted and all other
  heads' z clean, MLPs recomputed, from which the queries of all receivers are kept; then one run a pair. Senders and
  pairs are timed apart. TransformerLens' own `get_act_patch_direct_path` keeps the scale of the receiver's norm as it
  was and passes by the MLPs (it is linearised, not exact), and always sweeps all later layers; its time is given for
  as many pairs, from one call.
* Knock-outs: every edge from the last position to each position, of every head in every layer, 12 x 12 x 16: that
  score is minus infinity, and the rest of the row is normalised anew. By hooks, one run an edge.

headscope runs its command, on all pairs and all edges; the values of the sample are compared. Base is the clean run, the
metric the logit difference of the last position, its mean over the prompts. What `headscope inspect` takes in the same
round, start and loading, is taken off.

Prints a table and writes it to benches/results/side_by_side_paths.md, unless it is `--quick` (9 layers, small samples).
"""

import argparse
import datetime
import json
import os
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path

import side_by_side  # before transformer_lens: no progress bars, no hub
import make_patching
import numpy
import torch
import transformers
from side_by_side import CORES, LENGTH, PROMPTS, ROOT, SEED, VOCAB, best, gigaflops, processor, timed
from transformer_lens.tools.analysis.direct_path_patching import get_act_patch_direct_path
from transformers import GPT2Config, GPT2LMHeadModel

LAYERS = (2, 5, 8)
RESULTS = ROOT / "benches" / "results" / "side_by_side_paths.md"


# -------------------------------------------------------------------------------------------------- TransformerLens

class Lens:
    def __init__(self, model, clean, corrupt, answers):
        self.model = make_patching.hooked(model, torch.float32)
        self.clean, self.corrupt = clean, corrupt
        self.metric = lambda logits: make_patching.difference(logits, answers)
        self.cfg = self.model.cfg
        self.forward()  # warms up

    def forward(self):
        self.model(self.clean)

    def caches(self):
        """What paths start from: every head's z on both runs."""
        def wanted(name):
            return name.endswith("hook_z")
        self.z = [self.model.run_with_cache(tokens, names_filter=wanted)[1] for tokens in (self.clean, self.corrupt)]

    def sender(self, layer, head):
        """One run with that head's z corrupted and every other clean: the queries of all later layers' heads."""
        clean, corrupt = self.z
        queries = {}

        def freeze(z, hook):
            z = clean[hook.name].clone()
            if hook.layer() == layer:
                z[:, :, head] = corrupt[hook.name][:, :, head]
            return z

        def keep(q, hook):
            queries[hook.layer()] = q

        # Nothing is read after the last receivers' queries, and a user can tell the run to stop there.
        later = [other for other in LAYERS if other > layer]
        hooks = [(f"blocks.{one}.attn.hook_z", freeze) for one in range(max(later))]
        hooks += [(f"blocks.{other}.attn.hook_q", keep) for other in later]
        with self.model.hooks(fwd_hooks=hooks):
            self.model(self.clean, stop_at_layer=max(later) + 1)
        return queries

    def receiver(self, queries, layer, head):
        """The clean run with one head's query from there."""
        def replace(q, hook):
            q[:, :, head] = queries[layer][:, :, head]
            return q
        logits = self.model.run_with_hooks(self.clean, fwd_hooks=[(f"blocks.{layer}.attn.hook_q", replace)])
        return self.metric(logits).item()

    def linearised(self):
        """TransformerLens' own function from a head two layers below the last: pairs, all of later layers' heads."""
        layer = self.cfg.n_layers - 3
        caches = [self.model.run_with_cache(tokens)[1] for tokens in (self.corrupt, self.clean)]
        seconds, _ = timed(lambda: get_act_patch_direct_path(
            self.model, self.clean, *caches, self.metric, layer, 0, "q", verbose=False
        ))
        return seconds, 2 * self.cfg.n_heads

    def knocked_out(self, layer, head, key):
        def cut(scores, hook):
            scores[:, head, -1, key] = -torch.inf
            return scores
        logits = self.model.run_with_hooks(self.clean, fwd_hooks=[(f"blocks.{layer}.attn.hook_attn_scores", cut)])
        return self.metric(logits).item()


def every_pair(heads):
    return [
        (low, i, high, j)
        for low in LAYERS for high in LAYERS if low < high for i in range(heads) for j in range(heads)
    ]


def time_paths(lens, senders, pairs):
    """Extrapolated seconds of all pairs, and the sample's values."""
    everything = every_pair(lens.cfg.n_heads)
    start, _ = timed(lens.caches)
    spent, queries, values = [], {}, {}
    for sender in senders:
        seconds, queries[sender] = timed(lambda: lens.sender(*sender))
        spent.append(seconds)
    runs = []
    for pair in pairs:
        seconds, values[pair] = timed(lambda: lens.receiver(queries[pair[:2]], *pair[2:]))
        runs.append(seconds)
    count = len({pair[:2] for pair in everything})
    return start + count * numpy.mean(spent, 0) + len(everything) * numpy.mean(runs, 0), values


def time_knockouts(lens, edges):
    everything = lens.cfg.n_layers * lens.cfg.n_heads * LENGTH
    spent, values = [], {}
    for edge in edges:
        seconds, values[edge] = timed(lambda: lens.knocked_out(*edge))
        spent.append(seconds)
    return everything * numpy.mean(spent, 0), values


# -------------------------------------------------------------------------------------------------------- headscope

class Command(side_by_side.Command):
    def table(self, verb, words, columns):
        """Seconds, with those of start and loading taken off, and the values by these columns."""
        out = self.folder / "table.json"
        before = self.start_and_load()
        words = [*words, "--answers", f"@{self.folder}/answers.json", "--metric", "logit-difference"]
        seconds, _ = timed(lambda: self.call(verb, self.folder, *words, "--top", "1", "--out", out))
        values = {tuple(row[column] for column in columns): row["value"] for row in json.loads(out.read_text())}
        return seconds - before, values

    def paths(self):
        words = ["--clean", f"@{self.folder}/clean.json", "--corrupt", f"@{self.folder}/corrupt.json"]
        words += ["--from", "head", "--to", "query", "--layers", ",".join(map(str, LAYERS))]
        return self.table("paths", words, ["from_layer", "from_head", "layer", "head"])

    def knockouts(self):
        words = ["--tokens", f"@{self.folder}/clean.json", "--kind", "knock-out", "--positions", LENGTH - 1]
        return self.table("ablate", words, ["layer", "head", "key"])


# ------------------------------------------------------------------------------------------------------------- main

def sample(rng, among, n):
    return [among[i] for i in sorted(rng.choice(len(among), min(n, len(among)), replace=False))]


def compare(theirs, ours):
    """The largest difference on the sample, and the spread of the sample's values, against which to see it."""
    assert theirs.keys() <= ours.keys(), f"missing: {sorted(theirs.keys() - ours.keys())[:3]}"
    return max(abs(theirs[key] - ours[key]) for key in theirs), max(theirs.values()) - min(theirs.values())


def row(name, cells, sampled, theirs, ours=None, agreement=None):
    shown = f"| {name} | {cells} | {sampled} | {theirs[0]:.1f} "
    if ours is None:
        return shown + "| | | | | |"
    ratio, (apart, spread) = theirs / ours, agreement
    return shown + f"| {ours[0]:.2f} | {ratio[0]:.1f} x | {ratio[1]:.1f} x | {apart:.1e} | {spread:.2g} |"


def main():
    parser = argparse.ArgumentParser(description="Times path patching and knock-outs, TransformerLens and headscope.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed [default: 3]")
    parser.add_argument("--quick", action="store_true", help="9 layers, small samples, one round; nothing is written")
    parser.add_argument("--threads", type=int, default=CORES, help="for both tools [default: all cores]")
    parser.add_argument("--headscope", type=Path, default=ROOT / "target" / "debug" / "headscope", help="the command")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the file to write")
    arguments = parser.parse_args()
    if not arguments.headscope.is_file():
        parser.error(f"{arguments.headscope} is not there: `cargo build` makes it")
    layers, rounds = (9, 1) if arguments.quick else (12, arguments.rounds)
    n_senders, n_pairs, n_edges = (2, 6, 6) if arguments.quick else (6, 24, 36)
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    torch.manual_seed(SEED)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    rng = numpy.random.default_rng(SEED)
    clean = rng.integers(0, VOCAB, (PROMPTS, LENGTH))
    corrupt = (clean + rng.integers(1, VOCAB, clean.shape)) % VOCAB
    answers = rng.integers(0, VOCAB, (PROMPTS, 2))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_layer=layers)).eval()
        lens = Lens(model, *(torch.from_numpy(value) for value in (clean, corrupt, answers)))
        model.save_pretrained(folder)
        for name, value in {"clean": clean, "corrupt": corrupt, "answers": answers}.items():
            (folder / f"{name}.json").write_text(json.dumps(value.tolist()))
        program = folder / "headscope"  # a copy: a build in the meantime does not change what is measured
        program.write_bytes(arguments.headscope.read_bytes())
        program.chmod(0o755)
        command = Command(program, folder, arguments.threads)
        described = command.call("--version").strip()
        command.start_and_load()  # the checkpoint is in the page cache from here on
        del model

        heads = lens.cfg.n_heads
        everything = every_pair(heads)
        senders = sample(rng, sorted({pair[:2] for pair in everything}), n_senders)
        pairs = sample(rng, [pair for pair in everything if pair[:2] in senders], n_pairs)
        edges = [(layer, head, key) for layer in range(layers) for head in range(heads) for key in range(LENGTH)]
        knocked = sample(rng, edges, n_edges)
        rate, forward, loads = 0.0, float("inf"), [os.getloadavg()[0]]
        tasks = {
            "paths": (
                "exact paths, head to query", len(everything), f"{len(senders)} senders, {len(pairs)} pairs",
                lambda: time_paths(lens, senders, pairs), command.paths,
            ),
            "knockouts": (
                "knock-out of every edge of the last query", len(edges), f"{len(knocked)} edges",
                lambda: time_knockouts(lens, knocked), command.knockouts,
            ),
        }
        theirs, ours, agreement, own = {key: [] for key in tasks}, {key: [] for key in tasks}, {}, []
        for turn in range(rounds):
            for key, (name, _, _, measure, ourselves) in tasks.items():
                rate, forward = max(rate, gigaflops()), min(forward, timed(lens.forward)[0][0])
                seconds, values = measure()
                theirs[key].append(seconds)
                report = f"round {turn + 1}: {name}: TransformerLens {seconds[0]:.1f} s"
                seconds, found = ourselves()
                ours[key].append(seconds)
                agreement[key] = compare(values, found)
                report += f", headscope {seconds[0]:.2f} s"
                loads.append(os.getloadavg()[0])
                print(f"{report} (load {loads[-1]:.1f})", flush=True)
            seconds, count = lens.linearised()
            own.append(seconds * len(everything) / count)

    lines = [
        "| sweep | cells | timed | TransformerLens (s) | headscope (s) | ratio | ratio of processor seconds "
        "| largest difference of values | their spread |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for key, (name, cells, sampled, *_) in tasks.items():
        lines.append(row(name, cells, sampled, best(theirs[key]), best(ours[key]), agreement[key]))
    lines.append(row("`get_act_patch_direct_path` (linearised)", len(everything), f"{count} pairs", best(own)))

    def git(*words):
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD") + (", with changes" if git("status", "--porcelain", "src") else "")
    text = "\n".join([
        "# Paths and knock-outs, side by side",
        "",
        f"Written by `benches/side_by_side_paths.py` on {datetime.date.today()}. GPT-2 small's shape"
        f"{f' with {layers} layers' if arguments.quick else ''}, random weights, {PROMPTS} prompts of {LENGTH} tokens, "
        f"float32, CPU; the best of {rounds}, the tools taking turns. TransformerLens is timed on the sample said and "
        "extrapolated; headscope does all.",
        "",
        *lines,
        "",
        f"- TransformerLens {version('transformer_lens')} on PyTorch {torch.__version__}, one forward pass "
        f"{forward:.2f} s; {described} ({commit}).",
        f"- Paths: layers {LAYERS[0]}, {LAYERS[1]} and {LAYERS[2]}, every earlier head to every later head's query, "
        "MLPs recomputed; two caches, one run a sender (stopped at the last receiver), one run a pair.",
        f"- Threads: {arguments.threads}, on {CORES} cores of {processor()}; a large float32 matrix product reaches "
        f"{rate:.0f} GFLOP/s. Load average of the last minute, this included: {min(loads):.1f} to {max(loads):.1f}.",
        "",
    ])
    print("\n" + text)
    if not arguments.quick:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(text, encoding="utf-8")
        print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
