"""Some rows of a stream: what they add to its state, found in one pass before anything is added."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from clipconformity.functional.linalg import scratch
from clipconformity.functional.validation import MAX_NORM, MIN_NORM, is_in_range
from clipconformity.stream.layout import RAW, SECOND_MOMENTS, UNIT
from clipconformity.stream.row_sample import NO_KEY, Sample, assign_buckets, hash_labels, row_keys
from clipconformity.stream.second_moment import SecondMoment, choose_precision

if TYPE_CHECKING:
    from clipconformity.stream.layout import Layout

CHUNK = 1024
"""Rows worked through at once on a CPU: their float64 copies stay in its cache."""
MAX_ROWS = 4096
"""Rows added to the state at once on a CPU: float32 sums of more lose digits, those of fewer cost more."""
MAX_BATCH = MAX_ROWS // 2
"""The most rows of a batch that is joined with others."""
MAX_DEVICE_ROWS = 32_768
"""The same on a device, if its memory allows."""
DEVICE_SHARE = 64
"""Rows that are added at once on a device take at most this part of its free memory."""


class LabelledRows(NamedTuple):
    """Rows with what they came with."""

    values: Tensor
    """The rows ``(N, D)``; as they came, until they are brought to the device and the precision of the state."""
    groups: Tensor | None = None
    """What each is dealt by, ``(N,)``; None where that is its content."""
    keys: Tensor | None = None
    """Keys of the row sample, where they are not those of each row's own content."""
    ids: Tensor | None = None
    """Hash of each id, on the CPU: that it is noted beside its word waits for no device."""
    words: list[str] | None = None
    """The ids; where they have no hashes, those of the sampled rows are found."""
    grouped: bool = False
    """Whether they came with groups."""

    def split(self, size: int) -> Iterator[LabelledRows]:
        """Cut into parts of ``size`` rows."""
        for start in range(0, len(self.values), size):
            part = slice(start, start + size)
            groups, keys, ids = (None if one is None else one[part] for one in (self.groups, self.keys, self.ids))
            words = None if self.words is None else self.words[part]
            yield LabelledRows(self.values[part], groups, keys, ids, words, self.grouped)

    def copy_labels(self) -> LabelledRows:
        """Copy the labels, which may be tensors of the caller."""
        if self.groups is self.keys is self.ids is None:
            return self
        groups, keys, ids = (None if one is None else one.clone() for one in (self.groups, self.keys, self.ids))
        return self._replace(groups=groups, keys=keys, ids=ids)

    @staticmethod
    def join_labels(parts: Sequence[LabelledRows], values: Tensor) -> LabelledRows:
        """Join the labels of parts of one kind, whose rows are ``values``."""
        if len(parts) == 1:
            return parts[0]._replace(values=values)
        groups, keys, ids = (
            None if columns[0] is None else torch.cat(columns)
            for columns in zip(*((part.groups, part.keys, part.ids) for part in parts), strict=True)
        )
        words = None if parts[0].words is None else [word for part in parts for word in part.words or ()]
        return LabelledRows(values, groups, keys, ids, words, parts[0].grouped)


class RowValues(NamedTuple):
    """Values of each row, float64; NaN for a bad row."""

    norm: Tensor
    """Norm of the raw row, ``(N,)``."""
    conformity: Tensor | None
    """Conformity to the layout's direction, ``(N,)``; None where there is none."""


class Sums(NamedTuple):
    """What some rows add to a state. The large tensors are in memory that the next ones take."""

    rows: LabelledRows
    norms: Tensor
    """Norm of each row as it came ``(N,)`` float64."""
    conformity: Tensor | None
    """Conformity of each to the layout's direction ``(N,)`` float64, where there is one; 0 of a bad row."""
    good: Tensor
    """Whether a row is taken, ``(N,)``."""
    whole: bool
    """Whether every row is known to be good; on a device it is not asked."""
    bucket: Tensor
    raw_sum: Tensor
    unit_sum: Tensor
    """Sum of the unit vectors of each bucket ``(G, D)`` float64."""
    second_moments: dict[str, SecondMoment]
    sampled: Sample | None
    """The rows that may come into the row sample, with their places among the rows as ids."""

    @property
    def out_of_range(self) -> Tensor:
        """Whether a bad row has a finite norm above 0, ``(N,)``."""
        return ~self.good & torch.isfinite(self.norms) & (self.norms > 0)

    @property
    def found(self) -> RowValues:
        """What there is of each row."""
        conformity = None if self.conformity is None else self._of_good(self.conformity)
        return RowValues(self._of_good(self.norms), conformity)

    def _of_good(self, values: Tensor) -> Tensor:
        return values if self.whole else torch.where(self.good, values, float("nan"))


