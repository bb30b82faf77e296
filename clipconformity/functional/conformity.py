"""Conformity: how common a sample is, exactly and in O(N D)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clipconformity.functional.linalg import blocks, full_precision, result_dtype, to_working_precision
from clipconformity.functional.validation import check_matrix, check_norms, check_same_dim, is_in_range


class HasUnitMean(Protocol):
    """An object with the mean of its unit embeddings, such as a ``ReferenceSet``."""

    @property
    def unit_mean(self) -> Tensor:
        """The mean of u = v/|v|, shape ``(D,)``."""


class ConformityFit(NamedTuple):
    """Least squares between conformity C and estimated conformity cos(m, v), both ways."""

    slope: Tensor
    """Slope of C on cos(m, v); about |m_u|, so below 1."""
    intercept: Tensor
    """Intercept of C on cos(m, v)."""
    inverse_slope: Tensor
    """Slope of cos(m, v) on C; about 1/|m_u|: the paper's a (1.461 for images, 1.411 for text)."""
    inverse_intercept: Tensor
    """Intercept of cos(m, v) on C."""
    pearson: Tensor
    """Pearson correlation of the two, in [-1, 1]."""


class NormStatistics(NamedTuple):
    """Statistics of the norms |v| and of the centred norms |v - m|."""

    mean: Tensor
    std: Tensor
    quantiles: Tensor
    centered_mean: Tensor
    centered_std: Tensor
    centered_quantiles: Tensor
    conformity_correlation: Tensor
    """Pearson correlation of |v| with the conformity inside the own set, in [-1, 1]."""


def norms_and_unit_sum(embeddings: Tensor, name: str = "embeddings") -> tuple[Tensor, Tensor]:
    """Norm of every row ``(N,)``, and the sum of v/|v| in float64, ``(D,)``, reading the rows once.

    Raises:
        ValueError: If a row is zero, NaN, infinite or out of range.
    """
    total = torch.zeros(embeddings.shape[1], dtype=torch.float64, device=embeddings.device)
    norms = []
    for block in blocks(embeddings):
        norm = torch.linalg.vector_norm(block, dim=1)
        total += _weighted_sum(norm.reciprocal(), block)
        norms.append(norm)
    found = torch.cat(norms)
    if not bool(is_in_range(found).all()):  # float32 norms over- and underflow: float64 norms show the error
        check_norms(torch.linalg.vector_norm(embeddings, dim=1, dtype=torch.float64), name)
    return found, total


def _weighted_sum(weights: Tensor, rows: Tensor) -> Tensor:
    """Return weights @ rows in float64: 32 rows are added in the rows' precision, which rounds little, then 64 bits."""
    whole = len(rows) // 32 * 32
    parts = torch.bmm(weights[:whole].view(-1, 1, 32), rows[:whole].view(-1, 32, rows.shape[1]))
    return parts.sum((0, 1), dtype=torch.float64) + weights[whole:].double() @ rows[whole:].double()


def cosines(embeddings: Tensor, norms: Tensor, direction: Tensor) -> Tensor:
    """Return u . direction for every row, shape ``(N,)``."""
    direction = direction.to(embeddings)
    return torch.cat([block @ direction for block in blocks(embeddings)]) / norms


def own_set_conformity(cosine_to_mean: Tensor, count: int | Tensor) -> Tensor:
    """Exclude the sample itself (cosine 1) from its mean cosine: ``(N c - 1) / (N - 1)``, clipped to [-1, 1]."""
    return ((count * cosine_to_mean - 1) / (count - 1)).clamp(-1, 1)


