"""Figures from plain arrays; matplotlib loads when one is drawn.

One style: the palette of Okabe and Ito, which colour-blind readers can distinguish; images are blue and texts
vermilion everywhere, a reference is grey, and runs differ in line style as well as in colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipconformity.plots.style import (
    BINS,
    COLORS,
    LINE_STYLES,
    REFERENCE_COLOR,
    Histogram,
    count_cells,
    draw_density,
    make_axes,
    run_look,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CONFORMITY = "conformity (mean cosine similarity)"
"""Label of an axis of conformities."""
RIDGE_CELLS = 120
"""Cells of a ridge."""
RIDGE_HEIGHT = 1.15
"""Height of the highest ridge, in lines."""


def conformity_distribution(
    evaluated: Histogram,
    reference: Histogram | None = None,
    *,
    modality: str | None = None,
    label: str = "evaluated",
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw a conformity distribution over the reference's, both as densities.

    Args:
        evaluated: Counts ``(K,)`` and edges ``(K + 1,)``.
        reference: The same of the reference.
        modality: ``"image"`` or ``"text"``, for the colour.
        label: Name of the evaluated samples in the legend.
        ax: Axes to draw on.

    Returns:
        The figure and its axes.
    """
    figure, ax = make_axes(ax)
    if reference is not None:
        draw_density(ax, reference, REFERENCE_COLOR, "reference", fill=True)
    draw_density(ax, evaluated, COLORS[modality], label, fill=False)
    ax.set_xlabel(CONFORMITY)
    ax.set_ylabel("density")
    ax.legend(frameon=False)
    return figure, ax


