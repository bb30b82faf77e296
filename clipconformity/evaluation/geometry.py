"""The six geometric properties of a CLIP-like model's latent space, each with its interval, null and verdict."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipconformity.functional import (
    LowerBoundWarning,
    ShiftSweep,
    ellipsoid,
    linear_separability,
    modality_gap,
    offset,
    shift_sweep,
    thin_shell,
    tilt,
)
from clipconformity.functional.linalg import permuted_columns
from clipconformity.functional.population import (
    Rows,
    estimate,
    offset_influence,
    participation_influence,
    shell_estimate,
    tilt_influence,
    unbiased_traces,
)
from clipconformity.functional.resampling import Interval, exponentiate_interval, make_generator, share_interval
from clipconformity.functional.validation import check_rows

PARTS = 64
"""Number of parts that are left out in turn for the interval of the shell."""
ALPHAS = (-1.0, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 1.0)
MIN_SAMPLES = 20
"""Smallest number of samples for a verdict."""

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot tell at this N"
POPULATION, AT_THIS_N = "the population's value", "the expectation at this N"
"""Quantities that an interval may cover."""


class Property(NamedTuple):
    """One property of one set or pair of sets."""

    name: str
    modality: str
    """``"image"``, ``"text"`` or ``"both"``."""
    quantity: str
    """Name of the quantity."""
    value: float
    """Estimate of the covered quantity."""
    low: float
    high: float
    """Ends of the 95% interval."""
    null: float | None
    """The value without the property: independently permuted columns, the mean at the origin, or chance."""
    paper: float | None
    """The published figure for MS-COCO under ViT-B/32."""
    threshold: str
    """Condition for the property to hold."""
    verdict: str
    samples: int
    covers: str
    """Covered quantity: the population's value, or the expectation at this N where that depends on N."""
    in_sample: float
    """The plain figure of the sample, as in the paper: it differs from ``value`` where N biases it."""


def six_properties(
    image: Tensor | None = None,
    text: Tensor | None = None,
    *,
    paired: bool | None = None,
    logit_scale: float = 100.0,
    sweep: ShiftSweep | None = None,
    image_groups: Tensor | None = None,
    text_groups: Tensor | None = None,
) -> list[Property]:
    """Measure the six properties: thin shell, ellipsoid, tilt, offset, separability, and the alpha of lowest loss.

    A property holds, or does not, when the whole 95% interval lies on one side of its threshold; otherwise the verdict
    is "cannot tell at this N". Those of thin shell, ellipsoid and offset cover the population's value, of which the
    last two are estimated without the bias of finite N; the others cover the expectation at this N. The first four
    are by the jackknife over rows or groups, with Student's t; that of the separability combines the exact intervals of
    both shares; those of the loss are of ``shift_sweep``.

    Args:
        image: Raw image embeddings ``(N, D)``.
        text: Raw text embeddings ``(M, D)``.
        paired: Whether row i of one belongs to row i of the other; by default, whether lengths agree. The loss needs
            pairs.
        logit_scale: The model's factor on cosines, for the loss.
        sweep: Result of :func:`sweep_loss`, where it has been computed.
        image_groups: An id for each row ``(N,)``; rows of one group, such as the views of one scene, are dependent, and
            intervals leave them out together. The loss treats pairs as independent in any case.
        text_groups: The same for the texts ``(M,)``, such as the captions of one image.

    Returns:
        Four properties for each modality given, and two more for both.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If neither is given, dimensions differ, there are too few samples or groups, or rows are invalid.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.
    """
    given = {name: rows for name, rows in (("image", image), ("text", text)) if rows is not None}
    if not given:
        raise ValueError("expected image embeddings, text embeddings or both, got neither.")
    groups = {"image": image_groups, "text": text_groups}
    properties = [found for name, rows in given.items() for found in _measure_modality(rows, name, groups[name])]
    if image is not None and text is not None:
        counts = [len(_number_groups(len(rows), groups[name]).unique()) for name, rows in given.items()]
        properties.append(_measure_separability(image, text, counts))
        if len(image) == len(text) if paired is None else paired:
            properties.append(_find_lowest_loss(sweep or sweep_loss(image, text, logit_scale), logit_scale, len(image)))
    return properties


