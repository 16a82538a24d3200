"""headscope's nearest-neighbour estimator and Python's, in turns in one run.

    python3 benches/information_peers.py           (needs numpy, scikit-learn and scipy)

1 x 1: scikit-learn's mutual_info_regression, 20,000 samples, k = 5. 5 x 5, 10,000 samples: KSG-1 over scipy's cKDTree with
all cores and over scikit-learn's KDTree (as the NPEET package has it), whichever is faster. headscope is the benchmark
`information` as `cargo build --release` would optimise it (opt-level 3, no target-cpu), which this builds.
"""

import subprocess
import time
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma
from sklearn.feature_selection import mutual_info_regression
from sklearn.neighbors import KDTree

K = 5


def by_scipy(x, y):
    joint = np.hstack([x, y])
    radius = np.nextafter(cKDTree(joint).query(joint, K + 1, p=np.inf, workers=-1)[0][:, -1], 0)
    counts = [cKDTree(a).query_ball_point(a, radius, p=np.inf, workers=-1, return_length=True) for a in (x, y)]
    return digamma(K) + digamma(len(x)) - np.mean(sum(digamma(c) for c in counts))


def by_scikit_learn(x, y):
    joint = np.hstack([x, y])
    radius = np.nextafter(KDTree(joint, metric="chebyshev").query(joint, K + 1)[0][:, -1], 0)
    counts = [KDTree(a, metric="chebyshev").query_radius(a, radius, count_only=True) for a in (x, y)]
    return digamma(K) + digamma(len(x)) - np.mean(sum(digamma(c) for c in counts))


def best(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def main():
    root = Path(__file__).resolve().parent.parent
    optimised = [f"--config=profile.dev.{option}" for option in ("opt-level=3", "debug-assertions=false", "overflow-checks=false")]
    command = ["cargo", "bench", "-q", "--profile", "dev", *optimised, "--bench", "information", "--", "--speed"]
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_000)
    y = 0.75 * x + np.sqrt(1 - 0.75**2) * rng.normal(size=20_000)
    common = rng.normal(size=(10_000, 1))
    a, b = ((common + rng.normal(size=(10_000, 5))) / np.sqrt(2) for _ in range(2))
    ours, theirs = {}, {}
    for _ in range(3):
        lines = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\n")
        for case, threads, seconds in (line.split() for line in lines if line):
            ours[case, threads] = min(ours.get((case, threads), np.inf), float(seconds))
        for name, function, repeats in [
            ("1x1 mutual_info_regression", lambda: mutual_info_regression(x[:, None], y, n_neighbors=K), 5),
            ("5x5 scipy", lambda: by_scipy(a, b), 2),
            ("5x5 scikit-learn", lambda: by_scikit_learn(a, b), 1),
        ]:
            theirs[name] = min(theirs.get(name, np.inf), best(function, repeats))
    print("headscope built by:", " ".join(command))
    for (case, threads), seconds in ours.items():
        for name, other in theirs.items():
            if name.startswith(case):
                print(f"{case}, {threads} thread(s): {seconds:.4f} s; {name[4:]} {other:.4f} s: {other / seconds:.1f} x")


if __name__ == "__main__":
    main()
