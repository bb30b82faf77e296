"""Reference sets: fitted, saved, merged."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import brute_conformity, brute_self_conformity, double, ellipsoid_rows, unit
from safetensors.torch import load_file, save_file

from clipconformity import ReferenceSet
from clipconformity.stream.state_file import compute_checksum

DIM = 12


@pytest.fixture
def rows(generator) -> torch.Tensor:
    return ellipsoid_rows(300, DIM, generator)


def assert_same(found: ReferenceSet, expected: ReferenceSet, rtol: float = 1e-9) -> None:
    assert found.describe() == expected.describe()
    for name in ("mean", "unit_mean", "covariance", "self_conformity", "conformities", "norms"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=rtol, atol=rtol, err_msg=name)
    assert torch.equal(found.sample.keys, expected.sample.keys)
    assert torch.equal(found.sample.groups, expected.sample.groups)


# --- fit -------------------------------------------------------------------------------------------------------------


def test_fit_equals_numpy(rows):
    reference = ReferenceSet.fit(rows)
    values = double(rows)
    assert (reference.count, reference.embed_dim, reference.exact) == (300, DIM, True)
    np.testing.assert_allclose(reference.mean, values.mean(0), rtol=1e-9)
    np.testing.assert_allclose(reference.unit_mean, unit(values).mean(0), rtol=1e-9)
    np.testing.assert_allclose(reference.covariance, np.cov(values.T), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(reference.self_conformity, brute_self_conformity(rows), rtol=1e-9)
    np.testing.assert_allclose(np.sort(reference.conformities), np.sort(brute_conformity(rows)), rtol=1e-9)
    np.testing.assert_allclose(np.sort(reference.norms), np.sort(np.linalg.norm(values, axis=1)), rtol=1e-9)


def test_the_fit_of_a_reference_equals_polyfit(rows):
    fit = ReferenceSet.fit(rows).conformity_fit
    values = double(rows)
    estimate = unit(values) @ unit(values.mean(0)[None])[0]
    slope, intercept = np.polyfit(estimate, brute_conformity(rows), 1)
    inverse_slope, inverse_intercept = np.polyfit(brute_conformity(rows), estimate, 1)
    np.testing.assert_allclose(list(fit)[:4], [slope, intercept, inverse_slope, inverse_intercept], rtol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 299])
def test_batches_of_any_size_give_the_same(size, rows):
    assert_same(ReferenceSet.fit(rows.split(size)), ReferenceSet.fit(rows), rtol=1e-6)


def test_an_iterable_is_read_once(rows):
    reads = []

    def batches():
        for batch in rows.split(64):
            reads.append(len(batch))
            yield batch

    assert_same(ReferenceSet.fit(batches()), ReferenceSet.fit(rows), rtol=1e-6)
    assert reads == [64, 64, 64, 64, 44]


@pytest.mark.parametrize("kind", ["array", "list of arrays", "fortran", "float16", "float64"])
def test_numpy_arrays_are_taken(kind, rows):
    array = rows.numpy()
    given = {
        "array": array,
        "list of arrays": [array[:100], array[100:]],
        "fortran": np.asfortranarray(array),
        "float16": array.astype(np.float16),
        "float64": array.astype(np.float64),
    }[kind]
    rtol = 1e-2 if kind == "float16" else 1e-6
    np.testing.assert_allclose(ReferenceSet.fit(given).mean, double(rows).mean(0), rtol=rtol)


def test_an_array_that_cannot_be_written_is_taken_without_a_warning(rows):
    array = rows.numpy().copy()
    array.flags.writeable = False
    assert ReferenceSet.fit(array).count == 300


def test_the_order_of_rows_changes_nothing(rows, generator):
    order = torch.randperm(300, generator=generator)
    for size in (None, 50):
        options = {} if size is None else {"max_samples": size}
        assert_same(ReferenceSet.fit(rows[order], **options), ReferenceSet.fit(rows, **options), rtol=1e-5)


def test_beyond_max_samples_means_stay_exact_and_the_rest_is_marked(generator):
    rows = ellipsoid_rows(4000, DIM, generator)
    reference = ReferenceSet.fit(rows.split(512), max_samples=1000)
    assert not reference.exact
    assert len(reference.conformities) == 1000
    np.testing.assert_allclose(reference.mean, double(rows).mean(0), rtol=1e-9)
    np.testing.assert_allclose(reference.self_conformity, brute_self_conformity(rows), rtol=1e-9)
    # The sampled rows' conformities are under the mean of all rows, not of the sample.
    truth = brute_conformity(rows)
    found = np.sort(double(reference.conformities))
    position = np.searchsorted(np.sort(truth), found).clip(1, 3999)
    nearest = np.minimum(np.abs(np.sort(truth)[position] - found), np.abs(np.sort(truth)[position - 1] - found))
    assert nearest.max() < 1e-9


def test_the_fit_beyond_max_samples_is_under_the_final_means(generator):
    """Both axes under the means of all rows: nearer to the full fit than the sample's own means would bring it."""
    rows = ellipsoid_rows(4000, DIM, generator)
    reference = ReferenceSet.fit(rows, max_samples=200)
    values, kept = unit(double(rows)), double(reference.sample.rows)
    mean = double(rows).mean(0)
    estimate = unit(kept) @ mean / np.linalg.norm(mean)
    exact = (4000 * (unit(kept) @ values.mean(0)) - 1) / 3999
    np.testing.assert_allclose(list(reference.conformity_fit)[:2], np.polyfit(estimate, exact, 1), rtol=1e-5)


