"""The KL estimator, against closed forms and numerical integrals."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from helpers import gaussian_kl, rows_with_cosine, shift_for
from scipy import integrate, stats

import clipconformity as cc
from clipconformity import LowerBoundWarning
from clipconformity.functional import conformity, conformity_kl
from clipconformity.functional.density import CELLS
from clipconformity.functional.divergence import Side, compute_plug_in, is_lower_bound, plan_readout


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mean_kl(draw, draws: int) -> float:
    """Mean of the estimate over pairs that ``draw(generator)`` gives."""
    return float(np.mean([float(conformity_kl(*draw(seeded(seed)))) for seed in range(draws)]))


def normal(size: int, mean: float, std: float, generator: torch.Generator) -> torch.Tensor:
    return mean + std * torch.randn(size, generator=generator, dtype=torch.float64)


# --- closed forms ----------------------------------------------------------------------------------------------------


# KL 0.05 cannot be had at 1.4 times the width (0.1435 from the width alone), nor at 0.6 times (0.1908).
GAUSSIANS = [(0.05, 1.0), (0.14, 1.0), (0.5, 1.0), (2.0, 1.0), (0.2, 0.6), (0.6, 0.6), (2.0, 0.6)]
GAUSSIANS += [(0.15, 1.4), (0.6, 1.4), (2.0, 1.4)]


@pytest.mark.parametrize("std", [0.05, 0.002, 0.00002])
@pytest.mark.parametrize(("kl", "width"), GAUSSIANS)
def test_kl_of_gaussians_is_within_five_percent_of_the_closed_form(kl, width, std):
    shift = shift_for(kl, width)
    assert gaussian_kl(shift, width) == pytest.approx(kl)
    center = 0.56 if std > 0.001 else 0.999
    # Off the grid's centre and away from 1, to either side by turns.
    sign = 1 if std == 0.05 else -1

    def draw(generator):
        p = normal(20_000, center + sign * shift * std, width * std, generator)
        return p, normal(20_000, center, std, generator)

    assert mean_kl(draw, 20) == pytest.approx(kl, rel=0.05)


@pytest.mark.parametrize("size", [200, 1000, 5000])
def test_the_bias_at_unequal_sizes_is_taken_off(size):
    """P = Q: a plug-in value would average (effective parameters)/2N, at least 2/400 = 0.005 at N = 200."""
    values = [
        float(conformity_kl(normal(size, 0.5, 0.05, g), normal(5000, 0.5, 0.05, g))) for g in map(seeded, range(40))
    ]
    # Cut at 0, the corrected value still averages a little above: half the spread of (chi2_2 - 2)/2N, about 0.4/N,
    # and the choice of smoothing adds to that.
    assert np.mean(values) < 1.0 / size + 1.0 / 5000


@pytest.mark.parametrize("size", [200, 1000])
def test_small_and_large_sets_give_the_same_kl_on_average(size):
    """The correction lets sets of different size compare: mean within 3 standard errors and 5% of the truth."""
    values = np.array(
        [float(conformity_kl(normal(size, 0.52, 0.05, g), normal(5000, 0.5, 0.05, g))) for g in map(seeded, range(60))]
    )
    error = values.std(ddof=1) / math.sqrt(len(values))
    assert abs(values.mean() - gaussian_kl(0.4, 1.0)) < 3 * error + 0.05 * gaussian_kl(0.4, 1.0)


# --- numerical integrals ---------------------------------------------------------------------------------------------


def integral_kl(p, q, low: float, high: float) -> float:
    def integrand(x: float) -> float:
        density = p.pdf(x)
        return density * (p.logpdf(x) - q.logpdf(x)) if density > 0 else 0.0

    points = np.linspace(low, high, 41)
    return sum(integrate.quad(integrand, a, b, limit=200)[0] for a, b in itertools.pairwise(points))


class Mixture:
    """Two Gaussians, with the methods of a frozen scipy distribution."""

    def __init__(self, share: float, first: tuple[float, float], second: tuple[float, float]) -> None:
        self.share, self.parts = share, (stats.norm(*first), stats.norm(*second))

    def pdf(self, x):
        return self.share * self.parts[0].pdf(x) + (1 - self.share) * self.parts[1].pdf(x)

    def logpdf(self, x):
        return np.logaddexp(
            math.log(self.share) + self.parts[0].logpdf(x), math.log(1 - self.share) + self.parts[1].logpdf(x)
        )

    def rvs(self, size, random_state):
        first = random_state.random(size) < self.share
        return np.where(first, *(part.rvs(size, random_state=random_state) for part in self.parts))


class Mirrored:
    """1 - X."""

    def __init__(self, of) -> None:
        self.of = of

    def pdf(self, x):
        return self.of.pdf(1 - x)

    def logpdf(self, x):
        return self.of.logpdf(1 - x)

    def rvs(self, size, random_state):
        return 1 - self.of.rvs(size, random_state=random_state)


PAIRS = {
    "gamma": (stats.gamma(12, scale=0.01), stats.gamma(10, scale=0.01), 1e-4, 0.6),
    "gamma, the longer tail evaluated": (stats.gamma(8, scale=0.015), stats.gamma(10, scale=0.01), 1e-4, 0.8),
    "beta": (stats.beta(9, 5), stats.beta(8, 5), 1e-6, 1 - 1e-6),
    "beta, the narrower evaluated": (stats.beta(20, 10), stats.beta(8, 5), 1e-6, 1 - 1e-6),
    "mixture": (Mixture(0.6, (0.4, 0.04), (0.6, 0.04)), Mixture(0.3, (0.4, 0.04), (0.6, 0.04)), 0.1, 0.9),
    "mixture against one": (Mixture(0.8, (0.5, 0.04), (0.62, 0.03)), stats.norm(0.52, 0.06), 0.1, 0.95),
}
PAIRS |= {
    f"{name}, mirror_upper": (Mirrored(p), Mirrored(q), 1 - high, 1 - low)
    for name, (p, q, low, high) in PAIRS.items()
    if "mixture" not in name
}


@pytest.mark.parametrize("name", PAIRS)
def test_kl_of_skewed_and_mixed_distributions_is_near_the_integral(name):
    """Within 8%, and three standard errors of ten draws: smoothing costs these more than it costs Gaussians."""
    p, q, low, high = PAIRS[name]
    truth = integral_kl(p, q, low, high)
    values = []
    for seed in range(10):
        source = np.random.RandomState(seed)
        pair = (torch.from_numpy(np.asarray(d.rvs(20_000, random_state=source))) for d in (p, q))
        values.append(float(conformity_kl(*pair)))
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert abs(np.mean(values) - truth) < 0.08 * truth + 3 * error


def test_the_integral_gives_the_closed_form_of_gaussians():
    """Guard of the oracle itself."""
    value = integral_kl(stats.norm(0.54, 0.06), stats.norm(0.5, 0.05), 0, 1)
    assert value == pytest.approx(gaussian_kl(0.8, 1.2), rel=1e-6)


def test_the_direction_matters():
    g = seeded(0)
    narrow, wide = normal(20_000, 0.5, 0.03, g), normal(20_000, 0.5, 0.05, g)
    assert float(conformity_kl(narrow, wide)) == pytest.approx(gaussian_kl(0, 0.6), rel=0.1)
    assert float(conformity_kl(wide, narrow)) == pytest.approx(gaussian_kl(0, 1 / 0.6), rel=0.1)


# --- invariances -----------------------------------------------------------------------------------------------------


def test_a_shift_and_scale_of_both_changes_nothing():
    g = seeded(0)
    p, q = normal(3000, 0.52, 0.05, g), normal(3000, 0.5, 0.05, g)
    before = float(conformity_kl(p, q))
    assert float(conformity_kl(0.1 + 0.01 * p, 0.1 + 0.01 * q)) == pytest.approx(before, rel=1e-3)


def test_the_order_of_samples_changes_nothing():
    g = seeded(0)
    p, q = normal(3000, 0.52, 0.05, g), normal(3000, 0.5, 0.05, g)
    shuffled = conformity_kl(p[torch.randperm(3000, generator=g)], q[torch.randperm(3000, generator=g)])
    assert float(shuffled) == pytest.approx(float(conformity_kl(p, q)), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_kl_takes_every_precision(dtype):
    g = seeded(0)
    p, q = normal(20_000, 0.55, 0.1, g), normal(20_000, 0.5, 0.1, g)
    value = conformity_kl(p.to(dtype), q.to(dtype))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(value) == pytest.approx(gaussian_kl(0.5, 1), rel=0.1)


def test_autocast_does_not_change_the_kl():
    g = seeded(0)
    p, q = normal(1000, 0.52, 0.05, g).float(), normal(1000, 0.5, 0.05, g).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = conformity_kl(p, q)
    assert float(inside) == pytest.approx(float(conformity_kl(p, q)), rel=1e-6)


# --- one estimator ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "std"), [(0.5, 0.04), (0.53, 0.04), (0.5, 0.06)])
def test_class_and_function_give_the_same_number(mean, std):
    """At a closed form's value too, so that neither can be wrong alone."""
    g = seeded(0)
    reference = rows_with_cosine(normal(4000, 0.5, 0.04, g), 32, g)
    rows = rows_with_cosine(normal(4000, mean, std, g), 32, g)
    metric = cc.ConformityKL(cc.ReferenceSet.fit(reference))
    for batch in rows.split(999):
        metric.update(batch)
    own = conformity(reference.double())
    function = conformity_kl(conformity(rows.double(), reference.double()), own)
    assert float(metric.compute()) == pytest.approx(float(function), rel=1e-4, abs=1e-6)
    truth = gaussian_kl((mean - 0.5) / 0.04, std / 0.04)
    assert float(metric.compute()) == pytest.approx(truth, rel=0.25, abs=2e-3)


