"""Scores of rows with partners of the other modality, summed by bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.clip_score import clip_score, ref_clip_score
from clipconformity.functional.resampling import Estimate, jackknife
from clipconformity.functional.validation import is_in_range
from clipconformity.stream.moments import BUCKETS, assign_buckets
from clipconformity.stream.row_sample import Labels, hash_labels, row_keys

SUMS = {"pair_count": (BUCKETS,), "pair_score_sum": (BUCKETS,), "pair_bad": ()}
"""Name and shape of the sums of :class:`MeanScore`."""


class Partners(NamedTuple):
    """Partners of each row of a batch: the captions of an image, or the image of a caption."""

    embeddings: Tensor
    """Embeddings of all partners, ``(M, D)``, in the order of the rows."""
    sizes: Sequence[int]
    """Number of partners of each row, ``(N,)``, at least 1."""
    references: Sequence[Tensor] | None = None
    """Reference captions of each row, where the rows are captions, N tensors ``(R, D)``."""

    def clip_scores(self, rows: Tensor) -> Tensor:
        """CLIPScore of each row ``(N,)`` float64, averaged over its partners; NaN for zero, NaN or infinite rows."""
        owner = torch.arange(len(rows), device=rows.device).repeat_interleave(
            torch.tensor(self.sizes, device=rows.device)
        )
        scores = pair_scores(rows[owner], self.embeddings)
        return torch.zeros(len(rows), dtype=torch.float64, device=rows.device).index_add_(
            0, owner, scores
        ) / owner.bincount(minlength=len(rows))

    def ref_clip_scores(self, rows: Tensor) -> Tensor:
        """RefCLIPScore of each row, which has one image ``(N,)`` float64."""
        assert self.references is not None
        return ref_clip_score(self.embeddings.to(rows.device), rows, self.references).double()


def pair_scores(rows: Tensor, others: Tensor) -> Tensor:
    """CLIPScore of pairs, ``(N,)`` float64; NaN where a row is zero, NaN or infinite."""
    others = others.to(rows.device)
    good = [is_in_range(torch.linalg.vector_norm(one, dim=1, dtype=torch.float64))[:, None] for one in (rows, others)]
    both = good[0] & good[1]
    if not len(rows):
        return rows.new_zeros(0, dtype=torch.float64)
    scores = clip_score(torch.where(both, rows, 1.0), torch.where(both, others, 1.0)).double()
    return torch.where(both[:, 0], scores, float("nan"))


class MeanScore:
    """Mean of a score over pairs, from sums by bucket.

    Args:
        state: The sums, as in ``SUMS``; by default new ones.
    """

    def __init__(self, state: dict[str, Tensor] | None = None) -> None:
        zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SUMS.items()}
        self.state = zeros if state is None else state

    def update(self, scores: Tensor, buckets: Tensor) -> None:
        """Add scores ``(N,)`` of pairs in buckets ``(N,)``; NaN scores are only counted."""
        device = self.state["pair_count"].device
        scores, buckets = scores.to(device), buckets.to(device)
        good = torch.isfinite(scores)
        self.state["pair_count"].index_add_(0, buckets, good.double())
        self.state["pair_score_sum"].index_add_(0, buckets, torch.where(good, scores, 0.0))
        self.state["pair_bad"].add_((~good).sum())

    def merge(self, other: MeanScore) -> MeanScore:
        """Add two sums into a new one."""
        return MeanScore({name: mine + other.state[name] for name, mine in self.state.items()})

    @property
    def total(self) -> Tensor:
        """Number of pairs."""
        return self.state["pair_count"].sum()

    def estimate(self) -> Estimate:
        """Mean with its uncertainty, buckets left out in turn.

        Raises:
            ValueError: As :meth:`leave_out_buckets`.
        """
        return jackknife(*self.leave_out_buckets())

    def leave_out_buckets(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean, the mean without each bucket, and the number of pairs in each, ``(G,)``.

        Raises:
            ValueError: If there are fewer than two pairs, or a row was zero, NaN or infinite.
        """
        count, sums, bad = (self.state[name] for name in ("pair_count", "pair_score_sum", "pair_bad"))
        if bad > 0:
            raise ValueError(
                f"{int(bad)} of {int(bad + self.total)} pairs held a row that was zero, NaN, infinite or out of range; "
                "remove them, or look at the model that made them."
            )
        if self.total < 2:
            raise ValueError(f"expected at least 2 samples, got {int(self.total)}; add more.")
        left = (sums.sum() - sums) / (count.sum() - count)
        return sums.sum() / self.total, left, count


def pair_buckets(rows: Tensor, groups: Labels | None, ids: Sequence[object] | None) -> Tensor:
    """Bucket of each pair, by its group, else by its id, else by the content of the row, ``(N,)``."""
    if groups is not None:
        return assign_buckets(hash_labels(groups, len(rows), rows.device))
    if ids is not None:
        return assign_buckets(hash_labels([str(one) for one in ids], len(rows), rows.device, "ids"))
    return assign_buckets(row_keys(rows, None))
