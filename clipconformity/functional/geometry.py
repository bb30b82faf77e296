"""The geometry of one modality, and the gap between two: thin shell, ellipsoid, tilt, offset."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from clipconformity.functional.linalg import (
    blocks,
    covariance_of,
    full_precision,
    mean_of,
    permuted_columns,
    result_dtype,
    units,
)
from clipconformity.functional.population import Rows, mean_square_excess, mean_square_influence
from clipconformity.functional.resampling import Estimate, joint_jackknife, make_generator
from clipconformity.functional.validation import check_pairs, check_rows, check_same_dim, check_spread


class ThinShell(NamedTuple):
    """Thickness of the shell that holds the centred embeddings."""

    mu: Tensor
    """Mean of the centred norms |v - m|."""
    variance: Tensor
    """Variance of the centred norms, with N - 1."""
    mu_squared: Tensor
    """mu^2; the paper gives 57.57 for MS-COCO images under ViT-B/32."""
    ratio: Tensor
    """mu^2 / variance: large is thin; infinite for a perfect shell, of variance zero."""


class Ellipsoid(NamedTuple):
    """Inequality of the axes of a set."""

    variances: Tensor
    """Variance of each dimension, ``(D,)``."""
    spectrum: Tensor
    """Eigenvalues of the sample covariance, ``(D,)``, descending, not below 0."""
    rank: int
    """Numerical rank of the covariance, at most N - 1."""
    condition: Tensor | None
    """Largest over smallest eigenvalue; None where the rank is below D, since the smallest is then 0."""
    participation_ratio: Tensor
    """(sum l)^2 / sum l^2, in [1, D]: D for a sphere, 1 for a line."""
    permuted_participation_ratio: Tensor
    """The same with independently permuted columns: the effect of unequal variances and N alone."""


class Tilt(NamedTuple):
    """Deviation of the axes of a set from the coordinate axes."""

    off_diagonal_ratio: Tensor
    """Sum of the absolute off-diagonal covariances over the trace; 0 without tilt."""
    diagonally_dominant: Tensor
    """Share of dimensions whose variance exceeds the sum of their absolute covariances, in [0, 1]."""
    mean_abs_correlation: Tensor
    """Mean absolute correlation of two different dimensions, in [0, 1]; constant dimensions are left out."""
    permuted_off_diagonal_ratio: Tensor
    """``off_diagonal_ratio`` with independently permuted columns, at the same N."""
    permuted_diagonally_dominant: Tensor
    """``diagonally_dominant`` with independently permuted columns, at the same N."""
    permuted_mean_abs_correlation: Tensor
    """``mean_abs_correlation`` with independently permuted columns, at the same N."""


class ModalityGapResult(NamedTuple):
    """The distance between the modalities."""

    gap: Tensor
    """|m_u(image) - m_u(text)|, between the means of unit embeddings, in [0, 2] (Liang et al. 2022)."""
    raw_gap: Tensor
    """|m(image) - m(text)|, between the raw means."""
    matched_cosine: Tensor | None
    """Mean cosine of the pairs, in [-1, 1]: CLIPScore's quantity, unscaled; None with ``paired=False``."""
    squared_gap: Tensor | None
    """Square of the population's gap, without the bias of finite N; may be negative where there is none."""
    null: Tensor | None
    """Root mean square of the gap by chance, where the means of the populations are equal."""
    low: Tensor | None
    """Low end of the 95% interval of the population's gap, by the jackknife over pairs, rows or groups."""
    high: Tensor | None
    """High end. These four are None where a set has only one row or group."""


