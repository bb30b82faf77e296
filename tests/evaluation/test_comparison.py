"""Runs against each other: differences with intervals, paired where samples share groups or ids."""

from __future__ import annotations

import csv
import io
import json
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers import rows_with_cosine

import clipconformity as cc
from clipconformity.evaluation import compare, embedding_source, score
from clipconformity.evaluation.comparison import Comparison, Difference, _apart, _corrected, _differences, _p_value
from clipconformity.evaluation.sources import Source, SourceBatch
from clipconformity.evaluation.tables import FIGURES
from clipconformity.functional.resampling import Estimate, jackknife_error
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.moments import bucket_of
from clipconformity.stream.stream import Needs, Stream

DIM = 16
JUDGED = ("typicality", "log_variety")


def drawn(count, mean, generator, common=None) -> torch.Tensor:
    own = torch.randn(count, generator=generator, dtype=torch.float64)
    z = own if common is None else (0.8**0.5) * common + (0.2**0.5) * own
    return rows_with_cosine((mean + 0.05 * z).clamp(-0.95, 0.95), DIM, generator).float()


def source(rows, groups=None, ids=None) -> Source:
    names = [str(n) for n in range(len(rows))] if ids is None else ids
    batch = SourceBatch(rows, names, groups, placed=ids is None and groups is None)
    return Source(iter([batch]), len(rows), groups=groups)


@pytest.fixture(scope="module")
def reference() -> cc.ReferenceSet:
    return cc.ReferenceSet.fit(drawn(600, 0.6, torch.Generator().manual_seed(9)))


def compared(reference, *rows, **labels):
    runs = {name: source(one, **labels) for name, one in zip("abc", rows, strict=False)}
    return compare(runs, reference, resamples=20)


def contrast(rows, reference, **labels) -> Contrast:
    """What a score keeps of a run, without the densities that it fits."""
    stream = Stream.against(reference, Needs(conformity=True, rows=True, reference=True))
    stream.update(rows, **labels)
    return stream.contrast("test")


def test_the_difference_of_two_runs_is_that_of_their_figures(reference, generator):
    found = compared(reference, drawn(200, 0.62, generator), drawn(150, 0.6, generator))
    a, b = found.scores["a"], found.scores["b"]
    assert found.difference("a", "b").value == pytest.approx(a.typicality_shift - b.typicality_shift, rel=1e-9)
    ratio = found.difference("a", "b", "variety_ratio").value
    assert ratio == pytest.approx(a.variety_ratio / b.variety_ratio, rel=1e-9)
    with pytest.raises(KeyError, match="no difference of 'b' and 'a'"):
        found.difference("b", "a")


@pytest.mark.parametrize("labels", ["none", "groups", "ids"])
def test_the_interval_of_a_difference_covers_it(labels, reference):
    """120 runs at a true difference of 0.3: below 88% is more than three standard deviations under 95%."""
    covered, widths = 0, []
    for seed in range(120):
        generator = torch.Generator().manual_seed(seed)
        common = None if labels == "none" else torch.randn(150, generator=generator, dtype=torch.float64)
        label = {"none": {}, "groups": {"groups": torch.arange(150)}, "ids": {"ids": [f"p{n}" for n in range(150)]}}
        one, two = (drawn(150, mean, generator, common) for mean in (0.615, 0.6))
        found = _differences(
            "a", contrast(one, reference, **label[labels]), "b", contrast(two, reference, **label[labels])
        )[0]
        # In the reference's units, whose standard deviation is known to 3%.
        truth = 0.015 / 0.05 * 0.05 / float(reference.spread.whole) * float(reference.unit_mean.norm())
        covered += found.interval.low <= truth <= found.interval.high
        widths.append(found.interval.high - found.interval.low)
    assert covered >= 106
    half = np.mean(widths) / 2
    assert half < 0.15 if labels != "none" else half > 0.2  # paired: sqrt(0.2) of it


