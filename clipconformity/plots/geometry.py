"""Figures of the geometry of one modality, and of two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from clipconformity.plots.style import COLORS, LINE_STYLES, POINTS, REFERENCE_COLOR, make_axes, thin_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clipconformity.functional import ShiftSweep

HEAT_DIMENSIONS = 48
"""Largest number of dimensions in a heat map."""


class Projection(NamedTuple):
    """Two sets seen along the axis between their means and the leading direction inside them."""

    image: Tensor
    """``(N, 2)``"""
    text: Tensor
    """``(M, 2)``"""


def covariance_spectrum(spectra: Mapping[str | None, Tensor], *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw the eigenvalues of covariances over their rank; the marks are the participation ratios.

    Args:
        spectra: Eigenvalues ``(D,)`` by modality, or under None; those that are zero are left out.
        ax: Axes to draw on.
    """
    figure, ax = make_axes(ax)
    for (modality, spectrum), style in zip(spectra.items(), LINE_STYLES, strict=False):
        values = spectrum.double().cpu().sort(descending=True).values
        ratio = float(values.sum().square() / values.square().sum())
        values = values[values > 1e-12 * values[0]]
        label = f"{modality or 'embeddings'}: participation ratio {ratio:.4g} of {len(spectrum)}"
        ranks = torch.arange(1, len(values) + 1)
        ax.plot(ranks.numpy(), values.numpy(), color=COLORS[modality], linestyle=style, linewidth=2, label=label)
        place = min(len(values), max(1, round(ratio)))
        ax.plot([ratio], [float(values[place - 1])], color=COLORS[modality], marker="o", linestyle="none")
    ax.set_yscale("log")
    ax.set_xlabel("rank of the eigenvalue")
    ax.set_ylabel("variance (squared units of the embedding)")
    ax.legend(frameon=False, fontsize="small")
    return figure, ax


