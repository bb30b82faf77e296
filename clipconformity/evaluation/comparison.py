"""Comparison of scored runs: which is more typical, which more varied, and whether that is significant."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations
from typing import Any, Literal

from clipconformity.data.brief import format_brief
from clipconformity.evaluation.classes import ByClass
from clipconformity.evaluation.difference import MAX_RATIO, Difference
from clipconformity.evaluation.people import HumanSpread
from clipconformity.evaluation.results import JUDGED, Outcome, Score
from clipconformity.evaluation.run_tables import format_classes, format_differences
from clipconformity.evaluation.scoring import score
from clipconformity.evaluation.sources import Source
from clipconformity.evaluation.tables import Format, format_table
from clipconformity.functional.multiplicity import adjust_p_values_stepwise
from clipconformity.functional.resampling import (
    Estimate,
    Interval,
    exponentiate_interval,
    joint_jackknife,
    student_tail,
)
from clipconformity.stream.pairs import LeftOut
from clipconformity.stream.readouts import read_outs
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.reference_file import same_reference

LEVEL = 0.05
"""Family-wise error rate of outcomes other than ``undecided``, over all pairs in a figure."""


@dataclass(frozen=True)
class Comparison:
    """Runs scored against one reference, and the differences between every two of them.

    Attributes:
        scores: Score of each run, by name.
        differences: Differences of every two runs, in every comparable figure that both have.
    """

    scores: Mapping[str, Score]
    differences: Sequence[Difference]

    def __repr__(self) -> str:
        return format_brief(self, runs=[*self.scores], differences=len(self.differences))

    def difference(self, first: str, second: str, figure: str = "typicality_shift") -> Difference:
        """Return the difference of two runs, in the given order.

        Raises:
            KeyError: If there is none.
        """
        for one in self.differences:
            if (one.first, one.second, one.figure) == (first, second, figure):
                return one
        raise KeyError(f"no difference of {first!r} and {second!r} in {figure!r}.")

    @property
    def judged(self) -> list[Difference]:
        """The differences in typicality and in variety, which are put in words."""
        return [one for one in self.differences if one.figure in JUDGED]

    def ranks(self, figure: str = "typicality_shift") -> dict[str, int]:
        """Rank the runs from the most typical, varied, or highest on: 1 plus the number of runs significantly above.

        Undecided runs may share a rank.

        Raises:
            KeyError: If there are no differences in this figure.
        """
        selected = [one for one in self.differences if one.figure == figure]
        if not selected:
            known = ", ".join(dict.fromkeys(one.figure for one in self.differences))
            raise KeyError(f"no differences in {figure!r}; expected one of {known}.")
        above = [one.second if one.outcome == "more" else one.first for one in selected if one.outcome != "undecided"]
        return {name: 1 + above.count(name) for name in self.scores}

    def table(
        self,
        format: Format = "text",
        figures: Sequence[str] | None = None,
        *,
        of: Literal["runs", "differences", "classes"] = "runs",
    ) -> str:
        """Return a table; as text, the differences in typicality and variety follow the table of runs.

        Args:
            format: ``"text"``, ``"markdown"``, ``"csv"``, ``"latex"`` or ``"html"``.
            figures: Keys of the figures: by default those of the core for runs, and all for differences; a table of
                classes has its own.
            of: ``"runs"``, a row each; ``"differences"``, a row for each pair and figure; or ``"classes"``, a row for
                each class and run, those classes first in which runs differ most.

        Raises:
            ValueError: If the format is unknown, a figure is not in every score, or there are no classes.
        """
        if of == "differences":
            return format_differences(self.differences, format, figures)
        if of == "classes":
            return format_classes(self.classes, format)
        if of != "runs":
            raise ValueError(f"of: expected 'runs', 'differences' or 'classes', got {of!r}.")
        found = format_table(self.scores, format, figures)
        return found if format != "text" else "\n".join([found, *self._sentences]) + "\n"

    @property
    def _sentences(self) -> list[str]:
        """The judged differences in words, and why nothing is known of a run."""
        unknown = {
            name: verdict.reason
            for name, one in self.scores.items()
            for verdict in one.verdicts.values()
            if verdict.interval is None
        }
        return [one.text() for one in self.judged] + [f"{name}: {reason}" for name, reason in unknown.items()]

    @property
    def classes(self) -> dict[str, ByClass]:
        """Classes of each run.

        Raises:
            ValueError: If the runs were scored without classes.
        """
        found = {name: one.by for name, one in self.scores.items() if one.by is not None}
        if len(found) < len(self.scores):
            raise ValueError("by: the runs were not scored by class; give the class of each id.")
        return found

    def _repr_html_(self) -> str:
        """Show the table in a notebook, with the differences below it."""
        return f"{self.table('html')}<ul>{''.join(f'<li>{escape(one)}</li>' for one in self._sentences)}</ul>"

    def plot(self, ax: Any = None, *, people: HumanSpread | None = None) -> Any:
        """Draw every run on the map of typicality and variety, with intervals; return ``(figure, axes)``.

        Args:
            ax: Axes to draw on.
            people: Result of :func:`human_spread`: the range of one more person, as the yardstick of captioners.
        """
        from clipconformity import plots

        places = {
            name: plots.Place(*(one.figures[key].with_ends for key in JUDGED)) for name, one in self.scores.items()
        }
        first = next(iter(self.scores.values())).verdicts
        margins = first["typicality"].margin, first["variety"].margin
        yardstick = None if people is None else (people.one_more("typicality_shift"), people.one_more("variety_ratio"))
        return plots.typicality_and_variety(places, margins=margins, people=yardstick, ax=ax)

    def plot_differences(self, figure: str = "typicality_shift", ax: Any = None) -> Any:
        """Draw the difference of every pair in a figure with its interval; return ``(figure, axes)``."""
        from clipconformity import plots

        selected = [one for one in self.differences if one.figure == figure]
        ratio = any(one.ratio for one in selected)
        quantity = (
            "difference in typicality shift (reference std)"
            if figure == "typicality_shift"
            else (f"{'ratio' if ratio else 'difference'} of the {figure.replace('_', ' ')}s")
        )
        ends = [one.interval or Interval(one.value, one.value) for one in selected]
        return plots.forest(
            [one.value for one in selected],
            [low for low, _ in ends],
            [high for _, high in ends],
            [f"{one.first} - {one.second}" for one in selected],
            quantity=quantity,
            null=1.0 if ratio else 0.0,
            ax=ax,
        )

    def plot_distributions(self, ax: Any = None) -> Any:
        """Draw the conformities of every run over the reference's, a ridge each; return ``(figure, axes)``."""
        from clipconformity import plots

        values = {name: one.conformities for name, one in self.scores.items()}
        return plots.ridgelines(values, next(iter(self.scores.values())).reference.null_conformities, ax=ax)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "runs": {name: one.to_dict() for name, one in self.scores.items()},
            "differences": [one._asdict() for one in self.differences],
            "ranks": {figure: self.ranks(figure) for figure in dict.fromkeys(one.figure for one in self.differences)},
        }


