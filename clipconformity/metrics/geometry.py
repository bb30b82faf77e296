"""Metrics of the geometry of one modality, and of two."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from clipconformity.functional import conformity_kl, shift_sweep
from clipconformity.functional._checks import check_same_dim, full_precision
from clipconformity.functional._rows import covariance_of, permuted_columns, seeded, units
from clipconformity.functional.geometry import participation_ratio, tilt_figures
from clipconformity.metrics.base import EVALUATED, SetMetric, Sides, encode_batch
from clipconformity.metrics.distribution import own_set_values
from clipconformity.moments import Layout, Moments, jackknife_error, mix, row_keys

IMAGE, TEXT = "image_", "text_"
"""Prefixes of the two modalities' states."""
TILT = ("off_diagonal_ratio", "diagonally_dominant", "mean_abs_correlation")


class EllipsoidGeometry(SetMetric):
    r"""Geometry of one modality's raw embeddings: thin shell, ellipsoid, tilt, offset.

    Args:
        encoder: Turns images and texts into embeddings: an encoder, or what ``load_encoder`` takes.
        embed_dim: Dimension D, where the encoder does not tell it.
        max_samples: Rows kept for the shell and for the values with permuted columns.
        allow_normalized: Take L2-normalised embeddings, which lie on a sphere by construction.
        kwargs: Of ``torchmetrics.Metric``.

    ``compute`` gives a dict of scalars.

    - ``shell_mu``, ``shell_variance``, ``shell_ratio``: of the centred norms, as of
      :func:`clipconformity.functional.thin_shell`. Exact up to ``max_samples`` rows, from the row sample beyond.
    - ``participation_ratio``, and ``spectrum_condition`` (largest over smallest eigenvalue): exact. The condition is
      NaN where the covariance has no full rank, and where the smallest eigenvalue is no more than rounding.
    - ``off_diagonal_ratio``, ``diagonally_dominant``, ``mean_abs_correlation``: exact; NaN in one dimension.
    - ``offset``: exact.
    - the four of ellipsoid and tilt with ``permuted_`` before them: the same with every column permuted on its own, on
      the row sample. Beyond ``max_samples`` rows it is taken at fewer samples than the figure beside it.

    Rows given with ``real=True`` are left out.

    Raises:
        ValueError: If the dimension is not told, or told twice differently.

    Source: Levi and Gilboa, *The Double-Ellipsoid Geometry of CLIP*, ICML 2025.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> metric = cc.EllipsoidGeometry(embed_dim=8)
        >>> metric.update(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) + 1)
        >>> round(float(metric.compute()["offset"]), 1)
        1.0
    """

    min_samples = 3

    def _make_layouts(self) -> dict[str, Layout]:
        return {EVALUATED: Layout(self.embed_dim, max_samples=self.max_samples, second_moment=True)}

    def _read(self, sides: Sides) -> dict[str, Tensor]:
        moments = self._checked(sides, min_samples=self.min_samples)
        rows, covariance = moments.good_sample().rows.double(), moments.covariance
        mu, variance = self._shell(rows, moments)
        result = self._nothing(sides)  # what cannot be had stays NaN, so that the keys are the same for every batch
        result |= {"shell_mu": mu, "shell_variance": variance, "shell_ratio": mu.square() / variance}
        result["spectrum_condition"] = self._condition(moments, covariance)
        _, permuted = covariance_of(permuted_columns(rows, seeded(None)))
        for prefix, matrix in (("", covariance), ("permuted_", permuted)):
            result[f"{prefix}participation_ratio"] = participation_ratio(matrix)
            if self.embed_dim > 1:
                result |= {f"{prefix}{name}": x for name, x in zip(TILT, tilt_figures(matrix), strict=True)}
        result["offset"] = torch.linalg.vector_norm(moments.mean) / covariance.trace().sqrt()
        return {name: value.float() for name, value in result.items()}

    def _condition(self, moments: Moments, covariance: Tensor) -> Tensor:
        """Largest over smallest eigenvalue; the sums it comes from round by their size, that of the mean included."""
        spectrum = torch.linalg.eigvalsh(covariance)
        scale = spectrum[-1] + moments.mean.square().sum()
        known = spectrum[0] > scale * len(spectrum) * torch.finfo(torch.float64).eps
        return torch.where(known & (moments.total > len(spectrum)), spectrum[-1] / spectrum[0], float("nan"))

    def _shell(self, rows: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
        if not float(moments.covariance.trace()) > 1e-12 * float(moments.mean.square().sum()):
            raise ValueError("embeddings: expected samples that differ, got equal ones; check what was encoded.")
        distances = torch.linalg.vector_norm(rows - moments.mean, dim=1)
        return distances.mean(), distances.var()

    def _nothing(self, sides: Sides) -> dict[str, Tensor]:
        names = ["shell_mu", "shell_variance", "shell_ratio", "spectrum_condition", "offset"]
        names += [f"{prefix}{name}" for prefix in ("", "permuted_") for name in ("participation_ratio", *TILT)]
        return {name: torch.tensor(float("nan")) for name in names}

    def spectrum(self) -> Tensor:
        """Eigenvalues of the sample covariance, descending, ``(D,)`` float64: the long tail."""
        with self._synced():
            return torch.linalg.eigvalsh(self._checked(self._sides()).covariance).flip(0).clamp_min(0)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the covariance spectrum, or ``val``: values of ``compute``; gives ``(figure, axes)``."""
        if val is not None:
            return self._plot(val, ax)
        from clipconformity import plots

        return plots.covariance_spectrum({None: self.spectrum()}, ax=ax)


class ModalityGap(SetMetric):
    r"""Gap between the modalities of streamed pairs of raw embeddings.

    ``update(images, texts)`` takes pairs: row i of one belongs to row i of the other.

    Args:
        encoder: Turns images and texts into embeddings: an encoder, or what ``load_encoder`` takes.
        embed_dim: Dimension D, where the encoder does not tell it.
        max_samples: Pairs kept for the divergence between the modalities; the rest is exact.
        allow_normalized: Take L2-normalised embeddings.
        kwargs: Of ``torchmetrics.Metric``.

    ``compute`` gives a dict of scalars: ``modality_gap``, :math:`|m_u(image) - m_u(text)|` in [0, 2], with its
    standard error ``modality_gap_se``; ``raw_modality_gap``, :math:`|m(image) - m(text)|`; ``matched_cosine``, the mean
    cosine of the pairs; and ``modality_kl``, KL(image || text) in nats between the conformities inside the own sets.

    Raises:
        ValueError: If the dimension is not told, or told twice differently.

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
        self.add_state("matched_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def _make_layouts(self) -> dict[str, Layout]:
        return {prefix: Layout(self.embed_dim, max_samples=self.max_samples) for prefix in (IMAGE, TEXT)}

    def update(self, images: Any, texts: Any) -> None:  # type: ignore[override]
        """Take in a batch of pairs.

        Args:
            images: Raw embeddings ``(N, D)``, or images if there is an encoder.
            texts: Raw embeddings ``(N, D)``, or texts if there is an encoder.

        Raises:
            TypeError: If a batch is neither embeddings nor something that the encoder takes.
            ValueError: If lengths or dimensions differ. Bad values are reported by ``compute``.
        """
        self.matched_sum: Tensor
        pair = self._encoded(images, texts)
        self.matched_sum.add_(_take_in(pair, self._sides(), self._seen.get(IMAGE, 0)).to(self.matched_sum))
        self._seen[IMAGE] = self._seen.get(IMAGE, 0) + len(pair[0])

    @full_precision
    def forward(self, images: Any, texts: Any) -> dict[str, Tensor]:  # type: ignore[override]
        """Accumulate a batch of pairs, and give its own value: NaN where it is too small for one."""
        if self._is_synced:
            raise TorchMetricsUserError("forward was called on a synchronised metric; call unsync first.")
        pair = self._encoded(images, texts)
        self.update(*pair)
        device = self.matched_sum.device
        sides = {prefix: Moments(layout, layout.zeros(device)) for prefix, layout in self._layouts.items()}
        with torch.no_grad():
            matched = _take_in(pair, sides, 0)
            try:
                value = self._figures(sides, matched)
            except ValueError:  # only compute raises for what the values are
                value = self._nothing(sides)
        self._forward_cache: Any = value
        return value

    def _encoded(self, images: Any, texts: Any) -> tuple[Tensor, Tensor]:
        pair = encode_batch(images, self.encoder), encode_batch(texts, self.encoder)
        for rows in pair:
            check_same_dim(rows, self.embed_dim, "batch", "this metric")
        if len(pair[0]) != len(pair[1]):
            raise ValueError(
                f"images and texts: expected pairs, got {len(pair[0])} images and {len(pair[1])} texts; "
                "repeat an image for each of its captions, or choose one caption."
            )
        return pair

    def _read(self, sides: Sides) -> dict[str, Tensor]:
        return self._figures(sides, self.matched_sum)

    def _figures(self, sides: Sides, matched: Tensor) -> dict[str, Tensor]:
        image, text = (self._checked(sides, prefix, min_samples=10) for prefix in (IMAGE, TEXT))
        apart = image["unit_sum"] - text["unit_sum"]  # (G, D): a pair is in one bucket
        count, total = image["count"], image.total
        left_out = torch.linalg.vector_norm(apart.sum(0) - apart, dim=1) / (total - count)
        result = {
            "modality_gap": torch.linalg.vector_norm(apart.sum(0)) / total,
            "modality_gap_se": jackknife_error(left_out, count),
            "raw_modality_gap": torch.linalg.vector_norm(image.mean - text.mean),
            "matched_cosine": matched.to(total) / total,
            "modality_kl": conformity_kl(own_set_values(image), own_set_values(text)),
        }
        return {name: value.float() for name, value in result.items()}

    def _nothing(self, sides: Sides) -> dict[str, Tensor]:
        names = ("modality_gap", "modality_gap_se", "raw_modality_gap", "matched_cosine", "modality_kl")
        return {name: torch.tensor(float("nan")) for name in names}

    def interval(
        self, confidence: float = 0.95, *, resamples: int = 200, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Bootstrap interval of ``modality_kl``: pairs are redrawn and the means computed anew; see ``shift_sweep``."""
        with self._synced():
            sides = self._sides()
            image, text = (self._checked(sides, prefix, min_samples=10).good_sample() for prefix in (IMAGE, TEXT))
        sweep = shift_sweep(
            image.rows, text.rows, [0.0], confidence=confidence, resamples=resamples, generator=generator
        )
        return sweep.kl_low[0], sweep.kl_high[0]

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Sketch both modalities along the gap between their means, or plot ``val``: values of ``compute``.

        Returns:
            ``(figure, axes)``.
        """
        if val is not None:
            return self._plot(val, ax)
        from clipconformity import plots

        with self._synced():
            sides = self._sides()
            image, text = (self._checked(sides, prefix).good_sample().rows for prefix in (IMAGE, TEXT))
        return plots.shells(image, text, ax=ax)


def _take_in(pair: tuple[Tensor, Tensor], sides: Sides, seen: int) -> Tensor:
    """Take pairs into both sides, keyed by the pair so that both keep the same ones; give the sum of their cosines."""
    image, text = pair
    keys = mix(row_keys(image, None) ^ (row_keys(text, None) << 1), 5)
    for prefix, rows in ((IMAGE, image), (TEXT, text)):
        sides[prefix].update(rows, keys, seen)
    cosine = (units(image.double()) * units(text.double())).sum(1)
    return torch.where(torch.isfinite(cosine), cosine, 0.0).sum()  # the rest is bad, and refused by compute