def tilt_heat_map(
    covariance: Tensor, *, size: int = HEAT_DIMENSIONS, title: str | None = None, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw the absolute correlations of the dimensions of largest variance; the diagonal is left blank.

    Args:
        covariance: ``(D, D)``.
        size: Largest number of dimensions shown.
        title: Title above the map.
        ax: Axes to draw on.
    """
    figure, ax = make_axes(ax, width=5.4, height=4.6)
    matrix = covariance.double().cpu()
    chosen = matrix.diagonal().argsort(descending=True, stable=True)[:size]
    std = matrix.diagonal()[chosen].clamp_min(1e-300).sqrt()
    shown = (matrix[chosen][:, chosen] / torch.outer(std, std)).abs()
    shown.fill_diagonal_(float("nan"))
    top = float(shown.nan_to_num(0).max()) or 1.0
    image = ax.imshow(shown.numpy(), cmap="cividis", vmin=0, vmax=top, interpolation="nearest", rasterized=True)
    figure.colorbar(image, ax=ax, label="absolute correlation")
    ax.spines[:].set_visible(False)
    ax.set_xlabel("dimension, by falling variance")
    ax.set_ylabel("dimension, by falling variance")
    if title:
        ax.set_title(title, loc="left")
    return figure, ax


def separability_scatter(
    image: Tensor, text: Tensor, dimensions: Sequence[int], *, points: int = POINTS, ax: Axes | None = None
) -> tuple[Figure, Axes]:
    """Draw images and texts in the two dimensions that separate them best.

    Args:
        image: Raw embeddings ``(N, D)``.
        text: Raw embeddings ``(M, D)``.
        dimensions: The two dimensions, counted from zero.
        points: Largest number of points of a modality, evenly spaced rows.
        ax: Axes to draw on.
    """
    figure, ax = make_axes(ax)
    first, second = (int(d) for d in dimensions)
    _scatter(ax, Projection(*(thin_rows(rows, points)[:, [first, second]] for rows in (image, text))))
    ax.set_xlabel(f"dimension {first} (units of the embedding)")
    ax.set_ylabel(f"dimension {second} (units of the embedding)")
    ax.legend(frameon=False)
    return figure, ax


def over_alpha(
    alphas: Tensor,
    values: Tensor,
    low: Tensor | None = None,
    high: Tensor | None = None,
    *,
    quantity: str,
    ax: Axes | None = None,
) -> tuple[Figure, Axes]:
    """Draw a figure over the shift alpha, with its interval as a band; alpha 0, the model itself, is marked.

    Args:
        alphas: ``(A,)``.
        values: ``(A,)``.
        low: Low ends of the intervals ``(A,)``.
        high: High ends ``(A,)``.
        quantity: Name of the values, with their unit.
        ax: Axes to draw on.
    """
    figure, ax = make_axes(ax)
    order = alphas.argsort().cpu()
    x, y = (v.double().cpu()[order].numpy() for v in (alphas, values))
    ax.plot(x, y, color=COLORS[None], marker="o", linewidth=2)
    if low is not None and high is not None:
        below, above = (v.double().cpu()[order].numpy() for v in (low, high))
        ax.fill_between(x, below, above, color=COLORS[None], alpha=0.25, linewidth=0, label="95% interval")
    ax.axvline(0, color=REFERENCE_COLOR, linestyle="--", label="the model as it is")
    ax.set_xlabel("alpha (share of the own mean taken off)")
    ax.set_ylabel(quantity)
    ax.legend(frameon=False, fontsize="small")
    return figure, ax


def shift_panels(sweep: ShiftSweep) -> Figure:
    """Draw loss and KL between the modalities over alpha, beside each other.

    Args:
        sweep: Result of :func:`clipconformity.functional.shift_sweep`.
    """
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.0), layout="constrained")
    loss = f"NT-Xent of all {sweep.pairs} pairs (nats)"
    over_alpha(sweep.alphas, sweep.loss, sweep.loss_low, sweep.loss_high, quantity=loss, ax=left)
    divergence = "KL of conformity, image || text (nats)"
    over_alpha(sweep.alphas, sweep.kl, sweep.kl_low, sweep.kl_high, quantity=divergence, ax=right)
    return figure


def project(image: Tensor, text: Tensor) -> tuple[Projection, Projection]:
    """Project two sets on the axis between their means and the leading orthogonal direction inside them.

    Args:
        image: Raw embeddings ``(N, D)``, D at least 2.
        text: Raw embeddings ``(M, D)``.

    Returns:
        The projected rows, and the projected means ``(1, 2)``; the origin stays at (0, 0).
    """
    sides = [rows.double().cpu() for rows in (image, text)]
    means = [rows.mean(0) for rows in sides]
    apart = means[1] - means[0]
    gap = torch.linalg.vector_norm(apart)
    axis = apart / gap if float(gap) > 0 else torch.nn.functional.one_hot(torch.tensor(0), len(apart)).double()
    spreads = [((rows - mean).T @ (rows - mean)) / len(rows) for rows, mean in zip(sides, means, strict=True)]
    away = torch.eye(len(axis), dtype=torch.float64) - torch.outer(axis, axis)
    leading = torch.linalg.eigh(away @ (spreads[0] + spreads[1]) @ away).eigenvectors[:, -1]
    leading = leading * leading[leading.abs().argmax()].sign()  # an eigenvector's sign is arbitrary
    basis = torch.stack([axis, leading], 1)  # (D, 2)
    return Projection(*(rows @ basis for rows in sides)), Projection(*(mean[None] @ basis for mean in means))


def shells(image: Tensor, text: Tensor, *, points: int = POINTS, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Sketch the two shells: images and texts seen along the gap between their means and their leading direction.

    A shell is hollow in its own D dimensions; seen along two of them it looks filled.

    Args:
        image: Raw embeddings ``(N, D)``.
        text: Raw embeddings ``(M, D)``.
        points: Largest number of points of a modality, evenly spaced rows.
        ax: Axes to draw on.
    """
    figure, ax = make_axes(ax, height=4.6)
    rows, means = project(image, text)
    _scatter(ax, Projection(*(thin_rows(side, points) for side in rows)))
    turn = torch.linspace(0, 2 * math.pi, 121, dtype=torch.float64)
    circle = 2 * torch.stack([turn.cos(), turn.sin()], 1)
    for modality, side, mean in zip(rows._fields, rows, means, strict=True):
        values, vectors = torch.linalg.eigh(torch.cov(side.T))
        outline = mean + (circle * values.clamp_min(0).sqrt()) @ vectors.T
        ax.plot(*outline.T.numpy(), color=COLORS[modality], linewidth=2, label=f"{modality}: 2 std")
        ax.plot(*mean.T.numpy(), color=COLORS[modality], marker="X", markersize=9, markeredgecolor="white")
    ax.plot([0], [0], color=REFERENCE_COLOR, marker="+", markersize=12, linestyle="none", label="origin")
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel("along the gap between the means (units of the embedding)")
    ax.set_ylabel("leading direction inside (same units)")
    ax.legend(
        frameon=False, fontsize="small", ncols=5, markerscale=1.5, loc="lower center", bbox_to_anchor=(0.5, 1.0),
        columnspacing=1.0, handletextpad=0.4,
    )  # fmt: skip
    return figure, ax


def _scatter(ax: Axes, sides: Projection) -> None:
    for (modality, rows), marker in zip(sides._asdict().items(), ("o", "^"), strict=True):
        x, y = rows.double().cpu().T.numpy()
        color = COLORS[modality]
        ax.scatter(x, y, s=10, c=color, marker=marker, alpha=0.5, linewidths=0, label=modality, rasterized=True)