def test_reverse_of_the_class_is_the_function_the_other_way_round():
    g = seeded(0)
    reference = rows_with_cosine(normal(4000, 0.5, 0.04, g), 32, g)
    rows = rows_with_cosine(normal(4000, 0.54, 0.05, g), 32, g)
    metric = cc.ConformityKL(cc.ReferenceSet.fit(reference))
    metric.update(rows)
    function = conformity_kl(conformity(reference.double()), conformity(rows.double(), reference.double()))
    # The grid is anchored on the other side there, so the cells differ.
    assert float(metric.reverse()) == pytest.approx(float(function), rel=0.03)
    assert float(metric.reverse()) == pytest.approx(gaussian_kl(1 / 1.25, 0.8), rel=0.15)


# --- little overlap --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [8.0, 12.0, 15.0, 40.0, 1000.0])
@pytest.mark.parametrize("width", [0.3, 1.0, 3.0])
def test_sets_apart_give_a_finite_lower_bound_and_a_warning(distance, width):
    g = seeded(0)
    p, q = normal(2000, 0.5 + distance * 0.01, width * 0.01, g), normal(2000, 0.5, 0.01, g)
    with pytest.warns(LowerBoundWarning, match="only a lower bound"):
        value = float(conformity_kl(p, q))
    assert 1 < value < gaussian_kl(distance, width) * 1.25


