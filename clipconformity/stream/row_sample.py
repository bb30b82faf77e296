"""The rows that a stream keeps: those of smallest hash, independent of their order."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from clipconformity.functional.linalg import scratch

NO_KEY = torch.iinfo(torch.int64).max
"""Key of a bad row, larger than all others."""
BUCKETS = 256
"""Number of buckets for uncertainty: the relative error of a standard error is 1/sqrt(2 * 256) = 4%."""
HASH_BLOCK_ROWS = 1024
"""Rows whose content is hashed at once."""
Labels: TypeAlias = "Sequence[int] | Sequence[str] | Tensor | np.ndarray"
"""One group or id for each row: whole numbers or strings."""


class Sample(NamedTuple):
    """Distinct rows of smallest hash, and the number of copies of each; a kept key was kept from its first row on."""

    rows: Tensor
    """Raw rows ``(k, D)``, or ``(k, 0)`` where no read-out needs them."""
    values: Tensor
    """Norm and, towards a direction, conformity of each, float64 ``(k, 1)`` or ``(k, 2)``."""
    keys: Tensor
    groups: Tensor
    """Hash of each row's group; a row without one is a group of its own, by its id, else by its content."""
    ids: Tensor
    """Hash of each row's id; 0 where it has none."""
    copies: Tensor

    @property
    def units(self) -> Tensor:
        """Rows over their norms, ``(k, D)`` float64."""
        return self.rows.double() / self.values[:, :1]

    @staticmethod
    def keep_smallest(parts: Sequence[Sample], size: int) -> Sample:
        """Keep the ``size`` distinct rows of smallest key of one sample or more, in the order of their keys.

        Equal rows are represented by the one of smallest id, independent of their order.
        """
        rows, *columns = zip(*parts, strict=True)
        values, keys, groups, ids, copies = map(torch.cat, columns)
        if len(parts) == 1 and keys.device.type == "cpu" and len(keys) <= size and bool((keys[1:] > keys[:-1]).all()):
            return parts[0]  # cut earlier
        order = ids.sort(stable=True).indices
        order = order[keys[order].sort(stable=True).indices]
        distinct, which = keys[order].unique_consecutive(return_inverse=True)
        repeats = torch.zeros_like(distinct).index_add_(0, which, copies[order])
        first = order[torch.searchsorted(keys[order], distinct)][:size]
        values, keys, groups, ids = (column.index_select(0, first) for column in (values, keys, groups, ids))
        return Sample(_gather_rows(rows, first), values, keys, groups, ids, repeats[:size])

    def copy_rows(self, last_key: int | None) -> Sample:
        """Copy the rows in float32, without those of a key beyond ``last_key``, if given."""
        if last_key is None:
            return self._replace(rows=self.rows.to(torch.float32, copy=True), groups=self.groups.clone())
        kept = (self.keys <= last_key).nonzero()[:, 0]
        few = Sample(*(part.index_select(0, kept) for part in self))
        return few._replace(rows=few.rows.float())

    def good(self) -> Sample:
        """Leave out bad rows; this synchronises the device."""
        good = self.keys != NO_KEY
        return self if bool(good.all()) else Sample(*(part[good] for part in self))

    def repeat_copies(self, size: int) -> Sample:
        """Repeat each row by its number of copies, in proportion where that exceeds ``size`` rows."""
        total = int(self.copies.sum())
        if total <= size and total == len(self.keys):
            return self
        if total <= size:
            times = self.copies
        else:
            bounds = (self.copies.cumsum(0).double() * (size / total) + 0.5).floor().long()
            times = bounds.diff(prepend=bounds.new_zeros(1))
        repeated = Sample(*(part.repeat_interleave(times, 0) for part in self))
        return repeated._replace(copies=torch.ones_like(repeated.keys))

    def cpu(self) -> Sample:
        """Return the sample on the CPU."""
        return Sample(*(part.cpu() for part in self))


def _gather_rows(parts: Sequence[Tensor], places: Tensor) -> Tensor:
    """Copy rows, by their places in the parts one after the other; to join all rows first would cost more."""
    found = parts[0].new_empty(len(places), parts[0].shape[1])
    ascending, order = places.sort()
    ends = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
    bounds = torch.searchsorted(ascending, ends.to(places.device)).tolist()
    for part, start, (low, high) in zip(parts, ends.tolist(), itertools.pairwise(bounds), strict=False):
        found.index_copy_(0, order[low:high], part.index_select(0, ascending[low:high] - start))
    return found


def check_labels(labels: object, name: str = "groups") -> None:
    """Refuse a tensor without plain values.

    Raises:
        TypeError: If it is sparse, nested or of the meta device.
    """
    if isinstance(labels, Tensor) and (
        labels.is_nested or labels.layout != torch.strided or labels.device.type == "meta"
    ):
        raise TypeError(f"{name}: expected a dense tensor with one id for each sample; give plain values.")


