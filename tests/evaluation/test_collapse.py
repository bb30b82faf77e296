"""A generator that gives one output has a score, which says so."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import ellipsoid_rows

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.data import write_embeddings

pytestmark = pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
COUNT = 100
EQUAL = f"all {COUNT} samples are equal, so there is no variety."


@pytest.fixture
def folder(tmp_path, generator):
    rows = ellipsoid_rows(400, 16, generator)
    cc.ReferenceSet.fit(rows[:300]).save(tmp_path / "reference.safetensors")
    same = rows[300:301].repeat(COUNT, 1)
    write_embeddings(tmp_path / "named.safetensors", same, ids=[f"{row}.png" for row in range(COUNT)])
    torch.save(same, tmp_path / "unnamed.pt")
    write_embeddings(tmp_path / "varied.safetensors", rows[300:])
    return tmp_path


def run(folder, *arguments):
    words = [word.replace("DIR", str(folder)) for word in arguments]
    return main([*words, "--reference", str(folder / "reference.safetensors"), "--resamples", "50"])


def test_named_samples_that_are_all_equal_are_surely_less_varied(folder, capsys):
    assert run(folder, "score", "--embeddings", "DIR/named.safetensors") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verdict"]["varied"] == "less varied than the reference"
    assert result["variety_ratio"] < 1e-6
    assert EQUAL in result["notes"]


def test_unnamed_ones_count_as_one_and_the_verdict_says_why(folder, capsys):
    assert run(folder, "score", "--embeddings", "DIR/unnamed.pt", "--report", "DIR/report.html") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verdict"]["varied"] == (
        "variety: cannot tell from the reference's since nearly all samples are equal, and equal rows without ids "
        "count as one"
    )
    assert EQUAL in result["notes"]
    assert EQUAL[1:] in (folder / "report.html").read_text()


def test_a_comparison_says_why_nothing_is_known(folder, capsys):
    assert run(folder, "compare", "one=DIR/unnamed.pt", "other=DIR/varied.safetensors") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "one, other: nothing is known of how varied they are" in lines
    assert "one: nearly all samples are equal, and equal rows without ids count as one" in lines
    assert run(folder, "compare", "one=DIR/named.safetensors", "other=DIR/varied.safetensors") == 0
    told = capsys.readouterr().out
    assert "one is less varied than other" in told
    assert "count as one" not in told


def test_every_metric_has_a_score_of_equal_samples(folder, capsys):
    assert run(folder, "score", "--embeddings", "DIR/named.safetensors", "--metrics", "all") == 0
    result = json.loads(capsys.readouterr().out)
    assert "equal samples have no ellipsoid, so its figures are left out." in result["notes"]
    assert result["participation_ratio"] is None
    assert result["vendi"] == pytest.approx(1, abs=1e-3)
    assert result["repeated_share"] == 1
    metric = cc.EllipsoidGeometry(embed_dim=2)  # has nothing else to say
    metric.update(torch.ones(9, 2))
    with pytest.raises(ValueError, match="expected samples that differ"):
        metric.compute()


def test_samples_that_differ_are_told_no_such_thing(folder, capsys):
    assert run(folder, "score", "--embeddings", "DIR/varied.safetensors", "--metrics", "all") == 0
    assert "equal" not in " ".join(json.loads(capsys.readouterr().out)["notes"])
