"""Intervals from what each row moves a figure by, against finite differences and explicit jackknives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import ellipsoid_rows
from scipy import stats

import clipconformity as cc
from clipconformity.functional.frechet import distance_influence, gaussian_distance
from clipconformity.functional.likelihood import log_likelihood, oas_shrinkage
from clipconformity.functional.resampling import jackknife_error
from clipconformity.stream.moments import BUCKETS, assign_buckets
from clipconformity.stream.readouts import read_outs
from clipconformity.stream.row_sample import hash_labels
from clipconformity.stream.stream import Needs, Stream

DIM = 5
NEEDS = Needs(conformity=True, rows=True, second_moment=True, reference=True)


def moments_of(rows: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of weighed rows."""
    share = weight / weight.sum()
    centered = rows - share @ rows
    return share @ rows, (centered * share[:, None]).T @ centered


def buckets(ids: range) -> torch.Tensor:
    return assign_buckets(hash_labels([str(one) for one in ids], len(ids), torch.device("cpu")))


def jackknifed(figure, mine: torch.Tensor, theirs: torch.Tensor) -> float:
    """Standard error of a figure of the rows kept on either side, each bucket left out of both."""
    used = [g for g in range(BUCKETS) if bool((mine == g).any() | (theirs == g).any())]
    left = torch.stack([figure(mine != g, theirs != g) for g in used])
    return float(jackknife_error(left, torch.ones(len(used))))


def streamed(rows, reference, **options) -> Stream:
    stream = Stream.open_against(reference, NEEDS, **options)
    stream.update(rows, ids=range(len(rows)))
    return stream


def error_of(figures: dict[str, torch.Tensor], name: str) -> float:
    """Standard error behind the ends of an interval of about 250 degrees of freedom."""
    return float(figures[f"{name}_high"] - figures[f"{name}_low"]) / 2 / stats.t.ppf(0.975, 250)


def test_the_influence_of_a_row_is_the_derivative_of_the_distance(generator):
    rows, others = ellipsoid_rows(40, DIM, generator).double(), ellipsoid_rows(60, DIM, generator, offset=0.3).double()
    other = moments_of(others, torch.ones(60, dtype=torch.float64))
    ones, step = torch.ones(40, dtype=torch.float64), 1e-4
    found = distance_influence(rows, *moments_of(rows, ones), *other)
    for row in (0, 7, 39):
        more = ones / 40
        ends = [
            gaussian_distance(*moments_of(rows, more * (1 - e) + e * torch.eye(40).double()[row]), *other)
            for e in (step, -step)
        ]
        assert float(found[row]) == pytest.approx(float(ends[0] - ends[1]) / (2 * step), rel=1e-4)
    assert float(found.mean()) == pytest.approx(0, abs=1e-9)


def test_the_interval_of_the_frechet_distance_is_that_of_an_explicit_jackknife(generator):
    rows, others = 1.7 * ellipsoid_rows(700, DIM, generator, offset=1.4), ellipsoid_rows(900, DIM, generator)
    reference = cc.ReferenceSet.fit(others, ids=range(5000, 5900))
    found = read_outs()["frechet"].figures(streamed(rows, reference), resamples=1)
    mine, theirs = buckets(range(700)), buckets(range(5000, 5900))

    def distance(kept, others_kept):
        sides = [moments_of(x.double(), kept.double()) for x, kept in ((rows, kept), (others, others_kept))]
        return gaussian_distance(*sides[0], *sides[1])

    assert error_of(found, "frechet") == pytest.approx(jackknifed(distance, mine, theirs), rel=0.05)
    middle = float(found["frechet_low"] + found["frechet_high"]) / 2
    assert middle == pytest.approx(float(found["frechet"]), rel=1e-6)


@pytest.mark.parametrize("name", ["frechet", "log_likelihood_shift"])
def test_the_interval_of_a_row_sample_is_that_of_all_rows(name, generator):
    """3,000 rows of which 300 are kept on either side: what is known of the figure goes with 3,000."""
    rows, others = ellipsoid_rows(3000, DIM, generator, offset=1.4), ellipsoid_rows(3000, DIM, generator)
    errors = []
    for size in (3000, 300):
        reference = cc.ReferenceSet.fit(others, ids=range(5000, 8000), max_samples=size)
        readout = read_outs()["frechet" if name == "frechet" else "likelihood"]
        errors.append(error_of(readout.figures(streamed(rows, reference, max_samples=size), resamples=1), name))
    assert errors[1] == pytest.approx(errors[0], rel=0.25)  # 300 rows in 180 buckets know it to 6% a side


