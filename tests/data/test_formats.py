"""A format of embedding files is one row."""

from __future__ import annotations

import json

import pytest
import torch

import clipconformity.data
from clipconformity.cli import main
from clipconformity.data import read_embeddings
from clipconformity.data.formats import KEY, READERS


def from_csv(path):
    rows = [[float(x) for x in line.split(",")] for line in path.read_text().splitlines()]
    return {KEY: torch.tensor(rows)}, {"ids": [f"line {number}" for number in range(len(rows))], "modality": "text"}


@pytest.fixture
def csv(monkeypatch, tmp_path):
    monkeypatch.setitem(READERS, ".csv", from_csv)
    path = tmp_path / "rows.csv"
    path.write_text("1,2\n3,4\n5,7\n")
    return path


def test_a_row_is_enough_to_read_a_format(csv):
    found = read_embeddings(csv)
    assert found.embeddings.tolist() == [[1, 2], [3, 4], [5, 7]]
    assert found.ids == ["line 0", "line 1", "line 2"]
    assert found.provenance.modality == "text"


def test_a_row_is_enough_for_the_commands(csv, tmp_path, capsys):
    assert main(["reference", "--embeddings", str(csv), "-o", str(tmp_path / "r.safetensors")]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 3


@pytest.mark.parametrize("command", ["reference", "score"])
def test_a_row_is_enough_to_be_in_the_help(command, csv, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "raw embeddings: .safetensors, .npy, .npz, .pt, .parquet, .csv" in " ".join(capsys.readouterr().out.split())


def test_a_row_is_enough_to_be_named_in_the_error(csv, tmp_path):
    (tmp_path / "rows.txt").touch()
    with pytest.raises(ValueError, match=r"ending in \.safetensors, \.npy, \.npz, \.pt, \.parquet, \.csv\."):
        read_embeddings(tmp_path / "rows.txt")


def test_every_public_name_of_the_folder_is_there():
    assert all(callable(getattr(clipconformity.data, name)) for name in clipconformity.data.__all__)
    with pytest.raises(AttributeError, match="no attribute 'read_embedings'"):
        _ = clipconformity.data.read_embedings
