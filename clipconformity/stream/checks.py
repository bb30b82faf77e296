"""Checks of a stream when it is read out, and of normalised embeddings."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.validation import MAX_NORM, MIN_NORM
from clipconformity.stream.moments import UNIT_TOLERANCE, Moments


def check_stream(moments: Moments, allow_normalized: bool, min_samples: int = 2) -> None:
    """Raise an error for invalid rows that a stream counted: bad, normalised or too few rows.

    Raises:
        ValueError: For any of them, with advice.
    """
    bad, out_of_range, total = (int(x) for x in (moments["bad"], moments["out_of_range"], moments.total))
    came = bad + out_of_range + total
    if bad:
        raise ValueError(
            f"{bad} of {came} embeddings were zero or held NaN or infinite values; "
            "remove them, or look at the model that made them."
        )
    if out_of_range:
        raise ValueError(
            f"{out_of_range} of {came} embeddings had a norm outside {MIN_NORM:g} to {MAX_NORM:g}; "
            "rescale the embeddings."
        )
    if total < min_samples:
        raise ValueError(f"expected at least {min_samples} samples, got {total}; add more.")
    if 0 < float(moments["grouped"]) < total:
        raise ValueError("groups: some samples came with group ids and some without; give them for all or for none.")
    if not allow_normalized and moments.normalized:
        raise ValueError(_NORMALIZED.format(total))


def refuse_normalized(embeddings: Tensor, name: str = "embeddings") -> None:
    """Refuse embeddings ``(N, D)`` that all have norm 1.

    Raises:
        ValueError: If they were L2-normalised, with advice.
    """
    norms = torch.linalg.vector_norm(embeddings.float(), dim=1)
    if len(norms) and bool(((norms - 1).abs() < UNIT_TOLERANCE).all()):
        raise ValueError(f"{name}: {_NORMALIZED.format(len(norms))}")


_NORMALIZED = (
    "all {} embeddings have norm 1: they were L2-normalised, and the norms and the geometry are lost. Use the "
    "projection output before normalisation (get_image_features in transformers, encode_image with normalize=False in "
    "open_clip), or allow it (allow_normalized=True, --allow-normalized) if conformity is all that is needed."
)
