"""Maximum mean discrepancy of unit embeddings: with the cosine kernel, and with the Gaussian kernel of CMMD."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clipconformity.functional.conformity import norms_and_unit_sum
from clipconformity.functional.linalg import full_precision, result_dtype, units
from clipconformity.functional.validation import check_rows, check_same_dim

SIGMA = 10.0
"""Width of CMMD's kernel, as published."""
SCALE = 1000.0
"""Factor of CMMD, as published."""
MAX_PAIRS = 1 << 22
"""Kernel values held at once: 32 MiB."""


class HasSelfConformity(Protocol):
    """An object with mean and self-conformity of its unit embeddings, such as a ``ReferenceSet``."""

    @property
    def unit_mean(self) -> Tensor:
        """The mean of u = v/|v|, shape ``(D,)``."""

    @property
    def self_conformity(self) -> Tensor:
        """The mean pairwise cosine, a scalar."""


class MMDHalves(NamedTuple):
    """The two parts of a cosine MMD, in squared cosine distance."""

    typicality: Tensor
    """Above 0 where the samples are less typical than the reference, a scalar."""
    variety: Tensor
    """Above 0 where they are less varied, a scalar."""


@full_precision
def cosine_mmd(embeddings: Tensor, reference: Tensor | HasSelfConformity) -> Tensor:
    r"""Squared maximum mean discrepancy with the cosine kernel, unbiased: the distance of two mean directions.

    .. math:: SC(P) + SC(Q) - 2\, C(P, Q)
              = \underbrace{2\, (SC(Q) - C(P, Q))}_{\text{typicality}} + \underbrace{SC(P) - SC(Q)}_{\text{variety}}

    with SC the self-conformity of a set and C(P, Q) the mean conformity of one set to the other. It is exact, in
    O(N D), with no N x N matrix; :func:`mmd_halves` gives the two parts. Raw or normalised embeddings give the same.

    Args:
        embeddings: Embeddings ``(N, D)`` of any scale, N >= 2.
        reference: Embeddings ``(M, D)``, M >= 2, or a ``ReferenceSet``.

    Returns:
        A scalar, in squared cosine distance; 0 on average where both sets are of one distribution, so that it may be
        negative. float32, or float64 for float64 input.

    Raises:
        TypeError: If an argument is neither a floating-point tensor nor, for ``reference``, such an object.
        ValueError: If dimensions differ, there are too few samples, or a row is zero, NaN or infinite.

    Source: Gretton et al., *A Kernel Two-Sample Test*, JMLR 2012, for the unbiased estimate.

    Example:
        >>> import torch
        >>> images = torch.tensor([[2.0, 0.0], [3.0, 0.0]])
        >>> cosine_mmd(images, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(0.)
    """
    halves = _compute_halves(embeddings, reference)
    return (halves.typicality + halves.variety).to(embeddings.device, result_dtype(embeddings))


@full_precision
def mmd_halves(embeddings: Tensor, reference: Tensor | HasSelfConformity) -> MMDHalves:
    r"""The parts of a :func:`cosine_mmd`: typicality and variety, which add up to it.

    .. math:: \text{typicality} = 2\, (SC(Q) - C(P, Q)), \quad \text{variety} = SC(P) - SC(Q)

    These are the differences that the library's verdicts are about, as cosines: typicality is -2 times the typicality
    shift times the standard deviation of the reference's conformity, variety is (1 - SC(Q)) (1 - variety ratio). But
    for sampling noise their sum is at least 0. So samples that are more typical than the reference are always less
    varied.

    Args:
        embeddings: Embeddings ``(N, D)`` of any scale, N >= 2.
        reference: Embeddings ``(M, D)``, M >= 2, or a ``ReferenceSet``.

    Returns:
        An :class:`MMDHalves`.

    Raises:
        TypeError: As :func:`cosine_mmd`.
        ValueError: As :func:`cosine_mmd`.

    Example:
        >>> import torch
        >>> reference = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> mmd_halves(torch.tensor([[1.0, 1.0], [2.0, 2.0]]), reference)  # all on the mean
        MMDHalves(typicality=tensor(-1.4142), variety=tensor(1.))
    """
    halves = _compute_halves(embeddings, reference)
    return MMDHalves(*(half.to(embeddings.device, result_dtype(embeddings)) for half in halves))