def test_a_constant_evaluated_set_gives_a_finite_lower_bound_and_a_warning():
    q = normal(2000, 0.5, 0.05, seeded(0))
    with pytest.warns(LowerBoundWarning, match="too narrow to resolve"):
        value = float(conformity_kl(torch.full((500,), 0.5, dtype=torch.float64), q))
    assert 0.5 < value < math.inf


def test_sets_that_overlap_give_no_warning(recwarn):
    g = seeded(0)
    conformity_kl(normal(2000, 0.6, 0.05, g), normal(2000, 0.5, 0.05, g))
    assert not recwarn.list


def test_the_warning_points_at_the_caller():
    with pytest.warns(LowerBoundWarning) as caught:
        conformity_kl(normal(100, 0.9, 0.001, seeded(0)), normal(2000, 0.5, 0.01, seeded(1)))
    assert caught[0].filename == __file__


def test_the_class_marks_a_lower_bound_too():
    g = seeded(0)
    metric = cc.ConformityKL(cc.ReferenceSet.fit(rows_with_cosine(normal(1000, 0.5, 0.01, g), 32, g)))
    metric.update(rows_with_cosine(normal(1000, 0.9, 0.01, g), 32, g))
    assert metric.is_lower_bound
    with pytest.warns(LowerBoundWarning, match="only a lower bound"):
        assert math.isfinite(float(metric.compute()))


