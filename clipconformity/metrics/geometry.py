"""Metrics of the geometry of one modality, and of two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from clipconformity.functional import shift_sweep
from clipconformity.functional.linalg import full_precision
from clipconformity.functional.resampling import Interval
from clipconformity.metrics.base import PairMetric, SetMetric
from clipconformity.metrics.pictures import draw_values
from clipconformity.stream.layout import Layout
from clipconformity.stream.moments import BUCKETS, Moments
from clipconformity.stream.readouts import modality_gap
from clipconformity.stream.readouts.ellipsoid import EllipsoidReadOut, spectrum
from clipconformity.stream.row_sample import Labels
from clipconformity.stream.stream import Stream

__all__ = ["EllipsoidGeometry", "ModalityGap"]


class EllipsoidGeometry(SetMetric):
    r"""Geometry of one modality's raw embeddings: thin shell, ellipsoid, tilt, offset.

    Args:
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is no encoder.
        max_samples: Rows kept for the shell and for the values with permuted columns.
        allow_normalized: Take L2-normalised embeddings, which lie on a sphere by construction.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a dict of scalars.

    - ``shell_mu``, ``shell_variance``, ``shell_ratio``: of the centred norms, as of
      :func:`clipconformity.functional.thin_shell`. Exact up to ``max_samples`` rows, from the row sample beyond.
    - ``participation_ratio``, and ``spectrum_condition`` (largest over smallest eigenvalue): exact. The condition is
      NaN where the covariance is not of full rank, or the smallest eigenvalue is within rounding.
    - ``off_diagonal_ratio``, ``diagonally_dominant``, ``mean_abs_correlation``: exact; NaN in one dimension.
    - ``population_participation_ratio``: the same of the population, without the bias of few samples, which makes the
      sample's own at most N - 1.
    - ``offset``: exact.
    - ``_low`` and ``_high`` after ``shell_ratio``, ``population_participation_ratio`` and ``offset``: the 95% interval
      of the population's value; that of the offset has the part of chance, 1/N of its square, subtracted. After
      ``off_diagonal_ratio`` and ``mean_abs_correlation``: of their expectation at this N, on which they depend. NaN
      below four samples or groups, and where all are in one bucket.
    - the four of ellipsoid and tilt with the prefix ``permuted_``: the same with independently permuted columns, on the
      row sample. Beyond ``max_samples`` rows these use fewer samples than the figures themselves.

    Rows given with ``real=True`` are left out.

    Raises:
        ValueError: If the dimension is unknown, or given with two different values.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> metric = cc.EllipsoidGeometry(embed_dim=8)
        >>> metric.update(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) + 1)
        >>> round(float(metric.compute()["offset"]), 1)
        1.0
    """

    readout = EllipsoidReadOut()

    def spectrum(self) -> Tensor:
        """Eigenvalues of the sample covariance, descending, ``(D,)`` float64: the long tail."""
        with self._read_stream() as stream:
            return spectrum(stream)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the covariance spectrum, or ``val``: values of ``compute``; returns ``(figure, axes)``."""
        if val is not None:
            return draw_values(self._plotted, val, ax)
        from clipconformity import plots

        return plots.covariance_spectrum({None: self.spectrum()}, ax=ax)


