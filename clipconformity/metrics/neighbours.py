"""Metrics of nearest neighbours."""

from __future__ import annotations

from typing import Any

from clipconformity.functional.linalg import full_precision
from clipconformity.functional.resampling import Interval
from clipconformity.metrics.base import EmbeddingMetric
from clipconformity.stream.readouts.prdc import FIGURES, PRDCReadOut
from clipconformity.stream.reference import ReferenceSet

__all__ = ["PRDC"]


class PRDC(EmbeddingMetric):
    r"""Precision, recall, density and coverage of streamed raw embeddings against a reference.

    The figures are those of :func:`clipconformity.functional.prdc` on the row samples of both sides: on all rows while
    each side has at most ``max_samples``. They depend on k and on both numbers of rows: compare runs of the same number
    against the same reference only.

    Args:
        reference: Set to compare with; without one, the rows given by ``update(..., real=True)``.
        k: Number of neighbours inside a ball.
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is neither a reference nor an encoder.
        max_samples: Rows kept.
        allow_normalized: Accept L2-normalised embeddings.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a dict of scalars: ``precision``, ``recall`` and ``coverage`` in [0, 1], and ``density`` >= 0.

    Raises:
        TypeError: If ``k`` is not a whole number.
        ValueError: If the dimension is unknown, or given with two different values, or ``k`` is below 1.

    Source: Kynkaanniemi et al., NeurIPS 2019; Naeem et al., ICML 2020.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) + 1
        >>> metric = cc.PRDC(cc.ReferenceSet.fit(rows[:200]), k=3)
        >>> metric.update(rows[200:] * 0.5)
        >>> bool(metric.compute()["precision"] > metric.compute()["recall"])
        True
    """

    readout: PRDCReadOut
    higher_is_better = True
    plot_lower_bound = 0.0

    def __init__(self, reference: ReferenceSet | None = None, *, k: int = 5, **options: Any) -> None:
        self.__dict__["readout"] = PRDCReadOut(k)
        super().__init__(reference, **options)

    @full_precision
    def intervals(self) -> dict[str, Interval]:
        """95% intervals of the four, for the expectation at these sizes; NaN where they are unknown."""
        with self._read_stream() as stream:
            found = self.readout.find_neighbourhood(stream).intervals
        return {name: interval for (name, _), interval in zip(FIGURES, found, strict=True)}

    @full_precision
    def off_manifold(self) -> list[str]:
        """Ids, as given with ``ids=``, of the samples that lie in no ball of the reference; the farthest first."""
        with self._read_stream() as stream:
            return self.readout.find_neighbourhood(stream).off_manifold(stream.evaluated.names)[1]

    @full_precision
    def uncovered(self) -> list[str]:
        """Ids of the reference's rows whose ball holds no sample; the farthest first."""
        with self._read_stream() as stream:
            names = stream.require_reference("PRDC").moments.names
            return self.readout.find_neighbourhood(stream).uncovered(names)[1]
