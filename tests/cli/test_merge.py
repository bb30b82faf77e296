"""Joining files as somebody does who tries it for the first time, with what goes wrong then."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from clipconformity import ReferenceSet
from clipconformity.cli import main
from clipconformity.data import read_embeddings, write_embeddings

pytestmark = pytest.mark.filterwarnings("always")  # as the commands show them
ROWS = (np.random.default_rng(0).normal(size=(600, 6)) + 1).astype("f4")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Embeddings, references and saved scores of three parts, one of which shares rows with another."""
    monkeypatch.chdir(tmp_path)
    for name, rows in {"a": ROWS[:200], "b": ROWS[200:400], "c": ROWS[100:200], "r": ROWS[400:]}.items():
        np.save(f"{name}.npy", rows)
        assert run("reference", "--embeddings", f"{name}.npy", "-o", f"{name}-reference.safetensors") == 0
    write_embeddings("e-embeddings.safetensors", torch.from_numpy(ROWS[:200]))
    for name in "ab":
        scored = ("score", "--embeddings", f"{name}.npy", "--reference", "r-reference.safetensors")
        assert run(*scored, "--resamples", "5", "--save", f"{name}-score.safetensors") == 0
    (tmp_path / "parts").mkdir()
    return tmp_path


def run(*arguments: str) -> int:
    return main([*arguments, "--quiet"])


REFUSED = {
    "one file": (["a-reference.safetensors"], "merge: expected at least two files, got a-reference.safetensors alone"),
    "a folder": (["parts"], "merge: parts is a folder; name its files, such as parts/*.safetensors"),
    "a quoted pattern": (
        ["*-reference.safetensors"],
        "no file is called *-reference.safetensors; a pattern goes without",
    ),
    "two kinds": (
        ["a-reference.safetensors", "b-score.safetensors"],
        "merge: a-reference.safetensors is a reference set and b-score.safetensors is a saved score; join files of one",
    ),
    "a reference and rows": (
        ["a.npy", "b-reference.safetensors"],
        "merge: a.npy is a file of embeddings and b-reference.safetensors is a reference set; join files of one kind",
    ),
    "scores without their reference": (
        ["a-score.safetensors", "b-score.safetensors"],
        "--reference: give the reference that the saved scores were scored against",
    ),
    "the whole and a part": (
        ["a-reference.safetensors", "ab-reference.safetensors"],
        "cannot merge references: a-reference.safetensors is in ab-reference.safetensors already",
    ),
    "a copy": (["a-reference.safetensors", "copy-reference.safetensors"], "is in both: its samples would count twice"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_told_with_what_to_do(case, folder, capsys):
    assert run("merge", "a-reference.safetensors", "b-reference.safetensors", "-o", "ab-reference.safetensors") == 0
    shutil.copy("a-reference.safetensors", "copy-reference.safetensors")
    files, message = REFUSED[case]
    capsys.readouterr()
    assert run("merge", *files, "-o", "new-reference.safetensors") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not (folder / "new-reference.safetensors").exists()


@pytest.mark.parametrize(
    ("saved", "message"),
    [("parts", "--saved: parts is a folder; name its files"), ("*-score.safetensors", "--saved: no file is called")],
)
def test_saved_scores_are_named_one_by_one(saved, message, folder, capsys):
    assert run("score", "--saved", saved, "--reference", "r-reference.safetensors") == 2
    assert message in capsys.readouterr().err


def test_embeddings_of_any_kind_are_joined(folder, capsys):
    np.save("g.npy", ROWS[400:])
    assert run("merge", "a.npy", "b.npy", "-o", "two-embeddings.safetensors") == 0
    np.testing.assert_array_equal(read_embeddings("two-embeddings.safetensors").embeddings, ROWS[:400])
    assert run("merge", "e-embeddings.safetensors", "b.npy", "-o", "mixed-embeddings.safetensors") == 0
    np.testing.assert_array_equal(read_embeddings("mixed-embeddings.safetensors").embeddings, ROWS[:400])


@pytest.mark.parametrize("option", ["--embeddings", "--saved"])
def test_an_option_that_comes_twice_adds_its_files(option, folder, capsys):
    ends = ["-score.safetensors"] * 2 if option == "--saved" else [".npy"] * 2
    files = [f"{name}{end}" for name, end in zip("ab", ends, strict=True)]
    rest = ["--reference", "r-reference.safetensors", "--resamples", "5"]
    found = []
    for given in ([option, *files], [option, files[0], option, files[1]]):
        capsys.readouterr()
        assert run("score", *given, *rest) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["count"] == 400
    assert {**found[1], "measured": None} == {**found[0], "measured": None}


def test_rows_that_two_references_share_are_told_of(folder, capsys):
    merged = ["merge", "a-reference.safetensors", "c-reference.safetensors", "-o", "ac-reference.safetensors"]
    assert main(merged) == 0
    told = "100 of 100 rows of one reference are also in the other, and count twice"
    assert told in capsys.readouterr().err
    assert ReferenceSet.load("ac-reference.safetensors").count == 300
    assert main(["merge", "a-reference.safetensors", "b-reference.safetensors", "-o", "ab-reference.safetensors"]) == 0
    assert "count twice" not in capsys.readouterr().err


def test_sets_that_repeat_themselves_may_share_rows(folder, capsys):
    """Captions from a few templates: a row in both is no mistake."""
    for seed in (0, 1):
        drawn = np.random.default_rng(seed).integers(0, 30, 200)
        np.save("t.npy", ROWS[drawn])
        assert run("reference", "--embeddings", "t.npy", "-o", f"t{seed}-reference.safetensors") == 0
    assert main(["merge", "t0-reference.safetensors", "t1-reference.safetensors", "-o", "t-reference.safetensors"]) == 0
    assert "count twice" not in capsys.readouterr().err


def test_rows_that_are_no_reference_are_not_called_damaged(folder, capsys):
    assert run("score", "--embeddings", "a.npy", "--reference", "b.npy") == 2
    error = capsys.readouterr().err
    assert "b.npy: not a reference set; build one with `clipconformity reference`" in error
    assert "damaged" not in error