@full_precision
def thin_shell(embeddings: Tensor) -> ThinShell:
    r"""Thin shell of raw embeddings: their distances from their mean hardly vary.

    .. math:: \mu = \mathrm{mean}\,|v - m|, \quad \mu^2 / \mathrm{var}\,|v - m|

    Args:
        embeddings: Raw embeddings ``(N, D)``, N >= 3 (two are always at the same distance from their mean).

    Returns:
        A :class:`ThinShell` of scalars; mu is in the units of the embeddings.

    Raises:
        TypeError: If the embeddings are not floating-point tensors.
        ValueError: If there are fewer than three, all are equal, or a row is zero, NaN or infinite.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.

    Example:
        >>> import torch
        >>> shell = thin_shell(5 + torch.randn(1000, 400, generator=torch.Generator().manual_seed(0)))
        >>> round(float(shell.mu)), bool(shell.ratio > 500)
        (20, True)
    """
    values = check_rows(embeddings, min_rows=3)
    mean = mean_of(values)
    distances = distances_from(values, mean)
    check_spread(distances.square().sum() / (len(values) - 1), mean, embeddings.dtype)
    mu, variance = distances.mean(), distances.var()
    fields = (mu, variance, mu.square(), mu.square() / variance)
    return ThinShell(*(field.to(embeddings.device, result_dtype(embeddings)) for field in fields))


def distances_from(rows: Tensor, point: Tensor) -> Tensor:
    """Distance of each row ``(N, D)`` from a point, ``(N,)`` float64."""
    return torch.cat([torch.linalg.vector_norm(block.double() - point, dim=1) for block in blocks(rows)])


@full_precision
def ellipsoid(embeddings: Tensor, *, generator: torch.Generator | None = None) -> Ellipsoid:
    r"""Ellipsoid of raw embeddings: variances and covariance spectrum with a long tail.

    .. math:: \mathrm{PR} = \left(\sum_i \lambda_i\right)^2 / \sum_i \lambda_i^2

    with :math:`\lambda` the eigenvalues of the sample covariance (N - 1). At N samples the rank is at most N - 1, and
    the participation ratio depends on N: read it beside its value on the same data with permuted columns.

    Args:
        embeddings: Raw embeddings ``(N, D)``, N >= 3.
        generator: Source of the permutations; by default one with a fixed seed, so that equal data give equal results.

    Returns:
        An :class:`Ellipsoid`; variances in the squared units of the embeddings.

    Raises:
        TypeError: If the embeddings are not floating-point tensors.
        ValueError: If there are fewer than three, all are equal, or a row is zero, NaN or infinite.

    Source: Levi and Gilboa, ICML 2025.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[5.0, 1.0], [-5.0, 1.0], [0.0, 2.0], [0.0, 0.0]]) + 10
        >>> result = ellipsoid(rows)
        >>> result.condition, result.participation_ratio
        (tensor(25.), tensor(1.0799))
    """
    values = check_rows(embeddings, min_rows=3)
    mean, covariance = covariance_of(values)
    check_spread(covariance.trace(), mean, embeddings.dtype)
    spectrum = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0)
    rank = min(int((spectrum > numerical_zero(spectrum)).sum()), len(values) - 1)
    _, permuted = covariance_of(permuted_columns(values, make_generator(generator)))

    def given(field: Tensor) -> Tensor:
        return field.to(embeddings.device, result_dtype(embeddings))

    return Ellipsoid(
        given(covariance.diagonal()),
        given(spectrum),
        rank,
        given(spectrum[0] / spectrum[-1]) if rank == len(spectrum) else None,
        given(participation_ratio(covariance)),
        given(participation_ratio(permuted)),
    )


def numerical_zero(spectrum: Tensor) -> float:
    """Eigenvalue below which a float64 covariance is only rounding: D eps of the largest."""
    return float(spectrum.max()) * len(spectrum) * torch.finfo(torch.float64).eps


def participation_ratio(covariance: Tensor) -> Tensor:
    """(sum l)^2 / sum l^2 over the eigenvalues, without computing them: trace^2 / squared Frobenius norm."""
    scaled = covariance / covariance.trace()
    return scaled.square().sum().reciprocal()


