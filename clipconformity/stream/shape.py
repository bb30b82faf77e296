"""The shape of a stream's distribution in the population, and intervals of its figures."""

from __future__ import annotations

from torch import Tensor

from clipconformity.functional.linalg import gram
from clipconformity.functional.population import (
    MIN_GROUPS,
    Rows,
    Traces,
    correlation_influence,
    offset_influence,
    participation_influence,
    plain_traces,
    shell_estimate,
    tilt_influence,
    unbiased_traces,
)
from clipconformity.functional.resampling import Estimate, Interval, exponentiate_interval, name_ends
from clipconformity.stream.moments import Moments, assign_buckets
from clipconformity.stream.pairs import estimate_by_influence


def shape_intervals(moments: Moments, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the population's participation ratio and the ends of the intervals; nothing for fewer than four groups.

    Second moments are not kept by bucket: intervals come from the influences of the sampled rows.

    Args:
        moments: The stream, on the CPU.
        values: The figures of the intervals.
    """
    sample = moments.good_sample()
    rows = Rows.center(sample.rows, sample.groups if moments.grouped else None)
    if len(rows.sizes) < MIN_GROUPS:
        return {}
    second = gram(rows.centered)
    known = _scale_to_population(moments, rows, second)

    def known_by(value: Tensor, influence: Tensor) -> Estimate:
        return estimate_by_influence(value, (influence, sample, moments))

    axes = known_by(known.participation_ratio.log(), participation_influence(rows, second, known))
    buckets = assign_buckets(sample.groups).unique(return_inverse=True)[1]
    found = {
        "shell_ratio": exponentiate_interval(shell_estimate(rows, buckets).interval()),
        "population_participation_ratio": known.participation_interval(axes),
        "offset": known.offset_interval(known_by(known.offset_square, offset_influence(rows, known))),
    }
    for name, influence in (("off_diagonal_ratio", tilt_influence), ("mean_abs_correlation", correlation_influence)):
        if name in values:  # undefined in one dimension
            low, high = known_by(values[name].cpu(), influence(rows, moments.covariance)).interval()
            found[name] = Interval(max(low, 0.0), high)
    figures = {"population_participation_ratio": known.participation_ratio}
    for name, interval in found.items():
        figures |= name_ends(name, interval)
    return figures


def _scale_to_population(moments: Moments, rows: Rows, second: Tensor) -> Traces:
    """Scale the estimates of the row sample to all rows.

    In the bias of the sample's own figures, the part of a row with itself depends on the number of rows, and that of a
    row with its group does not.
    """
    count = len(rows.centered)
    share = count / float(moments.total)
    every = plain_traces(moments.mean, moments.covariance)
    here = plain_traces(rows.mean, second / (count - 1))
    grouped = unbiased_traces(rows, second)
    alone = grouped if len(rows.sizes) == count else unbiased_traces(rows.ungroup(), second)
    mean_square, trace, trace_square, square_trace = (
        whole - share * (own - single) - (single - between)
        for whole, own, single, between in zip(every[:4], here[:4], alone[:4], grouped[:4], strict=True)
    )
    return Traces(mean_square, trace, trace_square, square_trace, every.dim)
