"""Linear separability of the modalities by a few dimensions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.linalg import full_precision, mean_of, result_dtype
from clipconformity.functional.ranks import area_under_curve
from clipconformity.functional.resampling import make_generator
from clipconformity.functional.validation import check_rows, check_same_dim, check_spread

FOLDS = 5
"""Folds of the cross-validation."""
MIN_SAMPLES = 2 * FOLDS
"""Smallest number of samples of a modality: two in every held-out fold."""
LABEL_ACCURACY = 0.99
"""Held-out balanced accuracy from which a single dimension is a label of the modality."""
MIN_SPREAD_SHARE = 1e-6
"""Lower bound on the spread within the modalities, as a share of the total spread of a dimension."""


class LinearSeparability(NamedTuple):
    """Separability of images and text by a few dimensions, which count from zero."""

    accuracy: Tensor
    """Balanced accuracy in sample, in [0, 1]; about 0.5 is chance, and it is above that by selection alone."""
    held_out_accuracy: Tensor
    """Balanced accuracy in 5-fold cross-validation, with dimensions selected inside each fold; 0.5 is chance."""
    dimensions: Tensor
    """The k best dimensions of the whole sample, best first, ``(k,)`` int64; the paper's 93 and 134 are 92 and 133."""
    labels: Tensor
    """Single dimensions whose held-out balanced accuracy is at least 0.99, most accurate first, ``(L,)`` int64."""
    label_accuracies: Tensor
    """Held-out balanced accuracy of each of ``labels``, ``(L,)``."""
    held_out_recalls: Tensor
    """Shares of correct images and texts in the cross-validation, ``(2,)``; the accuracy is their mean."""


class _Classes(NamedTuple):
    image: Tensor
    text: Tensor


@full_precision
def linear_separability(
    image: Tensor, text: Tensor, k: int = 2, *, generator: torch.Generator | None = None
) -> LinearSeparability:
    r"""Linear separability of images and text by the k best dimensions.

    The dimensions are ranked by their area under the ROC curve, in either direction, ties by
    :math:`d' = |\Delta\,\mathrm{mean}| / \mathrm{pooled\ std}`. Linear discriminant analysis on the best k, with equal
    priors, gives the balanced accuracy (the mean of both recalls), which unequal sizes do not inflate. A label is a
    single dimension that separates alone, with the threshold midway between the class means of the other folds.

    Args:
        image: Raw image embeddings ``(N, D)``, N >= 10.
        text: Raw text embeddings ``(M, D)``, M >= 10; they need not be in pairs.
        k: Number of dimensions, from 1 to D.
        generator: Source of the folds; by default one with a fixed seed, so that equal data give equal results.

    Returns:
        A :class:`LinearSeparability`. Copies of a row may lie in different folds; remove them first where there are
        many.

    Raises:
        TypeError: If an argument is not a floating-point tensor, or k not a whole number.
        ValueError: If dimensions differ, k is out of range, there are too few samples, all are equal, or a row is zero,
            NaN or infinite.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025, whose index counts from 1.

    Example:
        >>> import torch
        >>> image, text = torch.randn(2, 100, 8, generator=torch.Generator().manual_seed(0))
        >>> text[:, 3] += 10
        >>> result = linear_separability(image, text, k=1)
        >>> result.accuracy, result.dimensions, result.labels
        (tensor(1.), tensor([3]), tensor([3]))
    """
    whole = _Classes(
        check_rows(image, "image", MIN_SAMPLES).double().contiguous(),
        check_rows(text, "text", MIN_SAMPLES).double().contiguous(),
    )
    dim = whole.text.shape[1]
    check_same_dim(whole.image, dim, "image", "text")
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k: expected a whole number, got {type(k).__name__}.")
    if not 1 <= k <= dim:
        raise ValueError(f"k: expected 1 to {dim}, the number of dimensions, got {k}.")
    together = torch.cat(whole)
    check_spread(together.var(0).sum(), mean_of(together), image.dtype, "image, text")

    dimensions = _rank_dimensions(whole, k)
    accuracy = _recalls(
        *_discriminate(_select_dimensions(whole, dimensions), _select_dimensions(whole, dimensions))
    ).mean(0)
    recalls, single = _cross_validate(whole, k, make_generator(generator))
    order = single.argsort(descending=True, stable=True)
    labels = order[single[order] >= LABEL_ACCURACY]
    dtype = torch.promote_types(result_dtype(image), result_dtype(text))
    return LinearSeparability(
        accuracy.to(image.device, dtype),
        recalls.mean(0).to(image.device, dtype),
        dimensions.to(image.device),
        labels.to(image.device),
        single[labels].to(image.device, dtype),
        recalls.to(image.device, dtype),
    )


