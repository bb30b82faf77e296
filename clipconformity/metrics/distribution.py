"""Metrics of the conformity distribution and of the norms."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipconformity import intervals
from clipconformity.functional._checks import full_precision
from clipconformity.functional._density import Grid
from clipconformity.functional.conformity import own_set_conformity, pearson, quantiles
from clipconformity.functional.divergence import (
    COARSEST,
    MIN_SAMPLES,
    Divergences,
    Side,
    anchored_grid,
    corrected_kl,
    is_lower_bound,
    warn_lower_bound,
)
from clipconformity.metrics.base import EVALUATED, EmbeddingMetric, SetMetric, Sides
from clipconformity.moments import Layout, Moments, check_clusters, mean_error, self_conformity_error
from clipconformity.reference import ReferenceSet

LEVELS = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
"""Quantiles in a metric's dict."""


class Conformity(EmbeddingMetric):
    r"""Distribution of the conformity of streamed raw embeddings, and their self-conformity.

    Conformity :math:`u \cdot m_u` to a reference says how *typical* samples are; self-conformity, their mean
    pairwise cosine, says how *alike* they are: low is varied. A generator of nothing but cars is typical and not
    varied.

    Args:
        reference: Set that conformity is taken to. Without one it is taken to the real rows, given by
            ``update(..., real=True)``, or where there are none to the evaluated set itself, each sample excluded.
        encoder: Turns images and texts into embeddings: an encoder, or what ``load_encoder`` takes.
        embed_dim: Dimension D, where neither of those tells it.
        max_samples: Rows kept for quantiles, and without a reference for the standard deviation; exact up to so
            many samples. Means are exact always.
        allow_normalized: Take L2-normalised embeddings.
        kwargs: Of ``torchmetrics.Metric``.

    ``compute`` gives a dict of scalars: ``conformity_mean``, ``conformity_std``, ``conformity_se`` (standard error of
    the mean, the reference taken as fixed), ``conformity_q05``, ``conformity_q50``, ``conformity_q95``,
    ``self_conformity_mean`` and ``self_conformity_se``, all cosines in [-1, 1]. To a reference or real rows also
    ``typicality_shift``, (mean - reference mean)/reference std, and ``spread_ratio``, std/reference std.

    Raises:
        ValueError: If the dimension is not told, or told twice differently.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> g = torch.Generator().manual_seed(0)
        >>> reference = cc.ReferenceSet.fit(torch.randn(500, 16, generator=g) + 1)
        >>> metric = cc.Conformity(reference)
        >>> metric.update(torch.randn(100, 16, generator=g) + 1)
        >>> round(float(metric.compute()["conformity_mean"]), 1)
        0.5
    """

    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def _read(self, sides: Sides) -> dict[str, Tensor]:
        moments = self._checked(sides)
        own, own_error = self_conformity_error(moments)
        reference = self._reference_of(sides)
        if reference is None:
            values = own_set_values(moments)
            mean, std, error = own, values.std(), own_error
        else:
            view = moments.towards(reference.unit_mean, anchored_grid(reference.conformities))
            values, std = view.good_sample().rows[:, 0], view.conformity_std
            sums = moments["unit_sum"] @ reference.unit_mean.to(own)
            mean, error = sums.sum() / moments.total, mean_error(sums, moments["count"])
        result = {"conformity_mean": mean, "conformity_std": std, "conformity_se": error}
        result |= {f"conformity_{name}": quantiles(values, (q,))[0] for name, q in LEVELS.items()}
        result |= {"self_conformity_mean": own, "self_conformity_se": own_error}
        if reference is not None:
            spread = reference.conformities.std().to(own)
            result["typicality_shift"] = (mean - reference.null_mean.to(own)) / spread
            result["spread_ratio"] = std / spread
        return {name: value.float() for name, value in result.items()}

    def _nothing(self, sides: Sides) -> dict[str, Tensor]:
        names = ["conformity_mean", "conformity_std", "conformity_se", *(f"conformity_{q}" for q in LEVELS)]
        names += ["self_conformity_mean", "self_conformity_se"]
        if self._has_reference(sides):
            names += ["typicality_shift", "spread_ratio"]
        return {name: torch.tensor(float("nan")) for name in names}

    @full_precision
    def histogram(self) -> tuple[Tensor, Tensor]:
        """Histogram of the conformities in cells of a quarter of the reference's standard deviation.

        Without a reference the cells are anchored on the set's own conformities, and the row sample is counted.

        Returns:
            Counts ``(K,)`` and edges ``(K + 1,)``; what lies beyond 16 standard deviations is in the outermost cells.
        """
        with self._synced():
            sides = self._sides()
            moments, reference = self._checked(sides), self._reference_of(sides)
            if reference is None:
                values = own_set_values(moments)
                grid = anchored_grid(values)
                counts = grid.counts(values)
            else:
                grid = anchored_grid(reference.conformities)
                counts = moments.towards(reference.unit_mean, grid)["conformity_counts"].sum(0)
        return trimmed(counts, grid)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the distribution over the reference's, or ``val``: values of ``compute``; gives ``(figure, axes)``."""
        if val is not None:
            return self._plot(val, ax)
        from clipconformity import plots

        reference = None
        with self._synced():
            known = self._reference_of(self._sides())
        if known is not None:
            grid = anchored_grid(known.conformities)
            reference = trimmed(grid.counts(known.conformities), grid)
        modality = None if known is None else known.modality
        return plots.conformity_distribution(self.histogram(), reference, modality=modality, ax=ax)