def test_the_class_marks_no_lower_bound_where_sets_overlap():
    g = seeded(0)
    metric = cc.ConformityKL(cc.ReferenceSet.fit(rows_with_cosine(normal(1000, 0.5, 0.05, g), 32, g)))
    metric.update(rows_with_cosine(normal(1000, 0.52, 0.05, g), 32, g))
    assert not metric.is_lower_bound


# --- thresholds, on samples and histograms without noise -------------------------------------------------------------


def spaced(size: int, mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
    """Quantiles of a Gaussian in equal steps."""
    return torch.from_numpy(mean + std * stats.norm.ppf((np.arange(size) + 0.5) / size))


def gaussians(size: float, *parts: tuple[float, float, float], effective: float | None = None) -> Side:
    """Expected counts of a mixture of (share, mean, std) on cells of a 32nd."""
    edges = np.concatenate([[-np.inf], np.arange(-CELLS // 2, CELLS // 2 + 1) / 32, [np.inf]])
    counts = sum(share * np.diff(stats.norm.cdf(edges, mean, std)) for share, mean, std in parts)
    return Side(torch.from_numpy(size * counts), size if effective is None else effective)


def is_warned_of(evaluated: torch.Tensor, reference: torch.Tensor) -> bool:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        conformity_kl(evaluated, reference)
    return bool(caught)


@pytest.mark.parametrize(
    ("evaluated", "reference", "bound"),
    [
        (spaced(1000, 1.8), spaced(100), False),  # 22% beyond the largest of 100, 2.58
        (spaced(1000, 2.0), spaced(100), True),  # 28%
        (torch.cat([spaced(999), torch.full((1,), 40.0).double()]), spaced(30), False),  # beyond all cells
        (torch.cat([spaced(998), torch.full((2,), 40.0).double()]), spaced(30), True),
        (spaced(1000, 0, 0.05), spaced(1000), False),  # 1.6 cells
        (spaced(1000, 0, 0.02), spaced(1000), True),
    ],
)
def test_a_lower_bound_is_told_from_a_quarter_outside_a_thousandth_far_off_or_one_cell_on(evaluated, reference, bound):
    assert is_warned_of(evaluated, reference) == bound


@pytest.mark.parametrize(
    ("size", "mean", "share", "bound"),
    [
        (1000, 1.0, 0.002, False),  # of a KL of 0.51; a thousandth of the floor adds 0.008
        (1000, 1.0, 0.005, True),  # of 0.53, and 0.030
        (50, 0.0, 0.01, False),  # of 0.047, and 0.021; less than what noise adds to it, 0.055
        (1000, 0.0, 0.01, True),
    ],
)
def test_a_tail_decides_where_the_floor_moves_the_value_by_a_twentieth_and_beyond_noise(size, mean, share, bound):
    evaluated = gaussians(size, (1 - share, mean, 1.0), (share, 8.0, 0.5))
    reference = gaussians(size, (1.0, 0.0, 1.0))
    assert is_lower_bound(plan_readout(evaluated, reference), evaluated, reference) == bound


@pytest.mark.parametrize("size", [100, 10_000])
def test_a_tail_is_followed_down_to_a_ten_thousandth_of_a_sample(size):
    """Two in a hundred lie eight standard deviations off; the floor goes with the size of the reference."""
    evaluated, reference = gaussians(1000, (0.98, 0.0, 1.0), (0.02, 8.0, 0.5)), gaussians(size, (1.0, 0.0, 1.0))
    readout = plan_readout(evaluated, reference)
    value = float(compute_plug_in(readout, evaluated.counts[None], reference.counts[None]).forward)
    p, q = (side.counts[1:-1].unflatten(0, (-1, readout.factor)).sum(1) for side in (evaluated, reference))
    p, q = p / 1000, q / size
    expected = (torch.special.xlogy(p, p) - p * q.clamp_min(1e-4 / size).log()).sum()
    assert value == pytest.approx(float(expected), rel=0.06)


@pytest.mark.parametrize("size", [50, 1000])
def test_the_bias_of_a_gaussian_is_that_of_two_parameters(size):
    """What fitting mean and variance adds on average is chi-squared with 2 degrees of freedom over 2N: 1/N."""
    sides = gaussians(size, (1.0, 0.3, 1.2)), gaussians(2 * size, (1.0, 0.0, 1.0))
    assert plan_readout(*sides).biases == pytest.approx((1 / size, 0.5 / size), rel=1e-3)


def test_rows_that_are_worth_fewer_are_smoothed_and_corrected_as_fewer():
    parts = (0.7, 0.0, 1.0), (0.3, 1.0, 0.4)
    reference = gaussians(500, (1.0, 0.0, 1.0))
    found = []
    for side in (gaussians(200, *parts), gaussians(1000, *parts, effective=200)):
        readout = plan_readout(side, reference)
        values = compute_plug_in(readout, side.counts[None], reference.counts[None])
        found.append((*readout.biases, float(values.forward), float(values.reverse)))
    assert found[0] == pytest.approx(found[1], rel=1e-9)


@pytest.mark.parametrize("width", [0.1, 0.2])
def test_a_narrow_set_is_read_out_in_cells_that_resolve_it(width):
    assert float(conformity_kl(spaced(5000, 0, width), spaced(5000))) == pytest.approx(gaussian_kl(0, width), rel=0.01)


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
def test_what_lies_beyond_the_cells_counts_at_either_end():
    far = torch.cat([spaced(970), torch.full((30,), 40.0).double()])
    values = [float(conformity_kl(sign * far, sign * spaced(500))) for sign in (1, -1)]
    assert values[0] > 0.2
    assert values[1] == pytest.approx(values[0], rel=1e-6)


@pytest.mark.parametrize(("std", "varies"), [(5e-8, True), (5e-9, False)])
def test_a_reference_varies_where_its_spread_is_above_rounding(std, varies):
    values = 0.5 + std * spaced(100)
    if varies:
        assert float(conformity_kl(values, values)) == 0
    else:
        with pytest.raises(ValueError, match="do not vary"):
            conformity_kl(values, values)


# --- bad input -------------------------------------------------------------------------------------------------------

GOOD = torch.linspace(0.4, 0.6, 50)


def pair(side: str, bad) -> tuple:
    return (bad, GOOD) if side == "evaluated" else (GOOD, bad)


sides = pytest.mark.parametrize("side", ["evaluated", "reference"])


@sides
@pytest.mark.parametrize("shape", [(50, 4), (50, 1), ()])
def test_what_is_no_vector_is_refused_naming_conformity(side, shape):
    with pytest.raises(ValueError, match=f"{side}: expected a vector .*clipconformity.functional.conformity"):
        conformity_kl(*pair(side, torch.rand(shape, generator=seeded(0))))


@sides
@pytest.mark.parametrize("bad", [torch.arange(50), np.linspace(0, 1, 50), [0.1, 0.2]])
def test_what_is_no_floating_point_tensor_is_refused(side, bad):
    with pytest.raises(TypeError, match=f"{side}: expected a floating-point tensor of conformities"):
        conformity_kl(*pair(side, bad))


@sides
@pytest.mark.parametrize("count", [0, 1, 9])
def test_too_few_conformities_are_refused(side, count):
    with pytest.raises(ValueError, match=f"{side}: expected at least 10 conformities, got {count}"):
        conformity_kl(*pair(side, GOOD[:count]))


@sides
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_conformities_that_are_not_finite_are_refused(side, value):
    bad = GOOD.clone()
    bad[3] = value
    with pytest.raises(ValueError, match=f"{side}: expected finite conformities"):
        conformity_kl(*pair(side, bad))


def test_a_constant_reference_is_refused():
    with pytest.raises(ValueError, match="reference: its conformities do not vary"):
        conformity_kl(GOOD, torch.full((50,), 0.5))
