"""The nearest rows in whole files of a training set."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from helpers import double, unit

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.data import write_embeddings
from clipconformity.evaluation import embedding_source, score
from clipconformity.functional.resampling import share_interval
from clipconformity.provenance import Provenance
from clipconformity.stream.readouts.against import NearestElsewhere


@pytest.fixture
def folder(generator, tmp_path):
    """150 samples of which 9 are in the second of two files, one of them in both."""
    sets = {name: torch.randn(size, 24, generator=generator) + 0.4
            for name, size in (("e", 150), ("first", 5000), ("second", 400), ("r", 200))}  # fmt: skip
    sets["second"][40:49] = 1.2 * sets["e"][10:19]
    sets["first"][4500] = sets["e"][10]
    for name, rows in sets.items():
        write_embeddings(tmp_path / f"{name}.safetensors", rows, ids=[f"{name} {n}" for n in range(len(rows))])
    cc.ReferenceSet.fit(sets["r"], modality="image").save(tmp_path / "reference.safetensors")
    return tmp_path, sets


def command(folder, *against, more=()):
    files = [str(folder / f"{name}.safetensors") for name in against]
    given = ["--embeddings", str(folder / "e.safetensors"), "--reference", str(folder / "reference.safetensors")]
    return main(["score", *given, "--against", *files, "--resamples", "20", *more])


def test_the_nearest_of_all_files_are_found_whatever_their_order(folder, capsys):
    root, sets = folder
    cosine = np.concatenate([unit(double(sets["e"])) @ unit(double(sets[name])).T for name in ("first", "second")], 1)
    names = [f"{name} {n}" for name in ("first", "second") for n in range(len(sets[name]))]
    for order in (("first", "second"), ("second", "first")):
        assert command(root, *order, more=["--per-sample", str(root / "s.csv"), "--overwrite"]) == 0
        reported = json.loads(capsys.readouterr().out)
        assert reported["training_nearest_cosine"] == pytest.approx(cosine.max(1).mean(), abs=1e-6)
        error = cosine.max(1).std(ddof=1) / math.sqrt(150)
        assert reported["training_nearest_se"] == pytest.approx(error, rel=0.1)
        assert reported["training_copied_share"] == 9 / 150
        low, high = reported["training_copied_share_low"], reported["training_copied_share_high"]
        assert (low, high) == pytest.approx(tuple(share_interval(9, 150)), abs=0.01)
        found = reported["details"]["against"]
        assert (found["looked_at"], found["count"]) == (5400, 9)
        assert {one["id"] for one in found["copied"]} == {f"e {n}" for n in range(10, 19)}
        rows = {row["id"]: row for row in csv.DictReader((root / "s.csv").read_text().splitlines())}
        for n in (0, 12, 149):
            assert rows[f"e {n}"]["training_id"] == names[cosine[n].argmax()]
            assert float(rows[f"e {n}"]["training_cosine"]) == pytest.approx(cosine[n].max(), abs=1e-6)


def test_a_share_of_nothing_is_known_by_the_number_of_samples(generator):
    rows = torch.randn(90, 24, generator=generator)
    nearest = NearestElsewhere(rows, torch.arange(90))
    for name, others in (("first", torch.randn(30, 24, generator=generator)), ("second", 0.9 * rows[:1] - rows[5:6])):
        nearest.update(others, [f"{name} {n}" for n in range(len(others))])
    found = nearest.read()
    assert float(found["training_copied_share_high"]) == pytest.approx(1 - 0.025 ** (1 / 90))
    assert float(found["training_nearest_se"]) == pytest.approx(float(nearest.cosine.std()) / 90**0.5)
    assert 0 < sum(name.startswith("first") for name in nearest.names) < 90


def test_a_share_can_be_required(folder, capsys):
    root, _ = folder
    assert command(root, "first", more=["--require", "training_copied_share<=0.1"]) == 0
    assert command(root, "second", more=["--require", "training_copied_share<=0.05"]) == 3
    assert "training_copied_share<=0.05 does not hold" in capsys.readouterr().err


def test_what_does_not_fit_is_refused_in_one_line(folder, capsys, generator):
    root, sets = folder
    write_embeddings(root / "text.safetensors", sets["second"], provenance=Provenance(modality="text"))
    write_embeddings(root / "narrow.safetensors", sets["second"][:, :5])
    for names, words in {
        ("text",): "modality: the options and the files disagree",
        ("narrow",): "against has dimension 5 and the samples has dimension 24",
        ("first", "first"): "are the same file",
        ("nowhere",): "no such file",
    }.items():
        more = ["--modality", "image"] if names == ("text",) else []
        assert command(root, *names, more=more) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert words in error
    with pytest.raises(ValueError, match="against: expected a source at least, got none"):
        score(
            embedding_source([root / "e.safetensors"]), cc.ReferenceSet.fit(sets["r"]), resamples=20, against=iter(())
        )
