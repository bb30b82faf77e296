"""Nearest neighbours in blocks: precision and recall of manifolds, and the nearest row of a reference."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from clipconformity.functional.distances import (
    ROWS,
    center_and_scale,
    find_ball_blocks,
    find_largest,
    kth_distance,
    split_slices,
)
from clipconformity.functional.linalg import full_precision, result_dtype, units
from clipconformity.functional.validation import check_rows, check_same_dim

TIE = 16
"""Rounding units within which two cosines count as equal."""


class PRDCResult(NamedTuple):
    """Mutual coverage of two sets: precision, recall and coverage in [0, 1], density >= 0."""

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor


class HasUnits(Protocol):
    """An object with unit rows, such as a ``ReferenceSet``."""

    @property
    def units(self) -> Tensor:
        """Unit rows ``(k, D)``."""


class Nearest(NamedTuple):
    """The nearest rows, nearest first."""

    cosine: Tensor
    """``(N, k)`` in [-1, 1]."""
    index: Tensor  # type: ignore[assignment]
    """Their indices ``(N, k)``."""


@full_precision
def prdc(embeddings: Tensor, reference: Tensor, k: int = 5) -> PRDCResult:
    r"""Precision, recall, density and coverage of raw embeddings against reference embeddings.

    Around every row is a ball up to its k-th nearest neighbour in its own set, itself excluded; the balls of a set are
    its manifold. An edge is outside.

    - precision: share of the embeddings in a ball of the reference; recall: of the reference in a ball of theirs.
    - density: mean number of the reference's balls that an embedding is in, over k; 1 for sets of one distribution.
    - coverage: share of the reference's balls that hold an embedding.

    Distances are Euclidean between the vectors as they are given: raw, so that norms count, as is usual with CLIP
    features. Give unit vectors for the angle alone. All four depend on k and on both numbers of rows; for sets of one
    distribution, coverage is :math:`1 - \prod_{i=1}^k (M - i)/(N + M - i)` on average. Compare values at the same k, N
    and M only.

    Args:
        embeddings: Evaluated embeddings ``(N, D)``, N > k.
        reference: Reference embeddings ``(M, D)``, M > k.
        k: Number of neighbours inside a ball.

    Returns:
        A :class:`PRDCResult` of scalars, by distances in float64, computed in blocks: memory is O((N + M) D).

    Raises:
        TypeError: If an argument is not a floating-point tensor, or ``k`` is not a whole number.
        ValueError: If dimensions differ, there are too few rows for ``k``, or a row is zero, NaN or infinite.

    Source: Kynkaanniemi et al., *Improved Precision and Recall Metric for Assessing Generative Models*, NeurIPS 2019;
    Naeem et al., *Reliable Fidelity and Diversity Metrics for Generative Models*, ICML 2020, whose formulas these are.

    Example:
        >>> import torch
        >>> line = torch.arange(1.0, 7.0)[:, None]
        >>> prdc(line + 0.25, line, k=1)
        PRDCResult(precision=tensor(1.), recall=tensor(1.), density=tensor(1.8333), coverage=tensor(1.))
    """
    check_neighbours(k)
    mine, theirs = check_rows(embeddings, min_rows=k + 1), check_rows(reference, "reference", k + 1)
    check_same_dim(mine, theirs.shape[1], "embeddings", "reference")
    found = cover(mine, theirs, k).result()
    return PRDCResult(*(value.to(embeddings.device, result_dtype(embeddings)) for value in found))


class Coverage(NamedTuple):
    """Which rows of two sets lie in balls of the other set."""

    balls: Tensor
    """Number of the reference's balls that each embedding is in, ``(N,)``."""
    recalled: Tensor
    """Whether each reference row is in a ball of the embeddings, ``(M,)``."""
    covered: Tensor
    """Whether the ball of each reference row holds an embedding, ``(M,)``."""
    apart: Tensor
    """Squared distance of each embedding to the nearest reference row, ``(N,)``, in float32 precision."""
    reference_apart: Tensor
    """Squared distance of each reference row to the nearest embedding, ``(M,)``, likewise."""
    k: int
    """Number of neighbours inside a ball."""

    def result(self) -> PRDCResult:
        """Return the four figures, float64."""
        fields = (self.balls > 0, self.recalled, self.balls, self.covered)
        precision, recall, inside, coverage = (field.mean(dtype=torch.float64) for field in fields)
        return PRDCResult(precision, recall, (1 / self.k) * inside, coverage)


def cover(embeddings: Tensor, reference: Tensor, k: int) -> Coverage:
    """Find which rows lie in balls of the other set, of checked rows ``(N, D)`` and ``(M, D)``, N and M > k."""
    mine, theirs, scale = center_and_scale(embeddings, reference)
    own_reach, their_reach = kth_distance(mine, k), kth_distance(theirs, k)
    balls = torch.zeros(len(own_reach), dtype=torch.int64, device=own_reach.device)
    covered, recalled = (torch.zeros_like(their_reach, dtype=torch.bool) for _ in range(2))
    apart, their_apart = (torch.full_like(one, torch.inf) for one in (own_reach, their_reach))
    for block in find_ball_blocks(theirs, mine, (their_reach, own_reach)):
        (covers, held), (recalls, _) = block.in_first, block.in_second
        balls += torch.bincount(held, minlength=len(balls))
        covered[covers], recalled[recalls] = True, True
        rows, columns = block.rows, block.columns
        apart[columns] = torch.minimum(apart[columns], block.distance.amin(0))
        their_apart[rows] = torch.minimum(their_apart[rows], block.distance.amin(1))
    apart, their_apart = (one.clamp_min(0) / scale for one in (apart, their_apart))
    return Coverage(balls, recalled, covered, apart, their_apart, k)


