"""Figures from plain arrays; matplotlib loads when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; a modality keeps its colour everywhere.
COLORS = {"image": "#0072B2", "text": "#D55E00", None: "#009E73"}
REFERENCE_COLOR = "#767676"
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE_STYLES = ("-", "--", "-.", ":", "-", "--")

Histogram = tuple[Tensor, Tensor]


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
    import matplotlib.pyplot as plt

    if ax is None:
        figure, ax = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    else:
        figure = ax.figure  # type: ignore[assignment]
    if reference is not None:
        _density(ax, reference, REFERENCE_COLOR, "reference", fill=True)
    _density(ax, evaluated, COLORS[modality], label, fill=False)
    ax.set_xlabel("conformity (mean cosine similarity)")
    ax.set_ylabel("density")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return figure, ax


def _density(ax: Axes, histogram: Histogram, color: str, label: str, *, fill: bool, linestyle: str = "-") -> None:
    counts, edges = (part.detach().cpu().double() for part in histogram)
    density = counts / (counts.sum() * torch.diff(edges))
    ax.stairs(
        density.numpy(),
        edges.numpy(),
        fill=fill,
        color=color,
        alpha=0.45 if fill else 1.0,
        linewidth=2,
        linestyle=linestyle,
        label=label,
    )


def conformity_panels(panels: list[tuple[str, Tensor, dict[str, Tensor]]]) -> Figure:
    """Draw one panel for each reference: its conformity distribution, and those of runs scored against it.

    Args:
        panels: For each, the modality, the reference's conformities ``(M,)``, and the runs' ``(N,)`` by name.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(6.4 * len(panels), 4.2), layout="constrained", squeeze=False)
    for ax, (modality, reference, runs) in zip(axes[0], panels, strict=True):
        everything = torch.cat([reference, *runs.values()])
        edges = torch.linspace(float(everything.min()), float(everything.max()), 61, dtype=torch.float64)
        _density(ax, _binned(reference, edges), REFERENCE_COLOR, f"real {modality}s", fill=True)
        for (name, values), style, color in zip(runs.items(), LINE_STYLES, LINE_COLORS, strict=False):
            _density(ax, _binned(values, edges), color, name, fill=False, linestyle=style)
        ax.set_title(f"{modality} embeddings", loc="left")
        ax.set_xlabel("conformity to the real set (mean cosine similarity)")
        ax.set_ylabel("density")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize="small")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and close it."""
    import matplotlib.pyplot as plt

    figure.savefig(path, format="png", dpi=150)
    plt.close(figure)


def _binned(values: Tensor, edges: Tensor) -> Histogram:
    return torch.histogram(values.double().cpu(), edges).hist, edges
