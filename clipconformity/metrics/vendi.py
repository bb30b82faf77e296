"""The Vendi score of a stream."""

from __future__ import annotations

from typing import Any

from clipconformity.metrics.base import SetMetric
from clipconformity.stream.readouts.vendi import VendiReadOut

__all__ = ["VendiScore"]


class VendiScore(SetMetric):
    r"""Vendi score of streamed raw embeddings: the effective number of different samples.

    It is computed from the second moment of the unit embeddings, D x D, with the eigenvalues of the cosines over N:
    exact for any number of samples, and additive over batches and ranks. The value grows with N: compare values at
    equal N only. ``score --metrics vendi`` returns both sides at equal N; :class:`SelfConformity` does not grow with N.

    Args:
        order: Order q >= 0 of the entropy; 1 is the published score, 2 is RKE, infinity uses the largest eigenvalue.
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is no encoder.
        max_samples: Rows kept for non-additive figures.
        allow_normalized: Accept L2-normalised embeddings.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a scalar between 1 and min(N, D). Rows given with ``real=True`` are left out.

    Raises:
        ValueError: If the dimension is unknown, or given with two different values, or ``order`` is below 0.

    Source: Friedman and Dieng, *The Vendi Score*, TMLR 2023; Jalali et al., NeurIPS 2023, for RKE.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> metric = cc.VendiScore(embed_dim=2)
        >>> metric.update(torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 5.0]]))
        >>> metric.compute()
        tensor(2.)
    """

    higher_is_better = True
    plot_lower_bound = 1.0

    def __init__(self, *positional: object, order: float = 1.0, **options: Any) -> None:
        self.__dict__["readout"] = VendiReadOut(order)
        super().__init__(*positional, **options)