def sweep_loss(image: Tensor, text: Tensor, logit_scale: float = 100.0) -> ShiftSweep:
    """Sweep the loss over the shifts of the last property, and mark divergences that are lower bounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LowerBoundWarning)
        return shift_sweep(image, text, ALPHAS, logit_scale)


def compute_gap_figures(
    image: Tensor,
    text: Tensor,
    *,
    paired: bool,
    image_groups: Tensor | None = None,
    text_groups: Tensor | None = None,
) -> dict[str, float]:
    """Compute the modality gap of two sets as plain numbers; see :func:`clipconformity.functional.modality_gap`.

    Pairs are grouped by the coarser of both groupings.
    """
    if paired:
        both = [one for one in (image_groups, text_groups) if one is not None]
        image_groups, text_groups = min(both, key=lambda one: len(one.unique()), default=None), None
    found = modality_gap(image, text, paired=paired, groups=image_groups, text_groups=text_groups)
    return {name: float(value) for name, value in found._asdict().items() if value is not None}


def _number_groups(count: int, groups: Tensor | None) -> Tensor:
    """Number the groups from 0, ``(count,)`` for the rows; without groups every row is its own."""
    if groups is None:
        return torch.arange(count)
    return groups.cpu().unique(return_inverse=True)[1]


def _measure_modality(rows: Tensor, modality: str, groups: Tensor | None) -> list[Property]:
    values = check_rows(rows, modality, min_rows=MIN_SAMPLES).double()
    if groups is not None and groups.shape != (len(values),):
        raise ValueError(
            f"{modality}_groups: expected one id for each of {len(values)} rows, got {tuple(groups.shape)}."
        )
    group = _number_groups(len(values), groups)
    count, dim = int(group.max()) + 1, values.shape[1]  # groups are independent, rows are not
    if count < MIN_SAMPLES:
        raise ValueError(f"{modality}_groups: expected at least {MIN_SAMPLES} groups, got {count}.")
    if dim < 2:
        raise ValueError(f"{modality}: expected at least 2 dimensions, got {dim}.")
    shell, shape, slant, away = thin_shell(rows), ellipsoid(rows), tilt(rows), offset(rows)
    given = Rows.center(values, group)
    second = given.centered.T @ given.centered
    known = unbiased_traces(given, second)
    mixed = Rows.center(permuted_columns(values, make_generator(None)))
    mixed_ratio = unbiased_traces(mixed, mixed.centered.T @ mixed.centered).participation_ratio
    axes = estimate(known.participation_ratio.log(), participation_influence(given, second, known), given)
    covariance = second / (len(values) - 1)
    permuted = float(slant.permuted_off_diagonal_ratio)
    return [
        _judge(
            "thin shell", modality, "mu^2 / variance of centred norms", float(shell.ratio),
            exponentiate_interval(shell_estimate(given, _assign_parts(group)).interval()),
            in_sample=float(shell.ratio), at_least=100.0, threshold=">= 100, a thickness of at most a tenth",
            paper=57.57 / 0.19 if modality == "image" else None, count=len(values),
        ),
        _judge(
            "ellipsoid", modality, "participation ratio of the spectrum", float(known.participation_ratio),
            known.participation_interval(axes), in_sample=float(shape.participation_ratio), at_most=dim / 2,
            threshold=f"<= {dim / 2:.4g}, half of a sphere's", null=float(mixed_ratio), count=len(values),
        ),
        _judge(
            "tilt", modality, "sum of |off-diagonal| over trace", float(slant.off_diagonal_ratio),
            estimate(slant.off_diagonal_ratio.double(), tilt_influence(given, covariance), given).interval(),
            in_sample=float(slant.off_diagonal_ratio), covers=AT_THIS_N, at_least=2 * permuted,
            threshold=f">= {2 * permuted:.4g}, twice that with permuted columns", null=permuted, count=len(values),
        ),
        _judge(
            "offset", modality, "|m| / sqrt(trace)", float(known.offset_square.clamp_min(0).sqrt()),
            known.offset_interval(estimate(known.offset_square, offset_influence(given, known), given)),
            in_sample=float(away), at_least=0.5, threshold=">= 0.5", null=0.0,
            paper={"image": 0.94, "text": 1.03}[modality], count=len(values),
        ),
    ]  # fmt: skip


def _judge(
    name: str,
    modality: str,
    quantity: str,
    value: float,
    interval: Interval,
    *,
    threshold: str,
    count: int,
    in_sample: float,
    covers: str = POPULATION,
    at_least: float | None = None,
    at_most: float | None = None,
    null: float | None = None,
    paper: float | None = None,
) -> Property:
    low, high = interval
    above, below = (low >= at_least, high < at_least) if at_least is not None else (high <= at_most, low > at_most)  # type: ignore[operator]
    verdict = HOLDS if above else FAILS if below else UNKNOWN
    return Property(
        name, modality, quantity, value, low, high, null, paper, threshold, verdict, count, covers, in_sample
    )


def _assign_parts(group: Tensor) -> Tensor:
    """Assign each row the part of its group, pseudo-randomly by the group."""
    order = torch.randperm(int(group.max()) + 1, generator=torch.Generator().manual_seed(0))
    return (order % min(PARTS, len(order)))[group]


def _measure_separability(image: Tensor, text: Tensor, counts: Sequence[int]) -> Property:
    """Measure the accuracy, with its interval for the number of independent samples of each modality."""
    found = linear_separability(image, text, k=2)
    value = float(found.held_out_accuracy)
    low, high = compute_balanced_interval(found.held_out_recalls.tolist(), counts)
    dims = " and ".join(str(int(d)) for d in found.dimensions)
    return Property(
        name="linear separability",
        modality="both",
        quantity=f"held-out balanced accuracy on 2 dimensions ({dims}, from 0)",
        value=value,
        low=low,
        high=high,
        null=0.5,
        paper=1.0,
        threshold=">= 0.99",
        verdict=HOLDS if low >= 0.99 else FAILS if high < 0.99 else UNKNOWN,
        samples=len(image) + len(text),
        covers=AT_THIS_N,
        in_sample=float(found.accuracy),
    )


def compute_balanced_interval(recalls: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Compute the 95% interval of a balanced accuracy, the mean of two recalls from separate samples.

    The distances to the ends of each recall's interval are added up in quadrature (Newcombe 1998 for a difference;
    Zou and Donner 2008, MOVER), so that the smaller class limits the precision of the accuracy.
    """
    ends = [share_interval(p * n, n) for p, n in zip(recalls, counts, strict=True)]
    value = sum(recalls) / 2
    below = math.hypot(*(p - low for p, (low, _) in zip(recalls, ends, strict=True))) / 2
    above = math.hypot(*(high - p for p, (_, high) in zip(recalls, ends, strict=True))) / 2
    return max(0.0, value - below), min(1.0, value + above)


