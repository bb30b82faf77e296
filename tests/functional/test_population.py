"""Estimates of the population's figures, against brute force over tuples of rows, closed forms and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows

from clipconformity.functional.geometry import modality_gap
from clipconformity.functional.linalg import units
from clipconformity.functional.population import (
    Rows,
    Traces,
    correlation_influence,
    estimate,
    mean_square_influence,
    offset_influence,
    participation_influence,
    permuted_covariance,
    shell_estimate,
    sum_outer_products,
    symmetric_form,
    tilt_influence,
    unbiased_traces,
)
from clipconformity.functional.resampling import Estimate

GROUPS = {"none": None, "even": torch.arange(9) % 5, "uneven": torch.tensor([3, 3, 3, 1, 1, 0, 7, 9, 9])}


def traces(values: torch.Tensor, group: torch.Tensor | None = None):
    rows = Rows.center(values, group)
    return rows, unbiased_traces(rows, rows.centered.T @ rows.centered)


@pytest.mark.parametrize("name", GROUPS)
def test_estimates_are_means_over_rows_of_different_groups(name, generator):
    rows, found = traces(ellipsoid_rows(9, 4, generator).double(), GROUPS[name])
    x, group = rows.centered.numpy(), rows.group.numpy()
    gram = x @ x.T
    tuples = [
        [t for t in itertools.permutations(range(9), size) if len(set(group[list(t)])) == size] for size in (2, 3, 4)
    ]
    four = np.mean([gram[i, j] * gram[k, m] for i, j, k, m in tuples[2]])
    square = np.mean([gram[i, j] ** 2 for i, j in tuples[0]]) + four
    square -= 2 * np.mean([gram[i, j] * gram[i, k] for i, j, k in tuples[1]])
    trace_square = np.mean([gram[i, i] * gram[j, j] for i, j in tuples[0]]) + four
    trace_square -= 2 * np.mean([gram[i, i] * gram[j, k] for i, j, k in tuples[1]])
    raw = (rows.mean + rows.centered).numpy()
    between = np.mean([raw[i] @ raw[j] for i, j in tuples[0]])
    assert float(found.square_trace) == pytest.approx(square, rel=1e-9)
    assert float(found.trace_square) == pytest.approx(trace_square, rel=1e-9)
    assert float(found.trace) == pytest.approx(np.mean([np.square(raw[i] - raw[j]).sum() / 2 for i, j in tuples[0]]))
    assert float(found.mean_square) == pytest.approx(between, rel=1e-9)


@pytest.mark.parametrize("name", GROUPS)
def test_products_within_groups_are_those_of_each_row(name, generator):
    rows = Rows.center(ellipsoid_rows(9, 4, generator).double(), GROUPS[name])
    gram, same = rows.centered @ rows.centered.T, rows.group[:, None] == rows.group
    for found, expected in ((rows.within, gram.square()), (rows.along, gram)):
        torch.testing.assert_close(found, (expected * same).sum(1))


@pytest.mark.parametrize("name", GROUPS)
def test_the_influences_beside_other_groups_are_sums_over_these(name, generator):
    rows, known = traces(ellipsoid_rows(9, 4, generator).double(), GROUPS[name])
    apart = (rows.group[:, None] != rows.group).double()
    gram = rows.centered @ rows.centered.T
    others = apart.sum(1)
    second = rows.centered.T @ rows.centered
    axes = 2 * gram.diagonal() / known.trace - 2 * (gram.square() * apart).sum(1) / others / known.bounded
    torch.testing.assert_close(participation_influence(rows, second, known), axes - axes.mean())
    means = rows.mean + (apart @ rows.centered) / others[:, None]  # of the other groups
    along = 2 * (rows.centered * means).sum(1)
    torch.testing.assert_close(mean_square_influence(rows, rows.mean), along - along.mean())


def test_products_within_a_group_larger_than_its_dimensions_are_those_of_each_row(generator):
    """By the matrix of the dimensions in place of that of the rows."""
    rows = Rows.center(ellipsoid_rows(1500, 5, generator).double(), torch.arange(1500) % 3 // 2)
    gram, same = rows.centered @ rows.centered.T, rows.group[:, None] == rows.group
    torch.testing.assert_close(rows.within, (gram.square() * same).sum(1))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("dim", [1, 3, 301])
def test_forms_and_outer_products_in_blocks_and_panels_are_those_of_single_rows(dim, dtype, near, generator):
    rows = ellipsoid_rows(9000, dim, generator).to(dtype)
    matrix = torch.randn(dim, dim, dtype=torch.float64, generator=generator)
    matrix = matrix + matrix.T
    form, second = symmetric_form(rows, matrix), sum_outer_products(rows)
    assert form.dtype == second.dtype == torch.float64
    values = double(rows)
    expected = ((values @ double(matrix)) * values).sum(1)
    size = np.linalg.norm(double(matrix), 2) * np.square(values).sum(1)
    assert np.all(np.abs(double(form) - expected) < near * size)
    expected = values.T @ values
    assert np.linalg.norm(double(second) - expected) < near * np.linalg.norm(expected)


@pytest.mark.parametrize("dim", [1, 2, 70])
def test_columns_are_permuted_one_by_one_and_the_rows_left_as_they_were(dim, generator):
    rows = Rows.center(ellipsoid_rows(700, dim, generator))
    before, values = rows.centered.clone(), double(rows.centered)
    found = permuted_covariance(rows, torch.Generator().manual_seed(3))
    draw = torch.Generator().manual_seed(3)
    mixed = np.stack([column[torch.randperm(700, generator=draw).numpy()] for column in values.T])
    np.testing.assert_allclose(found, np.atleast_2d(np.cov(mixed)), rtol=0, atol=1e-6 * float(found.max()))
    assert torch.equal(rows.centered, before)


def test_an_estimate_leaves_out_each_group_and_what_it_moves(generator):
    """Of a mean that is exact: it is the mean of the rows of the other groups."""
    x, group = torch.randn(9, 1, generator=generator).double(), GROUPS["uneven"]
    rows = Rows.center(x, group)
    found = estimate(rows.mean[0], rows.centered[:, 0], rows)
    left = np.array([float(x[group != one].mean()) for one in group.unique()])
    assert float(found.error) == pytest.approx(math.sqrt(4 / 5 * np.square(left - left.mean()).sum()), rel=1e-9)


def test_what_cannot_be_is_cut_off():
    one, dim = torch.tensor(1.0).double(), 3
    for square_trace, ratio in ((9.0, 1.0), (2.0, 2.0), (0.1, 3.0), (-1.0, 3.0)):
        assert float(Traces(one, 2 * one, 4 * one, square_trace * one, dim).participation_ratio) == ratio
    known = Traces(one, 2 * one, 4 * one, 2 * one, dim)

    def at(value: float, error: float) -> Estimate:
        return Estimate(value * one, error * one, 10.0)

    assert known.offset_interval(at(1, 1)) == (0, pytest.approx(math.sqrt(1 + 2.228139)))
    assert known.offset_interval(at(-5, 1)) == (0, 0)
    assert known.offset_interval(at(4, 1)).low == pytest.approx(math.sqrt(4 - 2.228139))
    assert known.participation_interval(at(0.5, 1)) == (1, 3)
    assert known.participation_interval(at(-5, 1)) == (1, 1)
    assert known.participation_interval(at(5, 1)) == (3, 3)
    ends = math.exp(0.5 - 0.2228139), math.exp(0.5 + 0.2228139)
    assert known.participation_interval(at(0.5, 0.1)) == pytest.approx(ends)


@pytest.mark.parametrize("each", [1, 5])
def test_estimates_have_no_bias_where_rows_are_few_for_their_dimensions(each):
    """Twenty groups in 60 dimensions: the sample's own participation ratio is half of the population's."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -1, 60, dtype=torch.float64)
    group = torch.arange(20).repeat_interleave(each)
    found, plain = [], []
    for _ in range(400):
        shared, own = (torch.randn(n, 60, generator=generator, dtype=torch.float64) for n in (20, 20 * each))
        noise = own if each == 1 else math.sqrt(0.7) * shared[group] + math.sqrt(0.3) * own
        rows, known = traces(noise * spread + 0.3, group)
        found.append([float(x) for x in known[:4]])
        covariance = rows.centered.T @ rows.centered / len(group)
        plain.append(float(covariance.trace() ** 2 / covariance.square().sum()))
    variances = spread.square()
    total, square = float(variances.sum()), float(variances.square().sum())
    expected = [60 * 0.09, total, total**2, square]
    errors = np.std(found, axis=0) / math.sqrt(400)
    assert np.all(np.abs(np.mean(found, axis=0) - expected) < 3.5 * errors)
    assert np.mean(plain) < 0.6 * total**2 / square


