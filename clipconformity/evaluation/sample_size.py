"""Figures and verdicts of a score at smaller numbers of samples, to see how many are needed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clipconformity.data.brief import format_brief
from clipconformity.data.cells import write_table
from clipconformity.evaluation.results import JUDGED, Figure, Score, Verdict, list_outcomes
from clipconformity.evaluation.scoring import read_figures
from clipconformity.stream.readouts import ReadOut, read_outs
from clipconformity.stream.row_sample import Sample
from clipconformity.stream.stream import EVALUATED, Stream

MIN_SIZE = 20
"""Smallest number of samples of a point."""
STEPS = (1, 2, 5)
"""Sizes by default: 20, 50, 100, 200, 500, and so on."""
FIELDS = ("n", "figure", "value", "low", "high", "verdict")


class SizePoint(NamedTuple):
    """A score as it would have been with fewer samples."""

    size: int
    """Number of samples."""
    figures: Mapping[str, Figure]
    verdicts: Mapping[str, Verdict]

    def __repr__(self) -> str:
        return format_brief(self, size=self.size, figures=len(self.figures), **list_outcomes(self.verdicts))


def sample_size_curve(result: Score, sizes: Sequence[int] | None = None, *, resamples: int = 200) -> list[SizePoint]:
    """Compute every figure and verdict of a score at growing numbers of samples, against the same reference.

    The samples of a smaller number are among those of a larger one, in a seeded order that does not depend on the order
    of the input. They are drawn from the row sample of at most 10,000; the last point is the score itself. The curve
    shows which figures grow or shrink with N, such as Vendi, Frechet and CMMD as published, and which converge, such as
    typicality shift and variety ratio.

    Args:
        result: A result of :func:`score`.
        sizes: Numbers of samples; by default 20, 50, 100, 200, 500, and so on. Those that the row sample does not hold
            are skipped, and those at which a figure cannot be computed.
        resamples: Redraws for intervals and tests at each point but the last.

    Raises:
        ValueError: If the score was not made by :func:`score`, or a size is below 20.
    """
    if result.contrast is None:
        raise ValueError("result: expected a Score that score() gave, which keeps its samples.")
    if sizes is not None and min(sizes, default=MIN_SIZE) < MIN_SIZE:
        raise ValueError(f"sizes: expected at least {MIN_SIZE} samples, got {min(sizes)}.")
    evaluated, kept = result.contrast.evaluated, result.contrast.sample
    margins = {name: verdict.margin for name, verdict in result.verdicts.items()}
    chosen, points = _choose_read_outs(result), []
    for size in sorted(set(_choose_sizes(result.count) if sizes is None else sizes)):
        if size >= min(result.count, len(kept.keys) + 1):
            break
        moments = evaluated.select_rows(Sample(*(part[:size] for part in kept)))
        stream = Stream(
            {EVALUATED: evaluated.layout},
            reference=result.reference,
            allow_normalized=True,
            states={EVALUATED: moments.state},
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the score has warned already
            try:
                found = read_figures(chosen, stream, resamples, margins)
            except ValueError:
                continue
        points.append(SizePoint(size, found.figures, found.verdicts))
    return [*points, SizePoint(result.count, result.figures, result.verdicts)]


def decided_at(curve: Sequence[SizePoint], verdict: str) -> int | None:
    """Find the smallest number of samples from which a verdict stays as at the end; None where that is undecided.

    Args:
        curve: A result of :func:`sample_size_curve`.
        verdict: ``"typicality"`` or ``"variety"``.
    """
    last = curve[-1].verdicts[verdict].outcome
    if last == "undecided":
        return None
    found = curve[-1].size
    for point in reversed(curve):
        if point.verdicts[verdict].outcome != last:
            break
        found = point.size
    return found


def write_curve(path: Path | str, curve: Sequence[SizePoint]) -> None:
    """Write a curve as CSV: n, figure, value, ends of its 95% interval, and the verdict on it.

    Raises:
        OSError: If the file cannot be written.
    """
    write_table(path, FIELDS, (row for point in curve for row in _list_rows(point)))


def _list_rows(point: SizePoint) -> Iterator[list[object]]:
    for name, figure in point.figures.items():
        numbers = (figure.value, *(figure.interval or (None, None)))
        verdict = point.verdicts[JUDGED[name]].outcome if name in JUDGED else ""
        yield [point.size, name, *numbers, verdict]


def _choose_read_outs(result: Score) -> list[ReadOut]:
    """Choose the read-outs of a score but for those of pairs, which no row sample holds."""
    return [one for name, one in read_outs().items() if name in result.metrics and not one.needs.partners]


def _choose_sizes(count: int) -> list[int]:
    top = math.ceil(math.log10(count + 1))
    return [step * 10**power for power in range(1, top) for step in STEPS if step * 10**power >= MIN_SIZE]
