"""Intervals, noise floors and standard errors, by simulation and by closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import brute_conformity, ellipsoid_rows, gaussian_kl, rows_with_cosine
from scipy import stats
from torch import Tensor

import clipconformity as cc

# The mean of a finite reference is off by a noise that widens both conformity distributions: here by less than 4%.
DIM = 32
MEAN, STD = 0.7, 0.04
PER_GROUP = 5


def draw(size: int, kl: float, generator: torch.Generator, dependent: bool = False) -> tuple[Tensor, Tensor | None]:
    """Embeddings whose conformity is Gaussian at a KL from the reference's, and group ids if five each depend.

    In a group the cosines share half of their variance and the directions half of theirs.
    """
    groups = None
    noise = torch.randn(size, DIM, generator=generator, dtype=torch.float64)
    if dependent:
        groups = torch.arange(size) // PER_GROUP
        shared = torch.randn(size // PER_GROUP, DIM, generator=generator, dtype=torch.float64)
        noise = math.sqrt(0.5) * (shared[groups] + noise)
    cosine = MEAN + STD * (math.sqrt(2 * kl) + noise[:, :1])
    around = noise[:, 1:] / torch.linalg.vector_norm(noise[:, 1:], dim=1, keepdim=True)
    return 10 * torch.cat([cosine, (1 - cosine.square()).sqrt() * around], 1).float(), groups


def drawn_metric(sizes: tuple[int, int], kl: float, seed: int, dependent: bool = False) -> cc.ConformityKL:
    generator = torch.Generator().manual_seed(seed)
    rows, groups = draw(sizes[1], 0.0, generator, dependent)
    metric = cc.ConformityKL(cc.ReferenceSet.fit(rows, groups=groups))
    rows, groups = draw(sizes[0], kl, generator, dependent)
    metric.update(rows, groups=groups)
    return metric


def test_the_simulation_has_the_divergence_that_it_says():
    """Guard of the oracle: the brute-force conformities have the two moments of the closed form."""
    generator = torch.Generator().manual_seed(0)
    reference, _ = draw(4000, 0.0, generator)
    rows, _ = draw(4000, 0.14, generator)
    p, q = brute_conformity(rows, reference), brute_conformity(reference)
    assert gaussian_kl((p.mean() - q.mean()) / q.std(), p.std() / q.std()) == pytest.approx(0.14, rel=0.1)
    assert stats.kstest((p - p.mean()) / p.std(), "norm").pvalue > 1e-3


# Forty runs each. Of a nominal 95% interval that truly covers 93% or more, fewer than 85% of 40 are covered with a
# probability below 2%; one that truly covers 70% passes with a probability below 3%.
RUNS = 40
COVERAGE = [
    ((1000, 1000), 0.0, False),
    ((200, 5000), 0.05, False),
    ((5000, 5000), 0.14, False),
    ((1000, 1000), 0.05, True),
    ((1000, 1000), 0.14, True),
]


@pytest.mark.parametrize(("sizes", "kl", "dependent"), COVERAGE)
def test_a_nominal_95_percent_interval_covers_the_truth(sizes, kl, dependent):
    covered = 0
    for seed in range(RUNS):
        low, high = drawn_metric(sizes, kl, seed, dependent).interval(resamples=200)
        covered += float(low) - 1e-9 <= kl <= float(high) + 1e-9
    assert covered >= 0.85 * RUNS


def test_those_thresholds_tell_a_good_interval_from_a_bad_one():
    """Guard of the comment above."""
    needed = math.ceil(0.85 * RUNS)
    assert stats.binom.cdf(needed - 1, RUNS, 0.93) < 0.06
    assert stats.binom.sf(needed - 1, RUNS, 0.70) < 0.03


def test_ignoring_the_groups_covers_too_rarely():
    """The dependence in the simulation is strong enough that groups matter: intervals grow by a third at least."""
    with_groups, without = [], []
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        rows, groups = draw(1000, 0.0, generator, dependent=True)
        more, more_groups = draw(1000, 0.14, generator, dependent=True)
        for widths, ids, more_ids in ((with_groups, groups, more_groups), (without, None, None)):
            metric = cc.ConformityKL(cc.ReferenceSet.fit(rows, groups=ids))
            metric.update(more, groups=more_ids)
            low, high = metric.interval(resamples=100)
            widths.append(float(high - low))
    assert np.mean(with_groups) > 1.33 * np.mean(without)


# At a true 5%, more than 10% of 60 runs exceed with a probability of 3%.
@pytest.mark.parametrize(("sizes", "dependent"), [((200, 5000), False), ((1000, 1000), False), ((1000, 1000), True)])
def test_equal_distributions_seldom_exceed_the_noise_floor(sizes, dependent):
    exceeded = 0
    for seed in range(60):
        metric = drawn_metric(sizes, 0.0, 1000 + seed, dependent)
        exceeded += float(metric.compute()) > float(metric.noise_floor(resamples=100))
    assert exceeded <= 6


def test_the_noise_floor_is_not_so_high_that_nothing_exceeds_it():
    """A KL of 0.05 is told from 0 at 1,000 samples a side in nearly every run."""
    exceeded = 0
    for seed in range(20):
        metric = drawn_metric((1000, 1000), 0.05, seed)
        exceeded += float(metric.compute()) > float(metric.noise_floor(resamples=200))
    assert exceeded >= 18


def test_the_noise_floor_falls_with_the_sample_size():
    floors = [float(drawn_metric((n, 5000), 0.0, 0).noise_floor(resamples=200)) for n in (100, 1000, 10_000)]
    assert all(a > 2 * b > 0 for a, b in pairwise(floors))


def test_groups_raise_the_noise_floor():
    generator = torch.Generator().manual_seed(0)
    rows, groups = draw(2000, 0.0, generator, dependent=True)
    more, more_groups = draw(2000, 0.0, generator, dependent=True)
    floors = []
    for ids, more_ids in ((groups, more_groups), (None, None)):
        metric = cc.ConformityKL(cc.ReferenceSet.fit(rows, groups=ids))
        metric.update(more, groups=more_ids)
        floors.append(float(metric.noise_floor(resamples=200)))
    assert floors[0] > 1.5 * floors[1]


# --- how they are asked for ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def metric() -> cc.ConformityKL:
    return drawn_metric((500, 1000), 0.14, 0)


def test_the_same_data_give_the_same_interval_and_floor(metric):
    torch.manual_seed(1)
    first = (*metric.interval(resamples=50), metric.noise_floor(resamples=50))
    torch.manual_seed(2)
    assert (*metric.interval(resamples=50), metric.noise_floor(resamples=50)) == first


def test_the_global_random_state_is_left_alone(metric):
    before = torch.get_rng_state()
    metric.interval(resamples=20)
    metric.noise_floor(resamples=20)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_generator_gives_another_interval_near_it(metric):
    one = metric.interval(generator=torch.Generator().manual_seed(1), resamples=500)
    two = metric.interval(generator=torch.Generator().manual_seed(2), resamples=500)
    assert one != two
    assert [float(x) for x in one] == pytest.approx([float(x) for x in two], abs=0.02)


def test_more_confidence_gives_a_wider_interval_around_the_value(metric):
    value = float(metric.compute())
    ends = [tuple(map(float, metric.interval(level, resamples=400))) for level in (0.5, 0.8, 0.95, 0.99)]
    assert all(low < value < high for low, high in ends)
    assert all(a[0] > b[0] and a[1] < b[1] for a, b in pairwise(ends))


def test_a_higher_quantile_gives_a_higher_floor(metric):
    floors = [float(metric.noise_floor(level, resamples=400)) for level in (0.5, 0.9, 0.99)]
    assert floors == sorted(set(floors))


def test_the_interval_is_never_below_zero():
    low, high = drawn_metric((500, 500), 0.0, 3).interval(resamples=100)
    assert 0 <= float(low) <= float(high)


def test_the_width_is_that_of_repeated_experiments():
    """A 95% interval is about 2 x 1.96 standard deviations of the estimate over new data wide."""
    values = [float(drawn_metric((1000, 1000), 0.14, seed).compute()) for seed in range(50)]
    widths = [
        float(high - low)
        for low, high in (drawn_metric((1000, 1000), 0.14, s).interval(resamples=200) for s in range(10))
    ]
    # The std of 50 values is known to 10%, the mean of 10 widths to about 4%.
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.std(values, ddof=1), rel=0.3)


@pytest.mark.parametrize("confidence", [0, 1, -0.1, 95, float("nan")])
def test_a_confidence_that_is_no_share_is_refused(confidence, metric):
    with pytest.raises(ValueError, match="confidence: expected a number between 0 and 1"):
        metric.interval(confidence)


@pytest.mark.parametrize("quantile", [0, 1, 95])
def test_a_quantile_that_is_no_level_is_refused(quantile, metric):
    with pytest.raises(ValueError, match="quantile: expected a number between 0 and 1"):
        metric.noise_floor(quantile)


@pytest.mark.parametrize("resamples", [0, -1])
@pytest.mark.parametrize("read_out", ["interval", "noise_floor"])
def test_no_resamples_at_all_are_refused(read_out, resamples, metric):
    with pytest.raises(ValueError, match="resamples: expected"):
        getattr(metric, read_out)(resamples=resamples)


# --- standard errors -------------------------------------------------------------------------------------------------


def test_self_conformity_se_is_two_std_over_root_n(generator):
    """4% from the 256 buckets, so 15% is more than three standard deviations of it."""
    rows = ellipsoid_rows(4000, 16, generator)
    metric = cc.Conformity(embed_dim=16)
    metric.update(rows)
    expected = 2 * brute_conformity(rows).std(ddof=1) / math.sqrt(4000)
    assert float(metric.compute()["self_conformity_se"]) == pytest.approx(expected, rel=0.15)
    assert float(cc.ReferenceSet.fit(rows).self_conformity_se) == pytest.approx(expected, rel=0.15)


ERRORS = {
    "conformity_mean": "conformity_se",
    "self_conformity_mean": "self_conformity_se",
    "norm_mean": "norm_se",
    "reference": "reference_se",
}


def repeated(dependent: bool, runs: int) -> dict[str, np.ndarray]:
    """Every mean and its standard error over new data."""
    fixed = cc.ReferenceSet.fit(draw(3000, 0.0, torch.Generator().manual_seed(99))[0])
    found: dict[str, list[float]] = {name: [] for pair in ERRORS.items() for name in pair}
    for seed in range(runs):
        generator = torch.Generator().manual_seed(seed)
        rows, groups = draw(600, 0.05, generator, dependent)
        scale = 1 + 0.1 * torch.randn(600 // PER_GROUP, generator=generator).repeat_interleave(PER_GROUP)
        if not dependent:
            scale = 1 + 0.1 * torch.randn(600, generator=generator)
        rows = rows * scale[:, None]
        conformity, norm = cc.Conformity(fixed), cc.EmbeddingNorm(embed_dim=DIM)
        conformity.update(rows, groups=groups)
        norm.update(rows, groups=groups)
        values = {name: float(v) for name, v in (conformity.compute() | norm.compute()).items()}
        reference = cc.ReferenceSet.fit(rows, groups=groups)
        values |= {"reference": float(reference.self_conformity), "reference_se": float(reference.self_conformity_se)}
        for name, series in found.items():
            series.append(values[name])
    return {name: np.array(series) for name, series in found.items()}


@pytest.fixture(scope="module", params=[False, True], ids=["independent", "five dependent per group"])
def experiments(request) -> dict[str, np.ndarray]:
    return repeated(request.param, 300)


@pytest.mark.parametrize(("mean", "error"), ERRORS.items())
def test_every_standard_error_is_the_spread_over_repeated_experiments(mean, error, experiments):
    """The spread of 300 runs is known to 4%, so 15% is more than three standard deviations of it."""
    assert experiments[error].mean() == pytest.approx(experiments[mean].std(ddof=1), rel=0.15)


def test_standard_errors_of_the_means_of_independent_rows_are_the_textbook_ones(generator):
    rows, reference = ellipsoid_rows(250, 16, generator), ellipsoid_rows(400, 16, generator)
    metric = cc.Conformity(cc.ReferenceSet.fit(reference))
    metric.update(rows)
    expected = brute_conformity(rows, reference).std(ddof=1) / math.sqrt(250)
    assert float(metric.compute()["conformity_se"]) == pytest.approx(expected, rel=0.15)
    norm = cc.EmbeddingNorm(embed_dim=16)
    norm.update(rows)
    expected = float(torch.linalg.vector_norm(rows, dim=1).std()) / math.sqrt(250)
    assert float(norm.compute()["norm_se"]) == pytest.approx(expected, rel=0.15)


def test_a_kl_of_dependent_samples_is_not_biased():
    """Neither by counting dependent samples as independent, nor by cosines within a group, which are high."""
    values = [float(drawn_metric((1000, 1000), 0.14, seed, dependent=True).compute()) for seed in range(40)]
    error = np.std(values, ddof=1) / math.sqrt(40)
    assert abs(np.mean(values) - 0.14) < 3 * error + 0.05 * 0.14


def test_cosines_of_the_helper_are_what_they_say(generator):
    """Guard of the oracle."""
    cosine = torch.linspace(-0.9, 0.9, 50)
    rows = rows_with_cosine(cosine, 8, generator)
    np.testing.assert_allclose(rows[:, 0] / torch.linalg.vector_norm(rows, dim=1), cosine, atol=1e-6)