class ModalityGap(PairMetric):
    r"""Gap between the modalities of streamed pairs of raw embeddings.

    ``update(images, texts, groups=...)`` takes pairs: row i of one belongs to row i of the other. Pairs of one group,
    such as the captions of one image, are dependent, and errors and intervals treat a group as one unit.

    Args:
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        embed_dim: Dimension D, where there is no encoder.
        max_samples: Pairs kept for the divergence between the modalities; the rest is exact.
        allow_normalized: Accept L2-normalised embeddings.
        kwargs: Options of ``torchmetrics.Metric``.

    ``compute`` returns a dict of scalars.

    - ``modality_gap``, :math:`|m_u(image) - m_u(text)|` in [0, 2], with its standard error ``modality_gap_se``.
    - ``squared_modality_gap``: the square of the population's gap, without the bias of finite N, from pairs of
      different groups; it may be negative where there is no gap. ``modality_gap_low`` and ``modality_gap_high`` are the
      95% interval of the population's gap.
    - ``modality_gap_null``: root mean square of the gap by chance, where the population means are equal.
    - ``raw_modality_gap``, :math:`|m(image) - m(text)|`.
    - ``matched_cosine``, the mean cosine of the pairs, with ``matched_cosine_se``.
    - ``modality_kl``, KL(image || text) in nats between the conformities inside the own sets.

    Raises:
        ValueError: If the dimension is unknown, or given with two different values.

    Source: Liang et al., *Mind the Gap*, NeurIPS 2022; Levi and Gilboa, ICML 2025, for the divergence.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> g = torch.Generator().manual_seed(0)
        >>> metric = cc.ModalityGap(embed_dim=8)
        >>> metric.update(torch.randn(99, 8, generator=g) + 2, torch.randn(99, 8, generator=g) - 2)
        >>> bool(metric.compute()["modality_gap"] > 1)
        True
    """

    plot_lower_bound = 0.0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("matched_sum", torch.zeros(BUCKETS, dtype=torch.float64), dist_reduce_fx="sum")

    def _make_layouts(self) -> dict[str, Layout]:
        return modality_gap.pair_layouts(self.embed_dim, self.max_samples)

    @property
    def num_samples(self) -> int:
        """Number of pairs so far, on all ranks."""
        with self._synchronise():
            return int(self._stream().sides[modality_gap.IMAGE].total)

    def update(self, images: Any, texts: Any, *, groups: Labels | None = None) -> None:  # type: ignore[override]
        """Accumulate a batch of pairs.

        Args:
            images: Raw embeddings ``(N, D)``, or images if there is an encoder.
            texts: Raw embeddings ``(N, D)``, or texts if there is an encoder.
            groups: One id for each pair, such as that of its image.

        Raises:
            TypeError: If a batch is neither embeddings nor valid input of the encoder, or groups are neither
                whole numbers nor strings.
            ValueError: If lengths or dimensions differ, or groups do not fit. Invalid values are reported by
                ``compute``.
        """
        self.matched_sum: Tensor
        image, text = self._encode_pair(images, texts)
        self.matched_sum.add_(modality_gap.take_in(self._stream(), image, text, groups).to(self.matched_sum))

    @full_precision
    def forward(  # type: ignore[override]
        self, images: Any, texts: Any, *, groups: Labels | None = None
    ) -> dict[str, Tensor]:
        """Accumulate a batch of pairs, and return its own value: NaN where it is too small."""
        if self._is_synced:
            raise TorchMetricsUserError("forward was called on a synchronised metric; call unsync first.")
        pair = self._encode_pair(images, texts)
        self.update(*pair, groups=groups)
        states = {side: layout.zeros(self.matched_sum.device) for side, layout in self._layouts.items()}
        stream = Stream(self._layouts, allow_normalized=self.allow_normalized, states=states)
        with torch.no_grad():
            matched = modality_gap.take_in(stream, *pair, groups)
            try:
                fields = modality_gap.read(stream, matched)
            except ValueError:  # only compute raises for invalid values
                fields = {field.name: torch.tensor(float("nan")) for field in modality_gap.FIELDS}
        self._forward_cache: Any = self._value(fields)
        return self._forward_cache

    @full_precision
    def compute(self) -> dict[str, Tensor]:
        """Compute the gap over all pairs so far, on all ranks.

        Raises:
            ValueError: If there are too few pairs, or rows that were zero, NaN, infinite or L2-normalised.
        """
        return self._value(modality_gap.read(self._stream(), self.matched_sum))

    def _value(self, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.float() for name, value in fields.items()}

    def interval(
        self, confidence: float = 0.95, *, resamples: int = 200, generator: torch.Generator | None = None
    ) -> Interval:
        """Bootstrap interval of ``modality_kl``: pairs are redrawn and the means recomputed; see ``shift_sweep``.

        One pair of each group is used, since the redraws treat pairs as independent.
        """
        with self._read_stream() as stream:
            image, text = modality_gap.choose_independent_pairs(*self._read_sides(stream))
        sweep = shift_sweep(image, text, [0.0], confidence=confidence, resamples=resamples, generator=generator)
        return Interval(float(sweep.kl_low[0]), float(sweep.kl_high[0]))

    def _read_sides(self, stream: Stream) -> tuple[Moments, Moments]:
        return stream.read_side(modality_gap.IMAGE, 10), stream.read_side(modality_gap.TEXT, 10)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Sketch both modalities along the gap between their means, or plot ``val``: values of ``compute``.

        Returns:
            ``(figure, axes)``.
        """
        from clipconformity import plots

        if val is not None:
            return plots.figures(val, ax=ax)
        with self._read_stream() as stream:
            image, text = (side.good_sample().rows for side in self._read_sides(stream))
        return plots.shells(image, text, ax=ax)