class Standing(NamedTuple):
    """The evaluated side and the reference side of a divergence."""

    evaluated: Side
    reference: Side
    buckets: Tensor
    against: ReferenceSet
    grid: Grid
    unit_mean: Tensor


class ConformityKL(EmbeddingMetric):
    r"""KL divergence KL(P || Q) in nats from the reference's conformity distribution Q to the evaluated one P.

    P is the conformity of streamed raw embeddings to the reference, Q that of the reference inside itself. The
    estimator is that of :func:`clipconformity.functional.conformity_kl`, over the same cells.

    A KL near 0 says that the samples are as typical as the reference, not that they are as varied: see the
    self-conformity of :class:`Conformity`. Read it beside :meth:`interval` and :meth:`noise_floor`.

    Args:
        reference: Set to compare with; without one, the rows given by ``update(..., real=True)``.
        encoder: Turns images and texts into embeddings: an encoder, or what ``load_encoder`` takes.
        embed_dim: Dimension D, where neither of those tells it.
        max_samples: Rows kept.
        allow_normalized: Take L2-normalised embeddings.
        kwargs: Of ``torchmetrics.Metric``.

    ``compute`` gives a scalar >= 0 in nats, with the finite-sample bias taken off; a ``LowerBoundWarning`` says when it
    is only a lower bound, and :attr:`is_lower_bound` tells.

    Raises:
        ValueError: If the dimension is not told, or told twice differently.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> g = torch.Generator().manual_seed(0)
        >>> metric = cc.ConformityKL(cc.ReferenceSet.fit(torch.randn(500, 16, generator=g) + 1))
        >>> metric.update(torch.randn(500, 16, generator=g) + 1.5)
        >>> low, high = metric.interval(resamples=100)
        >>> bool(low < metric.compute() < high), bool(metric.compute() > metric.noise_floor(resamples=100))
        (True, True)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def _read(self, sides: Sides) -> Tensor:
        standing = self._standing(sides)
        if is_lower_bound(standing.evaluated, standing.reference):
            warn_lower_bound()
        return self._divergences(standing).forward.float()

    def _standing(self, sides: Sides) -> Standing:
        moments = self._checked(sides, min_samples=MIN_SAMPLES)
        reference = self._reference_of(sides)
        if reference is None:
            raise ValueError(
                "ConformityKL: there is no reference; give one at construction, or real rows by update(..., real=True)."
            )
        if len(reference.conformities) < MIN_SAMPLES:
            raise ValueError(f"reference: expected at least {MIN_SAMPLES} samples, got {reference.count}.")
        grid = anchored_grid(reference.conformities)
        buckets = moments.towards(reference.unit_mean, grid)["conformity_counts"].cpu()
        return Standing(
            intervals.evaluated_side(buckets, moments.grouped),
            intervals.reference_side(reference, grid),
            buckets,
            reference,
            grid,
            moments.unit_mean.cpu(),
        )

    def _divergences(self, standing: Standing) -> Divergences:
        return corrected_kl(standing.evaluated, standing.reference)

    def _synced_standing(self) -> Standing:
        with self._synced():
            return self._standing(self._sides())

    @property
    def is_lower_bound(self) -> bool:
        """Whether the supports barely overlap, so that the divergence is at least what ``compute`` says."""
        standing = self._synced_standing()
        return is_lower_bound(standing.evaluated, standing.reference)

    @full_precision
    def reverse(self) -> Tensor:
        """KL(Q || P) in nats: large where the evaluated samples leave out what the reference has."""
        return self._divergences(self._synced_standing()).reverse.float()

    @full_precision
    def interval(
        self, confidence: float = 0.95, *, resamples: int = 1000, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of the divergence: both sides redrawn, groups whole, cut at 0.

        Args:
            confidence: Nominal coverage, in (0, 1).
            resamples: Number of redraws.
            generator: Source of randomness; by default freshly seeded, so that equal data gives an equal interval.

        Returns:
            The low and the high end, scalars in nats.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence: expected a share between 0 and 1, got {confidence}.")
        intervals.check_resamples(resamples)
        standing = self._synced_standing()
        source = intervals.generator_or_default(generator)
        evaluated = intervals.redraw_evaluated(standing.buckets, resamples, source)
        reference = intervals.redraw_reference(standing.against, standing.unit_mean, standing.grid, resamples, source)
        low, high = intervals.basic_interval(standing.evaluated, standing.reference, (evaluated, reference), confidence)
        return low.float(), high.float()

    @full_precision
    def noise_floor(
        self, quantile: float = 0.95, *, resamples: int = 1000, generator: torch.Generator | None = None
    ) -> Tensor:
        """Quantile of the value when P = Q: what sampling noise alone gives at these sizes, in nats.

        Args:
            quantile: Level in (0, 1).
            resamples: Number of redraws of both sides from the reference.
            generator: Source of randomness; by default freshly seeded.
        """
        if not 0 < quantile < 1:
            raise ValueError(f"quantile: expected a level between 0 and 1, got {quantile}.")
        intervals.check_resamples(resamples)
        standing = self._synced_standing()
        check_clusters(int((standing.buckets.sum(1) > 0).sum()))
        source = intervals.generator_or_default(generator)
        values = intervals.null_divergences(standing.evaluated, standing.reference, resamples, source)
        return values.forward.quantile(quantile).float()

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the value with its interval and noise floor, or ``val``, one or several values over steps.

        Returns:
            ``(figure, axes)``.
        """
        from clipconformity import plots

        if val is not None:
            return plots.series(values_of(val), ax=ax)
        low, high = (float(end) for end in self.interval())
        standing = self._synced_standing()
        modality, floor = standing.against.modality, float(self.noise_floor())
        return plots.series([float(self.compute())], [low], [high], floor=floor, modality=modality, ax=ax)


