"""The curve over the number of samples: what a score would have been with fewer."""

from __future__ import annotations

import csv
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ellipsoid_rows

from clipconformity import ReferenceSet
from clipconformity.cli import main
from clipconformity.evaluation import decided_at, embedding_source, sample_size_curve, score, write_curve
from clipconformity.evaluation.pairs import paired_source
from clipconformity.evaluation.sample_size import SizePoint
from clipconformity.evaluation.sources import Source, SourceBatch
from clipconformity.provenance import Provenance
from clipconformity.stream.row_sample import Sample

DIM = 6
COUNT = 700


def scored(folder, rows, reference, metrics=("cosine_mmd", "vendi"), groups=None):
    arrays = {"embeddings": rows.numpy()} | ({} if groups is None else {"groups": groups.numpy()})
    np.savez(folder / "rows.npz", **arrays)
    return score(embedding_source([folder / "rows.npz"]), reference, resamples=50, metrics=metrics)


@pytest.fixture
def reference(generator) -> ReferenceSet:
    return ReferenceSet.fit(ellipsoid_rows(2000, DIM, generator))


@pytest.fixture
def result(tmp_path, generator, reference):
    return scored(tmp_path, ellipsoid_rows(COUNT, DIM, generator, offset=1.3), reference)


def test_the_sizes_grow_to_the_score_itself(result):
    curve = sample_size_curve(result, resamples=20)
    assert [point.size for point in curve] == [20, 50, 100, 200, 500, COUNT]
    assert (curve[-1].figures, curve[-1].verdicts) == (result.figures, result.verdicts)
    for point in curve:
        assert set(point.figures) == set(result.figures)
        assert set(point.verdicts) == {"typicality", "variety"}


def test_a_point_is_the_score_of_so_many_of_the_samples(result, reference, tmp_path):
    point = sample_size_curve(result, [100], resamples=50)[0]
    rows = result.contrast.sample.rows[:100]
    expected = scored(tmp_path, rows, reference)
    for name, figure in expected.figures.items():
        assert point.figures[name].value == pytest.approx(figure.value, rel=1e-6, abs=1e-9), name
        ends = [one.interval or () for one in (point.figures[name], figure)]
        assert ends[0] == pytest.approx(ends[1], rel=1e-6, abs=1e-9), name
    assert [one.outcome for one in point.verdicts.values()] == [one.outcome for one in expected.verdicts.values()]


def test_points_have_the_margins_of_the_score_and_no_more_rows_than_are_kept(result):
    verdicts = {name: one._replace(margin=0.77) for name, one in result.verdicts.items()}
    few = SimpleNamespace(
        evaluated=result.contrast.evaluated, sample=Sample.keep_smallest([result.contrast.sample], 150)
    )
    held = SimpleNamespace(contrast=lambda name: few)
    curve = sample_size_curve(dataclasses.replace(result, verdicts=verdicts, stream=held), [100, 200], resamples=20)
    assert [point.size for point in curve] == [100, COUNT]
    assert {one.margin for one in curve[0].verdicts.values()} == {0.77}


def test_samples_with_partners_have_every_point_but_for_their_clip_score(reference, generator):
    """Which the row sample, that the points are taken from, does not hold."""
    ids = [f"{n}.png" for n in range(120)]
    sides = [
        Source(iter([SourceBatch(ellipsoid_rows(120, DIM, generator), ids)]), 120, Provenance("e", None, kind))
        for kind in ("image", "text")
    ]
    result = score(paired_source(*sides, scored="image"), reference, resamples=20)
    curve = sample_size_curve(result, resamples=20)
    assert [point.size for point in curve] == [20, 50, 100, 120]
    assert set(result.figures) - set(curve[0].figures) == {"clip_score", "clip_score_se"}


def test_groups_stay_groups(tmp_path, generator, reference):
    groups = torch.arange(400) // 4
    own = ellipsoid_rows(100, DIM, generator)
    result = scored(tmp_path, own[groups] + 0.05 * ellipsoid_rows(400, DIM, generator), reference, groups=groups)
    few, all_of_them = sample_size_curve(result, [399], resamples=20)
    widths = [point.figures["typicality_shift"].half_width for point in (few, all_of_them)]
    assert widths[0] == pytest.approx(widths[1], rel=0.05)


def test_intervals_narrow_and_what_grows_with_n_grows(result):
    curve = sample_size_curve(result, [50, 200], resamples=20)
    widths = [point.figures["variety_ratio"].half_width for point in curve]
    assert widths == sorted(widths, reverse=True)
    assert curve[0].figures["vendi"].value < curve[-1].figures["vendi"].value


def test_the_number_at_which_a_verdict_is_decided(result):
    curve = sample_size_curve(result, resamples=20)
    outcomes = [point.verdicts["typicality"].outcome for point in curve]
    assert outcomes[-1] == "more"
    at = decided_at(curve, "typicality")
    place = [point.size for point in curve].index(at)
    assert set(outcomes[place:]) == {"more"}
    assert place == 0 or outcomes[place - 1] != "more"
    undecided = result.verdicts["variety"]._replace(outcome="undecided")
    assert decided_at([curve[-1]._replace(verdicts={"variety": undecided})], "variety") is None
    changing = [
        SizePoint(size, {}, {"variety": undecided._replace(outcome=outcome)})
        for size, outcome in ((20, "less"), (50, "undecided"), (100, "less"), (200, "less"))
    ]
    assert decided_at(changing, "variety") == 100


def test_the_command_writes_it_as_csv(tmp_path, generator, reference):
    np.save(tmp_path / "rows.npy", ellipsoid_rows(300, DIM, generator).numpy())
    reference.save(tmp_path / "r.safetensors")
    names = {name: str(tmp_path / name) for name in ("rows.npy", "r.safetensors", "curve.csv")}
    command = ["score", "--embeddings", names["rows.npy"], "--reference", names["r.safetensors"], "--metrics", "cmmd"]
    assert main([*command, "--curve", names["curve.csv"], "--resamples", "50"]) == 0
    with (tmp_path / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted({int(row["n"]) for row in rows}) == [20, 50, 100, 200, 300]
    assert {row["verdict"] for row in rows if row["figure"] == "variety_ratio"} <= {"same", "more", "less", "undecided"}
    assert all(float(row["low"]) <= float(row["high"]) for row in rows if row["low"])
    assert sum(row["figure"] == "cmmd" for row in rows) == 5
    assert main([*command, "--curve", str(tmp_path / "curve.html")]) == 2


def test_wrong_use_is_refused(result, tmp_path):
    with pytest.raises(ValueError, match="sizes: expected at least 20 samples, got 5"):
        sample_size_curve(result, [5])
    with pytest.raises(ValueError, match=r"expected a Score that score\(\) gave"):
        sample_size_curve(dataclasses.replace(result, stream=None))
    write_curve(tmp_path / "curve.csv", sample_size_curve(result, [50], resamples=20))
    assert (tmp_path / "curve.csv").read_text().startswith("n,figure,value,low,high,verdict")