def test_one_large_group_gives_mean_and_trace_no_bias():
    """Twenty copies of a row beside thirty others: by products of rows less the sample's mean they were off by 8%."""
    generator = torch.Generator().manual_seed(0)
    group = torch.cat([torch.arange(30), torch.full((20,), 30)])
    found = []
    for _ in range(300):
        _, known = traces((torch.randn(31, 6, generator=generator, dtype=torch.float64) + 0.5)[group], group)
        found.append([float(known.mean_square), float(known.trace)])
    errors = np.std(found, axis=0) / math.sqrt(300)
    assert np.all(np.abs(np.mean(found, axis=0) - [1.5, 6]) < 3.5 * errors)
    assert np.all(errors < [0.06, 0.12])


def shape(x: np.ndarray) -> dict[str, float]:
    """The figures in numpy."""
    covariance = np.cov(x.T)
    off = ~np.eye(len(covariance), dtype=bool)
    return {
        "tilt": np.abs(covariance[off]).sum() / np.trace(covariance),
        "correlation": np.abs(np.corrcoef(x.T)[off]).mean(),
        "offset": (x.mean(0) ** 2).sum() / np.trace(covariance),
        "axes": math.log(np.trace(covariance) ** 2 / (covariance**2).sum()),
    }


def test_influences_are_those_of_leaving_rows_out(generator):
    values = ellipsoid_rows(3000, 6, generator).double()
    values = values + 2 * torch.randn(3000, 1, generator=generator)  # no covariance near 0, whose sign may change
    rows, known = traces(values)
    second = rows.centered.T @ rows.centered
    covariance = second / (len(values) - 1)
    influences = {
        "tilt": tilt_influence(rows, covariance),
        "correlation": correlation_influence(rows, covariance),
        "offset": offset_influence(rows, known),
        "axes": participation_influence(rows, second, known),
    }
    whole = shape(double(values))
    for influence in influences.values():
        assert float(influence.mean()) == pytest.approx(0, abs=1e-9 * float(influence.abs().max()))
    for i in range(0, 3000, 150):
        left = shape(np.delete(double(values), i, axis=0))
        for name, influence in influences.items():
            moved = (whole[name] - left[name]) * 2999
            assert float(influence[i]) == pytest.approx(moved, abs=0.01 * float(influence.std())), name


