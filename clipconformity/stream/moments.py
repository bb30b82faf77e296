"""The additive statistics of a stream of raw embeddings.

Accumulate once, read out many ways: every tensor below adds up over batches, ranks and parts, in float64.
Rows are dealt into ``BUCKETS`` buckets, whole groups to one bucket, so that leaving out or redrawing buckets gives the
uncertainty of any read-out without keeping the rows. What is not additive comes from the row sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipconformity.data.interrupts import defer_signals
from clipconformity.functional.density import CELLS
from clipconformity.functional.linalg import full_precision, mirror_upper, to_working_precision
from clipconformity.stream.chunks import (
    CHUNK,
    DEVICE_CHUNK,
    Chunk,
    Labelled,
    add_second_moment,
    compute_units,
    examine_rows,
)
from clipconformity.stream.layout import SAMPLE, SAMPLE_KEYS, SECOND_MOMENTS, Layout, State
from clipconformity.stream.row_sample import BUCKETS as BUCKETS
from clipconformity.stream.row_sample import Labels, Sample, hash_labels
from clipconformity.stream.row_sample import assign_buckets as assign_buckets

UNIT_TOLERANCE = 5e-3
"""A row counts as L2-normalised when its norm is this close to 1: float16 and bfloat16 round about so far."""
DIRECT = 1024
"""The most rows that are added to the state at once, while signals wait; of more a sum of their own is made first."""
NO_UNIT_SECOND_MOMENT = (
    "reference: its file is of format 2, without the second moment of the unit vectors that this metric needs; build "
    "it again with `clipconformity reference`, or leave the metric out."
)


class RowValues(NamedTuple):
    """Values of each row of a batch, float64; NaN for a bad row."""

    norm: Tensor
    """Norm of the raw row, ``(N,)``."""
    conformity: Tensor | None
    """Conformity to the layout's direction, ``(N,)``; None where there is none."""


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
        names: dict[int, str] = {}
        words = None if ids is None else _to_words(ids, len(embeddings))
        if words is None or placed:  # places deal no rows: those alone are hashed that come into the sample
            labels = torch.arange(len(embeddings), device=device)
        else:
            labels = self._hash_words(words, names).to(device)
        own = labels if group is None and words is not None and not placed else group
        chunks = self._chunks(embeddings, own, labels, keys, group is not None, self._last_key())
        if words is None or placed:
            chunks = (self._name_sampled(chunk, words, names) for chunk in chunks)
        if len(embeddings) <= DIRECT:  # an error or an interrupt adds nothing: it comes before or after
            looked = list(chunks)
            found = self._row_values([chunk.found for chunk in looked])
            with defer_signals():
                for chunk in looked:
                    self._add(chunk)
                self.names.update(names)
        else:
            batch = Moments(self.layout, self.layout.zeros(device))
            found = self._row_values([batch._add(chunk).found for chunk in chunks])
            self._take_in(batch, names)
        self._cut_sample(len(embeddings))
        return found

    def _take_in(self, batch: Moments, names: dict[int, str]) -> None:
        """Add what a batch came to, whole or not at all."""
        with defer_signals():
            for name in self.layout.shapes():
                self[name].add_(batch[name])
            for name in SAMPLE if self.layout.max_samples else ():
                self._list(name).extend(batch._list(name))
            self.names.update(names)

    def _row_values(self, found: list[tuple[Tensor, Tensor | None]]) -> RowValues:
        """Norm and conformity of the rows of all chunks."""
        none = [torch.empty(0, dtype=torch.float64, device=self["count"].device)]
        norms = torch.cat(none + [one for one, _ in found])
        conformities = none + [one for _, one in found if one is not None]
        return RowValues(norms, None if self.layout.direction is None else torch.cat(conformities))

    def _chunks(
        self,
        embeddings: Tensor,
        groups: Tensor | None,
        ids: Tensor,
        keys: Tensor | None,
        grouped: bool,
        last_key: int | None = None,
    ) -> Iterator[Chunk]:
        """Look at rows, part by part."""
        device = self["count"].device
        size = CHUNK if device.type == "cpu" else DEVICE_CHUNK
        for start in range(0, len(embeddings), size):
            part = slice(start, start + size)
            values = to_working_precision(embeddings[part].detach()).to(device)
            own, key = (None if x is None else x[part].to(device) for x in (groups, keys))
            yield examine_rows(self.layout, values, Labelled(own, ids[part], key, grouped), last_key)

    def _hash_words(self, words: Sequence[str], into: dict[int, str]) -> Tensor:
        """Hash ids, and note the word of each hash."""
        hashes = hash_labels(words, len(words), torch.device("cpu"), "ids")
        if self.layout.max_samples:
            into.update(zip(hashes.tolist(), words, strict=True))
        return hashes

    def _name_sampled(self, chunk: Chunk, words: Sequence[str] | None, into: dict[int, str]) -> Chunk:
        """Give the sampled rows of a chunk, numbered so far, their ids; 0 where there are none."""
        if chunk.sampled is None:
            return chunk
        labels = torch.zeros_like(chunk.sampled.ids)
        if words is not None:
            labels = self._hash_words([words[row] for row in chunk.sampled.ids.tolist()], into).to(labels)
        return chunk._replace(sampled=chunk.sampled._replace(ids=labels))

    def _add(self, chunk: Chunk) -> Chunk:
        """Add some rows."""
        checked, bucket, weight = chunk.checked, chunk.bucket, chunk.weight
        length = checked.norms if chunk.whole else checked.norms * weight
        self["count"].index_add_(0, bucket, weight)
        if not chunk.whole:
            out_of_range = checked.out_of_range.sum()
            self["bad"].add_(len(weight) - weight.sum() - out_of_range)
            self["out_of_range"].add_(out_of_range)
        self["normalized"].add_((((checked.norms - 1).abs() < UNIT_TOLERANCE) & checked.good).sum())
        if chunk.grouped:
            self["grouped"].add_(weight.sum())
        self["norm_sum"].index_add_(0, bucket, length)
        self["norm_square_sum"].index_add_(0, bucket, length.square())
        if chunk.conformity is not None and self.layout.grid is not None:
            conformity = chunk.conformity if chunk.whole else chunk.conformity * weight
            self["conformity_sum"].index_add_(0, bucket, conformity)
            self["conformity_square_sum"].index_add_(0, bucket, conformity.square())
            cell = bucket * (CELLS + 2) + self.layout.grid.locate(chunk.conformity)
            self["conformity_counts"].view(-1).index_add_(0, cell, weight)
        if chunk.sampled is not None:
            for name, value in zip(SAMPLE, chunk.sampled, strict=True):
                self._list(name).append(value)
        self["raw_sum"].add_(checked.total)
        units = compute_units(checked)  # zero of a bad row
        self["unit_sum"].index_add_(0, bucket, units)
        self._add_second_moments(chunk, units)
        return chunk

    def _add_second_moments(self, chunk: Chunk, units: Tensor) -> None:
        """Add those that the layout has."""
        values, total, count = chunk.checked.values, chunk.checked.total, len(units)
        if self.layout.second_moment:
            add_second_moment(self["second_moment"], values, total, values.dtype)
        if self.layout.unit_second_moment:
            unit_total = units.T @ units.new_ones(count)
            add_second_moment(self["unit_second_moment"], units, unit_total, values.dtype)

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
        value = self.state[name]
        if isinstance(value, Tensor):  # a synchronised list state has been concatenated
            return [value]
        return value

    def replace_sample(self, sample: Sample) -> None:
        """Hold this sample instead of the chunks that it was read from."""
        kept = set(sample.ids.tolist()) if self.names else set()
        with defer_signals():
            for name, value in zip(SAMPLE, sample, strict=True):
                self._list(name)[:] = [value]
            for label in [label for label in self.names if label not in kept]:
                del self.names[label]

    def sample(self) -> Sample:
        """Read the row sample: ``max_samples`` different rows of smallest key among those held."""
        empty = self.layout.empty_sample(self["count"].device)
        parts = (torch.cat([none, *self._list(name)]) for name, none in zip(SAMPLE, empty, strict=True))
        return Sample(*parts).keep_smallest(self.layout.max_samples)

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
        """Mean of the outer products of the unit vectors, ``(D, D)``, of trace 1.

        Raises:
            ValueError: If it was not accumulated, as in a reference file of an older format.
        """
        if not self.layout.unit_second_moment:
            raise ValueError(NO_UNIT_SECOND_MOMENT)
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
        for chunk in view._chunks(sample.rows, sample.groups, sample.ids, sample.keys, self.grouped):
            view._add(chunk)
        return view
