"""Speed of exact conformity against brute force and against two plain sums over the same tensor.

Brute force is the mean of the rows of the N x N cosine matrix, built block by block; by default a slice of the rows is
timed and scaled up. A plain sum reads the tensor once, and any exact answer must read it at least twice: once for the
mean direction, once for the cosines. All figures are ratios of medians taken in one process, the three timed in turn,
so that a busy machine slows all of them alike. One thread is the default, since on shared cores the hand-over between
threads is what would be measured.

Targets: at least 300 times faster than brute force, at most 4 times two plain sums.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from clipconformity.functional import conformity

BLOCK = 500


def brute_force(embeddings: Tensor, rows: int) -> Tensor:
    """Conformity of the first ``rows`` rows inside the set from the cosine matrix, ``BLOCK`` rows of it at a time."""
    units = embeddings / torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    count = len(units)
    parts = [(units[i : min(i + BLOCK, rows)] @ units.T).sum(1) for i in range(0, rows, BLOCK)]
    return (torch.cat(parts) - 1) / (count - 1)


def two_sums(embeddings: Tensor) -> Tensor:
    """Two passes over the tensor."""
    return embeddings.sum() + embeddings.sum()


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=40_000, help="embeddings (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="dimension (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15, help="timings of each (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=2000, help="rows of brute force timed (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="time brute force in full, once")
    parser.add_argument("--threads", type=int, default=1, help="threads of all three (default: %(default)s)")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(options.count, options.dim, generator=generator) + 0.7
    rows = options.count if options.full else min(options.rows, options.count)
    worst = float((conformity(embeddings)[:BLOCK] - brute_force(embeddings, BLOCK)).abs().max())
    two_sums(embeddings)

    exact, plain, brute = [], [], []
    for repeat in range(options.repeats):
        exact.append(seconds(lambda: conformity(embeddings)))
        plain.append(seconds(lambda: two_sums(embeddings)))
        if repeat < (1 if options.full else 3):
            brute.append(seconds(lambda: brute_force(embeddings, rows)) * options.count / rows)
    one, sums, all_pairs = (statistics.median(x) for x in (exact, plain, brute))

    how = "timed in full" if options.full else f"{rows} rows timed, scaled"
    print(
        f"{options.count} x {options.dim} float32, {torch.get_num_threads()} thread(s), median of {options.repeats}.\n"
    )
    print("| | seconds | ratio | target |")
    print("|---|---|---|---|")
    print(f"| exact conformity | {one:.4f} | 1 | |")
    print(f"| brute force ({how}) | {all_pairs:.2f} | {all_pairs / one:.0f} times slower | at least 300 |")
    print(f"| two plain sums | {sums:.4f} | conformity takes {one / sums:.2f} times as long | at most 4 |")
    print(f"\nLargest difference from brute force on {BLOCK} rows: {worst:.1e}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
