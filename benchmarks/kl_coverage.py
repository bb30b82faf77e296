"""Coverage of ``ConformityKL.interval`` and exceedance of ``ConformityKL.noise_floor``, by simulation.

The embeddings have a Gaussian conformity by construction: u = c e_1 + sqrt(1 - c^2) w, with w uniform on the unit
sphere orthogonal to e_1 and c Gaussian, so that the true KL is known in closed form. Every run draws a new reference
and new evaluated samples and goes through the public classes. "Five per group" draws groups of five samples that share
part of c and of w, with ``groups`` given on both sides.

A line passes when a nominal 95% interval covers the truth in at least 85% of the runs, and when P = Q exceeds the 95%
noise floor in at most 10%.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import torch
from torch import Tensor

import clipconformity as cc

SIZES = ((200, 5000), (1000, 1000), (5000, 5000), (20_000, 5000))
DIVERGENCES = (0.0, 0.05, 0.14)
DIM = 32
MEAN, STD = 0.7, 0.04
PER_GROUP, SHARED = 5, 0.5


class Case(NamedTuple):
    """One line of the table."""

    evaluated: int
    reference: int
    divergence: float
    width: float
    grouped: bool


class Outcome(NamedTuple):
    """One run: the estimate, its interval and the noise floor."""

    value: float
    low: float
    high: float
    floor: float


def draw(size: int, mean: float, std: float, grouped: bool, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Raw embeddings ``(size, DIM)`` whose cosine to e_1 is Gaussian, and their groups."""
    noise = torch.randn(size, DIM, generator=generator, dtype=torch.float64)  # column 0 is for c
    groups = None
    if grouped:
        groups = torch.arange(size) // PER_GROUP
        common = torch.randn(int(groups[-1]) + 1, DIM, generator=generator, dtype=torch.float64)
        noise = math.sqrt(SHARED) * common[groups] + math.sqrt(1 - SHARED) * noise
    c = (mean + std * noise[:, :1]).clamp(-1, 1)
    w = noise[:, 1:] / torch.linalg.vector_norm(noise[:, 1:], dim=1, keepdim=True)
    length = 10 + torch.rand(size, 1, generator=generator, dtype=torch.float64)
    return (length * torch.cat([c, (1 - c.square()).sqrt() * w], 1)).float(), groups


def shift_for(divergence: float, width: float) -> float:
    """Distance of the means, in units of the reference's std, that gives a Gaussian KL of ``divergence``."""
    return math.sqrt(2 * divergence - (width**2 - 1 - 2 * math.log(width)))


def simulate(case: Case, seed: int, resamples: int) -> Outcome:
    """Draw both sides and take the value, the interval and the floor."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    rows, groups = draw(case.reference, MEAN, STD, case.grouped, generator)
    metric = cc.ConformityKL(cc.ReferenceSet.fit(rows, groups=groups))
    away = MEAN + STD * shift_for(case.divergence, case.width)
    rows, groups = draw(case.evaluated, away, STD * case.width, case.grouped, generator)
    metric.update(rows, groups=groups)
    low, high = metric.interval(resamples=resamples, generator=generator)
    floor = metric.noise_floor(resamples=resamples, generator=generator)
    return Outcome(*(float(x) for x in (metric.compute(), low, high, floor)))


def line(case: Case, outcomes: list[Outcome]) -> str:
    """One line of the table."""
    truth = case.divergence
    covered = sum(o.low <= truth <= o.high for o in outcomes) / len(outcomes)
    above = sum(o.value > o.floor for o in outcomes) / len(outcomes)
    mean, width, floor = (
        torch.tensor(x).double()
        for x in ([o.value for o in outcomes], [o.high - o.low for o in outcomes], [o.floor for o in outcomes])
    )
    passed = covered >= 0.85 and (truth > 0 or above <= 0.10)
    return (
        f"| {case.evaluated} | {case.reference} | {'5' if case.grouped else '1'} | {truth:.2f} | {mean.mean():.4f} "
        f"| {covered:.0%} | {width.median():.4f} | {floor.mean():.4f} | {above:.0%} | {'yes' if passed else 'NO'} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=60, help="runs for each line (default: %(default)s)")
    parser.add_argument("--resamples", type=int, default=200, help="bootstrap redraws (default: %(default)s)")
    parser.add_argument("--width", type=float, default=1.0, help="std of P over std of Q where KL > 0")
    parser.add_argument("--sizes", nargs="+", metavar="N,M", help="evaluated,reference sizes instead of the four")
    parser.add_argument("--groups", choices=("both", "no", "yes"), default="both", help="which sampling to simulate")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    sizes = [tuple(int(n) for n in pair.split(",")) for pair in options.sizes] if options.sizes else SIZES
    kinds = {"both": (False, True), "no": (False,), "yes": (True,)}[options.groups]
    cases = [
        Case(n, m, kl, options.width if kl else 1.0, grouped)
        for grouped in kinds
        for n, m in sizes
        for kl in DIVERGENCES
    ]
    print(f"{options.runs} runs a line, {options.resamples} resamples, width {options.width}, nominal 95%.\n")
    columns = (
        "evaluated | reference | per group | true KL | mean KL | covered | median width | mean floor | above floor"
    )
    print(f"| {columns} | holds |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    start = time.perf_counter()
    failed = 0
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for number, case in enumerate(cases):
            seeds = [options.seed + 100_000 * number + run for run in range(options.runs)]
            outcomes = list(pool.map(simulate, [case] * options.runs, seeds, [options.resamples] * options.runs))
            text = line(case, outcomes)
            failed += "NO" in text
            print(text, flush=True)
    print(f"\n{failed} of {len(cases)} lines miss 85% coverage or exceed 10% above the floor.")
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
