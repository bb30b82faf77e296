"""NT-Xent, alignment, uniformity and the shift, against torch's cross entropy at once and brute force."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import brute_conformity, double, unit
from torch.nn.functional import cross_entropy, normalize

from clipconformity.functional import conformity, conformity_kl
from clipconformity.functional.contrastive import alignment, left_out_losses, nt_xent, shift, uniformity
from clipconformity.functional.divergence import LowerBoundWarning, compute_plug_in
from clipconformity.functional.resampling import count_draws
from clipconformity.functional.sweep import (
    Pairs,
    _bootstrap,
    _compare,
    _kl_difference,
    _kl_interval,
    _redraw_conformities,
    _redraw_kl,
    jackknife_interval,
    left_out_losses_at,
    shift_grid,
    shift_sweep,
)

FIGURES = {-0.5: 2.0501, -0.25: 1.8597, -0.1: 1.8069, 0: 1.8009, 0.1: 1.8201, 0.25: 1.8989, 0.5: 2.166, 1: 2.9739}
BLOCK = "clipconformity.functional.contrastive.BLOCK_ENTRIES"


@pytest.fixture(scope="session")
def coco_pairs(data_dir) -> torch.Tensor:
    """500 unit ViT-B/16 pairs, (2, 500, 512) float32."""
    return torch.from_numpy(np.load(data_dir / "vitb16-coco-pairs-500-unit.npy"))


@pytest.fixture
def pairs(generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated raw pairs (90, 16) on either side of the origin, of overlapping conformities."""
    common, image, text = torch.randn(3, 90, 16, generator=generator)
    return 5 * (common + 0.6 * image + 0.5), 3 * (common + 0.6 * text - 0.5)


def nt_xent_at_once(image: torch.Tensor, text: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    logits = scale * normalize(image) @ normalize(text).T
    target = torch.arange(len(image))
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def uniformity_at_once(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.pdist(normalize(rows)).square().mul(-2).exp().mean().log()


@pytest.mark.parametrize(("alpha", "loss"), FIGURES.items())
def test_nt_xent_has_the_published_figures_over_alpha(coco_pairs, alpha, loss):
    image, text = coco_pairs
    assert float(nt_xent(shift(image, alpha), shift(text, alpha))) == pytest.approx(loss, abs=5.1e-5)


@pytest.mark.parametrize("entries", [1, 90 * 7, 2**22])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_equal_the_value_and_gradient_at_once(pairs, entries, dtype, monkeypatch):
    monkeypatch.setattr(BLOCK, entries)
    image, text = (x.to(dtype).requires_grad_() for x in pairs)
    scale = torch.tensor(7.0, dtype=dtype, requires_grad=True)
    for ours, at_once, inputs in (
        (nt_xent(image, text, scale), nt_xent_at_once(image, text, scale), (image, text, scale)),
        (uniformity(image), uniformity_at_once(image), (image,)),
        (alignment(image, text), (normalize(image) - normalize(text)).square().sum(1).mean(), (image, text)),
    ):
        assert ours.dtype == dtype
        near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
        torch.testing.assert_close(ours, at_once, **near)
        for mine, oracle in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(at_once, inputs), strict=True):
            torch.testing.assert_close(mine, oracle, **near)


def test_gradients_pass_gradcheck(generator, monkeypatch):
    monkeypatch.setattr(BLOCK, 10)
    image, text = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    image.requires_grad_(), text.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, 3.0), (image, text))
    assert torch.autograd.gradcheck(alignment, (image, text))
    assert torch.autograd.gradcheck(uniformity, (image,))
    assert torch.autograd.gradcheck(lambda a: shift(a, 0.7), (image,))


@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-7, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_at_equal_and_nearly_equal_inputs(distance, dtype, generator):
    base = torch.randn(1, 8, generator=generator, dtype=dtype) + 3
    noise = torch.randn(2, 12, 8, generator=generator, dtype=dtype) * distance
    image, text = (base + noise[0]).requires_grad_(), (base + noise[1]).requires_grad_()
    for value in (nt_xent(image, text), alignment(image, text), uniformity(image)):
        (gradient,) = torch.autograd.grad(value, image)
        assert bool(torch.isfinite(value))
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient.abs().max()) < 100
    assert nt_xent(image, text).item() == pytest.approx(math.log(12), abs=0.01)
    assert uniformity(image).item() == pytest.approx(0, abs=1e-5)
    assert alignment(image, text).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("function", [nt_xent, alignment, lambda image, _: uniformity(image)])
