"""Saved scores: they compare as if scored anew, and only against the reference that they were scored against."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import ellipsoid_rows
from safetensors import safe_open

import clipconformity as cc
from clipconformity.data import write_embeddings
from clipconformity.evaluation import Score, compare, embedding_source, paired_source, score
from clipconformity.evaluation.sources import Source, SourceBatch
from clipconformity.provenance import Provenance
from clipconformity.stream.reference_file import reference_identity

DIM = 8
N = 150
IDS = [f"ö {n}.png" for n in range(N)]
ORIGIN = Provenance("hf:nobody/nothing", {"weights": "1", "preprocessing": "2"}, "image")

pytestmark = pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")


@pytest.fixture(scope="module")
def reference() -> cc.ReferenceSet:
    rows = ellipsoid_rows(300, DIM, torch.Generator().manual_seed(1))
    return cc.ReferenceSet.fit(rows, ids=[f"r{n}" for n in range(300)], groups=torch.arange(300) // 2, dataset="rows")


def source(rows, size=64, groups=None, ids=IDS, provenance=ORIGIN) -> Source:
    starts = range(0, len(rows), size)
    batches = [
        SourceBatch(rows[n : n + size], ids[n : n + size], None if groups is None else groups[n : n + size])
        for n in starts
    ]
    return Source(iter(batches), len(rows), provenance, groups)


def again(one: Score, path, **options) -> Score:
    one.save(path / "s.safetensors")
    return Score.load(path / "s.safetensors", one.reference, resamples=20, **options)


def assert_same(found: Score, expected: Score) -> None:
    """To the last bit: NaN is nowhere."""
    for field in ("figures", "verdicts", "count", "ids", "columns", "notes", "details", "measured", "metrics", "exact"):
        assert getattr(found, field) == getattr(expected, field), field
    assert torch.equal(found.norms, expected.norms)
    assert torch.equal(found.conformities, expected.conformities)


@pytest.mark.parametrize("groups", [None, torch.arange(N) // 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_figures_are_those_of_the_score_to_the_last_bit(groups, dtype, reference, generator, tmp_path):
    rows = ellipsoid_rows(N, DIM, generator, offset=1.1).to(dtype) * 1.1
    one = score(source(rows, groups=groups), reference, metrics=["all"], resamples=20)
    assert_same(again(one, tmp_path), one)


def test_differences_are_those_of_scores_to_the_last_bit(reference, generator, tmp_path):
    rows = [ellipsoid_rows(N, DIM, generator, offset=x) for x in (1.1, 1.0)]
    metrics = ["cosine_mmd", "cmmd", "vendi", "frechet"]
    fresh = {
        name: score(source(one), reference, metrics=metrics, resamples=20) for name, one in zip("ab", rows, strict=True)
    }
    expected = compare(fresh, reference)
    assert expected.difference("a", "b", "frechet").interval is not None
    found = compare({"a": again(fresh["a"], tmp_path), "b": fresh["b"]}, reference)
    assert found.differences == expected.differences
    assert found.to_dict() == expected.to_dict()


def test_a_score_beyond_the_row_sample_is_kept_whole(generator, tmp_path):
    rows = ellipsoid_rows(10_700, DIM, generator)
    reference = cc.ReferenceSet.fit(ellipsoid_rows(500, DIM, generator), max_samples=300)
    one = score(source(rows, 4096, ids=[str(n) for n in range(len(rows))]), reference, resamples=20)
    assert not one.exact
    found = again(one, tmp_path)
    assert_same(found, one)
    assert len(found.contrast.sketch.keys) == 10_000


def test_pairs_keep_their_clip_scores_and_differ_in_them(generator, tmp_path):
    reference = cc.ReferenceSet.fit(ellipsoid_rows(200, DIM, generator), modality="text")
    images, others = ellipsoid_rows(60, DIM, generator), [ellipsoid_rows(60, DIM, generator, x) for x in (1.0, 1.3)]
    names, scores = [f"{n}.png" for n in range(60)], {}
    for name, rows in zip("ab", others, strict=True):
        reported = {
            "ids": [str(n) for n in range(60)],
            "groups": torch.arange(60),
            "provenance": Provenance("e", None, "text"),
        }
        sides = source(images, ids=names, provenance=Provenance("e", None, "image")), source(rows, **reported)
        pairs = paired_source(*sides, scored="text", references=source(rows + 0.1, **reported))
        scores[name] = score(pairs, reference, resamples=20)
    found = {name: again(one, tmp_path) for name, one in scores.items()}
    assert_same(found["a"], scores["a"])
    for figure in ("clip_score", "ref_clip_score"):
        reported = compare(found, reference).difference("a", "b", figure)
        assert reported == compare(scores, reference).difference("a", "b", figure)
        columns = [torch.tensor(scores[name].columns[figure], dtype=torch.float64) for name in "ab"]
        each = columns[0] - columns[1]
        assert reported.value == pytest.approx(float(each.mean()), rel=1e-9)
        sums = float(each.std() / 60**0.5)  # paired by image; a jackknife of 60 images dealt to buckets
        assert (reported.interval.high - reported.interval.low) / 4 == pytest.approx(sums, rel=0.2)


def test_normalised_rows_and_one_group_are_kept_too(generator, tmp_path):
    rows = torch.nn.functional.normalize(ellipsoid_rows(N, DIM, generator), dim=1)
    reference = cc.ReferenceSet.fit(rows, allow_normalized=True)
    other = torch.nn.functional.normalize(ellipsoid_rows(N, DIM, generator), dim=1)
    one = score(source(other, groups=torch.zeros(N, dtype=torch.int64)), reference, resamples=20)
    assert one.figures["typicality_shift"].interval is None
    assert_same(again(one, tmp_path), one)


def test_classes_and_margins_are_those_of_the_reading(reference, generator, tmp_path):
    rows = ellipsoid_rows(N, DIM, generator)
    by, margins = {name: "ab"[n % 2] for n, name in enumerate(IDS)}, {"variety": 0.3}
    one, expected = (score(source(rows), reference, resamples=20, **x) for x in ({}, {"by": by, "margins": margins}))
    found = again(one, tmp_path, by=by, margins=margins)
    assert found.by == expected.by
    assert found.verdicts == expected.verdicts


def test_another_reference_is_refused_with_both_named(reference, generator, tmp_path):
    one = score(source(ellipsoid_rows(N, DIM, generator)), reference, resamples=20)
    one.save(tmp_path / "s.safetensors")
    other = cc.ReferenceSet.fit(ellipsoid_rows(200, DIM, generator), dataset="others")
    mine, theirs = (reference_identity(x)[:12] for x in (reference, other))
    with pytest.raises(ValueError, match=rf"'{mine}' \('rows', 300 samples\).*'{theirs}' \('others', 200 samples\)"):
        Score.load(tmp_path / "s.safetensors", other)


def test_a_reference_and_its_saved_copy_are_one(reference, generator, tmp_path):
    one = score(source(ellipsoid_rows(N, DIM, generator)), reference, resamples=20)
    one.save(tmp_path / "s.safetensors")
    reference.save(tmp_path / "r.safetensors")
    copy = cc.ReferenceSet.load(tmp_path / "r.safetensors")
    assert reference_identity(copy) == reference_identity(reference)
    assert Score.load(tmp_path / "s.safetensors", copy, resamples=20).figures == one.figures
    moved = cc.ReferenceSet.fit(reference.sample.rows * 1.0001, groups=reference.sample.groups)
    assert reference_identity(moved) != reference_identity(reference)


def test_another_encoder_than_the_references_is_refused(generator, tmp_path):
    rows = ellipsoid_rows(N, DIM, generator)
    plain = cc.ReferenceSet.fit(rows + 0.1)
    score(source(rows), plain, resamples=20).save(tmp_path / "s.safetensors")
    reported = cc.ReferenceSet(
        plain.moments, Provenance("hf:other/model", {"weights": "9", "preprocessing": "2"}, "image")
    )
    with pytest.raises(ValueError, match="weights of the encoder"):
        Score.load(tmp_path / "s.safetensors", reported)


@pytest.mark.parametrize(
    ("metric", "lacks"), [("frechet", "second moments of the rows"), ("vendi", "second moments of the unit vectors")]
)
def test_a_metric_says_what_the_saved_state_lacks(metric, lacks, reference, generator, tmp_path):
    one = score(source(ellipsoid_rows(N, DIM, generator)), reference, resamples=20)
    with pytest.raises(ValueError, match=rf"metric '{metric}' needs {lacks}, which this saved score lacks; score the"):
        again(one, tmp_path, metrics=[metric])
    with pytest.raises(ValueError, match="'clip_score' needs images and captions together"):
        again(one, tmp_path, metrics=["clip_score"])
    assert "nearest_cosine" in again(one, tmp_path, metrics=["nearest", "prdc"]).figures


def test_nothing_in_the_file_says_where_things_lie(reference, generator, tmp_path):
    rows = ellipsoid_rows(N, DIM, generator)
    write_embeddings(tmp_path / "e.safetensors", rows, provenance=Provenance(f"hf:{tmp_path}/model", None, "image"))
    given = embedding_source([tmp_path / "e.safetensors"])
    given.skipped.append({"id": "a.png", "reason": f"{tmp_path}/a.png: cannot be read"})
    one = score(given, reference, metrics=["nearest"], resamples=20)
    found = again(one, tmp_path)
    content = (tmp_path / "s.safetensors").read_bytes()
    assert b"model" in content
    assert str(tmp_path).encode() not in content
    assert found.remarks == {"skipped": {"count": 1}}


def test_the_file_says_what_it_is_and_keeps_no_pickle(reference, generator, tmp_path):
    score(source(ellipsoid_rows(N, DIM, generator)), reference, resamples=20).save(tmp_path / "s.safetensors")
    with safe_open(tmp_path / "s.safetensors", framework="pt") as file:
        about = file.metadata()
    assert about["format"] == "clipconformity-score"
    assert (about["format_version"], about["library_version"]) == ("2", cc.__version__)
    with pytest.raises(ValueError, match=r"expected a name that ends in \.safetensors"):
        score(source(ellipsoid_rows(N, DIM, generator)), reference, resamples=20).save(tmp_path / "s.pt")


def test_a_score_without_its_samples_cannot_be_saved(reference, generator, tmp_path):
    one = score(source(ellipsoid_rows(N, DIM, generator)), reference, resamples=20)
    with pytest.raises(ValueError, match=r"expected a Score that score\(\) gave"):
        dataclasses.replace(one, stream=None).save(tmp_path / "s.safetensors")