def compare(runs: Mapping[str, Source | Score], reference: ReferenceSet, **options: Any) -> Comparison:
    """Score runs against one reference, and compare every two of them.

    Runs that share groups of samples, or ids where they have no groups, are paired: the variation between prompts or
    images cancels in the difference. The reference is the same for all, and its uncertainty cancels as well. Each
    interval is of one pair. Outcomes are corrected for the number of pairs: the probability of any false difference in
    a figure is at most 5%.

    Args:
        runs: At least two sources, or scores against this reference, by name.
        reference: The reference of all runs.
        options: Options of :func:`score`, for sources.

    Raises:
        ValueError: If there are fewer than two runs, a score is of another reference, or as :func:`score`.
    """
    if len(runs) < 2:
        raise ValueError(f"runs: expected at least two, got {len(runs)}.")
    scores = {name: one if isinstance(one, Score) else score(one, reference, **options) for name, one in runs.items()}
    return compare_scores(scores, reference)


def compare_scores(
    scores: Mapping[str, Score], reference: ReferenceSet, metrics: Sequence[str] | None = None
) -> Comparison:
    """Compare every two of several scores, in the figures of ``metrics``, by default all.

    Raises:
        ValueError: If a score is of another reference.
    """
    figures = {
        name: _collect_figures(name, one, reference, one.metrics if metrics is None else metrics)
        for name, one in scores.items()
    }
    differences = [
        one
        for (first, mine), (second, theirs) in combinations(figures.items(), 2)
        for one in compare_pair(first, mine, second, theirs)
    ]
    return Comparison(scores, correct_outcomes(differences))


