"""Figures from plain arrays; matplotlib loads when one is drawn.

One visual language: the palette of Okabe and Ito, which colour-blind readers can tell apart; images are blue and texts
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
    binned,
    density,
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
    edges = _common_cells([*runs.values(), *([] if reference is None else [reference])])
    if reference is not None:
        draw_density(ax, binned(reference, edges), REFERENCE_COLOR, reference_label, fill=True)
    for number, (name, values) in enumerate(runs.items()):
        look = run_look(number, len(runs), modality)
        draw_density(ax, binned(values, edges), look.color, name, fill=False, linestyle=look.line)
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
    """Draw the density of each run on a line of its own, over the reference's: for more runs than one plot can hold.

    A tick under each density marks its median; the dashed line is the median of the reference. All densities have one
    scale.

    Args:
        runs: Values ``(N,)`` by name, the first at the top.
        reference: Values ``(M,)`` of the reference.
        quantity: What the values are, with their unit.
        modality: ``"image"`` or ``"text"``, for the colour of a single run.
        ax: Axes to draw on.

    Returns:
        The figure and its axes.
    """
    figure, ax = new_axes(ax, height=1.2 + 0.55 * len(runs))
    edges = _common_cells([*runs.values(), reference])
    own = density(binned(reference, edges))
    drawn = {name: density(binned(values, edges)) for name, values in runs.items()}
    scale = 0.85 / max(float(one.max()) for one in (own, *drawn.values()))
    for number, (name, heights) in enumerate(drawn.items()):
        look, bottom = run_look(number, len(runs), modality), len(runs) - 1 - number
        for values, color, fill in ((own, REFERENCE_COLOR, True), (heights, look.color, False)):
            ax.stairs(
                (bottom + scale * values).numpy(), edges.numpy(), baseline=bottom, color=color, fill=fill,
                alpha=0.4 if fill else 1.0, linewidth=1.8,
            )  # fmt: skip
        ax.plot(float(runs[name].double().median()), bottom, marker="|", markersize=9, color=look.color, zorder=3)
    ax.axvline(float(reference.double().median()), color=REFERENCE_COLOR, linestyle="--", linewidth=0.8)
    ax.set_yticks([len(runs) - 1 - number for number in range(len(runs))], list(runs))
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.1, len(runs))
    ax.set_xlabel(quantity)
    return figure, ax


def _common_cells(sets: Sequence[Tensor]) -> Tensor:
    """Edges of equal cells over the range of all sets."""
    everything = torch.cat([values.double().cpu() for values in sets])
    low, high = float(everything.min()), float(everything.max())
    wider = 0.0 if high > low else 1e-6 + 1e-6 * abs(low)  # equal values still have a cell
    return torch.linspace(low - wider, high + wider, BINS + 1, dtype=torch.float64)


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
