"""Coverage of the intervals of differences between two runs, and errors of the ranks of six: a simulation.

The runs are those of ``coverage.py``, of a conformity of known shape, so that it is known by what they differ: the
first is more typical by 0.3 standard deviations of the reference, and 2% longer. Paired runs share half of the variance
of each sample, as those of one prompt do, and have its id or group in common. The reference is drawn anew in every run.

``--ranks`` compares six runs instead: equal ones, of which any that is found to differ is an error, and a ladder of
three steps of two equal ones each, of which any that is told from its equal, or the wrong way round, is one.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import combinations, product
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import torch
from coverage import DIM, MEAN, SHAPES, STD, embeddings, group_of

import clipconformity as cc
from clipconformity.evaluation.comparison import LEVEL, compare_pair, correct_outcomes
from clipconformity.functional.mmd import third_order
from clipconformity.stream.pairs import LeftOut
from clipconformity.stream.readouts import read_outs
from clipconformity.stream.stream import Needs, Stream

EVALUATED, REFERENCE = 200, 1000
SHIFT, LONGER = 0.3, 1.02
LADDER = (0.0, 0.0, 0.4, 0.4, 0.8, 0.8)
METRICS = ("conformity", "norm", "cosine_mmd", "cmmd", "vendi", "frechet")
NEEDS = Needs(True, True, True, True, True)
JUDGED = ("typicality_shift", "variety_ratio")
GROUPINGS = ("none", "5")
KNOWN = ("typicality_shift", "variety_ratio", "spread_ratio", "conformity_mean", "self_conformity_mean", "norm_mean",
         "cosine_mmd", "cmmd_unbiased", "rke_unbiased")  # fmt: skip
"""Figures of which the difference of the populations is known in closed form."""
AT_THIS_N = ("frechet", "vendi", "cmmd")
"""Figures whose interval is of what sets of these sizes have on average: that is taken from all runs of a line."""


class Case(NamedTuple):
    """A line of the table."""

    shape: str
    grouping: str
    paired: bool
    shifts: tuple[float, ...]
    figures: tuple[str, ...]


class Told(NamedTuple):
    """What one comparison of six found in a figure."""

    wrong: bool
    wrong_uncorrected: bool
    found: float
    """Share of the pairs that differ which were found; NaN where none does."""


def runs_of(case: Case, seed: int) -> list[dict[str, LeftOut]]:
    """Draw a reference and runs, and give what each run is compared by."""
    torch.set_num_threads(1)
    draw = np.random.default_rng(seed)
    groups = group_of(REFERENCE, case.grouping, draw)
    labels = None if groups is None else torch.from_numpy(groups + 1_000_000)
    reference = cc.ReferenceSet.fit(embeddings(REFERENCE, case.shape, groups, 0.0, draw), groups=labels)
    own = group_of(EVALUATED, case.grouping, draw)
    dense = np.arange(EVALUATED) if own is None and case.paired else own
    common = draw.standard_normal((int(dense.max()) + 1, DIM)) if case.paired and dense is not None else None
    found = []
    for number, shift in enumerate(case.shifts):
        rows = embeddings(EVALUATED, case.shape, dense, shift, draw, common)
        rows = rows * (LONGER if number == 0 else 1.0)
        named: dict[str, Any] = {}
        if own is not None:
            named["groups"] = torch.from_numpy(own + (0 if case.paired else 10_000 * number))
        elif case.paired:
            named["ids"] = [f"prompt {row}" for row in range(EVALUATED)]
        found.append(figures_of(rows, reference, case.figures, named))
    return found


def figures_of(
    rows: torch.Tensor, reference: cc.ReferenceSet, figures: tuple[str, ...], named: dict[str, Any]
) -> dict[str, LeftOut]:
    """What a run is compared by."""
    if figures == JUDGED:  # without the other ones, which cost time
        stream = Stream.open_against(reference, Needs(rows=True, reference=True))
        stream.update(rows, **named)
        contrast = stream.contrast("benchmark")
        parts = zip(JUDGED, (contrast.typicality, contrast.log_variety), (False, True), strict=True)
        return {name: LeftOut(part, contrast.counts, logarithm) for name, part, logarithm in parts}
    stream = Stream.open_against(reference, NEEDS)
    stream.update(rows, **named)
    known = {name: one for metric in METRICS for name, one in read_outs()[metric].left_out(stream).items()}
    return {name: known[name] for name in figures}


def truth(shift: float, longer: float) -> dict[str, float]:
    """Figures of the population of a run; ratios as logarithms."""
    mean = MEAN + STD * shift
    second, usual = mean**2 + STD**2, MEAN**2 + STD**2  # of c, of which the first axis of the second moment consists
    squares = (second - usual) ** 2 * (1 + 1 / (DIM - 1))
    mmd = torch.tensor([(STD * shift) ** 2, squares], dtype=torch.float64)
    return {
        "typicality_shift": shift,
        "variety_ratio": math.log(1 - mean**2),
        "spread_ratio": 0.0,
        "conformity_mean": MEAN * mean,
        "self_conformity_mean": mean**2,
        "norm_mean": 10 * longer,
        "cosine_mmd": float(mmd[0]),
        "cmmd_unbiased": float(third_order(mmd[0], mmd[1])),
        "rke_unbiased": -math.log(second**2 + (1 - second) ** 2 / (DIM - 1)),
    }


def compared(case: Case, seed: int) -> dict[str, tuple[float, float, float]]:
    """Value and ends of the difference of two runs in every figure; of ratios the logarithms."""
    one, other = runs_of(case, seed)
    found = {}
    for reported in compare_pair("one", one, "other", other):
        ends = reported.interval or (math.nan, math.nan)
        values = (reported.value, *ends)
        found[reported.figure] = tuple(map(math.log, values)) if reported.ratio else values
    return found  # type: ignore[return-value]


def ranked(case: Case, seed: int) -> dict[str, Told]:
    """Compare every two of six runs in both judged figures."""
    runs = {str(number): one for number, one in enumerate(runs_of(case, seed))}
    reported = correct_outcomes([
        one for (first, mine), (second, theirs) in combinations(runs.items(), 2)
        for one in compare_pair(first, mine, second, theirs)
    ])  # fmt: skip
    found = {}
    for figure in JUDGED:
        wrong, uncorrected, right = False, False, []
        for one in (one for one in reported if one.figure == figure):
            apart = case.shifts[int(one.first)] - case.shifts[int(one.second)]
            apart = -apart if figure == "variety_ratio" else apart  # the more typical, the less varied
            way = (one.value > one.no_difference) - (one.value < one.no_difference)
            mistaken = way * apart <= 0
            wrong |= one.outcome != "undecided" and mistaken
            uncorrected |= (one.p_value or 0.0) <= LEVEL and mistaken
            if apart:
                right.append(one.outcome != "undecided" and not mistaken)
        found[figure] = Told(wrong, uncorrected, float(np.mean(right)) if right else math.nan)
    return found


def coverage_line(case: Case, runs: list[dict[str, tuple[float, float, float]]]) -> list[str]:
    """Share of the runs whose interval holds the difference, a figure each."""
    first, second = truth(case.shifts[0], LONGER), truth(case.shifts[1], 1.0)
    cells = []
    for figure in (*KNOWN, *AT_THIS_N):
        values, low, high = (np.array([run[figure][k] for run in runs]) for k in range(3))
        right = first[figure] - second[figure] if figure in KNOWN else values.mean()
        cells.append(f"{np.mean((low <= right) & (right <= high)):.1%}")
    return cells


def rank_line(_: Case, runs: list[dict[str, Told]]) -> list[str]:
    """Share of the comparisons with an error, with and without correction, and of the pairs that were told."""
    cells = []
    for figure in JUDGED:
        reported = [run[figure] for run in runs]
        shares = [np.mean([one.wrong for one in reported]), np.mean([one.wrong_uncorrected for one in reported])]
        power = np.mean([one.found for one in reported])
        cells += [*(f"{x:.1%}" for x in shares), "" if math.isnan(power) else f"{power:.1%}"]
    return cells


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The lines."""
    for paired, grouping, shape in product((False, True), options.groups, options.shapes):
        if options.ranks:
            yield Case(shape, grouping, paired, (0.0,) * len(LADDER), JUDGED)
            yield Case(shape, grouping, paired, LADDER, JUDGED)
        else:
            yield Case(shape, grouping, paired, (SHIFT, 0.0), (*KNOWN, *AT_THIS_N))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", action="store_true", help="compare six runs instead of two")
    parser.add_argument("--runs", type=int, default=300, help="runs for each line (default: %(default)s)")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, choices=SHAPES)
    parser.add_argument("--groups", nargs="+", default=GROUPINGS, choices=GROUPINGS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    columns = [*KNOWN, *AT_THIS_N]
    if options.ranks:
        columns = [f"{figure}: {what}" for figure in JUDGED for what in ("wrong", "uncorrected", "told")]
    head = ["paired", "groups", "shape", *(["models"] if options.ranks else []), *columns]
    print("| " + " | ".join(name.replace("_", " ") for name in head) + " |")
    print("|---" * len(head) + "|", flush=True)
    start = time.perf_counter()
    simulate, line = (ranked, rank_line) if options.ranks else (compared, coverage_line)
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for number, case in enumerate(cases(options)):
            seeds = [options.seed + 100_000 * number + run for run in range(options.runs)]
            runs: Any = list(pool.map(simulate, [case] * options.runs, seeds, chunksize=8))
            reported = ["yes" if case.paired else "no", case.grouping, case.shape]
            reported += ["ladder" if any(case.shifts) else "equal"] if options.ranks else []
            print("| " + " | ".join([*reported, *line(case, runs)]) + " |", flush=True)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
