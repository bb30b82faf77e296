"""Plots of figures over steps, and of several models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from clipconformity.plots.style import COLORS, REFERENCE_COLOR, make_axes, run_look, to_floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PANELS = 3
"""Panels in a row of a drawing of several figures."""
LEADER_LENGTH: dict[str, Any] = {
    "arrowstyle": "-", "color": REFERENCE_COLOR, "linewidth": 0.6, "shrinkB": 6, "relpos": (0, 0.5),
}  # fmt: skip
"""Style of the line from a name to its marker."""
LABEL_GAP = 0.5
"""Distance of two names beside the map, in lines."""


class Place(NamedTuple):
    """Position of a run relative to its reference."""

    typicality: tuple[float, float, float]
    """Typicality shift, low and high end."""
    variety: tuple[float, float, float]
    """Variety ratio, low and high end."""


def typicality_and_variety(
    places: Mapping[str, Place],
    *,
    margins: tuple[float, float] | None = None,
    people: tuple[tuple[float, float], tuple[float, float]] | None = None,
    modality: str | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw runs on a map: more typical than the reference to the right, more varied upwards.

    The reference is in the middle. Each run has a marker, its intervals and its name. Runs to the right and below crowd
    around the typical; runs to the left and above stray from it.

    Args:
        places: Position of each run, by name.
        margins: Differences in typicality and variety that do not matter, drawn as a box around the reference.
        people: Range of the typicality shift and of the variety ratio of one more person, drawn as a hatched box.
        modality: ``"image"`` or ``"text"``, for the colour of a single run.
        ax: Axes to draw on.

    Returns:
        The figure and its axes.
    """
    figure, ax = make_axes(ax, width=6.4, height=4.8)
    if margins is not None:
        wide, high = margins
        ax.fill([-wide, wide, wide, -wide], [1 - high, 1 - high, 1 + high, 1 + high], color=REFERENCE_COLOR, alpha=0.2)
    if people is not None:
        (left, right), (low, high) = people
        ax.fill(
            [left, right, right, left], [low, low, high, high], facecolor="none", edgecolor=REFERENCE_COLOR,
            hatch="///", linewidth=0.8, label="one more person",
        )  # fmt: skip
        ax.legend(frameon=False, fontsize="small")
    ax.axhline(1, color=REFERENCE_COLOR, linewidth=0.8, zorder=0)
    ax.axvline(0, color=REFERENCE_COLOR, linewidth=0.8, zorder=0)
    ax.plot(0, 1, marker="+", markersize=12, color=REFERENCE_COLOR)
    ax.annotate("reference", (0, 1), (6, 6), textcoords="offset points", color=REFERENCE_COLOR, fontsize="small")
    for number, (across_run, up_run) in enumerate(places.values()):
        look = run_look(number, len(places), modality)
        across, up = ([[max(0.0, at - one)], [max(0.0, other - at)]] for at, one, other in (across_run, up_run))
        ax.errorbar(
            across_run[0], up_run[0], up, across, color=look.color, marker=look.marker, markersize=8, capsize=3,
            elinewidth=1,
        )  # fmt: skip
    ax.margins(0.15)
    _name_places(ax, places)
    ax.set_xlabel("typicality shift (standard deviations of the reference)")
    ax.set_ylabel("variety ratio")
    return figure, ax


def _name_places(ax: Axes, places: Mapping[str, Place]) -> None:
    """Write the name of each run beside the map, ordered by height, with a line to its marker.

    Names at their markers would overlap where runs are similar.
    """
    order = sorted(places.items(), key=lambda item: item[1].variety[0])
    bottom, top = ax.get_ylim()
    lines = [1 + name.count("\n") for name, _ in order]
    step = 1 / max(20, sum(lines) + LABEL_GAP * len(lines))  # height of a line
    apart = [step * (LABEL_GAP + (a + b) / 2) for a, b in pairwise(lines)]
    heights = [(place.variety[0] - bottom) / (top - bottom) for _, place in order]
    for number, gap in enumerate(apart, start=1):  # from the bottom up, then pushed down from the top
        heights[number] = max(heights[number], heights[number - 1] + gap)
    heights[-1] = min(heights[-1], 1.0)
    for number, gap in reversed(list(enumerate(apart))):
        heights[number] = min(heights[number], heights[number + 1] - gap)
    for (name, place), height in zip(order, heights, strict=True):
        ax.annotate(
            name, (place.typicality[0], place.variety[0]), (1.02, height), textcoords="axes fraction", va="center",
            fontsize="small", arrowprops=LEADER_LENGTH,
        )  # fmt: skip


