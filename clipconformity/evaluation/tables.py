"""Tables of several scores: text, Markdown, CSV and LaTeX, with as many digits as the uncertainty leaves."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Literal, NamedTuple, get_args

from clipconformity.data.cells import spreadsheet_cell
from clipconformity.evaluation.results import Figure, Score

Format = Literal["text", "markdown", "csv", "latex", "html"]
FIGURES = ("typicality_shift", "variety_ratio", "conformity_kl", "noise_floor", "p_value")
"""What a table has unless told otherwise."""
DIGITS = 3
"""Significant digits of a value without an uncertainty."""


class Mark(NamedTuple):
    """What is written around the best value of a column, and around those that cannot be told from it."""

    best: str
    tied: str
    legend: str


LEGEND = "Bold: best of its column. Italic: cannot be told from it. ± half of the 95% interval."
MARKS = {
    "text": Mark("{} *", "{} ~", "* best of its column, ~ cannot be told from it; +- half of the 95% interval"),
    "markdown": Mark("**{}**", "*{}*", LEGEND),
    "latex": Mark(r"\textbf{{{}}}", r"\underline{{{}}}", ""),
    "html": Mark(
        "<b>{}</b>",
        "<i>{}</i>",
        "Bold: best of its column. Italic: cannot be told from it. ± half of the 95% interval.",
    ),
}


def plus_minus(figure: Figure, sign: str = "+-") -> str:
    """Write a figure with half of its 95% interval, to the first digit of that, or two where the first is a 1.

    Example:
        >>> from clipconformity.functional.resampling import Interval
        >>> plus_minus(Figure(0.5051090, "", "", "neither", interval=Interval(0.5009, 0.5093)))
        '0.505 +- 0.004'
    """
    if figure.value is None:
        return ""
    half = figure.half_width
    if not half > 0:
        return f"{figure.value:.{DIGITS}g}"
    half = float(f"{half:.1e}")
    first = math.floor(math.log10(half) + 1e-9)
    digits = -first + (half / 10**first < 2 - 1e-9)
    if digits <= 0:
        return f"{round(figure.value, digits):.0f} {sign} {round(half, digits):.0f}"
    return f"{figure.value:.{digits}f} {sign} {half:.{digits}f}"


def table(scores: Mapping[str, Score], format: Format = "text", figures: Sequence[str] | None = None) -> str:
    """Give scores as a table, a row each.

    The best value of a figure with a direction is marked, and so are those that cannot be told from it: they are no
    further from it than the half intervals of both allow, taken as independent.

    Args:
        scores: By name.
        format: ``"text"``, ``"markdown"``, ``"latex"`` (booktabs), ``"html"``, as for a notebook, or ``"csv"``,
            which has numbers in full, with the ends of intervals.
        figures: Their keys; by default :data:`FIGURES`.

    Raises:
        ValueError: If the format is none of them, or a figure is not in every score.
    """
    names = list(FIGURES if figures is None else figures)
    for name, one in scores.items():
        if lacking := [key for key in names if key not in one.figures]:
            raise ValueError(f"figures: {name!r} has no {', '.join(lacking)}; score it with the metric that gives it.")
    if format == "csv":
        return _csv(scores, names)
    if format not in MARKS:
        expected = ", ".join(map(repr, get_args(Format)))
        raise ValueError(f"format: expected one of {expected}, got {format!r}.")
    columns = [_column([one.figures[key] for one in scores.values()], format) for key in names]
    bounds = ["≥ " if one.kl_is_lower_bound else "" for one in scores.values()]
    if "conformity_kl" in names:
        place = names.index("conformity_kl")
        columns[place] = [bound + cell for bound, cell in zip(bounds, columns[place], strict=True)]
    head = ["run", "N", *(_title(scores, key) for key in names)]
    rows = [[name, str(one.count), *cells] for (name, one), *cells in zip(scores.items(), *columns, strict=True)]
    if format in ("latex", "html"):
        return _latex(head, rows) if format == "latex" else _html(head, rows)
    return _markdown(head, rows) if format == "markdown" else _text(head, rows)


def _title(scores: Mapping[str, Score], key: str) -> str:
    unit = next(iter(scores.values())).figures[key].unit
    return key.replace("_", " ") + (f" ({unit})" if unit else "")


def _column(figures: Sequence[Figure], format: Format) -> list[str]:
    sign = {"text": "+-", "latex": r"$\pm$"}.get(format, "±")
    cells = [plus_minus(one, sign) for one in figures]
    known = [one for one in figures if one.value is not None]
    if len(known) < 2 or figures[0].better == "neither":
        return cells
    turn = 1 if figures[0].better == "lower" else -1
    best = min(known, key=lambda one: turn * one.value)  # type: ignore[operator]
    mark = MARKS[format]
    return [
        cell if one.value is None else mark.best.format(cell) if one is best
        else mark.tied.format(cell) if _tied(one, best) else cell
        for one, cell in zip(figures, cells, strict=True)
    ]  # fmt: skip


def _tied(one: Figure, best: Figure) -> bool:
    assert one.value is not None
    assert best.value is not None
    return abs(one.value - best.value) <= math.hypot(one.half_width, best.half_width)


def _text(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join([*(line.rstrip() for line in lines), MARKS["text"].legend]) + "\n"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:], "", MARKS["markdown"].legend]) + "\n"


def _html(head: list[str], rows: list[list[str]]) -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    lines = "".join(f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{x}</td>' for x in row[1:])}</tr>" for row in rows)
    legend = f"<p>{MARKS['html'].legend}</p>"
    return f"<table><thead><tr>{first}</tr></thead><tbody>{lines}</tbody></table>{legend}\n"


def _latex(head: list[str], rows: list[list[str]]) -> str:
    lines = [" & ".join([_escaped(row[0]), *row[1:]]) + r" \\" for row in (list(map(_escaped, head)), *rows)]
    lines = [line.replace("≥", r"$\geq$") for line in lines]
    begin = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    return "\n".join([begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escaped(text: str) -> str:
    """Write a text so that LaTeX shows it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(one, f"\\{one}" if one in "&%$#_{}" else one) for one in text)


def _csv(scores: Mapping[str, Score], names: Sequence[str]) -> str:
    def cells(figure: Figure) -> Iterable[object]:
        ends = (None, None) if figure.interval is None else figure.interval
        return map(spreadsheet_cell, (figure.value, *ends))

    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run", "count", *(f"{key}{end}" for key in names for end in ("", "_low", "_high"))])
    for name, one in scores.items():
        values = (cell for key in names for cell in cells(one.figures[key]))
        writer.writerow([spreadsheet_cell(name), one.count, *values])
    return out.getvalue()
