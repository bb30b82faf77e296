"""The additive statistics of a stream of raw embeddings, and the row sample.

Accumulate once, read out many ways: every tensor below adds up over batches, ranks and parts, in float64.
Rows are dealt into ``BUCKETS`` buckets, whole groups to one bucket, so that leaving out or redrawing buckets gives the
uncertainty of any read-out without keeping the rows. What is not additive comes from the rows of smallest
hash, which do not depend on the order of batches and merge like the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from clipconformity.functional._checks import full_precision, within_range, working
from clipconformity.functional._density import CELLS, Grid

BUCKETS = 256
"""Buckets that uncertainty is taken over: a standard error is known to 1/sqrt(2 * 256) = 4%."""
UNIT_TOLERANCE = 5e-3
"""A row counts as L2-normalised when its norm is this close to 1: float16 and bfloat16 round about so far."""
CHUNK = 4096
"""Rows worked through at once."""
CONTENT_BITS = 47
"""Bits of a row's key that tell the rows of one group apart; the other 16 are the group's."""
NO_KEY = torch.iinfo(torch.int64).max
SAMPLE = ("sample_rows", "sample_keys", "sample_groups", "sample_copies")
Groups: TypeAlias = "Sequence[int] | Sequence[str] | Tensor | np.ndarray"
State: TypeAlias = "dict[str, Tensor | list[Tensor]]"


@dataclass(frozen=True)
class Layout:
    """What a stream accumulates.

    Attributes:
        dim: Dimension D of the embeddings.
        buckets: Number of buckets G.
        direction: The reference's mean unit vector ``(D,)``, where conformity to it is accumulated.
        grid: Cells of the conformity histogram; goes with ``direction``.
        max_samples: Rows of the sample; 0 keeps none. With ``direction`` a row is (conformity, norm), else the
            embedding itself.
        second_moment: Whether the D x D second moment is accumulated.
    """

    dim: int
    buckets: int = BUCKETS
    direction: Tensor | None = None
    grid: Grid | None = None
    max_samples: int = 0
    second_moment: bool = False

    def zeros(self, device: torch.device | None = None) -> State:
        """Empty state: the identity of the merge."""

        def zero(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        state: State = {
            "count": zero(self.buckets),
            "checks": zero(4),  # rows that are bad, of unit norm, that came with groups, whose norm is out of range
            "raw_sum": zero(self.dim),
            "unit_sum": zero(self.buckets, self.dim),
            "norm_sums": zero(self.buckets, 2),  # |v|, |v|^2
        }
        if self.direction is not None:
            state["square_sum"] = zero()  # C^2
            state["conformity_counts"] = zero(self.buckets, CELLS + 2)
        if self.second_moment:
            state["second_moment"] = zero(self.dim, self.dim)
        if self.max_samples:
            state.update({name: [] for name in SAMPLE})
        return state

    def names(self) -> list[str]:
        """Names of the state's parts."""
        names = ["count", "checks", "raw_sum", "unit_sum", "norm_sums"]
        names += ["square_sum", "conformity_counts"] if self.direction is not None else []
        names += ["second_moment"] if self.second_moment else []
        return names + (list(SAMPLE) if self.max_samples else [])


class Sample(NamedTuple):
    """Different rows of smallest hash, and how often each came: a key that is kept has been kept from its first row."""

    rows: Tensor
    keys: Tensor
    groups: Tensor
    copies: Tensor

    def smallest(self, size: int) -> Sample:
        """Keep the ``size`` different rows of smallest key, in the order of their keys; bad rows have none."""
        order = self.keys.sort(stable=True).indices
        keys, which = self.keys[order].unique_consecutive(return_inverse=True)
        copies = torch.zeros_like(keys).index_add_(0, which, self.copies[order])
        first = order[torch.searchsorted(self.keys[order], keys)][:size]
        return Sample(self.rows[first], self.keys[first], self.groups[first], copies[:size])

    def expanded(self, size: int) -> Sample:
        """Repeat each row as often as it came; where that gives more than ``size`` rows, in proportion."""
        total = int(self.copies.sum())
        if total <= size:
            times = self.copies
        else:
            bounds = (self.copies.cumsum(0).double() * (size / total) + 0.5).floor().long()
            times = bounds.diff(prepend=bounds.new_zeros(1))
        parts = (part.repeat_interleave(times, 0) for part in (self.rows, self.keys, self.groups))
        rows, keys, groups = parts
        return Sample(rows, keys, groups, torch.ones_like(keys))