def expected_coverage(count: int, reference_count: int, k: int) -> float:
    """Expected coverage of ``count`` samples of the reference's distribution (Naeem et al. 2020, without ties)."""
    missed = 1.0
    for i in range(1, k + 1):
        missed *= (reference_count - i) / (count + reference_count - i)
    return 1 - missed


@full_precision
def nearest(embeddings: Tensor, reference: Tensor | HasUnits | None = None, k: int = 1) -> Nearest:
    """Find the k nearest rows of each embedding by cosine: in a reference, or inside the set, itself excluded.

    Args:
        embeddings: Embeddings ``(N, D)`` of any scale.
        reference: Embeddings ``(M, D)`` of any scale, M >= k; a ``ReferenceSet``, whose row sample is used; or
            None for the set itself, N > k.
        k: Number of neighbours.

    Returns:
        A :class:`Nearest`, found in blocks: memory is O((N + M) D + N k). Equally near rows come in any order.

    Raises:
        TypeError: If an argument is not a floating-point tensor, or ``k`` is not a whole number.
        ValueError: If dimensions differ, there are too few rows for ``k``, or a row is zero, NaN or infinite.

    Example:
        >>> import torch
        >>> nearest(torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [3.0, 0.5]])).index
        tensor([[1],
                [1]])
    """
    check_neighbours(k)
    rows = units(check_rows(embeddings, min_rows=k + 1 if reference is None else 1))
    others = None
    if reference is not None:
        given = reference if isinstance(reference, Tensor) or not hasattr(reference, "units") else reference.units
        others = units(check_rows(given, "reference", k)).to(rows)
        check_same_dim(rows, others.shape[1], "embeddings", "reference")
    cosine, index = find_largest(rows, others, k)
    return Nearest(cosine.clamp(-1, 1).to(embeddings.device, result_dtype(embeddings)), index.to(embeddings.device))


@full_precision
def authenticity(embeddings: Tensor, reference: Tensor | HasUnits) -> Tensor:
    r"""Share of embeddings that are no nearer to the reference than the reference is to itself.

    An embedding is authentic where it is farther from its nearest reference row r than r is from the nearest other
    reference row; where both are as far, as with a copy of a row that the reference has twice, it is not:

    .. math:: \frac{1}{N} \sum_v 1\left[d(v, r_v) > \min_{s \ne r_v} d(r_v, s)\right]

    with d the distance of unit vectors, that is by cosine. It is 0 where all are copies. It is below 1 for new
    embeddings of the reference's distribution: they are authentic unless they and r are each other's nearest, which
    holds for 2/3 of them in one dimension, and for 1/2 in many where no row is near to all. Far from the reference all
    are authentic.

    Args:
        embeddings: Evaluated embeddings ``(N, D)`` of any scale.
        reference: Reference embeddings ``(M, D)``, M >= 2, or a ``ReferenceSet``, whose row sample is used.

    Returns:
        A scalar in [0, 1]; low where embeddings are close to single reference rows.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If dimensions differ, there are too few rows, or a row is zero, NaN or infinite.

    Source: Alaa et al., *How Faithful is your Synthetic Data?*, ICML 2022, on raw features.

    Example:
        >>> import torch
        >>> angle = torch.tensor([0.0, 0.4, 1.0])
        >>> reference = torch.stack([angle.cos(), angle.sin()], 1)
        >>> new = torch.tensor([0.1, 0.75])
        >>> authenticity(torch.stack([new.cos(), new.sin()], 1), reference)
        tensor(0.)
    """
    given = reference if isinstance(reference, Tensor) or not hasattr(reference, "units") else reference.units
    theirs = check_rows(given, "reference", 2).to(embeddings.device, result_dtype(embeddings))
    found = nearest(embeddings, theirs)
    own = nearest(theirs).cosine[:, 0]
    dtype = found.cosine.dtype
    share = is_authentic(found.cosine[:, 0], own[found.index[:, 0]], dtype)
    return share.mean(dtype=torch.float64).to(dtype)


def is_authentic(cosine: Tensor, own: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether rows are farther from their nearest row than that row is from its own nearest, beyond rounding.

    Args:
        cosine: Cosine of each row to its nearest row, ``(N,)``.
        own: Cosine of that row to the nearest other one of its set, ``(N,)``.
        dtype: Type in which the cosines were computed.
    """
    return own - cosine > TIE * torch.finfo(dtype).eps


def close_counts(units: Tensor, least: float) -> Tensor:
    """Number of unit rows ``(N, D)`` with at least a given cosine to each, itself included, ``(N,)``."""
    counts = torch.zeros(len(units), dtype=torch.int64, device=units.device)
    for row in split_slices(len(units), ROWS):
        for column in split_slices(len(units), ROWS)[row.start // ROWS :]:
            close = units[row] @ units[column].T >= least
            counts[row] += close.sum(1)
            if column != row:
                counts[column] += close.sum(0)
    return counts


def check_neighbours(k: object) -> None:
    """Refuse an invalid number of neighbours.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is below 1.
    """
    if not isinstance(k, int) or isinstance(k, bool):
        raise TypeError(f"k: expected a whole number of neighbours, got {k!r}.")
    if k < 1:
        raise ValueError(f"k: expected at least 1 neighbour, got {k}.")
