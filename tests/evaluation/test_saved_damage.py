"""A saved score that breaks one of its invariants is refused, with the file and the field."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import ellipsoid_rows
from safetensors.torch import load_file
from state_files import of, put, rewrite

import clipconformity as cc
from clipconformity.evaluation import Score, paired_source, score
from clipconformity.evaluation.sources import Source, SourceBatch
from clipconformity.provenance import Provenance

N, DIM = 60, 6
pytestmark = pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")


@pytest.fixture(scope="module")
def reference() -> cc.ReferenceSet:
    return cc.ReferenceSet.fit(ellipsoid_rows(200, DIM, torch.Generator().manual_seed(1)), modality="image")


@pytest.fixture(scope="module")
def whole(reference, tmp_path_factory) -> Path:
    """A score of images with captions."""
    generator = torch.Generator().manual_seed(2)
    ids = [f"{n}.png" for n in range(N)]
    sides = [
        Source(iter([SourceBatch(ellipsoid_rows(N, DIM, generator), ids)]), N, Provenance("e", None, kind))
        for kind in ("image", "text")
    ]
    path = tmp_path_factory.mktemp("saved") / "s.safetensors"
    one = score(paired_source(*sides, scored="image"), reference, metrics=["nearest"], resamples=5)
    one.save(path)
    return path


@pytest.fixture
def saved(whole, tmp_path) -> Path:
    (tmp_path / "s.safetensors").write_bytes(whole.read_bytes())
    return tmp_path / "s.safetensors"


def load(path, reference) -> Score:
    return Score.load(path, reference, resamples=5)


def assert_refused(path, reference, message) -> None:
    with pytest.raises(ValueError, match=r"s\.safetensors: damaged: ") as raised:
        load(path, reference)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


FIELDS = {
    "count of one": ({"count": 1}, "count is 1"),
    "another count": ({"count": N - 1}, "ids are not one string for each of 59 samples"),
    "another dimension": ({"embed_dim": DIM + 1}, "embed_dim is 7, and the reference's 6"),
    "metrics of a word": ({"metrics": "nearest"}, "metrics is 'nearest'"),
    "metrics of numbers": ({"metrics": [3]}, "metrics or columns are not names"),
    "a column that is not there": ({"columns": ["nearest_id", "more"]}, "expected the tensors"),
    "pairs that are not there": ({"with_references": True}, "expected the tensors"),
    "pairs that are not told": ({"paired": False}, "expected the tensors"),
    "a moment that is not there": ({"second_moment": True}, "expected the tensors"),
    "skipped below none": ({"skipped": -1}, "skipped or truncated is below 0"),
    "truncated of a word": ({"truncated": "no"}, "truncated is 'no'"),
    "reference of a word": ({"reference": "r"}, "reference is 'r'"),
    "another modality": ({"modality": "audio"}, "modality is 'audio'"),
    "normalized of a number": ({"normalized": 0}, "normalized is 0"),
    "grouped": ({"grouped": True}, "grouped is 0 of 60 rows, and said to be True"),
    "a field too many": ({"more": 1}, "expected the fields columns, count"),
    "too deep": ("[" * 100_000, "metadata cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FIELDS)
def test_a_damaged_field_is_named_with_the_file(kind, saved, reference):
    fields, message = FIELDS[kind]
    rewrite(saved, score=fields)
    assert_refused(saved, reference, message)


WORDS = {
    "too few ids": ({"ids": '["a"]'}, "ids are not one string for each of 60 samples"),
    "ids of numbers": ({"ids": str(list(range(N)))}, "ids are not one string"),
    "ids of others": ({"ids": str([f"x{n}" for n in range(N)]).replace("'", '"')}, "sample_ids are of other ids"),
    "words of a list": ({"words": "[]"}, "words are not columns"),
    "words of no column": ({"words": '{"more": []}'}, "words are not columns"),
    "too few words": ({"words": {"nearest_id": ["a"]}}, "words are not one string for each of 60 samples"),
    "no words": ({"words": "{}"}, "expected the tensors"),
}


@pytest.mark.parametrize("kind", WORDS)
def test_damaged_names_are_named_with_the_file(kind, saved, reference):
    entries, message = WORDS[kind]
    rewrite(saved, **entries)
    assert_refused(saved, reference, message)


TENSORS = {
    "a flipped count": (of("count", put(5, 30.0)), "count: the buckets hold"),
    "a zero row": (of("sample_rows", put(7, 0.0)), "sample_rows hold a zero row"),
    "keys out of order": (of("sample_keys", lambda t: t.flip(0)), "sample_keys do not rise"),
    "norms of float32": (of("norms", lambda t: t.float()), "norms is of torch.float32"),
    "an infinite norm": (of("norms", put(3, float("inf"))), "norms is not a finite tensor"),
    "another norm": (of("norms", put(3, 99.0)), "norms do not fit their sum by buckets"),
    "another conformity": (of("conformities", put(3, 0.0)), "conformities do not fit their sum by buckets"),
    "conformities too few": (of("conformities", lambda t: t[1:].clone()), "conformities is not a finite tensor"),
    "a conformity beyond 1": (of("conformity_sum", put(0, 99.0)), "conformity_sum is of conformities outside"),
    "a square too small": (
        of("conformity_square_sum", lambda t: 0.1 * t),
        "conformity_sum does not fit conformity_square_sum",
    ),
    "other cells": (of("conformity_counts", lambda t: t + 1), "conformity_counts do not fit count"),
    "cells below none": (
        of("conformity_counts", lambda t: t + torch.eye(len(t), t.shape[1]) - torch.eye(len(t), t.shape[1]).roll(1, 1)),
        "conformity_counts do not fit count",
    ),
    "norms of other rows": (of("sample_values", put(2, 0, 99.0)), "sample_values do not fit the norms of sample_rows"),
    "conformities of other rows": (
        of("sample_values", put(2, 1, 0.1)),
        "sample_values do not fit the conformities of sample_rows to the reference",
    ),
    "ids of others": (of("sample_ids", put(2, 7)), "sample_ids are of other ids"),
    "pairs too many": (of("clip_pair_count", put(2, 70.0)), "clip_pair_count is not of 60 pairs"),
    "a bad pair": (of("clip_pair_bad", lambda t: t + 1), "clip_pair_count is not of 60 pairs"),
    "scores beyond all": (of("clip_pair_score_sum", lambda t: 4 * t), "is of scores outside of 0 to 100"),
    "scores below none": (of("clip_pair_score_sum", lambda t: -t), "is of scores outside of 0 to 100"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_damaged_tensor_is_named_with_the_file(kind, saved, reference):
    damage, message = TENSORS[kind]
    rewrite(saved, damage(load_file(saved)))
    assert_refused(saved, reference, message)


def test_a_column_may_hold_what_is_no_number(saved, reference):
    rewrite(saved, of("column nearest_cosine", put(0, float("nan")))(load_file(saved)))
    assert load(saved, reference).columns["nearest_cosine"][0] != load(saved, reference).columns["nearest_cosine"][0]


def test_bytes_that_changed_are_told_by_the_checksum(saved, reference):
    content = saved.read_bytes()
    assert load(saved, reference).count == N
    for place in (len(content) - 1, len(content) // 2, len(content) // 3):
        saved.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(
            ValueError, match="damaged: its checksum does not fit its content; copy it again, or save it"
        ):
            load(saved, reference)
    saved.write_bytes(content[:-30])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load(saved, reference)


def test_other_formats_and_other_files_are_refused(saved, reference, tmp_path):
    rewrite(saved, format_version="1")
    with pytest.raises(ValueError, match="saved score of format '1', this version reads 2; score the samples again"):
        load(saved, reference)
    rewrite(saved, format_version="3")
    with pytest.raises(ValueError, match="saved score of format '3', this version reads 2; use a newer clipconformity"):
        load(saved, reference)
    reference.save(tmp_path / "r.safetensors")
    with pytest.raises(ValueError, match="not a saved score, but a reference set; give it as `--reference FILE`"):
        load(tmp_path / "r.safetensors", reference)
    with pytest.raises(FileNotFoundError, match="no such saved score; make one with `clipconformity score --save`"):
        load(tmp_path / "none.safetensors", reference)
    with pytest.raises(ValueError, match="not a reference set, but a saved score; give it to `clipconformity compare`"):
        cc.ReferenceSet.load(saved)
