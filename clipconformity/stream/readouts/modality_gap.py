"""The gap between the modalities of streamed pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.divergence import MIN_SAMPLES, conformity_kl
from clipconformity.functional.linalg import units
from clipconformity.functional.resampling import jackknife, jackknife_error, mean_error
from clipconformity.stream.layout import Layout
from clipconformity.stream.moments import BUCKETS, Moments, assign_buckets
from clipconformity.stream.readouts.base import Field
from clipconformity.stream.readouts.conformity import own_set_values
from clipconformity.stream.row_sample import NO_KEY, Labels, Sample, hash_labels, mix, row_keys
from clipconformity.stream.stream import Stream

IMAGE, TEXT = "image", "text"
FIELDS = (
    Field("modality_gap", "distance of the means of unit embeddings", error="modality_gap_se",
          interval=("modality_gap_low", "modality_gap_high")),
    Field("modality_gap_se", "standard error of the gap"),
    Field("modality_gap_low", "low end of the 95% interval of the population's gap"),
    Field("modality_gap_high", "high end of the 95% interval of the population's gap"),
    Field("modality_gap_null", "gap that such pairs have by chance where the means are one"),
    Field("squared_modality_gap", "squared gap of the population, without bias: may be negative where there is none"),
    Field("raw_modality_gap", "distance of the means of raw embeddings", "raw units"),
    Field("matched_cosine", "mean cosine of the pairs", "cosine", error="matched_cosine_se"),
    Field("matched_cosine_se", "standard error of the mean cosine of the pairs", "cosine"),
    Field("modality_kl", "KL of the images' own-set conformity from the texts'", "nats"),
)  # fmt: skip


def pair_layouts(dim: int, max_samples: int) -> dict[str, Layout]:
    """Make the layouts of the two modalities."""
    return {side: Layout(dim, max_samples=max_samples) for side in (IMAGE, TEXT)}


def take_in(stream: Stream, image: Tensor, text: Tensor, groups: Labels | None = None) -> Tensor:
    """Accumulate pairs on both sides, keyed by pair so that both samples keep the same ones.

    Without groups, the bucket of a pair depends on its content, so that equal pairs share it.

    Returns:
        Sum of the cosines of the pairs of each bucket, ``(G,)``.
    """
    pairs = mix(row_keys(image, None) ^ (row_keys(text, None) << 1), 5)
    own = pairs if groups is None else hash_labels(groups, len(image), image.device)
    content = pairs if groups is None else pairs ^ mix(own, 4)
    keys = mix(content, 2) & NO_KEY  # from the pair alone: both sides hold the same pairs in the same order
    for side, rows in ((IMAGE, image), (TEXT, text)):
        stream.sides[side].update(rows, own, keys=keys)
    cosine = (units(image.double()) * units(text.double())).sum(1)
    cosine = torch.where(torch.isfinite(cosine), cosine, 0.0)  # invalid rows, refused by compute
    return cosine.new_zeros(BUCKETS).index_add_(0, assign_buckets(own), cosine)


def read(stream: Stream, matched_sum: Tensor) -> dict[str, Tensor]:
    """Return the figures of ``FIELDS``.

    Args:
        stream: Both sides.
        matched_sum: Sum of the pairs' cosines in each bucket, ``(G,)``.

    Raises:
        ValueError: If there are too few pairs, or invalid rows.
    """
    image, text = (stream.read_side(side, min_samples=MIN_SAMPLES) for side in (IMAGE, TEXT))
    apart = image["unit_sum"] - text["unit_sum"]  # (G, D): a pair is in one bucket
    count, total = image["count"], image.total
    gap = torch.linalg.vector_norm(apart.sum(0)) / total
    left_out = torch.linalg.vector_norm(apart.sum(0) - apart, dim=1) / (total - count)
    matched = matched_sum.to(total)
    return {
        "modality_gap": gap,
        "modality_gap_se": jackknife_error(left_out, count),
        **_compute_squared(apart, count, gap),
        "raw_modality_gap": torch.linalg.vector_norm(image.mean - text.mean),
        "matched_cosine": matched.sum() / total,
        "matched_cosine_se": mean_error(matched, count),
        "modality_kl": conformity_kl(*(own_set_values(side, side.good_sample().cpu()) for side in (image, text))),
    }


def _compute_squared(apart: Tensor, count: Tensor, gap: Tensor) -> dict[str, Tensor]:
    """Compute the squared gap over pairs of different buckets only, which is unbiased, and its dependent fields."""
    own = apart.square().sum(1)

    def mean(square: Tensor, inner: Tensor, pairs: Tensor) -> Tensor:
        return torch.where(pairs > 0.5, (square - inner) / pairs, float("nan"))

    total, squares = count.sum(), count.square()
    whole = mean(apart.sum(0).square().sum(), own.sum(), total.square() - squares.sum())
    left = (apart.sum(0) - apart).square().sum(1)
    without = mean(left, own.sum() - own, (total - count).square() - (squares.sum() - squares))
    low, high = (torch.tensor(x, dtype=torch.float64) for x in jackknife(whole, without, count).interval())
    return {
        "modality_gap_low": low.clamp_min(0).sqrt(),
        "modality_gap_high": high.clamp_min(0).sqrt(),
        "modality_gap_null": (gap.square() - whole).clamp_min(0).sqrt(),
        "squared_modality_gap": whole,
    }


def choose_independent_pairs(image: Moments, text: Moments) -> tuple[Tensor, Tensor]:
    """Choose one sampled pair of each group, ``(k, D)`` each; without groups all pairs."""
    samples: list[Sample] = [side.good_sample() for side in (image, text)]
    keys, group = samples[0].keys, samples[0].groups.unique(return_inverse=True)[1]
    first = torch.full_like(keys, NO_KEY).scatter_reduce(0, group, keys, "amin")
    kept = keys == first[group]  # equal pairs share a key
    return samples[0].rows[kept], samples[1].rows[kept]