@pytest.mark.parametrize("scale", [1e-12, 1e-6, 1e6, 1e12])
def test_scale_of_the_embeddings_does_not_matter(function, scale, pairs):
    image, text = pairs
    torch.testing.assert_close(function(image * scale, text / scale), function(image, text), rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_the_square_of_n(generator, monkeypatch):
    """No tensor that autograd keeps is larger than the embeddings, whatever the block."""
    monkeypatch.setattr(BLOCK, 600 * 20)
    kept: list[int] = []
    image, text = torch.randn(2, 600, 4, generator=generator)
    image.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = nt_xent(image, text) + uniformity(image)
    assert max(kept) <= 600 * 4
    loss.backward()
    assert bool(image.grad.abs().sum() > 0)


def test_nt_xent_of_separate_pairs_has_its_closed_form():
    assert float(nt_xent(torch.eye(6), torch.eye(6), 2.0)) == pytest.approx(math.log(1 + 5 * math.exp(-2)), rel=1e-6)


def test_alignment_is_two_less_twice_the_matched_cosine(pairs):
    image, text = pairs
    cosine = (unit(double(image)) * unit(double(text))).sum(1).mean()
    assert float(alignment(image, text)) == pytest.approx(2 - 2 * cosine, rel=1e-6)


def test_uniformity_of_the_circle_is_a_bessel_function():
    angle = torch.arange(4000, dtype=torch.float64) * (2 * math.pi / 4000)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    expected = math.log(float(torch.special.i0e(torch.tensor(4.0, dtype=torch.float64))))  # log(e^-4 I_0(4))
    assert float(uniformity(circle)) == pytest.approx(expected, abs=1e-3)


def test_autocast_does_not_change_the_loss(pairs):
    image, text = pairs
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = nt_xent(image, text)
    assert value == nt_xent(image, text)


def test_shift_by_all_of_the_mean_centres_and_by_none_changes_nothing(pairs):
    image, _ = pairs
    assert torch.equal(shift(image, 0.0), image)
    np.testing.assert_allclose(shift(image, 1.0).mean(0), np.zeros(16), atol=1e-6)
    mean = torch.arange(16.0)
    torch.testing.assert_close(shift(image, -0.5, mean), image + 0.5 * mean)
    assert shift(image.double(), 0.3).dtype == torch.float64


def test_sweep_is_made_of_the_public_functions(pairs):
    image, text = pairs
    alphas = [-0.2, 0.1, 0.2]
    sweep = shift_sweep(image, text, alphas, 10.0, resamples=30)
    assert sweep.pairs == 90
    zero = conformity_kl(conformity(image), conformity(text))
    for i, alpha in enumerate(alphas):
        a, b = shift(image, alpha), shift(text, alpha)
        assert float(sweep.loss[i]) == pytest.approx(float(nt_xent(a, b, 10.0)), rel=1e-5)
        kl = conformity_kl(conformity(a), conformity(b))
        assert float(sweep.kl[i]) == pytest.approx(float(kl), abs=2e-4)
        assert float(sweep.kl_difference[i]) == pytest.approx(float(kl - zero), abs=2e-4)
        change = nt_xent(a, b, 10.0) - nt_xent(image, text, 10.0)
        assert float(sweep.loss_difference[i]) == pytest.approx(float(change), abs=1e-5)


def test_sweep_of_real_pairs_tells_what_can_be_told(coco_pairs):
    alphas = [-0.25, 0.0, 0.25, 0.75]
    sweep = shift_sweep(*coco_pairs, alphas)
    np.testing.assert_allclose(sweep.loss[:3], [1.8597, 1.8009, 1.8989], atol=5.1e-5)
    assert bool((sweep.loss_low < sweep.loss).all() & (sweep.loss < sweep.loss_high).all())
    assert bool((sweep.loss_difference_low[[0, 2, 3]] > 0).all())  # NT-Xent is lowest at alpha 0
    assert sweep.loss_difference[1] == sweep.loss_difference_low[1] == sweep.loss_difference_high[1] == 0
    assert sweep.kl_difference_low[3] < 0 < sweep.kl_difference_high[3]  # of the KL it cannot be told
    assert sweep.kl_difference[3] < 0


def test_sweep_follows_its_generator(pairs):
    first = shift_sweep(*pairs, [0.1], 10.0, resamples=20)
    assert first == shift_sweep(*pairs, torch.tensor([0.1], dtype=torch.float64), 10.0, resamples=20)
    other = shift_sweep(*pairs, [0.1], 10.0, resamples=20, generator=torch.Generator().manual_seed(3))
    assert other.loss_low == first.loss_low  # nothing is drawn for it
    assert other.kl_high != first.kl_high


def correlated(count: int, generator: torch.Generator) -> Pairs:
    common, image, text = torch.randn(3, count, 8, generator=generator, dtype=torch.float64)
    return Pairs(common + 0.6 * image + 0.5, common + 0.6 * text - 0.5)


def test_intervals_of_the_loss_cover_its_expectation(generator):
    """Of 100 runs each at least 87, three standard deviations below 95%."""
    alphas, runs = [0.0, 0.3, 1.0], 100

    def losses(pairs: Pairs) -> torch.Tensor:
        return torch.stack([nt_xent_at_once(*pairs.shift(a, a), 20.0) for a in alphas])

    truth = torch.stack([losses(correlated(100, generator)) for _ in range(1000)]).mean(0)
    hits = torch.zeros(6)
    for _ in range(runs):
        pairs = correlated(100, generator)
        point, left = losses(pairs), torch.stack([left_out_losses_at(pairs, a, 20.0) for a in alphas])
        low, high = jackknife_interval(left, point, 0.95, 0.0)
        change, ends = truth - truth[0], jackknife_interval(left - left[0], point - point[0], 0.95, -math.inf)
        hits[:3] += (low <= truth) & (truth <= high)
        hits[3:] += (ends[0] <= change) & (change <= ends[1])
    assert hits[3] == runs  # the difference of alpha 0 from itself is 0
    assert bool((hits >= 0.87 * runs).all()), hits
    assert bool((hits[[0, 1, 2, 4, 5]] < runs).all()), "an interval that never misses is too wide"


@pytest.mark.parametrize("scale", [2.0, 20.0, 100.0])
def test_losses_without_each_pair_are_those_of_the_others(scale, generator):
    """At 100 one column makes nearly all of a row's sum: what is left without it has all of its digits."""
    pairs = correlated(40, generator)
    explicit = []
    for pair in range(40):
        kept = torch.arange(40) != pair
        explicit.append(nt_xent_at_once(pairs.image[kept], pairs.text[kept], scale))
    torch.testing.assert_close(left_out_losses(*pairs, scale), torch.stack(explicit), rtol=1e-12, atol=1e-12)


def test_losses_without_each_pair_go_on_over_blocks(generator):
    pairs = correlated(2500, generator)  # 1,677 rows a block
    logits = 5.0 * normalize(pairs.image) @ normalize(pairs.text).T
    found = left_out_losses(*pairs, 5.0)
    for pair in (0, 1676, 1677, 2499):
        kept = torch.arange(2500) != pair
        rest = logits[kept][:, kept]
        explicit = (rest.logsumexp(0) + rest.logsumexp(1) - 2 * rest.diagonal()).mean() / 2
        assert float(found[pair]) == pytest.approx(float(explicit), rel=1e-12)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_a_pair_that_is_left_out_moves_the_means_too(alpha, generator):
    """To first order: what is missed is a hundredth of the spread at most, and without the means ten times that."""
    pairs = correlated(200, generator)
    explicit = []
    for pair in range(200):
        kept = torch.arange(200) != pair
        rest = Pairs(pairs.image[kept], pairs.text[kept])
        explicit.append(nt_xent_at_once(*rest.shift(alpha, alpha), 20.0))
    truth = torch.stack(explicit)
    fixed = left_out_losses(*pairs.shift(alpha, alpha), 20.0)
    missed, without = ((truth - found).std() / truth.std() for found in (left_out_losses_at(pairs, alpha, 20.0), fixed))
    assert float(missed) < 0.01
    assert float(without) > 10 * float(missed)


def test_the_interval_of_the_loss_is_that_of_an_explicit_jackknife(generator):
    pairs = correlated(30, generator)
    sweep = shift_sweep(*pairs, [0.0], 20.0, resamples=20, confidence=0.9)
    kept = [torch.arange(30) != pair for pair in range(30)]
    left = [float(nt_xent_at_once(pairs.image[rest], pairs.text[rest], 20.0)) for rest in kept]
    half = scipy.stats.t(29).ppf(0.95) * math.sqrt(29 * np.var(left))
    value = float(nt_xent_at_once(*pairs, 20.0))
    assert [float(sweep.loss_low[0]), float(sweep.loss_high[0])] == pytest.approx(
        [value - half, value + half], rel=1e-9
    )


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
def test_the_interval_of_a_loss_near_zero_is_not_below_it(generator):
    """One pair of 13 makes all of it."""
    image = torch.eye(13) * 5 + 1
    text = image + 0.1 * torch.randn(13, 13, generator=generator)
    text[0] = image[1]
    sweep = shift_sweep(image, text, [0.0], 30.0, resamples=40)
    assert 0 == float(sweep.loss_low[0]) < float(sweep.loss[0]) < float(sweep.loss_high[0])


def settled(value: float, bias: float) -> SimpleNamespace:
    """What is used of a divergence that was compared."""
    plain = SimpleNamespace(forward=torch.tensor([value], dtype=torch.float64))
    return SimpleNamespace(plain=plain, readout=SimpleNamespace(biases=(bias / 4, 3 * bias / 4)))


def test_intervals_of_the_kl_by_hand():
    """Twice the value less the quantiles; of a difference, those of each draw's own."""
    compared = [settled(1.0, 0.2), settled(3.0, 0.4)]
    drawn = torch.stack([torch.linspace(1.0, 2.0, 1001), torch.linspace(4.0, 9.0, 1001)]).double()
    low, high = _kl_interval(compared, drawn, 0.9)
    assert low.tolist() == pytest.approx([0.05, 0.0], abs=1e-6)  # 2 - 1.95; 6 - 8.75 is cut
    assert high.tolist() == pytest.approx([1.55, 7.95], abs=1e-6)  # 1.95 - 0.4 and 8.75 - 0.8, above 0.95 and 1.75
    low, high = _kl_difference(compared, drawn, 0.9)
    assert low.tolist() == pytest.approx([0.0, 4 - 6.8], abs=1e-6)  # the draws' own differences: 3 to 7
    assert high.tolist() == pytest.approx([0.0, 4 - 3.2], abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_redrawn_conformities_equal_those_of_the_redrawn_rows(alpha, generator):
    pairs = correlated(30, generator)
    draws = _bootstrap(pairs, 3, generator)
    weights = count_draws(draws.chosen, draws.chosen.shape[1])
    moved = _redraw_conformities(pairs.shift(alpha, alpha).image, alpha * draws.moves.image, weights)
    for chosen, values in zip(draws.chosen, moved, strict=True):
        u = unit(double(shift(pairs.image[chosen], alpha)))
        cosine = u @ u.T
        for position, row in enumerate(chosen.tolist()):
            others = cosine[position][(chosen != row).numpy()].mean()
            # a row's copies are left out: N - w others, as in the bootstrap of a reference
            assert float(values[row]) == pytest.approx(others, abs=1e-10)


def test_redrawn_divergences_are_those_of_the_redrawn_pairs(generator):
    pairs, alpha = correlated(40, generator), 0.8
    shifted = pairs.shift(alpha, alpha)
    compared = _compare(*(conformity(x) for x in shifted))
    draws = _bootstrap(pairs, 4, generator)
    histograms: list[list[torch.Tensor]] = [[], []]
    for chosen in draws.chosen:
        others = (chosen[:, None] != chosen).double().numpy()
        for side, rows in zip(histograms, pairs, strict=True):
            u = unit(double(shift(rows[chosen], alpha)))
            side.append(compared.grid.counts(torch.from_numpy((u @ u.T * others).sum(1) / others.sum(1))))
    expected = compute_plug_in(compared.readout, *(torch.stack(side) for side in histograms)).forward
    torch.testing.assert_close(_redraw_kl(shifted, alpha, compared, draws), expected, rtol=0, atol=1e-6)


def test_draws_in_parts_are_those_at_once(generator, monkeypatch):
    """Seven draws of 40 pairs, three at a time."""
    pairs, found = correlated(40, generator), []
    shifted = pairs.shift(0.5, 0.5)
    compared = _compare(*(conformity(x) for x in shifted))
    for entries in (2**21, 130):
        monkeypatch.setattr("clipconformity.functional.sweep.CHUNK_ENTRIES", entries)
        draws = _bootstrap(pairs, 7, torch.Generator().manual_seed(0))
        found.append(_redraw_kl(shifted, 0.5, compared, draws))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-9)


def test_grid_holds_the_sweep_on_its_diagonal(pairs):
    alphas = [0.0, 0.1, 0.2]
    grid = shift_grid(*pairs, alphas, alphas, 10.0)
    sweep = shift_sweep(*pairs, alphas, 10.0, resamples=20)
    torch.testing.assert_close(grid.loss.diagonal(), sweep.loss)
    torch.testing.assert_close(grid.kl.diagonal(), sweep.kl)
    assert grid.pairs == sweep.pairs


def test_grid_shifts_images_down_its_rows_and_texts_along_its_columns(pairs):
    image, text = pairs
    grid = shift_grid(image, text, [0.0, 0.1, 0.3], [0.0, 0.2], 10.0)
    assert grid.loss.shape == grid.kl.shape == grid.kl_lower_bound.shape == (3, 2)
    expected = nt_xent(shift(image, 0.3), shift(text, 0.2), 10.0)
    assert float(grid.loss[2, 1]) == pytest.approx(float(expected), rel=1e-5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kl = conformity_kl(conformity(shift(image, 0.3)), conformity(shift(text, 0.2)))
    assert float(grid.kl[2, 1]) == pytest.approx(float(kl), rel=1e-3)
    assert bool(grid.kl_lower_bound[2, 1]) == bool(caught)


def test_a_lower_bound_is_warned_of_and_marked(generator):
    near = torch.randn(60, 8, generator=generator) + 6
    wide = torch.randn(60, 8, generator=generator) + 0.5
    with pytest.warns(LowerBoundWarning, match="only a lower bound"):
        sweep = shift_sweep(near, wide, [0.0], 10.0, resamples=20)
    assert sweep.kl_lower_bound.tolist() == [True]
    assert bool(torch.isfinite(sweep.kl_high).all())


@pytest.mark.parametrize("function", [nt_xent, alignment, lambda a, b: shift_sweep(a, b, [0.0])])
def test_sets_that_are_not_pairs_are_refused(function, pairs):
    image, text = pairs
    with pytest.raises(ValueError, match="image has 90 rows and text has 80; expected pairs"):
        function(image, text[:80])
    with pytest.raises(ValueError, match="image has dimension 16 and text has dimension 15"):
        function(image, text[:, :15])
    for value in (math.nan, math.inf, 0.0):
        bad = text.clone()
        bad[4] = value
        with pytest.raises(ValueError, match=r"text: 1 of 90 rows.*row 4"):
            function(image, bad)
    with pytest.raises(TypeError, match="image: expected floating-point"):
        function(image.long(), text)


def test_too_few_are_refused(pairs):
    image, text = pairs
    with pytest.raises(ValueError, match="image: expected at least 2 samples, got 1"):
        nt_xent(image[:1], text[:1])
    with pytest.raises(ValueError, match="embeddings: expected at least 2 samples, got 1"):
        uniformity(image[:1])
    with pytest.raises(ValueError, match="image: expected at least 10 samples, got 9"):
        shift_sweep(image[:9], text[:9], [0.0])


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_logit_scale_is_refused(scale, pairs):
    with pytest.raises(ValueError, match="logit_scale: expected a positive number"):
        nt_xent(*pairs, scale)


def test_bad_shifts_are_refused(pairs):
    image, text = pairs
    with pytest.raises(ValueError, match="alpha: expected a finite number"):
        shift(image, math.nan)
    with pytest.raises(ValueError, match="mean has dimension 3 and embeddings has dimension 16"):
        shift(image, 1.0, torch.ones(3))
    with pytest.raises(ValueError, match="mean: expected finite"):
        shift(image, 1.0, torch.full((16,), math.inf))
    with pytest.raises(TypeError, match=r"mean: expected a floating-point tensor of shape \(16,\), got list"):
        shift(image, 1.0, [0.0] * 16)
    with pytest.raises(ValueError, match=r"alphas: expected one or more finite numbers, got \[\]"):
        shift_sweep(image, text, [])
    with pytest.raises(ValueError, match="text_alphas: expected one or more"):
        shift_grid(image, text, [0.0], [math.nan])
    with pytest.raises(ValueError, match="image: expected samples that differ"):
        shift_sweep(torch.ones(90, 16), text, [0.0])
    with pytest.raises(ValueError, match="resamples: expected at least 20, got 2"):
        shift_sweep(image, text, [0.0], resamples=2)


def test_a_shift_onto_the_origin_is_refused(generator):
    half = torch.randint(-4, 5, (10, 4), generator=generator).double()
    rows = torch.cat([half, -half, torch.zeros(1, 4, dtype=torch.float64)]) + 8  # the last row is the mean
    with pytest.raises(ValueError, match=r"image shifted by alpha=1: 1 of 21 rows.*row 20"):
        shift_sweep(rows, rows.flip(1) + 1, [1.0])


def test_the_redrawn_sum_matches_the_oracle_of_conformity(pairs):
    """The brute-force oracle and the sweep's own conformities agree at alpha 0."""
    image, _ = pairs
    ones, still = torch.ones(1, 90, dtype=torch.float64), torch.zeros(1, 16, dtype=torch.float64)
    np.testing.assert_allclose(
        _redraw_conformities(image.double(), still, ones)[0], brute_conformity(image), atol=1e-10
    )