def test_self_conformity_se_is_two_std_over_root_n(rows):
    expected = 2 * brute_conformity(rows).std() / np.sqrt(300)
    np.testing.assert_allclose(ReferenceSet.fit(rows).self_conformity_se, expected, rtol=0.15)  # 4% from the buckets


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_in_one_group_are_worth_one_sample(copies, rows):
    ids = torch.arange(300).repeat_interleave(copies)
    grouped = ReferenceSet.fit(rows.repeat_interleave(copies, 0), groups=ids)
    # Under copies the own-set conformity moves a little, since the copies are others' copies too.
    # The two are dealt to buckets by different hashes, each of which knows the error to 4%.
    np.testing.assert_allclose(grouped.self_conformity_se, ReferenceSet.fit(rows).self_conformity_se, rtol=0.15)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_groups_span_the_batches(kind, rows):
    ids = torch.arange(300) // 5
    found = ReferenceSet.fit(rows.split(64), groups=kind(ids.tolist()))
    expected = ReferenceSet.fit(rows, groups=ids)
    assert found.grouped
    assert_same(found, expected, rtol=1e-6)


def test_metadata_is_kept_and_shown(rows):
    reference = ReferenceSet.fit(rows, spec="open_clip:ViT-B-32/openai", modality="image", dataset="coco val2017")
    assert (reference.spec, reference.modality, reference.dataset) == (
        "open_clip:ViT-B-32/openai",
        "image",
        "coco val2017",
    )
    assert repr(reference) == (
        "ReferenceSet(count=300, embed_dim=12, spec='open_clip:ViT-B-32/openai', modality='image', "
        "dataset='coco val2017')"
    )


# --- bad input -------------------------------------------------------------------------------------------------------


