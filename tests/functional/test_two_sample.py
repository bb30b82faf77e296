"""The Anderson-Darling test against scipy, its redraws against what they stand for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch

from clipconformity.functional.two_sample import (
    anderson_darling,
    flip_histograms,
    permute_histograms,
    tail_probability,
)


def ranks(*samples: np.ndarray) -> list[torch.Tensor]:
    """Counts over the pooled different values, a cell each."""
    values = np.unique(np.concatenate(samples))
    return [torch.from_numpy(np.bincount(np.searchsorted(values, x), minlength=len(values))).double() for x in samples]


@pytest.mark.filterwarnings("ignore")  # scipy's p-value is cut, and its option is to be called otherwise
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decimals", [8, 1], ids=["no ties", "ties"])
def test_the_statistic_is_the_one_of_scholz_and_stephens(seed, decimals):
    """scipy normalises it by mean and standard deviation under the hypothesis, which are the same for all draws."""
    draw = np.random.default_rng(seed)
    x, y = draw.normal(0, 1, 30).round(decimals), draw.normal(0.5, 1.2, 50).round(decimals)
    pooled = np.concatenate([x, y])
    found, expected = [], []
    for _ in range(6):
        draw.shuffle(pooled)
        one, two = ranks(pooled[:30], pooled[30:])
        found.append(float(anderson_darling(one[None], two[None], one + two)))
        expected.append(scipy.stats.anderson_ksamp([pooled[:30], pooled[30:]], midrank=False).statistic)
    slope, intercept, r, *_ = scipy.stats.linregress(found, expected)
    assert slope > 0
    assert r > 1 - 1e-9
    np.testing.assert_allclose(np.array(found) * slope + intercept, expected, rtol=1e-9)


def test_permutations_are_draws_without_replacement():
    one, two = torch.tensor([3.0, 0.0, 2.0, 5.0]), torch.tensor([1.0, 0.0, 6.0, 3.0])
    mine, theirs = permute_histograms(one, two, 4000, torch.Generator().manual_seed(0))
    assert torch.equal(mine + theirs, (one + two).expand(4000, -1).double())
    assert bool((mine.sum(1) == 10).all())
    expected = scipy.stats.multivariate_hypergeom((one + two).long().numpy(), 10)
    np.testing.assert_allclose(mine.mean(0), expected.mean(), atol=0.1)
    np.testing.assert_allclose(np.cov(mine.numpy().T), expected.cov(), atol=0.1)


def test_permutation_p_values_are_those_of_all_permutations():
    draw = np.random.default_rng(3)
    pooled = draw.normal(size=9)
    x, y = pooled[:4] + 0.8, pooled[4:]
    one, two = ranks(x, y)
    observed = anderson_darling(one[None], two[None], one + two)
    values = np.concatenate([x, y])
    every = []
    for chosen in itertools.combinations(range(9), 4):
        rest = [n for n in range(9) if n not in chosen]
        a, b = ranks(values[list(chosen)], values[rest])
        every.append(float(anderson_darling(a[None], b[None], a + b)))
    exact = np.mean(np.array(every) >= float(observed) * (1 - 1e-12))
    drawn = permute_histograms(one, two, 20_000, torch.Generator().manual_seed(0))
    assert tail_probability(observed, anderson_darling(*drawn, one + two)) == pytest.approx(exact, abs=0.01)


def test_flips_keep_what_sides_share_in_a_bucket():
    """Equal sides differ in no draw, and the sums of a draw are those of the sides."""
    counts = torch.randint(0, 4, (64, 10), generator=torch.Generator().manual_seed(0)).double()
    mine, theirs = flip_histograms(counts, counts, 200, torch.Generator().manual_seed(1))
    torch.testing.assert_close(mine, theirs)
    np.testing.assert_allclose(mine.sum(1), float(counts.sum()))


def test_flips_of_independent_buckets_have_the_variance_of_cluster_sums():
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(0, 5, (100, 6), generator=generator).double()
    two = torch.zeros_like(one)
    two[0] = 1.0
    mine, _ = flip_histograms(one, two, 20_000, generator)
    added = one - one.sum(1, keepdim=True) * (one.sum(0) / one.sum())
    np.testing.assert_allclose(mine.var(0), added.square().sum(0), rtol=0.05)


def test_a_p_value_is_never_zero_and_counts_what_was_observed():
    draws = torch.arange(99.0)
    assert tail_probability(torch.tensor(1000.0), draws) == 0.01
    assert tail_probability(torch.tensor(0.0), draws) == 1.0
    assert tail_probability(torch.tensor(90.0), draws) == 0.1
