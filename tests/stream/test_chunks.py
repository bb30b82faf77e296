"""What a batch is worked through in: memory that is used again, panels, keys, parts of a batch, small batches."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows, unit

from clipconformity import FrechetDistance, ReferenceSet
from clipconformity.functional import whiten
from clipconformity.functional.likelihood import check_gaussian, log_density, log_likelihood
from clipconformity.functional.linalg import (
    add_gram,
    gram,
    mirror_upper,
    permuted_columns,
    square_norms,
)
from clipconformity.stream import row_sample
from clipconformity.stream.chunks import CHUNK, MAX_BATCH, MAX_ROWS
from clipconformity.stream.layout import Layout
from clipconformity.stream.moments import Moments
from clipconformity.stream.row_sample import mix, row_keys

WIDE = 300
"""More columns than the least that panels are taken for."""
KEYS = [6493711750947409898, 1847693243945572284]
KEYS_OF_GROUPS = [3521486954204034981, 8061337268205010796]
BOTH = {"second_moment": True, "unit_second_moment": True}


def streamed(layout: Layout, batches) -> Moments:
    moments = Moments(layout)
    for batch in batches:
        moments.update(batch)
    return moments


@pytest.mark.parametrize("size", [32, 500, CHUNK + 1, MAX_BATCH, MAX_BATCH + 1, MAX_ROWS + 1, 9000])
@pytest.mark.parametrize("spreads", [0, 1000])
@pytest.mark.parametrize("cast", [torch.float32, torch.float64])
def test_moments_at_an_offset_equal_numpy_whatever_the_batches(size, spreads, cast, generator):
    rows = (torch.randn(9000, WIDE, generator=generator) * torch.linspace(0.5, 2, WIDE) + spreads).to(cast)
    found = streamed(Layout(WIDE, **BOTH), rows.split(size))
    values = double(rows)
    u = unit(values)
    expected = np.cov(values.T)
    error = 2e-7  # in float64 it is what the mean rounds by at 1,000 spreads
    if cast == torch.float64:
        error = 1e-7 if spreads else 1e-13
    assert np.linalg.norm(double(found.covariance) - expected) < error * np.linalg.norm(expected)
    np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.unit_mean, u.mean(0), rtol=0, atol=1e-15)
    of_units = double(found.unit_second_moment - torch.outer(found.unit_mean, found.unit_mean))
    expected = np.cov(u.T, ddof=0)
    assert np.linalg.norm(of_units - expected) < error * np.linalg.norm(expected)


@pytest.mark.parametrize("count", [100, 299])
def test_of_fewer_rows_than_dimensions_the_frechet_distance_is_that_of_float64(count, generator):
    """Roots of a singular covariance's rounding would show in it."""
    spread = torch.logspace(0, -3, WIDE)
    rows, real = (torch.randn(n, WIDE, generator=generator) * spread + 0.5 for n in (count, 900))
    found = []
    for cast in (torch.float32, torch.float64):
        metric = FrechetDistance(ReferenceSet.fit(real.double()))
        for batch in rows.to(cast).split(40):
            metric.update(batch)
        found.append(float(metric.compute()))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