def hash_groups(groups: Groups, count: int, device: torch.device) -> Tensor:
    """Turn group ids, whole numbers or strings, into int64 ``(count,)``.

    Raises:
        TypeError: If the ids are neither whole numbers nor strings.
        ValueError: If there is not one for every row.
    """
    if len(groups) != count:
        raise ValueError(f"groups: expected one id for each of the {count} samples, got {len(groups)}.")
    if not isinstance(groups, Tensor) and count and isinstance(groups[0], str):
        ids = [int.from_bytes(hashlib.blake2b(str(g).encode(), digest_size=8).digest(), "big") for g in groups]
        return torch.tensor(np.array(ids, dtype=np.uint64).view(np.int64), device=device)
    tensor = torch.as_tensor(groups, device=device).flatten()
    if not count:  # an empty list has no type of its own
        return tensor.long()
    if tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(f"groups: expected whole numbers or strings, got {tensor.dtype}.")
    return tensor.long()


def mix(x: Tensor, salt: int) -> Tensor:
    """Scramble int64 values to all of their bits (the finaliser of splitmix64)."""
    x = x + salt * 0x9E3779B97F4A7C1 + 0x632BE59BD9B4E019
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def row_keys(values: Tensor, groups: Tensor | None) -> Tensor:
    """Give every row a seeded hash in [0, 2^63): of its group first, then of its content, so groups stay whole.

    Without groups it is the content's alone: equal rows have equal keys, and are kept once with their number.

    With groups the content has ``CONTENT_BITS`` bits. Different rows of one group must not share a key, for they would
    be taken for copies: that any two of n do has a chance of n^2 / 2^48, 9e-6 for a group of 50,000. The 16 bits
    left to the group keep it whole in the order of the keys. Groups that share them, two or so at 100,000 groups, are
    mixed with each other, and all but those at the sample's edge are still kept or left out whole.
    """
    content = _content_hash(values)
    if groups is None:
        return content & NO_KEY
    low = (1 << CONTENT_BITS) - 1
    return ((mix(groups, 2) & ~low) | (content & low)) & NO_KEY


def _content_hash(values: Tensor) -> Tensor:
    """Hash of each row's entries as float32 and of their places, int64 ``(N,)``.

    The low bits of a float are often zero, as of whole numbers, and a product modulo 2^64 keeps them so: each entry is
    spread over all bits before it meets the odd factor of its place.
    """
    generator = torch.Generator().manual_seed(0)
    span = torch.iinfo(torch.int64)
    factors = torch.randint(span.min, span.max, (values.shape[1],), generator=generator) | 1
    bits = values.float().contiguous().view(torch.int32).long()
    bits.mul_(-0x61C8864680B583EB)  # the golden ratio in 64 bits
    bits.bitwise_xor_((bits >> 32).bitwise_and_((1 << 32) - 1))
    return mix(bits.mul_(factors.to(values.device)).sum(1), 1)


