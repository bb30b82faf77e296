"""Balls around rows that float32 finds and float64 decides, against differences of whole sets in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import double

from clipconformity.functional import distances
from clipconformity.functional.distances import center_and_scale, find_ball_blocks, find_largest, kth_distance
from clipconformity.functional.neighbours import close_counts, cover


def brute(first: torch.Tensor, second: torch.Tensor) -> np.ndarray:
    """Squared distances, a row at a time, from differences."""
    x, y = double(first), double(second)
    return np.stack([((one - y) ** 2).sum(1) for one in x])


def brute_reach(rows: torch.Tensor, k: int) -> np.ndarray:
    return np.sort(brute(rows, rows), axis=1)[:, k]


def kinds(generator: torch.Generator) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of sets, float64, of 300 and 260 rows, for some of which float32 alone cannot tell what is near."""

    def normal(count: int, dim: int = 24) -> torch.Tensor:
        return torch.randn(count, dim, generator=generator, dtype=torch.float64)

    apart = 1e4 * (torch.arange(300)[:, None] % 2 - 0.5)
    line = torch.cumsum(torch.rand(560, 1, generator=generator, dtype=torch.float64) + 1e-5, 0)
    outlier = normal(300)
    outlier[7] *= 1e6
    repeated = normal(300)
    repeated[20:60] = repeated[3]
    mixed = normal(300) * torch.logspace(0, -9, 300, dtype=torch.float64)[:, None]
    return {
        "plain": (normal(300), 1.1 * normal(260) + 0.1),
        "two far clusters": (normal(300) + apart, normal(260) + apart[:260]),
        "one row far off": (outlier, normal(260)),
        "both with a row far off": (outlier, outlier[:260].flip(0) + 1e-3 * normal(260)),
        "more repeats than are kept": (repeated, normal(260)),
        "of every size": (mixed, mixed[:260] * 1.01 + 1e-12),
        "tiny": (1e-25 * normal(300), 1e-25 * normal(260)),
        "huge": (1e25 * normal(300), 1e25 * normal(260)),
        "one dimension": (line[::2][:300], line[1::2][:260]),
        "fewer rows than are kept": (normal(8), normal(9)),
    }


KINDS = list(kinds(torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 5])
def test_who_is_in_a_ball_is_what_float64_says(kind, k, generator):
    mine, theirs = kinds(generator)[kind]
    first, second, scale = center_and_scale(mine, theirs)
    reaches = kth_distance(first, k), kth_distance(second, k)
    for found, rows in zip(reaches, (mine, theirs), strict=True):
        np.testing.assert_allclose(found / scale, brute_reach(rows, k), rtol=1e-9, atol=1e-11 * brute(rows, rows).max())
    center = double(theirs).mean(0)
    squares = [((double(x) - center) ** 2).sum(1) for x in (mine, theirs)]
    apart, blocks = brute(mine, theirs), list(find_ball_blocks(first, second, reaches))
    edge = 1e-11 * (squares[0][:, None] + squares[1])  # nearer than that no answer is wrong
    for side, limit in enumerate((reaches[0][:, None], reaches[1][None])):
        inside = np.zeros(apart.shape, dtype=bool)
        for block in blocks:
            row, column = (block.in_first, block.in_second)[side]
            inside[row, column] = True
        limits = np.broadcast_to(double(limit) / scale, apart.shape)
        decided = np.abs(apart - limits) > edge
        assert decided.mean() > 0.9
        np.testing.assert_array_equal(inside[decided], (apart < limits)[decided])


@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_never_off_by_more_than_is_allowed_for(kind, generator):
    mine, theirs = kinds(generator)[kind]
    first, second, scale = center_and_scale(mine, theirs)
    apart = scale * brute(mine, theirs)
    for block in find_ball_blocks(first, second, (first.squares, second.squares)):
        off = np.abs(double(block.distance) - apart)
        near = torch.from_numpy(apart)
        margin = torch.stack([first.margin(near[:, column]) for column in range(len(theirs))], 1)
        assert bool((off <= double(margin)).all())


@pytest.mark.parametrize("few", [0.0, 1.0], ids=["a block at once", "pair by pair"])
def test_both_ways_to_decide_in_float64_agree(few, generator, monkeypatch):
    mine, theirs = kinds(generator)["two far clusters"]
    expected = cover(mine, theirs, 3)
    monkeypatch.setattr(distances, "MAX_UNCERTAIN_SHARE", few)
    monkeypatch.setattr(distances, "PAIRS", 5)
    found = cover(mine, theirs, 3)
    for one, other in zip(found, expected, strict=True):
        assert one == other if isinstance(one, int) else torch.equal(one, other)


@pytest.mark.parametrize("answer", ["medium", RuntimeError("mixed settings")], ids=["medium", "no answer"])
def test_float32_that_loses_digits_is_not_asked(answer, generator, monkeypatch):
    mine, theirs = (side.float() for side in kinds(generator)["plain"])
    assert center_and_scale(mine, theirs)[0].quick.dtype == torch.float32
    expected = cover(mine, theirs, 3)

    def precision() -> str:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(torch, "get_float32_matmul_precision", precision)
    assert center_and_scale(mine, theirs)[0].quick.dtype == torch.float64
    found = cover(mine, theirs, 3)
    assert torch.equal(found.balls, expected.balls)
    assert torch.equal(found.recalled, expected.recalled)


def test_the_largest_of_a_symmetric_matrix_are_found_from_half_of_it(generator, monkeypatch):
    rows = torch.randn(90, 6, generator=generator, dtype=torch.float64)
    bias = torch.randn(90, generator=generator, dtype=torch.float64)
    matrix = rows @ rows.T + bias + bias[:, None]
    matrix.fill_diagonal_(-torch.inf)
    expected = matrix.topk(7, dim=1)
    for size in (4, 37, 90):
        monkeypatch.setattr(distances, "ROWS", size)
        values, places = find_largest(rows, None, 7, bias)
        torch.testing.assert_close(values, expected.values)
        assert torch.equal(places, expected.indices)


def test_close_pairs_are_counted_from_half_of_the_matrix_across_blocks(generator):
    rows = torch.randn(2500, 4, generator=generator, dtype=torch.float64)
    units = rows / rows.norm(dim=1, keepdim=True)
    assert torch.equal(close_counts(units, 0.8), (units @ units.T >= 0.8).sum(1))
