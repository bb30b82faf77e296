"""The additive statistics of a stream of raw embeddings.

Accumulate once, read out many ways: every tensor below adds up over batches, ranks and parts, in float64.
Rows are dealt into ``BUCKETS`` buckets, whole groups to one bucket, so that leaving out or redrawing buckets gives the
uncertainty of any read-out without keeping the rows. What is not additive comes from the row sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from clipconformity.data.interrupts import uninterrupted
from clipconformity.functional.density import CELLS, Grid
from clipconformity.functional.linalg import full_precision, working
from clipconformity.functional.validation import within_range
from clipconformity.stream.row_sample import NO_KEY, Labels, Sample, hash_labels, mix, row_keys

BUCKETS = 256
"""Buckets that uncertainty is taken over: a standard error is known to 1/sqrt(2 * 256) = 4%."""
UNIT_TOLERANCE = 5e-3
"""A row counts as L2-normalised when its norm is this close to 1: float16 and bfloat16 round about so far."""
CHUNK = 4096
"""Rows worked through at once."""
SAMPLE = tuple(f"sample_{name}" for name in Sample._fields)
SECOND_MOMENTS = ("second_moment", "unit_second_moment")
NO_UNIT_SECOND_MOMENT = (
    "reference: its file is of format 2, without the second moment of the unit vectors that this metric needs; build "
    "it again with `clipconformity reference`, or leave the metric out."
)
State: TypeAlias = "dict[str, Tensor | list[Tensor]]"


class RowValues(NamedTuple):
    """What a stream finds of each row of a batch, float64; NaN of a bad row."""

    norm: Tensor
    """Norm of the raw row, ``(N,)``."""
    conformity: Tensor | None
    """Conformity to the layout's direction, ``(N,)``; None where there is none."""


@dataclass(frozen=True)
class Layout:
    """What a stream accumulates.

    Attributes:
        dim: Dimension D of the embeddings.
        buckets: Number of buckets G.
        direction: The reference's mean unit vector ``(D,)``, where conformity to it is accumulated.
        between: The same without each bucket ``(G, D)``, where the reference has groups: what rows with groups are
            taken to, since the reference may hold others of their group.
        grid: Cells of the conformity histogram; goes with ``direction``.
        max_samples: Rows of the sample; 0 keeps none.
        rows: Whether the sample keeps the raw rows, beside their norm and their conformity to ``direction``.
        second_moment: Whether the D x D second moment is accumulated.
        unit_second_moment: Whether that of the unit rows is.
    """

    dim: int
    buckets: int = BUCKETS
    direction: Tensor | None = None
    between: Tensor | None = None
    grid: Grid | None = None
    max_samples: int = 0
    rows: bool = True
    second_moment: bool = False
    unit_second_moment: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every sum in the state."""
        shapes: dict[str, tuple[int, ...]] = {
            "count": (self.buckets,),
            "bad": (),  # rows that were zero, NaN or infinite
            "out_of_range": (),  # rows whose norm was
            "normalized": (),  # rows of norm 1
            "grouped": (),  # rows that came with groups
            "raw_sum": (self.dim,),
            "unit_sum": (self.buckets, self.dim),
            "norm_sum": (self.buckets,),
            "norm_square_sum": (self.buckets,),
        }
        if self.direction is not None:
            sums = dict.fromkeys(("conformity_sum", "conformity_square_sum"), (self.buckets,))
            shapes |= {**sums, "conformity_counts": (self.buckets, CELLS + 2)}
        return shapes | {name: (self.dim, self.dim) for name in SECOND_MOMENTS if getattr(self, name)}

    def zeros(self, device: torch.device | None = None) -> State:
        """Empty state: the identity of the merge."""
        state: State = {
            name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in self.shapes().items()
        }
        return state | ({name: [] for name in SAMPLE} if self.max_samples else {})

    def names(self) -> list[str]:
        """Names of the state's parts."""
        return [*self.shapes(), *(SAMPLE if self.max_samples else ())]

    def empty_sample(self, device: torch.device) -> Sample:
        """A sample without rows, of the right shapes and types."""
        whole = torch.empty(0, dtype=torch.int64, device=device)
        rows = torch.empty(0, self.dim if self.rows else 0, dtype=torch.float32, device=device)
        values = torch.empty(0, 1 if self.direction is None else 2, dtype=torch.float64, device=device)
        return Sample(rows, values, whole, whole, whole, whole)


