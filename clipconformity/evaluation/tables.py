"""Tables of several scores: text, Markdown, CSV and LaTeX, with digits according to the uncertainty."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Literal, NamedTuple, get_args

from clipconformity.data.cells import format_cell
from clipconformity.evaluation.results import Figure, Score

Format = Literal["text", "markdown", "csv", "latex", "html"]
FIGURES = ("typicality_shift", "variety_ratio", "conformity_kl", "noise_floor", "p_value")
"""Figures of a table by default."""
DIGITS = 3
"""Significant digits of a value without an uncertainty."""


class Mark(NamedTuple):
    """Markup of the best value of a column, and of those that do not differ from it significantly."""

    best: str
    tied: str
    legend: str


LEGEND = "Bold: best of its column. Italic: cannot be told from it. ± half of the 95% interval."
MARKS = {
    "text": Mark("{} *", "{} ~", "* best of its column, ~ cannot be told from it; +- half of the 95% interval"),
    "markdown": Mark("**{}**", "*{}*", LEGEND),
    "latex": Mark(r"\textbf{{{}}}", r"\underline{{{}}}", ""),
    "html": Mark("<b>{}</b>", "<i>{}</i>", LEGEND),
}

SIGNS = {"text": "+-", "markdown": "±", "latex": r"$\pm$", "html": "±"}


def format_plus_minus(figure: Figure, sign: str = "+-") -> str:
    """Format a figure with half of its 95% interval, to the first digit of that, or two where the first is a 1.

    Example:
        >>> from clipconformity.functional.resampling import Interval
        >>> format_plus_minus(Figure(0.5051090, "", "", "neither", interval=Interval(0.5009, 0.5093)))
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


def format_table(scores: Mapping[str, Score], format: Format = "text", figures: Sequence[str] | None = None) -> str:
    """Format scores as a table, a row each.

    The best value of a figure with a direction is marked, and so are those that do not differ from it significantly,
    by the half intervals of both as independent.

    Args:
        scores: Scores by name.
        format: ``"text"``, ``"markdown"``, ``"latex"`` (booktabs), ``"html"``, for a notebook, or ``"csv"``,
            which has numbers in full, with the ends of intervals.
        figures: Keys of the figures; by default :data:`FIGURES`.

    Raises:
        ValueError: If the format is unknown, or a figure is not in every score.
    """
    names = list(FIGURES if figures is None else figures)
    for name, one in scores.items():
        if lacking := [key for key in names if key not in one.figures]:
            raise ValueError(f"figures: {name!r} has no {', '.join(lacking)}; score it with the metric that gives it.")
    check_format(format)
    if format == "csv":
        return _format_scores_csv(scores, names)
    columns = [_format_column([one.figures[key] for one in scores.values()], format) for key in names]
    bounds = ["≥ " if one.kl_is_lower_bound else "" for one in scores.values()]
    if "conformity_kl" in names:
        place = names.index("conformity_kl")
        columns[place] = [bound + cell for bound, cell in zip(bounds, columns[place], strict=True)]
    head = ["run", "N", *(_choose_title(scores, key) for key in names)]
    rows = [[name, str(one.count), *cells] for (name, one), *cells in zip(scores.items(), *columns, strict=True)]
    return arrange_cells(head, rows, format, MARKS[format].legend)


def check_format(format: str) -> None:
    """Refuse an unknown format of tables.

    Raises:
        ValueError: If it is invalid.
    """
    if format not in get_args(Format):
        raise ValueError(f"format: expected one of {', '.join(map(repr, get_args(Format)))}, got {format!r}.")


def arrange_cells(
    head: Sequence[str], rows: Sequence[Sequence[str]], format: Format, legend: str, words: int = 1
) -> str:
    """Arrange cells as a table.

    Args:
        head: Titles of the columns.
        rows: Cells, a row each.
        format: ``"text"``, ``"markdown"``, ``"latex"`` or ``"html"``.
        legend: Text below the table; LaTeX has none.
        words: Number of columns, from the left, of words rather than formatted numbers.
    """
    if format == "latex":
        return _format_latex(head, rows, words)
    if format == "html":
        return _format_html(head, rows, legend, words)
    return _format_markdown(head, rows, legend) if format == "markdown" else _format_text(head, rows, legend)


def _choose_title(scores: Mapping[str, Score], key: str) -> str:
    unit = next(iter(scores.values())).figures[key].unit
    return key.replace("_", " ") + (f" ({unit})" if unit else "")


def _format_column(figures: Sequence[Figure], format: Format) -> list[str]:
    sign = SIGNS[format]
    cells = [format_plus_minus(one, sign) for one in figures]
    known = [one for one in figures if one.value is not None]
    if len(known) < 2 or figures[0].better == "neither":
        return cells
    turn = 1 if figures[0].better == "lower" else -1
    best = min(known, key=lambda one: turn * one.value)  # type: ignore[operator]
    mark = MARKS[format]
    return [
        cell if one.value is None else mark.best.format(cell) if one is best
        else mark.tied.format(cell) if _find_tied(one, best) else cell
        for one, cell in zip(figures, cells, strict=True)
    ]  # fmt: skip


def _find_tied(one: Figure, best: Figure) -> bool:
    assert one.value is not None
    assert best.value is not None
    return abs(one.value - best.value) <= math.hypot(one.half_width, best.half_width)


def _format_text(head: Sequence[str], rows: Sequence[Sequence[str]], legend: str) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *rows)]
    return "\n".join([*(line.rstrip() for line in lines), legend]) + "\n"


def _format_markdown(head: Sequence[str], rows: Sequence[Sequence[str]], legend: str) -> str:
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:], "", legend]) + "\n"


def _format_html(head: Sequence[str], rows: Sequence[Sequence[str]], legend: str, words: int) -> str:
    def line(cells: Sequence[str], titles: int) -> str:
        words_first = [f"<th>{escape(cell)}</th>" for cell in cells[:titles]]  # numbers formatted by this library
        return f"<tr>{''.join([*words_first, *(f'<td>{cell}</td>' for cell in cells[titles:])])}</tr>"

    first, lines = line(head, len(head)), "".join(line(row, words) for row in rows)
    below = f"<p>{legend}</p>" if legend else ""
    return f"<table><thead>{first}</thead><tbody>{lines}</tbody></table>{below}\n"


def _format_latex(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    titles = [*head[:words], *map(_escape_latex, head[words:])]
    lines = [" & ".join([*map(_escape_latex, row[:words]), *row[words:]]) + r" \\" for row in (titles, *rows)]
    lines = [line.replace("≥", r"$\geq$") for line in lines]
    begin = rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(head) - words)}}}"
    return "\n".join([begin, r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escape_latex(text: str) -> str:
    """Escape a text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(one, f"\\{one}" if one in "&%$#_{}" else one) for one in text)


def _format_scores_csv(scores: Mapping[str, Score], names: Sequence[str]) -> str:
    def cells(figure: Figure) -> Iterable[object]:
        return figure.value, *(figure.interval or (None, None))

    head = ["run", "count", *(f"{key}{end}" for key in names for end in ("", "_low", "_high"))]
    return format_csv(
        head,
        ([name, one.count, *(x for key in names for x in cells(one.figures[key]))] for name, one in scores.items()),
    )


def format_csv(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Format a table as CSV, each value by ``format_cell``."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(map(format_cell, row) for row in rows)
    return out.getvalue()
