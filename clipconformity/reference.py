"""Reference sets: what evaluated samples are compared with, built once, saved, checked and merged."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipconformity._files import write_tensors
from clipconformity._stored import MODALITIES, TENSORS, check_stored
from clipconformity.checks import check_stream, is_normalized
from clipconformity.encoders.protocol import Encoder
from clipconformity.functional import conformity
from clipconformity.functional._checks import check_matrix, check_same_dim
from clipconformity.functional.conformity import ConformityFit, estimated_conformity, fit_lines, own_set_conformity
from clipconformity.moments import Groups, Layout, Moments, Sample, check_clusters

FORMAT = "clipconformity-reference"
FORMAT_VERSION = "1"


class ReferenceSet:
    """Statistics of a reference set of *raw* embeddings, such as MS-COCO's images under one encoder.

    Counts, means, covariance and self-conformity are exact whatever the size, and merge exactly. Conformities and
    their fit come from a row sample under the final mean: exact while the set has at most ``max_samples`` rows,
    approximate beyond, and in both cases the same whatever the order of batches or parts.

    Build one with :meth:`fit` or :meth:`load`.

    Attributes:
        count: Number of embeddings N.
        embed_dim: Dimension D.
        mean: Raw mean m, ``(D,)`` float64.
        unit_mean: Mean unit vector m_u, ``(D,)`` float64.
        covariance: Sample covariance of the raw embeddings, ``(D, D)`` float64.
        sketch: Different rows of smallest hash ``(d, D)`` float32, their keys and groups, and how often each came.
        spec: The encoder, as ``load_encoder`` takes it; None if not told.
        encoder_id: What the encoder was: hash of its weights, preprocessing, precision, backend; None if not told.
        modality: ``"image"``, ``"text"`` or None.
        dataset: Free text: what the samples are.
        normalized: Whether the embeddings were L2-normalised; then their norms mean nothing.
        grouped: Whether rows belong to groups, such as the captions of one image.
        max_samples: The most rows kept.
    """

    def __init__(
        self,
        *,
        count: int,
        mean: Tensor,
        unit_sum: Tensor,
        covariance: Tensor,
        sketch: Sample,
        spec: str | None = None,
        encoder_id: dict[str, str] | None = None,
        modality: str | None = None,
        dataset: str | None = None,
        normalized: bool = False,
        grouped: bool = False,
        max_samples: int = 10_000,
    ) -> None:
        if modality is not None and modality not in MODALITIES:
            raise ValueError(f"modality: expected 'image', 'text' or None, got {modality!r}.")
        self.count = count
        self.mean = mean
        self.unit_sum = unit_sum
        self.covariance = covariance
        self.sketch = sketch
        self.spec = spec
        self.encoder_id = encoder_id
        self.modality = modality
        self.dataset = dataset
        self.normalized = normalized
        self.grouped = grouped
        self.max_samples = max_samples

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
        spec: str | Encoder | None = None,
        modality: str | None = None,
        dataset: str | None = None,
        groups: Groups | None = None,
        max_samples: int = 10_000,
        allow_normalized: bool = False,
    ) -> ReferenceSet:
        """Build a reference from raw embeddings, given at once or as batches that are read once.

        Args:
            embeddings_or_batches: ``(N, D)``, or an iterable of ``(n, D)``; before L2 normalisation.
            spec: The encoder that made them: its spec, or itself, which also records what it was.
            modality: ``"image"`` or ``"text"``.
            dataset: What they are, such as ``"coco val2017"``.
            groups: One id for each row, over all batches; rows of one group are not independent.
            max_samples: Rows kept for what is not additive.
            allow_normalized: Take L2-normalised rows, recorded in :attr:`normalized`.

        Raises:
            TypeError: If the embeddings are not floating-point arrays.
            ValueError: If there are fewer than two samples, dimensions differ, a row is zero, NaN or infinite, all
                rows are L2-normalised, or ``groups`` does not fit or names one group alone.

        Example:
            >>> import torch
            >>> g = torch.Generator().manual_seed(0)
            >>> ReferenceSet.fit((torch.randn(50, 8, generator=g) + 1 for _ in range(4)), modality="image")
            ReferenceSet(count=200, embed_dim=8, modality='image')
        """
        if max_samples < 2:
            raise ValueError(f"max_samples: expected at least 2, got {max_samples}.")
        moments: Moments | None = None
        seen = 0
        for batch in _batches(embeddings_or_batches):
            if moments is None:
                layout = Layout(batch.shape[1], buckets=1, max_samples=max_samples, second_moment=True)
                moments = Moments(layout)
            check_same_dim(batch, moments.layout.dim, "a later batch", "the first")
            part = None if groups is None else groups[seen : seen + len(batch)]
            moments.update(batch.cpu(), part, seen)
            seen += len(batch)
        if moments is None:
            raise ValueError("embeddings_or_batches: expected at least 2 samples, got an empty iterable.")
        if groups is not None and len(groups) != seen:
            raise ValueError(f"groups: expected one id for each of the {seen} samples, got {len(groups)}.")
        return cls.from_moments(
            moments, spec=spec, modality=modality, dataset=dataset, allow_normalized=allow_normalized
        )

    @classmethod
    def from_moments(
        cls,
        moments: Moments,
        *,
        spec: str | Encoder | None = None,
        modality: str | None = None,
        dataset: str | None = None,
        allow_normalized: bool = False,
    ) -> ReferenceSet:
        """Read a reference out of accumulated moments with a second moment and a row sample."""
        check_stream(moments, allow_normalized)
        count, sketch = int(moments.total), Sample(*(part.cpu() for part in moments.sketch()))
        if moments.grouped and len(sketch.groups.unique()) < 2:
            raise ValueError(
                f"groups: expected at least two groups among the {len(sketch.keys)} different rows that a reference "
                "keeps, got one; give ids that differ between independent samples, or none."
            )
        return cls(
            count=count,
            mean=moments.mean.cpu(),
            unit_sum=moments["unit_sum"].sum(0).cpu(),
            covariance=moments.covariance.cpu(),
            sketch=sketch,
            spec=spec if spec is None or isinstance(spec, str) else spec.spec,
            encoder_id=None if spec is None or isinstance(spec, str) else spec.id,
            modality=modality,
            dataset=dataset,
            normalized=is_normalized(moments),
            grouped=moments.grouped,
            max_samples=moments.layout.max_samples,
        )

    @property
    def embed_dim(self) -> int:
        """Dimension D of the embeddings."""
        return len(self.mean)

    @property
    def unit_mean(self) -> Tensor:
        """Mean of the unit vectors u = v/|v|, ``(D,)`` float64; its norm is below 1."""
        return self.unit_sum / self.count

    @property
    def self_conformity(self) -> Tensor:
        """Mean pairwise cosine of the set, exact, in [-1, 1]: low is varied."""
        return own_set_conformity(self.unit_mean @ self.unit_mean, self.count)

    @property
    def self_conformity_se(self) -> Tensor:
        """Standard error of :attr:`self_conformity`, from the row sample; groups count as one."""
        values = self.conformities
        check_clusters(int(self.clusters.max()) + 1)
        sums = torch.zeros(len(values), dtype=torch.float64).index_add_(0, self.clusters, values - values.mean())
        return 2 * (sums.square().sum() / len(values) / self.count).sqrt()

    @cached_property
    def sample(self) -> Sample:
        """Row sample: raw embeddings ``(k, D)``, k = min(N, ``max_samples``), their keys and groups."""
        return self.sketch.expanded(self.max_samples)

    @property
    def exact(self) -> bool:
        """Whether :attr:`conformities` are those of every sample, not of the row sample."""
        return self.count <= self.max_samples

    @cached_property
    def conformities(self) -> Tensor:
        """Conformity of the sampled rows inside the set, self excluded, ``(k,)`` float64."""
        cosine = conformity(self.sample.rows.double(), self)
        return own_set_conformity(cosine, self.count)

    @cached_property
    def clusters(self) -> Tensor:
        """Number of each sampled row's group, ``(k,)``; without groups every row is its own."""
        if not self.grouped:
            return torch.arange(len(self.sample.keys))
        return self.sample.groups.unique(return_inverse=True)[1]

    @cached_property
    def within_groups(self) -> tuple[Tensor, Tensor]:
        """For each sampled row, its summed cosine to its own group, itself included, and the group's size, ``(k,)``."""
        rows = self.sample.rows.double()
        units = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        sums = torch.zeros(len(rows), self.embed_dim, dtype=torch.float64).index_add_(0, self.clusters, units)
        sizes = torch.bincount(self.clusters)
        return (units * sums[self.clusters]).sum(1), sizes[self.clusters].double()

    @cached_property
    def null_conformities(self) -> Tensor:
        """What :attr:`conformities` would be of samples from elsewhere: the own group is excluded, ``(k,)`` float64.

        This is the Q of the divergence. A caption is nearer to the other captions of its image than to those of others,
        and an evaluated sample has no such companions in the reference. Without groups it equals :attr:`conformities`.
        """
        if not self.grouped:
            return self.conformities
        cosine, size = self.within_groups
        return (self.count * conformity(self.sample.rows.double(), self) - cosine) / (self.count - size)

    @property
    def null_mean(self) -> Tensor:
        """Mean of :attr:`null_conformities`; without groups the exact :attr:`self_conformity`."""
        return self.self_conformity + (self.null_conformities - self.conformities).mean()

    @cached_property
    def conformity_fit(self) -> ConformityFit:
        """Least squares between exact and estimated conformity on the row sample."""
        return fit_lines(self.conformities, estimated_conformity(self.sample.rows.double(), self.mean))

    @property
    def norms(self) -> Tensor:
        """Norms of the sampled rows, ``(k,)`` float64."""
        return torch.linalg.vector_norm(self.sample.rows.double(), dim=1)

    def check_encoder(self, spec: str | None, encoder_id: dict[str, str] | None) -> list[str]:
        """Compare an encoder with the reference's.

        Args:
            spec: Its spec, if known.
            encoder_id: Its identity, if known; where both are known, specs may differ.

        Returns:
            What differs without mattering much, precision or backend, in words; a warning says it too.

        Raises:
            ValueError: If weights or preprocessing differ, or where only specs are known, these.
        """
        if encoder_id is None or self.encoder_id is None:
            if spec is not None and self.spec is not None and spec != self.spec:
                raise ValueError(
                    f"the samples come from encoder {spec!r} and the reference from {self.spec!r}; "
                    "encode both with the same one."
                )
            return []
        remarks = []
        for part in sorted(set(encoder_id) | set(self.encoder_id)):
            mine, theirs = self.encoder_id.get(part), encoder_id.get(part)
            if mine == theirs:
                continue
            message = f"{part} of the encoder: the reference ({self.spec}) has {mine}, the samples ({spec}) {theirs}"
            if part in ("weights", "preprocessing"):
                raise ValueError(f"{message}; encode both with the same one.")
            warnings.warn(f"{message}; conformities may differ slightly.", stacklevel=3)
            remarks.append(message)
        return remarks

    def merge(self, other: ReferenceSet) -> ReferenceSet:
        """Join two references of different samples into a new one; neither changes.

        Raises:
            TypeError: If ``other`` is not a ``ReferenceSet``.
            ValueError: If encoder, modality, dimension or normalisation differ, or both hold the same samples.
        """
        if not isinstance(other, ReferenceSet):
            raise TypeError(f"other: expected a ReferenceSet, got {type(other).__name__}.")
        if self.encoder_id is not None and other.encoder_id is not None:
            self.check_encoder(other.spec, other.encoder_id)
        names = ("embed_dim", "modality", "normalized", "grouped")
        for name in names if self.encoder_id and other.encoder_id else ("spec", *names):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(
                    f"cannot merge references of different {name}: {mine!r} and {theirs!r}; "
                    "build both with the same encoder and of the same kind."
                )
        if self.count == other.count and torch.equal(self.sketch.keys, other.sketch.keys):
            raise ValueError("cannot merge a reference with itself: every sample would count twice.")
        size = min(self.max_samples, other.max_samples)
        both = Sample(*(torch.cat(parts) for parts in zip(self.sketch, other.sketch, strict=True)))
        count = self.count + other.count
        mean = (self.count * self.mean + other.count * other.mean) / count
        scatter = torch.zeros_like(self.covariance)
        for part in (self, other):
            apart = part.mean - mean
            scatter += (part.count - 1) * part.covariance + part.count * torch.outer(apart, apart)
        datasets = sorted({d for part in (self, other) for d in (part.dataset or "").split(" + ") if d})
        return ReferenceSet(
            count=count,
            mean=mean,
            unit_sum=self.unit_sum + other.unit_sum,
            covariance=scatter / (count - 1),
            sketch=both.smallest(size),
            spec=self.spec,
            encoder_id=self.encoder_id,
            modality=self.modality,
            dataset=" + ".join(datasets) or None,
            normalized=self.normalized,
            grouped=self.grouped,
            max_samples=size,
        )

    def describe(self) -> dict[str, Any]:
        """Say what the reference is: the fields that its file carries as metadata."""
        names = (
            "count",
            "embed_dim",
            "spec",
            "encoder_id",
            "modality",
            "dataset",
            "normalized",
            "grouped",
            "max_samples",
        )
        return {name: getattr(self, name) for name in names}

    def save(self, path: Path | str) -> None:
        """Write a safetensors file with metadata; the file appears whole or not at all.

        Raises:
            OSError: If it cannot be written.
        """
        from clipconformity import __version__

        parts = (self.mean, self.unit_sum, self.covariance, *self.sketch)
        tensors = dict(zip(TENSORS, parts, strict=True))
        about = {"format": FORMAT, "format_version": FORMAT_VERSION, "library_version": __version__}
        write_tensors(path, tensors, about | {"reference": json.dumps(self.describe())})

    @classmethod
    def load(cls, path: Path | str) -> ReferenceSet:
        """Read a reference written by :meth:`save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a reference, is damaged, or comes from a newer format.
        """
        from safetensors import safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such reference file; build one with `clipconformity reference`.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except Exception as error:  # a damaged file makes its reader fail in any way
            raise ValueError(f"{path}: not a readable safetensors file ({error}).") from None
        if metadata.get("format") != FORMAT or set(tensors) != set(TENSORS):
            raise ValueError(f"{path}: not a reference set; build one with `clipconformity reference`.")
        if metadata.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{path}: reference format {metadata.get('format_version')}, this version reads "
                f"{FORMAT_VERSION}; use a newer clipconformity."
            )
        try:
            about = json.loads(metadata["reference"])
        except (KeyError, ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits too
            raise ValueError(f"{path}: damaged: its metadata cannot be read ({error}).") from None
        try:
            check_stored(about, tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        del about["embed_dim"]
        mean, unit_sum, covariance, *sample = (tensors[name] for name in TENSORS)
        return cls(mean=mean, unit_sum=unit_sum, covariance=covariance, sketch=Sample(*sample), **about)


def _batches(source: Tensor | np.ndarray | Iterable[Tensor | np.ndarray]) -> Iterable[Tensor]:
    parts = [source] if isinstance(source, (Tensor, np.ndarray)) else source
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype.kind == "f":
            yield check_matrix(torch.tensor(part), "embeddings_or_batches", min_rows=0)
        else:
            yield check_matrix(part, "embeddings_or_batches", min_rows=0)  # refuses what is no tensor