@full_precision
def conformity(embeddings: Tensor, reference: Tensor | HasUnitMean | None = None) -> Tensor:
    r"""Conformity of raw embeddings: the mean cosine similarity of each to a set. High is common, low is rare.

    .. math:: C(v, S) = \frac{1}{|S|} \sum_{s \in S} \cos(v, s) = u \cdot m_u(S), \quad u = v / |v|

    The right-hand side is exact, so the cost is O(N D) and no N x N matrix is built. The scale of a row does
    not matter; give the raw embeddings all the same, since the other statistics need them.

    Args:
        embeddings: Embeddings ``(N, D)`` of any scale.
        reference: Reference embeddings ``(M, D)``, or a ``ReferenceSet``. ``None`` takes the set itself, with
            each sample excluded from its own mean.

    Returns:
        ``(N,)``, in [-1, 1]; float32, or float64 for float64 input.

    Raises:
        TypeError: If the embeddings are not floating-point tensors.
        ValueError: If a shape or dimension does not fit, if a row is zero, NaN or infinite, or if there is only
            one sample and no reference.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.

    Example:
        >>> import torch
        >>> conformity(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]))
        tensor([0.3536, 0.3536, 0.7071])
    """
    raw = check_matrix(embeddings, min_rows=2 if reference is None else 1)
    values = to_working_precision(raw)
    norms, total = norms_and_unit_sum(values)
    if reference is None:
        mean = total / len(values)
        result = own_set_conformity(cosines(values, norms, mean).double(), len(values))
    else:
        mean = reference_unit_mean(reference)
        check_same_dim(values, len(mean), "embeddings", "reference")
        result = cosines(values, norms, mean).clamp(-1, 1)
    return result.to(raw.device, result_dtype(raw))


def reference_unit_mean(reference: Tensor | HasUnitMean) -> Tensor:
    """Mean unit vector of a reference, given as embeddings or as an object that has it."""
    if not isinstance(reference, Tensor):
        if not hasattr(reference, "unit_mean"):
            raise TypeError(
                f"reference: expected embeddings of shape (M, D) or a ReferenceSet, got {type(reference).__name__}."
            )
        return reference.unit_mean
    values = to_working_precision(check_matrix(reference, "reference"))
    _, total = norms_and_unit_sum(values, "reference")
    return total / len(values)


@full_precision
def self_conformity(embeddings: Tensor) -> Tensor:
    r"""Mean pairwise cosine of a set: how alike its samples are. Low is varied, 1 is all the same.

    .. math:: \frac{N |m_u|^2 - 1}{N - 1}

    Exact. Its standard error is 2 std(C)/sqrt(N), not std(C)/sqrt(N), since the mean depends on the samples.

    Args:
        embeddings: Embeddings ``(N, D)`` of any scale, N >= 2.

    Returns:
        A scalar in [-1/(N-1), 1].

    Raises:
        TypeError: If the embeddings are not floating-point tensors.
        ValueError: If there are fewer than two, or a row is zero, NaN or infinite.

    Example:
        >>> import torch
        >>> self_conformity(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]]))
        tensor(0.4714)
    """
    raw = check_matrix(embeddings, min_rows=2)
    values = to_working_precision(raw)
    _, total = norms_and_unit_sum(values)
    mean = total / len(values)
    return own_set_conformity(mean @ mean, len(values)).to(raw.device, result_dtype(raw))


@full_precision
def estimated_conformity(embeddings: Tensor, mean: Tensor | None = None) -> Tensor:
    r"""Estimate conformity as :math:`\cos(m, v)`, with m the mean of the *raw* embeddings.

    This is the paper's estimate before its linear fit; the exact value, :func:`conformity`, costs the same.

    Args:
        embeddings: Raw embeddings ``(N, D)``, before L2 normalisation.
        mean: Raw mean ``(D,)``; by default the mean of ``embeddings``.

    Returns:
        ``(N,)``, in [-1, 1].

    Raises:
        TypeError: If the embeddings are not floating-point tensors.
        ValueError: If a shape does not fit, a row is zero, NaN or infinite, or the mean is zero.

    Source: Levi and Gilboa, ICML 2025.

    Example:
        >>> import torch
        >>> estimated_conformity(torch.tensor([[3.0, 0.0], [0.0, 3.0]]))
        tensor([0.7071, 0.7071])
    """
    raw = check_matrix(embeddings)
    values = to_working_precision(raw)
    norms, _ = norms_and_unit_sum(values)
    center = values.mean(0, dtype=torch.float64) if mean is None else mean.detach().double().to(values.device)
    if center.shape != values.shape[1:]:
        raise ValueError(f"mean: expected shape ({values.shape[1]},), got {tuple(center.shape)}.")
    length = torch.linalg.vector_norm(center)
    if not bool(torch.isfinite(length) & (length > 0)):
        raise ValueError("mean: expected a finite, non-zero vector; the direction of a zero mean is undefined.")
    return cosines(values, norms, center / length).clamp(-1, 1).to(raw.device, result_dtype(raw))