class Moments:
    """A view of one state: how it takes in rows and merges. The tensors belong to whoever holds the state."""

    def __init__(self, layout: Layout, state: State | None = None) -> None:
        self.layout = layout
        self.state = layout.zeros() if state is None else state

    def __getitem__(self, name: str) -> Tensor:
        value = self.state[name]
        assert isinstance(value, Tensor)
        return value

    @full_precision
    def update(self, embeddings: Tensor, groups: Groups | None = None, seen: int = 0) -> None:
        """Take in rows ``(N, D)``; bad rows are counted and left out, with no wait for the device.

        Args:
            embeddings: Checked embeddings.
            groups: A group id for each row.
            seen: Rows that came before, so that rows without groups are dealt evenly.
        """
        device = self["count"].device
        ids = None if groups is None else hash_groups(groups, len(embeddings), device)
        for start in range(0, len(embeddings), CHUNK):
            chunk = working(embeddings[start : start + CHUNK]).to(device)
            self._add(chunk, None if ids is None else ids[start : start + CHUNK], seen + start)

    def _add(self, values: Tensor, groups: Tensor | None, seen: int) -> None:
        norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)
        good = within_range(norms)
        scaled_off = ~good & torch.isfinite(norms) & (norms > 0)
        weight = good.double()
        values = torch.where(good[:, None], values, 0.0)
        norms = torch.where(good, norms, 1.0)
        position = torch.arange(seen, seen + len(values), device=values.device)
        bucket = (position if groups is None else mix(groups, 3) & NO_KEY) % self.layout.buckets
        exact = values.double()
        units = exact / norms[:, None]  # (N, D)

        self["count"].index_add_(0, bucket, weight)
        unit_norm = ((norms - 1).abs() < UNIT_TOLERANCE) & good
        grouped = torch.full((), 0.0 if groups is None else float(len(values)), device=values.device)
        bad = len(values) - weight.sum() - scaled_off.sum()
        self["checks"].add_(torch.stack([bad, unit_norm.double().sum(), grouped.double(), scaled_off.double().sum()]))
        self["raw_sum"].add_(exact.sum(0))
        self["unit_sum"].index_add_(0, bucket, units)
        length = norms * weight
        self["norm_sums"].index_add_(0, bucket, torch.stack([length, length.square()], 1))
        sampled = values
        if self.layout.direction is not None and self.layout.grid is not None:
            conformity = units @ self.layout.direction.to(units)
            self["square_sum"].add_(conformity.square().sum())
            cell = bucket * (CELLS + 2) + self.layout.grid.locate(conformity)
            self["conformity_counts"].view(-1).index_add_(0, cell, weight)
            sampled = torch.stack([conformity, norms], 1)
        if self.layout.second_moment:
            self["second_moment"].add_(second_moment(exact))
        if self.layout.max_samples:
            self._sample(values, sampled, good, groups)

    def _sample(self, values: Tensor, sampled: Tensor, good: Tensor, groups: Tensor | None) -> None:
        keys = torch.where(good, row_keys(values, groups), NO_KEY)
        ids = keys if groups is None else groups
        rows = sampled.double() if self.layout.direction is not None else sampled.float()
        for name, value in zip(SAMPLE, (rows, keys, ids, torch.ones_like(keys)), strict=True):
            self._list(name).append(value)
        if sum(len(keys) for keys in self._list("sample_keys")) >= 2 * self.layout.max_samples:
            self.replace_sample(self.sample())

    def _list(self, name: str) -> list[Tensor]:
        value = self.state[name]
        if isinstance(value, Tensor):  # a synchronised list state has been concatenated
            return [value]
        return value

    def replace_sample(self, sample: Sample) -> None:
        """Hold this sample instead of the chunks that it was read from."""
        for name, value in zip(SAMPLE, sample, strict=True):
            self._list(name)[:] = [value]

    def sample(self) -> Sample:
        """Read the row sample: ``max_samples`` different rows of smallest key among those held."""
        width = 2 if self.layout.direction is not None else self.layout.dim
        device = self["count"].device
        empty = torch.empty(0, dtype=torch.int64, device=device)
        kind = torch.float32 if self.layout.direction is None else torch.float64
        none = torch.empty(0, width, dtype=kind, device=device)
        rows = torch.cat([none, *self._list("sample_rows")])
        keys, groups, copies = (torch.cat([empty, *self._list(name)]) for name in SAMPLE[1:])
        return Sample(rows, keys, groups, copies).smallest(self.layout.max_samples)

    def sketch(self) -> Sample:
        """Read the different rows of smallest key, without rows that were bad; this waits for the device."""
        sample = self.sample()
        good = sample.keys != NO_KEY
        return Sample(*(part[good] for part in sample))

    def good_sample(self) -> Sample:
        """Read the row sample as rows: every row while there are at most ``max_samples``, else so many of them."""
        return self.sketch().expanded(self.layout.max_samples)

    def merge(self, other: Moments) -> Moments:
        """Add two streams into a new one."""
        state: State = {}
        for name in self.state:
            if name.startswith("sample_"):
                state[name] = [*self._list(name), *other._list(name)]
            else:
                state[name] = self[name] + other[name]
        merged = Moments(self.layout, state)
        if self.layout.max_samples:
            merged.replace_sample(merged.sample())
        return merged

    @property
    def total(self) -> Tensor:
        """Number of good rows, a scalar."""
        return self["count"].sum()

    @property
    def started(self) -> bool:
        """Whether any row came, good or bad."""
        return bool(self.total + self["checks"][0] + self["checks"][3] > 0)

    @property
    def grouped(self) -> bool:
        """Whether rows came with groups."""
        return bool(self["checks"][2] > 0)

    @property
    def mean(self) -> Tensor:
        """Raw mean ``(D,)``."""
        return self["raw_sum"] / self.total

    @property
    def unit_mean(self) -> Tensor:
        """Mean unit vector ``(D,)``."""
        return self["unit_sum"].sum(0) / self.total

    @property
    def conformity_std(self) -> Tensor:
        """Standard deviation of the conformity to the layout's direction, with N - 1."""
        assert self.layout.direction is not None
        mean = self.unit_mean @ self.layout.direction.to(self.unit_mean)
        total = self.total
        return ((self["square_sum"] - total * mean.square()) / (total - 1)).clamp_min(0).sqrt()

    def towards(self, direction: Tensor, grid: Grid) -> Moments:
        """Give the stream as seen from a reference: itself if it was accumulated so, else its row sample."""
        if self.layout.direction is not None:
            return self
        sample = self.good_sample()
        layout = Layout(self.layout.dim, direction=direction, grid=grid, max_samples=self.layout.max_samples)
        view = Moments(layout, layout.zeros(sample.rows.device))
        view.update(sample.rows.double(), sample.groups if self.grouped else None)
        return view

    @property
    def covariance(self) -> Tensor:
        """Sample covariance ``(D, D)``, with N - 1."""
        mean = self.mean
        return (self["second_moment"] - self.total * torch.outer(mean, mean)) / (self.total - 1)


