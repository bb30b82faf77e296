"""The KL divergence from the reference's conformity distribution, with a test whether the two differ."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.divergence import MIN_SAMPLES, warn_lower_bound
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.standing import HEAVY_TAILS_NOTE, Standing
from clipconformity.stream.stream import Needs, Stream


class ConformityKLReadOut(ReadOut):
    """Distance of the distribution of conformity from the reference's."""

    name = "conformity_kl"
    needs = Needs(conformity=True, rows=True, reference=True)
    value = "conformity_kl"
    min_samples = MIN_SAMPLES
    fields = (
        Field("conformity_kl", "KL from the reference's conformity", "nats", "lower", interval=("kl_low", "kl_high"),
              compared=True),
        Field("reverse_kl", "KL of the reference's conformity from the samples'", "nats", "lower", compared=True,
              computed=False),
        Field("kl_low", "low end of the KL's 95% interval", "nats", compared=True, computed=False),
        Field("kl_high", "high end of the KL's 95% interval", "nats", compared=True, computed=False),
        Field("noise_floor", "95% quantile of the KL between two sets of one kind", "nats", compared=True,
              computed=False),
        Field("p_value", "Anderson-Darling test that the conformities are of one distribution", "", "neither",
              compared=True, computed=False),
        Field("kl_is_lower_bound", "whether the KL is at least this", compared=True, computed=False),
    )  # fmt: skip

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the bias-corrected divergence; warn where it is only a lower bound."""
        return _get_value(Standing.from_stream(stream))

    def resample(
        self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Return the reverse divergence, the interval, the noise floor and the p-value."""
        return _compute_uncertainty(Standing.from_stream(stream), resamples, generator)

    def figures(self, stream: Stream, *, resamples: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Return all fields, with the densities fitted once."""
        standing = Standing.from_stream(stream)
        return _get_value(standing) | _compute_uncertainty(standing, resamples, generator)

    def notes(self, stream: Stream) -> list[str]:
        """Note where the tails may be heavier than the fitted densities."""
        return [HEAVY_TAILS_NOTE] if Standing.from_stream(stream).heavy_tails else []


def _get_value(standing: Standing) -> dict[str, Tensor]:
    if standing.is_lower_bound:
        warn_lower_bound()
    return {"conformity_kl": standing.divergences().forward}


def _compute_uncertainty(standing: Standing, resamples: int, generator: torch.Generator | None) -> dict[str, Tensor]:
    found = dict.fromkeys(("kl_low", "kl_high", "noise_floor", "p_value"), float("nan"))
    if standing.parts > 1:  # the variance between groups is unknown with a single group
        found["kl_low"], found["kl_high"] = standing.interval(0.95, resamples, generator)
        found["noise_floor"], found["p_value"] = standing.redraw_null(0.95, resamples, generator)
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
    tensors["reverse_kl"] = standing.divergences().reverse
    return tensors | {"kl_is_lower_bound": torch.tensor(standing.is_lower_bound)}
