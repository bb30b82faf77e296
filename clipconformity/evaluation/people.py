"""Human captions as the yardstick of captioners: one caption of every image against the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipconformity.data.captions import ImageId
from clipconformity.functional.resampling import student_quantile
from clipconformity.stream.readouts.conformity import ConformityReadOut
from clipconformity.stream.readouts.conformity_kl import ConformityKLReadOut
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.stream import Stream


class HumanSpread(NamedTuple):
    """How far one human caption per image lies from the others: a yardstick for captioners.

    Each field has a value for every fold ``(K,)``, float64.
    """

    conformity_kl: Tensor
    """KL of the left-out captions' conformity from the others', nats."""
    typicality_shift: Tensor
    """Difference of the mean conformities over the others' standard deviation."""
    variety_ratio: Tensor
    """Mean cosine distance of two left-out captions over that of two others."""
    spread_ratio: Tensor
    """Ratio of the standard deviations of conformity."""
    self_conformity: Tensor
    """Self-conformity of the left-out captions."""

    def one_more(self, quantity: str = "typicality_shift") -> tuple[float, float]:
        """95% prediction interval for one more person, by Student's t over the folds.

        A captioner outside it differs from people. One more person would be outside the range of the folds themselves
        in a quarter of cases.

        Args:
            quantity: Name of a field.

        Raises:
            ValueError: If there are fewer than two folds, or the field is unknown.
        """
        values = self._asdict().get(quantity)
        if values is None or len(values) < 2:
            raise ValueError(f"one_more: expected a field and two folds at least, got {quantity!r} and {len(self[0])}.")
        count = len(values)
        half = student_quantile(0.975, count - 1) * float(values.std()) * (1 + 1 / count) ** 0.5
        return float(values.mean()) - half, float(values.mean()) + half


def human_spread(
    embeddings: Tensor,
    groups: Sequence[ImageId] | Tensor,
    *,
    folds: int | None = None,
    seed: int = 0,
    allow_normalized: bool = False,
) -> HumanSpread:
    """Score one human caption of every image against the other captions of the same images.

    The captions of each image are put in a seeded order. Fold k leaves out the k-th of every image, as if it were a
    captioner's, and uses the rest as the reference. Differences among the folds, and their distance from 0, are the
    variation between people: a captioner inside it is as typical as a person. Score it in the same way, against the
    same images; its reference has one more caption per image, which changes the figures by far less.

    Args:
        embeddings: Raw embeddings of all human captions, ``(N, D)``.
        groups: The image of each caption, ``(N,)``.
        folds: Number of captions to leave out in turn; by default the smallest number per image.
        seed: Seed of the order.
        allow_normalized: Accept L2-normalised embeddings.

    Raises:
        ValueError: If shapes do not fit, or an image has fewer than two captions, or fewer than ``folds``.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> captions = 3 + torch.randn(100, 1, 8, generator=g) + torch.randn(100, 5, 8, generator=g)
        >>> spread = human_spread(captions.view(500, 8), torch.arange(100).repeat_interleave(5))
        >>> len(spread.conformity_kl), bool(spread.typicality_shift.abs().max() < 0.5)
        (5, True)
    """
    names = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if embeddings.ndim != 2 or len(embeddings) != len(names):
        raise ValueError(f"expected embeddings (N, D) and N groups, got {tuple(embeddings.shape)} and {len(names)}.")
    rows: dict[ImageId, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    least = min((len(own) for own in rows.values()), default=0)
    count = least if folds is None else folds
    if least < 2 or not 1 <= count <= least:
        raise ValueError(
            f"human_spread: needs two captions of every image or more, and at least {count} for {count} folds; "
            f"one image has {least}."
        )
    draw = np.random.default_rng(seed)
    orders = [[own[place] for place in draw.permutation(len(own)).tolist()] for own in rows.values()]
    places = {name: number for number, name in enumerate(rows)}
    image = torch.tensor([places[name] for name in names])
    found = []
    for fold in range(count):
        left = torch.tensor([own[fold] for own in orders])
        others = torch.tensor([row for own in orders for place, row in enumerate(own) if place != fold])
        reference = ReferenceSet.fit(
            embeddings[others], groups=image[others], modality="text", allow_normalized=allow_normalized
        )
        values = _compute_figures(embeddings[left], image[left], reference)
        keys = ("conformity_kl", "typicality_shift", "variety_ratio", "spread_ratio", "self_conformity_mean")
        found.append([float(values[key]) for key in keys])
    return HumanSpread(*torch.tensor(found, dtype=torch.float64).T)


def _compute_figures(embeddings: Tensor, groups: Tensor, reference: ReferenceSet) -> dict[str, Tensor]:
    """Compute the figures of one set against a reference; no caption is compared with others of its image."""
    parts = (ConformityReadOut(), ConformityKLReadOut())
    stream = Stream.open_against(reference, parts[0].needs, max_samples=reference.max_samples)
    stream.update(embeddings, groups=groups)
    return {name: value for part in parts for name, value in part.read(stream).items()}
