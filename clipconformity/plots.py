"""Figures from plain arrays; matplotlib loads when one is drawn.

One visual language: the palette of Okabe and Ito, which colour-blind readers can tell apart; images are blue and texts
vermilion everywhere, a reference is grey, and runs differ in line style as well as in colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from clipconformity.functional import ShiftSweep

COLORS = {"image": "#0072B2", "text": "#D55E00", None: "#009E73"}
"""A modality keeps its colour everywhere; what is of neither or both is green."""
REFERENCE_COLOR = "#767676"
RUN_COLORS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Runs beside each other, none in the colour of a modality."""
LINE_STYLES = ("-", "--", "-.", ":")
BINS = 60
"""Cells of a histogram drawn from values."""
POINTS = 500
"""Most points of one set in a scatter plot."""
HEAT_DIMENSIONS = 48
"""Most dimensions in a heat map."""
CONFORMITY = "conformity (mean cosine similarity)"

Histogram = tuple[Tensor, Tensor]


class Projection(NamedTuple):
    """Two sets seen along the axis between their means and the leading direction inside them."""

    image: Tensor
    """``(N, 2)``"""
    text: Tensor
    """``(M, 2)``"""


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
    figure, ax = _axes(ax)
    if reference is not None:
        _density(ax, reference, REFERENCE_COLOR, "reference", fill=True)
    _density(ax, evaluated, COLORS[modality], label, fill=False)
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
    figure, ax = _axes(ax)
    everything = torch.cat([x.double().cpu() for x in (*runs.values(), *([] if reference is None else [reference]))])
    low, high = float(everything.min()), float(everything.max())
    wider = 0.0 if high > low else 1e-6 + 1e-6 * abs(low)  # equal values still have a cell
    edges = torch.linspace(low - wider, high + wider, BINS + 1, dtype=torch.float64)
    if reference is not None:
        _density(ax, _binned(reference, edges), REFERENCE_COLOR, reference_label, fill=True)
    for number, (name, values) in enumerate(runs.items()):
        color, style = _run_look(number, len(runs), modality)
        _density(ax, _binned(values, edges), color, name, fill=False, linestyle=style)
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
    points = _numbers(values)
    figure, ax = _axes(ax, height=4.0 if names is None else 1.4 + 0.45 * len(points))
    error = None
    if low is not None and high is not None:
        error = [[v - x for v, x in zip(points, _numbers(low), strict=True)],
                 [x - v for v, x in zip(points, _numbers(high), strict=True)]]  # fmt: skip
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
    figure, ax = _axes(ax, width=8.0)
    for number, name in enumerate(values[0]):
        color, style = _run_look(number, len(values[0]), None)
        ax.plot([float(one[name]) for one in values], color=color, linestyle=style, marker="o", label=name)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("evaluation")
    ax.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, ax


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
    figure, ax = _axes(ax)
    together = torch.cat([x.double().cpu() for x in runs.values()])
    edges = torch.linspace(0, float(together.max()) * 1.02, 2 * BINS + 1, dtype=torch.float64)
    for (name, values), style in zip(runs.items(), LINE_STYLES, strict=False):
        _density(ax, _binned(values, edges), COLORS[modality], name, fill=False, linestyle=style)
    ax.set_xlabel("norm of the raw embedding (units of the embedding)")
    ax.set_ylabel("density")
    ax.set_xlim(left=0)
    ax.legend(frameon=False)
    return figure, ax