def with_value(rows: torch.Tensor, value: float) -> torch.Tensor:
    rows = rows.clone()
    rows[3] = value
    return rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_bad_rows_are_refused(value, rows):
    with pytest.raises(ValueError, match="1 of 300 embeddings were zero or held NaN or infinite values"):
        ReferenceSet.fit(with_value(rows, value))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.ones(1, 4), ValueError, "at least 2 samples, got 1"),
        (torch.ones(0, 4), ValueError, "samples, got 0"),
        ([], ValueError, "empty iterable"),
        (torch.ones(5, 4, dtype=torch.int64), TypeError, "expected floating-point raw embeddings, got torch.int64"),
        (np.ones((5, 4), dtype=np.int32), TypeError, "embeddings_or_batches: expected .* got"),
        (np.array([[object()]]), TypeError, "embeddings_or_batches: expected .* got"),
        ([torch.ones(3, 4), torch.ones(3, 5)], ValueError, "dimension 5 and the first has dimension 4"),
        (torch.ones(4), ValueError, r"expected shape \(N, D\), got \(4,\)"),
        (["a.jpg", "b.jpg"], TypeError, "expected a torch tensor"),
    ],
)
def test_what_is_no_stream_of_embeddings_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        ReferenceSet.fit(given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_normalized_rows_are_refused_with_the_way_out(dtype, rows):
    normalized = torch.nn.functional.normalize(rows).to(dtype)
    with pytest.raises(ValueError, match="L2-normalised.*normalize=False.*allow_normalized=True"):
        ReferenceSet.fit(normalized)
    assert ReferenceSet.fit(normalized, allow_normalized=True).normalized


def test_rows_near_norm_one_are_not_taken_for_normalized(rows):
    """Norms between 0.98 and 1.02 are no rounding of 1, even of bfloat16."""
    lengths = 1 + 0.02 * torch.linspace(-1, 1, 300)[:, None]
    assert not ReferenceSet.fit(torch.nn.functional.normalize(rows) * lengths).normalized


def test_raw_rows_are_not_taken_for_normalized(rows):
    assert not ReferenceSet.fit(rows, allow_normalized=True).normalized


@pytest.mark.parametrize("count", [299, 301, 0])
def test_groups_of_another_length_are_refused(count, rows):
    with pytest.raises(ValueError, match=r"groups: expected one id for each of the \d+ samples, got"):
        ReferenceSet.fit(rows, groups=list(range(count)))


def test_another_modality_is_refused(rows):
    with pytest.raises(ValueError, match="modality: expected 'image', 'text' or None, got 'audio'"):
        ReferenceSet.fit(rows, modality="audio")


@pytest.mark.parametrize("size", [1, 0, -3])
def test_max_samples_below_two_is_refused(size, rows):
    with pytest.raises(ValueError, match=f"max_samples: expected at least 2, got {size}"):
        ReferenceSet.fit(rows, max_samples=size)


# --- merge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_samples", [10_000, 100])
@pytest.mark.parametrize("parts", [[150, 150], [2, 298], [100, 50, 150]])
def test_merge_equals_a_reference_of_all(parts, max_samples, rows):
    first, *others = (ReferenceSet.fit(part, max_samples=max_samples) for part in rows.split(parts))
    merged = first
    for other in others:
        merged = merged.merge(other)
    assert_same(merged, ReferenceSet.fit(rows, max_samples=max_samples), rtol=2e-6)
    assert merged.exact == (max_samples > 300)


def test_merge_equals_a_reference_of_all_with_groups(rows):
    ids = torch.arange(300) // 5
    merged = ReferenceSet.fit(rows[:100], groups=ids[:100]).merge(ReferenceSet.fit(rows[100:], groups=ids[100:]))
    whole = ReferenceSet.fit(rows, groups=ids)
    assert_same(merged, whole, rtol=2e-6)
    np.testing.assert_allclose(merged.self_conformity_se, whole.self_conformity_se, rtol=1e-9)


def test_merge_does_not_depend_on_order(rows):
    a, b, c = (
        ReferenceSet.fit(part, max_samples=60, dataset=d) for part, d in zip(rows.split(100), "xyz", strict=True)
    )
    assert_same(a.merge(b).merge(c), c.merge(b.merge(a)))


def test_merge_leaves_its_inputs_unchanged(rows):
    a, b = ReferenceSet.fit(rows[:100]), ReferenceSet.fit(rows[100:])
    a.merge(b)
    assert_same(a, ReferenceSet.fit(rows[:100]))
    assert_same(b, ReferenceSet.fit(rows[100:]))


def test_merge_keeps_covariance_at_an_offset_exact(generator):
    rows = torch.randn(4000, 32, generator=generator) + 1000
    merged = ReferenceSet.fit(rows[:3000]).merge(ReferenceSet.fit(rows[3000:]))
    expected = np.cov(double(rows).T)
    assert np.linalg.norm(double(merged.covariance) - expected) < 1e-6 * np.linalg.norm(expected)


def test_merge_joins_the_names_of_datasets(rows):
    a, b = ReferenceSet.fit(rows[:100], dataset="coco"), ReferenceSet.fit(rows[100:], dataset="flickr")
    assert a.merge(b).dataset == "coco + flickr"


@pytest.mark.parametrize(
    ("name", "mine", "theirs"),
    [("spec", "a", "b"), ("modality", "image", "text"), ("spec", None, "b"), ("modality", "image", None)],
)
def test_references_of_different_kinds_do_not_merge(name, mine, theirs, rows):
    a, b = ReferenceSet.fit(rows[:100], **{name: mine}), ReferenceSet.fit(rows[100:], **{name: theirs})
    with pytest.raises(ValueError, match=f"different {name}: {mine!r} and {theirs!r}"):
        a.merge(b)


def test_references_of_different_dimension_do_not_merge(rows):
    with pytest.raises(ValueError, match="different embed_dim: 12 and 11"):
        ReferenceSet.fit(rows).merge(ReferenceSet.fit(rows[:, :11]))


def test_normalized_and_raw_references_do_not_merge(rows):
    normalized = ReferenceSet.fit(torch.nn.functional.normalize(rows), allow_normalized=True)
    with pytest.raises(ValueError, match="different normalized: False and True"):
        ReferenceSet.fit(rows).merge(normalized)


def test_a_reference_does_not_merge_with_itself(rows):
    reference = ReferenceSet.fit(rows)
    with pytest.raises(ValueError, match="with itself"):
        reference.merge(ReferenceSet.fit(rows.flip(0)))


def test_a_reference_does_not_merge_with_a_tensor(rows):
    with pytest.raises(TypeError, match="expected a ReferenceSet, got Tensor"):
        ReferenceSet.fit(rows).merge(rows)


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"max_samples": 50}, {"groups": [i // 5 for i in range(300)]}])
def test_save_and_load_give_the_same(options, rows, tmp_path):
    reference = ReferenceSet.fit(rows, spec="tiny", modality="text", dataset="scenes", **options)
    reference.save(tmp_path / "r.safetensors")
    loaded = ReferenceSet.load(str(tmp_path / "r.safetensors"))
    assert_same(loaded, reference, rtol=1e-15)
    assert loaded.exact == reference.exact
    assert torch.equal(loaded.self_conformity_se, reference.self_conformity_se)


def test_a_loaded_reference_merges(rows, tmp_path):
    ReferenceSet.fit(rows[:100]).save(tmp_path / "a.safetensors")
    merged = ReferenceSet.load(tmp_path / "a.safetensors").merge(ReferenceSet.fit(rows[100:]))
    assert_same(merged, ReferenceSet.fit(rows), rtol=2e-6)


def test_a_reference_is_a_plain_safetensors_file_that_says_what_it_is(rows, tmp_path):
    from safetensors import safe_open

    ReferenceSet.fit(rows, spec="tiny", modality="image", dataset="scenes").save(tmp_path / "r.safetensors")
    with safe_open(tmp_path / "r.safetensors", framework="pt") as file:
        about = json.loads(file.metadata()["reference"])
        assert file.metadata()["library_version"]
    assert (about["count"], about["embed_dim"]) == (300, DIM)
    assert (about["spec"], about["modality"], about["dataset"]) == ("tiny", "image", "scenes")


@pytest.mark.parametrize("grouped", [False, True])
def test_a_file_stays_below_27_megabytes_at_512_dimensions(grouped, generator, tmp_path):
    batches = (torch.randn(1000, 512, generator=generator) + 1 for _ in range(12))
    ids = [i // 5 for i in range(12_000)] if grouped else None
    ReferenceSet.fit(batches, groups=ids).save(tmp_path / "r.safetensors")
    assert (tmp_path / "r.safetensors").stat().st_size <= 27e6


def test_saving_replaces_an_older_file_and_leaves_nothing_else(rows, tmp_path):
    path = tmp_path / "r.safetensors"
    ReferenceSet.fit(rows[:100]).save(path)
    ReferenceSet.fit(rows).save(path)
    assert ReferenceSet.load(path).count == 300
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]


def test_a_failed_save_leaves_the_older_file_and_nothing_else(rows, tmp_path, monkeypatch):
    path = tmp_path / "r.safetensors"
    ReferenceSet.fit(rows[:100]).save(path)

    def fail(tensors, name, metadata):
        Path(name).write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="no space left"):
        ReferenceSet.fit(rows).save(path)
    assert ReferenceSet.load(path).count == 100
    assert [p.name for p in tmp_path.iterdir()] == ["r.safetensors"]


def test_saving_into_a_missing_folder_or_over_a_folder_is_refused(rows, tmp_path):
    reference = ReferenceSet.fit(rows)
    with pytest.raises(FileNotFoundError, match="the folder .* does not exist"):
        reference.save(tmp_path / "none" / "r.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        reference.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such reference file; build one with `clipconformity reference`"):
        ReferenceSet.load(tmp_path / "none.safetensors")


@pytest.fixture
def saved(rows, tmp_path) -> Path:
    ReferenceSet.fit(rows).save(tmp_path / "r.safetensors")
    return tmp_path / "r.safetensors"


@pytest.mark.parametrize("size", [0, 1, 7, 8, 100, 2000, -1])
def test_a_truncated_file_is_refused(size, saved):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        ReferenceSet.load(saved)


@pytest.mark.parametrize("seed", range(3))
def test_a_random_file_is_refused(seed, saved):
    saved.write_bytes(np.random.default_rng(seed).bytes(5000))
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        ReferenceSet.load(saved)


def test_a_pickle_is_refused_and_not_run(saved):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (saved.parent / "ran",))

    saved.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        ReferenceSet.load(saved)
    assert not (saved.parent / "ran").exists()