class EmbeddingNorm(SetMetric):
    r"""Norms of streamed raw embeddings, as they are, :math:`|v|`, and centred on their mean, :math:`|v - m|`.

    Args:
        encoder: Turns images and texts into embeddings: an encoder, or what ``load_encoder`` takes.
        embed_dim: Dimension D, where the encoder does not tell it.
        max_samples: Rows kept for quantiles, centred norms and the correlation; exact up to so many samples.
        allow_normalized: Take L2-normalised embeddings, whose norms say nothing.
        kwargs: Of ``torchmetrics.Metric``.

    ``compute`` gives a dict of scalars: ``norm_mean``, ``norm_std`` (both exact), ``norm_se``, ``norm_q05``,
    ``norm_q50``, ``norm_q95``; the same with ``centered_norm_`` (but for the standard error); and
    ``norm_conformity_correlation``, the Pearson correlation of the norm with the conformity inside the own set: the
    paper reports a negative one on MS-COCO. Rows given with ``real=True`` are left out.

    Raises:
        ValueError: If the dimension is not told, or told twice differently.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> metric = cc.EmbeddingNorm(embed_dim=2)
        >>> metric.update(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        >>> metric.compute()["norm_mean"]
        tensor(3.)
    """

    plot_lower_bound = 0.0

    def _make_layouts(self) -> dict[str, Layout]:
        return {EVALUATED: Layout(self.embed_dim, max_samples=self.max_samples)}

    def _read(self, sides: Sides) -> dict[str, Tensor]:
        moments = self._checked(sides)
        total = moments.total
        first, second = moments["norm_sums"].sum(0)
        rows = moments.good_sample().rows.double()
        norms = torch.linalg.vector_norm(rows, dim=1)
        centered = torch.linalg.vector_norm(rows - moments.mean, dim=1)
        result = {
            "norm_mean": first / total,
            "norm_std": ((second - first.square() / total) / (total - 1)).clamp_min(0).sqrt(),
            "norm_se": mean_error(moments["norm_sums"][:, 0], moments["count"]),
            "centered_norm_mean": centered.mean(),
            "centered_norm_std": centered.std(),
            "norm_conformity_correlation": pearson(norms, own_set_values(moments)),
        }
        for name, level in LEVELS.items():
            result[f"norm_{name}"] = quantiles(norms, (level,))[0]
            result[f"centered_norm_{name}"] = quantiles(centered, (level,))[0]
        return {name: value.float() for name, value in result.items()}

    def _nothing(self, sides: Sides) -> dict[str, Tensor]:
        names = ["norm_mean", "norm_std", "norm_se", "centered_norm_mean", "centered_norm_std"]
        names += ["norm_conformity_correlation"]
        names += [f"{kind}norm_{q}" for q in LEVELS for kind in ("", "centered_")]
        return {name: torch.tensor(float("nan")) for name in names}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the norms as they are and centred, or ``val``: values of ``compute``; gives ``(figure, axes)``."""
        if val is not None:
            return self._plot(val, ax)
        from clipconformity import plots

        with self._synced():
            moments = self._checked(self._sides())
            rows = moments.good_sample().rows.double()
            centered = torch.linalg.vector_norm(rows - moments.mean, dim=1)
        return plots.norm_histogram(torch.linalg.vector_norm(rows, dim=1), centered, ax=ax)


def values_of(val: Any) -> list[Any]:
    """Give one or several values as a list."""
    if isinstance(val, Tensor):
        return list(val.reshape(-1))
    return list(val) if isinstance(val, list | tuple) else [val]


def own_set_values(moments: Moments) -> Tensor:
    """Conformities of the sampled rows inside the whole stream, self excluded."""
    rows = moments.good_sample().rows.double()
    units = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return own_set_conformity(units @ moments.unit_mean, moments.total)


def trimmed(counts: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Non-empty range of a histogram ``(CELLS + 2,)`` in coarse cells: counts and edges."""
    inner = counts[1:-1].clone()
    inner[0] += counts[0]
    inner[-1] += counts[-1]
    coarse = inner.unflatten(0, (-1, COARSEST)).sum(1)
    used = coarse.nonzero().flatten()
    first, last = int(used[0]), int(used[-1]) + 1
    return coarse[first:last], grid.edges().to(counts.device)[::COARSEST][first : last + 1]