def _find_lowest_loss(sweep: ShiftSweep, logit_scale: float, count: int) -> Property:
    """Find the alpha of lowest loss: 0 unless the paired intervals of the difference from it exclude that."""
    alphas, low, high = sweep.alphas, sweep.loss_difference_low, sweep.loss_difference_high
    apart = alphas.abs() >= 0.25 - 1e-9
    if bool((low[apart] > 0).all()):
        verdict = HOLDS
    elif bool((high[apart] < 0).any()):
        verdict = FAILS
    else:
        verdict = UNKNOWN
    lowest = alphas[sweep.loss.argmin()]
    possible = alphas[(low <= 0) | (alphas == 0)]  # not significantly different from alpha 0
    return Property(
        name="loss at alpha 0",
        modality="both",
        quantity=f"alpha of the lowest NT-Xent (logit scale {logit_scale:.4g}, all pairs in a batch)",
        value=float(lowest),
        low=float(possible.min()),
        high=float(possible.max()),
        null=None,
        paper=0.0,
        threshold="the loss at |alpha| >= 0.25 exceeds that at 0",
        verdict=verdict,
        samples=count,
        covers=AT_THIS_N,
        in_sample=float(lowest),
    )


def format_table(properties: list[Property]) -> str:
    """Format properties as a text table."""
    lines = [f"{'property':20} {'of':6} {'value':>9} {'95% interval':>21} {'null':>8} {'paper':>7} {'N':>7}  verdict"]
    for p in properties:
        interval = f"[{p.low:.4g}, {p.high:.4g}]"
        null, paper = (f"{x:.4g}" if x is not None else "" for x in (p.null, p.paper))
        lines.append(
            f"{p.name:20} {p.modality:6} {p.value:9.4g} {interval:>21} {null:>8} {paper:>7} {p.samples:7d}  "
            f"{p.verdict} ({p.quantity}; {p.threshold}; interval of {p.covers})"
        )
    return "\n".join(lines)


def as_json(properties: list[Property]) -> list[dict[str, Any]]:
    """Return properties as plain data."""
    return [p._asdict() for p in properties]
