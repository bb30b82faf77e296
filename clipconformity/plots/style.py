"""One visual language: colours, line styles, axes, and how a figure is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


COLORS = {"image": "#0072B2", "text": "#D55E00", None: "#009E73"}
"""A modality keeps its colour everywhere; what is of neither or both is green."""

REFERENCE_COLOR = "#767676"

RUN_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Runs beside each other, none in the colour of a modality."""

LINE_STYLES = ("-", "--", "-.", ":")

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
"""A run keeps its marker, since colours alone do not tell many apart."""

BINS = 60
"""Cells of a histogram drawn from values."""

POINTS = 500
"""Most points of one set in a scatter plot."""

Histogram = tuple[Tensor, Tensor]


@contextmanager
def drawing_in(color: str) -> Iterator[None]:
    """Draw text, ticks and frames in a colour and leave the background clear, for as long as the context lasts."""
    import matplotlib as mpl

    parts = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    clear = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    settings: dict[Any, Any] = dict.fromkeys(parts, color) | dict.fromkeys(clear, "none")
    with mpl.rc_context(settings):
        yield


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and close it."""
    import matplotlib.pyplot as plt

    figure.savefig(path, format="png", dpi=150)
    plt.close(figure)


def new_axes(ax: Axes | None, *, width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """Give axes to draw on, new ones by default, and their figure."""
    import matplotlib.pyplot as plt

    if ax is None:
        figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    else:
        figure = ax.figure  # type: ignore[assignment]
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def draw_density(ax: Axes, histogram: Histogram, color: str, label: str, *, fill: bool, linestyle: str = "-") -> None:
    """Draw a histogram as a density."""
    counts, edges = (part.detach().cpu().double() for part in histogram)
    density = counts / (counts.sum() * torch.diff(edges))
    ax.stairs(
        density.numpy(),
        edges.numpy(),
        fill=fill,
        color=color,
        alpha=0.55 if fill else 1.0,
        linewidth=2,
        linestyle=linestyle,
        label=label,
    )


def run_look(number: int, count: int, modality: str | None) -> tuple[str, str]:
    """Colour and line style of one of several runs."""
    if count == 1:
        return COLORS[modality], LINE_STYLES[0]
    turn = number // len(RUN_COLORS)  # past the last colour, colours meet other line styles
    return RUN_COLORS[number % len(RUN_COLORS)], LINE_STYLES[(number + turn) % len(LINE_STYLES)]


def model_look(number: int) -> tuple[str, str]:
    """Colour and marker of one of several models, the same in every picture; 12 of them are different."""
    return RUN_COLORS[number % len(RUN_COLORS)], MARKERS[number % len(MARKERS)]


def spaced(rows: Tensor, most: int) -> Tensor:
    """Thin rows out to at most so many, evenly."""
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long()]


def numbers(values: Sequence[float] | Tensor) -> list[float]:
    """Give values as floats."""
    return [float(value) for value in values]


def binned(values: Tensor, edges: Tensor) -> Histogram:
    """Count values into cells."""
    return torch.histogram(values.detach().double().cpu(), edges).hist, edges