def second_moment(values: Tensor) -> Tensor:
    """Sum of outer products ``(D, D)`` in float64, of rows in any precision.

    A float32 Gram matrix errs by 1e-7 of the largest eigenvalue, and differently for every size of batch: at the
    condition of 2e9 that CLIP's images have, the smallest came out 19% off. In float64 the whole update takes 1.6 times
    as long, and the covariance is that of the rows as they are. They are centred since squares far from the origin
    round more.
    """
    center = values.mean(0, dtype=torch.float64)
    centered = values.double() - center
    return centered.T @ centered + len(values) * torch.outer(center, center)


def check_clusters(count: int) -> None:
    """Refuse to tell an uncertainty from one group.

    Raises:
        ValueError: If there are fewer than two.
    """
    if count < 2:
        raise ValueError(
            "groups: all samples belong to one group, so neither standard error nor interval can be given; "
            "give ids that differ between independent samples."
        )


def jackknife_error(left_out: Tensor, count: Tensor) -> Tensor:
    """Standard error of a scalar from its values with one bucket left out each; NaN where all rows are in one bucket.

    Args:
        left_out: The read-out without bucket g, ``(G,)``.
        count: Rows of each bucket ``(G,)``; empty buckets do not count.
    """
    values = left_out[count > 0]
    used = len(values)
    if used < 2:  # nothing is known about the spread between groups
        return torch.full_like(count.sum(), float("nan"))
    return ((used - 1) / used * (values - values.mean()).square().sum()).sqrt()


def mean_error(sums: Tensor, count: Tensor) -> Tensor:
    """Standard error of a mean from its bucket sums ``(G,)``."""
    return jackknife_error((sums.sum() - sums) / (count.sum() - count), count)


def self_conformity_error(moments: Moments) -> tuple[Tensor, Tensor]:
    """Self-conformity of a stream, exact, and its standard error: the mean moves with the samples."""
    count, sums = moments["count"], moments["unit_sum"]

    def pairwise(total: Tensor, rows: Tensor) -> Tensor:
        return (total.square().sum(-1) - rows) / (rows * (rows - 1))

    whole = pairwise(sums.sum(0), count.sum())
    if int(count.sum()) == 2 and int((count > 0).sum()) == 2:  # one sample less leaves no pair
        return whole, (1 - whole).abs()
    return whole, jackknife_error(pairwise(sums.sum(0) - sums, count.sum() - count), count)