def hash_labels(labels: Labels, count: int, device: torch.device, name: str = "groups") -> Tensor:
    """Hash groups or ids, whole numbers or strings, to int64 ``(count,)``.

    Raises:
        TypeError: If they are neither whole numbers nor strings.
        ValueError: If there is not one for every row.
    """
    check_labels(labels, name)
    if len(labels) != count:
        raise ValueError(f"{name}: expected one id for each of the {count} samples, got {len(labels)}.")
    if not isinstance(labels, Tensor) and count and isinstance(labels[0], str):
        hashes = [
            int.from_bytes(hashlib.blake2b(str(x).encode(errors="surrogatepass"), digest_size=8).digest(), "big")
            for x in labels
        ]
        return torch.tensor(np.array(hashes, dtype=np.uint64).view(np.int64), device=device)
    try:
        tensor = torch.as_tensor(labels, device=device)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # mixed types, or more than 64 bits
        raise TypeError(f"{name}: expected whole numbers of at most 64 bits, or strings, throughout.") from None
    check_labels(tensor, name)
    if tensor.numel() != count:
        raise ValueError(f"{name}: expected one id for each of the {count} samples, got shape {tuple(tensor.shape)}.")
    tensor = tensor.flatten()
    if not count:  # an empty list has no type
        return tensor.long()
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name}: expected whole numbers or strings, got {tensor.dtype}.")
    return tensor.long()


MIXING = (0x9E3779B97F4A7C1, 0x632BE59BD9B4E019)
"""Factor of the salt, and what is added to it."""
STEPS = ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15))
"""Shifts and factors of the finaliser of splitmix64."""
LAST_SHIFT = 31


def mix(x: Tensor, salt: int) -> Tensor:
    """Scramble int64 values to all of their bits (the finaliser of splitmix64)."""
    if x.device.type == "cpu":  # NumPy has unsigned shifts, and a call costs a third on a small batch
        bits = x.detach().numpy().view(np.uint64) + np.uint64((salt * MIXING[0] + MIXING[1]) % 2**64)
        for shift, factor in STEPS:
            bits ^= bits >> np.uint64(shift)
            bits *= np.uint64(factor % 2**64)
        bits ^= bits >> np.uint64(LAST_SHIFT)
        return torch.from_numpy(bits.view(np.int64))
    return _mix_on_device(x, salt)


def _mix_on_device(x: Tensor, salt: int) -> Tensor:
    salted = (salt * MIXING[0] + MIXING[1]) % 2**64
    x = x + (salted - 2**64 if salted >= 2**63 else salted)
    for shift, factor in STEPS:
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> LAST_SHIFT) & ((1 << (64 - LAST_SHIFT)) - 1))


def assign_buckets(groups: Tensor, buckets: int = BUCKETS) -> Tensor:
    """Assign each group's hash to a bucket; a row without a group is its own."""
    hashes = mix(groups, 3) & NO_KEY
    return hashes & (buckets - 1) if buckets & (buckets - 1) == 0 else hashes % buckets


def row_keys(values: Tensor, groups: Tensor | None) -> Tensor:
    """Return a seeded hash in [0, 2^63) of each row: of its content, and of its label where it has one.

    Equal rows of one group have equal keys, and are kept once with their number of copies; those of two groups, or of
    two ids, are two rows. Rows of a large group are kept with the same probability as all others.
    """
    content = _content_hash(values)
    return (content if groups is None else mix(content ^ mix(groups, 4), 5)) & NO_KEY


GOLDEN = -0x61C8864680B583EB
"""The golden ratio in 64 bits."""


@functools.lru_cache(maxsize=8)
def _factors(count: int, device: torch.device) -> Tensor:
    """Return an odd factor for every place, int64 ``(count,)``."""
    generator = torch.Generator().manual_seed(0)
    span = torch.iinfo(torch.int64)
    with torch.inference_mode(False):
        return (torch.randint(span.min, span.max, (count,), generator=generator) | 1).to(device)


def _content_hash(values: Tensor) -> Tensor:
    """Hash of each row's entries as float32 and their positions, int64 ``(N,)``.

    Two neighbouring entries are one number of 64 bits. The low bits of a float are often zero, as for whole numbers,
    and stay so in a product modulo 2^64: each number is spread over all bits before the product with the odd factor of
    its place.
    """
    entries = values.detach().float().contiguous()
    if entries.shape[1] % 2:
        entries = torch.nn.functional.pad(entries, (0, 1))
    elif entries.storage_offset() % 2:  # a pair begins at a whole 64 bits
        entries = entries.clone()
    pairs = entries.view(torch.int64)
    factors = _factors(pairs.shape[1], values.device)
    if values.device.type != "cpu":
        return mix(_place_sums_on_device(pairs, factors), 1)
    return mix(torch.cat([_place_sums(part, factors) for part in pairs.split(HASH_BLOCK_ROWS)]), 1)


def _place_sums_on_device(pairs: Tensor, factors: Tensor) -> Tensor:
    spread = pairs * GOLDEN
    spread.bitwise_xor_((spread >> 32).bitwise_and_((1 << 32) - 1))
    return spread.mul_(factors).sum(1)


def _place_sums(pairs: Tensor, factors: Tensor) -> Tensor:
    """Sum over a row of its spread pairs times their factors, modulo 2^64, int64 ``(N,)``, on the CPU.

    NumPy has unsigned shifts, and multiplies and sums in one pass, in reused memory.
    """
    spread, high = (
        scratch(name, (len(pairs), pairs.shape[1]), torch.int64, pairs.device).numpy() for name in ("spread", "high")
    )
    np.multiply(pairs.numpy(), np.int64(GOLDEN), out=spread)
    np.right_shift(spread.view(np.uint64), np.uint64(32), out=high.view(np.uint64))
    np.bitwise_xor(spread, high, out=spread)
    return torch.from_numpy(np.einsum("nd,d->n", spread, factors.numpy()))