def test_the_shell_is_left_out_with_its_own_mean(generator):
    values = ellipsoid_rows(40, 5, generator).double()
    part = torch.arange(40) % 7
    found = shell_estimate(Rows.center(values), part)
    logs = []
    for kept in (part >= 0, *(part != p for p in range(7))):
        x = double(values[kept])
        distance = np.linalg.norm(x - x.mean(0), axis=1)
        logs.append(math.log(distance.mean() ** 2 / distance.var(ddof=1)))
    assert float(found.value) == pytest.approx(logs[0], rel=1e-12)
    assert float(found.error) == pytest.approx(math.sqrt(6 / 7 * np.square(logs[1:] - np.mean(logs[1:])).sum()))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_the_shell_in_blocks_is_that_of_all_rows_at_once(dtype, near, generator):
    """Also with a row at the mean, which leaving out a part moves by more than its own distance."""
    values = ellipsoid_rows(1300, 40, generator)
    values[700] = values.mean(0)
    part = torch.arange(1300).square() % 23
    found = shell_estimate(Rows.center(values.to(dtype)), part.unique(return_inverse=True)[1])
    logs, used = [], part.unique()
    for kept in (part >= 0, *(part != one for one in used)):
        x = double(values[kept])
        distance = np.linalg.norm(x - x.mean(0), axis=1)
        logs.append(math.log(distance.mean() ** 2 / distance.var(ddof=1)))
    error = math.sqrt((len(used) - 1) / len(used) * np.square(logs[1:] - np.mean(logs[1:])).sum())
    assert float(found.value) == pytest.approx(logs[0], rel=1e-9)
    assert float(found.error) == pytest.approx(error, rel=near)