@full_precision
def tilt(embeddings: Tensor, *, generator: torch.Generator | None = None) -> Tilt:
    r"""Tilt of raw embeddings: covariances between dimensions, against their variances.

    .. math:: \sum_{i \ne j} |\Sigma_{ij}| / \mathrm{tr}\,\Sigma

    All three figures are above their true values at finite N, since chance correlations count with their absolute
    value. Each therefore comes with its value on the same data with independently permuted columns, which has the
    same variances, and correlations only by chance.

    Args:
        embeddings: Raw embeddings ``(N, D)``, N >= 3, D >= 2.
        generator: Source of the permutations; by default one with a fixed seed, so that equal data give equal results.

    Returns:
        A :class:`Tilt` of scalars without units.

    Raises:
        TypeError: If the embeddings are not floating-point tensors.
        ValueError: If there are fewer than three or they have one dimension, all are equal, or a row is zero, NaN or
            infinite.

    Source: Levi and Gilboa, ICML 2025.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[2.0, 2.0], [-2.0, -2.0], [1.0, -1.0], [-1.0, 1.0]]) + 5
        >>> result = tilt(rows)
        >>> result.off_diagonal_ratio, result.diagonally_dominant, result.mean_abs_correlation
        (tensor(0.6000), tensor(1.), tensor(0.6000))
    """
    values = check_rows(embeddings, min_rows=3)
    if values.shape[1] < 2:
        raise ValueError("embeddings: expected at least 2 dimensions, got 1; a tilt lies between dimensions.")
    mean, covariance = covariance_of(values)
    check_spread(covariance.trace(), mean, embeddings.dtype)
    _, permuted = covariance_of(permuted_columns(values, make_generator(generator)))
    fields = (*tilt_figures(covariance), *tilt_figures(permuted))
    return Tilt(*(field.to(embeddings.device, result_dtype(embeddings)) for field in fields))


