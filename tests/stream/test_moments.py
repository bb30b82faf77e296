"""The additive statistics of a stream: sums, second moment, row sample, buckets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import double, ellipsoid_rows, unit

from clipconformity.functional.density import Grid
from clipconformity.functional.linalg import mirror_upper
from clipconformity.functional.resampling import jackknife_error
from clipconformity.stream.chunks import CHUNK, MAX_ROWS
from clipconformity.stream.layout import Layout
from clipconformity.stream.moments import Moments
from clipconformity.stream.pairs import own_pairs
from clipconformity.stream.row_sample import NO_KEY, hash_labels, row_keys
from clipconformity.stream.second_moment import SecondMoment

DIM = 6
LAYOUTS = {
    "own": Layout(DIM, max_samples=30),
    "second moment": Layout(DIM, buckets=1, max_samples=30, second_moment=True),
    "towards": Layout(DIM, direction=torch.linspace(0, 0.5, DIM).double(), grid=Grid(0.4, 0.01), max_samples=30),
    "no sample": Layout(DIM, second_moment=True),
    "unit second moment": Layout(DIM, max_samples=30, unit_second_moment=True),
}
HISTOGRAM = "conformity_counts"  # no state may have the name of a metric's method
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def streamed(layout: Layout, batches, groups=None) -> Moments:
    moments, seen = Moments(layout), 0
    for batch in batches:
        moments.update(batch, None if groups is None else groups[seen : seen + len(batch)])
        seen += len(batch)
    return moments


def assert_same(found: Moments, expected: Moments) -> None:
    for name in found.layout.names():
        if name.startswith("sample_"):
            continue
        a, b = found[name], expected[name]
        scale = max(1.0, float(b.abs().max()))
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=2e-6, err_msg=name)
    if found.layout.max_samples:
        for a, b in zip(found.sample(), expected.sample(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.fixture
def rows(generator) -> torch.Tensor:
    return ellipsoid_rows(200, DIM, generator)


@pytest.fixture
def groups() -> torch.Tensor:
    return torch.arange(200) // 5


@every_layout
@pytest.mark.parametrize("size", [1, 7, 64, 200])
def test_batches_equal_a_single_pass(layout, size, rows):
    assert_same(streamed(layout, rows.split(size)), streamed(layout, [rows]))


@every_layout
def test_a_stream_longer_than_a_chunk_equals_its_parts(layout, generator):
    rows = ellipsoid_rows(CHUNK + 100, DIM, generator)
    assert_same(streamed(layout, [rows]), streamed(layout, rows.split(999)))


def test_rows_beyond_a_chunk_keep_their_groups_and_ids(generator):
    rows = ellipsoid_rows(MAX_ROWS + 500, DIM, generator)
    groups, ids = torch.arange(len(rows)) // 7, [f"row {n}" for n in range(len(rows))]
    whole, parts = (Moments(Layout(DIM, max_samples=len(rows))) for _ in range(2))
    whole.update(rows, groups, ids)
    for part in torch.arange(len(rows)).split(600):
        parts.update(rows[part], groups[part], [ids[n] for n in part])
    assert_same(whole, parts)
    sample = whole.sample()
    for row in (0, CHUNK - 1, CHUNK, MAX_ROWS - 1, MAX_ROWS, len(rows) - 1):
        kept = int((sample.rows == rows[row]).all(1).nonzero())
        assert whole.names[int(sample.ids[kept])] == ids[row]
        assert int(sample.groups[kept]) == int(groups[row])


@every_layout
def test_merge_equals_single_pass(layout, rows, groups):
    parts = [streamed(layout, [rows[s]], groups[s]) for s in (slice(0, 20), slice(20, 165), slice(165, 200))]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert_same(merged, streamed(layout, [rows], groups))


@every_layout
def test_merge_does_not_depend_on_order_or_nesting(layout, rows, groups):
    a, b, c = (streamed(layout, [rows[i::3]], groups[i::3]) for i in range(3))
    assert_same(a.merge(b).merge(c), c.merge(b.merge(a)))


@every_layout
def test_merge_leaves_its_inputs_unchanged(layout, rows):
    a, b = streamed(layout, [rows[:90]]), streamed(layout, [rows[90:]])
    a.merge(b)
    assert_same(a, streamed(layout, [rows[:90]]))
    assert_same(b, streamed(layout, [rows[90:]]))


@every_layout
def test_an_empty_stream_is_the_identity_of_the_merge(layout, rows):
    moments = streamed(layout, [rows])
    assert_same(Moments(layout).merge(moments), moments)
    assert_same(moments.merge(Moments(layout)), moments)


@every_layout
def test_an_empty_batch_changes_nothing(layout, rows):
    assert_same(streamed(layout, [rows[:0], rows, rows[:0]]), streamed(layout, [rows]))


@every_layout
def test_the_order_of_rows_changes_nothing(layout, rows, groups, generator):
    order = torch.randperm(200, generator=generator)
    shuffled = streamed(layout, rows[order].split(33))
    assert_same(shuffled, streamed(layout, [rows]))
    grouped = streamed(layout, rows[order].split(33), groups[order])
    assert_same(grouped, streamed(layout, [rows], groups))


def test_sums_equal_numpy(rows):
    moments = streamed(LAYOUTS["second moment"], rows.split(30))
    values = double(rows)
    norms = np.linalg.norm(values, axis=1)
    assert float(moments.total) == 200
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-9)
    np.testing.assert_allclose(moments.unit_mean, unit(values).mean(0), rtol=1e-9)
    assert float(moments["norm_sum"].sum()) == pytest.approx(norms.sum(), rel=1e-9)
    assert float(moments["norm_square_sum"].sum()) == pytest.approx((norms**2).sum(), rel=1e-9)
    np.testing.assert_allclose(moments.covariance, np.cov(values.T), rtol=1e-5, atol=1e-6)


def test_conformity_to_a_direction_equals_numpy(rows):
    layout = LAYOUTS["towards"]
    moments = streamed(layout, rows.split(30))
    conformity = unit(double(rows)) @ double(layout.direction)
    np.testing.assert_allclose(moments.conformity_std, conformity.std(ddof=1), rtol=1e-9)
    edges = np.concatenate([[-np.inf], double(layout.grid.edges()), [np.inf]])
    np.testing.assert_array_equal(moments[HISTOGRAM].sum(0), np.histogram(conformity, edges)[0])


def test_the_std_of_conformity_that_does_not_vary_is_zero(rows):
    """The difference of its sums may be below 0 by rounding."""
    layout = Layout(DIM, direction=torch.linspace(0.1, 0.9, DIM).double(), grid=Grid(0.4, 0.01))
    assert [float(streamed(layout, [row.expand(33, DIM)]).conformity_std) for row in rows] == pytest.approx(
        [0.0] * len(rows), abs=1e-7
    )


def test_what_lies_beyond_the_cells_is_counted_at_the_ends():
    layout = Layout(2, direction=torch.tensor([1.0, 0.0]).double(), grid=Grid(0.0, 1e-4))
    moments = streamed(layout, [torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])])
    histogram = moments[HISTOGRAM].sum(0)
    assert (float(histogram[0]), float(histogram[-1]), float(histogram.sum())) == (1, 2, 4)


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [64, 1000, 5000])
@pytest.mark.parametrize("spreads", [0, 1, 1000])
def test_covariance_at_an_offset_of_many_spreads_is_exact(size, spreads, generator):
    spread = torch.linspace(0.5, 2, 64)
    rows = torch.randn(5000, 64, generator=generator) * spread + spreads * spread.mean()
    moments = streamed(Layout(64, buckets=1, second_moment=True), rows.split(size))
    expected = np.cov(double(rows).T)
    assert np.linalg.norm(double(moments.covariance) - expected) < 1e-6 * np.linalg.norm(expected)


def test_a_plain_float32_gram_matrix_would_fail_that(generator):
    """Guard of the tolerance: without centring and cross terms the error is far above 1e-6."""
    rows = torch.randn(5000, 16, generator=generator) + 1000
    plain = double((rows.T @ rows) / 5000 - torch.outer(rows.mean(0), rows.mean(0)))
    expected = np.cov(double(rows).T)
    assert np.linalg.norm(plain - expected) > 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("size", [64, 1000, 5000])
@pytest.mark.parametrize(("cast", "error"), [(torch.float32, 1e-8), (torch.float64, 1e-13)])
def test_eigenvalues_are_known_to_a_share_of_the_largest(size, cast, error, generator):
    """Products are taken in the precision of the rows: at a condition of 1e5 float32 knows the smallest to 1e-3."""
    turn = torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]
    rows = (torch.randn(5000, 64, generator=generator) * torch.logspace(0, -2.5, 64) @ turn + 0.5).to(cast)
    found = np.linalg.eigvalsh(double(streamed(Layout(64, second_moment=True), rows.split(size)).covariance))
    expected = np.linalg.eigvalsh(np.cov(double(rows).T))
    np.testing.assert_allclose(found, expected, rtol=0, atol=error * expected[-1])


@pytest.mark.parametrize("sizes", [[1], [40], [300], [300, 5, 700]])
@pytest.mark.parametrize("dim", [8, 300])
@pytest.mark.parametrize(("cast", "error"), [(torch.float32, 1e-7), (torch.float64, 1e-14)])
def test_second_moment_is_the_sum_of_outer_products(cast, error, dim, sizes, generator):
    moment, total = SecondMoment("tested", cast), torch.eye(dim, dtype=torch.float64)
    rows = (torch.randn(sum(sizes), dim, generator=generator) + 5).to(cast)
    for part in rows.split(sizes):
        moment.add(part, part.double().sum(0))
    moment.add_to(total)
    values = double(rows)
    expected = values.T @ values + np.eye(dim)
    np.testing.assert_allclose(mirror_upper(total), expected, rtol=0, atol=error * np.abs(expected).max())


@pytest.mark.parametrize("cast", [torch.float32, torch.float64])
def test_the_unit_second_moment_is_that_of_the_directions_and_leaves_out_bad_rows(cast, generator):
    rows = ellipsoid_rows(CHUNK + 300, 8, generator).to(cast)
    rows[[3, CHUNK + 5]] = torch.tensor([[0.0], [float("nan")]], dtype=cast)
    found = streamed(Layout(8, unit_second_moment=True), rows.split(1000)).unit_second_moment
    u = unit(np.delete(double(rows), [3, CHUNK + 5], axis=0))
    error = 5e-8 if cast == torch.float32 else 1e-14
    np.testing.assert_allclose(found, u.T @ u / len(u), rtol=0, atol=error)
    np.testing.assert_allclose(found.trace(), 1, rtol=10 * error)


@pytest.mark.parametrize("std", [0.05, 2e-5])
def test_the_std_of_conformity_is_resolved_near_one(std, generator):
    cosine = (1 - 5 * std + std * torch.randn(20_000, generator=generator, dtype=torch.float64)).clamp_max(1)
    rows = torch.stack([cosine, (1 - cosine**2).sqrt()], 1)
    layout = Layout(2, direction=torch.tensor([1.0, 0.0]).double(), grid=Grid(1 - 5 * std, std / 32))
    moments = streamed(layout, rows.split(777))
    np.testing.assert_allclose(moments.conformity_std, double(cosine).std(ddof=1), rtol=1e-3)


def test_half_precision_rows_are_taken_as_they_are(rows):
    half = streamed(LAYOUTS["own"], [rows.half()])
    np.testing.assert_allclose(half.unit_mean, unit(double(rows.half())).mean(0), rtol=1e-9)


# --- the row sample --------------------------------------------------------------------------------------------------


def test_the_sample_holds_everything_while_it_fits(rows):
    sample = streamed(Layout(DIM, max_samples=200), rows.split(30)).sample()
    found = sample.rows[sample.rows[:, 0].argsort()]
    assert torch.equal(found, rows[rows[:, 0].argsort()])


def test_the_sample_beyond_its_size_is_that_of_any_order_and_parts(generator):
    rows = ellipsoid_rows(3000, DIM, generator)
    layout = Layout(DIM, max_samples=100)
    whole = streamed(layout, [rows]).sample()
    assert len(whole.rows) == 100
    order = torch.randperm(3000, generator=generator)
    parts = [streamed(layout, part.split(64)) for part in rows[order].split([10, 1500, 1490])]
    merged = parts[2].merge(parts[0]).merge(parts[1]).sample()
    assert torch.equal(merged.rows, whole.rows)
    assert torch.equal(merged.keys, whole.keys)


def test_the_sample_represents_its_set(generator):
    """The mean of 500 rows out of 20,000 is within 4.5 standard errors in every dimension."""
    rows = ellipsoid_rows(20_000, DIM, generator)
    sample = double(streamed(Layout(DIM, max_samples=500), rows.split(1000)).sample().rows)
    values = double(rows)
    z = (sample.mean(0) - values.mean(0)) / (values.std(0) / 500**0.5)
    assert np.abs(z).max() < 4.5


def test_a_large_group_pushes_no_other_out_of_the_sample(generator):
    """Every row is kept with the same chance: of 80% of the rows in one group, and of a hundred groups of ten."""
    rows = ellipsoid_rows(5000, DIM, generator)
    ids = torch.where(torch.arange(5000) < 4000, 0, torch.arange(5000) // 10)
    sample = streamed(Layout(DIM, max_samples=500), rows.split(333), ids).sample()
    assert len(sample.groups) == 500
    large = int((sample.groups == 0).sum())
    assert abs(large - 400) < 4 * (500 * 0.8 * 0.2) ** 0.5
    assert len(sample.groups.unique()) > 50


def test_keys_are_positive_and_differ_between_rows(generator):
    rows = ellipsoid_rows(20_000, DIM, generator)
    keys = row_keys(rows, None)
    assert int(keys.min()) >= 0
    assert len(keys.unique()) == len(rows)


def test_keys_are_those_of_content_alone(rows):
    keys = row_keys(rows, None)
    assert torch.equal(row_keys(rows.flip(0), None).flip(0), keys)
    assert torch.equal(row_keys(rows.clone(), None), keys)


def test_keys_of_one_bit_apart_are_unrelated(rows):
    keys = row_keys(rows, None)
    other = row_keys(torch.nextafter(rows, torch.tensor(torch.inf)), None)
    flipped = np.unpackbits((double_bits(keys) ^ double_bits(other)).view(np.uint8)).mean() * 64 / 63
    assert flipped == pytest.approx(0.5, abs=0.03)


def small_numbers(count: int, generator: torch.Generator) -> torch.Tensor:
    digits = torch.arange(count)[:, None] // 8 ** torch.arange(16) % 8  # every row another number, in base 8
    return digits.float()


def permuted(count: int, generator: torch.Generator) -> torch.Tensor:
    row = torch.arange(1.0, 17.0)
    return torch.stack([row[torch.randperm(16, generator=generator)] for _ in range(count)]).unique(dim=0)


@pytest.mark.parametrize(
    "rows_of",
    [
        lambda count, generator: torch.eye(2048),
        lambda count, generator: torch.cat([torch.eye(512) * scale for scale in (1.0, 2.0, 3.0, -1.0)]),
        small_numbers,
        permuted,
        lambda count, generator: torch.randn(count, 16, generator=generator),
    ],
    ids=["one-hot", "scaled one-hot", "whole numbers", "permuted", "normal"],
)
@pytest.mark.parametrize("grouped", [False, True])
def test_different_rows_have_different_keys(rows_of, grouped, generator):
    rows = rows_of(100_000, generator)
    ids = torch.full((len(rows),), 7) if grouped else None
    keys = row_keys(rows, ids)
    assert len(keys.unique()) == len(rows)
    parts = [row_keys(part, None if ids is None else ids[: len(part)]) for part in rows.split(997)]
    assert torch.equal(torch.cat(parts), keys)


@pytest.mark.parametrize("bit", [0, 5, 20, 42])
def test_every_low_bit_of_a_key_is_that_of_a_coin(bit, generator):
    """Whole numbers, whose floats end in zeros, must reach the bits that tell the rows of a group apart."""
    keys = row_keys(small_numbers(20_000, generator), None)
    assert float(((keys >> bit) & 1).double().mean()) == pytest.approx(0.5, abs=4.5 * 0.5 / 20_000**0.5)


def test_no_row_of_one_large_group_is_taken_for_a_copy(generator):
    """With 24 bits of content 75 of 50,000 rows were."""
    rows = torch.randn(50_000, DIM, generator=generator)
    sample = streamed(Layout(DIM, max_samples=50_000), rows.split(5000), torch.zeros(50_000, dtype=torch.long)).sketch()
    assert len(sample.rows) == 50_000
    assert int(sample.copies.max()) == 1


def test_equal_rows_of_different_groups_are_never_taken_for_copies():
    """16 bits of group are shared by some pair of 2,000 groups: a caption that many images have is kept for each."""
    rows = torch.ones(2000, DIM)
    sample = streamed(Layout(DIM, max_samples=5000), rows.split(300), torch.arange(2000)).sketch()
    assert len(sample.rows) == len(sample.groups.unique()) == 2000
    assert int(sample.copies.max()) == 1


def double_bits(keys: torch.Tensor) -> np.ndarray:
    return keys.numpy().astype(np.int64)


# --- bad rows --------------------------------------------------------------------------------------------------------


@every_layout
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_bad_rows_are_counted_and_left_out(layout, value, rows, groups):
    bad = rows.clone()
    bad[[0, 50, 199]] = value
    good = torch.ones(200, dtype=torch.bool)
    good[[0, 50, 199]] = False
    found, expected = streamed(layout, bad.split(64), groups), streamed(layout, [rows[good]], groups[good])
    assert float(found["bad"]) == 3
    found["bad"].copy_(expected["bad"])
    assert_same(found, expected)
    if layout.max_samples:
        assert int((found.good_sample().keys == NO_KEY).sum()) == 0


def test_bad_rows_never_crowd_out_good_ones(rows):
    moments = streamed(LAYOUTS["own"], [torch.full((100, DIM), float("nan")), rows[:30]])
    assert len(moments.good_sample().rows) == 30


# --- groups and errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids",
    [
        list(range(40)),
        np.arange(40),
        torch.arange(40),
        torch.arange(40, dtype=torch.int32),
        [f"cat-{i}" for i in range(40)],
    ],
    ids=["list", "numpy", "tensor", "int32", "strings"],
)
def test_group_ids_may_be_whole_numbers_or_strings(ids):
    hashed = hash_labels(ids, 40, torch.device("cpu"))
    assert hashed.dtype == torch.int64
    assert len(hashed.unique()) == 40
    assert torch.equal(hashed, hash_labels(ids, 40, torch.device("cpu")))


@pytest.mark.parametrize("ids", [[], torch.empty(0, dtype=torch.long), np.array([])], ids=["list", "tensor", "numpy"])
def test_no_rows_have_no_group_ids(ids):
    assert hash_labels(ids, 0, torch.device("cpu")).dtype == torch.int64


def test_strings_of_numpy_are_group_ids_too():
    ids = np.array(["a", "b", "a"])
    assert torch.equal(hash_labels(ids, 3, torch.device("cpu")), hash_labels(["a", "b", "a"], 3, torch.device("cpu")))


@pytest.mark.parametrize("ids", [[0.5, 1.5], torch.tensor([0.0, 1.0]), torch.tensor([True, False])])
def test_group_ids_of_another_type_are_refused(ids):
    with pytest.raises(TypeError, match="groups: expected whole numbers or strings"):
        hash_labels(ids, 2, torch.device("cpu"))


def test_groups_of_another_length_are_refused():
    with pytest.raises(ValueError, match="one id for each of the 3 samples, got 2"):
        hash_labels([1, 2], 3, torch.device("cpu"))


def test_a_group_is_dealt_to_one_bucket(rows, groups):
    moments = streamed(Layout(DIM, buckets=7), rows.split(33), groups)
    assert set((moments["count"] % 5).tolist()) == {0.0}


@pytest.mark.parametrize("ids", [None, range(200)], ids=["by content", "by id"])
def test_rows_are_dealt_at_random_and_not_by_their_place(ids, rows):
    """A chi-squared statistic of 15 degrees of freedom: 31 is exceeded in 1% of cases."""
    moments = Moments(Layout(DIM, buckets=16))
    moments.update(rows, ids=ids)
    count = double(moments["count"])
    assert ((count - 12.5) ** 2 / 12.5).sum() < 31
    assert count.max() > count.min()


def test_ids_deal_rows_whose_last_bits_differ_to_the_same_bucket(rows):
    exact, rounded = Moments(Layout(DIM)), Moments(Layout(DIM))
    exact.update(rows, ids=range(200))
    rounded.update(rows.double() * (1 + 1e-7), ids=range(200))
    np.testing.assert_array_equal(exact["count"], rounded["count"])


AT_ONCE = pytest.mark.parametrize("at_once", [30, 1000])
"""Rows that are added at once: fewer than come, or more."""


@pytest.fixture
def limit(at_once, monkeypatch):
    monkeypatch.setattr("clipconformity.stream.moments.max_rows", lambda *_: at_once)


@AT_ONCE
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@every_layout
def test_an_error_leaves_the_state_as_before_the_batch(error, layout, limit, rows, monkeypatch):
    moments, before = (streamed(layout, [rows[:100]]) for _ in range(2))
    moments.flush()
    with monkeypatch.context() as broken:
        broken.setattr("clipconformity.stream.moments.name_sampled", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(error):
            moments.update_with_values(rows[100:], ids=range(100))
    assert_same(moments, before)
    assert moments.names == {}


@AT_ONCE
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@every_layout
def test_after_an_error_the_batches_that_wait_go_on_waiting(error, layout, limit, rows, monkeypatch):
    moments = streamed(layout, rows.split(50))
    with monkeypatch.context() as broken:
        broken.setattr("clipconformity.stream.moments.name_sampled", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(error):
            moments["count"]
    assert_same(moments, streamed(layout, [rows]))


@AT_ONCE
def test_an_interrupt_while_a_batch_is_added_comes_after_it(limit, rows, monkeypatch):
    import signal

    moments = Moments(LAYOUTS["own"])
    moments.update(rows)
    extend = Moments._list

    def interrupted(self, name):
        if self is moments and name == "sample_rows":
            signal.raise_signal(signal.SIGINT)
        return extend(self, name)

    monkeypatch.setattr(Moments, "_list", interrupted)
    with pytest.raises(KeyboardInterrupt):
        moments.flush()
    monkeypatch.setattr(Moments, "_list", extend)
    assert_same(moments, streamed(LAYOUTS["own"], [rows]))


def test_places_for_ids_deal_no_rows(rows):
    """Rows of a file without names are dealt by content: sorted and shuffled alike."""
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    one, two = Moments(Layout(DIM)), Moments(Layout(DIM))
    one.update(rows, ids=[f"file:{n}" for n in range(200)], placed=True)
    two.update(rows[order], ids=[f"file:{n}" for n in range(200)], placed=True)
    np.testing.assert_allclose(one["unit_sum"], two["unit_sum"], atol=1e-12)
    np.testing.assert_allclose(one["unit_sum"], streamed(Layout(DIM), [rows])["unit_sum"], atol=1e-12)


def test_of_equal_rows_the_same_one_is_kept_whatever_came_first(rows):
    twice, ids = rows[:50].repeat(2, 1), [f"file:{n}" for n in range(100)]
    found = []
    for order in (torch.arange(100), torch.arange(100).flip(0)):
        moments = Moments(Layout(DIM, max_samples=100))
        moments.update(twice[order], ids=[ids[n] for n in order], placed=True)
        found.append(moments.sample())
    assert found[0].copies.tolist() == [2] * 50
    assert torch.equal(found[0].ids, found[1].ids)


def test_jackknife_error_of_a_mean_is_the_textbook_standard_error(generator):
    x = double(torch.randn(100, generator=generator))
    left_out = torch.from_numpy((x.sum() - x) / 99)
    error = jackknife_error(left_out, torch.ones(100))
    np.testing.assert_allclose(error, x.std(ddof=1) / 10, rtol=1e-9)


def test_jackknife_error_of_one_bucket_is_nan():
    assert bool(jackknife_error(torch.zeros(4), torch.tensor([0.0, 9.0, 0.0, 0.0])).isnan())


def test_self_conformity_error_is_an_explicit_jackknife(rows, groups):
    moments = streamed(Layout(DIM, buckets=256), [rows], groups)
    u = unit(double(rows))
    cosine = u @ u.T
    np.fill_diagonal(cosine, np.nan)
    bucket = {}
    for group in range(40):  # which groups share a bucket is read off their counts, one group at a time
        alone = streamed(Layout(DIM, buckets=256), [rows[groups == group]], groups[groups == group])
        bucket.setdefault(int(alone["count"].argmax()), []).append(group)
    for members in bucket.values():  # no pairs inside a bucket
        inside = np.isin(groups.numpy(), members)
        cosine[np.ix_(inside, inside)] = np.nan
    left_out = []
    for members in bucket.values():
        keep = ~np.isin(groups.numpy(), members)
        left_out.append(np.nanmean(cosine[np.ix_(keep, keep)]))
    left_out = np.array(left_out)
    expected = np.sqrt((len(left_out) - 1) / len(left_out) * ((left_out - left_out.mean()) ** 2).sum())
    value, error = own_pairs(moments)[:2]
    np.testing.assert_allclose(value, np.nanmean(cosine), rtol=1e-9)
    np.testing.assert_allclose(error, expected, rtol=1e-9)
