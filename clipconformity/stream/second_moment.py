"""Second moments of rows that come chunk by chunk, from products about a fixed centre."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.linalg import gram_panels, scratch

MIN_DIM = 256
"""The fewest dimensions for which products in float32 save time."""


def choose_precision(rows: Tensor) -> torch.dtype:
    """Choose the precision of the products of rows ``(N, D)``: their own, where that saves time and costs no digits.

    Of fewer rows than dimensions the covariance is singular, and roots of its rounding show in a Frechet distance.
    """
    count, dim = rows.shape
    return rows.dtype if count >= dim >= MIN_DIM else torch.float64


class SecondMoment:
    """Sum of the outer products of rows, taken about the mean of the first chunk.

    Float32 products of the rows as they are would lose the covariance of an ellipsoid far from the origin. With r a row
    v less the centre c, which is rounded to ``dtype``, the sum of v v' is that of r r', plus c a' + a c' where a is the
    sum of the rows less N/2 c. The products err by 1e-7 of the largest eigenvalue of the covariance.

    Args:
        name: Name of its memory, which the next one of that name takes.
        dtype: Precision of the products.
    """

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name = name
        self.dtype = dtype
        self.count = 0
        self.row_sum = self.center = torch.empty(0)
        self.panels: list[tuple[slice, slice, Tensor]] = []

    def add(self, rows: Tensor, row_sum: Tensor) -> None:
        """Add rows ``(N, D)``, whose sum is ``(D,)`` float64."""
        first = not self.count
        if first:
            self.center = (row_sum / len(rows)).to(self.dtype)
            self.row_sum = torch.zeros_like(row_sum)
            self.panels = self._open_panels(rows)
        self.count += len(rows)
        self.row_sum += row_sum
        centered = scratch("centered", (len(rows), rows.shape[1]), self.dtype, rows.device)
        torch.sub(rows, self.center.to(torch.promote_types(rows.dtype, self.dtype)), out=centered)
        for across, down, panel in self.panels:
            left, right = centered[:, across].T, centered[:, down]
            if first:
                torch.mm(left, right, out=panel)
            else:
                panel.addmm_(left, right)

    def _open_panels(self, rows: Tensor) -> list[tuple[slice, slice, Tensor]]:
        dim = rows.shape[1]
        return [
            (
                slice(start, end),
                slice(start, dim),
                scratch(f"{self.name} {start}", (end - start, dim - start), self.dtype, rows.device),
            )
            for start, end in gram_panels(rows)
        ]

    def add_to(self, total: Tensor) -> None:
        """Add the sum to the upper triangle of ``(D, D)`` float64; what is below it is not set."""
        if not self.count:
            return
        for across, down, panel in self.panels:
            total[across, down].add_(panel)
        center = self.center.double()
        rest = self.row_sum - (0.5 * self.count) * center
        total.addmm_(torch.stack([center, rest], 1), torch.stack([rest, center]))
