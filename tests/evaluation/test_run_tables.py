"""Tables of differences, and of classes."""

from __future__ import annotations

import csv
import io
import math

import pytest
import torch
from helpers import rows_with_cosine

import clipconformity as cc
from clipconformity.evaluation import ByClass, ClassScore, Comparison, Difference, compare, score
from clipconformity.evaluation.run_tables import format_classes, format_differences
from clipconformity.evaluation.sources import Source, SourceBatch
from clipconformity.functional.resampling import Interval

pytestmark = pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")

DIFFERENCES = [
    Difference("a|b", "c_d", "typicality_shift", 0.123456789, Interval(0.05, 0.2), "more", 0.001, 0.003),
    Difference("a|b", "c_d", "vendi", 2.0, None, "undecided", ratio=True),
]


def rows_of(text) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_differences_are_rows_with_numbers_in_full_as_csv():
    first, second = rows_of(format_differences(DIFFERENCES, "csv"))
    assert first == {
        "first": "a|b", "second": "c_d", "figure": "typicality_shift", "compared_by": "difference",
        "value": "0.123456789", "low": "0.05", "high": "0.2", "p_value": "0.001", "p_adjusted": "0.003",
        "outcome": "more",
    }  # fmt: skip
    assert (second["compared_by"], second["low"], second["p_adjusted"]) == ("ratio", "", "")
    assert len(rows_of(format_differences(DIFFERENCES, "csv", ["vendi"]))) == 1


def test_differences_are_set_for_reading():
    lines = format_differences(DIFFERENCES).splitlines()
    assert lines[1].split() == [
        "a|b",
        "c_d",
        "typicality",
        "shift",
        "difference",
        "0.123",
        "[0.05,",
        "0.2]",
        "0.003",
        "more",
    ]
    assert "Holm" in lines[-1]
    assert r"| a\|b | c_d |" in format_differences(DIFFERENCES, "markdown")
    latex = format_differences(DIFFERENCES, "latex").splitlines()
    assert latex[0] == r"\begin{tabular}{llllrrrr}"
    assert latex[4].startswith(r"a|b & c\_d & typicality shift & difference & 0.123 & [0.05, 0.2] &")


def test_wrong_tables_are_refused(reference, generator):
    with pytest.raises(
        ValueError, match="figures: norm_mean is not compared; expected some of typicality_shift, vendi"
    ):
        format_differences(DIFFERENCES, figures=["norm_mean"])
    with pytest.raises(ValueError, match="format: expected one of"):
        format_differences(DIFFERENCES, "xml")
    with pytest.raises(ValueError, match="format: expected one of"):
        format_classes({}, "xml")
    one = score(source(drawn(60, 0.6, generator)), reference, resamples=5)
    found = compare({"a": one, "b": one}, reference)
    with pytest.raises(ValueError, match="by: the runs were not scored by class; give the class of each id"):
        found.table(of="classes")
    with pytest.raises(ValueError, match="of: expected 'runs', 'differences' or 'classes', got 'models'"):
        found.table(of="models")


def drawn(count, mean, generator) -> torch.Tensor:
    z = torch.randn(count, generator=generator, dtype=torch.float64)
    return rows_with_cosine((mean + 0.05 * z).clamp(-0.95, 0.95), 16, generator)


def source(rows) -> Source:
    return Source(iter([SourceBatch(rows, [str(n) for n in range(len(rows))])]), len(rows))


@pytest.fixture(scope="module")
def reference() -> cc.ReferenceSet:
    rows = drawn(300, 0.6, torch.Generator().manual_seed(9))
    return cc.ReferenceSet.fit(rows, ids=[f"r{n}" for n in range(300)])


@pytest.fixture
def found(reference, generator) -> Comparison:
    """Three classes, in one of which the second run is far more typical."""
    by = {str(n): "xyz"[n % 3] for n in range(180)} | {f"r{n}": "xyz"[n % 3] for n in range(300)}
    first, second = drawn(180, 0.6, generator), drawn(180, 0.6, generator)
    second[1::3] = drawn(60, 0.7, generator)
    return compare({"a": source(first), "b": source(second)}, reference, resamples=5, by=by)


def test_the_class_in_which_runs_differ_most_stands_first(found):
    rows = rows_of(found.table("csv", of="classes"))
    assert [(row["class"], row["run"]) for row in rows[:2]] == [("y", "a"), ("y", "b")]
    assert len(rows) == 6
    for row in rows:
        one = next(x for x in found.scores[row["run"]].by.classes if x.name == row["class"])
        assert float(row["conformity_mean"]) == pytest.approx(one.conformity_mean, rel=1e-8)
        half = float(row["conformity_mean_high"]) - one.conformity_mean
        assert half == pytest.approx(one.conformity_mean - float(row["conformity_mean_low"]), rel=1e-3)
        assert half / one.conformity_se == pytest.approx(2.0, abs=0.05)  # t of some 50 buckets
        assert float(row["variety_ratio_low"]) == pytest.approx(one.variety_ratio_low, rel=1e-8)
    lines = found.table(of="classes").splitlines()
    assert lines[0].split()[:4] == ["class", "run", "N", "against"]
    assert lines[1].split()[:4] == ["y", "a", "60", "class"]
    assert found.table("latex", of="classes").splitlines()[0] == r"\begin{tabular}{llrrrrr}"
    assert "±" in found.table("markdown", of="classes")


def one_class(name, shift, half, ratio=1.0, against="class") -> ClassScore:
    ends = {"typicality_shift_low": shift - half, "typicality_shift_high": shift + half}
    ends |= {"variety_ratio_low": ratio / 1.1, "variety_ratio_high": ratio * 1.1}
    return ClassScore(name, 50, against, 50, typicality_shift=shift, variety_ratio=ratio, **ends)


def test_the_order_is_by_standard_errors_and_classes_without_figures_stand_last():
    few = ClassScore("few", 3, "reference", 300, reason="fewer than 5 samples")
    runs = {
        "a": [few, one_class("noisy", 2.0, 3.0), one_class("sure", 0.5, 0.1), one_class("varied", 0.0, 9.0, 1.0)],
        "b": [few, one_class("noisy", 0.0, 3.0), one_class("sure", 0.0, 0.1), one_class("varied", 0.0, 9.0, 1.5)],
        "c": [few, one_class("noisy", 99.0, 3.0, against="reference"), one_class("sure", 0.0, 0.1)],
    }
    table = rows_of(format_classes({name: ByClass(classes, 0) for name, classes in runs.items()}, "csv"))
    assert [row["class"] for row in table if row["run"] == "b"] == ["sure", "varied", "noisy", "few"]
    # 0.5 / hypot(0.1, 0.1) is 3.5; log 1.5 / hypot of log 1.1 twice 3.0; 2 / hypot(3, 3) 0.5. "noisy" of c is no match.
    assert 0.5 / math.hypot(0.1, 0.1) > math.log(1.5) / (math.log(1.1) * 2**0.5) > 2 / math.hypot(3, 3)
    assert table[-1]["reason"] == "fewer than 5 samples"
    assert table[-1]["variety_ratio"] == ""
