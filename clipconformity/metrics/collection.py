"""A ready collection that encodes each batch once."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from torchmetrics import MetricCollection

from clipconformity.encoders.protocol import Encoder
from clipconformity.metrics.base import (
    EmbeddingMetric,
    EncoderOrSpec,
    check_batch_modality,
    encode_batch,
    loaded_encoder,
)
from clipconformity.metrics.distribution import Conformity, ConformityKL, EmbeddingNorm
from clipconformity.moments import Groups
from clipconformity.reference import ReferenceSet


class ConformityMetrics(MetricCollection):
    """:class:`Conformity`, :class:`ConformityKL` and :class:`EmbeddingNorm` against one reference.

    A batch of images or texts is encoded once, in ``update`` and in ``forward``; the two conformity metrics share
    their state.

    Args:
        reference: Set to compare with.
        encoder: Turns images and texts into embeddings: an encoder, or what ``load_encoder`` takes.
        max_samples: Rows kept by each metric.
        allow_normalized: Take L2-normalised embeddings.
        prefix: Put before every key.
        postfix: Put after every key.

    Raises:
        ValueError: If encoder and reference have different dimensions.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> g = torch.Generator().manual_seed(0)
        >>> metrics = cc.ConformityMetrics(cc.ReferenceSet.fit(torch.randn(500, 16, generator=g) + 1))
        >>> metrics.update(torch.randn(100, 16, generator=g) + 1)
        >>> sorted(metrics.compute())[:2]
        ['ConformityKL', 'centered_norm_mean']
    """

    def __init__(
        self,
        reference: ReferenceSet,
        *,
        encoder: EncoderOrSpec | None = None,
        max_samples: int = 10_000,
        allow_normalized: bool = False,
        prefix: str | None = None,
        postfix: str | None = None,
    ) -> None:
        encoder = loaded_encoder(encoder)
        conformity = Conformity(reference, encoder=encoder, max_samples=max_samples, allow_normalized=allow_normalized)
        norm = EmbeddingNorm(
            encoder=encoder,
            embed_dim=reference.embed_dim,
            max_samples=max_samples,
            allow_normalized=conformity.allow_normalized,
        )
        kl = ConformityKL(reference, encoder=encoder, max_samples=max_samples, allow_normalized=allow_normalized)
        super().__init__([conformity, kl, norm], prefix=prefix, postfix=postfix)
        self._modality: str | None = None

    @property
    def encoder(self) -> Encoder | None:
        """The encoder that the metrics share."""
        return self._conformity.encoder

    @property
    def _conformity(self) -> Conformity:
        """The first metric, without the copy of the shared states that indexing makes."""
        return cast("Conformity", self._modules["Conformity"])

    def update(self, batch: Any, *, real: bool = False, groups: Groups | None = None) -> None:
        """Encode a batch once and take it into every metric; arguments as of the metrics."""
        super().update(self._encode(batch), real=real, groups=groups)

    def forward(self, batch: Any, *, real: bool = False, groups: Groups | None = None) -> dict[str, Any]:
        """Encode a batch once, accumulate it, and give its own values."""
        return super().forward(self._encode(batch), real=real, groups=groups)

    def reset(self) -> None:
        """Forget all samples."""
        self._modality = None
        super().reset()

    def plot(self, val: Any = None, ax: Any = None, together: bool = False) -> Any:
        """Plot every metric's own picture, or what ``val`` holds of each: one or several values of ``compute``.

        Returns:
            A list of ``(figure, axes)``, one for each metric; with ``together`` a single pair, as of torchmetrics.
        """
        if together:
            return super().plot(val, ax, together=True)
        metrics = [cast("EmbeddingMetric", metric) for metric in self._modules.values()]
        axes = [None] * len(metrics) if ax is None else list(ax)
        return [
            metric.plot(None if val is None else self._part(metric, val), own)
            for metric, own in zip(metrics, axes, strict=True)
        ]

    def _part(self, metric: EmbeddingMetric, val: Any) -> Any:
        """Take one metric's values out of those of ``compute``."""
        if isinstance(val, list | tuple):
            return [self._part(metric, one) for one in val]
        empty = metric._nothing(metric._sides())
        if isinstance(empty, dict):
            return {name: val[self._set_name(name)] for name in empty}
        return val[self._set_name(type(metric).__name__)]

    def _encode(self, batch: Any) -> Tensor:
        modality = check_batch_modality(batch, self._modality, self._conformity.reference)
        embeddings = encode_batch(batch, self.encoder)
        self._modality = modality
        return embeddings