def test_a_difference_is_told_and_its_absence_is_not(reference, generator):
    found = compared(reference, drawn(300, 0.63, generator), drawn(300, 0.6, generator), drawn(300, 0.6, generator))
    assert [one.outcome for one in found.differences if one.figure == "typicality_shift"] == [
        "more",
        "more",
        "undecided",
    ]
    assert len(found.differences) == 6
    lines = found.table().splitlines()
    assert lines[0].split()[:2] == ["run", "N"]
    assert any(line.startswith("a is more typical than b (0.") for line in lines)
    assert any(line.startswith("b, c: no difference in how typical can be told") for line in lines)


def test_tables_hold_the_figures(reference, generator):
    found = compared(reference, drawn(100, 0.6, generator), drawn(100, 0.6, generator))
    rows = list(csv.DictReader(io.StringIO(found.table("csv"))))
    assert [row["run"] for row in rows] == ["a", "b"]
    assert float(rows[0]["variety_ratio"]) == pytest.approx(found.scores["a"].variety_ratio, rel=1e-8)
    ends = [float(rows[0][f"variety_ratio_{end}"]) for end in ("low", "high")]
    assert ends == pytest.approx(found.scores["a"].figures["variety_ratio"].interval, rel=1e-8)
    assert found.table("markdown").splitlines()[1].count("---") == 2 + len(FIGURES)
    told = json.loads(json.dumps(found.to_dict()))
    assert told["differences"][0]["first"] == "a"
    assert told["ranks"]["variety_ratio"] == {"a": 1, "b": 1}
    with pytest.raises(ValueError, match="format: expected one of 'text', 'markdown', 'csv', 'latex', got 'html'"):
        found.table("html")
    with pytest.raises(ValueError, match="figures: 'a' has no cmmd"):
        found.table(figures=["cmmd"])


def test_outcomes_are_corrected_for_the_number_of_pairs(reference):
    """Of 40 comparisons of six equal runs, 15 pairs in each, at most 10 tell any difference; uncorrected most do."""
    told, uncorrected = 0, 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        runs = {name: contrast(drawn(60, 0.6, generator), reference) for name in "abcdef"}
        pairs = [
            one for first, second in combinations(runs, 2)
            for one in _differences(first, runs[first], second, runs[second])
        ]  # fmt: skip
        shifts = [one for one in _corrected(pairs) if one.figure == "typicality_shift"]
        told += any(one.outcome != "undecided" for one in shifts)
        uncorrected += any(one.p_value <= 0.05 for one in shifts)
        assert [one.p_adjusted for one in shifts] == pytest.approx(
            multipletests_holm([one.p_value for one in shifts]), rel=1e-12
        )
    assert told <= 7  # 5% of 40 is 2, with a standard deviation of 1.4
    assert uncorrected > told


def multipletests_holm(p_values):
    """Holm by its definition: the largest, over smaller p-values, of the p-value times how many are not smaller."""
    return [
        min(1.0, max(other * sum(third >= other for third in p_values) for other in p_values if other <= one))
        for one in p_values
    ]


def test_a_p_value_agrees_with_its_interval(reference, generator):
    runs = [contrast(drawn(80, mean, generator), reference) for mean in (0.6, 0.605)]
    for one in _differences("a", runs[0], "b", runs[1]):
        none = 0.0 if one.figure == "typicality_shift" else 1.0
        assert (one.p_value < 0.05) == (not one.interval.low <= none <= one.interval.high)


def test_more_and_less_are_about_no_difference():
    values = {"typicality_shift": (-0.5, 0.5), "variety_ratio": (0.5, 1.5)}
    told = [
        Difference("a", "b", figure, value, None, "undecided", 1e-9) for figure in values for value in values[figure]
    ]
    assert [one.outcome for one in _corrected(told)] == ["less", "more"] * 2
    sure = [_p_value(Estimate(torch.tensor(value), torch.tensor(0.0), 5.0)) for value in (0.0, 1.0)]
    assert sure == [1, 0]


