"""The Vendi score against the eigenvalues of the matrix of all cosines, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows, unit

from clipconformity.functional import vendi_score
from clipconformity.functional.vendi import effective_rank, entropy_influence

ORDERS = (0.0, 0.1, 0.5, 0.999, 1.0, 1.5, 2.0, 10.0, math.inf)


def brute_vendi(rows: torch.Tensor, order: float) -> float:
    """By the definition: the spectrum of K/N, N x N."""
    u = unit(double(rows))
    values = np.linalg.eigvalsh(u @ u.T / len(u))
    values = values[values > 1e-12]
    if order == 1:
        return float(np.exp(-(values * np.log(values)).sum()))
    if order == math.inf:
        return float(1 / values.max())
    return float((values**order).sum() ** (1 / (1 - order)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 3, 20, 500])
def test_it_is_the_entropy_of_the_spectrum_of_all_cosines(count, order, generator):
    rows = ellipsoid_rows(count, 20, generator).double()
    assert vendi_score(rows, order) == pytest.approx(brute_vendi(rows, order), rel=1e-9)
    found = vendi_score(rows.float(), order)
    assert (found.dtype, found.shape) == (torch.float32, ())
    assert found == pytest.approx(brute_vendi(rows.float(), order), rel=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_it_counts_orthogonal_samples_and_takes_repeats_for_one(order):
    assert vendi_score(3 * torch.eye(7), order) == pytest.approx(7, rel=1e-6)
    assert vendi_score(torch.eye(7).repeat(4, 1), order) == pytest.approx(7, rel=1e-6)
    assert vendi_score(torch.ones(9, 4), order) == pytest.approx(1, abs=1e-6)


def test_order_2_is_one_over_the_mean_squared_cosine(generator):
    rows = ellipsoid_rows(60, 8, generator)
    u = unit(double(rows))
    assert vendi_score(rows, 2) == pytest.approx(1 / ((u @ u.T) ** 2).mean(), rel=1e-6)


def test_it_falls_with_the_order_and_is_continuous_in_it(generator):
    rows = ellipsoid_rows(60, 8, generator).double()
    values = [float(vendi_score(rows, order)) for order in ORDERS]
    assert values == sorted(values, reverse=True)
    for order in (1 - 1e-6, 1 - 1e-9, 1 + 1e-9, 1 + 1e-6):
        assert vendi_score(rows, order) == pytest.approx(float(vendi_score(rows, 1)), rel=1e-5)


def test_it_equals_brute_force_on_clip_embeddings(images, lvis):
    for rows in (images, images[:300], lvis.float()):
        for order in (0.5, 1.0, 2.0):
            assert vendi_score(rows, order) == pytest.approx(brute_vendi(rows, order), rel=1e-5)


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0, 4.0])
def test_the_influence_is_what_a_little_weight_on_a_row_adds(order, generator):
    rows = torch.from_numpy(unit(double(ellipsoid_rows(40, 5, generator))))
    moment = rows.T @ rows / len(rows)
    entropy = effective_rank(torch.linalg.eigvalsh(moment), order).log()
    step, found = 1e-6, entropy_influence(rows, moment, order)
    for row, influence in zip(rows[:5], found, strict=False):
        moved = (1 - step) * moment + step * torch.outer(row, row)
        change = (effective_rank(torch.linalg.eigvalsh(moved), order).log() - entropy) / step
        assert influence == pytest.approx(float(change), rel=1e-3, abs=1e-5)
    assert float(found.mean()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
def test_the_influence_does_not_see_axes_without_rows(order, generator):
    rows = torch.from_numpy(unit(double(ellipsoid_rows(40, 5, generator))))
    turn = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q[:5]
    expected = entropy_influence(rows, rows.T @ rows / 40, order)
    torch.testing.assert_close(entropy_influence(rows @ turn, turn.T @ rows.T @ rows @ turn / 40, order), expected)


def test_wrong_input_is_refused():
    for order in (-1.0, math.nan):
        with pytest.raises(ValueError, match="order: expected a number of at least 0"):
            vendi_score(torch.eye(3), order)
    with pytest.raises(ValueError, match="expected at least 1 samples, got 0"):
        vendi_score(torch.empty(0, 3))
    with pytest.raises(ValueError, match="1 of 3 rows are zero or hold NaN"):
        vendi_score(torch.tensor([[1.0, 0], [0, 0], [0, 1]]))
