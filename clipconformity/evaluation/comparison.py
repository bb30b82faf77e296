"""Several scored runs against each other: which is more typical, which more varied, and whether that is real."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from typing import Any, NamedTuple

from clipconformity.evaluation.results import JUDGED, Outcome, Score
from clipconformity.evaluation.scoring import score
from clipconformity.evaluation.sources import Source
from clipconformity.evaluation.tables import Format, table
from clipconformity.functional.multiplicity import adjusted_stepwise
from clipconformity.functional.resampling import Estimate, Interval, exponential, joint_jackknife, student_tail
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.pairs import Without
from clipconformity.stream.reference import ReferenceSet

LEVEL = 0.05
"""Chance at most that any outcome but ``undecided`` is wrong, of all pairs in a figure."""


class Difference(NamedTuple):
    """How two runs differ in one figure."""

    first: str
    second: str
    figure: str
    """``"typicality_shift"``, whose difference is taken, or ``"variety_ratio"``, whose ratio is."""
    value: float
    """First less second, or first over second."""
    interval: Interval | None
    """95% interval of this pair alone; None where it cannot be had."""
    outcome: Outcome
    """Of the first against the second: ``more`` or ``less`` where :attr:`p_adjusted` is at most 0.05."""
    p_value: float | None = None
    """Of no difference, of this pair alone; None where it cannot be had."""
    p_adjusted: float | None = None
    """Adjusted for the number of pairs (Holm 1979)."""

    def text(self) -> str:
        """Say it in a sentence."""
        adjective, of = "typical", "standard deviations of the reference apart"
        if self.figure == "variety_ratio":
            adjective, of = "varied", "times as varied"
        if self.interval is None:
            return f"{self.first}, {self.second}: nothing is known of how {adjective} they are"
        apart = f"{self.value:.3f} [{self.interval.low:.3f}, {self.interval.high:.3f}] {of}"
        if self.outcome == "undecided":
            return f"{self.first}, {self.second}: no difference in how {adjective} can be told ({apart})"
        return f"{self.first} is {self.outcome} {adjective} than {self.second} ({apart})"


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

    def ranks(self, figure: str = "typicality_shift") -> dict[str, int]:
        """Rank the runs from the most typical, or varied, on: 1 and the number of runs that are surely more so.

        Runs between which nothing is decided may share a rank.

        Raises:
            KeyError: If there are no differences in this figure.
        """
        told = [one for one in self.differences if one.figure == figure]
        if not told:
            raise KeyError(f"no differences in {figure!r}; expected 'typicality_shift' or 'variety_ratio'.")
        above = [one.second if one.outcome == "more" else one.first for one in told if one.outcome != "undecided"]
        return {name: 1 + above.count(name) for name in self.scores}

    def table(self, format: Format = "text", figures: Sequence[str] | None = None) -> str:
        """Give the runs as a table; as text the differences stand under it.

        Args:
            format: ``"text"``, ``"markdown"``, ``"csv"``, ``"latex"`` or ``"html"``.
            figures: Keys of the figures that it has; by default those of the core.

        Raises:
            ValueError: If the format is none of them, or a figure is not in every score.
        """
        found = table(self.scores, format, figures)
        return found if format != "text" else "\n".join([found, *(one.text() for one in self.differences)]) + "\n"

    def _repr_html_(self) -> str:
        """Show it in a notebook: the table, and the differences under it."""
        told = "".join(f"<li>{escape(one.text())}</li>" for one in self.differences)
        return f"{self.table('html')}<ul>{told}</ul>"

    def plot(self, ax: Any = None) -> Any:
        """Draw every run on the map of typicality and variety, with its intervals; give ``(figure, axes)``."""
        from clipconformity import plots

        places = {
            name: plots.Place(*(one.figures[key].with_ends for key in JUDGED)) for name, one in self.scores.items()
        }
        first = next(iter(self.scores.values())).verdicts
        margins = first["typicality"].margin, first["variety"].margin
        return plots.typicality_and_variety(places, margins=margins, ax=ax)

    def plot_differences(self, figure: str = "typicality_shift", ax: Any = None) -> Any:
        """Draw the difference of every pair in a figure with its interval; give ``(figure, axes)``."""
        from clipconformity import plots

        told, shifts = [one for one in self.differences if one.figure == figure], figure == "typicality_shift"
        ends = [one.interval or Interval(one.value, one.value) for one in told]
        return plots.forest(
            [one.value for one in told],
            [low for low, _ in ends],
            [high for _, high in ends],
            [f"{one.first} - {one.second}" for one in told],
            quantity="difference in typicality shift (reference std)" if shifts else "ratio of variety ratios",
            null=0.0 if shifts else 1.0,
            ax=ax,
        )

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {
            "runs": {name: one.to_dict() for name, one in self.scores.items()},
            "differences": [one._asdict() for one in self.differences],
            "ranks": {figure: self.ranks(figure) for figure in dict.fromkeys(one.figure for one in self.differences)},
        }


def compare(runs: Mapping[str, Source | Score], reference: ReferenceSet, **options: Any) -> Comparison:
    """Score runs against one reference, and compare every two of them.

    Runs whose samples share groups, or ids where they have no groups, are paired by that: what the prompts or images
    differ by cancels in the difference. The reference is the same for all, and its own uncertainty cancels likewise.
    The intervals are of one pair each. Outcomes are corrected for the number of pairs: the chance that any difference
    in one figure is told where there is none is at most 5%.

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
    return Comparison(scores, _corrected(differences))


