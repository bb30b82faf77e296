"""Style of all plots: colours, line styles, axes, and writing of figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLORS = {"image": "#0072B2", "text": "#D55E00", None: "#009E73"}
"""Colours of modalities, the same everywhere; green stands for neither or both."""

REFERENCE_COLOR = "#767676"
"""Colour of what runs are compared with."""

RUN_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8F8F2F")
"""Colours of several runs, none the colour of a modality."""

LINE_STYLES = ("-", "--", "-.", ":")

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
"""Markers of runs, since colours alone do not distinguish many."""

BINS = 60
"""Cells of a histogram drawn from values."""

POINTS = 500
"""Largest number of points of one set in a scatter plot."""

Histogram = tuple[Tensor, Tensor]


class Look(NamedTuple):
    """The look of a run, the same in every plot."""

    color: str
    line: str
    marker: str


@contextmanager
def use_text_color(color: str) -> Iterator[None]:
    """Draw text, ticks and frames in a colour on a transparent background, inside the context."""
    import matplotlib as mpl

    parts = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    clear = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    settings: dict[Any, Any] = dict.fromkeys(parts, color) | dict.fromkeys(clear, "none")
    with mpl.rc_context(settings):
        yield


COLUMN = 3.3
"""Width of a column in a two-column paper, inches; the page is twice that and a gap."""
_WIDTH: ContextVar[float | None] = ContextVar("width", default=None)


@contextmanager
def for_paper(columns: int = 1) -> Iterator[None]:
    """Draw at print size inside the context: one or two columns wide, with text of 8 points.

    Example:
        >>> import torch
        >>> from clipconformity import plots
        >>> with plots.for_paper():
        ...     figure, _ = plots.distributions({"mine": torch.rand(50)})
        >>> tuple(figure.get_size_inches().round(2).tolist())
        (3.3, 2.06)

    Args:
        columns: 1, or 2 for the width of the page.

    Raises:
        ValueError: If it is neither.
    """
    import matplotlib as mpl

    if columns not in (1, 2):
        raise ValueError(f"columns: expected 1 or 2, got {columns!r}.")
    settings: dict[Any, Any] = {"font.size": 8, "lines.markersize": 4, "savefig.dpi": 300, "pdf.fonttype": 42}
    token = _WIDTH.set(COLUMN * columns + 0.2 * (columns - 1))
    try:
        with mpl.rc_context(settings):
            yield
    finally:
        _WIDTH.reset(token)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, or as PDF or SVG by the suffix, and close it."""
    import matplotlib.pyplot as plt

    kind = path.suffix[1:] if path.suffix in (".pdf", ".svg") else "png"
    figure.savefig(path, format=kind, dpi=300 if _WIDTH.get() else 150)
    plt.close(figure)


def make_axes(ax: Axes | None, *, width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """Return axes to draw on, new ones by default, and their figure."""
    import matplotlib.pyplot as plt

    if ax is None:
        scale = (_WIDTH.get() or width) / width
        figure, ax = plt.subplots(figsize=(scale * width, scale * height), layout="constrained")
    else:
        figure = ax.figure  # type: ignore[assignment]
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def draw_density(ax: Axes, histogram: Histogram, color: str, label: str, *, fill: bool, linestyle: str = "-") -> None:
    """Draw a histogram as a density."""
    ax.stairs(
        compute_density(histogram).numpy(),
        histogram[1].detach().cpu().double().numpy(),
        fill=fill,
        color=color,
        alpha=0.55 if fill else 1.0,
        linewidth=2,
        linestyle=linestyle,
        label=label,
    )


def compute_density(histogram: Histogram) -> Tensor:
    """Compute the heights of a histogram with area 1, ``(K,)`` float64."""
    counts, edges = (part.detach().cpu().double() for part in histogram)
    return counts / (counts.sum() * torch.diff(edges))


def run_look(number: int, count: int, modality: str | None) -> Look:
    """Return the look of a run by its number: colour, line style and marker; a single run has its modality's colour."""
    marker = MARKERS[number % len(MARKERS)]
    if count == 1:
        return Look(COLORS[modality], LINE_STYLES[0], marker)
    turn = number // len(RUN_COLORS)  # after the last colour, colours repeat with other line styles
    return Look(RUN_COLORS[number % len(RUN_COLORS)], LINE_STYLES[(number + turn) % len(LINE_STYLES)], marker)


def thin_rows(rows: Tensor, most: int) -> Tensor:
    """Select evenly spaced rows, at most a given number."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long()]


def to_floats(values: Sequence[float] | Tensor) -> list[float]:
    """Convert values to floats."""
    return [float(value) for value in values]


def count_cells(values: Tensor, edges: Tensor) -> Histogram:
    """Count values into cells."""
    return torch.histogram(values.detach().double().cpu(), edges).hist, edges