def _collect_figures(name: str, one: Score, reference: ReferenceSet, metrics: Sequence[str]) -> dict[str, LeftOut]:
    """Return the figures that a run is compared by; the judged ones come first."""
    if one.stream is None or not same_reference(one.reference, reference):
        raise ValueError(f"runs: {name!r} was scored against another reference; score all against the same.")
    known, found = read_outs(), dict[str, LeftOut]()
    for metric in metrics:
        selected = known[metric].left_out(one.stream)
        if unknown := set(selected) - {field.name for field in known[metric].fields}:
            raise ValueError(f"metrics: {metric!r} returned {', '.join(sorted(unknown))}, not among its fields.")
        found |= selected
    return {figure: found[figure] for figure in dict.fromkeys([*JUDGED, *found])}


def compare_pair(
    first: str, mine: Mapping[str, LeftOut], second: str, theirs: Mapping[str, LeftOut]
) -> list[Difference]:
    """Return the differences of a pair in the figures that both have; outcomes are decided with the other pairs."""
    found = []
    for figure in mine:
        if figure not in theirs:
            continue
        estimate, ratio = _compare_figure(mine[figure], theirs[figure]), mine[figure].logarithm
        value, interval = float(estimate.value), estimate.interval()
        known = math.isfinite(interval.low)
        p_value = _compute_p_value(estimate) if known else None
        if ratio:
            most = math.log(MAX_RATIO)
            value = math.exp(min(max(value, -most), most))
            interval = (
                exponentiate_interval(Interval(*(min(max(end, -most), most) for end in interval)))
                if known
                else interval
            )
        ends = interval if known else None
        found.append(Difference(first, second, figure, value, ends, "undecided", p_value, ratio=ratio))
    return found


def _compute_p_value(estimate: Estimate) -> float:
    error = float(estimate.error)
    return student_tail(float(estimate.value) / error, estimate.degrees) if error > 0 else float(estimate.value == 0)


def correct_outcomes(differences: Sequence[Difference]) -> list[Difference]:
    """Decide the outcomes of all pairs in each figure, corrected for their number."""
    decided: dict[Difference, Difference] = {}
    for figure in dict.fromkeys(one.figure for one in differences):
        selected = [one for one in differences if one.figure == figure and one.p_value is not None]
        for one, p_adjusted in zip(
            selected, adjust_p_values_stepwise([one.p_value or 0.0 for one in selected]), strict=True
        ):
            more = one.value > one.no_difference
            outcome: Outcome = "undecided" if p_adjusted > LEVEL else "more" if more else "less"
            decided[one] = one._replace(outcome=outcome, p_adjusted=p_adjusted)
    return [decided.get(one, one) for one in differences]


def _compare_figure(mine: LeftOut, theirs: LeftOut) -> Estimate:
    """Compute the difference of two runs in a figure; a bucket is left out of both runs and the reference at once."""
    one, other = mine.figure, theirs.figure
    sides = (
        one.evaluated - other.whole,
        one.whole - other.evaluated,
        one.reference - other.reference,
    )
    counts = mine.counts[0], theirs.counts[0], *mine.counts[1:]
    return joint_jackknife(one.whole - other.whole, one.both - other.both, sides[: len(counts)], counts)
