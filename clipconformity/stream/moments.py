"""The additive statistics of a stream of raw embeddings.

Accumulate once, read out many ways: every tensor below adds up over batches, ranks and parts, in float64.
Rows are dealt into ``BUCKETS`` buckets, whole groups to one bucket, so that leaving out or redrawing buckets gives the
uncertainty of any read-out without keeping the rows. What is not additive comes from the row sample.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clipconformity.data.interrupts import defer_signals
from clipconformity.functional.density import CELLS
from clipconformity.functional.linalg import full_precision, mirror_upper, to_working_precision
from clipconformity.stream.chunks import (
    MAX_BATCH,
    LabelledRows,
    RowValues,
    Sums,
    max_rows,
    name_sampled,
    sum_rows,
)
from clipconformity.stream.layout import SAMPLE, SAMPLE_KEYS, SECOND_MOMENTS, Layout, State
from clipconformity.stream.pending import Pending
from clipconformity.stream.row_sample import BUCKETS as BUCKETS
from clipconformity.stream.row_sample import Labels, Sample, hash_labels
from clipconformity.stream.row_sample import assign_buckets as assign_buckets

UNIT_TOLERANCE = 5e-3
"""A row counts as L2-normalised when its norm is this close to 1: float16 and bfloat16 round about so far."""


def _to_words(ids: Sequence[object], count: int) -> list[str]:
    """Read an id for each row as a string.

    Raises:
        ValueError: If there is not one for each row.
    """
    if len(ids) != count:
        raise ValueError(f"ids: expected one id for each of the {count} samples, got {len(ids)}.")
    return [str(one) for one in (ids.tolist() if hasattr(ids, "tolist") else ids)]


class Moments:
    """A view of one state: how it takes in rows and merges. The tensors belong to whoever holds the state.

    Small batches wait, and are added together; whatever reads the state adds them first.

    Args:
        layout: What is accumulated.
        state: The tensors by name; by default new ones.
        names: The ids behind their hashes, of rows of this process; by default none.
        pending: The batches that wait; by default none.
    """

    def __init__(
        self,
        layout: Layout,
        state: State | None = None,
        names: dict[int, str] | None = None,
        pending: Pending | None = None,
    ) -> None:
        self.layout = layout
        self._state = layout.zeros() if state is None else state
        self._names = {} if names is None else names
        self._pending = Pending() if pending is None else pending

    @property
    def state(self) -> State:
        """The tensors by name."""
        self.flush()
        return self._state

    @property
    def names(self) -> dict[int, str]:
        """The ids behind their hashes."""
        self.flush()
        return self._names

    def __getitem__(self, name: str) -> Tensor:
        self.flush()
        return self._sum(name)

    def _sum(self, name: str) -> Tensor:
        """Give a sum without the rows that wait."""
        value = self._state[name]
        assert isinstance(value, Tensor)
        return value

    def update(
        self,
        embeddings: Tensor,
        groups: Labels | None = None,
        ids: Sequence[object] | None = None,
        *,
        keys: Tensor | None = None,
        placed: bool = False,
    ) -> None:
        """Take in rows ``(N, D)``; bad rows are counted and left out, with no wait for the device.

        Each row goes to the bucket of its group, else of its id, else of its content: never to one by its place, so
        that order, batches and ranks change nothing.

        Args:
            embeddings: Checked embeddings.
            groups: A group id for each row.
            ids: An id for each row.
            keys: Keys of the row sample, where they are not those of each row's own content.
            placed: Whether the ids are the rows' places: these name the sampled rows, and deal none.
        """
        rows = self._label(embeddings, groups, ids, keys, placed)
        if not len(embeddings):
            return
        if len(embeddings) <= MAX_BATCH:
            rows = rows._replace(values=self._prepare(rows.values))
            if self._pending.append(rows):
                return
            self.flush()
            if self._pending.append(rows):
                return
        self._take_in(rows)

    def update_with_values(
        self,
        embeddings: Tensor,
        groups: Labels | None = None,
        ids: Sequence[object] | None = None,
        *,
        placed: bool = False,
    ) -> RowValues:
        """Take in rows as :meth:`update`, and return norm and conformity of each, on the state's device."""
        found = self._take_in(self._label(embeddings, groups, ids, None, placed))
        none = torch.empty(0, dtype=torch.float64, device=self._sum("count").device)
        norms = torch.cat([none, *(one.norm for one in found)])
        conformities = torch.cat([none, *(one.conformity for one in found if one.conformity is not None)])
        return RowValues(norms, None if self.layout.direction is None else conformities)

    def flush(self) -> None:
        """Add the rows that wait; after an error or an interrupt they wait as before."""
        if self._pending.count:
            self._take_in(self._pending.read(), done=self._pending.clear)

    def _label(
        self,
        embeddings: Tensor,
        groups: Labels | None,
        ids: Sequence[object] | None,
        keys: Tensor | None,
        placed: bool,
    ) -> LabelledRows:
        """Check and hash what rows come with."""
        device = self._sum("count").device
        own = None if groups is None else hash_labels(groups, len(embeddings), device)
        words = None if ids is None else _to_words(ids, len(embeddings))
        hashes = None
        if words is not None and not placed:  # places deal no rows: those alone are hashed that come into the sample
            hashes = hash_labels(words, len(words), torch.device("cpu"), "ids")
            own = hashes.to(device) if own is None else own
        keys = None if keys is None else keys.to(device)
        return LabelledRows(embeddings.detach(), own, keys, hashes, words, groups is not None)

    def _prepare(self, values: Tensor) -> Tensor:
        """Bring rows to the state's device, in the precision that is worked in there."""
        return to_working_precision(values.to(self._sum("count").device))

    @full_precision
    def _take_in(
        self, rows: LabelledRows, last_key: int | None = None, done: Callable[[], None] | None = None
    ) -> list[RowValues]:
        """Add rows, whole or not at all.

        Args:
            rows: The rows.
            last_key: Key beyond which no row comes into the sample, where that is known from elsewhere.
            done: Called when they are added, while signals wait.

        Returns:
            Norm and conformity of each row, part by part.
        """
        device, count = self._sum("count").device, len(rows.values)
        known = [key for key in (last_key, self._last_key()) if key is not None]
        last_key, size = min(known, default=None), max_rows(self.layout.dim, device)
        if not count:
            return []
        names: dict[int, str] = {}
        add: Callable[[], None]
        if count > size:
            batch = Moments(self.layout, self.layout.zeros(device))
            found = [one for part in rows.split(size) for one in batch._take_in(part, last_key)]
            add = functools.partial(self._add_stream, batch)
        else:
            sums = sum_rows(self.layout, rows._replace(values=self._prepare(rows.values)), last_key)
            found = [sums.found]
            add = functools.partial(self._add, sums, name_sampled(sums, names), names)
        with defer_signals():
            add()
            if done is not None:
                done()
        self._cut_sample(count)
        return found

    def _add_stream(self, batch: Moments) -> None:
        """Add what rows came to."""
        for name in self.layout.shapes():
            self._sum(name).add_(batch._sum(name))
        for name in SAMPLE if self.layout.max_samples else ():
            self._list(name).extend(batch._list(name))
        self._names.update(batch._names)

    def _add(self, sums: Sums, sampled: Sample | None, names: dict[int, str]) -> None:
        """Add the sums of some rows."""
        state, bucket, weight = self._sum, sums.bucket, sums.good.double()
        norms = sums.norms if sums.whole else torch.where(sums.good, sums.norms, 0.0)
        state("count").index_add_(0, bucket, weight)
        if not sums.whole:
            out_of_range = sums.out_of_range.sum()
            state("bad").add_(len(weight) - weight.sum() - out_of_range)
            state("out_of_range").add_(out_of_range)
        state("normalized").add_(((norms - 1).abs() < UNIT_TOLERANCE).sum())
        if sums.rows.grouped:
            state("grouped").add_(weight.sum())
        state("norm_sum").index_add_(0, bucket, norms)
        state("norm_square_sum").index_add_(0, bucket, norms.square())
        if sums.conformity is not None and self.layout.grid is not None:
            state("conformity_sum").index_add_(0, bucket, sums.conformity)  # 0 of a bad row
            state("conformity_square_sum").index_add_(0, bucket, sums.conformity.square())
            cell = bucket * (CELLS + 2) + self.layout.grid.locate(sums.conformity)
            state("conformity_counts").view(-1).index_add_(0, cell, weight)
        state("raw_sum").add_(sums.raw_sum)
        state("unit_sum").add_(sums.unit_sum)
        for name, moment in sums.second_moments.items():
            moment.add_to(state(name))
        for name, value in zip(SAMPLE, sampled or (), strict=False):
            self._list(name).append(value)
        self._names.update(names)

    def _last_key(self) -> int | None:
        """Key beyond which no row comes into the sample, where that is known; a device is not waited for."""
        size, parts = self.layout.max_samples, self._list(SAMPLE_KEYS) if self.layout.max_samples else []
        if not parts or len(parts[0]) != size or parts[0].device.type != "cpu":
            return None
        keys = parts[0]  # of a sample that was cut, in order, each once
        return int(keys[-1]) if bool((keys[1:] > keys[:-1]).all()) else None

    def _cut_sample(self, came: int) -> None:
        """Keep the sample of smallest keys once twice as many rows are held; not looked for at every small batch."""
        size = self.layout.max_samples
        if not size:
            return
        parts = self._list(SAMPLE_KEYS)
        if 8 * came < size and len(parts) % 8:
            return
        if sum(keys.shape[0] for keys in parts) >= 2 * size:
            self.replace_sample(self.sample())

    def _list(self, name: str) -> list[Tensor]:
        value = self._state[name]
        if isinstance(value, Tensor):  # a synchronised list state has been concatenated
            return [value]
        return value

    def replace_sample(self, sample: Sample) -> None:
        """Hold this sample instead of the chunks that it was read from."""
        kept = set(sample.ids.tolist()) if self._names else set()
        with defer_signals():
            for name, value in zip(SAMPLE, sample, strict=True):
                self._list(name)[:] = [value]
            for label in [label for label in self._names if label not in kept]:
                del self._names[label]

    def sample(self) -> Sample:
        """Read the row sample: ``max_samples`` different rows of smallest key among those held."""
        self.flush()
        empty = self.layout.empty_sample(self._sum("count").device)
        parts = [Sample(*columns) for columns in zip(*(self._list(name) for name in SAMPLE), strict=True)]
        return Sample.keep_smallest(parts or [empty], self.layout.max_samples)

    def sketch(self) -> Sample:
        """Read the different rows of smallest key, without rows that were bad; this waits for the device."""
        return self.sample().good()

    def good_sample(self) -> Sample:
        """Read the row sample as rows: every row while there are at most ``max_samples``, else so many of them."""
        return self.sketch().repeat_copies(self.layout.max_samples)

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
        """Mean of the outer products of the unit vectors, ``(D, D)``, of trace 1."""
        return self.get_sum("unit_second_moment") / self.total

    def get_sum(self, name: str) -> Tensor:
        """Give a sum of the state; of a second moment, which is kept above the diagonal, the symmetric matrix."""
        return mirror_upper(self[name]) if name in SECOND_MOMENTS else self[name]

    @property
    def covariance(self) -> Tensor:
        """Sample covariance ``(D, D)``, with N - 1."""
        mean = self.mean
        return (self.get_sum("second_moment") - self.total * torch.outer(mean, mean)) / (self.total - 1)

    @property
    def conformity_std(self) -> Tensor:
        """Standard deviation of the conformity to the layout's direction, with N - 1."""
        first, second, total = self["conformity_sum"].sum(), self["conformity_square_sum"].sum(), self.total
        return ((second - first.square() / total) / (total - 1)).clamp_min(0).sqrt()

    def relate_to(self, layout: Layout) -> Moments:
        """Give the stream as seen from a reference: itself if it was accumulated so, else its row sample."""
        if self.layout.direction is not None:
            return self
        return self._again(layout, self.good_sample())

    def select_rows(self, sample: Sample) -> Moments:
        """Give the stream that some of the sampled rows alone would have made."""
        return self._again(self.layout, sample)

    def _again(self, layout: Layout, sample: Sample) -> Moments:
        view = Moments(layout, layout.zeros(sample.rows.device))
        view._take_in(LabelledRows(sample.rows, sample.groups, sample.keys, sample.ids, None, self.grouped))
        return view