class _Pass:
    """Sums over the chunks of some rows."""

    def __init__(self, layout: Layout, rows: Tensor) -> None:
        self.on_cpu = rows.device.type == "cpu"
        dtype = choose_precision(rows)
        self.raw_sum = torch.zeros(layout.dim, dtype=torch.float64, device=rows.device)
        self.unit_sum = scratch("unit sum", (layout.buckets, layout.dim), torch.float64, rows.device).zero_()
        self.second_moments = {name: SecondMoment(name, dtype) for name in SECOND_MOMENTS if getattr(layout, name)}
        self.norms: list[Tensor] = []
        self.conformity: list[Tensor] = []
        self.values: list[Tensor] = []
        self.whole = self.on_cpu

    def add(self, values: Tensor, bucket: Tensor, directions: Tensor | None) -> None:
        """Take in a chunk ``(n, D)``, in float64, with zeros in place of bad rows."""
        exact = _to_float64(values)
        norms = torch.linalg.vector_norm(exact, dim=1)
        self.norms.append(norms)
        if not (self.on_cpu and _are_in_range(norms)):
            self.whole = False
            good = is_in_range(norms)
            values = torch.where(good[:, None], values, 0.0)
            exact, norms = _to_float64(values), torch.where(good, norms, 1.0)
        self.values.append(values)
        ones = exact.new_ones(len(exact))
        total = exact.T @ ones
        self.raw_sum += total
        if directions is not None:
            towards = directions.to(exact)
            dots = exact @ towards if towards.ndim == 1 else torch.linalg.vecdot(exact, towards)
            self.conformity.append(dots / norms)
        if RAW in self.second_moments:
            self.second_moments[RAW].add(values, total)
        units = exact.mul_(norms.reciprocal()[:, None])
        self.unit_sum.index_add_(0, bucket, units)
        if UNIT in self.second_moments:
            self.second_moments[UNIT].add(units, units.T @ ones)


def sum_rows(layout: Layout, rows: LabelledRows, last_key: int | None = None) -> Sums:
    """Find what rows add to a state: one row or more, at most as many as :func:`max_rows`.

    Args:
        layout: What is accumulated.
        rows: The rows.
        last_key: Key beyond which no row comes into the row sample, where that is known.
    """
    values, keys, groups = rows.values, rows.keys, rows.groups
    if keys is None and (layout.max_samples or groups is None):
        keys = row_keys(values, groups)
    groups = keys if groups is None else groups
    assert groups is not None
    bucket = assign_buckets(groups, layout.buckets)
    run, size = _Pass(layout, values), CHUNK if values.device.type == "cpu" else len(values)
    for part, own in zip(values.split(size), bucket.split(size), strict=True):
        run.add(part, own, _select_directions(layout, own if rows.grouped else None, values.device))
    norms, conformity = torch.cat(run.norms), torch.cat(run.conformity) if run.conformity else None
    good, sampled = is_in_range(norms), None
    if layout.max_samples and keys is not None:
        keys = keys if run.whole else torch.where(good, keys, NO_KEY)
        length = norms if run.whole else torch.where(good, norms, 1.0)
        columns = torch.stack([length] if conformity is None else [length, conformity], 1)
        cleaned = values if run.whole else torch.cat(run.values)
        own_rows = cleaned if layout.rows else values.new_empty(len(values), 0)
        places = torch.arange(len(values), device=values.device)
        sampled = Sample(own_rows, columns, keys, groups, places, torch.ones_like(keys)).copy_rows(last_key)
    return Sums(
        rows, norms, conformity, good, run.whole, bucket, run.raw_sum, run.unit_sum, run.second_moments, sampled
    )


def max_rows(dim: int, device: torch.device) -> int:
    """Find how many rows are added to a state at once: on a device as its free memory allows."""
    return MAX_ROWS if device.type != "cuda" else _fit_rows(dim, device)


@functools.lru_cache(maxsize=32)
def _fit_rows(dim: int, device: torch.device) -> int:
    """Ask the device once."""
    free, _ = torch.cuda.mem_get_info(device)
    return max(CHUNK, min(MAX_DEVICE_ROWS, free // (DEVICE_SHARE * dim * 8)))


def name_sampled(sums: Sums, names: dict[int, str]) -> Sample | None:
    """Give the sampled rows their ids, 0 where there are none, and note the words behind them."""
    sampled, ids, words = sums.sampled, sums.rows.ids, sums.rows.words
    if sampled is None:
        return None
    places = sampled.ids
    if words is None:
        return sampled._replace(ids=torch.zeros_like(places) if ids is None else ids[places])
    every = len(places) == len(words)  # in order; a device is not asked for the places
    own = words if every else [words[place] for place in places.tolist()]
    if ids is None:
        ids = hash_labels(own, len(own), torch.device("cpu"), "ids")
    elif not every:
        ids = ids[places]
    names.update(zip(ids.tolist(), own, strict=True))
    return sampled._replace(ids=ids.to(places.device))


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


def _are_in_range(norms: Tensor) -> bool:
    """Whether all norms are valid, on a CPU; NaN is not."""
    low, high = torch.aminmax(norms)
    return float(low) >= MIN_NORM and float(high) <= MAX_NORM


def _to_float64(values: Tensor) -> Tensor:
    count, dim = values.shape
    return scratch("exact", (count, dim), torch.float64, values.device).copy_(values)
