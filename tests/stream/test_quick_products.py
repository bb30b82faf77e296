"""Figures that rest on float32 products of sampled rows: as in float64, on real embeddings and beyond every block."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import double, unit
from scipy import stats

import clipconformity as cc
from clipconformity.functional import likelihood
from clipconformity.functional.likelihood import log_density, oas_shrinkage, shrink_gaussian
from clipconformity.stream import spread
from clipconformity.stream.moments import BUCKETS
from clipconformity.stream.readouts import ellipsoid, read_outs
from clipconformity.stream.readouts.base import read_sample
from clipconformity.stream.readouts.likelihood import held_out_likelihoods
from clipconformity.stream.stream import Needs, Stream

NEEDS = Needs(conformity=True, rows=True, second_moment=True, reference=True)
KINDS = ("halves", "groups", "few groups", "far off", "few rows", "many rows")


def mixed(rows: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Rows between two of those given: as many as wanted, with their spectrum."""
    generator = torch.Generator().manual_seed(seed)
    one, other = (rows[torch.randint(len(rows), (count,), generator=generator)] for _ in range(2))
    return one.lerp(other, torch.rand(count, 1, generator=generator))


def sides(images: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor, int | None]:
    """Rows of both sides, shuffled, and the rows of a group."""
    rows = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(5))]
    if kind == "many rows":
        return mixed(rows, 4000, 1), mixed(rows, 7000, 2), None
    if kind == "far off":
        rows = rows + 30
    first, second = (300, 600) if kind == "few rows" else (900, 1803)
    return rows[:first], rows[first:second], {"groups": 3, "few groups": 75}.get(kind)


def numbered(count: int, size: int | None) -> torch.Tensor | None:
    return None if size is None else torch.arange(count) // size


def read_figures(rows: torch.Tensor, others: torch.Tensor, size: int | None) -> dict[str, float]:
    """Figures with their ends, and all that is told of the spread without each bucket; 2,500 rows are sampled."""
    reference = cc.ReferenceSet.fit(others, groups=numbered(len(others), size), max_samples=2500)
    stream = Stream.open_against(reference, NEEDS, max_samples=2500)
    stream.update(rows, groups=numbered(len(rows), size))
    found = {name: part.read(stream) for name, part in read_outs().items() if name in ("ellipsoid", "likelihood")}
    figures = {key: float(value) for values in found.values() for key, value in values.items()}
    left = torch.cat([getattr(reference.spread, name).log() for name in ("fixed", "moving")])
    return figures | {f"spread {place}": float(value) for place, value in enumerate(left)}


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_products_in_float64(kind, images, monkeypatch):
    """To a millionth, or to a hundred-thousandth of the standard error, where there is an interval."""
    quick = read_figures(*sides(images, kind))
    for module in (likelihood, spread, ellipsoid):
        monkeypatch.setattr(module, "quick_type", lambda: torch.float64)
    exact = read_figures(*sides(images, kind))
    assert quick.keys() == exact.keys()
    differ = 0
    for name, value in exact.items():
        figure = name.removesuffix("_low").removesuffix("_high")
        width = exact.get(f"{figure}_high", math.nan) - exact.get(f"{figure}_low", math.nan)
        near = 1e-6 * abs(value) if math.isnan(width) else max(1e-6 * abs(value), 1e-5 * width / 3.92)
        assert quick[name] == pytest.approx(value, abs=near, rel=0, nan_ok=True), name
        differ += quick[name] != value and not math.isnan(value)
    assert differ > 20  # the products were of two kinds


@pytest.mark.parametrize(("move", "size"), [(0, None), (300, None), (0, 3)])
def test_the_spread_without_a_bucket_is_that_of_the_rows_that_are_left(move, size, images):
    """By all cosines of 1,803 rows, to a hundred-thousandth of how the buckets differ, also far off the origin."""
    rows = images + move
    reference = cc.ReferenceSet.fit(rows, groups=numbered(len(rows), size))
    units, bucket = unit(double(reference.sample.rows)), reference.buckets.numpy()
    cosines = units @ units.T
    cosines[np.eye(len(rows), dtype=bool) if size is None else bucket[:, None] == bucket] = np.nan
    values = np.nanmean(cosines, axis=1)
    for moving, found in ((False, reference.spread.fixed), (True, reference.spread.moving)):
        expected = np.array(
            [
                (np.nanmean(cosines[kept][:, kept], axis=1) if moving else values[kept]).std(ddof=1)
                for kept in (bucket != one for one in range(BUCKETS))
            ]
        )
        apart = double(found) - expected
        assert np.linalg.norm(apart - apart.mean()) < 1e-5 * np.linalg.norm(expected - expected.mean())
        assert np.abs(apart).max() < 1e-7 * expected.max()


