"""Log-likelihood under the Gaussian of the reference, beside the reference's own held-out one."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.likelihood import (
    BLOCK,
    Gaussian,
    check_gaussian,
    log_density,
    log_likelihood,
    oas_shrinkage,
)
from clipconformity.functional.linalg import gram
from clipconformity.functional.resampling import Estimate, name_ends
from clipconformity.stream.moments import Moments
from clipconformity.stream.pairs import estimate_by_influence
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.stream import Needs, Stream

FOLDS = 5
"""Folds of the reference's held-out likelihood."""


class LikelihoodReadOut(ReadOut):
    """Likelihood of samples under the reference's shrunk Gaussian."""

    name = "likelihood"
    needs = Needs(rows=True, second_moment=True, reference=True)
    fields = (
        Field("log_likelihood_mean", "mean log-likelihood under the reference's Gaussian", "nats", compared=True,
              error="log_likelihood_se"),
        Field("log_likelihood_se", "standard error of the mean log-likelihood", "nats", compared=True),
        Field("log_likelihood_std", "standard deviation of the log-likelihood", "nats", compared=True),
        Field("whitened_norm_mean", "mean squared whitened norm", compared=True),
        Field("reference_log_likelihood", "mean log-likelihood of the reference, held out", "nats", compared=True),
        *Field("log_likelihood_shift", "difference of the two means", "reference std", "higher",
               compared=True).with_interval(),
        Field("likelihood_shrinkage", "share of the sphere in the covariance", compared=True),
    )  # fmt: skip

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the figures; means are exact."""
        reference = stream.require_reference("GaussianLikelihood")
        shrinkage = oas_shrinkage(reference.covariance, reference.count)
        gaussian = check_gaussian(reference.mean, reference.covariance, shrinkage, symmetric=False)
        own, sampled = compute_under(gaussian, stream.read_side())
        held_out = reference.cache("held_out_likelihoods", lambda: held_out_likelihoods(reference))
        shift = (own["log_likelihood_mean"] - held_out.mean()) / held_out.std()
        interval = _shift_estimate(stream, reference, shift, sampled, held_out).interval()
        return (
            own
            | name_ends("log_likelihood_shift", interval)
            | {
                "reference_log_likelihood": held_out.mean(),
                "log_likelihood_shift": shift,
                "likelihood_shrinkage": torch.tensor(shrinkage, dtype=torch.float64),
            }
        )


def compute_under(gaussian: Gaussian, moments: Moments) -> tuple[dict[str, Tensor], Tensor]:
    """Compute figures of rows under a Gaussian, and the log-likelihood of each sampled row ``(k,)``."""
    own = moments.mean.cpu()
    apart = own - gaussian.mean
    spread = (moments.get_sum("second_moment") / moments.total).cpu() - torch.outer(own, own)
    spread = spread + torch.outer(apart, apart)  # second moment about the Gaussian's mean
    whitened = ((gaussian.root @ spread) * gaussian.root).sum()
    mean = gaussian.log_density(whitened)
    sample = moments.good_sample().cpu()
    sampled = torch.cat([log_density(part.double(), gaussian) for part in sample.rows.split(BLOCK)])
    estimate = estimate_by_influence(mean, (sampled - sampled.mean(), sample, moments))
    figures = {
        "log_likelihood_mean": mean,
        "log_likelihood_se": estimate.error,
        "log_likelihood_std": sampled.std(),
        "whitened_norm_mean": whitened,
    }
    return figures, sampled


def _shift_estimate(
    stream: Stream, reference: ReferenceSet, shift: Tensor, sampled: Tensor, held_out: Tensor
) -> Estimate:
    """Estimate the shift under the reference's Gaussian as given: its errors affect both sides alike."""
    moments, spread = stream.read_side(), held_out.std()
    z = (held_out - held_out.mean()) / spread
    return estimate_by_influence(
        shift,
        ((sampled - sampled.mean()) / spread, moments.good_sample().cpu(), moments),
        (-z - shift * (z.square() - z.square().mean()) / 2, reference.sample, reference.moments),
    )


def sampled_likelihoods(stream: Stream, reference: ReferenceSet) -> Tensor:
    """Log-likelihood of each sampled row under the reference's shrunk Gaussian, ``(k,)``."""
    shrinkage = oas_shrinkage(reference.covariance, reference.count)
    return compute_under(
        check_gaussian(reference.mean, reference.covariance, shrinkage, symmetric=False), stream.read_side()
    )[1]


def held_out_likelihoods(reference: ReferenceSet) -> Tensor:
    """Log-likelihood of each sampled row of a reference under the Gaussian of all rows but its fold, ``(k,)``.

    Raises:
        ValueError: If the reference is too small to hold a fold out.
    """
    if reference.count < 2 * FOLDS:
        raise ValueError(f"reference: expected at least {2 * FOLDS} samples, got {reference.count}.")
    rows = reference.sample.rows
    total = reference.mean * reference.count
    second = reference.covariance * (reference.count - 1) + torch.outer(total, total) / reference.count
    values = torch.empty(len(rows), dtype=torch.float64)
    for fold in range(FOLDS):
        out = reference.clusters % FOLDS == fold  # a group is held out together
        count = reference.count - int(out.sum())
        held = rows[out].double()
        mean = (total - held.sum(0)) / count
        covariance = (second - gram(held) - count * torch.outer(mean, mean)) / (count - 1)
        values[out] = log_likelihood(held, mean, covariance, oas_shrinkage(covariance, count))
    return values