def tilt_figures(covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Off-diagonal ratio, share of diagonally dominant rows and mean absolute correlation of a covariance."""
    variances = covariance.diagonal()
    off = covariance.abs() - covariance.abs().diagonal().diag()
    dominant = (variances > off.sum(1)).double().mean()
    varied = variances > numerical_zero(variances)
    scale = torch.where(varied, variances, 1.0).rsqrt() * varied
    pairs = varied.sum() * (varied.sum() - 1)
    correlation = (off * torch.outer(scale, scale)).sum() / pairs.clamp_min(1)
    return off.sum() / variances.sum(), dominant, correlation


@full_precision
def offset(embeddings: Tensor) -> Tensor:
    r"""Offset of raw embeddings from the origin, in units of their spread.

    .. math:: |m| / \sqrt{\mathrm{tr}\,\Sigma}

    with :math:`\Sigma` the sample covariance (N - 1). The paper: 0.94 for images, 1.03 for text. A set whose true mean
    is at the origin has about :math:`1/\sqrt{N}`.

    Args:
        embeddings: Raw embeddings ``(N, D)``, N >= 2.

    Returns:
        A scalar >= 0 without units.

    Raises:
        TypeError: If the embeddings are not floating-point tensors.
        ValueError: If there are fewer than two, all are equal, or a row is zero, NaN or infinite.

    Source: Levi and Gilboa, ICML 2025.

    Example:
        >>> import torch
        >>> offset(torch.tensor([[4.0, 0.0], [2.0, 0.0]]))
        tensor(2.1213)
    """
    values = check_rows(embeddings, min_rows=2)
    mean = mean_of(values)
    total = torch.stack([(block.double() - mean).square().sum() for block in blocks(values)]).sum() / (len(values) - 1)
    check_spread(total, mean, embeddings.dtype)
    return (torch.linalg.vector_norm(mean) / total.sqrt()).to(embeddings.device, result_dtype(embeddings))


@full_precision
def modality_gap(
    image: Tensor,
    text: Tensor,
    *,
    paired: bool = True,
    groups: Tensor | None = None,
    text_groups: Tensor | None = None,
) -> ModalityGapResult:
    r"""Gap between the modalities: the distance of their means, for unit and for raw embeddings.

    .. math:: |m_u(\mathrm{image}) - m_u(\mathrm{text})|, \quad |m(\mathrm{image}) - m(\mathrm{text})|

    The means of finite sets differ by chance alone, and the squared gap is the sum of the population's and that of
    chance: :math:`\mathrm{gap}^2 = \mathrm{squared\_gap} + \mathrm{null}^2`.

    Args:
        image: Raw image embeddings ``(N, D)``.
        text: Raw text embeddings ``(N, D)``, row i belonging to row i of ``image``.
        paired: False accepts sets that are not in pairs, ``(N, D)`` and ``(M, D)``, without a matched cosine.
        groups: Ids ``(N,)`` of the pairs, or of the images with ``paired=False``; rows of one group, such as the
            captions of one image, are dependent.
        text_groups: Ids ``(M,)`` of the texts, with ``paired=False``.

    Returns:
        A :class:`ModalityGapResult`.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If dimensions differ, lengths differ while ``paired``, groups do not fit, or a row is zero, NaN or
            infinite.

    Source: Liang et al., *Mind the Gap*, NeurIPS 2022; Hessel et al., *CLIPScore*, EMNLP 2021.

    Example:
        >>> import torch
        >>> result = modality_gap(torch.tensor([[2.0, 0.0], [2.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 2.0]]))
        >>> result.gap, result.matched_cosine
        (tensor(1.0233), tensor(0.4000))
    """
    if paired:
        values, other = check_pairs(image, text, advice=" For sets that are not in pairs give paired=False.")
        if text_groups is not None:
            raise ValueError("text_groups: pairs have one id each; give it in groups.")
    else:
        values, other = check_rows(image, "image"), check_rows(text, "text")
        check_same_dim(values, other.shape[1], "image", "text")
    for name, ids, rows in (("groups", groups, values), ("text_groups", text_groups, other)):
        if ids is not None and ids.shape != (len(rows),):
            raise ValueError(f"{name}: expected one id for each of {len(rows)} rows, got {tuple(ids.shape)}.")
    u, w = units(values), units(other)
    dtype = torch.promote_types(result_dtype(image), result_dtype(text))
    gap, raw_gap = (torch.linalg.vector_norm(mean_of(a) - mean_of(b)) for a, b in ((u, w), (values, other)))
    matched = (u * w).sum(1).mean(dtype=torch.float64) if paired else None
    sides = [Rows.center((u.double() - w).cpu(), groups)] if paired else [
        Rows.center(u.double().cpu(), groups), Rows.center(-w.double().cpu(), text_groups)
    ]  # fmt: skip
    known = _squared_gap(sides)
    maybe = [None if x is None else x.to(image.device, dtype) for x in (matched, *_of_squared(known, gap.square()))]
    return ModalityGapResult(gap.to(image.device, dtype), raw_gap.to(image.device, dtype), *maybe)


def _squared_gap(sides: list[Rows]) -> Estimate | None:
    """Squared norm of the sum of the sides' means, without bias; None where a side has only one row or group."""
    if min(len(side.sizes) for side in sides) < 2:
        return None
    total = torch.stack([side.mean for side in sides]).sum(0)
    value = total.square().sum() - sum(mean_square_excess(side, total) for side in sides)
    moved, counts = [], []
    for number, side in enumerate(sides):
        sums = torch.zeros_like(side.sizes).index_add_(0, side.group, mean_square_influence(side, total))
        around = tuple(sum(len(other.sizes) for other in part) for part in (sides[:number], sides[number + 1 :]))
        moved.append(pad(-sums / (side.sizes.sum() - side.sizes), around))  # a group belongs to one side only
        counts.append(pad(side.sizes, around))
    left = tuple(value + one for one in moved)
    return joint_jackknife(value, value + torch.stack(moved).sum(0), left, tuple(counts))


def _of_squared(known: Estimate | None, square: Tensor) -> tuple[Tensor | None, ...]:
    """Squared gap, null, and the ends of the interval, where they can be computed."""
    if known is None:
        return None, None, None, None
    ends = [
        None if math.isnan(end) else torch.tensor(max(end, 0.0), dtype=torch.float64).sqrt() for end in known.interval()
    ]
    return known.value, (square.to(known.value) - known.value).clamp_min(0).sqrt(), *ends
