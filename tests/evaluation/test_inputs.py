"""What is given in the wrong form is told with the right one."""

from __future__ import annotations

import csv
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.evaluation import build_reference, embedding_source, image_source, score, write_per_sample

ROWS = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) + 1


@pytest.fixture(scope="module")
def reference():
    return cc.ReferenceSet.fit(ROWS)


@pytest.mark.parametrize("paths", ["e.npy", "folder"])
def test_a_path_where_a_list_is_meant_is_not_taken_letter_by_letter(paths):
    with pytest.raises(TypeError, match=f"expected a list of files, got '{paths}'"):
        embedding_source(paths)
    with pytest.raises(TypeError, match=f"expected a list of files, got '{paths}'"):
        image_source(paths, cc.load_encoder("tiny", "cpu"))


def test_rows_where_a_source_is_meant_are_told_how_to_make_one(reference):
    for call in (lambda: score(cast(Any, ROWS), reference), lambda: build_reference(cast(Any, "folder"))):
        with pytest.raises(TypeError, match=r"source: expected a Source, got .*embedding_source"):
            call()


def test_a_spec_of_another_type_is_told():
    with pytest.raises(TypeError, match="spec: expected an encoder or its spec in words, got int"):
        cc.ReferenceSet.fit(ROWS, spec=cast(Any, 3))
    with pytest.raises(ValueError, match="encoder '' is unknown"):
        cc.load_encoder("")


def test_a_metric_takes_the_name_of_an_encoder(reference):
    metric = cc.Conformity(reference, encoder="tiny")
    metric.update(["a circle", "a square"])


RUN = ["=cmd|' /C calc'!A0", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1"]
KEPT = ["cat.png", "-3", "+4.5", "a=b", "000000000139", "'quoted'"]


def test_no_id_of_a_csv_is_run_by_a_spreadsheet(tmp_path):
    ids = RUN + KEPT
    values = torch.arange(float(len(ids))).flip(0)
    result = SimpleNamespace(ids=ids, conformities=values, norms=values + 1, columns={"name": ids})
    write_per_sample(tmp_path / "s.csv", cast(Any, result))
    with (tmp_path / "s.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for column in ("id", "name"):
        assert [row[column] for row in rows] == [f"'{name}" for name in RUN] + KEPT


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["score", "--refrence", "r", "--embeddings", "e.npy"], "--reference"),
        (["score", "--refrence=r", "--embeddings", "e.npy"], "--reference"),
        (["embed", "--image", "folder", "-o", "e.safetensors"], "--images"),
        (["geometry", "--image-embedings", "e.npy"], "--image-embeddings"),
        (["--versoin"], "--version"),
    ],
)
def test_an_option_misspelt_is_told_with_the_one_meant(arguments, near, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert f"did you mean {near}?" in error
