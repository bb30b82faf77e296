"""Cosine MMD and CMMD against sums over all pairs, and the bound on what the third order leaves out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import brute_conformity, brute_self_conformity, double, ellipsoid_rows, unit
from torchmetrics.image.kid import KernelInceptionDistance

import clipconformity as cc
from clipconformity.functional import cmmd, cosine_mmd, mmd, mmd_halves
from clipconformity.functional.mmd import MAX_LEFT_OUT, third_order


def brute_mmd(x: torch.Tensor, y: torch.Tensor, kernel, *, unbiased: bool) -> float:
    """Squared MMD from the three matrices of kernel values."""
    u, w = unit(double(x)), unit(double(y))
    inside = []
    for rows in (u, w):
        matrix = kernel(rows, rows)
        if unbiased:
            matrix = matrix[~np.eye(len(rows), dtype=bool)]
        inside.append(matrix.mean())
    return sum(inside) - 2 * kernel(u, w).mean()


def gaussian(sigma: float):
    """The kernel as published, by squared distances."""
    return lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / (2 * sigma**2))


@pytest.fixture
def sets(generator) -> tuple[torch.Tensor, torch.Tensor]:
    return ellipsoid_rows(130, 12, generator), ellipsoid_rows(90, 12, generator, offset=1.4)


def test_cosine_mmd_is_the_mean_of_the_cosines_of_all_pairs(sets):
    found = cosine_mmd(*sets)
    assert found == pytest.approx(brute_mmd(*sets, lambda a, b: a @ b.T, unbiased=True), rel=1e-6)
    assert (found.dtype, found.shape) == (torch.float32, ())
    assert cosine_mmd(*(x.double() for x in sets)).dtype == torch.float64


@pytest.mark.filterwarnings("ignore:.*will save all extracted features:UserWarning")
def test_cosine_mmd_is_the_kid_of_torchmetrics_with_a_linear_kernel(generator):
    """Degree 1 on unit vectors, one subset of all rows: the kernel is the cosine and a constant, which cancels."""
    sides = [ellipsoid_rows(300, 12, generator, offset=at) for at in (1.0, 1.4)]
    metric = KernelInceptionDistance(
        feature=torch.nn.Identity(), subsets=1, subset_size=300, degree=1, gamma=1.0, coef=1.0
    )
    for real, rows in zip((True, False), sides, strict=True):
        for batch in (rows / rows.norm(dim=1, keepdim=True)).split(70):
            metric.update(batch, real=real)
    mean, spread = metric.compute()
    assert float(spread) == 0
    assert cosine_mmd(sides[1], sides[0]) == pytest.approx(float(mean), abs=2e-6)
    assert float(mean) > 1e-3


def test_the_halves_are_self_conformity_and_conformity_and_add_up(sets):
    own, others = (brute_self_conformity(x) for x in sets)
    across = brute_conformity(*sets).mean()
    typicality, variety = mmd_halves(*sets)
    assert typicality == pytest.approx(2 * (others - across), rel=1e-5)
    assert variety == pytest.approx(own - others, rel=1e-5)
    assert typicality + variety == pytest.approx(float(cosine_mmd(*sets)), rel=1e-5)


def test_the_halves_are_the_typicality_shift_and_the_variety_ratio(sets):
    rows, others = sets
    reference = cc.ReferenceSet.fit(others)
    metric = cc.Conformity(reference)
    metric.update(rows)
    shown = {name: float(value) for name, value in metric.compute().items()}
    typicality, variety = mmd_halves(rows, reference)
    assert typicality == pytest.approx(-2 * shown["typicality_shift"] * float(reference.conformities.std()), rel=1e-4)
    assert variety == pytest.approx((1 - float(reference.self_conformity)) * (1 - shown["variety_ratio"]), rel=1e-4)


def test_more_typical_is_less_varied_whatever_the_sets(generator):
    """The sum of the halves, biased, is a square."""
    for _ in range(50):
        width, offset = torch.rand(2, generator=generator)
        rows, others = (torch.randn(400, 5, generator=generator) for _ in range(2))
        typicality, variety = mmd_halves(rows * width + 2 * offset, others + 1)
        assert variety > -typicality - 5 / 400


def test_a_reference_set_gives_what_its_rows_give(sets):
    rows, others = sets
    assert cosine_mmd(rows, cc.ReferenceSet.fit(others)) == pytest.approx(float(cosine_mmd(rows, others)), rel=1e-6)


@pytest.mark.parametrize("block", [1, 64, 1 << 22], ids=["a row", "some rows", "all rows"])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("sigma", [10.0, 0.5])
def test_cmmd_is_the_published_sum_over_pairs(sigma, unbiased, block, sets, monkeypatch):
    monkeypatch.setattr(mmd, "MAX_PAIRS", block * 90)
    expected = 1000 * brute_mmd(*sets, gaussian(sigma), unbiased=unbiased)
    found = cmmd(*(x.double() for x in sets), sigma=sigma, unbiased=unbiased)
    assert found == pytest.approx(expected, rel=1e-9)
    assert cmmd(*sets, sigma=sigma, unbiased=unbiased) == pytest.approx(expected, rel=1e-4)


def test_scale_and_order_do_not_matter(sets, generator):
    rows, others = sets
    order = torch.randperm(len(rows), generator=generator)
    moved = (rows * torch.rand(len(rows), 1, generator=generator).add(0.1))[order]
    for function in (cosine_mmd, cmmd):
        assert function(moved, others) == pytest.approx(float(function(rows, others)), rel=1e-4)


def test_two_sets_of_one_kind_are_at_zero_on_average_and_below_it_half_of_the_time(generator):
    found = {cosine_mmd: [], lambda x, y: cmmd(x, y, unbiased=True): []}
    for _ in range(200):
        pair = [ellipsoid_rows(60, 6, generator) for _ in range(2)]
        for function, values in found.items():
            values.append(float(function(*pair)))
    for values in found.values():
        error = np.std(values) / len(values) ** 0.5
        assert abs(np.mean(values)) < 3 * error
        assert 0.4 < np.mean(np.array(values) < 0) < 0.8


def moments(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    u = unit(double(x))
    return u.mean(0), u.T @ u / len(u)


@pytest.mark.parametrize("kind", ["alike", "shifted", "opposite", "one point each", "cubes alone"])
def test_the_third_order_leaves_out_no_more_than_its_bound_and_never_adds(kind, generator):
    rows, others = (torch.randn(300, 4, generator=generator).double() for _ in range(2))
    if kind == "shifted":
        others += 0.5
    elif kind == "opposite":
        rows, others = rows + 3, others - 3
    elif kind == "one point each":
        rows, others = torch.ones(2, 4).double(), -torch.ones(2, 4).double()
    elif kind == "cubes alone":  # the triangle and its mirror image have the same mean and second moment
        angle = 2 * torch.pi * torch.arange(3).double() / 3
        rows = torch.stack([angle.cos(), angle.sin()], 1)
        others = -rows
    apart = [torch.from_numpy(a - b).square().sum() for a, b in zip(moments(rows), moments(others), strict=True)]
    left_out = float(cmmd(rows, others) - third_order(*apart))
    assert -1e-9 <= left_out <= MAX_LEFT_OUT
    assert kind != "cubes alone" or left_out > 1e-5  # guard: there is something to leave out


def test_the_third_order_is_within_a_thousandth_on_clip_embeddings(images, lvis, generator):
    halves = images[torch.randperm(len(images), generator=generator)].tensor_split(2)
    for pair in (halves, (images[:400], images[400:]), (lvis.float(), images)):
        reference = cc.ReferenceSet.fit(pair[1])
        for unbiased in (False, True):
            metric = cc.CMMD(reference, unbiased=unbiased)
            metric.update(pair[0])
            assert metric.compute() == pytest.approx(float(cmmd(*pair, unbiased=unbiased)), rel=1e-4)


def test_the_figures_of_the_guide_are_those_of_all_pairs(images, data_dir):
    """The page "What people report today", to its printed digits."""
    kinds = [name.split("/")[-2] for name in (data_dir / "vitb32-images-1803.txt").read_text().split()]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    reference, other = images[order[:900]].double(), images[order[900:]].double()
    ranks = torch.from_numpy(brute_conformity(other, reference)).argsort(descending=True)
    printed = {
        "other half": (torch.arange(len(other)), ("0.007", "-0.0003", "0.0012", "-0.0015")),
        "cars": (torch.tensor([kinds[i] == "cars" for i in order[900:]]), ("1.794", "0.1784", "0.0090", "0.1694")),
        "most typical": (ranks[:300], ("0.227", "0.0211", "-0.0735", "0.0947")),
        "least typical": (ranks[-300:], ("0.185", "0.0164", "0.0833", "-0.0669")),
    }
    for name, (chosen, shown) in printed.items():
        rows = other[chosen]
        kernel = 1000 * brute_mmd(rows, reference, lambda a, b: np.exp((a @ b.T - 1) / 100), unbiased=False)
        whole = brute_mmd(rows, reference, lambda a, b: a @ b.T, unbiased=True)
        found = (float(cmmd(rows, reference)), float(cosine_mmd(rows, reference)), *mmd_halves(rows, reference))
        assert found[:2] == pytest.approx((kernel, whole), rel=1e-7), name
        assert tuple(f"{value:.{3 if place == 0 else 4}f}" for place, value in enumerate(found)) == shown, name


@pytest.mark.parametrize("function", [cosine_mmd, cmmd, mmd_halves])
def test_wrong_input_is_refused(function, sets):
    rows, others = sets
    with pytest.raises(ValueError, match="embeddings has dimension 12 and reference has dimension 5"):
        function(rows, others[:, :5])
    with pytest.raises(ValueError, match="reference: 1 of 90 rows are zero or hold NaN"):
        function(rows, torch.where(torch.arange(90)[:, None] == 3, 0.0, others))
    with pytest.raises(TypeError, match="reference: expected"):
        function(rows, others.tolist())


def test_too_few_samples_and_a_wrong_width_are_refused(sets):
    rows, others = sets
    for call in (cosine_mmd, lambda x, y: cmmd(x, y, unbiased=True)):
        with pytest.raises(ValueError, match="embeddings: expected at least 2 samples, got 1"):
            call(rows[:1], others)
        with pytest.raises(ValueError, match="reference: expected at least 2 samples, got 1"):
            call(rows, others[:1])
    assert cmmd(rows[:1], others[:1]) > 0
    for sigma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sigma: expected a width above 0"):
            cmmd(rows, others, sigma=sigma)
