"""The six properties: their intervals, their verdicts, and the command."""

import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import ellipsoid_rows

from clipconformity.cli import main
from clipconformity.data import write_embeddings
from clipconformity.evaluation.geometry import (
    AT_THIS_N,
    FAILS,
    HOLDS,
    POPULATION,
    UNKNOWN,
    compute_gap_figures,
    six_properties,
)
from clipconformity.provenance import Provenance


def of(modality: str) -> Provenance:
    return Provenance(modality=modality)


def by_name(properties):
    return {(p.name, p.modality): p for p in properties}


def test_a_round_cloud_at_the_origin_has_none_of_the_four(generator):
    found = by_name(six_properties(torch.randn(800, 20, generator=generator)))
    assert {name for name, _ in found} == {"thin shell", "ellipsoid", "tilt", "offset"}
    assert all(p.verdict == FAILS for p in found.values())
    assert found["offset", "image"].low == 0
    assert found["offset", "image"].in_sample == pytest.approx(1 / math.sqrt(800), rel=0.5)


def test_a_tilted_ellipsoid_away_from_the_origin_has_all(generator):
    turn = torch.linalg.qr(torch.randn(300, 300, generator=generator))[0]
    rows = torch.randn(1500, 300, generator=generator) * torch.logspace(0.5, -0.5, 300) @ turn
    rows = 30 * rows / rows.norm(dim=1, keepdim=True) + 3
    found = by_name(six_properties(image=rows))
    assert found["thin shell", "image"].verdict == HOLDS
    assert found["offset", "image"].verdict == HOLDS
    assert found["tilt", "image"].verdict == HOLDS
    assert found["ellipsoid", "image"].verdict == HOLDS


@pytest.mark.parametrize("name", ["thin shell", "offset"])
def test_intervals_cover_repeated_draws(name):
    truth = by_name(six_properties(ellipsoid_rows(40_000, 10, torch.Generator().manual_seed(0))))[name, "image"].value
    covered = 0
    for seed in range(1, 61):
        p = by_name(six_properties(ellipsoid_rows(500, 10, torch.Generator().manual_seed(seed))))[name, "image"]
        covered += p.low <= truth <= p.high
    assert covered >= 50  # 95% nominal: below 50 of 60 in one of 10,000 cases


@pytest.mark.parametrize("count", [20, 24, 64])
def test_the_interval_of_the_shell_is_that_of_the_jackknife(count, generator):
    rows = ellipsoid_rows(count, 4, generator).double()
    p = by_name(six_properties(rows))["thin shell", "image"]
    left = [np.delete(rows.numpy(), i, axis=0) for i in range(count)]
    norms = [np.linalg.norm(x - x.mean(0), axis=1) for x in left]
    logs = np.array([math.log(d.mean() ** 2 / d.var(ddof=1)) for d in norms])
    error = math.sqrt((count - 1) / count * ((logs - logs.mean()) ** 2).sum())
    assert math.log(p.high / p.value) / error == pytest.approx(scipy.stats.t.ppf(0.975, count - 1), rel=1e-6)


def test_every_property_says_what_its_interval_covers(generator):
    image, text = (ellipsoid_rows(120, 8, generator, offset=sign * 2.0) for sign in (1, -1))
    covers = {name: p.covers for (name, _), p in by_name(six_properties(image, text, logit_scale=10.0)).items()}
    assert {name for name, what in covers.items() if what == POPULATION} == {"thin shell", "ellipsoid", "offset"}
    assert set(covers.values()) == {POPULATION, AT_THIS_N}


def test_the_ellipsoid_is_the_populations_where_rows_are_few_for_their_dimensions(generator):
    """25 rows of a sphere in 300 dimensions have a participation ratio of 23; the population's is 300."""
    p = by_name(six_properties(torch.randn(25, 300, generator=generator) + 1))["ellipsoid", "image"]
    assert p.in_sample < 25
    assert p.low < 300 <= p.high
    assert p.low > 150
    assert p.verdict == FAILS


def test_a_separation_is_no_better_known_than_the_smaller_class(generator):
    image, text = ellipsoid_rows(1500, 4, generator, 3.0), ellipsoid_rows(20, 4, generator, -3.0)
    p = by_name(six_properties(image, text))["linear separability", "both"]
    assert p.value == 1.0
    assert p.low == pytest.approx(1 - (1 - 0.025 ** (1 / 20)) / 2, abs=1e-3)  # 0 of 20 wrong: up to 17% may be
    assert p.verdict == UNKNOWN