def test_ranks_count_who_is_surely_above(reference):
    def difference(first, second, outcome):
        return Difference(first, second, "variety_ratio", 1.0, None, outcome)

    pairs = [difference("a", "b", "undecided"), difference("a", "c", "more"), difference("b", "c", "undecided"),
             difference("a", "d", "more"), difference("b", "d", "more"), difference("c", "d", "less")]  # fmt: skip
    found = Comparison(dict.fromkeys("abcd"), pairs)
    assert found.ranks("variety_ratio") == {"a": 1, "b": 1, "c": 3, "d": 3}
    with pytest.raises(KeyError, match="no differences in 'norm_mean'"):
        found.ranks("norm_mean")


def test_scores_are_compared_as_they_are(reference, generator, tmp_path):
    np.save(tmp_path / "a.npy", drawn(100, 0.6, generator).numpy())
    one = score(embedding_source([tmp_path / "a.npy"]), reference, resamples=20)
    found = compare({"kept": one, "new": source(drawn(100, 0.6, generator))}, reference, resamples=20)
    assert found.scores["kept"] is one


def test_one_run_and_other_references_are_refused(reference, generator):
    with pytest.raises(ValueError, match="runs: expected at least two, got 1"):
        compare({"a": source(drawn(50, 0.6, generator))}, reference)
    other = cc.ReferenceSet.fit(drawn(100, 0.6, generator))
    one = score(source(drawn(60, 0.6, generator)), other, resamples=20)
    with pytest.raises(ValueError, match="'a' was scored against another reference"):
        compare({"a": one, "b": source(drawn(60, 0.6, generator))}, reference, resamples=20)


def test_one_group_leaves_a_difference_without_an_interval(reference, generator):
    rows = drawn(60, 0.6, generator)
    one = source(rows, groups=torch.zeros(60, dtype=torch.int64))
    found = compare({"a": one, "b": source(drawn(60, 0.6, generator))}, reference, resamples=20)
    told = found.difference("a", "b")
    assert (told.interval, told.outcome) == (None, "undecided")
    assert "nothing is known of how typical they are" in told.text()


def test_a_difference_has_the_error_of_an_explicit_jackknife(generator):
    """Each bucket left out of both runs and of the reference: refitted and compared anew without its groups."""
    sides = [drawn(n, mean, generator) for n, mean in ((60, 0.62), (45, 0.6), (90, 0.6))]
    groups = [torch.arange(60) // 5, torch.arange(45) // 5, torch.arange(90) // 5 + 6]  # some are of all three
    buckets = [bucket_of(one) for one in groups]

    def figures(kept):
        one, two, others = (rows[keep] for rows, keep in zip(sides, kept, strict=True))
        labels = [label[keep] for label, keep in zip(groups, kept, strict=True)]
        reference = cc.ReferenceSet.fit(others, groups=labels[2])
        runs = [contrast(rows, reference, groups=label) for rows, label in ((one, labels[0]), (two, labels[1]))]
        return torch.stack([getattr(runs[0], name).whole - getattr(runs[1], name).whole for name in JUDGED])

    def error(*left_out):
        used = torch.cat([buckets[side] for side in left_out]).unique()
        values = torch.stack([
            figures([one != g if side in left_out else one >= 0 for side, one in enumerate(buckets)]) for g in used
        ])  # fmt: skip
        return torch.stack([jackknife_error(column, torch.ones(len(used))) for column in values.T])

    reference = cc.ReferenceSet.fit(sides[2], groups=groups[2])
    runs = [contrast(rows, reference, groups=label) for rows, label in zip(sides[:2], groups[:2], strict=True)]
    counts = runs[0].counts[0], runs[1].counts[0], runs[0].counts[1]
    found = [_apart(getattr(runs[0], name), getattr(runs[1], name), counts) for name in JUDGED]
    np.testing.assert_allclose([float(one.value) for one in found], figures([one >= 0 for one in buckets]), rtol=1e-9)
    np.testing.assert_allclose([float(one.error) for one in found], error(0, 1, 2), rtol=1e-5)
    parts = torch.stack([error(side) for side in range(3)])
    np.testing.assert_allclose([one.parts for one in found], parts.T.square(), rtol=1e-4)
    ends = [one.interval for one in _differences("a", runs[0], "b", runs[1])]
    assert ends[0] == pytest.approx(found[0].interval())
    assert ends[1] == pytest.approx([np.exp(end) for end in found[1].interval()])
