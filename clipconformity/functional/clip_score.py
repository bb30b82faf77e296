"""CLIPScore: how well an image and a text match, and RefCLIPScore, with reference captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipconformity.functional.linalg import full_precision, result_dtype, units
from clipconformity.functional.validation import check_pairs, check_rows, check_same_dim

WEIGHT = 2.5
"""Factor of the published CLIPScore, before its harmonic mean with the cosine to the references."""


@full_precision
def clip_score(image: Tensor, text: Tensor) -> Tensor:
    r"""CLIPScore of each pair, on the scale of torchmetrics: high is aligned.

    .. math:: 100 \max(\cos(v_i, w_i), 0)

    Hessel et al. give :math:`2.5 \max(\cos, 0)` instead, of texts that begin with "A photo depicts". Values of
    different encoders cannot be compared. It measures how well pairs match, which conformity does not, and not their
    variety.

    Args:
        image: Image embeddings ``(N, D)`` of any scale.
        text: Text embeddings ``(N, D)``, row i belonging to row i of ``image``.

    Returns:
        ``(N,)`` in [0, 100].

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If lengths or dimensions differ, or a row is zero, NaN or infinite.

    Source: Hessel et al., *CLIPScore: A Reference-free Evaluation Metric for Image Captioning*, EMNLP 2021.

    Example:
        >>> import torch
        >>> clip_score(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-2.0, 0.0]])).round()
        tensor([60.,  0.])
    """
    pair = check_pairs(image, text)
    dtype = torch.promote_types(result_dtype(image), result_dtype(text))
    return (100 * _compute_cosines(*pair)).to(image.device, dtype)


@full_precision
def ref_clip_score(image: Tensor, text: Tensor, references: Tensor | Sequence[Tensor]) -> Tensor:
    r"""RefCLIPScore of each caption, in percent: the harmonic mean of its fit to the image and to reference captions.

    .. math:: 100 \cdot H\left(2.5 \max(\cos(v_i, w_i), 0),\; \max_{r \in R_i} \max(\cos(w_i, r), 0)\right)

    Args:
        image: Image embeddings ``(N, D)`` of any scale.
        text: Embeddings ``(N, D)`` of the captions that are judged, row i belonging to row i of ``image``.
        references: Embeddings of the reference captions of each, ``(N, R, D)`` or N tensors ``(R_i, D)``, R_i >= 1.

    Returns:
        ``(N,)`` >= 0; 0 where either part is 0.

    Raises:
        TypeError: If an argument is not a floating-point tensor.
        ValueError: If lengths or dimensions differ, a caption has no reference, or a row is zero, NaN or infinite.

    Source: Hessel et al., EMNLP 2021.

    Example:
        >>> import torch
        >>> image, text = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])
        >>> ref_clip_score(image, text, [torch.tensor([[4.0, 3.0], [0.0, 1.0]])])
        tensor([104.3478])
    """
    pair = check_pairs(image, text)
    if len(references) != len(text):
        raise ValueError(f"references: expected those of each of the {len(text)} captions, got {len(references)}.")
    flat = check_rows(torch.cat([check_rows(own, "references") for own in references]), "references")
    check_same_dim(flat, pair[1].shape[1], "references", "text")
    sizes = [len(own) for own in references]
    near = _compute_cosines(flat, pair[1].repeat_interleave(torch.tensor(sizes, device=flat.device), 0))
    nearest = torch.stack([own.max() for own in near.split(sizes)])
    fit = WEIGHT * _compute_cosines(*pair)
    mean = torch.where(fit * nearest > 0, 2 * fit * nearest / (fit + nearest), 0.0)
    dtype = torch.promote_types(result_dtype(image), result_dtype(text))
    return (100 * mean).to(image.device, dtype)


def _compute_cosines(rows: Tensor, others: Tensor) -> Tensor:
    """Cosine of each row and its partner, at least 0 and at most 1, ``(N,)``."""
    return (units(rows) * units(others)).sum(1).clamp(0, 1)
