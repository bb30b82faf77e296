"""Precision, recall, density and coverage against the published formulas, and nearest rows against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows, unit
from sklearn.metrics import pairwise_distances

import clipconformity as cc
from clipconformity.functional import authenticity, distances, nearest, neighbours, prdc
from clipconformity.functional.neighbours import close_counts, cover, expected_coverage


def published(embeddings: torch.Tensor, reference: torch.Tensor, k: int) -> list[float]:
    """The formulas of Naeem et al. (2020) on whole matrices of distances."""
    fake, real = double(embeddings), double(reference)

    def reach(rows: np.ndarray) -> np.ndarray:
        return np.partition(pairwise_distances(rows), k, axis=1)[:, k]  # of the k + 1 nearest, the row itself included

    apart = pairwise_distances(real, fake)
    in_real, in_fake = apart < reach(real)[:, None], apart < reach(fake)[None]
    density = (1.0 / float(k)) * in_real.sum(axis=0).mean()
    return [in_real.any(axis=0).mean(), in_fake.any(axis=1).mean(), density, in_real.any(axis=1).mean()]


@pytest.mark.parametrize(("count", "others", "dim", "k"), [(90, 80, 4, 1), (300, 500, 16, 5), (1300, 1100, 8, 3)])
def test_prdc_equals_the_published_formulas_to_the_last_digit(count, others, dim, k, generator):
    fake = torch.randn(count, dim, generator=generator, dtype=torch.float64) + 0.3
    real = 1.2 * torch.randn(others, dim, generator=generator, dtype=torch.float64)
    for rows in (fake, fake[fake[:, 0].argsort()]):
        assert [float(x) for x in prdc(rows, real, k)] == published(rows, real, k)


@pytest.mark.parametrize("k", [3, 5])
def test_prdc_equals_the_published_formulas_on_real_images_with_repeats(k, images, generator):
    rows = images.double()
    for order in (torch.arange(1803), torch.randperm(1803, generator=generator)):
        fake, real = rows[order[:900]], rows[order[900:]]
        assert [float(x) for x in prdc(fake, real, k)] == published(fake, real, k)


def test_blocks_do_not_matter(generator, monkeypatch):
    fake, real = (torch.randn(n, 6, generator=generator) for n in (250, 230))
    far = cover(fake, real, 5)
    whole = prdc(fake, real), nearest(fake, real, 3), nearest(fake, k=3), close_counts(neighbours.units(fake), 0.9)
    monkeypatch.setattr(neighbours, "ROWS", 37)
    monkeypatch.setattr(distances, "ROWS", 37)
    monkeypatch.setattr(distances, "COLUMNS", 2)
    torch.testing.assert_close(prdc(fake, real), whole[0], rtol=0, atol=0)
    torch.testing.assert_close(cover(fake, real, 5), far, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nearest(fake, real, 3), whole[1])
    torch.testing.assert_close(nearest(fake, k=3), whole[2])
    torch.testing.assert_close(close_counts(neighbours.units(fake), 0.9), whole[3])


@pytest.mark.parametrize("few", [distances.MAX_UNCERTAIN_SHARE, 0.0], ids=["pair by pair", "a block at once"])
def test_the_edge_of_a_ball_is_outside_in_whatever_block(few, generator, monkeypatch):
    """Of a set against itself each ball holds its k - 1 nearest and its center: the k-th lies on the edge."""
    monkeypatch.setattr(distances, "MAX_UNCERTAIN_SHARE", few)
    for size in (100, 1500):
        rows = torch.randn(size, 24, generator=generator, dtype=torch.float64)
        assert prdc(rows, rows.clone(), 4).density == 1
        far = prdc(rows + 1000, rows[torch.randperm(size, generator=generator)] + 1000, 4)
        assert far == (1, 1, 1, 1)


def test_an_offset_costs_no_digits(generator):
    """Squares of a million leave 1e-4 of a distance; the rows are such that the sum with it is exact."""
    fake, real = ((torch.randn(n, 6, generator=generator).double() * 2**20).round() / 2**20 for n in (250, 230))
    for k in (1, 5):
        assert prdc(fake + 2.0**24, real + 2.0**24, k) == prdc(fake, real, k)


def test_a_cosine_at_the_threshold_is_close():
    assert close_counts(torch.eye(3, dtype=torch.float64), 0.0).tolist() == [3, 3, 3]


def test_copies_of_one_row_are_one_point(generator):
    """Its ball has no extent, so that nothing lies in it; the published package leaves it to rounding."""
    rows = torch.randn(1, 16, generator=generator).repeat(40, 1)
    assert prdc(rows, rows.clone(), 5) == (0, 0, 0, 0)


def test_a_set_of_the_same_kind_has_the_expected_coverage_and_density_1(generator):
    found = [prdc(*(torch.randn(n, 3, generator=generator) for n in (60, 150)), 4)[2:] for _ in range(200)]
    density, coverage = torch.tensor(found).mean(0).tolist()
    assert density == pytest.approx(1, abs=0.03)
    assert coverage == pytest.approx(expected_coverage(60, 150, 4), abs=0.01)


@pytest.mark.parametrize("k", [1, 4])
def test_nearest_equals_brute_force(k, generator):
    rows, others = ellipsoid_rows(150, 12, generator), ellipsoid_rows(90, 12, generator)
    cosine = unit(double(rows)) @ unit(double(others)).T
    found = nearest(rows, others, k)
    np.testing.assert_array_equal(found.index, np.argsort(-cosine, axis=1)[:, :k])
    np.testing.assert_allclose(found.cosine, -np.sort(-cosine, axis=1)[:, :k], atol=1e-6)
    own = unit(double(rows)) @ unit(double(rows)).T
    np.fill_diagonal(own, -np.inf)
    found = nearest(rows.double(), k=k)
    np.testing.assert_array_equal(found.index, np.argsort(-own, axis=1)[:, :k])
    np.testing.assert_allclose(found.cosine, -np.sort(-own, axis=1)[:, :k], atol=1e-12)
    np.testing.assert_array_equal(close_counts(torch.from_numpy(unit(double(rows))), 0.9), (own >= 0.9).sum(1) + 1)


def test_nearest_takes_a_reference_and_names_its_rows(generator):
    rows = ellipsoid_rows(80, 6, generator)
    reference = cc.ReferenceSet.fit(rows, ids=[f"row {n}" for n in range(80)])
    found = nearest(3 * rows[10:20], reference)
    assert [reference.sample_ids[one] for one in found.index[:, 0]] == [f"row {n}" for n in range(10, 20)]
    assert found.cosine.min() > 1 - 1e-6


def test_repeated_images_of_the_real_set_are_found(images):
    """43 rows repeat others, and so have a row at a cosine of 1."""
    cosine, index = nearest(images)
    again = (cosine[:, 0] > 1 - 1e-5).nonzero()[:, 0]
    assert len(again) == 86
    assert bool((images[again] - images[index[again, 0]]).abs().max() < 1e-3)


BAD = {
    "k of 0": (lambda x: prdc(x, x, 0), ValueError, "k: expected at least 1 neighbour, got 0"),
    "k of half": (lambda x: prdc(x, x, 2.5), TypeError, "k: expected a whole number of neighbours, got 2.5"),
    "true": (lambda x: nearest(x, x, True), TypeError, "k: expected a whole number"),
    "few rows": (lambda x: prdc(x[:5], x), ValueError, "embeddings: expected at least 6 samples, got 5"),
    "few reference": (lambda x: prdc(x, x[:5]), ValueError, "reference: expected at least 6 samples, got 5"),
    "few of nearest": (lambda x: nearest(x, x[:2], 3), ValueError, "reference: expected at least 3 samples, got 2"),
    "alone": (lambda x: nearest(x[:1]), ValueError, "embeddings: expected at least 2 samples, got 1"),
    "dimension": (lambda x: prdc(x, x[:, :3]), ValueError, "embeddings has dimension 4 and reference has dimension 3"),
    "other dimension": (lambda x: nearest(x, x[:, :3]), ValueError, "has dimension 4 and reference has dimension 3"),
    "NaN": (lambda x: prdc(x, x / 0), ValueError, "reference: 20 of 20 rows are zero or hold NaN"),
    "zero": (lambda x: nearest(0 * x, x), ValueError, "embeddings: 20 of 20 rows are zero"),
    "one of reference": (lambda x: authenticity(x, x[:1]), ValueError, "reference: expected at least 2 samples, got 1"),
    "authentic dimension": (
        lambda x: authenticity(x, x[:, :3]),
        ValueError,
        "dimension 4 and reference has dimension 3",
    ),
    "list": (lambda x: nearest(x, x.tolist()), TypeError, "reference: expected a torch tensor"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, generator):
    call, kind, words = BAD[case]
    with pytest.raises(kind, match=words):
        call(torch.randn(20, 4, generator=generator))


# --- authenticity ----------------------------------------------------------------------------------------------------


def published_authenticity(embeddings: torch.Tensor, reference: torch.Tensor) -> float:
    """Alaa et al. (2022): a sample is authentic where its distance is above that of the row it is nearest to."""
    fake, real = unit(double(embeddings)), unit(double(reference))
    across, inside = pairwise_distances(fake, real), pairwise_distances(real)
    np.fill_diagonal(inside, np.inf)
    return float((across.min(1) > inside.min(1)[across.argmin(1)]).mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_authenticity_is_the_published_formula_on_unit_vectors(dtype, generator):
    fake, real = (
        ellipsoid_rows(1500, 12, generator, offset=1.1).to(dtype),
        ellipsoid_rows(1200, 12, generator).to(dtype),
    )
    found = authenticity(fake, real)
    assert found == pytest.approx(published_authenticity(fake, real), abs=1e-7)
    assert 0.3 < found < 0.9
    assert (found.dtype, found.shape) == (dtype, ())
    assert authenticity(3 * fake, cc.ReferenceSet.fit(real)) == pytest.approx(float(found), abs=1e-6)


def test_authenticity_is_the_published_formula_on_real_images(images, generator):
    """Where the reference has no row twice: of such the published formula leaves a tie to rounding."""
    once = images[nearest(images).cosine[:, 0] < 1 - 1e-5]
    order = torch.randperm(len(once), generator=generator)
    fake, real = once[order[:700]], once[order[700:]]
    assert authenticity(fake, real) == pytest.approx(published_authenticity(fake, real), abs=1e-6)


def test_simulated_copies_are_not_authentic(generator):
    """Neither exact ones, nor of rows that the reference has twice, nor ones with a little noise."""
    real, new = (torch.randn(400, 16, generator=generator) for _ in range(2))
    real[200:220] = real[:20]
    noise = 0.02 * torch.randn(400, 16, generator=generator)
    assert authenticity(2 * real, real) == 0
    assert authenticity(real[40:200] + noise[40:200], real) == 0
    honest = authenticity(new, real)
    for share in (0.25, 0.5):
        mixed = torch.cat([new[int(400 * share) :], real[: int(400 * share)]])
        expected = (1 - share) * authenticity(new[int(400 * share) :], real)
        assert authenticity(mixed, real) == pytest.approx(float(expected), abs=1e-6)
        assert authenticity(mixed, real) < honest


def test_what_is_far_off_is_authentic(generator):
    real = torch.randn(300, 16, generator=generator) + 3
    assert authenticity(-real, real) == 1


def test_a_third_of_new_points_on_a_circle_are_authentic():
    """Two of three points on a line are nearest to their nearest (Clark and Evans 1955)."""
    generator = torch.Generator().manual_seed(1)
    angles = [6.283185307179586 * torch.rand(4000, generator=generator, dtype=torch.float64) for _ in range(2)]
    fake, real = (torch.stack([angle.cos(), angle.sin()], 1) for angle in angles)
    assert authenticity(fake, real) == pytest.approx(1 / 3, abs=0.03)