def test_another_safetensors_file_is_refused(saved):
    save_file({"embeddings": torch.ones(3, 4)}, saved)
    with pytest.raises(ValueError, match="not a reference set"):
        ReferenceSet.load(saved)


def rewritten(path: Path, tensors: dict | None = None, **metadata) -> Path:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors, about = tensors or load_file(path), about | metadata
    save_file(tensors, path, about | {"checksum": compute_checksum(tensors, about)})
    return path


def test_a_newer_format_is_refused(saved):
    with pytest.raises(ValueError, match="use a newer clipconformity"):
        ReferenceSet.load(rewritten(saved, format_version="99"))


@pytest.mark.parametrize("name", ["raw_sum", "unit_sum", "second_moment", "unit_second_moment", "sample_rows"])
@pytest.mark.parametrize("damage", ["nan", "shape"])
def test_damaged_tensors_are_named(name, damage, saved):
    tensors = load_file(saved)
    tensors[name] = tensors[name] * float("nan") if damage == "nan" else tensors[name][:-1].contiguous()
    with pytest.raises(ValueError, match=f"damaged: {name} is not a finite tensor"):
        ReferenceSet.load(rewritten(saved, tensors))


@pytest.mark.parametrize("about", ["{}", "not json", "[]", '{"count": 300}'])
def test_damaged_metadata_is_refused(about, saved):
    with pytest.raises(ValueError, match=r"r\.safetensors: damaged"):
        ReferenceSet.load(rewritten(saved, reference=about))


