"""Reference sets for evaluated samples: built once, saved, checked and merged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from clipconformity.functional.conformity import (
    ConformityFit,
    estimated_conformity,
    fit_lines,
    own_set_conformity,
)
from clipconformity.functional.density import Grid
from clipconformity.functional.divergence import make_grid
from clipconformity.functional.resampling import Estimate
from clipconformity.functional.validation import check_same_dim
from clipconformity.provenance import UNKNOWN, Identified, Provenance
from clipconformity.stream.batches import check_batches
from clipconformity.stream.checks import check_stream
from clipconformity.stream.layout import Layout
from clipconformity.stream.moments import Moments, assign_buckets
from clipconformity.stream.pairs import own_pairs
from clipconformity.stream.row_sample import Labels, Sample, check_labels
from clipconformity.stream.spread import Spread, spread_without

if TYPE_CHECKING:
    from clipconformity.stream.merging import Piece

Value = TypeVar("Value")


class ReferenceSet:
    """Statistics of a reference set of *raw* embeddings, such as MS-COCO's images under one encoder.

    Counts, means, covariance and self-conformity are exact for any size, and merge exactly. Conformities and their fit
    come from a row sample under the final mean: exact while the set has at most ``max_samples`` rows, approximate
    beyond, and in both cases independent of the order of batches or parts.

    Build one with :meth:`fit` or :meth:`load`.

    Args:
        moments: The accumulated statistics, on the CPU, with second moments and a row sample of raw rows.
        provenance: The encoder and the modality, as far as they are known.
        dataset: Free text: what the samples are.
        made_of: The references that were merged into it, or the share of the samples that it holds.

    Attributes:
        moments: The statistics.
        provenance: The encoder and the modality.
        dataset: Name of the samples.
        sketch: Distinct rows of smallest hash ``(d, D)`` float32, their keys, groups, ids and numbers of copies.
        normalized: Whether the embeddings were L2-normalised; then their norms mean nothing.
        grouped: Whether rows belong to groups, such as the captions of one image.
    """

    def __init__(
        self,
        moments: Moments,
        provenance: Provenance = UNKNOWN,
        *,
        dataset: str | None = None,
        made_of: Sequence[Piece] = (),
    ) -> None:
        self.moments = moments
        self.provenance = provenance
        self.dataset = dataset
        self.made_of = tuple(made_of)
        self.sketch: Sample = moments.sketch()
        self.normalized = moments.normalized
        self.grouped = moments.grouped
        self._once: dict[str, Any] = {}

    def __repr__(self) -> str:
        about = [f"count={self.count}", f"embed_dim={self.embed_dim}"]
        for name in ("spec", "modality", "dataset"):
            value = getattr(self, name)
            if value is not None:
                about.append(f"{name}={value!r}")
        return f"ReferenceSet({', '.join(about)})"

    @classmethod
    def fit(
        cls,
        embeddings_or_batches: Tensor | np.ndarray | Iterable[Tensor | np.ndarray],
        *,
        spec: str | Identified | None = None,
        modality: str | None = None,
        dataset: str | None = None,
        groups: Labels | None = None,
        ids: Sequence[object] | None = None,
        max_samples: int = 10_000,
        allow_normalized: bool = False,
    ) -> ReferenceSet:
        """Build a reference from raw embeddings, given at once or as batches that are read once.

        Args:
            embeddings_or_batches: ``(N, D)``, or an iterable of ``(n, D)``; before L2 normalisation.
            spec: The encoder of the embeddings, or its spec; an encoder also records its identity.
            modality: ``"image"`` or ``"text"``.
            dataset: Name of the samples, such as ``"coco val2017"``.
            groups: One id for each row, over all batches; rows of one group are not independent.
            ids: A name for each row, over all batches; those of the kept rows are kept, see :attr:`sample_ids`.
            max_samples: Rows kept for non-additive figures.
            allow_normalized: Accept L2-normalised rows, recorded in :attr:`normalized`.

        Raises:
            TypeError: If the embeddings are not floating-point arrays.
            ValueError: If there are fewer than two samples, dimensions differ, a row is zero, NaN or infinite, all
                rows are L2-normalised, or ``groups`` or ``ids`` do not fit, or all rows are of one group.

        Example:
            >>> import torch
            >>> g = torch.Generator().manual_seed(0)
            >>> ReferenceSet.fit((torch.randn(50, 8, generator=g) + 1 for _ in range(4)), modality="image")
            ReferenceSet(count=200, embed_dim=8, modality='image')
        """
        provenance = Provenance.from_encoder(spec, modality)
        check_labels(groups)
        moments: Moments | None = None
        seen = 0
        for batch in check_batches(embeddings_or_batches):
            if moments is None:
                moments = Moments(reference_layout(batch.shape[1], max_samples))
            check_same_dim(batch, moments.layout.dim, "a later batch", "the first")
            part = slice(seen, seen + len(batch))
            moments.update(batch, None if groups is None else groups[part], None if ids is None else ids[part])
            seen += len(batch)
        if moments is None:
            raise ValueError("embeddings_or_batches: expected at least 2 samples, got an empty iterable.")
        for name, labels in (("groups", groups), ("ids", ids)):
            if labels is not None and len(labels) != seen:
                raise ValueError(f"{name}: expected one id for each of the {seen} samples, got {len(labels)}.")
        return cls.from_moments(moments, provenance, dataset=dataset, allow_normalized=allow_normalized)

    @classmethod
    def from_moments(
        cls,
        moments: Moments,
        provenance: Provenance = UNKNOWN,
        *,
        dataset: str | None = None,
        allow_normalized: bool = False,
    ) -> ReferenceSet:
        """Check accumulated moments, as of :func:`reference_layout`, and make a reference of them.

        Raises:
            ValueError: As :meth:`fit`.
        """
        check_stream(moments, allow_normalized)
        moments = moments.cpu()
        reference = cls(moments, provenance, dataset=dataset)
        if reference.grouped and int((moments["count"] > 0).sum()) < 2:
            raise ValueError(
                "groups: expected several groups, whose hashes differ, and got one; give ids that differ between "
                "independent samples, or none."
            )
        return reference

    @property
    def count(self) -> int:
        """Number of embeddings N."""
        return int(self.moments.total)

    @property
    def embed_dim(self) -> int:
        """Dimension D of the embeddings."""
        return self.moments.layout.dim

    @property
    def max_samples(self) -> int:
        """Largest number of kept rows."""
        return self.moments.layout.max_samples

    @property
    def spec(self) -> str | None:
        """Spec of the encoder, as ``load_encoder`` takes it; None if unknown."""
        return self.provenance.spec

    @property
    def modality(self) -> str | None:
        """``"image"``, ``"text"`` or None."""
        return self.provenance.modality

    @property
    def encoder_id(self) -> dict[str, str] | None:
        """Identity of the encoder: hash of its weights, preprocessing, precision, backend; None if unknown."""
        return None if self.provenance.encoder_id is None else dict(self.provenance.encoder_id)

    @cached_property
    def mean(self) -> Tensor:
        """Raw mean m, ``(D,)`` float64."""
        return self.moments.mean

    @cached_property
    def unit_mean(self) -> Tensor:
        """Mean of the unit vectors u = v/|v|, ``(D,)`` float64; its norm is below 1."""
        return self.moments.unit_mean

    @cached_property
    def covariance(self) -> Tensor:
        """Sample covariance of the raw embeddings, ``(D, D)`` float64."""
        return self.moments.covariance

    @cached_property
    def own_pairs(self) -> Estimate:
        """Mean pairwise cosine of the set, with its standard error; see :attr:`self_conformity`."""
        return own_pairs(self.moments)

    @property
    def self_conformity(self) -> Tensor:
        """Mean pairwise cosine of the set, exact, in [-1, 1]: low is varied. With groups, over pairs between them."""
        return self.own_pairs.value

    @property
    def self_conformity_se(self) -> Tensor:
        """Standard error of :attr:`self_conformity`; a group counts as one row. NaN where it is unknown."""
        return self.own_pairs.error

    @property
    def known_error(self) -> float | None:
        """:attr:`self_conformity_se` as a number; None where it is unknown."""
        error = float(self.self_conformity_se)
        return error if math.isfinite(error) else None

    @cached_property
    def sample(self) -> Sample:
        """Row sample: raw embeddings ``(k, D)``, k = min(N, ``max_samples``), their keys, groups and ids."""
        return self.sketch.repeat_copies(self.max_samples)

    @property
    def sample_ids(self) -> list[str] | None:
        """Names of the sampled rows, as given to :meth:`fit`; None where they have none."""
        names = self.moments.names
        return [names.get(label, "") for label in self.sample.ids.tolist()] if names else None

    @property
    def exact(self) -> bool:
        """Whether :attr:`conformities` hold every sample, not only the row sample."""
        return self.count <= self.max_samples

    @cached_property
    def conformities(self) -> Tensor:
        """Conformity of the sampled rows inside the set, self excluded, ``(k,)`` float64."""
        return own_set_conformity(self.units @ self.unit_mean, self.count)

    @cached_property
    def units(self) -> Tensor:
        """The sampled rows over their norms, ``(k, D)`` float64."""
        return self.sample.units

    @cached_property
    def clusters(self) -> Tensor:
        """Index of each sampled row's group, ``(k,)``; without groups every row is its own."""
        if not self.grouped:
            return torch.arange(len(self.sample.keys))
        return self.sample.groups.unique(return_inverse=True)[1]

    @cached_property
    def between(self) -> Tensor | None:
        """Mean unit vector without each bucket, ``(G, D)``, for rows with groups; None without groups."""
        if not self.grouped:
            return None
        count, sums = self.moments["count"], self.moments["unit_sum"]
        return (sums.sum(0) - sums) / (count.sum() - count)[:, None]

    @cached_property
    def null_conformities(self) -> Tensor:
        """Conformity of the sampled rows as of new samples: their own group is left out, ``(k,)`` float64.

        This is the Q of the divergence. A caption is nearer to the other captions of its image than to those of other
        images, and an evaluated sample has no such companions in the reference. The whole bucket of the group, one of
        256, is left out. Without groups it equals :attr:`conformities`.
        """
        if self.between is None:
            return self.conformities
        return (self.units * self.between[self.buckets]).sum(1)

    @cached_property
    def buckets(self) -> Tensor:
        """Bucket of each sampled row, ``(k,)``."""
        return assign_buckets(self.sample.groups)

    @cached_property
    def spread(self) -> Spread:
        """Standard deviation of :attr:`null_conformities`, whole and without each bucket."""
        return spread_without(self.null_conformities, self.units, self.buckets, self.moments)

    @cached_property
    def grid(self) -> Grid:
        """Cells of a histogram of conformity to this set.

        Raises:
            ValueError: If its own conformities do not vary.
        """
        return make_grid(self.null_conformities)

    def cache(self, name: str, compute: Callable[[], Value]) -> Value:
        """Compute a value that depends on this set alone, and keep it."""
        if name not in self._once:
            self._once[name] = compute()
        found: Value = self._once[name]
        return found

    def view(
        self,
        *,
        max_samples: int = 0,
        rows: bool = False,
        second_moment: bool = False,
        unit_second_moment: bool = False,
    ) -> Layout:
        """Make the layout of a stream that is compared with this set; arguments as of ``Layout``."""
        return Layout(
            self.embed_dim,
            direction=self.unit_mean,
            between=self.between,
            grid=self.grid,
            max_samples=max_samples,
            rows=rows,
            second_moment=second_moment,
            unit_second_moment=unit_second_moment,
        )

    @cached_property
    def conformity_fit(self) -> ConformityFit:
        """Least squares between exact and estimated conformity on the row sample."""
        return fit_lines(self.conformities, estimated_conformity(self.sample.rows.double(), self.mean))

    @property
    def norms(self) -> Tensor:
        """Norms of the sampled rows, ``(k,)`` float64."""
        return self.sample.values[:, 0]

    def merge(self, other: ReferenceSet) -> ReferenceSet:
        """Merge two references of different samples into a new one; neither changes.

        Raises:
            TypeError: If ``other`` is not a ``ReferenceSet``.
            ValueError: If encoder, modality, dimension or normalisation differ, or both hold the same samples: also
                where one was merged from others, as its file keeps.
        """
        from clipconformity.stream.merging import merge_references

        return merge_references(self, other)

    def describe(self) -> dict[str, Any]:
        """Describe the reference in plain values."""
        about = {"count": self.count, "embed_dim": self.embed_dim} | self.provenance.describe()
        names = ("dataset", "normalized", "grouped", "max_samples")
        return about | {name: getattr(self, name) for name in names}

    def save(self, path: Path | str) -> None:
        """Write a safetensors file with metadata; the file appears whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        from clipconformity.stream.reference_file import write_reference

        write_reference(path, self)

    @classmethod
    def load(cls, path: Path | str) -> ReferenceSet:
        """Read a reference written by :meth:`save`, or shared by :meth:`push_to_hub`.

        Args:
            path: The file, or ``"hf://user/repo/file"``, ``"hf://user/repo@revision/file"`` or
                ``"hf://datasets/user/repo/file"`` on the model hub: downloaded once, and found in the cache of
                huggingface_hub then, also without a connection.

        Raises:
            FileNotFoundError: If there is no such file, or it can neither be downloaded nor found in the cache.
            ValueError: If it is not a reference, is damaged, or comes from another format.
            ImportError: If it is on the hub and huggingface_hub is not installed.
        """
        from clipconformity.data.hub import fetch_file, is_shared
        from clipconformity.stream.reference_file import read_reference

        return read_reference(fetch_file(str(path)) if is_shared(path) else path)

    def push_to_hub(
        self,
        repo: str,
        *,
        licence: str,
        file: str = "reference.safetensors",
        private: bool | None = None,
        about: str = "",
        api: Any = None,
    ) -> str:
        """Share the reference on the model hub, with a card that describes it.

        The card, ``README.md`` of the repository, has the dataset, the encoder and its preprocessing, the counts, the
        licence of the data, and a checksum. An existing card is replaced.

        Args:
            repo: ``"user/repo"``, or ``"datasets/user/repo"``; created where it does not exist.
            licence: Licence of the data of the reference, by its name on the hub, such as ``"cc-by-4.0"``.
            file: Name of the reference in the repository.
            private: Whether a newly created repository is private.
            about: Further text for the card, such as the origin of the data.
            api: Client of the hub, in place of ``huggingface_hub.HfApi()``.

        Returns:
            The address, with the commit, as :meth:`load` takes it.

        Raises:
            ValueError: If no licence is given, or a name is invalid.
            OSError: If the hub refuses it or does not answer.
            ImportError: If huggingface_hub is not installed.
        """
        from clipconformity.stream.sharing import push

        return push(self, repo, licence=licence, file=file, private=private, about=about, api=api)


def reference_layout(dim: int, max_samples: int) -> Layout:
    """Make the layout of a reference.

    Raises:
        ValueError: If fewer than two rows are to be kept.
    """
    if max_samples < 2:
        raise ValueError(f"max_samples: expected at least 2, got {max_samples}.")
    return Layout(dim, max_samples=max_samples, second_moment=True, unit_second_moment=True)