def _compute_halves(embeddings: Tensor, reference: Tensor | HasSelfConformity) -> MMDHalves:
    mean, own = _mean_and_self_conformity(embeddings, "embeddings")
    if isinstance(reference, Tensor):
        other, others = _mean_and_self_conformity(reference, "reference")
    elif hasattr(reference, "unit_mean") and hasattr(reference, "self_conformity"):
        other, others = reference.unit_mean, reference.self_conformity
    else:
        raise TypeError(
            f"reference: expected embeddings of shape (M, D) or a ReferenceSet, got {type(reference).__name__}."
        )
    check_same_dim(mean, len(other), "embeddings", "reference")
    others = others.to(mean)
    return MMDHalves(2 * (others - mean @ other.to(mean)), own - others)


def _mean_and_self_conformity(embeddings: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Mean unit vector ``(D,)`` and mean pairwise cosine of a set, float64."""
    values = check_rows(embeddings, name, min_rows=2).double()  # the remaining difference is small
    count, total = len(values), norms_and_unit_sum(values, name)[1]
    return total / count, (total.square().sum() - count) / (count * (count - 1))


@full_precision
def cmmd(embeddings: Tensor, reference: Tensor, *, sigma: float = SIGMA, unbiased: bool = False) -> Tensor:
    r"""CMMD: squared maximum mean discrepancy of unit embeddings with a Gaussian kernel, times 1000.

    .. math:: 1000 \left(\overline{k(u, u')} + \overline{k(w, w')} - 2\, \overline{k(u, w)}\right), \quad
              k(u, w) = \exp\left(-\frac{|u - w|^2}{2 \sigma^2}\right)

    Exact over all pairs, in blocks, in float64: O(N^2 D) time and little memory. At the published width of 10 the
    kernel is nearly a straight line on the unit sphere, so that it is to 1% ten times :func:`cosine_mmd`. The metric
    ``CMMD`` has it to the third order without pairs. Raw or normalised embeddings give the same.

    Args:
        embeddings: Embeddings ``(N, D)`` of any scale.
        reference: Embeddings ``(M, D)``.
        sigma: Width of the kernel.
        unbiased: Leave out the pairs of a row with itself. The published code keeps them, which adds about
            10 (1 - self-conformity) (1/N + 1/M).

    Returns:
        A scalar, >= 0 unless ``unbiased``, which is 0 on average where both sets are of one distribution. float32, or
        float64 for float64 input.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If dimensions differ, there are too few samples, ``sigma`` is not above 0, or a row is zero, NaN or
            infinite.

    Source: Jayasumana et al., *Rethinking FID: Towards a Better Evaluation Metric for Image Generation*, CVPR 2024.

    Example:
        >>> import torch
        >>> cmmd(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(19.9003)
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma: expected a width above 0, got {sigma}.")
    least = 2 if unbiased else 1
    mine = units(check_rows(embeddings, min_rows=least).double())
    theirs = units(check_rows(reference, "reference", min_rows=least).double().to(mine.device))
    check_same_dim(mine, theirs.shape[1], "embeddings", "reference")
    own = [_mean_kernel(side, side, sigma, apart=unbiased) for side in (mine, theirs)]
    value = SCALE * (own[0] + own[1] - 2 * _mean_kernel(mine, theirs, sigma))
    return value.to(embeddings.device, result_dtype(embeddings))


def _mean_kernel(first: Tensor, second: Tensor, sigma: float, *, apart: bool = False) -> Tensor:
    """Mean of k - 1 over pairs of unit rows, a scalar; ``apart``: without pairs of a row with itself, where it is 0."""
    total = first.new_zeros(())
    for block in first.split(max(1, MAX_PAIRS // len(second))):
        total += torch.expm1((block @ second.T - 1).clamp_max(0) / sigma**2).sum()
    return total / (len(first) * (len(second) - apart))


def third_order(first: Tensor, second: Tensor, sigma: float = SIGMA) -> Tensor:
    r"""CMMD from the discrepancies of the first two powers of the cosine, without the third and higher powers.

    On unit vectors :math:`k = e^{-g} (1 + g c + g^2 c^2 / 2 + ...)`, with c the cosine and :math:`g = 1/\sigma^2`. The
    error is the sum of :math:`1000\, e^{-g} g^k / k!` times the discrepancy of the k-th power, from k = 3 on. As
    each lies within -4 and 4, that is at most :data:`MAX_LEFT_OUT` at the published width; for a biased estimate, whose
    discrepancies are squares, it is never below 0.

    Args:
        first: Discrepancy of the cosine.
        second: Discrepancy of the squared cosine.
        sigma: Width of the kernel.
    """
    rate = 1 / sigma**2
    return SCALE * math.exp(-rate) * (rate * first + rate**2 * second / 2)


MAX_LEFT_OUT = 4 * SCALE * (1 - math.exp(-1 / SIGMA**2) * (1 + 1 / SIGMA**2 + 1 / SIGMA**4 / 2))
"""Largest error of :func:`third_order` at the published width: 0.00066."""
