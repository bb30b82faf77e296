"""Some rows of a batch, looked at before anything is added: what each is, in memory that is used again."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.linalg import add_gram, scratch
from clipconformity.functional.validation import is_in_range
from clipconformity.stream.row_sample import NO_KEY, Sample, assign_buckets, row_keys

if TYPE_CHECKING:
    from clipconformity.stream.layout import Layout

CHUNK = 512
"""Rows worked through at once on a CPU: their float64 copies stay in its cache."""
DEVICE_CHUNK = 4096
"""The same on a device."""


class Checked(NamedTuple):
    """Rows, and what one pass over them finds."""

    values: Tensor
    """The rows ``(N, D)`` as they came, zeros in place of bad ones."""
    norms: Tensor
    """Norm of each row ``(N,)`` float64; 1 of a bad one."""
    dots: Tensor | None
    """Product of each row with the reference's direction ``(N,)`` float64, where there is one."""
    total: Tensor
    """Sum of the rows ``(D,)`` float64."""
    good: Tensor
    """Whether a row is taken, ``(N,)``."""
    out_of_range: Tensor
    """Whether a bad row has a finite norm above 0, ``(N,)``."""


class Labelled(NamedTuple):
    """What rows came with."""

    groups: Tensor | None
    """What each is dealt by, ``(N,)``; None where that is its content."""
    ids: Tensor
    keys: Tensor | None
    """Keys of the row sample, where they are not those of each row's own content."""
    grouped: bool
    """Whether they came with groups."""


class Chunk(NamedTuple):
    """Rows with all that a stream adds up of them, but for what is of the size of the state."""

    checked: Checked
    whole: bool
    """Whether every row is known to be good; on a device it is not asked."""
    grouped: bool
    bucket: Tensor
    conformity: Tensor | None
    sampled: Sample | None
    """The rows that may come into the row sample."""

    @property
    def weight(self) -> Tensor:
        """1 of a good row, 0 of a bad one, ``(N,)`` float64."""
        return self.checked.good.double()

    @property
    def found(self) -> tuple[Tensor, Tensor | None]:
        """Norm and conformity of each row ``(N,)``; NaN of a bad one."""
        return self._of_good(self.checked.norms), None if self.conformity is None else self._of_good(self.conformity)

    def _of_good(self, values: Tensor) -> Tensor:
        return values if self.whole else torch.where(self.checked.good, values, float("nan"))


def examine_rows(layout: Layout, values: Tensor, labelled: Labelled, last_key: int | None) -> Chunk:
    """Find what there is to add of some rows; of the sample, those whose key is not beyond the last."""
    groups, keys = labelled.groups, labelled.keys
    if keys is None and (layout.max_samples or groups is None):
        keys = row_keys(values, groups)
    groups = keys if groups is None else groups
    assert groups is not None
    bucket = assign_buckets(groups, layout.buckets)
    checked, whole = check_chunk(
        values, _select_directions(layout, bucket if labelled.grouped else None, values.device)
    )
    conformity = None if checked.dots is None else checked.dots / checked.norms
    sampled = None
    if layout.max_samples and keys is not None:
        keys = keys if whole else torch.where(checked.good, keys, NO_KEY)
        columns = torch.stack([checked.norms] if conformity is None else [checked.norms, conformity], 1)
        rows = checked.values if layout.rows else values.new_empty(len(values), 0)
        sampled = Sample(rows, columns, keys, groups, labelled.ids, torch.ones_like(keys)).copy_rows(last_key)
    return Chunk(checked, whole, labelled.grouped, bucket, conformity, sampled)


def _select_directions(layout: Layout, rows_bucket: Tensor | None, device: torch.device) -> Tensor | None:
    """Give the reference's mean unit vector ``(D,)``, or for rows with groups one each, without their bucket."""
    if layout.direction is None or layout.grid is None:
        return None
    if rows_bucket is None or layout.between is None:
        return _copy_to(layout.direction, device)
    return _copy_to(layout.between, device)[rows_bucket]


@functools.lru_cache(maxsize=8)
def _copy_to(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy what every batch needs once: a copy from the host waits for the device."""
    with torch.inference_mode(False):
        return tensor.to(device)


def check_chunk(values: Tensor, directions: Tensor | None) -> tuple[Checked, bool]:
    """Take norms, products and sum in float64, with zeros in place of bad rows, and say whether all are known good."""
    exact = _to_float64(values)
    norms = torch.linalg.vector_norm(exact, dim=1)
    good = is_in_range(norms)
    whole = values.device.type == "cpu" and bool(good.all())
    out_of_range = torch.zeros_like(good) if whole else ~good & torch.isfinite(norms) & (norms > 0)
    if not whole:
        values = torch.where(good[:, None], values, 0.0)
        exact, norms = _to_float64(values), torch.where(good, norms, 1.0)
    dots = None
    if directions is not None:
        towards = directions.to(exact)
        dots = exact @ towards if towards.ndim == 1 else torch.linalg.vecdot(exact, towards)
    return Checked(values, norms, dots, exact.T @ exact.new_ones(len(exact)), good, out_of_range), whole


def compute_units(checked: Checked) -> Tensor:
    """Rows over their norms in float64, zero where bad, in memory that the next chunk takes."""
    return _to_float64(checked.values).mul_(checked.norms.reciprocal()[:, None])


def _to_float64(values: Tensor) -> Tensor:
    count, dim = values.shape
    return scratch("exact", (count, dim), torch.float64, values.device).copy_(values)


MIN_ROWS = 64
"""The fewest rows whose product in float32 saves more than it costs to add what it leaves out."""


def add_second_moment(total: Tensor, rows: Tensor, row_sum: Tensor, dtype: torch.dtype) -> None:
    """Add the outer products of rows to the upper triangle of ``(D, D)`` float64; the lower one is not set.

    The products are taken of the rows less their mean, in ``dtype``; of few rows in float64. In float32 that errs by
    1e-7 of the largest eigenvalue of the covariance. The mean's part is added in float64: with r of a row v less the
    rounded mean c, the sum of v v' is that of r r', plus c a' + a c' where a is the sum of the rows less N/2 c.

    Args:
        total: What is added to.
        rows: ``(N, D)``.
        row_sum: Their sum ``(D,)`` float64.
        dtype: Precision of the product.
    """
    count, mean = len(rows), row_sum / len(rows)
    if count < MIN_ROWS and rows.device.type == "cpu":
        with_mean = scratch("few", (count + 1, len(mean)), torch.float64, rows.device)
        torch.sub(rows, mean, out=with_mean[:-1])
        torch.mul(mean, count**0.5, out=with_mean[-1])  # what the products of the mean come to is one more row
        total.addmm_(with_mean.T, with_mean)
        return
    rounded = mean.to(dtype)
    centered = scratch("centered", (count, len(mean)), dtype, rows.device)
    torch.sub(rows, rounded.to(rows.dtype), out=centered)
    add_gram(total, centered)
    exact = rounded.double()
    rest = row_sum - (0.5 * count) * exact
    total.addmm_(torch.stack([exact, rest], 1), torch.stack([rest, exact]))
