"""Linear separability, against scikit-learn's discriminant analysis and its area under the curve."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import double
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from clipconformity.functional.ranks import area_under_curve
from clipconformity.functional.separability import _Classes, _discriminate, _spread, linear_separability

FINE = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def overlapping(generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes of unequal size that a few of 12 correlated dimensions tell apart in part."""
    mix = torch.randn(12, 12, generator=generator) * 0.3 + torch.eye(12)
    image = torch.randn(300, 12, generator=generator) @ mix
    text = torch.randn(120, 12, generator=generator) @ mix
    text[:, 4] += 1.5
    text[:, 7] -= 1.2
    return image + 3, text + 3


def stacked(image: torch.Tensor, text: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([double(image), double(text)]), np.r_[np.ones(len(image)), np.zeros(len(text))]


@pytest.mark.parametrize("ties", [False, True])
def test_area_under_the_curve_equals_scikit_learn(overlapping, ties):
    image, text = (x.round() if ties else x for x in overlapping)
    rows, label = stacked(image, text)
    expected = [roc_auc_score(label, rows[:, d]) for d in range(rows.shape[1])]
    np.testing.assert_allclose(area_under_curve(image, text), expected, rtol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_accuracy_equals_that_of_scikit_learn_on_the_dimensions_of_best_auc(overlapping, k, scale):
    image, text = (x * scale for x in overlapping)
    rows, label = stacked(image, text)
    area = np.array([roc_auc_score(label, rows[:, d]) for d in range(12)])
    best = np.argsort(-np.maximum(area, 1 - area))[:k]
    result = linear_separability(image, text, k=k)
    assert result.dimensions.tolist() == best.tolist()
    fitted = LinearDiscriminantAnalysis(priors=[0.5, 0.5]).fit(rows[:, best] / scale, label)
    expected = balanced_accuracy_score(label, fitted.predict(rows[:, best] / scale))
    assert float(result.accuracy) == pytest.approx(expected, abs=1e-6)


def test_real_images_and_texts_are_told_apart_by_the_published_dimensions(images, lvis):
    result = linear_separability(images, lvis.float(), k=2)
    assert result.accuracy == 1
    assert result.held_out_accuracy == 1
    assert set(result.dimensions.tolist()) <= {92, 133, 312}
    assert set(result.labels.tolist()) == {92, 133, 312, 329}
    assert {93, 134}.isdisjoint(result.labels.tolist())


def test_equal_aucs_are_ranked_by_distance(generator):
    image, text = torch.rand(2, 50, 6, generator=generator)
    text[:, 1] += 2.0
    text[:, 3] += 9.0
    text[:, 5] -= 4.0
    assert linear_separability(image, text, k=3).dimensions.tolist() == [3, 5, 1]


def test_held_out_accuracy_is_chance_where_the_accuracy_in_sample_flatters(generator):
    image, text = torch.randn(2, 60, 400, generator=generator)
    result = linear_separability(image, text, k=10)
    assert result.accuracy > 0.75
    assert float(result.held_out_accuracy) == pytest.approx(0.5, abs=0.12)
    assert len(result.labels) == 0


def test_held_out_accuracy_of_gaussians_has_its_closed_form(generator):
    image, text = torch.randn(2, 4000, 3, generator=generator)
    text[:, 1] += 2.0
    text[:, 2] += 1.0
    result = linear_separability(image, text, k=2)
    expected = 0.5 * (1 + math.erf(math.sqrt(5) / 2 / math.sqrt(2)))
    assert float(result.held_out_accuracy) == pytest.approx(expected, abs=0.01)


def test_a_label_is_a_dimension_that_does_it_alone(generator):
    image, text = torch.randn(2, 500, 5, generator=generator)
    text[:, 0] += 8.0
    text[:, 2] += 3.0  # 93%
    result = linear_separability(image, text)
    assert result.labels.tolist() == [0]
    assert result.label_accuracies.tolist() == [1.0]


def test_a_class_of_few_samples_does_not_flatter(generator):
    image, text = torch.randn(2000, 4, generator=generator), torch.randn(50, 4, generator=generator)
    assert linear_separability(image, text).held_out_accuracy < 0.65


def test_copied_and_constant_dimensions_do_no_harm(overlapping):
    image, text = overlapping
    plain = linear_separability(image, text, k=2)
    doubled = [torch.cat([x, x[:, plain.dimensions], torch.ones(len(x), 1)], 1) for x in (image, text)]
    both = linear_separability(*doubled, k=4)
    assert set(both.dimensions.tolist()) == {*plain.dimensions.tolist(), 12, 13}
    assert both.accuracy == plain.accuracy
    every = linear_separability(*doubled, k=15)
    assert every.accuracy == linear_separability(image, text, k=12).accuracy


def test_classes_constant_in_a_dimension_are_told_apart_by_it(generator):
    image, text = torch.rand(2, 30, 3, generator=generator)
    image[:, 1], text[:, 1] = 0.5, -0.5
    result = linear_separability(image, text, k=2)
    assert result.dimensions[0] == 1
    assert result.accuracy == 1
    assert result.held_out_accuracy == 1


def test_folds_follow_the_generator(overlapping):
    first = linear_separability(*overlapping)
    assert first.held_out_accuracy == linear_separability(*overlapping).held_out_accuracy
    others = {
        float(linear_separability(*overlapping, generator=torch.Generator().manual_seed(i)).held_out_accuracy)
        for i in range(5)
    }
    assert len(others) > 1


@pytest.mark.parametrize(
    ("image", "text", "k", "error", "message"),
    [
        (FINE[:9, :4], FINE[:, :4], 2, ValueError, "image: expected at least 10 samples, got 9"),
        (FINE[:, :4], FINE[:9, :4], 2, ValueError, "text: expected at least 10 samples, got 9"),
        (FINE[:, :4], FINE, 2, ValueError, "image has dimension 4 and text has dimension 5"),
        (FINE[:, :4], FINE[:, :4], 5, ValueError, "k: expected 1 to 4"),
        (FINE[:, :4], FINE[:, :4], 0, ValueError, "k: expected 1 to 4"),
        (FINE[:, :4], FINE[:, :4], 1.5, TypeError, "k: expected a whole number, got float"),
        (torch.ones(20, 4), torch.ones(20, 4), 2, ValueError, "samples that differ"),
        (FINE[:, :4], torch.full((20, 4), math.nan), 2, ValueError, "text: 20 of 20 rows"),
        (torch.zeros(20, 4), FINE[:, :4], 2, ValueError, "image: 20 of 20 rows"),
    ],
)
def test_bad_input_is_refused(image, text, k, error, message):
    with pytest.raises(error, match=message):
        linear_separability(image, text, k)


@pytest.mark.parametrize("sizes", [(4, 9), (12, 8), (40, 25)])
def test_every_side_of_the_plane_is_that_of_scikit_learn(sizes, generator):
    """Of correlated dimensions and few samples, where each of a count decides: 5,000 new points."""
    mix = torch.randn(3, 3, generator=generator, dtype=torch.float64) + torch.eye(3)
    image, text = (torch.randn(n, 3, generator=generator, dtype=torch.float64) @ mix + s for s, n in enumerate(sizes))
    points = torch.randn(5000, 3, generator=generator, dtype=torch.float64) @ mix + 0.5
    rows, label = stacked(image, text)
    expected = LinearDiscriminantAnalysis(priors=[0.5, 0.5]).fit(rows, label).predict(double(points)) == 1
    as_image, as_text = _discriminate(_Classes(image, text), _Classes(points, points))
    np.testing.assert_array_equal(as_image, expected)
    np.testing.assert_array_equal(as_text, ~expected)


def test_a_label_is_right_in_99_of_100(generator):
    """Dimensions that are right in 97% and in 99.6%: the one is none, and the other is."""
    image, text = torch.randn(2, 1000, 2, generator=generator)
    text += torch.tensor([3.76, 5.3])
    result = linear_separability(image, text, k=1)
    assert result.labels.tolist() == [1]
    assert 0.99 <= float(result.label_accuracies[0]) < 0.999


def test_the_spread_within_is_followed_down_to_a_millionth_of_the_total(generator):
    """Of classes apart by 1, whose total spread is a half."""
    noise = torch.randn(2, 50, 3, generator=generator, dtype=torch.float64) * torch.tensor([3e-6, 1e-7, 0]).double()
    classes = _Classes(noise[0] + 1, noise[1] + torch.tensor([2.0, 2.0, 1.0]))
    total = torch.cat(classes).std(0)
    pooled = ((classes.image.var(0) + classes.text.var(0)) / 2).sqrt()
    expected = torch.stack([pooled[0], 1e-6 * total[1], torch.ones(()).double()])  # what is constant tells nothing
    torch.testing.assert_close(_spread(classes), expected)
