"""Power of the test of equal distributions beside others on the same conformities and redraws.

Each run draws a reference and evaluated samples as ``coverage.py`` does. Anderson-Darling is the library's headline
test; Kolmogorov-Smirnov, the energy distance and the difference of the means take the same permutations, so that
nothing but the statistic differs. "Direction": of the verdicts ``more`` and ``less`` on typicality, how many are right.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from coverage import compared, embeddings
from torch import Tensor

import clipconformity as cc
from clipconformity.evaluation.results import judge
from clipconformity.functional.two_sample import anderson_darling, tail_probability
from clipconformity.stream.null import redraw

TESTS = ("Anderson-Darling", "Kolmogorov-Smirnov", "energy", "mean")


class Alternative(NamedTuple):
    """How the evaluated conformities differ from the reference's."""

    name: str
    shift: float = 0.0
    scale: float = 1.0
    shape: str = "gaussian"


ALTERNATIVES = (
    Alternative("none"),
    *(Alternative(f"shift {x}", shift=x) for x in (0.1, 0.2, 0.3, 0.5)),
    Alternative("scale 0.8", scale=0.8),
    Alternative("scale 1.25", scale=1.25),
    Alternative("skewed", shape="skewed"),
    Alternative("heavy tails", shape="heavy"),
    Alternative("bimodal", shape="bimodal"),
)


def rows(size: int, one: Alternative, draw: np.random.Generator) -> Tensor:
    """Raw embeddings whose conformity differs from the standard one as given."""
    return embeddings(size, one.shape, None, one.shift, draw, scale=one.scale)


def simulate(one: Alternative, sizes: tuple[int, int], seed: int, resamples: int) -> tuple[list[float], str]:
    """p-values of every test, and the verdict on typicality."""
    torch.set_num_threads(1)
    draw = np.random.default_rng(seed)
    reference = cc.ReferenceSet.fit(rows(sizes[1], Alternative("none"), draw))
    contrast = compared(rows(sizes[0], one, draw), reference, None).contrast("benchmark")
    redraws = redraw(contrast, resamples, torch.Generator().manual_seed(seed))
    pair, drawn = redraws.observed, (redraws.evaluated, redraws.reference)
    sides = [torch.cat([own[None], more]) for own, more in zip(pair, drawn, strict=True)]
    shares = [side / side.sum(1, keepdim=True) for side in sides]
    apart = (shares[0] - shares[1]).cumsum(1)
    cell = torch.arange(sides[0].shape[1], dtype=torch.float64)
    statistics = (
        anderson_darling(*sides, pair[0] + pair[1]),
        apart.abs().amax(1),
        apart.square().sum(1),
        ((shares[0] - shares[1]) @ cell).abs(),
    )
    values = [tail_probability(x[0], x[1:]) for x in statistics]
    return values, judge(contrast)["typicality"].outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=400, help="runs for each line (default: %(default)s)")
    parser.add_argument("--resamples", type=int, default=400, help="permutations (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs=2, default=(200, 1000), metavar=("N", "M"))
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    print(f"{options.sizes[0]} against {options.sizes[1]} samples, {options.runs} runs, level 5%.\n")
    print("| difference | " + " | ".join(TESTS) + " | share of the best general one | direction |")
    print("|---" * (len(TESTS) + 3) + "|", flush=True)
    start = time.perf_counter()
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for number, one in enumerate(ALTERNATIVES):
            seeds = [100_000 * number + run for run in range(options.runs)]
            many = [[x] * options.runs for x in (one, tuple(options.sizes), options.resamples)]
            found = list(pool.map(simulate, many[0], many[1], seeds, many[2], chunksize=16))
            power = np.mean([[p <= 0.05 for p in values] for values, _ in found], axis=0)
            reported = [outcome for _, outcome in found if outcome in ("more", "less")]
            right = [outcome == ("more" if one.shift > 0 else "less") for outcome in reported]
            direction = f"{np.mean(right):.1%} of {len(reported)}" if one.shift and reported else ""
            best = power[:3].max()
            share = f"{power[0] / best:.2f}" if one.name != "none" and best > 0 else ""
            cells = [one.name, *(f"{x:.1%}" for x in power), share, direction]
            print("| " + " | ".join(cells) + " |", flush=True)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