def test_groups_of_one_are_no_groups(generator):
    values = ellipsoid_rows(30, 5, generator)
    (first, one), (second, other) = traces(values), traces(values, 7 * torch.arange(30) - 3)
    assert one == other
    value = one.offset_square
    assert estimate(value, offset_influence(first, one), first) == estimate(
        value, offset_influence(second, one), second
    )


def test_the_squared_gap_of_unequal_groups_is_a_mean_over_pairs_of_different_ones(generator):
    """Of pairs; of two sets whose groups are unequal on either side its mean is that of the population."""
    rows, group = ellipsoid_rows(9, 4, generator).double(), GROUPS["uneven"]
    apart = units(rows) - units(rows.flip(1))
    products = (apart @ apart.T)[group[:, None] != group]
    assert float(modality_gap(rows, rows.flip(1), groups=group).squared_gap) == pytest.approx(float(products.mean()))
    large, found = torch.cat([torch.arange(12), torch.full((12,), 12)]), []
    for _ in range(200):
        pair = [(torch.randn(13, 4, generator=generator).double() + 1)[large] for _ in range(2)]
        gap = modality_gap(*pair, paired=False, groups=large, text_groups=large)
        found.append([float(gap.squared_gap), float(gap.gap) ** 2])
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / math.sqrt(200)
    assert abs(mean[0]) < 3 * error[0] < 0.3 * mean[1]


@pytest.mark.parametrize("paired", [True, False])
def test_the_squared_gap_has_no_bias_and_its_interval_covers_it(paired):
    generator = torch.Generator().manual_seed(1)
    group = torch.arange(40).repeat_interleave(2)
    for move, fewest in ((0.0, 0.93), (0.6, 0.9)):
        direction = torch.zeros(10)
        direction[0] = move
        big = [units(torch.randn(100_000, 10, generator=generator) + 1 + s * direction).mean(0) for s in (1, -1)]
        truth = float((big[0] - big[1]).norm())
        squares, nulls, gaps, covered = [], [], [], 0
        for _ in range(300):
            common = torch.randn(40, 10, generator=generator)[group]
            pair = [0.6 * common + 0.8 * torch.randn(80, 10, generator=generator) + 1 + s * direction for s in (1, -1)]
            options = {"groups": group} if paired else {"paired": False, "groups": group, "text_groups": group}
            if not paired:
                pair[1] = pair[1] + 0.6 * (torch.randn(40, 10, generator=generator)[group] - common)
            found = modality_gap(*pair, **options)
            squares.append(float(found.squared_gap))
            nulls.append(float(found.null))
            gaps.append(float(found.gap))
            covered += float(found.low) <= truth <= float(found.high)
        assert np.mean(squares) == pytest.approx(truth**2, abs=4 * np.std(squares) / math.sqrt(300) + 2e-4)
        assert covered >= fewest * 300
        assert np.allclose(np.square(gaps), np.square(nulls) + squares, atol=1e-5)
        if not move:
            assert np.mean(np.square(gaps)) == pytest.approx(np.mean(np.square(nulls)), rel=0.1)


def test_a_gap_of_one_pair_has_no_interval_and_bad_groups_are_refused(generator):
    rows = ellipsoid_rows(6, 4, generator)
    alone = modality_gap(rows[:1], rows[1:2])
    assert alone.squared_gap is alone.null is alone.low is alone.high is None
    assert modality_gap(rows, rows + 1, groups=torch.zeros(6, dtype=torch.int64)).low is None
    with pytest.raises(ValueError, match=r"groups: expected one id for each of 6 rows, got \(5,\)"):
        modality_gap(rows, rows + 1, groups=torch.arange(5))
    with pytest.raises(ValueError, match="text_groups: pairs have one id each"):
        modality_gap(rows, rows + 1, text_groups=torch.arange(6))