@pytest.mark.parametrize("shrinkage", [0.1, 1e-3, 1e-6])
def test_likelihoods_by_float32_products_are_those_of_scipy(shrinkage, images):
    """Of a covariance with a condition of 2e9: to a hundred-thousandth of their spread, and their mean to its error."""
    rows = images.double()
    mean, covariance = rows.mean(0), torch.cov(rows.T)
    gaussian = likelihood.check_gaussian(mean, covariance, shrinkage, symmetric=False)
    assert gaussian.quick_type == torch.float32
    shrunk = double((1 - shrinkage) * covariance + shrinkage * covariance.trace() / 512 * torch.eye(512).double())
    expected = stats.multivariate_normal(double(mean), shrunk).logpdf(double(rows))
    apart = double(log_density(images, gaussian, gaussian.quick_type)) - expected
    assert apart.std() < 1e-5 * expected.std()
    assert abs(apart.mean()) < 1e-5 * expected.std() / len(rows) ** 0.5
    assert np.abs(double(log_density(images, gaussian)) - expected).max() < 1e-8 * expected.std()


def test_dimensions_that_nearly_repeat_others_are_multiplied_in_float64(generator):
    """A column that is another but for a hundred-thousandth: float32 would lose what it adds."""
    rows = torch.randn(3000, 80, generator=generator)
    rows[:, 79] = rows[:, 0] + 1e-5 * rows[:, 79]
    exact = rows.double()
    gaussian, shrinkage = shrink_gaussian(exact.mean(0), torch.cov(exact.T), 10**12)
    assert 0 < shrinkage < 1e-8
    assert gaussian.quick_type == torch.float64
    expected, quick = (log_density(rows, gaussian, products) for products in (torch.float64, torch.float32))
    assert float((quick - expected).std()) > 1e-5 * float(expected.std())
    plain, _ = shrink_gaussian(exact[:, :79].mean(0), torch.cov(exact[:, :79].T), 10**12)
    assert plain.quick_type == torch.float32
    assert plain.inflation == pytest.approx(
        float((torch.cov(exact[:, :79].T).diagonal() * torch.cov(exact[:, :79].T).inverse().diagonal()).mean())
    )


@pytest.mark.parametrize("max_samples", [10_000, 700])
def test_held_out_likelihoods_are_those_under_the_rows_of_the_other_folds(max_samples, images):
    """A row sample's fold is left out of all rows: those that are not sampled stay."""
    reference = cc.ReferenceSet.fit(images, groups=torch.arange(len(images)) // 2, max_samples=max_samples)
    kept, expected = double(reference.sample.rows), np.empty(len(reference.sample.keys))
    rows = double(images)
    for fold in range(5):
        out = (reference.clusters % 5 == fold).numpy()
        count, gone = len(rows) - out.sum(), kept[out]
        mean = (rows.sum(0) - gone.sum(0)) / count
        covariance = ((rows - mean).T @ (rows - mean) - (gone - mean).T @ (gone - mean)) / (count - 1)
        share = oas_shrinkage(torch.from_numpy(covariance), int(count))
        shrunk = (1 - share) * covariance + share * np.trace(covariance) / 512 * np.eye(512)
        expected[out] = stats.multivariate_normal(mean, shrunk).logpdf(gone)
    apart = double(held_out_likelihoods(reference)) - expected
    assert apart.std() < 1e-5 * expected.std()
    assert abs(apart.mean()) < 1e-5 * expected.std() / len(expected) ** 0.5
    assert held_out_likelihoods(reference) is held_out_likelihoods(reference)


def test_the_row_sample_is_read_once_until_rows_come(images):
    stream = Stream.open_against(cc.ReferenceSet.fit(images[900:]), NEEDS)
    stream.update(images[:500])
    first = read_sample(stream)
    assert read_sample(stream) is first
    stream.update(images[500:900])
    assert len(read_sample(stream).keys) == 900
