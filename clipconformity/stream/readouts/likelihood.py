"""Log-likelihood under the Gaussian of the reference, beside the reference's own held-out one."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.likelihood import Gaussian, log_density, shrink_gaussian
from clipconformity.functional.population import Rows, sum_outer_products
from clipconformity.functional.resampling import Estimate, name_ends
from clipconformity.stream.moments import Moments
from clipconformity.stream.pairs import estimate_by_influence
from clipconformity.stream.readouts.base import Field, ReadOut, read_sample
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.row_sample import Sample
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
        reference, moments = stream.require_reference("GaussianLikelihood"), stream.read_side()
        gaussian, shrinkage = fit_reference_gaussian(reference)
        own, sampled = compute_under(gaussian, moments, read_sample(stream))
        held_out = held_out_likelihoods(reference)
        shift = (own["log_likelihood_mean"] - held_out.mean()) / held_out.std()
        interval = _estimate_shift(stream, reference, shift, sampled, held_out).interval()
        return (
            own
            | name_ends("log_likelihood_shift", interval)
            | {
                "reference_log_likelihood": held_out.mean(),
                "log_likelihood_shift": shift,
                "likelihood_shrinkage": torch.tensor(shrinkage, dtype=torch.float64),
            }
        )


def compute_under(gaussian: Gaussian, moments: Moments, sample: Sample) -> tuple[dict[str, Tensor], Tensor]:
    """Compute figures of rows under a Gaussian, and the log-likelihood of each sampled row ``(k,)``."""
    own = moments.mean.cpu()
    apart = own - gaussian.mean
    spread = (moments.get_sum("second_moment") / moments.total).cpu() - torch.outer(own, own)
    spread = spread + torch.outer(apart, apart)  # second moment about the Gaussian's mean
    whitened = ((gaussian.root @ spread) * gaussian.root).sum()
    mean = gaussian.log_density(whitened)
    sampled = log_density(sample.rows, gaussian, gaussian.quick_type)
    estimate = estimate_by_influence(mean, (sampled - sampled.mean(), sample, moments))
    figures = {
        "log_likelihood_mean": mean,
        "log_likelihood_se": estimate.error,
        "log_likelihood_std": sampled.std(),
        "whitened_norm_mean": whitened,
    }
    return figures, sampled


def _estimate_shift(
    stream: Stream, reference: ReferenceSet, shift: Tensor, sampled: Tensor, held_out: Tensor
) -> Estimate:
    """Estimate the shift under the reference's Gaussian as given: its errors affect both sides alike."""
    spread = held_out.std()
    z = (held_out - held_out.mean()) / spread
    return estimate_by_influence(
        shift,
        ((sampled - sampled.mean()) / spread, read_sample(stream), stream.read_side()),
        (-z - shift * (z.square() - z.square().mean()) / 2, reference.sample, reference.moments),
    )


def fit_reference_gaussian(reference: ReferenceSet) -> tuple[Gaussian, float]:
    """Give the shrunk Gaussian of a reference, and its shrinkage; computed once."""
    return reference.cache(
        "shrunk_gaussian", lambda: shrink_gaussian(reference.mean, reference.covariance, reference.count)
    )


def sampled_likelihoods(stream: Stream, reference: ReferenceSet) -> Tensor:
    """Log-likelihood of each sampled row under the reference's shrunk Gaussian, ``(k,)``."""
    gaussian, _ = fit_reference_gaussian(reference)
    return log_density(read_sample(stream).rows, gaussian, gaussian.quick_type)


def held_out_likelihoods(reference: ReferenceSet) -> Tensor:
    """Log-likelihood of each sampled row of a reference under the Gaussian of all rows but its fold, ``(k,)``.

    Computed once.

    Raises:
        ValueError: If the reference is too small to hold a fold out.
    """
    if reference.count < 2 * FOLDS:
        raise ValueError(f"reference: expected at least {2 * FOLDS} samples, got {reference.count}.")
    return reference.cache("held_out_likelihoods", lambda: _hold_out(reference))


def _hold_out(reference: ReferenceSet) -> Tensor:
    quick = fit_reference_gaussian(reference)[0].quick_type
    rows = Rows.center(reference.sample.rows.to(quick), reference.clusters % FOLDS)  # a group is held out together
    apart = reference.count * (reference.mean - rows.mean)  # sum of all rows, about the mean of the sampled ones
    second = reference.covariance * (reference.count - 1) + torch.outer(apart, apart) / reference.count
    values = torch.empty(len(rows.group), dtype=torch.float64)
    for fold, size in enumerate(rows.sizes):
        out = rows.group == fold
        held, count, total = rows.centered[out], reference.count - int(size), apart - rows.sums[fold]
        rest = second - sum_outer_products(held) - torch.outer(total, total) / count
        gaussian, _ = shrink_gaussian(total / count, rest / (count - 1), count)
        values[out] = log_density(held, gaussian, gaussian.quick_type)
    return values
