"""Several scored runs against each other: which is more typical, which more varied, and whether that is real."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

from clipconformity.evaluation.results import Outcome, Score
from clipconformity.evaluation.scoring import score
from clipconformity.evaluation.sources import Source
from clipconformity.functional.resampling import Estimate, Interval, exponential, joint_jackknife
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.pairs import Without
from clipconformity.stream.reference import ReferenceSet

Format = Literal["text", "markdown", "csv"]
COLUMNS = ("run", "N", "typicality shift", "variety ratio", "KL (nats)", "noise floor", "p")


class Difference(NamedTuple):
    """How two runs differ in one figure."""

    first: str
    second: str
    figure: str
    """``"typicality_shift"``, whose difference is taken, or ``"variety_ratio"``, whose ratio is."""
    value: float
    """First less second, or first over second."""
    interval: Interval | None
    """95% interval; None where it cannot be had."""
    outcome: Outcome
    """Of the first against the second: ``more`` or ``less`` where the interval excludes no difference."""

    def text(self) -> str:
        """Say it in a sentence."""
        adjective = "typical" if self.figure == "typicality_shift" else "varied"
        if self.interval is None:
            return f"{self.first}, {self.second}: nothing is known of how {adjective} they are"
        ends = f"{self.value:.3f} [{self.interval.low:.3f}, {self.interval.high:.3f}]"
        if self.outcome == "undecided":
            return f"{self.first}, {self.second}: no difference in how {adjective} can be told ({self.figure} {ends})"
        return f"{self.first} is {self.outcome} {adjective} than {self.second} ({self.figure} {ends})"


@dataclass(frozen=True)
class Comparison:
    """Runs scored against one reference, and how every two of them differ.

    Attributes:
        scores: Of each run, by name.
        differences: Of every two runs, in typicality and in variety.
    """

    scores: Mapping[str, Score]
    differences: Sequence[Difference]

    def difference(self, first: str, second: str, figure: str = "typicality_shift") -> Difference:
        """Give the difference of two runs, in the order in which they were given.

        Raises:
            KeyError: If there is none.
        """
        for one in self.differences:
            if (one.first, one.second, one.figure) == (first, second, figure):
                return one
        raise KeyError(f"no difference of {first!r} and {second!r} in {figure!r}.")

    def table(self, format: Format = "text") -> str:
        """Give the runs as a table; as text the differences stand under it.

        Args:
            format: ``"text"``, ``"markdown"`` or ``"csv"``.

        Raises:
            ValueError: If the format is none of them.
        """
        rows = [list(COLUMNS), *(_row(name, one) for name, one in self.scores.items())]
        if format == "csv":
            out = io.StringIO()
            csv.writer(out, lineterminator="\n").writerows(rows)
            return out.getvalue()
        if format == "markdown":
            lines = ["| " + " | ".join(row) + " |" for row in rows]
            return "\n".join([lines[0], "|---" * len(COLUMNS) + "|", *lines[1:]]) + "\n"
        if format != "text":
            raise ValueError(f"format: expected 'text', 'markdown' or 'csv', got {format!r}.")
        widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([*lines, "", *(one.text() for one in self.differences)]) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {
            "runs": {name: one.to_dict() for name, one in self.scores.items()},
            "differences": [one._asdict() for one in self.differences],
        }


def compare(runs: Mapping[str, Source | Score], reference: ReferenceSet, **options: Any) -> Comparison:
    """Score runs against one reference, and compare every two of them.

    Runs whose samples share groups, or ids where they have no groups, are paired by that: what the prompts or images
    differ by cancels in the difference. The reference is the same for all, and its own uncertainty cancels likewise.
    The intervals are of one pair each: of many pairs one in twenty excludes no difference by chance.

    Args:
        runs: At least two sources, or scores against this reference, by name.
        reference: What all are compared with.
        options: Of :func:`score`, for sources.

    Raises:
        ValueError: If there are fewer than two runs, a score is of another reference, or as :func:`score`.
    """
    if len(runs) < 2:
        raise ValueError(f"runs: expected at least two, got {len(runs)}.")
    scores = {name: one if isinstance(one, Score) else score(one, reference, **options) for name, one in runs.items()}
    contrasts = {name: _contrast(name, one, reference) for name, one in scores.items()}
    differences = [
        one
        for (first, mine), (second, theirs) in combinations(contrasts.items(), 2)
        for one in _differences(first, mine, second, theirs)
    ]
    return Comparison(scores, differences)


def _contrast(name: str, one: Score, reference: ReferenceSet) -> Contrast:
    if one.reference is not reference or one.contrast is None:
        raise ValueError(f"runs: {name!r} was scored against another reference; score all against the same.")
    return one.contrast


def _differences(first: str, mine: Contrast, second: str, theirs: Contrast) -> list[Difference]:
    counts = mine.counts[0], theirs.counts[0], mine.counts[1]
    shift = _apart(mine.typicality, theirs.typicality, counts)
    ratio = _apart(mine.log_variety, theirs.log_variety, counts)
    known = math.isfinite(shift.interval().low), math.isfinite(ratio.interval().low)
    ends = shift.interval(), exponential(ratio.interval())
    values = float(shift.value), math.exp(float(ratio.value))
    return [
        Difference(first, second, figure, value, interval if told else None, _outcome(interval, none))
        for figure, value, interval, told, none in zip(
            ("typicality_shift", "variety_ratio"), values, ends, known, (0.0, 1.0), strict=True
        )
    ]


def _apart(mine: Without, theirs: Without, counts: tuple[Any, ...]) -> Estimate:
    """Difference of two runs' figures: each bucket is left out of both runs and of the reference at once."""
    sides = (
        mine.evaluated - theirs.whole,
        mine.whole - theirs.evaluated,
        mine.reference - theirs.reference,
    )
    return joint_jackknife(mine.whole - theirs.whole, mine.both - theirs.both, sides, counts)


def _outcome(interval: Interval, no_difference: float) -> Outcome:
    if interval.low > no_difference:
        return "more"
    return "less" if interval.high < no_difference else "undecided"


def _row(name: str, one: Score) -> list[str]:
    shift, variety, kl = (one.figures[key] for key in ("typicality_shift", "variety_ratio", "conformity_kl"))
    estimates = [f"{figure.text()} {figure.interval_text()}".rstrip() for figure in (shift, variety)]
    at_least = ">= " if one.kl_is_lower_bound else ""
    p_value = "" if one.p_value is None else f"{one.p_value:.3g}"
    return [name, str(one.count), *estimates, at_least + kl.text(), one.figures["noise_floor"].text(), p_value]
