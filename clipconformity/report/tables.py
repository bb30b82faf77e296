"""The tables of the report of scored runs; none is wider than a printed page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from clipconformity.evaluation import ClassScore, Figure, Score
from clipconformity.evaluation.classes import get_interval
from clipconformity.evaluation.scoring import list_core_fields, list_uncertainty_fields
from clipconformity.report.lead import format_kl
from clipconformity.report.page import Table, format_interval, format_number
from clipconformity.report.score_plots import Panel
from clipconformity.stream.reference import ReferenceSet

MAX_CLASSES = 40
"""Largest number of shown classes of a run."""
MAX_RUNS_ACROSS = 4
"""Largest number of runs in a table."""
UNKNOWN = "not known"


class ClassTable(NamedTuple):
    """The classes of a run."""

    table: Table
    about: str


def make_figure_tables(panels: Sequence[Panel]) -> list[Table]:
    """Make the tables of all runs: typicality and variety, distance of the distributions, further figures."""
    both = Table(
        "How typical and how varied",
        ["run", "N", "conformity", "typicality shift", "self-conformity", "variety ratio", "norm"],
        [row for panel in panels for row in _list_rows(panel)],
    )
    apart = Table(
        "How far the distributions are apart",
        ["run", "KL", "noise floor", "reverse KL", "spread ratio", "p"],
        [
            [name, _format_kl(score), _format_figure(score.figures["noise_floor"]),
             format_number(score.value("reverse_kl")),
             _format_figure(score.figures["spread_ratio"]), "" if score.p_value is None else f"{score.p_value:.3g}"]
            for panel in panels
            for name, score in panel.scores.items()
        ],
    )  # fmt: skip
    return [
        both,
        apart,
        *_make_further_tables({name: score for panel in panels for name, score in panel.scores.items()}),
    ]


def name_reference(reference: ReferenceSet) -> str:
    """Name a reference for reading."""
    parts = [part for part in (reference.dataset, reference.modality) if part]
    return "reference" + (f" ({', '.join(parts)})" if parts else "")


def _list_rows(panel: Panel) -> Iterator[list[str]]:
    reference = panel.reference
    own, estimate = format_number(float(reference.self_conformity)), ""
    if reference.known_error is not None:
        estimate = f" ({format_interval(*reference.own_pairs.interval())})"
    norm = format_number(float(reference.norms.mean()))
    yield [name_reference(reference), str(reference.count), own, "", own + estimate, "", norm]
    for name, score in panel.scores.items():
        keys = ("conformity_mean", "typicality_shift", "self_conformity_mean", "variety_ratio", "norm_mean")
        yield [name, str(score.count), *(_format_figure(score.figures[key]) for key in keys)]


def _format_kl(score: Score) -> str:
    return format_kl(score) + ("" if score.kl_interval is None else f" ({format_interval(*score.kl_interval)})")


def _format_figure(figure: Figure) -> str:
    """Format a figure with its interval, as far as they are known."""
    if figure.value is None:
        return UNKNOWN
    if figure.interval is not None:
        return f"{format_number(figure.value)} ({format_interval(*figure.interval)})"
    return format_number(figure.value)


def _make_further_tables(scores: Mapping[str, Score]) -> Iterator[Table]:
    """Make tables of further read-outs, a row each; the interval stands beside its figure."""
    hidden = list_core_fields() | list_uncertainty_fields()
    shown = {name: one for score in scores.values() for name, one in score.figures.items() if name not in hidden}
    left = iter(scores.items())
    while shown and (beside := dict(islice(left, MAX_RUNS_ACROSS))):
        rows = [
            [f"{one.about} ({name})", one.unit, *(_format_figure(score.figures[name]) if name in score.figures else ""
             for score in beside.values())]
            for name, one in shown.items()
        ]  # fmt: skip
        of = "" if len(scores) <= MAX_RUNS_ACROSS else f" of {', '.join(beside)}"
        yield Table(f"Further figures{of}", ["figure", "unit", *beside], rows)


def make_class_tables(scores: Mapping[str, Score]) -> list[ClassTable]:
    """Make the table of classes of each run; the largest losses of variety come first."""
    head = ["class", "N", "against", "conformity", "typicality shift", "p", "variety ratio", "shrunken", "p"]
    parts = []
    for name, score in scores.items():
        if score.by is None:
            continue
        found = score.by.classes
        left = f"{len(found) - MAX_CLASSES} further classes are not shown. " if len(found) > MAX_CLASSES else ""
        about = (
            f"{left}Brackets hold 95% intervals of one class; p is adjusted ({score.by.correction}). Those that lost "
            "most variety stand first, by a ratio that is shrunk towards the classes' mean."
        )
        table = Table(f"Classes of {name}", head, [_format_class(one) for one in found[:MAX_CLASSES]])
        parts.append(ClassTable(table, about))
    return parts


def _format_class(one: ClassScore) -> list[str]:
    """Format a row of the table of classes."""
    if one.variety_ratio is None:
        return [one.name, str(one.count), one.reason or "", *[""] * 6]
    against = f"{'its own class' if one.against == 'class' else 'the whole reference'}, {one.reference_count}"
    return [
        one.name,
        str(one.count),
        against + (f" ({one.reason})" if one.reason else ""),
        "" if one.conformity_mean is None else format_number(one.conformity_mean),
        _format_class_figure(one, "typicality_shift"),
        "" if one.typicality_p is None else f"{one.typicality_p:.3g}",
        _format_class_figure(one, "variety_ratio"),
        "" if one.variety_ratio_shrunken is None else format_number(one.variety_ratio_shrunken),
        "" if one.variety_p is None else f"{one.variety_p:.3g}",
    ]


def _format_class_figure(one: ClassScore, figure: str) -> str:
    value, ends = getattr(one, figure), get_interval(one, figure)
    return "" if value is None else format_number(value) + ("" if ends is None else f" ({format_interval(*ends)})")