def test_an_interval_that_straddles_its_threshold_cannot_tell():
    rows = ellipsoid_rows(60, 8, torch.Generator().manual_seed(0), offset=0.5)
    undecided = [p for p in six_properties(rows) if p.verdict == UNKNOWN]
    assert undecided
    for p in undecided:
        threshold = float(p.threshold.split()[1].rstrip(","))
        assert p.low < threshold < p.high


def test_pairs_add_separability_and_the_loss(generator):
    image, text = (ellipsoid_rows(120, 8, generator, offset=sign * 2.0) for sign in (1, -1))
    found = by_name(six_properties(image, text, logit_scale=10.0))
    assert found["linear separability", "both"].value == 1.0
    assert ("loss at alpha 0", "both") in found
    assert ("loss at alpha 0", "both") not in by_name(six_properties(image, text, paired=False))


def test_the_real_embeddings_are_separable_on_known_dimensions(images, lvis):
    p = by_name(six_properties(images, lvis.float()))["linear separability", "both"]
    assert p.value == 1.0
    assert p.verdict == HOLDS
    dims = {int(word) for word in p.quantity.replace(",", " ").replace("(", " ").split() if word.isdigit()}
    assert dims - {2, 0} <= {92, 133, 312}


def test_the_real_pairs_have_their_lowest_loss_at_zero(data_dir):
    pairs = torch.from_numpy(np.load(data_dir / "vitb16-coco-pairs-500-unit.npy"))
    p = by_name(six_properties(pairs[0], pairs[1]))["loss at alpha 0", "both"]
    assert p.value == 0.0
    assert p.verdict == HOLDS