def _rank_dimensions(classes: _Classes, k: int) -> Tensor:
    """Rank dimensions by AUC, then d', then index; return the first k."""
    area = area_under_curve(*classes)
    distance = (classes.image.mean(0) - classes.text.mean(0)).abs() / _spread(classes)
    order = distance.argsort(descending=True, stable=True)
    folded = torch.maximum(area, 1 - area)
    return order[folded[order].argsort(descending=True, stable=True)][:k]


def _spread(classes: _Classes) -> Tensor:
    """Pooled standard deviation within the classes, kept above a millionth of the total one, ``(D,)``."""
    within = sum(((x - x.mean(0)).square().sum(0) for x in classes), torch.zeros_like(classes.image[0]))
    total = torch.cat(classes).std(0)
    pooled = (within / (len(classes.image) + len(classes.text) - 2)).sqrt()
    floor = torch.where(total > 0, MIN_SPREAD_SHARE * total, 1.0)  # a constant dimension carries no information: d' = 0
    return torch.maximum(pooled, floor)


def _select_dimensions(classes: _Classes, dimensions: Tensor) -> _Classes:
    return _Classes(*(x[:, dimensions] for x in classes))


def _discriminate(train: _Classes, test: _Classes) -> tuple[Tensor, Tensor]:
    """Samples of each class that LDA, fitted on ``train``, classifies correctly: two bool vectors.

    In units of the spread within the classes the pooled covariance has a unit diagonal; its pseudo-inverse handles
    dimensions that copy each other.
    """
    spread = _spread(train)
    means = [x.mean(0) / spread for x in train]
    centered = torch.cat([x / spread - mean for x, mean in zip(train, means, strict=True)])
    pooled = centered.T @ centered / (len(centered) - 2)
    pooled.diagonal().fill_(1)
    direction = torch.linalg.pinv(pooled, rtol=1e-10, hermitian=True) @ (means[0] - means[1])
    threshold = (means[0] + means[1]) @ direction / 2
    scores = [x / spread @ direction - threshold for x in test]
    return scores[0] > 0, scores[1] < 0  # a sample on the threshold counts as wrong


def _recalls(image_right: Tensor, text_right: Tensor) -> Tensor:
    """Share of each class that is classified correctly, ``(2, ...)``; their mean is the balanced accuracy."""
    return torch.stack([image_right.double().mean(0), text_right.double().mean(0)])


def _classify_midway(train: _Classes, test: _Classes) -> tuple[Tensor, Tensor]:
    """LDA on every dimension alone: the threshold lies midway between the means. Two bool ``(., D)``."""
    means = [x.mean(0) for x in train]
    sign, threshold = torch.sign(means[0] - means[1]), (means[0] + means[1]) / 2
    return (test.image - threshold) * sign > 0, (test.text - threshold) * sign < 0


def _cross_validate(whole: _Classes, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Held-out recalls of the best k, ``(2,)``, and balanced accuracy of every single dimension, ``(D,)``."""
    folds = []
    for x in whole:
        order = torch.randperm(len(x), generator=generator, device=generator.device)
        folds.append((order % FOLDS).to(x.device))  # the fold of each row: sizes differ by one at most
    best, single = [], []
    for fold in range(FOLDS):
        train = _Classes(*(x[at != fold] for x, at in zip(whole, folds, strict=True)))
        test = _Classes(*(x[at == fold] for x, at in zip(whole, folds, strict=True)))
        chosen = _rank_dimensions(train, k)
        best.append(_discriminate(_select_dimensions(train, chosen), _select_dimensions(test, chosen)))
        single.append(_classify_midway(train, test))
    pooled = [_recalls(*(torch.cat(side) for side in zip(*results, strict=True))) for results in (best, single)]
    return pooled[0], pooled[1].mean(0)
