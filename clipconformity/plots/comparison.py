"""Figures over steps, and of several models beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from clipconformity.plots.style import COLORS, REFERENCE_COLOR, model_look, new_axes, numbers, run_look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Place(NamedTuple):
    """Where a run lies beside its reference."""

    typicality: tuple[float, float, float]
    """Typicality shift, low and high end."""
    variety: tuple[float, float, float]
    """Variety ratio, low and high end."""


def typicality_and_variety(
    places: Mapping[str, Place], *, margins: tuple[float, float] | None = None, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw runs on a map: to the right they are more typical than the reference, upwards more varied.

    The reference is in the middle. Each run has a marker, its intervals and its name. Runs to the right and below crowd
    around the typical; runs to the left and above stray from it.

    Args:
        places: Of each run, by name.
        margins: Differences in typicality and variety that do not matter, drawn as a box around the reference.
        ax: Axes to draw on.

    Returns:
        The figure and its axes.
    """
    figure, ax = new_axes(ax, width=6.4, height=4.8)
    if margins is not None:
        wide, high = margins
        ax.fill([-wide, wide, wide, -wide], [1 - high, 1 - high, 1 + high, 1 + high], color=REFERENCE_COLOR, alpha=0.2)
    ax.axhline(1, color=REFERENCE_COLOR, linewidth=0.8, zorder=0)
    ax.axvline(0, color=REFERENCE_COLOR, linewidth=0.8, zorder=0)
    ax.plot(0, 1, marker="+", markersize=12, color=REFERENCE_COLOR)
    ax.annotate("reference", (0, 1), (6, 6), textcoords="offset points", color=REFERENCE_COLOR, fontsize="small")
    for number, (name, (across_run, up_run)) in enumerate(places.items()):
        x, y = across_run[0], up_run[0]
        color, marker = model_look(number)
        across, up = ([[max(0.0, at - one)], [max(0.0, other - at)]] for at, one, other in (across_run, up_run))
        ax.errorbar(x, y, up, across, color=color, marker=marker, markersize=8, capsize=3, elinewidth=1)
        ax.annotate(name, (x, y), (7, -12), textcoords="offset points", color=color, fontsize="small", weight="bold")
    ax.margins(0.15)
    ax.set_xlabel("typicality shift (standard deviations of the reference)")
    ax.set_ylabel("variety ratio")
    return figure, ax


def series(
    values: Sequence[float] | Tensor,
    low: Sequence[float] | Tensor | None = None,
    high: Sequence[float] | Tensor | None = None,
    *,
    steps: Sequence[float] | None = None,
    names: Sequence[str] | None = None,
    floor: float | None = None,
    quantity: str = "conformity KL (nats)",
    modality: str | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw one figure over steps, or of several models, with intervals.

    Args:
        values: The figures ``(K,)``.
        low: Low ends of the intervals ``(K,)``.
        high: High ends ``(K,)``.
        steps: Place of each on the horizontal axis; by default they are counted from 0.
        names: Names of models instead: one line of the picture each, the first at the top.
        floor: Noise floor, drawn as a dashed line.
        quantity: What the figures are, with their unit.
        modality: ``"image"`` or ``"text"``, for the colour.
        ax: Axes to draw on.

    Returns:
        The figure and its axes, whose first line holds the values.
    """
    points = numbers(values)
    figure, ax = new_axes(ax, height=4.0 if names is None else 1.4 + 0.45 * len(points))
    error = None
    if low is not None and high is not None:
        error = [[v - x for v, x in zip(points, numbers(low), strict=True)],
                 [x - v for v, x in zip(points, numbers(high), strict=True)]]  # fmt: skip
        error = [[max(0.0, x) for x in side] for side in error]
    look = {"color": COLORS[modality], "marker": "o", "capsize": 4, "linewidth": 2}
    if names is None:
        places = list(range(len(points))) if steps is None else list(steps)
        ax.errorbar(places, points, yerr=error, **look)  # type: ignore[arg-type]
        ax.set_ylabel(quantity)
        if len(points) == 1:
            ax.set_xticks([])
            ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
        else:
            ax.set_xlabel("evaluation" if steps is None else "step")
            if steps is None:
                ax.locator_params(axis="x", integer=True)
    else:
        rows = list(range(len(points)))
        ax.errorbar(points, rows, xerr=error, linestyle="none", **look)  # type: ignore[arg-type]
        ax.set_yticks(rows, list(names))
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel(quantity)
    if floor is not None:
        line = ax.axhline if names is None else ax.axvline
        line(floor, color=REFERENCE_COLOR, linestyle="--", label="noise floor")
        ax.legend(frameon=False)
    return figure, ax


def figures(values: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw the named figures of one evaluation, a line of the picture each, or of several, a curve each.

    Args:
        values: What ``compute`` gave, once or several times.
        ax: Axes to draw on.
    """
    if isinstance(values, Mapping):
        return series([float(x) for x in values.values()], names=list(values), quantity="value", ax=ax)
    figure, ax = new_axes(ax, width=8.0)
    for number, name in enumerate(values[0]):
        color, style = run_look(number, len(values[0]), None)
        ax.plot([float(one[name]) for one in values], color=color, linestyle=style, marker="o", label=name)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("evaluation")
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, ax
