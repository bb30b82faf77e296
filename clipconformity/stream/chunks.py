"""Some rows of a batch, looked at before anything is added: what each is, in memory that is used again."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.linalg import add_gram, scratch
from clipconformity.functional.validation import is_in_range
from clipconformity.stream.row_sample import NO_KEY, Sample, assign_buckets, row_keys

if TYPE_CHECKING:
    from clipconformity.stream.moments import Layout

CHUNK = 512
"""Rows worked through at once on a CPU: their float64 copies stay in its cache."""
DEVICE_CHUNK = 4096
"""The same on a device."""


class Checked(NamedTuple):
    """Rows and which of them count."""

    values: Tensor
    """The rows ``(N, D)`` as they came, zeros in place of bad ones."""
    exact: Tensor
    """The same in float64, in memory that the next chunk takes."""
    norms: Tensor
    """Norm of each row ``(N,)`` float64; 1 of a bad one."""
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


def look(layout: Layout, values: Tensor, labelled: Labelled, last_key: int | None) -> Chunk:
    """Find what there is to add of some rows; of the sample, those whose key is not beyond the last."""
    checked, whole = check_chunk(values)
    groups, keys = labelled.groups, labelled.keys
    if keys is None and (layout.max_samples or groups is None):
        keys = row_keys(checked.values, groups)
    keys = keys if keys is None or whole else torch.where(checked.good, keys, NO_KEY)
    groups = keys if groups is None else groups
    assert groups is not None
    bucket = assign_buckets(groups, layout.buckets)
    conformity = _towards_reference(layout, checked, bucket, labelled.grouped)
    sampled = None
    if layout.max_samples and keys is not None:
        columns = torch.stack([checked.norms] if conformity is None else [checked.norms, conformity], 1)
        rows = checked.values if layout.rows else values.new_empty(len(values), 0)
        sampled = Sample(rows, columns, keys, groups, labelled.ids, torch.ones_like(keys)).copy_rows(last_key)
    return Chunk(checked, whole, labelled.grouped, bucket, conformity, sampled)


def _towards_reference(layout: Layout, checked: Checked, bucket: Tensor, grouped: bool) -> Tensor | None:
    """Conformity of rows to the reference, ``(N,)``."""
    if layout.direction is None or layout.grid is None:
        return None
    exact = checked.exact
    if grouped and layout.between is not None:
        return (exact * layout.between.to(exact)[bucket]).sum(1) / checked.norms
    return exact @ layout.direction.to(exact) / checked.norms


def check_chunk(values: Tensor) -> tuple[Checked, bool]:
    """Take norms in float64, put zeros in place of bad rows, and say whether there are none of these."""
    exact = _exact(values)
    norms = torch.linalg.vector_norm(exact, dim=1)
    good = is_in_range(norms)
    whole = values.device.type == "cpu" and bool(good.all())
    out_of_range = torch.zeros_like(good) if whole else ~good & torch.isfinite(norms) & (norms > 0)
    if not whole:
        values = torch.where(good[:, None], values, 0.0)
        exact, norms = _exact(values), torch.where(good, norms, 1.0)
    return Checked(values, exact, norms, good, out_of_range), whole


def exact_again(checked: Checked) -> Tensor:
    """Give the rows in float64 anew, where another chunk may have taken their memory; as ``Checked.exact``."""
    return _exact(checked.values)


def _exact(values: Tensor) -> Tensor:
    count, dim = values.shape
    return scratch("exact", (count, dim), torch.float64, values.device).copy_(values)


def unit_rows(exact: Tensor, norms: Tensor) -> Tensor:
    """Rows over their norms, in memory that the next sum takes."""
    units = scratch("units", (len(norms), exact.shape[1]), torch.float64, exact.device)
    return torch.div(exact, norms[:, None], out=units)


def add_second_moment(total: Tensor, rows: Tensor, center: Tensor) -> None:
    """Add the outer products of float64 rows of the mean ``center`` to ``(D, D)``.

    A float32 Gram matrix errs by 1e-7 of the largest eigenvalue, which is 1% of the smallest at a condition of 1e5, and
    differently for every size of batch. In float64 the covariance is that of the rows as they are. They are centred for
    the sum: squares far from the origin would round the more. Their mean goes in as one more row.
    """
    centered = scratch("units", (len(rows) + 1, len(center)), torch.float64, rows.device)
    torch.sub(rows, center, out=centered[:-1])
    torch.mul(center, len(rows) ** 0.5, out=centered[-1])
    add_gram(total, centered)
