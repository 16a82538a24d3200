#!/usr/bin/env python3
"""How long the notebook kernel takes to start, and to answer 30 ordinary cells.

    make kernel && .venv/bin/python benches/kernel_latency.py [--runs N]

Prints a table, and exits with 1 if a limit is passed: 15 s from the kernel's start to the first result of
`use headscope::prelude::*;`, then 1.0 s for the median cell and 3 s for the worst.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START, MEDIAN, WORST = 15.0, 1.0, 3.0
FIRST = "use headscope::prelude::*;"
CELLS = [
    "use headscope::polars::prelude::*;",
    "let x: Tensor = Tensor::rand([64, 64], (Kind::Float, Device::Cpu));",
    "let y = x.matmul(&x.tr());",
    'println!("{:?}", y.size());',
    "let norm: f64 = y.norm().double_value(&[]);",
    "norm",
    "let pattern = y.softmax(-1, Kind::Float);",
    "pattern.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float).double_value(&[0])",
    'let table: DataFrame = df!("layer" => [0i64, 0, 1, 1], "head" => [0i64, 1, 0, 1], "value" => [0.5, 0.25, 0.75, 1.0])?;',
    "table",
    "fn entropy(p: &[f64]) -> f64 { p.iter().filter(|&&v| v > 0.0).map(|v| -v * v.ln()).sum() }",
    "entropy(&[0.5, 0.25, 0.25])",
    "let row: Vec<f64> = (0..64).map(|k| pattern.double_value(&[0, k])).collect();",
    "let h = entropy(&row);",
    'println!("{h:.3} nats");',
    "let entropies: Vec<f64> = (0..64).map(|q| entropy(&(0..64).map(|k| pattern.double_value(&[q, k])).collect::<Vec<f64>>())).collect();",
    "let mean = entropies.iter().sum::<f64>() / entropies.len() as f64;",
    "mean",
    "#[derive(Debug, Clone)] struct Head { layer: usize, head: usize, score: f64 }",
    "let heads: Vec<Head> = (0..12).map(|i| Head { layer: i / 4, head: i % 4, score: entropies[i] }).collect();",
    "heads.iter().max_by(|a, b| a.score.total_cmp(&b.score)).cloned()",
    'let scores: DataFrame = df!("layer" => heads.iter().map(|h| h.layer as i64).collect::<Vec<_>>(), "score" => heads.iter().map(|h| h.score).collect::<Vec<_>>())?;',
    'let sorted = scores.sort(["score"], SortMultipleOptions::default())?;',
    "sorted.head(Some(3))",
    'let model = Model::load("minilm")?;',
    'let tokens = model.tokens(&["The cat sat on the mat.", "The dogs ran."])?;',
    "let run = model.run(&tokens, &Plan::new().tap(Site::Pattern(2)))?;",
    "let looks: Tensor = run.get(Site::Pattern(2))?.select(0, 0);",
    'println!("{:?}", looks.size());',
    'println!("{} heads, {} rows, mean entropy {:.2}", heads.len(), sorted.height(), mean);',
]


def memory(pid):
    """Resident MiB of a process, and of it and its children, from /proc."""
    own = total = 0
    pages = os.sysconf("SC_PAGE_SIZE")
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if int(entry.name) == pid or parent == pid:
                held = int((entry / "statm").read_text().split()[1]) * pages
                total += held
                own += held if int(entry.name) == pid else 0
        except (OSError, IndexError, ValueError):
            continue
    return own / 2**20, total / 2**20


def execute(client, source):
    """Runs a cell; returns (seconds, what went wrong or None)."""
    wrong = []

    def read(message):
        content = message["content"]
        if message["msg_type"] == "error":
            wrong.append(content["evalue"])
        elif message["msg_type"] == "stream" and content["text"].startswith("Error: "):
            wrong.append(content["text"])

    start = time.monotonic()
    client.execute_interactive(source, timeout=600, output_hook=read)
    return time.monotonic() - start, "; ".join(wrong) or None


def measure():
    from jupyter_client.manager import KernelManager

    os.chdir(ROOT / "notebooks")
    os.environ["HEADSCOPE_ROOT"] = str(ROOT)
    start = time.monotonic()
    manager = KernelManager(kernel_name="headscope")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=600)
        _, wrong = execute(client, FIRST)
        started = time.monotonic() - start
        cells = [(FIRST, 0.0, wrong)] if wrong else []
        for source in CELLS:
            seconds, wrong = execute(client, source)
            cells.append((source, seconds, wrong))
        return started, cells, memory(manager.provisioner.pid)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def main():
    parser = argparse.ArgumentParser(description="How long the notebook kernel takes to start and to answer.")
    parser.add_argument("--runs", type=int, default=1, help="kernels to start, one after the other")
    runs = [measure() for _ in range(parser.parse_args().runs)]
    for number, (started, cells, held) in enumerate(runs):
        if number == 0:
            for source, seconds, _ in cells:
                print(f"{seconds:7.2f} s  {source[:110]}")
            print()
            print("run   start to first result   median cell   worst cell   memory: parent, all")
        times = [seconds for _, seconds, _ in cells]
        print(f"{number + 1:3d} {started:21.2f} s {statistics.median(times):11.2f} s {max(times):10.2f} s {held[0]:15.0f}, {held[1]:.0f} MiB")
    failed = [f"{source}\n    {wrong}" for _, cells, _ in runs for source, _, wrong in cells if wrong]
    for text in failed:
        print(f"FAILED {text}")
    within = all(
        started <= START and statistics.median(cell[1] for cell in cells) <= MEDIAN and max(cell[1] for cell in cells) <= WORST
        for started, cells, _ in runs
    )
    print(f"limits  {START:16.0f} s {MEDIAN:11.1f} s {WORST:10.1f} s   {'kept' if within else 'PASSED'}")
    return 0 if within and not failed else 1


if __name__ == "__main__":
    if not (ROOT / ".venv").exists():
        sys.exit("headscope: the Python environment is not there; run `make kernel`")
    sys.exit(main())
