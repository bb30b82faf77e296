"""How much faster several processes take in rows with second moments than one, each on one thread.

The command is run in turn on one process and on several; what is compared is the time from when all are ready until the
last part is written, as ``--verbose`` tells it, so that the start of the processes and the reading out are apart. The
load of the machine stands beside it: other work on the same cores lowers the ratio.

    python benchmarks/processes.py [--rows 2097152] [--dim 128] [--processes 2] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

BLOCK = 2**16


def write_rows(path: Path, count: int, dim: int) -> None:
    rows = np.lib.format.open_memmap(path, "w+", np.float32, (count, dim))
    random = np.random.default_rng(0)
    for start in range(0, count, BLOCK):
        rows[start : start + BLOCK] = random.standard_normal((min(BLOCK, count - start), dim), np.float32) + 1
    rows.flush()


def seconds(folder: Path, processes: int) -> float:
    """Time that all parts took."""
    output = folder / "out.safetensors"
    output.unlink(missing_ok=True)
    command = ["reference", "--embeddings", str(folder / "rows.npy"), "-o", str(output), "--verbose"]
    run = subprocess.run(
        [sys.executable, "-m", "clipconformity", *command, "--processes", str(processes)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.search(r"(\d+) parts in ([\d.]+) s", run.stderr)
    assert found, run.stderr
    return float(found[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2**21)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.npy", options.rows, options.dim)
        print(f"{options.rows:,} rows of {options.dim}; {os.cpu_count()} cores")
        print("| load before | one process | several | ratio |\n|---|---|---|---|")
        best: dict[int, float] = {}
        for _ in range(options.repeats):
            load = os.getloadavg()[0]
            one, several = (seconds(folder, count) for count in (1, options.processes))
            print(f"| {load:.1f} | {one:.2f} s | {several:.2f} s | {one / several:.2f} |", flush=True)
            for count, took in ((1, one), (options.processes, several)):
                best[count] = min(best.get(count, took), took)
        print(f"best of each: {best[1] / best[options.processes]:.2f}")


if __name__ == "__main__":
    main()
