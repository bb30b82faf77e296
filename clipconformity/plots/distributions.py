"""Figures from plain arrays; matplotlib loads when one is drawn.

One visual language: the palette of Okabe and Ito, which colour-blind readers can tell apart; images are blue and texts
vermilion everywhere, a reference is grey, and runs differ in line style as well as in colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipconformity.plots.style import (
    BINS,
    COLORS,
    LINE_STYLES,
    REFERENCE_COLOR,
    Histogram,
    binned,
    draw_density,
    new_axes,
    run_look,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CONFORMITY = "conformity (mean cosine similarity)"


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
        label: What the evaluated samples are called in the legend.
        ax: Axes to draw on.

    Returns:
        The figure and its axes.
    """
    figure, ax = new_axes(ax)
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
        runs: Values ``(N,)`` by name; a single one takes the colour of its modality.
        reference: Values ``(M,)`` of the reference.
        quantity: What the values are, with their unit.
        modality: ``"image"`` or ``"text"``.
        reference_label: What the reference is called in the legend.
        ax: Axes to draw on.

    Returns:
        The figure and its axes.
    """
    figure, ax = new_axes(ax)
    everything = torch.cat([x.double().cpu() for x in (*runs.values(), *([] if reference is None else [reference]))])
    low, high = float(everything.min()), float(everything.max())
    wider = 0.0 if high > low else 1e-6 + 1e-6 * abs(low)  # equal values still have a cell
    edges = torch.linspace(low - wider, high + wider, BINS + 1, dtype=torch.float64)
    if reference is not None:
        draw_density(ax, binned(reference, edges), REFERENCE_COLOR, reference_label, fill=True)
    for number, (name, values) in enumerate(runs.items()):
        color, style = run_look(number, len(runs), modality)
        draw_density(ax, binned(values, edges), color, name, fill=False, linestyle=style)
    ax.set_xlabel(quantity)
    ax.set_ylabel("density")
    ax.legend(frameon=False, fontsize="small")
    return figure, ax


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
    figure, ax = new_axes(ax)
    together = torch.cat([x.double().cpu() for x in runs.values()])
    edges = torch.linspace(0, float(together.max()) * 1.02, 2 * BINS + 1, dtype=torch.float64)
    for (name, values), style in zip(runs.items(), LINE_STYLES, strict=False):
        draw_density(ax, binned(values, edges), COLORS[modality], name, fill=False, linestyle=style)
    ax.set_xlabel("norm of the raw embedding (units of the embedding)")
    ax.set_ylabel("density")
    ax.set_xlim(left=0)
    ax.legend(frameon=False)
    return figure, ax
