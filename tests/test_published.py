"""The scripts for published files, on files of the same form."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import brute_conformity, brute_self_conformity, ellipsoid_rows

import clipconformity as cc
from clipconformity.demo import sample_scenes, scene_captions, specific_caption

ROOT = Path(__file__).resolve().parents[1]
COUNT = 60


def script(folder: str, name: str):
    """Import a script by its path: it stands alone."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _no_window(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")


# --- captioners ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def captioners(tmp_path_factory) -> Path:
    """Results files: a person, a captioner of one sentence, and one that says everything."""
    folder = tmp_path_factory.mktemp("captioners")
    scenes = sample_scenes(COUNT, seed=0)
    human = [scene_captions(scene, count=5 + (n % 7 == 0), seed=n) for n, scene in enumerate(scenes)]
    said = {
        "person_result": [scene_captions(scene, count=1, seed=1000 + n)[0] for n, scene in enumerate(scenes)],
        "single_result": ["a red circle on a blue background"] * COUNT,
        "mscoco_in_domain_specific": [specific_caption(scene) for scene in scenes],
    }
    for name, captions in said.items():
        entries = [
            {"split": "test", "image_name": f"COCO_val2014_{n:012d}.jpg", "captions": human[n], "prediction": caption}
            for n, caption in enumerate(captions)
        ]
        entries = entries if name != "single_result" else entries[5:]  # some files lack images
        (folder / f"{name}.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
@pytest.mark.filterwarnings("ignore:.*is cut to the context length")
def test_captioners_are_compared_with_people_whose_captions_are_not_in_the_reference(captioners, tmp_path, capsys):
    module = script("examples", "published_captions")
    folder = str(captioners)
    assert module.main([folder, "--encoder", "tiny", "--device", "cpu", "--images", "50", "-o", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "single: 1 distinct captions" in shown
    reported = json.loads((tmp_path / "comparison.json").read_text())
    runs, people = module.read_files(captioners)
    assert set(reported["runs"]) == {"people", *runs} == {"people", "person", "single", "specific"}
    images = reported["images"]
    assert len(set(images)) == 50
    assert set(images) <= set(range(5, COUNT))
    person = reported["runs"]["people"]
    assert person["reference"]["count"] == sum(len(people[image]) - 1 for image in images)
    assert reported["runs"]["single"]["self_conformity_mean"] == pytest.approx(1, abs=1e-6)
    assert reported["ranks"]["variety_ratio"]["single"] == len(reported["runs"])
    assert reported["runs"]["single"]["verdicts"]["variety"]["outcome"] == "less"
    assert person["verdicts"]["variety"]["outcome"] != "less"
    assert len(reported["folds"]["typicality_shift"]) == 5
    assert (tmp_path / "map.png").stat().st_size > 1000
    assert "people is more varied than single" in (tmp_path / "differences.txt").read_text()

    # By brute force: the same draws, and no caption compared with those of its own image.
    draw = random.Random(0)
    assert images == draw.sample(sorted(range(5, COUNT), key=str), 50)
    orders = {image: draw.sample(people[image], len(people[image])) for image in images}
    tiny = cc.load_encoder("tiny", "cpu")
    left = torch.nn.functional.normalize(tiny([orders[image][0] for image in images]).double())
    others = torch.nn.functional.normalize(tiny([text for image in images for text in orders[image][1:]]).double())
    of = torch.tensor([n for n, image in enumerate(images) for _ in orders[image][1:]])
    cosine = left @ others.T
    own = of[None] == torch.arange(50)[:, None]
    # The figures leave out pairs of a bucket, which are few more than those of an image.
    assert person["conformity_mean"] == pytest.approx(float(cosine[~own].mean()), abs=2e-3)
    assert abs(person["conformity_mean"] - float(cosine.mean())) > 2e-3  # own images would show
    assert f"people: {len({orders[i][0] for i in images})} distinct captions; cosine {cosine[own].mean():.3f}" in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", ["published_captions", "published_generators"])
def test_a_folder_without_files_is_told_in_one_line(name, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert str(tmp_path) in done.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["published_captions", "published_generators"])
def test_the_help_says_where_the_files_are(name, capsys):
    with pytest.raises(SystemExit):
        script("examples", name).main(["--help"])
    shown = capsys.readouterr().out
    assert "github.com/" in shown
    assert "no licence" in " ".join(shown.split()) or "no\nlicence" in shown
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) <= 120


# --- generators ------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning")
def test_generators_are_compared_with_the_reference_and_its_other_half(tmp_path, capsys):
    module = script("examples", "published_generators")
    draw = torch.Generator().manual_seed(0)
    rows = {"embeddings_coco.npy": ellipsoid_rows(200, 16, draw)}
    for number, file in enumerate(module.RUNS.values()):
        rows[file] = ellipsoid_rows(60 + 10 * number, 16, draw, offset=1.0 + 0.1 * number)
    for file, one in rows.items():
        np.save(tmp_path / file, one.numpy())
    assert module.main([str(tmp_path), "-o", str(tmp_path / "out")]) == 0
    reported = json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"]
    reference = rows["embeddings_coco.npy"]
    for name, file in module.RUNS.items():
        assert reported[name]["conformity_mean"] == pytest.approx(
            brute_conformity(rows[file], reference).mean(), abs=1e-9
        )
        assert reported[name]["self_conformity_mean"] == pytest.approx(brute_self_conformity(rows[file]), abs=1e-9)
        assert {"cmmd", "precision", "recall", "vendi_equal_n"} <= set(reported[name])
    shown = capsys.readouterr().out
    assert shown.count("| run | N |") == len(module.TABLES)
    assert (tmp_path / "out" / "map.png").stat().st_size > 1000


# --- geometry --------------------------------------------------------------------------------------------------------


def test_lines_are_those_of_numpy_and_their_intervals_hold_the_population():
    module = script("benchmarks", "beyond_clip")
    draw = torch.Generator().manual_seed(0)
    rows = ellipsoid_rows(600, 12, draw)
    x = rows.double().numpy()
    c = brute_conformity(rows)
    cos = (x @ x.mean(0)) / np.linalg.norm(x, axis=1) / np.linalg.norm(x.mean(0))
    expected = {
        "C = a cos": np.polyfit(cos, c, 1)[0],
        "cos = a C": np.polyfit(c, cos, 1)[0],
        "r": np.corrcoef(c, cos)[0, 1],
        "norm and C": np.corrcoef(np.linalg.norm(x, axis=1), c)[0, 1],
    }
    found = module.lines(rows, None)
    large = module.lines(ellipsoid_rows(20_000, 12, draw), None)
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, abs=1e-9)
        low, high = found[name][1]
        assert low < large[name][0] < high
        assert high - low < 0.5


def test_rows_of_an_image_are_left_out_together():
    module = script("benchmarks", "beyond_clip")
    rows = ellipsoid_rows(150, 12, torch.Generator().manual_seed(0)).repeat_interleave(4, 0)
    apart = module.lines(rows, None)
    together = module.lines(rows, torch.arange(150).repeat_interleave(4))
    for name in module.LINES:
        width, narrow = (found[name][1].high - found[name][1].low for found in (together, apart))
        assert width > 1.4 * narrow  # twice, of four equal rows
