"""Tables beside that of the runs: differences of every two runs, and results by class."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from clipconformity.evaluation.classes import ByClass, ClassScore, get_interval
from clipconformity.evaluation.difference import Difference
from clipconformity.evaluation.results import Figure
from clipconformity.evaluation.tables import SIGNS, Format, arrange_cells, check_format, format_csv, format_plus_minus

DIFFERENCE_HEAD = ("first", "second", "figure", "compared by", "value", "95% interval", "p adjusted", "outcome")
DIFFERENCE_CSV = (
    "first",
    "second",
    "figure",
    "compared_by",
    "value",
    "low",
    "high",
    "p_value",
    "p_adjusted",
    "outcome",
)
DIFFERENCE_LEGEND = (
    "The interval is of one pair; p is adjusted for the pairs in a figure (Holm), and the outcome is of the first: "
    "more or less where it is at most 0.05."
)
CLASS_FIGURES = ("conformity_mean", "typicality_shift", "variety_ratio")
"""Figures of each class and run in the table of classes."""
CLASS_LEGEND = {
    "text": "those classes first in which two runs differ most, in standard errors; +- half of the 95% interval",
    "markdown": "Those classes first in which two runs differ most, in standard errors. ± half of the 95% interval.",
}
JUDGED_OF_CLASS = ("typicality_shift", "variety_ratio")
"""Figures that determine the order of the classes."""


def format_differences(
    differences: Sequence[Difference], format: Format = "text", figures: Sequence[str] | None = None
) -> str:
    """Format differences as a table, a row each.

    Args:
        differences: Differences of all pairs, as in ``Comparison.differences``.
        format: ``"text"``, ``"markdown"``, ``"latex"`` (booktabs), or ``"csv"``, which has numbers in full.
        figures: Keys of the figures; by default all.

    Raises:
        ValueError: If the format is unknown, or a figure is not compared.
    """
    check_format(format)
    known = dict.fromkeys(one.figure for one in differences)
    if lacking := [name for name in figures or () if name not in known]:
        raise ValueError(f"figures: {', '.join(lacking)} is not compared; expected some of {', '.join(known)}.")
    chosen = [one for one in differences if figures is None or one.figure in figures]
    if format == "csv":
        return format_csv(DIFFERENCE_CSV, map(_list_difference, chosen))
    return arrange_cells(
        DIFFERENCE_HEAD, [_format_difference(one) for one in chosen], format, DIFFERENCE_LEGEND, words=4
    )


def _choose_order(one: Difference) -> str:
    return "ratio" if one.ratio else "difference"


def _list_difference(one: Difference) -> list[object]:
    ends = one.interval or (None, None)
    names = [one.first, one.second, one.figure, _choose_order(one)]
    return [*names, one.value, *ends, one.p_value, one.p_adjusted, one.outcome]


def _format_difference(one: Difference) -> list[str]:
    names = [one.first, one.second, one.figure.replace("_", " "), _choose_order(one)]
    ends = "" if one.interval is None else f"[{one.interval.low:.3g}, {one.interval.high:.3g}]"
    p_adjusted = "" if one.p_adjusted is None else f"{one.p_adjusted:.2g}"
    return [*names, f"{one.value:.3g}", ends, p_adjusted, one.outcome]


def format_classes(runs: Mapping[str, ByClass], format: Format = "text") -> str:
    """Format the classes of runs as a table, a row for each class and run.

    The classes with the largest differences of two runs come first, in typicality or variety, in standard errors of a
    difference of independent runs: by the difference alone, the smallest classes would come first.

    Args:
        runs: The classes of each run.
        format: ``"text"``, ``"markdown"``, ``"latex"`` (booktabs), or ``"csv"``, which has numbers in full.

    Raises:
        ValueError: If the format is unknown.
    """
    check_format(format)
    rows = list(_sort_classes(runs))
    if format == "csv":
        ends = [f"{name}{end}" for name in CLASS_FIGURES for end in ("", "_low", "_high")]
        head = ["class", "run", "count", "against", "reference_count", *ends, "reason"]
        return format_csv(head, (_list_class(name, one) for name, one in rows))
    head = ["class", "run", "N", "against", *(name.replace("_", " ") for name in CLASS_FIGURES)]
    cells = [
        [
            one.name,
            name,
            str(one.count),
            one.against,
            *(_format_class(one, key, SIGNS[format]) for key in CLASS_FIGURES),
        ]
        for name, one in rows
    ]
    return arrange_cells(head, cells, format, CLASS_LEGEND.get(format, ""), words=2)


def _sort_classes(runs: Mapping[str, ByClass]) -> Iterator[tuple[str, ClassScore]]:
    """Sort the classes of all runs; those with the largest differences come first."""
    classes: dict[str, dict[str, ClassScore]] = {}
    for name, by in runs.items():
        for one in by.classes:
            classes.setdefault(one.name, {})[name] = one
    for its in sorted(classes.values(), key=lambda its: -_find_largest(list(its.values()))):
        yield from its.items()


def _find_largest(scores: Sequence[ClassScore]) -> float:
    """Find the largest difference of two runs in a class, in half intervals; below 0 where nothing can be compared."""
    found = [-1.0]
    for first, second in combinations(scores, 2):
        for figure in JUDGED_OF_CLASS:
            sides = [_scale_figure(one, figure) for one in (first, second) if get_interval(one, figure) is not None]
            if len(sides) == 2 and first.against == second.against:
                error = math.hypot(*(half for _, half in sides))
                found.append(abs(sides[0][0] - sides[1][0]) / error if error > 0 else 0.0)
    return max(found)


def _scale_figure(one: ClassScore, figure: str) -> tuple[float, float]:
    """Return value and half interval; for a ratio on the log scale and down to the lower end, which is never raised."""
    value, ends = getattr(one, figure), get_interval(one, figure)
    assert ends is not None
    if figure == "variety_ratio":
        return math.log(value), math.log(value / ends.low)
    return value, (ends.high - ends.low) / 2


def _list_class(run: str, one: ClassScore) -> list[object]:
    numbers = [x for name in CLASS_FIGURES for x in (getattr(one, name), *(get_interval(one, name) or (None, None)))]
    return [one.name, run, one.count, one.against, one.reference_count, *numbers, one.reason]


def _format_class(one: ClassScore, name: str, sign: str) -> str:
    return format_plus_minus(Figure(getattr(one, name), "", "", "neither", interval=get_interval(one, name)), sign)