# --- formats and ids -------------------------------------------------------------------------------------------------

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("version", [1, 3])
def test_an_older_format_is_refused_with_the_command_that_builds_it_again(version):
    message = rf"reference format {version}, .*build it again with `clipconformity reference "
    with pytest.raises(ValueError, match=message):
        ReferenceSet.load(FIXTURES / f"reference-format-{version}.safetensors")


def test_a_stored_file_stays_readable():
    """That of a format not published yet is written anew with CLIPCONFORMITY_WRITE_FIXTURES set."""
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) + 1
    path = FIXTURES / "reference-format-4.safetensors"
    if "CLIPCONFORMITY_WRITE_FIXTURES" in os.environ:
        about = {"spec": "tiny", "modality": "image", "dataset": "six rows"}
        names = [f"row {number}" for number in range(6)]
        ReferenceSet.fit(rows, groups=torch.arange(6) // 2, ids=names, **about).save(path)
    found = ReferenceSet.load(path)
    assert (found.count, found.spec, found.modality, found.dataset) == (6, "tiny", "image", "six rows")
    np.testing.assert_allclose(found.mean, double(rows).mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(double(rows).T), rtol=1e-9)
    named = dict(zip(found.sample_ids, found.sample.rows, strict=True))
    assert all(torch.equal(named[f"row {number}"], row) for number, row in enumerate(rows))
    assert len(found.sample.groups.unique()) == 3
    u = unit(double(rows))
    np.testing.assert_allclose(found.moments.unit_second_moment, u.T @ u / 6, rtol=1e-12)


def test_the_unit_second_moment_merges_and_is_kept(rows, tmp_path):
    u = unit(double(rows))
    parts = [ReferenceSet.fit(part, max_samples=20) for part in (rows[:100], rows[100:])]
    parts[0].merge(parts[1]).save(tmp_path / "r.safetensors")
    found = ReferenceSet.load(tmp_path / "r.safetensors").moments.unit_second_moment
    np.testing.assert_allclose(found, u.T @ u / len(u), rtol=0, atol=2e-8)


def test_ids_follow_their_rows_through_batches_compaction_merging_and_the_file(rows, tmp_path):
    names = [f"image {number}.png" for number in range(len(rows))]
    parts = [
        ReferenceSet.fit(rows[part].split(17), ids=names[part], max_samples=40)
        for part in (slice(0, 100), slice(100, len(rows)))
    ]
    merged = parts[0].merge(parts[1])
    merged.save(tmp_path / "r.safetensors")
    whole = ReferenceSet.fit(rows, ids=names, max_samples=40)
    for found in (merged, whole, ReferenceSet.load(tmp_path / "r.safetensors")):
        assert len(found.sample_ids) == 40
        for name, row in zip(found.sample_ids, found.sample.rows, strict=True):
            assert torch.equal(rows[names.index(name)].float(), row)


def test_a_reference_without_ids_has_none(rows):
    assert ReferenceSet.fit(rows).sample_ids is None


def test_an_id_too_few_is_refused(rows):
    with pytest.raises(ValueError, match=f"ids: expected one id for each of the {len(rows)} samples"):
        ReferenceSet.fit(rows, ids=["a"] * (len(rows) - 1))


def test_buckets_do_not_depend_on_the_order_of_rows(rows, generator):
    """What uncertainty is taken over: rows are dealt by their content."""
    order = torch.randperm(len(rows), generator=generator)
    one, other = ReferenceSet.fit(rows), ReferenceSet.fit(rows[order].split(13))
    assert torch.equal(one.moments["count"], other.moments["count"])
    torch.testing.assert_close(one.moments["unit_sum"], other.moments["unit_sum"])
    assert int((one.moments["count"] > 0).sum()) > 50
