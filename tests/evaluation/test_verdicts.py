"""The verdicts: by the effect's interval against a margin, in words, as requirements, and right by simulation."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import ellipsoid_rows, rows_with_cosine
from scipy import stats

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.evaluation import embedding_source, results, score
from clipconformity.evaluation.requirements import Requirement
from clipconformity.evaluation.results import judge
from clipconformity.functional.resampling import Estimate
from clipconformity.stream.readouts import Field

DIM = 16


def contrast(shift=0.0, shift_error=0.05, ratio=1.0, ratio_error=0.01, few=None, count=500, parts=None):
    """What a contrast tells of its figures, at so many degrees of freedom that t is the normal distribution."""
    shift_of = Estimate(torch.tensor(shift).double(), torch.tensor(shift_error).double(), 1e9, parts or (0.002, 0.0005))
    ratio_of = Estimate(torch.tensor(math.log(ratio)), torch.tensor(ratio_error).double(), 1e9, (8e-5, 2e-5))
    ends = [math.exp(end) for end in ratio_of.interval()]
    return SimpleNamespace(
        typicality_shift=shift_of, log_variety_ratio=ratio_of, variety_interval=cc.Interval(*ends),
        few=few, count=count, unknown="all samples belong to one group",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "outcomes"),
    [
        ({}, ("same", "same")),
        ({"shift": 0.15, "shift_error": 0.02}, ("same", "same")),  # a difference, and one that does not matter
        ({"shift": 0.3}, ("more", "same")),
        ({"shift": -0.3}, ("less", "same")),
        (
            {"shift": 0.19, "shift_error": 0.02},
            ("more", "same"),
        ),  # excludes no difference, and reaches out of the margin
        ({"shift_error": 0.2}, ("undecided", "same")),
        ({"shift": -0.1, "shift_error": 0.1}, ("undecided", "same")),
        ({"shift": 0.1, "shift_error": 0.1, "ratio": 0.96, "ratio_error": 0.03}, ("undecided", "undecided")),
        ({"ratio": 0.8}, ("same", "less")),
        ({"ratio": 1.2}, ("same", "more")),
        ({"ratio": 0.96}, ("same", "less")),  # 0.941 to 0.979
        ({"ratio": 0.99}, ("same", "same")),
        ({"ratio": 1.0, "ratio_error": 0.1}, ("same", "undecided")),
        ({"shift_error": math.nan, "ratio_error": math.nan}, ("undecided", "undecided")),
    ],
)
def test_a_verdict_is_judged_by_its_interval_against_the_margin(given, outcomes):
    found = judge(contrast(**given))
    assert (found["typicality"].outcome, found["variety"].outcome) == outcomes


def test_margins_are_the_users():
    found = judge(contrast(shift=0.3), {"typicality": 0.5})
    assert (found["typicality"].outcome, found["typicality"].margin) == ("same", 0.5)
    assert judge(contrast(ratio=0.8), {"variety": 0.3})["variety"].outcome == "same"


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        ({"spread": 0.1}, "margins: 'spread' is unknown; expected typicality or variety"),
        ({"typicality": 0}, "margins: expected typicality above 0, got 0"),
        ({"typicality": math.nan}, "margins: expected typicality above 0, got nan"),
        ({"variety": 1.0}, "margins: expected variety between 0 and 1, got 1.0"),
    ],
)
def test_margins_that_cannot_be_judged_by_are_refused(margins, message):
    with pytest.raises(ValueError, match=message):
        judge(contrast(), margins)


def test_the_samples_needed_are_those_of_the_formula():
    """n = N = 525 at a margin of 0.2: the square of the error is 1/n + 1/N there."""
    found = judge(contrast(shift_error=math.sqrt(2 / 100), count=100, parts=(1 / 100, 1 / 100)))["typicality"]
    assert (found.outcome, found.needed) == ("undecided", None)  # the reference has 100: no n would do
    assert found.reason == results.SMALL_REFERENCE
    found = judge(contrast(shift_error=math.sqrt(1 / 100 + 1 / 526), count=100, parts=(1 / 100, 1 / 526)))["typicality"]
    assert found.needed == pytest.approx(525, abs=2)
    se = math.sqrt(1 / found.needed + 1 / 526)
    chance = 2 * torch.special.ndtr(torch.tensor(0.2 / se - 1.959964)) - 1
    assert float(chance) == pytest.approx(0.8, abs=1e-3)


@pytest.mark.parametrize(
    ("given", "typical", "varied"),
    [
        ({}, "as typical as the reference", "as varied as the reference"),
        ({"shift": 0.5, "ratio": 0.5}, "more typical than the reference", "less varied than the reference"),
        ({"shift": 0.5, "few": "few groups"}, "more typical than the reference (few groups)",
         "as varied as the reference (few groups)"),
        ({"shift_error": 0.2, "parts": (0.0399, 0.0001)},
         "typicality: cannot tell from the reference's at this N; about 5,400 samples would tell",
         "as varied as the reference"),
        ({"shift_error": 0.2, "parts": (0.02, 0.02)},
         "typicality: cannot tell from the reference's since the reference is too small", "as varied as the reference"),
        ({"shift_error": math.nan, "ratio_error": math.nan},
         "typicality: cannot tell from the reference's since all samples belong to one group",
         "variety: cannot tell from the reference's since all samples belong to one group"),
    ],
)  # fmt: skip
def test_a_verdict_in_words(given, typical, varied):
    found = judge(contrast(**given))
    assert results.describe_typicality(found["typicality"]) == typical
    assert results.describe_variety(found["variety"]) == varied


# --- by simulation ---------------------------------------------------------------------------------------------------


def drawn(count: int, mean: float, generator: torch.Generator, shape: str = "gaussian") -> torch.Tensor:
    """Rows whose conformity has a given mean and shape, with a spread of 0.05."""
    z = torch.randn(count, generator=generator, dtype=torch.float64)
    if shape == "skewed":
        z = (torch.randn(2, count, 2, generator=generator).double().square().sum((0, 2)) - 4) / math.sqrt(8)
    return rows_with_cosine((mean + 0.05 * z).clamp(-0.95, 0.95), DIM, generator)


@pytest.mark.parametrize("shape", ["gaussian", "skewed"])
def test_the_intervals_cover_and_the_verdicts_seldom_err(shape):
    """200 runs: a coverage of 95% is known to 1.5%, so that 90% is three standard deviations below."""
    covered = {"shift": 0, "ratio": 0}
    wrong = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        reference = cc.ReferenceSet.fit(drawn(400, 0.6, generator, shape))
        metric = cc.Conformity(reference)
        metric.update(drawn(150, 0.6, generator, shape))
        value = {name: float(x) for name, x in metric.compute().items()}
        covered["shift"] += value["typicality_shift_low"] <= 0 <= value["typicality_shift_high"]
        covered["ratio"] += value["variety_ratio_low"] <= 1 <= value["variety_ratio_high"]
        wrong += value["typicality_shift_low"] > 0.2 or value["typicality_shift_high"] < -0.2
    assert covered["shift"] >= 180
    assert covered["ratio"] >= 180
    assert wrong == 0


def test_the_direction_of_a_real_shift_is_told(tmp_path):
    """Half a standard deviation either way, at 150 samples: an error is 0.1."""
    generator = torch.Generator().manual_seed(0)
    reference = cc.ReferenceSet.fit(drawn(1000, 0.6, generator))
    for mean, outcome in ((0.625, "more"), (0.575, "less")):
        for _ in range(10):
            found = scored(tmp_path, drawn(150, mean, generator), reference)
            assert found.verdicts["typicality"].outcome == outcome
            assert found.p_value < 0.05


def scored(folder, rows, reference, **options):
    np.save(folder / "rows.npy", rows.float().numpy())
    return score(embedding_source([folder / "rows.npy"]), reference, resamples=200, **options)


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
def test_a_point_mass_may_hide_what_is_rare(tmp_path):
    """20 equal samples: up to 17% of others would have stayed unseen in one case of 40."""
    generator = torch.Generator().manual_seed(0)
    reference = cc.ReferenceSet.fit(drawn(500, 0.6, generator))
    one = drawn(1, 0.6, generator)
    rows = one + 1e-3 * torch.randn(20, DIM, generator=generator)
    found = scored(tmp_path, rows, reference)
    low, high = found.figures["variety_ratio"].interval
    assert found.variety_ratio < 1e-4
    assert low < 1e-4
    # The rest as varied as the reference: 1 - (1 - d)^2 - 2 d (1 - d) C - d^2 SC, over 1 - SC.
    own, towards = float(reference.self_conformity), found.conformity_mean
    ends = []
    for buckets in (20, 12):  # some of the 20 share a bucket, which makes them fewer
        unseen = 1 - 0.025 ** (1 / buckets)
        ends.append((1 - (1 - unseen) ** 2 - 2 * unseen * (1 - unseen) * towards - unseen**2 * own) / (1 - own))
    assert ends[0] <= high <= ends[1]
    assert found.verdicts["variety"].outcome == "less"


@pytest.mark.parametrize(("size", "few"), [(30, "few samples"), (60, None)])
def test_few_samples_are_told(size, few, tmp_path):
    generator = torch.Generator().manual_seed(0)
    reference = cc.ReferenceSet.fit(drawn(500, 0.6, generator))
    found = scored(tmp_path, drawn(size, 0.66, generator), reference)
    assert found.verdicts["typicality"].outcome == "more"
    assert found.verdicts["typicality"].reason == few


def test_two_samples_have_figures_and_no_verdict(tmp_path):
    generator = torch.Generator().manual_seed(0)
    metric = cc.Conformity(cc.ReferenceSet.fit(drawn(500, 0.6, generator)))
    metric.update(drawn(2, 0.6, generator))
    value = metric.compute()
    assert math.isfinite(float(value["variety_ratio"]))
    assert math.isnan(float(value["variety_ratio_low"]))
    assert math.isnan(float(value["self_conformity_se"]))


# --- order, real halves ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [None, 5])
def test_sorted_and_shuffled_rows_give_the_same_figures(groups, generator):
    rows = ellipsoid_rows(600, DIM, generator)
    rows = rows[rows[:, 0].argsort()]
    labels = None if groups is None else torch.arange(600) // groups
    order = torch.randperm(600, generator=generator)
    reference = cc.ReferenceSet.fit(ellipsoid_rows(500, DIM, generator))
    found = []
    for places in (torch.arange(600), order):
        metric = cc.ConformityMetrics(reference, intervals=True)
        for part in places.split(37):
            metric.update(rows[part], groups=None if labels is None else labels[part])
        found.append({name: float(value) for name, value in metric.compute().items()})
    assert found[0] == pytest.approx(found[1], rel=1e-6, abs=1e-9)


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")  # 43 rows repeat others
def test_the_real_half_is_the_same_as_the_other(data_dir, tmp_path):
    """Random halves of the real images: as typical and as varied, in nearly all splits."""
    images = torch.load(data_dir / "vitb32-images-1803.pt", weights_only=True)[:, 0]
    outcomes, p_values = [], []
    for seed in range(20):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        reference = cc.ReferenceSet.fit(images[order[:901]], modality="image")
        found = scored(tmp_path, images[order[901:]], reference)
        outcomes.append((found.verdicts["typicality"].outcome, found.verdicts["variety"].outcome))
        p_values.append(found.p_value)
    assert outcomes.count(("same", "same")) >= 17
    assert all(outcome in ("same", "undecided") for pair in outcomes for outcome in pair)
    assert sum(p <= 0.05 for p in p_values) <= 4  # a chance of 0.3% with 20 splits


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
def test_another_modality_is_told_from_the_shift(data_dir, tmp_path):
    images = torch.load(data_dir / "vitb32-images-1803.pt", weights_only=True)[:, 0]
    texts = torch.from_numpy(np.load(data_dir / "vitb32-text-lvis-1203.npy"))
    found = scored(tmp_path, texts, cc.ReferenceSet.fit(images))
    assert any("are these embeddings of the other modality" in note for note in found.notes)


def test_a_set_against_itself_by_class_is_not_far_from_itself(data_dir):
    """With the own class among what rows are compared with, the shift was 1.02."""
    images = torch.load(data_dir / "vitb32-images-1803.pt", weights_only=True)[:, 0]
    classes = [line.rsplit("/", 2)[-2] for line in (data_dir / "vitb32-images-1803.txt").read_text().split()]
    metric = cc.Conformity(cc.ReferenceSet.fit(images, groups=classes))
    metric.update(images, groups=classes)
    value = metric.compute()
    assert abs(float(value["typicality_shift"])) < 1e-6
    assert float(value["variety_ratio"]) == pytest.approx(1, abs=1e-9)


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
def test_large_groups_leave_all_others_in_the_row_sample(data_dir):
    """Of the real images by class, 500 rows kept 3 of 7 classes, and the spread ratio to itself was 1.31."""
    images = torch.load(data_dir / "vitb32-images-1803.pt", weights_only=True)[:, 0]
    classes = [line.rsplit("/", 2)[-2] for line in (data_dir / "vitb32-images-1803.txt").read_text().split()]
    reference = cc.ReferenceSet.fit(images, groups=classes, max_samples=500)
    assert len(reference.sample.groups.unique()) == 7
    metric = cc.Conformity(reference)
    metric.update(images, groups=classes)
    assert float(metric.compute()["spread_ratio"]) == pytest.approx(1, abs=0.1)


# --- requirements ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(3)
    np.save(tmp_path / "rows.npy", drawn(300, 0.61, generator).float().numpy())
    cc.ReferenceSet.fit(drawn(500, 0.6, generator)).save(tmp_path / "r.safetensors")
    return tmp_path


def command(folder, *options) -> int:
    given = ["--embeddings", str(folder / "rows.npy"), "--reference", str(folder / "r.safetensors")]
    return main(["score", *given, "--resamples", "100", *options])


def test_a_requirement_is_judged_by_the_bound_of_the_interval(folder, capsys):
    assert command(folder) == 0
    result = json.loads(capsys.readouterr().out)
    low, value = result["typicality_shift_low"], result["typicality_shift"]
    between = (low + value) / 2
    assert command(folder, "--require", f"typicality_shift>={low - 0.01}") == 0
    capsys.readouterr()
    assert command(folder, "--quiet", "--require", f"typicality_shift>={between}") == 3
    reported = capsys.readouterr()
    assert json.loads(reported.out)["requirements"][0]["holds"] is False
    assert reported.err.count("\n") == 1
    assert f"--require typicality_shift>={between:g} does not hold: the value is {value:.4g}" in reported.err


def test_several_requirements_all_hold_or_the_status_is_3(folder, capsys):
    held = ["--require", "count_of_none>=1"]
    assert command(folder, *held) == 2
    assert "there is no figure 'count_of_none'" in capsys.readouterr().err
    both = ["--require", "variety_ratio<2", "--require", "p_value > 2"]
    assert command(folder, *both) == 3
    result = json.loads(capsys.readouterr().out)
    assert [one["holds"] for one in result["requirements"]] == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--require", "variety_ratio"], "--require: expected a requirement such as 'variety_ratio>=0.9'"),
        (["--require", "variety_ratio>=high"], "--require: expected a requirement"),
        (["--require", "variety_rati>=0.9"], "did you mean 'variety_ratio'?"),
        (["--margin", "typicality"], "--margin: expected NAME=NUMBER such as variety=0.05, got 'typicality'"),
        (["--margin", "spread=1"], "margins: 'spread' is unknown"),
        (
            ["--resamples", "1000000000"],
            "--resamples: 1,000,000,000 redraws, each of 16 KiB a few times over, are over",
        ),
    ],
)
def test_bad_requirements_and_margins_are_refused_before_anything_is_read(options, message, folder, capsys):
    assert command(folder, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_margins_of_the_command_reach_the_verdict(folder, capsys):
    assert command(folder, "--margin", "typicality=2,variety=0.5") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["verdicts"]["typicality"]["margin"] == 2
    assert result["verdicts"]["typicality"]["outcome"] == "same"
    assert result["verdicts"]["variety"]["margin"] == 0.5


def test_what_is_not_known_meets_no_requirement(tmp_path):
    generator = torch.Generator().manual_seed(0)
    reference = cc.ReferenceSet.fit(drawn(500, 0.6, generator))
    np.save(tmp_path / "rows.npy", drawn(60, 0.62, generator).float().numpy())
    source = embedding_source([tmp_path / "rows.npy"])
    source.batches = (batch._replace(groups=["one"] * len(batch.ids)) for batch in list(source.batches))
    found = score(source, reference, resamples=100)
    judged = Requirement.parse("typicality_shift>=0.1").judge(found)
    assert (judged["holds"], judged["judged_by"]) == (False, None)


@pytest.mark.parametrize(("name", "better"), [("conformity_mean", 1), ("conformity_kl", 0)])
@pytest.mark.parametrize("comparison", [">=", ">", "<=", "<"])
@pytest.mark.parametrize("bound", [0.3, 0.4, 0.5, 0.6, 0.7])
def test_a_requirement_holds_where_every_value_of_the_interval_meets_it(name, better, comparison, bound):
    """Of a divergence that is a lower bound nobody knows what it is below."""
    figure = results.Figure(0.5, "", "", "neither", 0.05, cc.Interval(0.4, 0.6))
    given = SimpleNamespace(figures={name: figure}, kl_is_lower_bound=True)
    meets = {
        ">=": bound <= 0.4, ">": bound < 0.4, "<=": bound >= 0.6 and better == 1, "<": bound > 0.6 and better == 1,
    }[comparison]  # fmt: skip
    judged = Requirement.parse(f"{name} {comparison} {bound}").judge(given)
    assert judged["holds"] == meets
    known = {">=": 0.4, ">": 0.4}.get(comparison, 0.6 if better else None)
    assert (judged["judged_by"], judged["value"]) == (known, 0.5)


@pytest.mark.parametrize(
    ("figure", "holds"),
    [
        (results.Figure(0.5, "", "", "neither"), True),  # a figure that has no interval
        (results.Figure(0.5, "", "", "neither", reason="one group"), False),
        (results.Figure(None, "", "", "neither", reason="one group"), False),
    ],
)
def test_a_figure_whose_uncertainty_is_not_known_meets_nothing(figure, holds):
    given = SimpleNamespace(figures={"p_value": figure}, kl_is_lower_bound=False)
    assert Requirement.parse("p_value>=0.1").judge(given)["holds"] == holds
    assert Requirement.parse("p_value<=0.9").judge(given)["holds"] == holds


@pytest.mark.parametrize("effect", [0.085, 0.1, 0.115])
def test_where_the_effect_is_between_the_samples_needed_tell_it_from_the_further_end(effect):
    """From zero or from the margin, in 80% of cases; twice as precise as independent sides, since both are paired."""
    found = judge(contrast(shift=effect, shift_error=0.06, count=500, parts=(0.007, 0.0002)))["typicality"]
    assert found.outcome == "undecided"
    paired = 0.06**2 / 0.0072
    error = math.sqrt(paired * (0.007 * 500 / found.needed + 0.0002))
    chances = [1 - torch.special.ndtr(torch.tensor(1.959964 - apart / error)) for apart in (effect, 0.2 - effect)]
    assert float(max(chances)) == pytest.approx(0.8, abs=2e-3)


def test_a_ratio_is_told_from_one_by_its_logarithm():
    found = judge(contrast(ratio=1.3, ratio_error=0.15, count=500), {"variety": 0.5})["variety"]
    assert found.outcome == "undecided"
    error = math.sqrt(0.15**2 / 1e-4 * (8e-5 * 500 / found.needed + 2e-5))
    chance = 1 - torch.special.ndtr(torch.tensor(1.959964 - math.log(1.3) / error))
    assert float(chance) == pytest.approx(0.8, abs=2e-3)


def test_an_interval_by_a_standard_error_is_that_of_students_t():
    fields = (Field("one", "", error="two"), Field("two", ""))
    values = {"one": torch.tensor(1.0).double(), "two": torch.tensor(0.5).double()}
    found = results.to_figures(fields, values, 7.0, "unknown")["one"]
    assert found.interval == pytest.approx(stats.t.interval(0.95, 7, loc=1.0, scale=0.5))
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 7) / 2)
