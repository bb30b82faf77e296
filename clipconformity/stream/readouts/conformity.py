"""The distribution of conformity, and self-conformity."""

from __future__ import annotations

import torch
from torch import Tensor

from clipconformity.functional.conformity import own_set_conformity, quantiles
from clipconformity.functional.density import Grid
from clipconformity.functional.divergence import make_grid
from clipconformity.functional.linalg import blocks
from clipconformity.functional.resampling import exponentiate_interval, jackknife_error, name_ends
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.moments import Moments
from clipconformity.stream.pairs import LeftOut, Without, own_pairs, own_pairs_without
from clipconformity.stream.readouts.base import Field, ReadOut, read_sample
from clipconformity.stream.row_sample import Sample
from clipconformity.stream.stream import Needs, Stream

LEVELS = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
"""Quantile levels by the suffix of their key."""
COSINE = "cosine"
RELATIVE = (
    ("typicality_shift", "mean conformity from the reference's", "reference std"),
    ("variety_ratio", "mean cosine distance of two samples over the reference's", ""),
    ("spread_ratio", "standard deviation of conformity over the reference's", ""),
)
"""Figures relative to a reference: key, description, unit."""


class ConformityReadOut(ReadOut):
    """Typicality of samples by conformity, and variety by self-conformity."""

    name = "conformity"
    needs = Needs(conformity=True, rows=True, reference=True)
    fields = (
        Field("conformity_mean", "mean conformity: how typical", COSINE, error="conformity_se"),
        Field("conformity_std", "standard deviation of conformity", COSINE),
        Field("conformity_se", "standard error of the mean conformity", COSINE),
        Field("conformity_q05", "5% quantile of conformity", COSINE),
        Field("conformity_q50", "median conformity", COSINE),
        Field("conformity_q95", "95% quantile of conformity", COSINE),
        Field("self_conformity_mean", "mean cosine of two samples: how alike", COSINE, error="self_conformity_se"),
        Field("self_conformity_se", "standard error of the self-conformity", COSINE),
        *(one for name, about, unit in RELATIVE for one in Field(name, about, unit, compared=True).with_interval()),
    )

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the fields; without a reference, conformity is inside the own set."""
        moments = stream.read_side()
        own = own_pairs(moments)
        if stream.get_reference() is None:
            values = own_set_values(moments, read_sample(stream))
            result = {"conformity_mean": own.value, "conformity_std": values.std(), "conformity_se": own.error}
            compared = {}
        else:
            contrast = stream.contrast(self.name)
            view, mean = contrast.view, contrast.conformity
            values = (contrast.sample if view is moments else view.good_sample()).values[:, 1]
            error = jackknife_error(mean.evaluated, moments["count"].cpu())
            result = {"conformity_mean": mean.whole, "conformity_std": view.conformity_std, "conformity_se": error}
            compared = _compare(contrast)
        result |= {f"conformity_{name}": quantiles(values, (level,))[0] for name, level in LEVELS.items()}
        result |= {"self_conformity_mean": own.value, "self_conformity_se": own.error}
        return result | compared

    def left_out(self, stream: Stream) -> dict[str, LeftOut]:
        """Return means, and figures relative to the reference."""
        contrast = stream.contrast(self.name)
        ratios = {"variety_ratio": contrast.log_variety, "spread_ratio": contrast.log_spread}
        found = {"typicality_shift": contrast.typicality, "conformity_mean": contrast.conformity}
        return {
            **{name: LeftOut(figure, contrast.counts) for name, figure in found.items()},
            **{name: LeftOut(figure, contrast.counts, logarithm=True) for name, figure in ratios.items()},
            **_own_left_out(stream),
        }

    def notes(self, stream: Stream) -> list[str]:
        """Describe what the samples share with the reference."""
        return [] if stream.get_reference() is None else stream.contrast(self.name).notes(stream.of_one_kind)


def _compare(contrast: Contrast) -> dict[str, Tensor]:
    """Compute the figures relative to the reference, with their intervals."""
    shift, variety, spread = contrast.typicality_shift, contrast.log_variety_ratio, contrast.log_spread_ratio
    found = {"typicality_shift": shift.value, "variety_ratio": variety.value.exp(), "spread_ratio": spread.value.exp()}
    intervals = shift.interval(), contrast.variety_interval, exponentiate_interval(spread.interval())
    for name, interval in zip(list(found), intervals, strict=True):
        found |= name_ends(name, interval)
    return found


class SelfConformityReadOut(ReadOut):
    """Variety of samples by self-conformity."""

    name = "self_conformity"
    value = "self_conformity_mean"
    fields = tuple(field for field in ConformityReadOut.fields if field.name.startswith("self_conformity"))

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return the exact mean pairwise cosine and its standard error."""
        own = own_pairs(stream.read_side())
        return {"self_conformity_mean": own.value, "self_conformity_se": own.error}

    def left_out(self, stream: Stream) -> dict[str, LeftOut]:
        """Return the mean pairwise cosine."""
        return _own_left_out(stream)


def _own_left_out(stream: Stream) -> dict[str, LeftOut]:
    moments = stream.read_side().cpu()
    return {"self_conformity_mean": LeftOut(Without.from_one_side(*own_pairs_without(moments)), (moments["count"],))}


def own_set_values(moments: Moments, sample: Sample) -> Tensor:
    """Conformities of the sampled rows, on the CPU, inside the whole stream, self excluded."""
    mean = moments.unit_mean.cpu()
    towards = torch.cat([block.double() @ mean for block in blocks(sample.rows)])
    return own_set_conformity(towards / sample.values[:, 0], moments.total.cpu())


def histogram(stream: Stream) -> tuple[Tensor, Grid]:
    """Return a histogram of the conformities, ``(CELLS + 2,)``, and its cells.

    The cells are those of the reference; without one, those of the set's own conformities, which count the row sample.
    """
    if stream.get_reference() is None:
        values = own_set_values(stream.read_side(), read_sample(stream))
        grid = make_grid(values)
        return grid.counts(values), grid
    contrast = stream.contrast("Conformity")
    return contrast.view["conformity_counts"].sum(0), contrast.reference.grid
