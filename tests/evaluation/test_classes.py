"""Scores by class: on real images whose class is known, with many classes of noise, and from files."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from helpers import brute_conformity, brute_self_conformity, ellipsoid_rows
from scipy.stats import false_discovery_control

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.data import read_classes, write_embeddings
from clipconformity.evaluation import Source, SourceBatch, score
from clipconformity.functional.multiplicity import adjust_p_values, shrink_estimates


def scored(rows, ids, reference, by, groups=None):
    parts = torch.arange(len(rows)).split(100)
    batches = [
        SourceBatch(rows[part], [ids[n] for n in part.tolist()], None if groups is None else groups[part])
        for part in parts
    ]
    return score(Source(iter(batches), len(rows)), reference, resamples=20, by=by)


@pytest.fixture(scope="module")
def real(data_dir, images):
    """Halves of the real images; in the first the cars lie nearer to each other."""
    names = (data_dir / "vitb32-images-1803.txt").read_text().split()
    by = {name: name.split("/")[-2] for name in names}
    order = torch.randperm(1803, generator=torch.Generator().manual_seed(0)).tolist()
    mine, theirs = order[:800], order[800:]
    rows = images[mine].clone()
    cars = [n for n, row in enumerate(mine) if by[names[row]] == "cars"]
    rows[cars] = rows[cars].mean(0) + 0.8 * (rows[cars] - rows[cars].mean(0))
    reference = cc.ReferenceSet.fit(images[theirs], ids=[names[n] for n in theirs])
    return rows, [names[n] for n in mine], reference, by


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
def test_the_class_that_lost_variety_stands_first_and_alone(real):
    rows, ids, reference, by = real
    found = scored(rows, ids, reference, by).by
    assert [one.against for one in found.classes] == ["class"] * 7
    first = found.classes[0]
    assert first.name == "cars"
    assert first.variety_p < 1e-6
    assert first.variety_ratio_high < 0.85
    assert all(one.variety_p > 0.01 for one in found.classes[1:])
    order = [one.variety_ratio_shrunken for one in found.classes]
    assert order == sorted(order)
    assert found.without_class == 0


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
def test_each_class_has_the_figures_of_brute_force_against_its_own_class(real):
    rows, ids, reference, by = real
    result = scored(rows, ids, reference, by)
    for one in result.by.classes:
        mine = rows[[n for n, name in enumerate(ids) if by[name] == one.name]]
        theirs = reference.sample.rows[[n for n, name in enumerate(reference.sample_ids) if by[name] == one.name]]
        assert (one.count, one.reference_count) == (len(mine), len(theirs))
        if one.name not in ("cars", "bike"):  # others share repeated images with the reference, which are left out
            continue
        conformity, own = brute_conformity(mine, theirs), brute_conformity(theirs)
        assert one.conformity_mean == pytest.approx(conformity.mean(), abs=1e-6)
        shift = (conformity.mean() - own.mean()) / own.std(ddof=1)
        assert one.typicality_shift == pytest.approx(shift, abs=1e-4)
        ratio = (1 - brute_self_conformity(mine)) / (1 - brute_self_conformity(theirs))
        assert one.variety_ratio == pytest.approx(ratio, abs=1e-5)
        assert one.variety_ratio_low < one.variety_ratio < one.variety_ratio_high


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
def test_without_classes_of_the_reference_they_are_compared_with_the_whole_and_say_so(real):
    rows, ids, reference, by = real
    known = {name: by[name] for name in ids if by[name] != "dogs"} | {"elsewhere": "dogs"}
    found = scored(rows, ids, reference, known).by
    assert {one.against for one in found.classes} == {"reference"}
    assert len(found.classes) == 6
    assert found.without_class == sum(by[name] == "dogs" for name in ids)
    for one in found.classes:
        mine = rows[[n for n, name in enumerate(ids) if known.get(name) == one.name]]
        assert one.variety_p is None
        assert one.reference_count == reference.count
        assert one.conformity_mean == pytest.approx(brute_conformity(mine, reference.sample.rows).mean(), abs=2e-3)


def test_of_many_classes_of_noise_none_stands_out_and_the_order_is_shrunk(generator):
    """150 classes of 12 rows of one kind: unadjusted 5% would differ."""
    rows, others = (ellipsoid_rows(1800, 16, generator) for _ in range(2))
    mine, theirs = ([f"{side} {n}" for n in range(1800)] for side in ("s", "r"))
    by = {name: f"class {n % 150}" for names in (mine, theirs) for n, name in enumerate(names)}
    found = scored(rows, mine, cc.ReferenceSet.fit(others, ids=theirs), by).by.classes
    assert len(found) == 150
    assert sum(one.variety_p < 0.05 for one in found) <= 2
    assert sum(one.typicality_p < 0.05 for one in found) <= 2
    plain, shrunk = (
        np.std([getattr(one, key) for one in found]) for key in ("variety_ratio", "variety_ratio_shrunken")
    )
    assert shrunk < 0.5 * plain
    assert all(one.reason == "few samples" for one in found)


def test_errors_p_values_and_shrunken_ratios_are_those_of_each_figure(generator):
    """Of rows without groups, against the whole reference, whose shift alone differs by class."""
    rows, others = ellipsoid_rows(400, 8, generator), ellipsoid_rows(900, 8, generator)
    by = {str(n): f"class {n % 4}" for n in range(400)}
    order = brute_conformity(rows, others).argsort()
    rows = rows[torch.from_numpy(order.copy()).view(4, 100).T.flatten()]  # from class 0 on the more typical
    reference = cc.ReferenceSet.fit(others)
    found = scored(rows, list(by), reference, by).by.classes
    assert len(found) == 4
    for one in found:
        conformity = brute_conformity(rows[int(one.name[-1]) :: 4], others)
        assert one.conformity_se == pytest.approx(conformity.std(ddof=1) / 10, rel=0.15)
        assert abs(math.log(one.variety_ratio_shrunken)) < 1.1 * abs(math.log(one.variety_ratio)) + 0.2
        reported = one.typicality_shift_low > 0 or one.typicality_shift_high < 0
        assert reported == (one.typicality_p < 0.05)
    by_p = [one.name for one in sorted(found, key=lambda one: one.typicality_p)]
    apart = {
        one.name: abs(one.typicality_shift) / (one.typicality_shift_high - one.typicality_shift_low) for one in found
    }
    assert by_p == sorted(apart, key=lambda name: -apart[name])
    assert min(one.typicality_p for one in found) < 1e-6


def test_small_classes_have_counts_and_a_reason(generator):
    rows = ellipsoid_rows(200, 8, generator)
    ids = [str(n) for n in range(200)]
    by = {name: "few" if n < 4 else "many" for n, name in enumerate(ids)}
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, 8, generator))
    many, few = scored(rows, ids, reference, by).by.classes
    assert (few.name, few.count, few.variety_ratio, few.reason) == ("few", 4, None, "fewer than 5 samples")
    assert many.variety_ratio_shrunken is None  # of one class nothing is known of the spread of classes
    json.dumps(scored(rows, ids, reference, by).to_dict(), allow_nan=False)


def test_groups_of_a_class_are_no_independent_rows(generator):
    images = ellipsoid_rows(60, 8, generator)
    rows, groups = images.repeat_interleave(4, 0), torch.arange(60).repeat_interleave(4)
    rows = rows + 0.05 * torch.randn(rows.shape, generator=generator)
    ids = [str(n) for n in range(240)]
    reference = cc.ReferenceSet.fit(ellipsoid_rows(300, 8, generator))
    by = dict.fromkeys(ids, "one")
    one, other = (scored(rows, ids, reference, by, own).by.classes[0] for own in (groups, None))
    assert one.conformity_se > 1.6 * other.conformity_se


def test_a_class_of_the_reference_that_does_not_vary_or_is_one_group_is_none(generator):
    """Ten equal captions, and ten of one image, tell nothing of what others would be."""
    rows = ellipsoid_rows(90, 8, generator)
    reference, ids = ellipsoid_rows(120, 8, generator), [str(n) for n in range(120)]
    reference[:10] = reference[0]
    by = {**dict.fromkeys(ids, "other"), **dict.fromkeys(ids[:10], "one")}
    groups = torch.arange(120).clamp_min(10) // 2 * 2
    mine = {f"s {n}": "one" if n < 40 else "other" for n in range(90)}
    for options in ({}, {"groups": groups}):
        reported = cc.ReferenceSet.fit(reference, ids=ids, **options)
        found = scored(rows, list(mine), reported, by | mine, torch.arange(90) + 1000 if options else None).by.classes
        assert {one.name: one.against for one in found} == {"other": "class", "one": "reference"}


def test_ids_that_are_nobodys_are_refused(generator):
    rows = ellipsoid_rows(60, 8, generator)
    with pytest.raises(ValueError, match=r"by: none of the 60 samples has a class; give their ids, such as '0'"):
        scored(rows, [str(n) for n in range(60)], cc.ReferenceSet.fit(rows + 1), {"a": "b"})


# --- adjusting and shrinking -----------------------------------------------------------------------------------------


def test_p_values_are_adjusted_as_scipy_does():
    values = np.random.default_rng(0).uniform(size=40) ** 2
    np.testing.assert_allclose(adjust_p_values(values.tolist()), false_discovery_control(values), rtol=1e-12)
    assert adjust_p_values([]) == []


def test_shrinking_takes_off_what_noise_adds():
    random = np.random.default_rng(1)
    truth, errors = random.normal(0.2, 0.1, 400), random.uniform(0.05, 0.3, 400)
    seen = truth + errors * random.standard_normal(400)
    found = np.array(shrink_estimates(seen.tolist(), errors.tolist()))
    best = 0.2 + 0.01 / (0.01 + errors**2) * (seen - 0.2)  # of one who knows both moments
    assert np.mean((found - truth) ** 2) < 1.1 * np.mean((best - truth) ** 2) < 0.6 * np.mean((seen - truth) ** 2)
    assert shrink_estimates([1.0, 2.0], [1.0, 1.0]) is None
    assert shrink_estimates([1.0, 1.0, 1.0], [0.1, 0.2, 0.3]) == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("spread", [0.05, 0.4])
def test_shrinking_is_by_the_moments_of_values_and_errors(equal, spread):
    """By what a weighed sum of squares has on average, (n - 1) + between (S1 - S2/S1)."""
    random = np.random.default_rng(2)
    x, errors = random.normal(0.2, spread, 12), np.full(12, 0.2) if equal else random.uniform(0.1, 0.4, 12)
    weight = errors**-2.0
    square = np.sum(weight * (x - np.average(x, weights=weight)) ** 2)
    between = max(0.0, (square - 11) / (weight.sum() - (weight**2).sum() / weight.sum()))
    assert (between > 0) == (spread == 0.4)
    if equal:
        assert between == pytest.approx(max(0.0, x.var(ddof=1) - 0.04))
    mean = np.average(x, weights=1 / (errors**2 + between))
    assert shrink_estimates(x.tolist(), errors.tolist()) == pytest.approx(
        mean + between / (between + errors**2) * (x - mean)
    )


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_command_writes_classes_in_json_csv_and_report(generator, tmp_path, capsys):
    rows = ellipsoid_rows(120, 8, generator)
    write_embeddings(tmp_path / "e.safetensors", rows, ids=[f"row {n}" for n in range(120)])
    cc.ReferenceSet.fit(ellipsoid_rows(200, 8, generator)).save(tmp_path / "r.safetensors")
    lines = ["id,class", *(f"row {n},{'=cats' if n % 2 else 'a <dog>'}" for n in range(110))]
    (tmp_path / "by.csv").write_text("\n".join(lines))
    given = ["score", "--embeddings", str(tmp_path / "e.safetensors"), "--reference", str(tmp_path / "r.safetensors")]
    more = ["--by", str(tmp_path / "by.csv"), "--per-class", str(tmp_path / "c.csv")]
    assert main([*given, *more, "--report", str(tmp_path / "r.html"), "--resamples", "20"]) == 0
    reported = json.loads(capsys.readouterr().out)["by"]
    assert {one["name"]: one["count"] for one in reported["classes"]} == {"=cats": 55, "a <dog>": 55}
    assert reported["without_class"] == 10
    assert "Benjamini-Hochberg" in reported["correction"]
    table = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert {row["name"] for row in table} == {"'=cats", "a <dog>"}
    assert math.isclose(float(table[0]["variety_ratio"]), reported["classes"][0]["variety_ratio"], rel_tol=1e-8)
    assert "a &lt;dog&gt;" in (tmp_path / "r.html").read_text()
    assert main([*given, "--per-class", str(tmp_path / "d.csv")]) == 2
    assert "--per-class: goes with --by" in capsys.readouterr().err


BAD = {
    "three cells": ("a,b,c\n", "line 1: expected an id and a class, got"),
    "an empty class": ("id,class\na,\n", "line 2: expected an id and a class"),
    "two classes": ("a,b\na,c\n", "line 2: 'a' is of class 'b' already"),
    "no class": ("id,class\n\n", "holds no classes"),
    "broken": ('a,"b\n', "broken CSV"),
    "null": ("a,b\0\n", "not UTF-8 text"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_broken_file_of_classes_is_refused_with_its_line(case, tmp_path):
    text, words = BAD[case]
    path = tmp_path / "by.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_classes(path)


def test_a_file_of_classes_may_have_a_head_and_quotes(tmp_path):
    path = tmp_path / "by.csv"
    path.write_text('ID,Class\n"a,b.png", red cat \nc,red cat\n')
    assert read_classes(path) == {"a,b.png": "red cat", "c": "red cat"}
