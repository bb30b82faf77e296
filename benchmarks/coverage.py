"""Coverage of the intervals of typicality and variety; false alarms of verdicts, test and noise floor: a simulation.

Embeddings have a conformity of known shape by construction: u = c e_1 + sqrt(1 - c^2) w, with w uniform on the unit
sphere orthogonal to e_1, and c Gaussian, skewed (gamma of shape 2), heavy-tailed (t with 3 degrees of freedom) or
bimodal. In groups, half of the variance of c and of w is shared. Both sides are drawn anew in every run, from one
distribution, or with the evaluated mean shifted by half a standard deviation.

``--real DIR`` splits real embedding sets into random halves instead.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.special
import scipy.stats
import torch
from torch import Tensor

import clipconformity as cc
from clipconformity.evaluation.results import judge
from clipconformity.stream.standing import Standing
from clipconformity.stream.stream import Needs, Stream

DIM = 64
MEAN, STD = 0.6, 0.05
SHARED = 0.5
SHAPES = ("gaussian", "skewed", "heavy", "bimodal")
GROUPINGS = ("none", "5", "20", "unbalanced", "shared")


class Case(NamedTuple):
    """A cell of the table."""

    evaluated: int
    reference: int
    shape: str
    grouping: str
    shift: float = 0.0


class Run(NamedTuple):
    """What one run found."""

    shift_covered: bool
    variety_covered: bool
    spread_covered: bool
    typicality_alarm: bool
    variety_alarm: bool
    p_value: float
    """NaN where there are no redraws."""
    above_floor: bool
    same: bool


def quantile(shape: str, z: np.ndarray) -> np.ndarray:
    """Turn standard Gaussian values into values of mean 0 and variance 1 of another shape."""
    level = np.clip(scipy.special.ndtr(z), 1e-12, 1 - 1e-12)
    if shape == "skewed":
        return (scipy.stats.gamma(2).ppf(level) - 2) / math.sqrt(2)
    if shape == "heavy":
        return scipy.special.stdtrit(3, level) / math.sqrt(3)
    if shape == "bimodal":  # two Gaussians of width 0.4, 1.83 apart
        grid = np.linspace(-4, 4, 4001)
        half = math.sqrt(1 - 0.4**2)
        cdf = (scipy.special.ndtr((grid + half) / 0.4) + scipy.special.ndtr((grid - half) / 0.4)) / 2
        return np.interp(level, cdf, grid)
    return z


def group_of(size: int, grouping: str, draw: np.random.Generator) -> np.ndarray | None:
    """The group of each row."""
    if grouping == "none":
        return None
    if grouping == "unbalanced":  # sizes 1 to 20
        sizes = draw.integers(1, 21, size)
        return np.repeat(np.arange(size), sizes)[:size]
    return np.arange(size) // (20 if grouping == "20" else 5)


def embeddings(
    size: int,
    shape: str,
    groups: np.ndarray | None,
    shift: float,
    draw: np.random.Generator,
    common: np.ndarray | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Raw embeddings ``(size, DIM)`` whose cosine to e_1 has a given shape."""
    noise = draw.standard_normal((size, DIM))  # column 0 is for c
    if groups is not None:
        common = draw.standard_normal((groups.max() + 1, DIM)) if common is None else common
        noise = math.sqrt(SHARED) * common[groups] + math.sqrt(1 - SHARED) * noise
    c = np.clip(MEAN + STD * (scale * quantile(shape, noise[:, :1]) + shift), -0.99, 0.99)
    w = noise[:, 1:] / np.linalg.norm(noise[:, 1:], axis=1, keepdims=True)
    rows = np.concatenate([c, np.sqrt(1 - c**2) * w], 1) * draw.uniform(9, 11, (size, 1))
    return torch.from_numpy(rows).float()


def compared(rows: Tensor, reference: cc.ReferenceSet, groups: Tensor | None) -> Stream:
    """A stream of the evaluated rows against a reference."""
    needs = Needs(conformity=True, rows=True, reference=True)
    stream = Stream.open_against(reference, needs, allow_normalized=True)
    stream.update(rows, groups=groups)
    return stream


def found(stream: Stream, shift: float, ratio: float, resamples: int, seed: int) -> Run:
    """Read a run out."""
    contrast = stream.contrast("benchmark")
    low, high = contrast.typicality_shift.interval()
    smaller, larger = contrast.variety_interval
    low_spread, high_spread = contrast.log_spread_ratio.interval()
    p_value, above = math.nan, False
    if resamples:
        standing = Standing.from_stream(stream)
        floor, p_value = standing.redraw_null(0.95, resamples, torch.Generator().manual_seed(seed))
        above = float(standing.divergences().forward) > floor
    verdicts = judge(contrast)
    return Run(
        low <= shift <= high,
        smaller <= ratio <= larger,
        low_spread <= 0 <= high_spread,
        verdicts["typicality"].outcome in ("more", "less"),
        verdicts["variety"].outcome in ("more", "less"),
        p_value,
        above,
        verdicts["typicality"].outcome == "same",
    )


