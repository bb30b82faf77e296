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
from clipconformity.evaluation import Difference, compare, embedding_source, score
from clipconformity.evaluation.comparison import (
    Comparison,
    _compare_figure,
    _compute_p_value,
    compare_pair,
    correct_outcomes,
)
from clipconformity.evaluation.sources import Source, SourceBatch
from clipconformity.evaluation.tables import FIGURES
from clipconformity.functional.resampling import Estimate, jackknife_error, joint_jackknife
from clipconformity.stream.moments import assign_buckets
from clipconformity.stream.pairs import LeftOut
from clipconformity.stream.readouts import read_outs
from clipconformity.stream.stream import Needs, Stream

DIM = 16
JUDGED = ("typicality_shift", "variety_ratio")
DELETED = (*JUDGED, "conformity_mean", "cosine_mmd", "cosine_mmd_typicality", "cosine_mmd_variety")
"""Figures whose buckets are left out exactly, of the reference too."""
ALONE = ("self_conformity_mean", "norm_mean")
"""The same of figures that do without a reference."""


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


def left_out(rows, reference, figures=JUDGED, **labels) -> dict[str, LeftOut]:
    """What a run is compared by, by default in the two figures that are judged."""
    stream = Stream.open_against(reference, Needs(conformity=True, rows=True, reference=True))
    stream.update(rows, **labels)
    outs = [read_outs()[name] for name in ("conformity", "norm", "cosine_mmd")]
    found = {name: one for out in outs for name, one in out.left_out(stream).items()}
    return {name: found[name] for name in figures}


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
        found = compare_pair(
            "a", left_out(one, reference, **label[labels]), "b", left_out(two, reference, **label[labels])
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
    assert len([one for one in found.differences if one.figure in JUDGED]) == 6
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
    reported = json.loads(json.dumps(found.to_dict()))
    assert reported["differences"][0]["first"] == "a"
    assert reported["ranks"]["variety_ratio"] == {"a": 1, "b": 1}
    with pytest.raises(ValueError, match="format: expected one of .*'latex', 'html', got 'xml'"):
        found.table("xml")
    with pytest.raises(ValueError, match="figures: 'a' has no cmmd"):
        found.table(figures=["cmmd"])


def test_outcomes_are_corrected_for_the_number_of_pairs(reference):
    """Of 40 comparisons of six equal runs, 15 pairs in each, at most 10 tell any difference; uncorrected most do."""
    reported, uncorrected = 0, 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        runs = {name: left_out(drawn(60, 0.6, generator), reference) for name in "abcdef"}
        pairs = [
            one for first, second in combinations(runs, 2)
            for one in compare_pair(first, runs[first], second, runs[second])
        ]  # fmt: skip
        shifts = [one for one in correct_outcomes(pairs) if one.figure == "typicality_shift"]
        reported += any(one.outcome != "undecided" for one in shifts)
        uncorrected += any(one.p_value <= 0.05 for one in shifts)
        assert [one.p_adjusted for one in shifts] == pytest.approx(
            multipletests_holm([one.p_value for one in shifts]), rel=1e-12
        )
    assert reported <= 7  # 5% of 40 is 2, with a standard deviation of 1.4
    assert uncorrected > reported


def multipletests_holm(p_values):
    """Holm by its definition: the largest, over smaller p-values, of the p-value times how many are not smaller."""
    return [
        min(1.0, max(other * sum(third >= other for third in p_values) for other in p_values if other <= one))
        for one in p_values
    ]


def test_a_p_value_agrees_with_its_interval(reference, generator):
    runs = [left_out(drawn(80, mean, generator), reference) for mean in (0.6, 0.605)]
    for one in compare_pair("a", runs[0], "b", runs[1]):
        none = 0.0 if one.figure == "typicality_shift" else 1.0
        assert (one.p_value < 0.05) == (not one.interval.low <= none <= one.interval.high)


def test_more_and_less_are_about_no_difference():
    values = {"typicality_shift": (-0.5, 0.5), "variety_ratio": (0.5, 1.5)}
    reported = [
        Difference("a", "b", figure, value, None, "undecided", 1e-9, ratio=figure == "variety_ratio")
        for figure in values
        for value in values[figure]
    ]
    assert [one.outcome for one in correct_outcomes(reported)] == ["less", "more"] * 2
    sure = [_compute_p_value(Estimate(torch.tensor(value), torch.tensor(0.0), 5.0)) for value in (0.0, 1.0)]
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


def test_two_copies_of_a_reference_are_one(reference, generator, tmp_path):
    reference.save(tmp_path / "r.safetensors")
    copies = [cc.ReferenceSet.load(tmp_path / "r.safetensors") for _ in range(2)]
    rows = [drawn(60, 0.6, generator) for _ in range(2)]
    scores = [score(source(x), copy, resamples=20) for x, copy in zip(rows, copies, strict=True)]
    found = compare(dict(zip("ab", scores, strict=True)), reference)
    again = compare({"a": source(rows[0]), "b": source(rows[1])}, reference, resamples=20)
    assert found.difference("a", "b") == again.difference("a", "b")


def test_one_group_leaves_a_difference_without_an_interval(reference, generator):
    rows = drawn(60, 0.6, generator)
    one = source(rows, groups=torch.zeros(60, dtype=torch.int64))
    found = compare({"a": one, "b": source(drawn(60, 0.6, generator))}, reference, resamples=20)
    reported = found.difference("a", "b")
    assert (reported.interval, reported.outcome) == (None, "undecided")
    assert "nothing is known of how typical they are" in reported.text()


def test_a_difference_has_the_error_of_an_explicit_jackknife(generator):
    """Each bucket left out of both runs and of the reference: refitted and compared anew without its groups."""
    sides = [drawn(n, mean, generator) for n, mean in ((60, 0.62), (45, 0.6), (90, 0.6))]
    groups = [torch.arange(60) // 5, torch.arange(45) // 5, torch.arange(90) // 5 + 6]  # some are of all three
    buckets = [assign_buckets(one) for one in groups]

    everything = (*DELETED, *ALONE)

    def figures(kept):
        one, two, others = (rows[keep] for rows, keep in zip(sides, kept, strict=True))
        labels = [label[keep] for label, keep in zip(groups, kept, strict=True)]
        reference = cc.ReferenceSet.fit(others, groups=labels[2])
        runs = [left_out(x, reference, everything, groups=label) for x, label in ((one, labels[0]), (two, labels[1]))]
        return torch.stack([runs[0][name].figure.whole - runs[1][name].figure.whole for name in everything])

    def error(*left_out):
        used = torch.cat([buckets[side] for side in left_out]).unique()
        values = torch.stack([
            figures([one != g if side in left_out else one >= 0 for side, one in enumerate(buckets)]) for g in used
        ])  # fmt: skip
        return torch.stack([jackknife_error(column, torch.ones(len(used))) for column in values.T])

    reference = cc.ReferenceSet.fit(sides[2], groups=groups[2])
    runs = [left_out(x, reference, everything, groups=y) for x, y in zip(sides[:2], groups[:2], strict=True)]
    found = [_compare_figure(runs[0][name], runs[1][name]) for name in everything]
    np.testing.assert_allclose([float(one.value) for one in found], figures([one >= 0 for one in buckets]), rtol=1e-9)
    errors = torch.cat(
        [error(0, 1, 2)[: len(DELETED)], error(0, 1)[len(DELETED) :]]
    )  # nothing moves with the reference
    np.testing.assert_allclose([float(one.error) for one in found], errors, rtol=1e-5)
    parts = torch.stack([error(side) for side in range(3)]).T.square()
    np.testing.assert_allclose([one.parts for one in found[: len(DELETED)]], parts[: len(DELETED)], rtol=1e-4)
    np.testing.assert_allclose([one.parts for one in found[len(DELETED) :]], parts[len(DELETED) :, :2], rtol=1e-4)
    ends = [one.interval for one in compare_pair("a", runs[0], "b", runs[1])]
    assert len(ends) == len(everything)
    assert ends[0] == pytest.approx(found[0].interval())
    assert ends[1] == pytest.approx([np.exp(end) for end in found[1].interval()])


def test_what_a_figure_is_compared_by_gives_its_own_interval(reference, generator):
    """So that no difference rests on another uncertainty than the figure itself; t on the same degrees of freedom."""
    rows = drawn(200, 0.62, generator)
    metrics = ["cosine_mmd", "cmmd", "vendi", "frechet"]
    one = score(source(rows), reference, metrics=metrics, resamples=20)
    found = {}
    for metric in one.metrics:
        found |= read_outs()[metric].left_out(one.stream)
    assert {*DELETED, *ALONE, "spread_ratio", "cmmd", "cmmd_unbiased", "vendi", "rke", "frechet"} <= set(found)
    del found["conformity_mean"]  # whose own interval takes the reference as it is
    for name, (figure, counts, logarithm) in found.items():
        sides = (figure.evaluated, figure.reference)[: len(counts)]
        estimate = joint_jackknife(figure.whole, figure.both, sides, counts)
        value, ends = float(estimate.value), estimate.interval()
        shown = one.figures[name]
        assert (np.exp(value) if logarithm else value) == pytest.approx(shown.value, rel=1e-9), name
        expected = [np.exp(end) for end in ends] if logarithm else list(ends)
        assert shown.interval == pytest.approx(expected, rel=1e-6), name


def test_further_figures_are_compared_and_corrected_for_their_own_pairs(reference, generator):
    rows = drawn(150, 0.6, generator)
    runs = {"a": rows * 1.2, "b": drawn(150, 0.6, generator), "c": drawn(150, 0.66, generator)}
    scores = {
        name: score(source(one), reference, metrics=["frechet"] if name < "c" else ["vendi"], resamples=20)
        for name, one in runs.items()
    }
    found = compare(scores, reference)
    reported = found.difference("a", "b", "norm_mean")
    norms = [torch.linalg.vector_norm(one.double(), dim=1) for one in runs.values()]
    assert reported.value == pytest.approx(float(norms[0].mean() - norms[1].mean()), rel=1e-6)
    assert (reported.outcome, reported.ratio) == ("more", False)
    assert reported.text().startswith("a has a higher norm mean than b (")
    assert "no difference in norm mean can be told" in found.difference("b", "c", "norm_mean").text()
    assert found.ranks("norm_mean") == {"a": 1, "b": 2, "c": 2}
    assert found.difference("a", "b", "frechet").value == pytest.approx(
        scores["a"].value("frechet") - scores["b"].value("frechet"), rel=1e-9
    )
    for figure in ("frechet", "vendi"):  # a figure of one run alone has no difference
        with pytest.raises(KeyError):
            found.difference("a", "c", figure)
    for figure in {one.figure for one in found.differences}:
        pairs = [one for one in found.differences if one.figure == figure]
        holm = multipletests_holm([one.p_value for one in pairs])
        assert [one.p_adjusted for one in pairs] == pytest.approx(holm, rel=1e-12), figure
    assert not any("norm" in line for line in found.table().splitlines())  # as text the judged ones alone


def test_a_run_does_not_differ_from_itself(reference, generator):
    one = score(source(drawn(100, 0.6, generator)), reference, metrics=["cosine_mmd", "vendi", "frechet"], resamples=20)
    for reported in compare({"a": one, "b": one}, reference).differences:
        assert (reported.value, reported.p_value, reported.outcome) == (reported.no_difference, 1.0, "undecided"), (
            reported.figure
        )
        assert reported.interval == (reported.no_difference, reported.no_difference)


def test_a_figure_that_no_field_names_is_refused(reference, generator, monkeypatch):
    one = score(source(drawn(100, 0.6, generator)), reference, resamples=20)
    norm = read_outs()["norm"]
    monkeypatch.setattr(type(norm), "left_out", lambda self, stream: {"rare": None})
    with pytest.raises(ValueError, match="metrics: 'norm' returned rare, not among its fields"):
        compare({"a": one, "b": one}, reference)


def test_a_run_without_variety_is_told_without_a_number_of_rounding(generator):
    reference = cc.ReferenceSet.fit(torch.randn(300, 8, generator=generator) + 1)
    same = torch.randn(1, 8, generator=generator).expand(60, 8) * (1 + 0.1 * torch.rand(60, 1, generator=generator))
    runs = {"varied": torch.randn(60, 8, generator=generator) + 1, "one caption": same}
    with pytest.warns(cc.LowerBoundWarning):
        found = compare({name: source(rows) for name, rows in runs.items()}, reference, resamples=20)
    difference = found.difference("varied", "one caption", "variety_ratio")
    assert difference.outcome == "more"
    assert difference.value == pytest.approx(1000)
    assert difference.interval.high <= 1000 * (1 + 1e-12)
    assert "next to no variety" in difference.text()
