"""The gap between the modalities of streamed pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.divergence import MIN_SAMPLES, conformity_kl
from clipconformity.functional.linalg import units
from clipconformity.functional.resampling import jackknife_error
from clipconformity.stream.moments import Layout
from clipconformity.stream.readouts.base import Field
from clipconformity.stream.readouts.conformity import own_set_values
from clipconformity.stream.row_sample import NO_KEY, mix, row_keys
from clipconformity.stream.stream import Stream

IMAGE, TEXT = "image", "text"
FIELDS = (
    Field("modality_gap", "distance of the means of unit embeddings", error="modality_gap_se"),
    Field("modality_gap_se", "standard error of the gap"),
    Field("raw_modality_gap", "distance of the means of raw embeddings", "raw units"),
    Field("matched_cosine", "mean cosine of the pairs", "cosine"),
    Field("modality_kl", "KL of the images' own-set conformity from the texts'", "nats"),
)


def pair_layouts(dim: int, max_samples: int) -> dict[str, Layout]:
    """Say what the two modalities accumulate."""
    return {side: Layout(dim, max_samples=max_samples) for side in (IMAGE, TEXT)}


def take_in(stream: Stream, image: Tensor, text: Tensor) -> Tensor:
    """Take pairs into both sides, keyed by the pair so that both keep the same ones; give the sum of their cosines."""
    pairs = mix(row_keys(image, None) ^ (row_keys(text, None) << 1), 5)
    keys = mix(pairs, 2) & NO_KEY  # of the pair alone: both sides hold the same pairs in the same order
    for side, rows in ((IMAGE, image), (TEXT, text)):
        stream.sides[side].update(rows, pairs, keys=keys)
    cosine = (units(image.double()) * units(text.double())).sum(1)
    return torch.where(torch.isfinite(cosine), cosine, 0.0).sum()  # the rest is bad, and refused by compute


def read(stream: Stream, matched_sum: Tensor) -> dict[str, Tensor]:
    """Give the figures of ``FIELDS``.

    Args:
        stream: Both sides.
        matched_sum: Sum of the pairs' cosines.

    Raises:
        ValueError: If there are too few pairs, or some rows are bad.
    """
    image, text = (stream.checked(side, min_samples=MIN_SAMPLES) for side in (IMAGE, TEXT))
    apart = image["unit_sum"] - text["unit_sum"]  # (G, D): a pair is in one bucket
    count, total = image["count"], image.total
    left_out = torch.linalg.vector_norm(apart.sum(0) - apart, dim=1) / (total - count)
    return {
        "modality_gap": torch.linalg.vector_norm(apart.sum(0)) / total,
        "modality_gap_se": jackknife_error(left_out, count),
        "raw_modality_gap": torch.linalg.vector_norm(image.mean - text.mean),
        "matched_cosine": matched_sum.to(total) / total,
        "modality_kl": conformity_kl(own_set_values(image), own_set_values(text)),
    }
