"""Metrics of pairs of images and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from clipconformity.functional.linalg import full_precision
from clipconformity.functional.resampling import Interval
from clipconformity.metrics.base import PairMetric
from clipconformity.metrics.pictures import format_quantity
from clipconformity.stream.alignment import SUMS, MeanScore, pair_buckets, pair_scores
from clipconformity.stream.layout import Layout
from clipconformity.stream.readouts.clip_score import CLIPScoreReadOut
from clipconformity.stream.row_sample import Labels

__all__ = ["CLIPScore"]


class CLIPScore(PairMetric):
    r"""CLIPScore of streamed pairs of raw embeddings, :math:`100 \max(\cos(v, w), 0)` on average: high is aligned.

    ``update(images, texts)`` takes pairs: row i of one belongs to row i of the other.

    Args:
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is no encoder.
        max_samples: Accepted for uniformity with the other metrics; no rows are kept.
        allow_normalized: Likewise: a cosine does not depend on the norms.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a scalar in [0, 100], exact for any number of pairs. torchmetrics clips the mean at 0, and this
    metric each pair, as Hessel et al. do: without a pair at an obtuse angle they are equal.

    Raises:
        ValueError: If the dimension is unknown, or given with two different values.

    Source: Hessel et al., *CLIPScore: A Reference-free Evaluation Metric for Image Captioning*, EMNLP 2021.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> metric = cc.CLIPScore(embed_dim=2)
        >>> metric.update(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
        >>> metric.compute()
        tensor(80.)
    """

    readout = CLIPScoreReadOut()
    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 100.0

    def __init__(self, *positional: object, **options: Any) -> None:
        super().__init__(*positional, **options)
        for name, shape in SUMS.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _make_layouts(self) -> dict[str, Layout]:
        return {}

    @property
    def num_samples(self) -> int:
        """Number of pairs so far, on all ranks."""
        with self._synchronise():
            return int(self._score_pairs().total)

    def update(  # type: ignore[override]
        self, images: Any, texts: Any, *, groups: Labels | None = None, ids: Sequence[object] | None = None
    ) -> None:
        """Accumulate a batch of pairs; one without rows changes nothing.

        Args:
            images: Raw embeddings ``(N, D)``, or images if there is an encoder.
            texts: Raw embeddings ``(N, D)``, or texts if there is an encoder.
            groups: One id for each pair; pairs of one group, such as the captions of one image, are dependent.
            ids: A name for each pair.

        Raises:
            TypeError: If a batch is neither embeddings nor valid input of the encoder.
            ValueError: If lengths or dimensions differ, or groups or ids do not fit. Invalid values are reported by
                ``compute``.
        """
        self._take_in(self._score_pairs(), *self._encode_pair(images, texts), groups, ids)

    @full_precision
    def forward(  # type: ignore[override]
        self, images: Any, texts: Any, *, groups: Labels | None = None, ids: Sequence[object] | None = None
    ) -> Tensor:
        """Accumulate a batch of pairs, and return its own value: NaN for a single pair."""
        if self._is_synced:
            raise TorchMetricsUserError("forward was called on a synchronised metric; call unsync first.")
        pair = self._encode_pair(images, texts)
        self.update(*pair, groups=groups, ids=ids)
        batch = MeanScore({name: torch.zeros_like(value) for name, value in self._score_pairs().state.items()})
        with torch.no_grad():
            self._take_in(batch, *pair, groups, ids)
            try:
                fields: Mapping[str, Tensor] = self.readout.read_sums(batch)
            except ValueError:  # only compute raises for invalid values
                fields = {self.readout.name: torch.tensor(float("nan"))}
        self._forward_cache: Any = self._value(fields)
        return self._forward_cache

    @full_precision
    def compute(self) -> Tensor:
        """Return the mean over all pairs so far, on all ranks.

        Raises:
            ValueError: If there are fewer than two pairs, or rows that were zero, NaN or infinite.
        """
        return self._value(self.readout.read_sums(self._score_pairs()))

    @full_precision
    def interval(self, confidence: float = 0.95) -> Interval:
        """Interval of the mean: buckets of whole groups are left out in turn; NaN where it is unknown."""
        with self._synchronise():
            return self._score_pairs().estimate().interval(confidence)

    def _plot_figures(self, ax: Any) -> Any:
        from clipconformity import plots

        low, high = self.interval()
        value = float(self.compute())
        return plots.forest([value], [low], [high], ["CLIPScore"], quantity=format_quantity(self.readout), ax=ax)

    def _score_pairs(self) -> MeanScore:
        return MeanScore({name: getattr(self, name) for name in SUMS})

    @full_precision
    def _take_in(
        self, scores: MeanScore, image: Tensor, text: Tensor, groups: Labels | None, ids: Sequence[object] | None
    ) -> None:
        buckets = pair_buckets(torch.cat([image, text.to(image)], 1), groups, ids)
        scores.update(pair_scores(image, text), buckets)