def _contrast(name: str, one: Score, reference: ReferenceSet) -> Contrast:
    if one.reference is not reference or one.contrast is None:
        raise ValueError(f"runs: {name!r} was scored against another reference; score all against the same.")
    return one.contrast


def _differences(first: str, mine: Contrast, second: str, theirs: Contrast) -> list[Difference]:
    """Give the differences of a pair; their outcomes wait for the other pairs."""
    counts = mine.counts[0], theirs.counts[0], mine.counts[1]
    shift = _apart(mine.typicality, theirs.typicality, counts)
    ratio = _apart(mine.log_variety, theirs.log_variety, counts)
    found = []
    for figure, estimate in (("typicality_shift", shift), ("variety_ratio", ratio)):
        value, interval = float(estimate.value), estimate.interval()
        known = math.isfinite(interval.low)
        p_value = _p_value(estimate) if known else None
        if figure == "variety_ratio":
            value, interval = math.exp(value), exponential(interval)
        found.append(Difference(first, second, figure, value, interval if known else None, "undecided", p_value))
    return found


def _p_value(estimate: Estimate) -> float:
    error = float(estimate.error)
    return student_tail(float(estimate.value) / error, estimate.degrees) if error > 0 else float(estimate.value == 0)


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    """Decide outcomes of all pairs in each figure together."""
    decided = {}
    for figure in dict.fromkeys(one.figure for one in differences):
        told = [one for one in differences if one.figure == figure and one.p_value is not None]
        for one, p_adjusted in zip(told, adjusted_stepwise([one.p_value or 0.0 for one in told]), strict=True):
            more = one.value > (0.0 if figure == "typicality_shift" else 1.0)
            outcome: Outcome = "undecided" if p_adjusted > LEVEL else "more" if more else "less"
            decided[one] = one._replace(outcome=outcome, p_adjusted=p_adjusted)
    return [decided.get(one, one) for one in differences]


def _apart(mine: Without, theirs: Without, counts: tuple[Any, ...]) -> Estimate:
    """Difference of two runs' figures: each bucket is left out of both runs and of the reference at once."""
    sides = (
        mine.evaluated - theirs.whole,
        mine.whole - theirs.evaluated,
        mine.reference - theirs.reference,
    )
    return joint_jackknife(mine.whole - theirs.whole, mine.both - theirs.both, sides, counts)
