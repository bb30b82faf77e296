"""Plots of typicality against alignment with partners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from clipconformity.plots.style import POINTS, make_axes, run_look, thin_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def typicality_alignment(
    runs: Mapping[str, tuple[Tensor, Tensor]],
    *,
    modality: str | None = None,
    points: int = POINTS,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw the CLIPScore of samples over their conformity.

    Args:
        runs: Conformity ``(N,)`` and CLIPScore ``(N,)`` of the samples of each run, by its name.
        modality: ``"image"`` or ``"text"``, for the colour of a single run.
        points: Largest number of samples of all runs together, evenly spaced.
        ax: Axes to draw on.

    Returns:
        The figure and its axes.
    """
    figure, ax = make_axes(ax)
    most = max(1, points // len(runs))
    for number, (name, pair) in enumerate(runs.items()):
        x, y = (thin_rows(values.detach().double().cpu(), most).numpy() for values in pair)
        look = run_look(number, len(runs), modality)
        ax.scatter(x, y, s=12, alpha=0.6, color=look.color, marker=look.marker, linewidths=0, label=name)
    ax.set_xlabel("conformity (cosine)")
    ax.set_ylabel("CLIPScore")
    ax.legend(frameon=False)
    return figure, ax
