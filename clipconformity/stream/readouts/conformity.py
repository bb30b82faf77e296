"""The distribution of conformity, and self-conformity."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.conformity import own_set_conformity, quantiles
from clipconformity.functional.density import Grid
from clipconformity.functional.divergence import anchored_grid
from clipconformity.functional.resampling import jackknife_error, mean_error
from clipconformity.stream.moments import Moments
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.stream import Needs, Stream

LEVELS = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
"""Quantiles by the end of their key."""
COSINE = "cosine"


class ConformityReadOut(ReadOut):
    """How typical samples are, by their conformity, and how alike, by their self-conformity."""

    name = "conformity"
    needs = Needs(conformity=True, reference=True)
    fields = (
        Field("conformity_mean", "mean conformity: how typical", COSINE, error="conformity_se"),
        Field("conformity_std", "standard deviation of conformity", COSINE),
        Field("conformity_se", "standard error of the mean conformity", COSINE),
        Field("conformity_q05", "5% quantile of conformity", COSINE),
        Field("conformity_q50", "median conformity", COSINE),
        Field("conformity_q95", "95% quantile of conformity", COSINE),
        Field("self_conformity_mean", "mean cosine of two samples: how alike", COSINE, error="self_conformity_se"),
        Field("self_conformity_se", "standard error of the self-conformity", COSINE),
        Field("typicality_shift", "mean conformity from the reference's", "reference std", compared=True),
        Field("spread_ratio", "standard deviation of conformity over the reference's", compared=True),
    )

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Give the fields; without a reference conformity is taken inside the own set."""
        moments = stream.checked()
        own, own_error = self_conformity(moments)
        reference = stream.compared_with()
        if reference is None:
            values = own_set_values(moments)
            mean, std, error = own, values.std(), own_error
        else:
            view = moments.towards(reference.unit_mean, anchored_grid(reference.conformities))
            values, std = view.good_sample().values[:, 1], view.conformity_std
            sums = moments["unit_sum"] @ reference.unit_mean.to(own)
            mean, error = sums.sum() / moments.total, mean_error(sums, moments["count"])
        result = {"conformity_mean": mean, "conformity_std": std, "conformity_se": error}
        result |= {f"conformity_{name}": quantiles(values, (level,))[0] for name, level in LEVELS.items()}
        result |= {"self_conformity_mean": own, "self_conformity_se": own_error}
        if reference is not None:
            spread = reference.conformities.std().to(own)
            result["typicality_shift"] = (mean - reference.null_mean.to(own)) / spread
            result["spread_ratio"] = std / spread
        return result


class SelfConformityReadOut(ReadOut):
    """How alike samples are."""

    name = "self_conformity"
    value = "self_conformity_mean"
    fields = tuple(field for field in ConformityReadOut.fields if field.name.startswith("self_conformity"))

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Give the mean pairwise cosine, exact, and its standard error."""
        value, error = self_conformity(stream.checked())
        return {"self_conformity_mean": value, "self_conformity_se": error}


def self_conformity(moments: Moments) -> tuple[Tensor, Tensor]:
    """Self-conformity of a stream, exact, and its standard error: the mean moves with the samples."""
    count, sums = moments["count"], moments["unit_sum"]

    def pairwise(total: Tensor, rows: Tensor) -> Tensor:
        return (total.square().sum(-1) - rows) / (rows * (rows - 1))

    whole = pairwise(sums.sum(0), count.sum())
    if int(count.sum()) == 2 and int((count > 0).sum()) == 2:  # one sample less leaves no pair
        return whole, (1 - whole).abs()
    return whole, jackknife_error(pairwise(sums.sum(0) - sums, count.sum() - count), count)


def own_set_values(moments: Moments) -> Tensor:
    """Conformities of the sampled rows inside the whole stream, self excluded."""
    rows = moments.good_sample().rows.double()
    units = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return own_set_conformity(units @ moments.unit_mean, moments.total)


def histogram(stream: Stream) -> tuple[Tensor, Grid]:
    """Histogram of the conformities, ``(CELLS + 2,)``, and its cells.

    They are anchored on the reference; without one on the set's own conformities, and the row sample is counted.
    """
    moments, reference = stream.checked(), stream.compared_with()
    if reference is None:
        values = own_set_values(moments)
        grid = anchored_grid(values)
        return grid.counts(values), grid
    grid = anchored_grid(reference.conformities)
    return moments.towards(reference.unit_mean, grid)["conformity_counts"].sum(0), grid