def series(
    values: Sequence[float] | Tensor,
    low: Sequence[float] | Tensor | None = None,
    high: Sequence[float] | Tensor | None = None,
    *,
    steps: Sequence[float] | None = None,
    floor: float | None = None,
    quantity: str = "conformity KL (nats)",
    modality: str | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw one figure over steps, with intervals.

    Args:
        values: The figures ``(K,)``.
        low: Low ends of the intervals ``(K,)``.
        high: High ends ``(K,)``.
        steps: Position of each on the horizontal axis; by default counted from 0.
        floor: Noise floor, drawn as a dashed line.
        quantity: Name of the figures, with their unit.
        modality: ``"image"`` or ``"text"``, for the colour.
        ax: Axes to draw on.

    Returns:
        The figure and its axes, whose first line holds the values.
    """
    points = to_floats(values)
    figure, ax = make_axes(ax)
    places = list(range(len(points))) if steps is None else list(steps)
    error = None if low is None or high is None else _compute_reaches(points, to_floats(low), to_floats(high))
    ax.errorbar(places, points, yerr=error, color=COLORS[modality], marker="o", capsize=4, linewidth=2)
    ax.set_ylabel(quantity)
    if len(points) == 1:
        ax.set_xticks([])
        ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    else:
        ax.set_xlabel("evaluation" if steps is None else "step")
        if steps is None:
            ax.locator_params(axis="x", integer=True)
    if floor is not None:
        ax.axhline(floor, color=REFERENCE_COLOR, linestyle="--", label="noise floor")
        ax.legend(frameon=False)
    return figure, ax


def forest(
    values: Sequence[float] | Tensor,
    low: Sequence[float] | Tensor,
    high: Sequence[float] | Tensor,
    names: Sequence[str],
    *,
    quantity: str,
    floors: Sequence[float | None] = (),
    null: float | None = None,
    margin: float | None = None,
    runs: bool = False,
    modality: str | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw one figure of several runs with intervals, a line each (a forest plot).

    Args:
        values: The figures ``(K,)``.
        low: Low ends of the intervals ``(K,)``.
        high: High ends ``(K,)``.
        names: Names of the lines, the first at the top.
        quantity: Name of the figures, with their unit.
        floors: Noise floor of each; None where there is none.
        null: Value of no difference, drawn as a line.
        margin: Difference from it that does not matter, drawn as a band.
        runs: Whether the lines are runs, each with its own colour and marker in every plot.
        modality: ``"image"`` or ``"text"``, for the colour of a single run, or of other lines.
        ax: Axes to draw on.

    Returns:
        The figure and its axes.
    """
    points = to_floats(values)
    figure, ax = make_axes(ax, height=1.4 + 0.45 * len(points))
    if null is not None and margin is not None:
        ax.axvspan(null - margin, null + margin, color=REFERENCE_COLOR, alpha=0.2, linewidth=0)
    if null is not None:
        ax.axvline(null, color=REFERENCE_COLOR, linewidth=0.8)
    for row, (value, *ends) in enumerate(zip(points, to_floats(low), to_floats(high), strict=True)):
        look = run_look(row if runs else 0, len(points) if runs else 1, modality)
        error = _compute_reaches([value], ends[:1], ends[1:])
        ax.errorbar(value, row, xerr=error, color=look.color, marker=look.marker, capsize=4, linewidth=2)
    known = [(floor, row) for row, floor in enumerate(floors) if floor is not None]
    if known:
        x, y = zip(*known, strict=True)
        ax.plot(x, y, linestyle="none", marker="|", markersize=16, color=REFERENCE_COLOR, label="own noise floor")
        ax.legend(frameon=False, fontsize="small")
    ax.set_yticks(range(len(points)), list(names))
    ax.set_ylim(len(points) - 0.5, -0.5)
    ax.set_xlabel(quantity)
    return figure, ax


def _compute_reaches(points: list[float], low: list[float], high: list[float]) -> list[list[float]]:
    """Compute how far intervals reach below and above their points."""
    below = [max(0.0, value - end) for value, end in zip(points, low, strict=True)]
    return [below, [max(0.0, end - value) for value, end in zip(points, high, strict=True)]]


def figures(values: Mapping[str, Any] | Sequence[Mapping[str, Any]], *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Show the named figures of one evaluation as a list, or of several as curves, each in a panel of its own.

    Figures of one metric have different units, and no common axis.

    Args:
        values: One or several results of ``compute``.
        ax: Axes in whose place the list or the panels are drawn.
    """
    names = list(values) if isinstance(values, Mapping) else list(values[0])
    rows = -(-len(names) // PANELS)
    figure, ax = make_axes(
        ax, width=9.0, height=1.0 + (0.3 * len(names) if isinstance(values, Mapping) else 2.2 * rows)
    )
    ax.set_axis_off()
    if isinstance(values, Mapping):
        for number, (name, value) in enumerate(values.items()):
            height = 1 - (number + 0.5) / len(names)
            ax.text(0.5, height, f"{name}  ", ha="right", va="center", transform=ax.transAxes)
            ax.text(0.5, height, f"  {float(value):.4g}", ha="left", va="center", weight="bold", transform=ax.transAxes)
        return figure, ax
    for number, name in enumerate(names):
        across, down = number % PANELS, number // PANELS
        place = (across / PANELS + 0.06, 1 - (down + 1) / rows + 0.2 / rows, 1 / PANELS - 0.08, 0.62 / rows)
        panel = ax.inset_axes(place)
        panel.plot([float(one[name]) for one in values], color=COLORS[None], marker="o")
        panel.set_title(name, fontsize="small", loc="left")
        panel.tick_params(labelsize="small")
        panel.locator_params(axis="x", integer=True)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, ax
