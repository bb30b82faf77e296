"""The Vendi score: the effective number of different samples in a set."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipconformity.functional.linalg import blocks, full_precision, result_dtype, units
from clipconformity.functional.validation import check_rows

NEAR_ONE = 1e-8
"""Distance from order 1 below which its limit is more exact than the formula."""


@full_precision
def vendi_score(embeddings: Tensor, order: float = 1.0) -> Tensor:
    r"""Vendi score of a set of embeddings: its effective number of different samples, by the spectrum of cosines.

    .. math:: \exp H_q(\lambda), \quad H_1 = -\sum_i \lambda_i \log \lambda_i, \quad
              H_q = \frac{1}{1 - q} \log \sum_i \lambda_i^q

    with the eigenvalues of K/N, K the matrix of pairwise cosines. They are also those of the second moment of the unit
    embeddings, D x D, so the smaller of the two matrices is used. Raw or normalised embeddings give the same.

    The value grows with N, fast below some thousands: compare values at the same N only.

    Args:
        embeddings: Embeddings ``(N, D)`` of any scale.
        order: Order q >= 0. 1 is the published score. 2 is RKE, one over the mean squared cosine. Infinity uses only
            the largest eigenvalue. 0 counts the eigenvalues above 0, rare samples as much as common ones.

    Returns:
        A scalar between 1 and min(N, D); high is varied. float32, or float64 for float64 input.

    Raises:
        TypeError: If the embeddings are not a floating-point tensor.
        ValueError: If there are none, a row is zero, NaN or infinite, or ``order`` is below 0.

    Source: Friedman and Dieng, *The Vendi Score*, TMLR 2023; Pasarkar and Dieng, *Cousins of the Vendi Score*, AISTATS
    2024, for the orders; Jalali et al., NeurIPS 2023, for RKE.

    Example:
        >>> import torch
        >>> vendi_score(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 5.0]]))
        tensor(2.)
    """
    check_order(order)
    values = units(check_rows(embeddings, min_rows=1).double())
    if len(values) <= values.shape[1]:
        matrix = values @ values.T
    else:
        matrix = values.new_zeros(values.shape[1], values.shape[1])
        for block in blocks(values):
            matrix.addmm_(block.T, block)
    spectrum = torch.linalg.eigvalsh(matrix / len(values))
    return effective_rank(spectrum, order).to(embeddings.device, result_dtype(embeddings))


def check_order(order: float) -> None:
    """Refuse an invalid order.

    Raises:
        ValueError: If it is below 0 or NaN.
    """
    if not order >= 0:
        raise ValueError(f"order: expected a number of at least 0, got {order}.")


def effective_rank(spectrum: Tensor, order: float) -> Tensor:
    """Exponential of the Renyi entropy of eigenvalues ``(K,)`` that add up to 1; those within rounding count as 0."""
    values = drop_rounding(spectrum)
    if abs(order - 1) < NEAR_ONE:
        return (-(values * values.log()).sum()).exp()
    if math.isinf(order):
        return 1 / values.max()
    return (values.pow(order).sum().log() / (1 - order)).exp()


def drop_rounding(spectrum: Tensor) -> Tensor:
    """Return the eigenvalues above rounding."""
    return spectrum[spectrum > spectrum.max() * len(spectrum) * torch.finfo(torch.float64).eps]


def entropy_influence(rows: Tensor, second_moment: Tensor, order: float) -> Tensor:
    """Influence of each unit row on the Renyi entropy of a set's second moment, to first order, ``(N,)``, of mean 0.

    With M the second moment, it is u' f(M) u minus its mean, where f is -log for order 1, else q/(1 - q) times
    M^(q - 1) over tr M^q. Orders of 0 and infinity are not smooth, and have none.

    Args:
        rows: Unit rows ``(N, D)``, float64.
        second_moment: ``(D, D)``.
        order: Order q above 0.
    """
    spectrum, axes = torch.linalg.eigh(second_moment)
    kept = len(drop_rounding(spectrum))
    values, axes = spectrum[-kept:], axes[:, -kept:]
    if abs(order - 1) < NEAR_ONE:
        weight = -values.log()
    else:
        weight = order / (1 - order) * values.pow(order - 1) / values.pow(order).sum()
    moved = (rows @ axes).square() @ weight
    return moved - moved.mean()
