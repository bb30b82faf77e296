"""The geometry of one modality: thin shell, ellipsoid, tilt, offset."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.distances import quick_type
from clipconformity.functional.geometry import distances_from, participation_ratio, tilt_figures
from clipconformity.functional.population import Rows, permuted_covariance
from clipconformity.functional.resampling import make_generator
from clipconformity.stream.moments import Moments
from clipconformity.stream.readouts.base import Field, ReadOut, read_sample
from clipconformity.stream.shape import shape_intervals
from clipconformity.stream.stream import Needs, Stream

TILT = ("off_diagonal_ratio", "diagonally_dominant", "mean_abs_correlation")
_SHAPE = {
    "participation_ratio": "effective number of axes of the sample's covariance: falls with few samples",
    "off_diagonal_ratio": "sum of the absolute covariances over the trace",
    "diagonally_dominant": "share of dimensions whose variance exceeds their covariances",
    "mean_abs_correlation": "mean absolute correlation of two dimensions",
}
_POPULATION, _AT_THIS_N = "the population's value", "what sets of this size have on average"
_COVERED = {
    "shell_ratio": _POPULATION,
    "population_participation_ratio": _POPULATION,
    "off_diagonal_ratio": _AT_THIS_N,
    "mean_abs_correlation": _AT_THIS_N,
    "offset": _POPULATION,
}
"""Covered quantity of the interval of each figure."""


def _fields(name: str, about: str) -> tuple[Field, ...]:
    field = Field(name, about)
    return field.with_interval(f"of {_COVERED[name]}") if name in _COVERED else (field,)


MAX_CONDITION = 1e6
"""Largest condition that is given: products of float32 rows know an eigenvalue to 1e-8 of the largest, here 1%."""


class EllipsoidReadOut(ReadOut):
    """Shell, ellipsoid, tilt and offset; ellipsoid and tilt also with permuted columns."""

    name = "ellipsoid"
    needs = Needs(rows=True, second_moment=True)
    min_samples = 3
    fields = (
        Field("shell_mu", "mean distance from the mean", "raw units"),
        Field("shell_variance", "variance of the distance from the mean", "raw units squared"),
        *_fields("shell_ratio", "squared mean over variance of that distance: large is thin"),
        Field("spectrum_condition", "largest over smallest eigenvalue of the covariance"),
        *(one for name, about in _SHAPE.items() for one in _fields(name, about)),
        *_fields("population_participation_ratio", "effective number of axes, without the bias of few samples"),
        *(Field(f"permuted_{name}", f"{about}, columns permuted") for name, about in _SHAPE.items()),
        *_fields("offset", "distance of the mean from the origin over the spread"),
    )

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the figures; undefined ones, such as a tilt in one dimension, are left out.

        Raises:
            ValueError: If all samples are equal.
        """
        moments = stream.read_side(min_samples=self.min_samples).cpu()
        sample, covariance = read_sample(stream), moments.covariance
        if _are_equal(moments):
            raise ValueError("embeddings: expected samples that differ, got equal ones; check what was encoded.")
        distances = distances_from(sample.rows, moments.mean)
        mu, variance = distances.mean(), distances.var()
        result = {"shell_mu": mu, "shell_variance": variance, "shell_ratio": mu.square() / variance}
        result["spectrum_condition"] = _compute_condition(moments, covariance)
        rows = Rows.center(sample.rows.to(quick_type()), sample.groups if moments.grouped else None)
        permuted = permuted_covariance(rows, make_generator(None))
        for prefix, matrix in (("", covariance), ("permuted_", permuted)):
            result[f"{prefix}participation_ratio"] = participation_ratio(matrix)
            if len(matrix) > 1:
                result |= {f"{prefix}{name}": x for name, x in zip(TILT, tilt_figures(matrix), strict=True)}
        result["offset"] = torch.linalg.vector_norm(moments.mean) / covariance.trace().sqrt()
        return result | shape_intervals((sample, moments), rows, covariance, result)

    def figures(self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return all fields; of equal samples none, so that a score of them has its other figures."""
        if _are_equal(stream.read_side(min_samples=self.min_samples)):
            return {}
        return super().figures(stream, resamples=resamples, generator=generator)

    def notes(self, stream: Stream) -> list[str]:
        """Note where there is no shape, or there are too few rows for the condition of the spectrum."""
        moments = stream.read_side(min_samples=self.min_samples)
        if _are_equal(moments):
            return ["equal samples have no ellipsoid, so its figures are left out."]
        dim, count = len(moments.mean), int(moments.total)
        if count > dim:
            beyond = bool(_compute_condition(moments, moments.covariance).isnan())
            return [
                f"spectrum_condition is beyond {MAX_CONDITION:g}, more than sums of float32 products tell."
            ] * beyond
        return [f"spectrum_condition needs more samples than dimensions, {dim}; there are {count}."]


def _are_equal(moments: Moments) -> bool:
    """Whether the rows differ by the rounding of sums alone."""
    return not float(moments.covariance.trace()) > 1e-12 * float(moments.mean.square().sum())


def _compute_condition(moments: Moments, covariance: Tensor) -> Tensor:
    """Compute largest over smallest eigenvalue, NaN within the rounding of the sums or of float32 products."""
    spectrum = torch.linalg.eigvalsh(covariance)
    scale = spectrum[-1] + moments.mean.square().sum()
    known = spectrum[0] > scale * len(spectrum) * torch.finfo(torch.float64).eps
    known = known & (spectrum[0] * MAX_CONDITION >= spectrum[-1])
    return torch.where(known & (moments.total > len(spectrum)), spectrum[-1] / spectrum[0], float("nan"))


def spectrum(stream: Stream) -> Tensor:
    """Eigenvalues of the sample covariance, descending, ``(D,)`` float64."""
    return torch.linalg.eigvalsh(stream.read_side().covariance).flip(0).clamp_min(0)