def covariance_spectrum(spectra: Mapping[str | None, Tensor], *, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Draw the eigenvalues of covariances over their rank; the marks are the participation ratios.

    Args:
        spectra: Eigenvalues ``(D,)`` by modality, or under None; those that are zero are left out.
        ax: Axes to draw on.
    """
    figure, ax = _axes(ax)
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
        size: Most dimensions shown.
        title: Put above.
        ax: Axes to draw on.
    """
    figure, ax = _axes(ax, width=5.4, height=4.6)
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
    """Draw images and texts in the two dimensions that tell them apart best.

    Args:
        image: Raw embeddings ``(N, D)``.
        text: Raw embeddings ``(M, D)``.
        dimensions: The two, counted from zero.
        points: Most points of a modality, evenly spaced rows.
        ax: Axes to draw on.
    """
    figure, ax = _axes(ax)
    first, second = (int(d) for d in dimensions)
    _scatter(ax, Projection(*(_spaced(rows, points)[:, [first, second]] for rows in (image, text))))
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
    """Draw a figure over the shift alpha, its interval as a band; alpha 0, where the model is, is marked.

    Args:
        alphas: ``(A,)``.
        values: ``(A,)``.
        low: Low ends of the intervals ``(A,)``.
        high: High ends ``(A,)``.
        quantity: What the values are, with their unit.
        ax: Axes to draw on.
    """
    figure, ax = _axes(ax)
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
        sweep: Of :func:`clipconformity.functional.shift_sweep`.
    """
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10.4, 4.0), layout="constrained")
    loss = f"NT-Xent of all {sweep.pairs} pairs (nats)"
    over_alpha(sweep.alphas, sweep.loss, sweep.loss_low, sweep.loss_high, quantity=loss, ax=left)
    divergence = "KL of conformity, image || text (nats)"
    over_alpha(sweep.alphas, sweep.kl, sweep.kl_low, sweep.kl_high, quantity=divergence, ax=right)
    return figure


def project(image: Tensor, text: Tensor) -> tuple[Projection, Projection]:
    """Project two sets on the axis between their means and the leading direction inside them, at a right angle to it.

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
    leading = leading * leading[leading.abs().argmax()].sign()  # an eigenvector's sign is by chance
    basis = torch.stack([axis, leading], 1)  # (D, 2)
    return Projection(*(rows @ basis for rows in sides)), Projection(*(mean[None] @ basis for mean in means))


def shells(image: Tensor, text: Tensor, *, points: int = POINTS, ax: Axes | None = None) -> tuple[Figure, Axes]:
    """Sketch the two shells: images and texts seen along the gap between their means and their leading direction.

    A shell is hollow in its own D dimensions; seen along two of them it looks filled.

    Args:
        image: Raw embeddings ``(N, D)``.
        text: Raw embeddings ``(M, D)``.
        points: Most points of a modality, evenly spaced rows.
        ax: Axes to draw on.
    """
    figure, ax = _axes(ax, height=4.6)
    rows, means = project(image, text)
    _scatter(ax, Projection(*(_spaced(side, points) for side in rows)))
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


def _axes(ax: Axes | None, *, width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    import matplotlib.pyplot as plt

    if ax is None:
        figure, ax = plt.subplots(figsize=(width, height), layout="constrained")
    else:
        figure = ax.figure  # type: ignore[assignment]
    ax.spines[["top", "right"]].set_visible(False)
    return figure, ax


def _density(ax: Axes, histogram: Histogram, color: str, label: str, *, fill: bool, linestyle: str = "-") -> None:
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


def _run_look(number: int, count: int, modality: str | None) -> tuple[str, str]:
    if count == 1:
        return COLORS[modality], LINE_STYLES[0]
    turn = number // len(RUN_COLORS)  # past the last colour, colours meet other line styles
    return RUN_COLORS[number % len(RUN_COLORS)], LINE_STYLES[(number + turn) % len(LINE_STYLES)]


def _scatter(ax: Axes, sides: Projection) -> None:
    for (modality, rows), marker in zip(sides._asdict().items(), ("o", "^"), strict=True):
        x, y = rows.double().cpu().T.numpy()
        color = COLORS[modality]
        ax.scatter(x, y, s=10, c=color, marker=marker, alpha=0.5, linewidths=0, label=modality, rasterized=True)


def _spaced(rows: Tensor, most: int) -> Tensor:
    return rows if len(rows) <= most else rows[torch.linspace(0, len(rows) - 1, most).long()]


def _numbers(values: Sequence[float] | Tensor) -> list[float]:
    return [float(value) for value in values]


def _binned(values: Tensor, edges: Tensor) -> Histogram:
    return torch.histogram(values.detach().double().cpu(), edges).hist, edges