class Moments:
    """A view of one state: how it takes in rows and merges. The tensors belong to whoever holds the state.

    Args:
        layout: What is accumulated.
        state: The tensors by name; by default new ones.
        names: The ids behind their hashes, of rows of this process; by default none.
    """

    def __init__(self, layout: Layout, state: State | None = None, names: dict[int, str] | None = None) -> None:
        self.layout = layout
        self.state = layout.zeros() if state is None else state
        self.names = {} if names is None else names

    def __getitem__(self, name: str) -> Tensor:
        value = self.state[name]
        assert isinstance(value, Tensor)
        return value

    @full_precision
    def update(
        self,
        embeddings: Tensor,
        groups: Labels | None = None,
        ids: Sequence[object] | None = None,
        *,
        keys: Tensor | None = None,
        placed: bool = False,
    ) -> RowValues:
        """Take in rows ``(N, D)``; bad rows are counted and left out, with no wait for the device.

        Each row goes to the bucket of its group, else of its id, else of its content: never to one by its place, so
        that order, batches and ranks change nothing.

        Args:
            embeddings: Checked embeddings.
            groups: A group id for each row.
            ids: An id for each row.
            keys: Keys of the row sample, where they are not those of each row's own content.
            placed: Whether the ids are the rows' places: these name the sampled rows, and deal none.

        Returns:
            Norm and conformity of each row, on the state's device.
        """
        device = self["count"].device
        group = None if groups is None else hash_labels(groups, len(embeddings), device)
        batch = Moments(self.layout, self.layout.zeros(device))  # so that an error or an interrupt adds nothing
        names = batch._hash_ids(ids, len(embeddings), device)
        own = None if ids is None or placed else names
        found = batch._accumulate(embeddings, own if group is None else group, names, keys, group is not None)
        self._take_in(batch)
        return found

    def _take_in(self, batch: Moments) -> None:
        """Add what a batch came to, whole or not at all."""
        with uninterrupted():
            for name in self.layout.shapes():
                self[name].add_(batch[name])
            if self.layout.max_samples:
                for name in SAMPLE:
                    self._list(name).extend(batch._list(name))
                self.names.update(batch.names)
        if not self.layout.max_samples:
            return
        if sum(len(keys) for keys in self._list("sample_keys")) >= 2 * self.layout.max_samples:
            self.replace_sample(self.sample())

    def _accumulate(
        self, embeddings: Tensor, groups: Tensor | None, ids: Tensor, keys: Tensor | None, grouped: bool
    ) -> RowValues:
        device = self["count"].device
        if not len(embeddings):
            none = torch.empty(0, dtype=torch.float64, device=device)
            return RowValues(none, None if self.layout.direction is None else none)
        found = []
        for start in range(0, len(embeddings), CHUNK):
            part = slice(start, start + CHUNK)
            chunk = working(embeddings[part]).to(device)
            own, key = (None if x is None else x[part].to(device) for x in (groups, keys))
            found.append(self._add(chunk, own, ids[part], key, grouped))
        norms, conformities = zip(*found, strict=True)
        return RowValues(torch.cat(norms), None if self.layout.direction is None else torch.cat(conformities))

    def _hash_ids(self, ids: Sequence[object] | None, count: int, device: torch.device) -> Tensor:
        if ids is None:
            return torch.zeros(count, dtype=torch.int64, device=device)
        words = [str(one) for one in (ids.tolist() if hasattr(ids, "tolist") else ids)]
        hashes = hash_labels(words, count, torch.device("cpu"), "ids")
        if self.layout.max_samples:
            self.names.update(zip(hashes.tolist(), words, strict=True))
        return hashes.to(device)

    def _add(self, values: Tensor, groups: Tensor | None, ids: Tensor, keys: Tensor | None, grouped: bool) -> RowValues:
        norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float64)
        good = within_range(norms)
        out_of_range = ~good & torch.isfinite(norms) & (norms > 0)
        weight = good.double()
        values = torch.where(good[:, None], values, 0.0)
        norms = torch.where(good, norms, 1.0)
        if keys is None and (self.layout.max_samples or groups is None):
            keys = row_keys(values, groups)
        keys = None if keys is None else torch.where(good, keys, NO_KEY)
        groups = keys if groups is None else groups
        assert groups is not None
        bucket = bucket_of(groups, self.layout.buckets)
        exact = values.double()
        units = exact / norms[:, None]  # (N, D)

        self["count"].index_add_(0, bucket, weight)
        self["bad"].add_(len(values) - weight.sum() - out_of_range.sum())
        self["out_of_range"].add_(out_of_range.sum())
        self["normalized"].add_((((norms - 1).abs() < UNIT_TOLERANCE) & good).sum())
        self["grouped"].add_(weight.sum() if grouped else 0)
        self["raw_sum"].add_(exact.sum(0))
        self["unit_sum"].index_add_(0, bucket, units)
        length = norms * weight
        self["norm_sum"].index_add_(0, bucket, length)
        self["norm_square_sum"].index_add_(0, bucket, length.square())
        conformity = self._towards_reference(units, bucket, weight, grouped)
        if self.layout.second_moment:
            self["second_moment"].add_(second_moment(exact))
        if self.layout.unit_second_moment:
            self["unit_second_moment"].addmm_(units.T, units)  # bad rows are zero
        if self.layout.max_samples and keys is not None:
            columns = torch.stack([norms] if conformity is None else [norms, conformity], 1)
            rows = values.float() if self.layout.rows else values.new_empty(len(values), 0, dtype=torch.float32)
            for name, value in zip(SAMPLE, (rows, columns, keys, groups, ids, torch.ones_like(keys)), strict=True):
                self._list(name).append(value)
        nan = torch.full_like(norms, float("nan"))
        found = None if conformity is None else torch.where(good, conformity, nan)
        return RowValues(torch.where(good, norms, nan), found)

    def _towards_reference(self, units: Tensor, bucket: Tensor, weight: Tensor, grouped: bool) -> Tensor | None:
        """Accumulate the conformity of rows to the reference, and give it."""
        if self.layout.direction is None or self.layout.grid is None:
            return None
        if grouped and self.layout.between is not None:
            conformity = (units * self.layout.between.to(units)[bucket]).sum(1)
        else:
            conformity = units @ self.layout.direction.to(units)
        self["conformity_sum"].index_add_(0, bucket, conformity * weight)
        self["conformity_square_sum"].index_add_(0, bucket, conformity.square() * weight)
        cell = bucket * (CELLS + 2) + self.layout.grid.locate(conformity)
        self["conformity_counts"].view(-1).index_add_(0, cell, weight)
        return conformity

    def _list(self, name: str) -> list[Tensor]:
        value = self.state[name]
        if isinstance(value, Tensor):  # a synchronised list state has been concatenated
            return [value]
        return value

    def replace_sample(self, sample: Sample) -> None:
        """Hold this sample instead of the chunks that it was read from."""
        kept = set(sample.ids.tolist()) if self.names else set()
        with uninterrupted():
            for name, value in zip(SAMPLE, sample, strict=True):
                self._list(name)[:] = [value]
            for label in [label for label in self.names if label not in kept]:
                del self.names[label]

    def sample(self) -> Sample:
        """Read the row sample: ``max_samples`` different rows of smallest key among those held."""
        empty = self.layout.empty_sample(self["count"].device)
        parts = (torch.cat([none, *self._list(name)]) for name, none in zip(SAMPLE, empty, strict=True))
        return Sample(*parts).smallest(self.layout.max_samples)

    def sketch(self) -> Sample:
        """Read the different rows of smallest key, without rows that were bad; this waits for the device."""
        return self.sample().good()

    def good_sample(self) -> Sample:
        """Read the row sample as rows: every row while there are at most ``max_samples``, else so many of them."""
        return self.sketch().expanded(self.layout.max_samples)

    def merge(self, other: Moments) -> Moments:
        """Add two streams into a new one."""
        state: State = {}
        for name in self.state:
            if name in SAMPLE:
                state[name] = [*self._list(name), *other._list(name)]
            else:
                state[name] = self[name] + other[name]
        merged = Moments(self.layout, state, self.names | other.names)
        if self.layout.max_samples:
            merged.replace_sample(merged.sample())
        return merged

    def cpu(self) -> Moments:
        """Give the stream with its state on the CPU."""
        state: State = {}
        for name in self.state:
            state[name] = [part.cpu() for part in self._list(name)] if name in SAMPLE else self[name].cpu()
        return Moments(self.layout, state, self.names)

    @property
    def total(self) -> Tensor:
        """Number of good rows, a scalar."""
        return self["count"].sum()

    @property
    def started(self) -> bool:
        """Whether any row came, good or bad."""
        return bool(self.total + self["bad"] + self["out_of_range"] > 0)

    @property
    def grouped(self) -> bool:
        """Whether rows came with groups."""
        return bool(self["grouped"] > 0)

    @property
    def normalized(self) -> bool:
        """Whether every row has unit norm, so that the embeddings were normalised before they came here."""
        return bool(self["normalized"] == self.total)

    @property
    def mean(self) -> Tensor:
        """Raw mean ``(D,)``."""
        return self["raw_sum"] / self.total

    @property
    def unit_mean(self) -> Tensor:
        """Mean unit vector ``(D,)``."""
        return self["unit_sum"].sum(0) / self.total

    @property
    def unit_second_moment(self) -> Tensor:
        """Mean of the outer products of the unit vectors, ``(D, D)``, of trace 1.

        Raises:
            ValueError: If it was not accumulated, as in a reference file of an older format.
        """
        if not self.layout.unit_second_moment:
            raise ValueError(NO_UNIT_SECOND_MOMENT)
        return self["unit_second_moment"] / self.total

    @property
    def covariance(self) -> Tensor:
        """Sample covariance ``(D, D)``, with N - 1."""
        mean = self.mean
        return (self["second_moment"] - self.total * torch.outer(mean, mean)) / (self.total - 1)

    @property
    def conformity_std(self) -> Tensor:
        """Standard deviation of the conformity to the layout's direction, with N - 1."""
        first, second, total = self["conformity_sum"].sum(), self["conformity_square_sum"].sum(), self.total
        return ((second - first.square() / total) / (total - 1)).clamp_min(0).sqrt()

    def towards(self, layout: Layout) -> Moments:
        """Give the stream as seen from a reference: itself if it was accumulated so, else its row sample."""
        if self.layout.direction is not None:
            return self
        return self._again(layout, self.good_sample())

    def of_rows(self, sample: Sample) -> Moments:
        """Give the stream that some of the sampled rows alone would have made."""
        return self._again(self.layout, sample)

    def _again(self, layout: Layout, sample: Sample) -> Moments:
        view = Moments(layout, layout.zeros(sample.rows.device))
        view._accumulate(sample.rows.double(), sample.groups, sample.ids, sample.keys, self.grouped)
        return view


def bucket_of(groups: Tensor, buckets: int = BUCKETS) -> Tensor:
    """Number of the bucket of each group's hash; a row without a group is one of its own."""
    return (mix(groups, 3) & NO_KEY) % buckets


def second_moment(values: Tensor) -> Tensor:
    """Sum of outer products ``(D, D)`` in float64, of rows in any precision.

    A float32 Gram matrix errs by 1e-7 of the largest eigenvalue, which is 1% of the smallest at a condition of 1e5, and
    differently for every size of batch. In float64 the whole update takes 1.6 times as long, and the covariance is
    that of the rows as they are. They are centred for the sum: squares far from the origin would round the more.
    """
    center = values.mean(0, dtype=torch.float64)
    centered = values.double() - center
    return centered.T @ centered + len(values) * torch.outer(center, center)