def test_the_command_prints_a_table_and_json(tmp_path, capsys, generator):
    for name, sign in (("image", 1), ("text", -1)):
        write_embeddings(
            tmp_path / f"{name}.safetensors",
            ellipsoid_rows(80, 8, generator, sign * 2.0),
            provenance=of(name),
        )
    files = ["--image-embeddings", str(tmp_path / "image.safetensors")]
    assert main(["geometry", *files, "--text-embeddings", str(tmp_path / "text.safetensors")]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert len(result["properties"]) == 10
    assert all(math.isfinite(p["value"]) and p["low"] <= p["high"] for p in result["properties"])
    gap = result["gap"]
    assert set(gap) == {"gap", "raw_gap", "matched_cosine", "squared_gap", "null", "low", "high"}
    assert gap["low"] < gap["gap"] < gap["high"]
    assert "verdict" in err
    assert main(["geometry", *files]) == 0
    assert len(json.loads(capsys.readouterr().out)["properties"]) == 4


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.ones(50, 4), "norm"),
        (torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), "at least 20 samples, got 5"),
        (torch.full((50, 4), float("nan")), "NaN"),
        (
            torch.nn.functional.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0))),
            "L2-normalised",
        ),
    ],
)
def test_bad_embeddings_are_refused_in_one_line(tmp_path, capsys, rows, message):
    write_embeddings(tmp_path / "a.safetensors", rows)
    assert main(["geometry", "--image-embeddings", str(tmp_path / "a.safetensors")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_file_of_another_modality_and_no_file_are_refused(tmp_path, capsys, generator):
    write_embeddings(tmp_path / "a.safetensors", ellipsoid_rows(80, 8, generator), provenance=of("text"))
    assert main(["geometry", "--image-embeddings", str(tmp_path / "a.safetensors")]) == 2
    assert "holds text embeddings" in capsys.readouterr().err
    assert main(["geometry"]) == 2
    assert "got neither" in capsys.readouterr().err


def clustered(groups, each, seed, spread=0.5):
    """Rows of which those of a group share most of what they are."""
    generator = torch.Generator().manual_seed(seed)
    centre = ellipsoid_rows(groups, 10, generator)
    rows = centre.repeat_interleave(each, 0)
    rows = rows + spread * torch.randn(rows.shape, generator=generator, dtype=rows.dtype)
    return rows, torch.arange(groups).repeat_interleave(each)


def test_rows_that_come_five_times_count_once_where_their_groups_are_told(generator):
    rows = ellipsoid_rows(400, 10, generator)
    group = torch.arange(400).repeat_interleave(5)
    once, again = (by_name(p) for p in (six_properties(rows), six_properties(rows[group], image_groups=group)))
    alone = by_name(six_properties(rows[group]))
    for key, p in once.items():
        assert again[key].value == pytest.approx(p.value, rel=0.01)
        assert again[key].high - again[key].low == pytest.approx(p.high - p.low, rel=0.02)
        assert alone[key].high - alone[key].low < 0.7 * (p.high - p.low)
        assert again[key].samples == 2000
    assert again["offset", "image"].null == once["offset", "image"].null


@pytest.mark.parametrize(
    "name", ["thin shell", "ellipsoid", "offset"]
)  # the tilt grows with fewer rows, as its null does
def test_intervals_cover_repeated_draws_of_groups(name):
    truth = by_name(six_properties(clustered(20_000, 4, seed=0)[0]))[name, "image"].value
    covered = 0
    for seed in range(1, 61):
        rows, group = clustered(300, 4, seed)
        p = by_name(six_properties(rows, image_groups=group))[name, "image"]
        covered += p.low <= truth <= p.high
    assert covered >= 50


def test_the_order_and_the_names_of_groups_do_not_matter(generator):
    rows, group = clustered(50, 3, seed=1)
    order = torch.randperm(150, generator=generator)
    first, second = (
        by_name(six_properties(r, text_groups=None, image_groups=g))
        for r, g in ((rows, group), (rows[order], 7 * group[order] - 100))
    )
    for key, p in first.items():
        if key[0] != "tilt":  # whose null permutes the rows
            assert p.low == pytest.approx(second[key].low, rel=1e-6)


def test_groups_that_do_not_fit_or_are_too_few_are_refused(generator):
    rows = ellipsoid_rows(60, 8, generator)
    with pytest.raises(ValueError, match=r"image_groups: expected one id for each of 60 rows, got \(59,\)"):
        six_properties(rows, image_groups=torch.arange(59))
    with pytest.raises(ValueError, match="text_groups: expected at least 20 groups, got 12"):
        six_properties(text=rows, text_groups=torch.arange(60) % 12)


def test_the_command_leaves_out_the_groups_of_a_file(tmp_path, capsys):
    rows, group = clustered(80, 3, seed=2)
    for name, groups in (("plain", None), ("grouped", group)):
        write_embeddings(tmp_path / f"{name}.safetensors", rows.float(), groups=groups, provenance=of("text"))
    wide = {}
    for name in ("plain", "grouped"):
        assert main(["geometry", "--text-embeddings", str(tmp_path / f"{name}.safetensors")]) == 0
        found = json.loads(capsys.readouterr().out)["properties"]
        wide[name] = {p["name"]: p["high"] - p["low"] for p in found}
    assert all(wide["grouped"][name] > 1.2 * wide["plain"][name] for name in ("offset", "thin shell"))


@pytest.mark.parametrize("paired", [True, False])
def test_the_gap_leaves_out_groups_together(paired):
    (image, _), (text, group) = clustered(60, 4, seed=1), clustered(60, 4, seed=2)
    plain = compute_gap_figures(image, text - 3, paired=paired)
    grouped = compute_gap_figures(image, text - 3, paired=paired, image_groups=torch.arange(240), text_groups=group)
    both = compute_gap_figures(image, text - 3, paired=paired, image_groups=group, text_groups=group)
    widths = [found["high"] - found["low"] for found in (plain, grouped, both)]
    assert grouped["gap"] == plain["gap"]
    assert grouped["null"] > plain["null"]
    assert widths[1] > 1.1 * widths[0]
    assert widths[2] == pytest.approx(widths[1], rel=1e-9) if paired else widths[2] > widths[1]


def test_the_command_refuses_files_of_different_encoders(tmp_path, capsys):
    rows = ellipsoid_rows(60, 8, torch.Generator().manual_seed(0)).float()
    for name, spec in (("image", "hf:A"), ("text", "hf:B")):
        write_embeddings(tmp_path / f"{name}.safetensors", rows, provenance=Provenance(spec, None, name))
    files = [f"--{name}-embeddings={tmp_path / name}.safetensors" for name in ("image", "text")]
    assert main(["geometry", *files]) == 2
    assert "different encoders (hf:A, hf:B)" in capsys.readouterr().err
    for name, spec in (("image", "hf:A"), ("text", "folder of A")):  # one checkpoint under two names
        path = tmp_path / f"{name}.safetensors"
        write_embeddings(path, rows, provenance=Provenance(spec, {"weights": "a"}, name))
    assert main(["geometry", *files]) == 0