def simulate(case: Case, seed: int, resamples: int) -> Run:
    """Draw both sides and read them out."""
    torch.set_num_threads(1)
    draw = np.random.default_rng(seed)
    sizes = case.evaluated, case.reference
    grouping = "5" if case.grouping == "shared" else case.grouping
    groups = [group_of(size, grouping, draw) for size in sizes]
    common = [None, None]
    if case.grouping == "shared":  # the evaluated groups are the first of the reference's
        one = draw.standard_normal((int(max(g.max() for g in groups)) + 1, DIM))
        common = [one, one]
    elif groups[1] is not None:
        groups[1] = groups[1] + 1_000_000
    dense = [None if g is None else g % 1_000_000 for g in groups]
    rows = [
        embeddings(size, case.shape, g, move, draw, c)
        for size, g, move, c in zip(sizes, dense, (case.shift, 0.0), common, strict=True)
    ]
    labels = [None if g is None else torch.from_numpy(g) for g in groups]
    reference = cc.ReferenceSet.fit(rows[1], groups=labels[1])
    mean = MEAN + STD * case.shift
    ratio = (1 - mean**2) / (1 - MEAN**2)
    return found(compared(rows[0], reference, labels[0]), case.shift, ratio, resamples, seed)


def real_half(rows: Tensor, seed: int, resamples: int) -> Run:
    """Split a real set at random and score one half against the other."""
    torch.set_num_threads(1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    reference = cc.ReferenceSet.fit(rows[order[: len(rows) // 2]], allow_normalized=True)
    return found(compared(rows[order[len(rows) // 2 :]], reference, None), 0.0, 1.0, resamples, seed)


def real_sets(folder: Path) -> dict[str, Tensor]:
    """The real embedding sets of a folder, of which exact repeats are dropped."""
    pairs = torch.from_numpy(np.load(folder / "vitb16-coco-pairs-500-unit.npy"))
    sets = {
        "images-1803": torch.load(folder / "vitb32-images-1803.pt", weights_only=True)[:, 0],
        "lvis-1203": torch.from_numpy(np.load(folder / "vitb32-text-lvis-1203.npy")).float(),
        "pairs, image": pairs[0],
        "pairs, text": pairs[1],
    }
    return {name: rows.unique(dim=0) for name, rows in sets.items()}


def line(case: Case, runs: list[Run]) -> str:
    """One line of the table."""
    shares = [np.mean([getattr(run, name) for run in runs]) for name in (*Run._fields[:5], "same")]
    tested = ["", ""]
    if not math.isnan(runs[0].p_value):
        tests = ([run.p_value <= 0.05 for run in runs], [run.above_floor for run in runs])
        tested = [f"{np.mean(x):.1%}" for x in tests]
    cells = [*(f"{x:.1%}" for x in shares), *tested]
    reported = (case.evaluated, case.reference, case.shape, case.grouping, case.shift)
    return "| " + " | ".join([*map(str, reported), *cells]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="runs for each line (default: %(default)s)")
    parser.add_argument(
        "--resamples", type=int, default=200, help="redraws; 0 leaves out test and floor (default: 200)"
    )
    parser.add_argument("--evaluated", type=int, nargs="+", default=[50, 200, 1000])
    parser.add_argument("--reference", type=int, nargs="+", default=[500, 1000, 5000])
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--groups", nargs="+", default=GROUPINGS, choices=GROUPINGS)
    parser.add_argument("--shifts", type=float, nargs="+", default=[0.0, 0.5])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--real", type=Path, metavar="DIR", help="split the real sets of this folder instead")
    options = parser.parse_args()
    sets = real_sets(options.real) if options.real else {}
    cases = (
        []
        if sets
        else [
            Case(n, m, shape, grouping, shift)
            for grouping in options.groups
            for shape in options.shapes
            for n in options.evaluated
            for m in options.reference
            for shift in options.shifts
        ]
    )
    start = time.perf_counter()
    columns = "n | N | shape | groups | shift | shift covered | variety covered | spread covered | typicality differs"
    print(f"| {columns} | variety differs | same | p <= 0.05 | above floor |")
    print("|---" * 13 + "|", flush=True)
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for name, rows in sets.items():
            half, seeds = len(rows) // 2, range(options.runs)
            runs = list(
                pool.map(real_half, [rows] * options.runs, seeds, [options.resamples] * options.runs, chunksize=8)
            )
            print(line(Case(len(rows) - half, half, name, "none"), runs), flush=True)
        for number, case in enumerate(cases):
            seeds = [options.seed + 100_000 * number + run for run in range(options.runs)]
            runs = list(
                pool.map(simulate, [case] * options.runs, seeds, [options.resamples] * options.runs, chunksize=8)
            )
            print(line(case, runs), flush=True)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
