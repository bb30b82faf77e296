"""The nearest row of each sample in whole files, such as those of a training set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipconformity.functional.neighbours import nearest
from clipconformity.functional.resampling import Estimate, estimate_share, jackknife
from clipconformity.stream.copies import DUPLICATE, MAX_SHOWN, is_close
from clipconformity.stream.moments import BUCKETS
from clipconformity.stream.readouts.base import Field

ENDS = ("training_copied_share_low", "training_copied_share_high")
FIELDS = (
    Field("training_nearest_cosine", "mean cosine of a sample to the nearest row of --against", "cosine",
          error="training_nearest_se"),
    Field("training_nearest_se", "its standard error, those rows taken as they are", "cosine"),
    Field("training_copied_share", f"share of the samples with a near-duplicate ({DUPLICATE} or more) among them",
          interval=ENDS),
    Field(ENDS[0], "low end of its 95% interval, those rows taken as they are"),
    Field(ENDS[1], "high end of its 95% interval, likewise"),
)  # fmt: skip


class NearestElsewhere:
    """Nearest row so far of each sample, in sets other than the reference.

    Args:
        rows: The samples, ``(N, D)``.
        buckets: Their buckets, for the uncertainty, ``(N,)``.
    """

    def __init__(self, rows: Tensor, buckets: Tensor) -> None:
        self.rows, self.buckets = rows, buckets
        self.cosine = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
        self.names = [""] * len(rows)
        self.count = 0

    def update(self, others: Tensor, ids: list[str]) -> None:
        """Search further rows ``(M, D)`` with these names."""
        cosine, index = nearest(self.rows, others)
        nearer = (cosine[:, 0] > self.cosine).nonzero()[:, 0]
        self.cosine[nearer] = cosine[nearer, 0].double()
        for row, place in zip(nearer.tolist(), index[nearer, 0].tolist(), strict=True):
            self.names[row] = ids[place]
        self.count += len(others)

    def read(self) -> dict[str, Tensor]:
        """Return the fields; only the samples count as drawn from a population."""
        copied = self._mean(is_close(self.cosine))
        near = self._mean(self.cosine)
        low, high = estimate_share(copied, float(len(self.rows)))
        values = (near.value, near.error, copied.value, low, high)
        return {
            field.name: torch.as_tensor(value, dtype=torch.float64) for field, value in zip(FIELDS, values, strict=True)
        }

    def details(self, ids: Sequence[str]) -> dict[str, Any]:
        """Name the samples that are near-duplicates, the nearest first."""
        order = self.cosine.argsort(descending=True, stable=True).tolist()
        close = [row for row in order if self.cosine[row] >= DUPLICATE]
        named = [
            {"id": ids[row], "training_id": self.names[row], "cosine": float(self.cosine[row])}
            for row in close[:MAX_SHOWN]
        ]
        return {"threshold": DUPLICATE, "looked_at": self.count, "count": len(close), "copied": named}

    def columns(self) -> dict[str, list[float | str]]:
        """Return the columns of the per-sample CSV."""
        return {"training_id": [*self.names], "training_cosine": self.cosine.tolist()}

    def _mean(self, values: Tensor) -> Estimate:
        count = torch.bincount(self.buckets, minlength=BUCKETS).double()
        sums = torch.zeros_like(count).index_add_(0, self.buckets, values)
        return jackknife(values.mean(), (values.sum() - sums) / (count.sum() - count), count)