def conformity_fit(embeddings: Tensor) -> ConformityFit:
    r"""Least squares between exact and estimated conformity inside the own set, in both directions.

    The paper's published line, with slope 1.461 for images and 1.411 for text, is the *inverse* one: cos(m, v)
    on C. Since :math:`C = |m_u| \cos(m_u, v)` exactly, a Pearson r near 1 says only that m and m_u are aligned.

    Args:
        embeddings: Raw embeddings ``(N, D)``, N >= 3.

    Returns:
        A :class:`ConformityFit` of scalars.

    Raises:
        ValueError: If there are too few samples, or all have the same conformity.

    Example:
        >>> import torch
        >>> fit = conformity_fit(torch.randn(500, 16, generator=torch.Generator().manual_seed(0)) + 1)
        >>> bool(fit.pearson > 0.99), bool(fit.slope < 1 < fit.inverse_slope)
        (True, True)
    """
    check_matrix(embeddings, min_rows=3)
    fit = fit_lines(conformity(embeddings).double(), estimated_conformity(embeddings).double())
    return ConformityFit(*(field.to(result_dtype(embeddings)) for field in fit))


def fit_lines(exact: Tensor, estimate: Tensor) -> ConformityFit:
    """Least squares both ways between two vectors of conformities in float64.

    Raises:
        ValueError: If there are fewer than three, or either does not vary.
    """
    if len(exact) < 3:  # two samples have equal conformity, their cosine
        raise ValueError(f"embeddings: expected at least 3 samples for a line, got {len(exact)}; add samples.")
    dx, dy = estimate - estimate.mean(), exact - exact.mean()
    if not bool((dx.abs().max() > 1e-7) & (dy.abs().max() > 1e-7)):
        raise ValueError(
            "embeddings: all samples have the same conformity, so no line can be fitted; check that they differ."
        )
    slope = (dx @ dy) / (dx @ dx)
    inverse = (dx @ dy) / (dy @ dy)
    fields = (
        slope,
        exact.mean() - slope * estimate.mean(),
        inverse,
        estimate.mean() - inverse * exact.mean(),
        pearson(dx, dy),
    )
    return ConformityFit(*fields)


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson correlation of two vectors in float64; 0 where one of them is constant."""
    dx, dy = x.double() - x.double().mean(), y.double() - y.double().mean()
    scale = torch.sqrt((dx @ dx) * (dy @ dy))
    return torch.where(scale > 0, (dx @ dy) / scale.clamp_min(torch.finfo(scale.dtype).tiny), 0.0)


def quantiles(values: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Quantiles by linear interpolation of the order statistics, for vectors of any length."""
    ordered = values.double().sort().values
    position = torch.tensor(levels, dtype=torch.float64, device=values.device) * (len(ordered) - 1)
    low = position.floor().long()
    high = (low + 1).clamp_max(len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@full_precision
def norm_statistics(embeddings: Tensor, levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> NormStatistics:
    r"""Statistics of the norms of raw embeddings, as they are and centred on their mean.

    The norms carry information only before L2 normalisation. The paper reports that samples of low conformity
    have larger norms on MS-COCO; the correlation returned here says whether that holds for the given set.

    Args:
        embeddings: Raw embeddings ``(N, D)``, N >= 2, before L2 normalisation.
        levels: The quantile levels, each in [0, 1].

    Returns:
        A :class:`NormStatistics`; standard deviations with N - 1, quantiles of shape ``(len(levels),)``.

    Raises:
        TypeError: If the embeddings are not floating-point tensors.
        ValueError: If there are fewer than two, a row is zero, NaN or infinite, or a level is outside [0, 1].

    Example:
        >>> import torch
        >>> norm_statistics(torch.tensor([[3.0, 4.0], [0.0, 1.0]])).mean
        tensor(3.)
    """
    raw = check_matrix(embeddings, min_rows=2)
    if not all(0 <= level <= 1 for level in levels):
        raise ValueError(f"levels: expected quantile levels in [0, 1], got {levels}.")
    values = to_working_precision(raw)
    norms, total = norms_and_unit_sum(values)
    mean = values.mean(0, dtype=torch.float64)
    # In float64: a mean rounded to float32 is off by more than the spread of a set far from the origin.
    centered = torch.cat([torch.linalg.vector_norm(block.double() - mean, dim=1) for block in blocks(values)])
    unit_mean = total / len(values)
    correlation = pearson(norms, cosines(values, norms, unit_mean))

    def summary(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x.double().mean(), x.double().std(), quantiles(x, levels)

    fields = (*summary(norms), *summary(centered), correlation)
    return NormStatistics(*(field.to(raw.device, result_dtype(raw)) for field in fields))