def distributions(
    runs: Mapping[str, Tensor],
    reference: Tensor | None = None,
    *,
    quantity: str = CONFORMITY,
    modality: str | None = None,
    reference_label: str = "reference",
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw the densities of several sets of values over a reference's, in cells common to all.

    Args:
        runs: Values ``(N,)`` by name; a single one has the colour of its modality.
        reference: Values ``(M,)`` of the reference.
        quantity: Name of the values, with their unit.
        modality: ``"image"`` or ``"text"``.
        reference_label: Name of the reference in the legend.
        ax: Axes to draw on.

    Returns:
        The figure and its axes.
    """
    figure, ax = make_axes(ax)
    edges = _choose_edges([*runs.values(), *([] if reference is None else [reference])], BINS)
    if reference is not None:
        draw_density(ax, count_cells(reference, edges), REFERENCE_COLOR, reference_label, fill=True)
    for number, (name, values) in enumerate(runs.items()):
        look = run_look(number, len(runs), modality)
        draw_density(ax, count_cells(values, edges), look.color, name, fill=False, linestyle=look.line)
    ax.set_xlabel(quantity)
    ax.set_ylabel("density")
    ax.legend(frameon=False, fontsize="small")
    return figure, ax


def ridgelines(
    runs: Mapping[str, Tensor],
    reference: Tensor,
    *,
    quantity: str = CONFORMITY,
    modality: str | None = None,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw the density of each of many sets on a line of its own, with the reference's behind it in grey.

    The first is at the top. Each has its colour, its marker at the median, and a bar over its middle 90%; a dashed line
    is the reference's median. All densities have one scale.

    Args:
        runs: Values ``(N,)`` by name.
        reference: Values ``(M,)`` of the reference.
        quantity: Name of the values, with their unit.
        modality: ``"image"`` or ``"text"``, for the colour of a single run.
        ax: Axes to draw on.

    Returns:
        The figure and its axes.
    """
    figure, ax = make_axes(ax, width=7.0, height=1.3 + 0.55 * len(runs))
    edges = _choose_edges([*runs.values(), reference], RIDGE_CELLS)
    middle = 0.5 * (edges[1:] + edges[:-1])
    behind, drawn = _smooth_counts(reference, edges), {name: _smooth_counts(one, edges) for name, one in runs.items()}
    highest = max(float(one.max()) for one in (behind, *drawn.values()))
    ends = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    for number, (name, ridge) in enumerate(drawn.items()):
        look, ground = run_look(number, len(runs), modality), float(len(runs) - 1 - number)
        for heights, color in ((behind, REFERENCE_COLOR), (ridge, look.color)):
            top = ground + RIDGE_HEIGHT * heights / highest
            ax.fill_between(middle, ground, top, color=color, alpha=0.35, linewidth=0)
        ax.plot(middle, top, color=look.color, linewidth=1.5)
        low, median, high = runs[name].double().cpu().quantile(ends)
        ax.plot([low, high], [ground, ground], color=look.color, linewidth=2, solid_capstyle="butt")
        ax.plot(median, ground, color=look.color, marker=look.marker, markersize=8, markeredgecolor="white")
    ax.axvline(float(reference.double().median()), color=REFERENCE_COLOR, linestyle="--", linewidth=0.8, zorder=0)
    ax.set_yticks([len(runs) - 1 - number for number in range(len(runs))], list(runs))
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(-0.3, len(runs) + 0.25)
    ax.set_xlabel(quantity)
    return figure, ax


def _choose_edges(sets: Sequence[Tensor], cells: int) -> Tensor:
    """Choose cell edges that are common to all sets."""
    everything = torch.cat([x.double().cpu() for x in sets])
    low, high = float(everything.min()), float(everything.max())
    wider = 0.0 if high > low else 1e-6 + 1e-6 * abs(low)  # equal values still have a cell
    return torch.linspace(low - wider, high + wider, cells + 1, dtype=torch.float64)


def _smooth_counts(values: Tensor, edges: Tensor) -> Tensor:
    """Smooth the density of a set over neighbouring cells, ``(K,)``."""
    counts, _ = count_cells(values, edges)
    kernel = torch.exp(-0.5 * torch.arange(-6, 7, dtype=torch.float64).square() / 2.0**2)
    smooth = torch.nn.functional.conv1d(counts[None, None], (kernel / kernel.sum())[None, None], padding=6)[0, 0]
    return smooth / (smooth.sum() * (edges[1] - edges[0]))


def conformity_panels(panels: list[tuple[str, Tensor, dict[str, Tensor]]]) -> Figure:
    """Draw one panel for each reference: its conformity distribution, and those of runs scored against it.

    Args:
        panels: For each, the modality, the reference's conformities ``(M,)``, and the runs' ``(N,)`` by name.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 4.2), layout="constrained", squeeze=False)
    for ax, (modality, reference, runs) in zip(axes[0], panels, strict=True):
        quantity = "conformity to the real set (mean cosine similarity)"
        label = f"real {modality}s"
        distributions(runs, reference, quantity=quantity, modality=modality, reference_label=label, ax=ax)
        ax.set_title(f"{modality} embeddings", loc="left")
    return figure


def norm_histogram(
    norms: Tensor, centered: Tensor | None = None, *, modality: str | None = None, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw the distribution of the norms of raw embeddings, as they are and centred on their mean.

    Args:
        norms: ``(N,)``.
        centered: ``(N,)``.
        modality: ``"image"`` or ``"text"``, for the colour.
        ax: Axes to draw on.
    """
    runs = {"|v|": norms} | ({} if centered is None else {"|v - m|, centred": centered})
    figure, ax = make_axes(ax)
    together = torch.cat([x.double().cpu() for x in runs.values()])
    edges = torch.linspace(0, float(together.max()) * 1.02, 2 * BINS + 1, dtype=torch.float64)
    for (name, values), style in zip(runs.items(), LINE_STYLES, strict=False):
        draw_density(ax, count_cells(values, edges), COLORS[modality], name, fill=False, linestyle=style)
    ax.set_xlabel("norm of the raw embedding (units of the embedding)")
    ax.set_ylabel("density")
    ax.set_xlim(left=0)
    ax.legend(frameon=False)
    return figure, ax
