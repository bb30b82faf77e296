"""The shape of a stream's distribution in the population, and intervals of its figures."""

from __future__ import annotations

from torch import Tensor

from clipconformity.functional.population import (
    MIN_GROUPS,
    Rows,
    Traces,
    correlation_influence,
    offset_influence,
    participation_influence,
    plain_traces,
    shell_estimate,
    sum_outer_products,
    tilt_influence,
    unbiased_traces,
)
from clipconformity.functional.resampling import Estimate, Interval, exponentiate_interval, name_ends
from clipconformity.stream.moments import Moments, assign_buckets
from clipconformity.stream.pairs import Side, estimate_by_influence


def shape_intervals(side: Side, rows: Rows, covariance: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the population's participation ratio and the ends of the intervals; nothing for fewer than four groups.

    Second moments are not kept by bucket: intervals come from the influences of the sampled rows.

    Args:
        side: The row sample and the stream, on the CPU.
        rows: The sampled rows, centred, in their groups.
        covariance: The sample covariance of the stream.
        values: The figures of the intervals.
    """
    if len(rows.sizes) < MIN_GROUPS:
        return {}
    count = len(rows.centered)
    whole = count == int(side[1].total)  # every row is sampled
    second = (count - 1) * covariance if whole else sum_outer_products(rows.centered)
    known = _scale_to_population(side[1], covariance, rows, second)

    def known_by(value: Tensor, influence: Tensor) -> Estimate:
        return estimate_by_influence(value, (influence, *side))

    axes = known_by(known.participation_ratio.log(), participation_influence(rows, second, known))
    buckets = assign_buckets(side[0].groups).unique(return_inverse=True)[1]
    found = {
        "shell_ratio": exponentiate_interval(shell_estimate(rows, buckets).interval()),
        "population_participation_ratio": known.participation_interval(axes),
        "offset": known.offset_interval(known_by(known.offset_square, offset_influence(rows, known))),
    }
    for name, influence in (("off_diagonal_ratio", tilt_influence), ("mean_abs_correlation", correlation_influence)):
        if name in values:  # undefined in one dimension
            low, high = known_by(values[name], influence(rows, covariance)).interval()
            found[name] = Interval(max(low, 0.0), high)
    figures = {"population_participation_ratio": known.participation_ratio}
    for name, interval in found.items():
        figures |= name_ends(name, interval)
    return figures


def _scale_to_population(moments: Moments, covariance: Tensor, rows: Rows, second: Tensor) -> Traces:
    """Scale the estimates of the row sample to all rows.

    In the bias of the sample's own figures, the part of a row with itself depends on the number of rows, and that of a
    row with its group does not.
    """
    count = len(rows.centered)
    share = count / float(moments.total)
    every = plain_traces(moments.mean, covariance)
    here = plain_traces(rows.mean, second / (count - 1))
    grouped = unbiased_traces(rows, second)
    alone = grouped if rows.alone else unbiased_traces(rows.ungroup(), second)
    mean_square, trace, trace_square, square_trace = (
        whole - share * (own - single) - (single - between)
        for whole, own, single, between in zip(every[:4], here[:4], alone[:4], grouped[:4], strict=True)
    )
    return Traces(mean_square, trace, trace_square, square_trace, every.dim)