@pytest.mark.parametrize("count", [1, 63, 64, 700])
@pytest.mark.parametrize("dim", [5, 255, 256, 301])
def test_a_gram_matrix_by_panels_is_the_whole_product(count, dim, generator):
    rows = torch.randn(count, dim, dtype=torch.float64, generator=generator)
    expected = np.eye(dim) + rows.numpy().T @ rows.numpy()
    total = torch.eye(dim, dtype=torch.float64)
    add_gram(total, rows)
    np.testing.assert_allclose(mirror_upper(total), expected, rtol=0, atol=1e-14 * expected.max())
    np.testing.assert_allclose(gram(rows), rows.numpy().T @ rows.numpy(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("dim", [1, 3])
def test_permuted_columns_leave_the_rows_as_they_were(dim, generator):
    rows = torch.randn(50, dim, generator=generator)
    before = rows.clone()
    found = permuted_columns(rows, torch.Generator().manual_seed(0))
    assert torch.equal(rows, before)
    assert not torch.equal(found, before)
    assert torch.equal(found.sort(0).values, before.sort(0).values)


def test_square_norms_are_those_of_numpy(generator):
    rows = torch.randn(3000, 301, dtype=torch.float64, generator=generator)
    np.testing.assert_allclose(square_norms(rows), (rows.numpy() ** 2).sum(1), rtol=1e-13)


def test_the_batch_may_be_written_over_once_it_is_taken_in(generator):
    rows, groups = ellipsoid_rows(600, 8, generator), torch.arange(600)
    buffer, labels, moments = (
        torch.empty(100, 8),
        torch.empty(100, dtype=torch.long),
        Moments(Layout(8, max_samples=600)),
    )
    for start in range(0, 600, 100):
        buffer.copy_(rows[start : start + 100])
        labels.copy_(groups[start : start + 100])
        moments.update(buffer, labels)
    buffer.zero_()
    labels.zero_()
    sample = moments.sample()
    assert torch.equal(sample.rows[sample.groups.argsort()], rows)


def test_threads_do_not_share_their_memory(generator):
    rows = [torch.randn(4000, 64, generator=generator, dtype=torch.float64) + n for n in range(2)]
    found: dict[int, Moments] = {}

    def run(n: int) -> None:
        found[n] = streamed(Layout(64, **BOTH), rows[n].split(250))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(2):
        np.testing.assert_allclose(found[n].covariance, np.cov(double(rows[n]).T), rtol=1e-9, atol=1e-12)


def test_memory_made_in_inference_mode_serves_outside_of_it(generator):
    rows = torch.randn(100, 37, generator=generator, dtype=torch.float64)
    moments = Moments(Layout(37, second_moment=True))
    with torch.inference_mode():
        moments.update(rows[:90])
    moments.update(rows[90:])
    np.testing.assert_allclose(moments.covariance, np.cov(double(rows).T), rtol=1e-9, atol=1e-12)


def test_rows_beyond_the_last_key_change_no_sample(generator):
    """Once a sample is full, what comes with a larger key is not kept for it; repeats of kept rows still count."""
    rows = ellipsoid_rows(2000, 8, generator)
    rows = torch.cat([rows, rows[:700], ellipsoid_rows(500, 8, generator)])
    keys = row_keys(rows, None).numpy()
    kept, copies = np.unique(keys, return_counts=True)
    for size in (20, 150, 3200):
        moments = streamed(Layout(8, max_samples=100), rows.split(size))
        sample = moments.sample()
        np.testing.assert_array_equal(sample.keys, kept[:100])
        np.testing.assert_array_equal(sample.copies, copies[:100])
    assert sum(len(part) for part in streamed(Layout(8, max_samples=100), rows.split(150))._list("sample_keys")) < 300


# --- keys ------------------------------------------------------------------------------------------------------------


def test_one_hot_rows_have_keys_and_buckets_of_their_own():
    """Of a sum of bits times odd factors alone 422 of 512 such rows collided."""
    keys = row_keys(torch.eye(512), None)
    assert len(keys.unique()) == 512
    assert len(row_sample.assign_buckets(keys).unique()) > 200


@pytest.mark.parametrize("dim", [1, 2, 7, 16])
def test_the_key_of_a_row_is_a_sum_over_pairs_of_its_entries(dim, generator):
    """The definition, in whole numbers without bounds."""
    rows = torch.randn(20, dim, generator=generator).half().float()
    words = np.ascontiguousarray(np.pad(rows.numpy(), ((0, 0), (0, dim % 2)))).view("<u8")
    factors = [int(one) % 2**64 for one in row_sample._factors(words.shape[1], rows.device)]
    assert all(one % 2 for one in factors)
    for key, row in zip(row_keys(rows, None).tolist(), words.tolist(), strict=True):
        total = 0
        for word, factor in zip(row, factors, strict=True):
            spread = word * 0x9E3779B97F4A7C15 % 2**64
            total += (spread ^ (spread >> 32)) * factor
        assert key == int(mix(torch.tensor([total % 2**64 - (2**64 if total >> 63 & 1 else 0)]), 1)) & row_sample.NO_KEY


def test_rows_anywhere_in_memory_have_the_same_keys(generator):
    held = torch.randn(1 + 50 * 8, generator=generator)
    for rows in (held[1:].view(50, 8), torch.randn(50, 12, generator=generator)[:, 3:11], held[:400].view(8, 50).T):
        assert torch.equal(row_keys(rows, None), row_keys(rows.clone().contiguous(), None))


@pytest.mark.parametrize(
    "rows",
    [
        np.indices((20, 20, 20, 20)).reshape(4, -1).T / 2,
        1 - 2 * (np.arange(2**16)[:, None] >> np.arange(16) & 1),
        np.stack([np.zeros(100_000), np.arange(100_000)], 1),
        2.0 ** np.indices((9, 9, 9, 9, 9)).reshape(5, -1).T,
    ],
    ids=["grid", "signs", "one entry", "powers of two"],
)
def test_rows_of_few_bits_have_keys_of_their_own(rows):
    keys = row_keys(torch.tensor(rows, dtype=torch.float32), None)
    assert len(keys.unique()) == len(rows)
    counts = torch.bincount(row_sample.assign_buckets(keys), minlength=256).double()
    expected = len(rows) / 256
    assert float((counts - expected).square().sum() / expected) < 255 + 5 * (2 * 255) ** 0.5  # chi-squared, 5 sigma


def test_keys_are_those_that_references_on_disk_have():
    """A file keeps the keys of its rows: these must not change without another format of the file."""
    rows = torch.tensor([[1.0, 2.0, 3.0], [-0.5, 0.0, 1e-3]])
    assert row_keys(rows, None).tolist() == KEYS
    assert row_keys(rows, torch.tensor([7, 8])).tolist() == KEYS_OF_GROUPS


def test_numpy_and_a_device_give_the_same_keys(generator):
    rows = torch.cat([torch.randn(700, 31, generator=generator), torch.eye(31), torch.zeros(1, 31)])
    pairs = torch.nn.functional.pad(rows, (0, 1)).view(torch.int64)
    factors = row_sample._factors(16, rows.device)
    on_device = row_sample._place_sums_on_device(pairs, factors)
    assert torch.equal(row_sample._place_sums(pairs[:500], factors), on_device[:500])
    assert torch.equal(row_sample._mix_on_device(on_device, 1) & row_sample.NO_KEY, row_keys(rows, None))
    for salt in (0, 3, 5, 40):
        assert torch.equal(row_sample._mix_on_device(on_device, salt), mix(on_device, salt))


# --- small batches of a reference ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[7], [300, 5, 5, 700, 1, 0, 2], [32]])
def test_a_reference_of_small_batches_is_that_of_all_rows(sizes, generator):
    rows, groups = ellipsoid_rows(2000, 8, generator), torch.arange(2000) // 3
    ids, buffer = [f"row {n}" for n in range(2000)], torch.empty(700, 8)

    def batches():  # in one piece of memory, as a loader may give them
        start = turn = 0
        while start < len(rows):
            part = rows[start : start + sizes[turn % len(sizes)]]
            yield buffer[: len(part)].copy_(part)
            start, turn = start + len(part), turn + 1

    found = ReferenceSet.fit(batches(), groups=groups, ids=ids, max_samples=500)
    whole = ReferenceSet.fit(rows, groups=groups, ids=ids, max_samples=500)
    assert found.sample_ids == whole.sample_ids
    assert torch.equal(found.sample.rows, whole.sample.rows)
    np.testing.assert_allclose(found.covariance, whole.covariance, rtol=0, atol=1e-6 * float(whole.covariance.max()))
    np.testing.assert_allclose(found.moments["unit_sum"], whole.moments["unit_sum"], rtol=0, atol=1e-12)


def test_small_batches_of_mixed_precision_keep_each_its_own(generator):
    parts = [
        torch.randn(40, 4, generator=generator).to(kind) + 1 for kind in (torch.float64, torch.float32, torch.half)
    ]
    found = ReferenceSet.fit(parts)
    np.testing.assert_allclose(found.mean, np.concatenate([double(one) for one in parts]).mean(0), rtol=1e-14)


# --- Gaussians -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shrinkage", [0.0, 0.1])
def test_the_triangular_root_gives_the_density_of_the_symmetric_one(shrinkage, generator):
    rows = torch.randn(2500, 80, dtype=torch.float64, generator=generator) * torch.logspace(0, -3, 80) + 1
    mean, covariance = rows.mean(0), rows.T.cov()
    fast = check_gaussian(mean, covariance, shrinkage, symmetric=False)
    slow = check_gaussian(mean, covariance, shrinkage)
    assert fast.triangular
    assert not slow.triangular
    np.testing.assert_allclose(log_density(rows, fast), log_density(rows, slow), rtol=1e-9)
    np.testing.assert_allclose(log_likelihood(rows, mean, covariance, shrinkage), log_density(rows, slow), rtol=1e-9)
    white = whiten(rows, mean, covariance, shrinkage)
    np.testing.assert_allclose(fast.log_density(white.square().sum(1)), log_density(rows, fast), rtol=1e-9)


def test_a_covariance_that_may_be_singular_is_left_to_its_eigenvalues(generator):
    rows = torch.randn(30, 40, dtype=torch.float64, generator=generator)
    with pytest.warns(UserWarning, match="rank 29"):
        assert not check_gaussian(rows.mean(0), rows.T.cov(), symmetric=False).triangular
    for least in (-1.0, -0.1):  # also where the shrunk one is definite
        with pytest.raises(ValueError, match="eigenvalues above 0"):
            check_gaussian(torch.zeros(2), torch.tensor([[1.0, 0.0], [0.0, least]]), 0.9, symmetric=False)
