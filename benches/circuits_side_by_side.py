#!/usr/bin/env python3
"""TransformerLens 3.9.0 and headscope on the same questions about weights, in turns, in one run.

    python3 -m venv peers && peers/bin/pip install -r fixtures/requirements.txt
    peers/bin/python benches/circuits_side_by_side.py [--rounds N] [--quick]

GPT-2 small's shape (144 heads of 64 dimensions in 768) with random weights, CPU, all cores. TransformerLens computes
in float32 with `FactoredMatrix.svd` and `all_composition_scores("K")`; headscope, in float64, through its benchmark
`circuits`. The dense singular value decomposition of one head, times 144, is headscope's LAPACK on the product. The
best of N rounds counts on the one side, criterion's fastest sample on the other.
"""

import argparse
import json
import os
import subprocess
import time
import warnings
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"
warnings.simplefilter("ignore")

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

ROOT = Path(__file__).resolve().parent.parent
HEADS = 144
SVD, DENSE, COMPOSITION = "QK, SVD of 144 heads", "QK, dense SVD of one head", "k_composition"
OPTIMISED = ["opt-level=3", "debug-assertions=false", "overflow-checks=false"]


def criterion(name, quick):
    """Seconds of the fastest sample."""
    more = [word for option in OPTIMISED for word in ("--config", f"profile.dev.{option}")]
    fast = ["--warm-up-time", "1", "--measurement-time", "2"] if quick else []
    words = ["cargo", "bench", "--profile", "dev", *more, "--bench", "circuits", "--", name, *fast]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    folder = ROOT / "target" / "criterion" / "circuits_gpt2_small" / name
    sample = json.loads((folder / "new" / "sample.json").read_text())
    return 1e-9 * min(t / n for t, n in zip(sample["times"], sample["iters"]))


def timed(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description="Times TransformerLens and headscope on circuits.")
    parser.add_argument("--rounds", type=int, default=3, help="how often each tool does each [default: 3]")
    parser.add_argument("--quick", action="store_true", help="one round, short samples")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    lens = HookedTransformer(HookedTransformerConfig(
        n_layers=12, d_model=768, n_ctx=64, n_heads=12, d_head=64, attn_only=True, d_vocab=50, device="cpu", seed=0,
    ))
    calls = {SVD: lambda: lens.QK.svd(), COMPOSITION: lambda: lens.all_composition_scores("K")}
    theirs, ours = {name: [] for name in calls}, {name: [] for name in [*calls, DENSE]}
    for _ in range(1 if arguments.quick else arguments.rounds):
        for name, call in calls.items():
            theirs[name].append(timed(call))
            ours[name].append(criterion(name, arguments.quick))
        ours[DENSE].append(criterion(DENSE, arguments.quick))
    print("| question | other (s) | headscope (s) | ratio |\n|---|---:|---:|---:|")
    rows = [(f"{name}, TransformerLens", min(theirs[name]), min(ours[name])) for name in calls]
    rows.append((f"{SVD}, dense", HEADS * min(ours[DENSE]), min(ours[SVD])))
    for name, other, own in rows:
        print(f"| {name} | {other:.3f} | {own:.3f} | {other / own:.1f} |")
    print(f"\n{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
