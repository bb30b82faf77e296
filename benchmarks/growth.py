"""Growth with N and D: seconds and memory of one run with all metrics, and of its peers, from `peers.py`.

Each is run in full in a process of its own, on one side and a reference of N rows each. What holds N x N matrices stops
at `--max-pairs` rows, and the Vendi score, whose time grows with the cube, at a third of that.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from peers import OWN, RUNS, run_alone

PAIRS = ("cmmd", "vendi", "prdc", "own_prdc")
COLORS = {
    "one_run": "#0072b2",
    "own_prdc": "#0072b2",
    "cmmd": "#d55e00",
    "vendi": "#cc79a7",
    "prdc": "#56b4e9",
    "fid": "#009e73",
    "kid": "#e69f00",
}


def is_within(name: str, count: int, max_pairs: int) -> bool:
    """Whether a run of so many rows ends in reasonable time."""
    return name not in PAIRS or count <= (max_pairs // 3 if name == "vendi" else max_pairs)


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run each at each size, and print a row of the table."""
    found = []
    print("| D | N | | seconds | memory, GB |\n|---|---|---|---|---|")
    for dim in options.dims:
        for count in options.counts:
            for name, (about, _) in RUNS.items():
                if not is_within(name, count, options.max_pairs):
                    continue
                size = argparse.Namespace(count=count, dim=dim, part=count, threads=options.threads)
                one = run_alone(name, size)
                memory = max(one["memory"], one["gigabytes"] or 0.0)
                found.append({"dim": dim, "count": count, "name": name, "seconds": one["seconds"], "memory": memory})
                print(f"| {dim} | {count:,} | {about} | {one['seconds']:.2f} | {memory:.2f} |", flush=True)
    return found


def draw(found: list[dict[str, Any]], dims: list[int], path: Path) -> None:
    """Draw seconds over N, a panel for each dimension, on log axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(dims), 3.6), layout="constrained")
    panels = figure.subplots(1, len(dims), sharey=True, squeeze=False)[0]
    for axes, dim in zip(panels, dims, strict=True):
        for name, (about, _) in RUNS.items():
            points = [
                (one["count"], max(one["seconds"], 0.01)) for one in found if (one["dim"], one["name"]) == (dim, name)
            ]
            style, width = ("o--" if name == "own_prdc" else "o-"), (2.5 if name in OWN else 1.2)
            axes.plot(*zip(*points, strict=True), style, color=COLORS[name], label=about, linewidth=width, markersize=4)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"D = {dim}", loc="left", fontsize=10)
        axes.set_xlabel("rows of either side, N")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("seconds of processor time")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 3000, 10_000, 30_000], help="sizes N")
    parser.add_argument("--dims", type=int, nargs="+", default=[512, 1024], help="dimensions D")
    parser.add_argument("--max-pairs", type=int, default=10_000, help="rows of what takes all pairs (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of all (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the seconds over N: .svg or .png")
    options = parser.parse_args()
    print(
        f"{options.threads} thread(s), torch {torch.__version__}, Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load before {os.getloadavg()[0]:.1f}.\n"
    )
    found = measure(options)
    if options.plot is not None:
        draw(found, options.dims, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