def held_out(reference: cc.ReferenceSet) -> torch.Tensor:
    """Log-likelihood of each row of a reference under the Gaussian of the other folds, from the rows themselves."""
    rows, values = reference.sample.rows.double(), torch.empty(reference.count, dtype=torch.float64)
    for fold in range(5):
        out = reference.clusters % 5 == fold
        mean, covariance = rows[~out].mean(0), torch.cov(rows[~out].T)
        shrinkage = oas_shrinkage(covariance, int((~out).sum()))
        values[out] = log_likelihood(rows[out], mean, covariance, shrinkage)
    return values


@pytest.mark.parametrize("offset", [1.0, 1.6])
def test_the_interval_of_the_likelihood_shift_is_that_of_an_explicit_jackknife(offset, generator):
    """Far off, most of it is how well the reference's standard deviation is known."""
    rows, others = ellipsoid_rows(400, DIM, generator, offset=offset), ellipsoid_rows(900, DIM, generator)
    reference = cc.ReferenceSet.fit(others, ids=range(5000, 5900))
    found = read_outs()["likelihood"].figures(streamed(rows, reference), resamples=1)
    shrinkage = float(found["likelihood_shrinkage"])
    own = log_likelihood(rows.double(), reference.mean, reference.covariance, shrinkage)
    known = held_out(reference)
    assert float(found["reference_log_likelihood"]) == pytest.approx(float(known.mean()), rel=1e-7)
    assert float(found["log_likelihood_shift"]) == pytest.approx(
        float((own.mean() - known.mean()) / known.std()), rel=1e-5
    )

    def shift(kept, others_kept):
        return (own[kept].mean() - known[others_kept].mean()) / known[others_kept].std()

    expected = jackknifed(shift, buckets(range(400)), assign_buckets(reference.sample.groups))
    assert error_of(found, "log_likelihood_shift") == pytest.approx(expected, rel=0.05)


def test_a_group_is_held_out_as_one(generator):
    """Five copies of each row: with a copy in another fold the likelihood was that of fitted rows."""
    rows = torch.randn(100, 40, generator=generator) * torch.linspace(0.2, 2, 40) + 3
    fresh = torch.randn(100, 40, generator=generator) * torch.linspace(0.2, 2, 40) + 3
    reference = cc.ReferenceSet.fit(rows.repeat_interleave(5, 0), groups=torch.arange(100).repeat_interleave(5))
    found = read_outs()["likelihood"].figures(streamed(fresh, reference), resamples=1)
    assert abs(float(found["log_likelihood_shift"])) < 0.6


@pytest.mark.parametrize(("count", "dim"), [(15, 3), (40, 12), (200, 4)])
def test_oas_is_what_the_iterated_oracle_comes_to(count, dim, generator):
    """Chen et al. 2010, equations 19 and 20, whose limit equation 23 is."""
    sample = torch.cov(ellipsoid_rows(count, dim, generator).double().T)
    target = sample.trace() / dim * torch.eye(dim, dtype=torch.float64)
    rho = torch.tensor(0.5, dtype=torch.float64)
    for _ in range(5000):
        shrunk = (1 - rho) * sample + rho * target
        along, square = (shrunk @ sample).trace(), shrunk.trace().square()
        rho = ((1 - 2 / dim) * along + square) / ((count + 1 - 2 / dim) * along + (1 - count / dim) * square)
    assert 0 < float(rho) < 1
    assert oas_shrinkage(sample, count) == pytest.approx(float(rho), rel=1e-6)


def test_the_oracle_gives_the_textbook_error_of_a_mean(generator):
    x = torch.randn(50, generator=generator).double()
    found = jackknifed(lambda kept, _: x[kept].mean(), torch.arange(50), torch.full((1,), -1))
    assert found == pytest.approx(float(x.std()) / np.sqrt(50))
