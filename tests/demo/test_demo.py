"""The demo's figures, plot and table, and the commands on images and captions."""

import errno
import json
import shutil
import warnings

import pytest
import torch
from PIL import Image

from clipconformity.cli import main
from clipconformity.data import read_embeddings
from clipconformity.demo import draw_scene, sample_scenes, simulation, write_coco_scenes
from clipconformity.stream.reference import ReferenceSet

KEYS = {"conformity_mean", "conformity_std", "self_conformity_mean", "conformity_kl", "kl_low", "kl_high"}
KEYS |= {"noise_floor", "norm_mean", "count"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    output = tmp_path_factory.mktemp("demo")
    assert main(["demo", "-o", str(output)]) == 0
    return json.loads((output / "results.json").read_text()), output


def test_every_run_has_its_figures(demo):
    results, output = demo
    assert set(results["runs"]) == set(simulation.RUNS)
    for run in results["runs"].values():
        assert set(run) >= KEYS
        assert run["kl_low"] <= run["conformity_kl"] <= run["kl_high"]
    assert set(results["reference"]) >= {
        "image_conformity_mean",
        "text_conformity_mean",
        "image_self_conformity_mean",
    }
    with Image.open(output / "distributions.png") as plot:
        assert plot.format == "PNG"
        assert min(plot.size) > 400


def test_the_order_comes_out_of_the_measurement(demo):
    results, _ = demo
    runs, reference = results["runs"], results["reference"]
    common, diverse, single = (runs[f"images-{name}"] for name in ("common", "diverse", "single"))
    assert common["conformity_mean"] > diverse["conformity_mean"]
    apart = {name: abs(runs[name]["conformity_mean"] - reference["image_conformity_mean"]) for name in runs}
    assert apart["images-diverse"] < apart["images-common"]
    assert diverse["kl_high"] < common["kl_low"]
    assert single["self_conformity_mean"] > max(common["self_conformity_mean"], diverse["self_conformity_mean"]) + 0.2
    assert abs(single["typicality_shift"]) < 0.25  # conformity hardly sees it
    generic, specific = runs["captions-generic"], runs["captions-specific"]
    human = reference["text_conformity_mean"]
    assert generic["conformity_mean"] - 1.96 * generic["conformity_se"] > human
    assert specific["conformity_mean"] + 1.96 * specific["conformity_se"] < human


@pytest.mark.slow
def test_a_second_demo_replaces_the_first(demo, tmp_path, monkeypatch, capsys):
    output = tmp_path / "again"
    shutil.copytree(demo[1], output)
    (output / "notes.txt").write_text("mine")
    (output / ".scenes.1.tmp").mkdir()  # of a demo that was killed
    (output / "report.html").write_text("older")
    monkeypatch.setattr(simulation, "REAL", 200)
    monkeypatch.setattr(simulation, "GENERATED", 60)
    assert main(["demo", "-o", str(output)]) == 0
    assert "conformity" in (output / "report.html").read_text()
    assert json.loads((output / "results.json").read_text())["reference"]["image_count"] == 200
    assert sorted(path.name for path in output.iterdir()) == [
        "distributions.png",
        "notes.txt",
        "report.html",
        "results.json",
    ]


@pytest.mark.parametrize("content", ["mine", "{}", '{"runs": 3}', '{"runs": {"images-common": {}}}', "[]"])
@pytest.mark.parametrize("name", ["results.json", "report.html", "thesis.tex"])
def test_a_folder_that_no_demo_made_is_refused(name, content, tmp_path, monkeypatch, capsys):
    (tmp_path / name).write_text(content)
    monkeypatch.setattr(simulation, "load_encoder", None)  # before any work
    assert main(["demo", "-o", str(tmp_path)]) == 2
    assert "holds files that a demo did not make; name a new folder, or an empty one" in capsys.readouterr().err
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, content)]


@pytest.mark.slow
def test_a_demo_that_fails_leaves_an_earlier_one_as_it_was(demo, tmp_path, monkeypatch):
    output = tmp_path / "again"
    shutil.copytree(demo[1], output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(simulation, "_write_report", fail)
    monkeypatch.setattr(simulation, "REAL", 200)
    monkeypatch.setattr(simulation, "GENERATED", 60)
    assert main(["demo", "-o", str(output)]) == 1
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


@pytest.fixture
def scenes(tmp_path):
    write_coco_scenes(tmp_path / "coco", sample_scenes(60, seed=1), seed=1)
    return tmp_path / "coco"


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, json.loads(out) if code == 0 else None, err


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning")
def test_images_go_through_embed_reference_and_score(scenes, tmp_path, capsys):
    images, file, reference = scenes / "val2017", tmp_path / "e.safetensors", tmp_path / "r.safetensors"
    code, reported, _ = run(capsys, "embed", "--images", images, "--encoder", "tiny", "-o", file)
    assert (code, reported["count"], reported["modality"]) == (0, 60, "image")
    assert read_embeddings(file).ids[0] == "000000000001.png"
    assert run(capsys, "reference", "--images", images, "--encoder", "tiny", "-o", reference)[0] == 0
    code, direct, _ = run(capsys, "score", "--images", images, "--reference", reference, "--resamples", 50)
    assert code == 0
    code, embedded, _ = run(capsys, "score", "--embeddings", file, "--reference", reference, "--resamples", 50)
    assert code == 0
    assert direct["conformity_mean"] == pytest.approx(embedded["conformity_mean"], abs=1e-6)
    assert direct["measured"]["encoder"] == "tiny"


def test_captions_of_one_image_form_a_group(scenes, tmp_path, capsys):
    captions, reference = scenes / "annotations" / "captions_val2017.json", tmp_path / "r.safetensors"
    code, reported, _ = run(capsys, "reference", "--captions", captions, "--encoder", "tiny", "-o", reference)
    assert (code, reported["count"], reported["grouped"], reported["modality"]) == (0, 300, True, "text")
    loaded = ReferenceSet.load(reference)
    assert len(loaded.sample.groups.unique()) == 60
    code, _, err = run(capsys, "score", "--images", scenes / "val2017", "--reference", reference)
    assert code == 2
    assert "the samples are image and the reference is text" in err


def test_unreadable_images_stop_the_command_or_are_counted(scenes, tmp_path, capsys):
    images = scenes / "val2017"
    (images / "000000000007.png").write_bytes(b"broken")
    output = tmp_path / "r.safetensors"
    code, _, err = run(capsys, "reference", "--images", images, "--encoder", "tiny", "-o", output)
    assert code == 2
    assert "000000000007.png" in err
    assert not output.exists()
    arguments = ("reference", "--images", images, "--encoder", "tiny", "-o", output, "--on-error", "skip")
    code, reported, _ = run(capsys, *arguments)
    assert (code, reported["count"], reported["skipped"]["count"]) == (0, 59, 1)
    assert reported["skipped"]["files"][0]["id"] == "000000000007.png"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "empty", "--encoder", "tiny"], "no images in this folder"),
        (["--images", "absent", "--encoder", "tiny"], "expected a folder of images"),
        (["--captions", "empty.txt", "--encoder", "tiny"], "holds no captions"),
        (["--captions", "broken.json", "--encoder", "tiny"], "broken JSON"),
        (["--images", "images", "--encoder", "tinny"], "did you mean 'tiny'"),
        (["--images", "images"], "say which encoder"),
        (["--images", "images", "--encoder", "tiny", "--modality", "text"], "got text with --images"),
        (["--images", "images", "--encoder", "tiny", "--batch-size", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "images").mkdir()
    draw_scene(sample_scenes(1, seed=1)[0], seed=1).save(tmp_path / "images" / "a.png")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "broken.json").write_text("[{")
    code, _, err = run(capsys, "reference", *arguments, "-o", "out.safetensors")
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_a_reference_of_another_encoder_is_refused(scenes, tmp_path, capsys):
    reference, changed = tmp_path / "r.safetensors", tmp_path / "other"
    assert run(capsys, "reference", "--images", scenes / "val2017", "--encoder", "tiny", "-o", reference)[0] == 0
    from transformers import CLIPModel

    from clipconformity.encoders.registry import TINY

    changed.mkdir()
    for file in TINY.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    model = CLIPModel.from_pretrained(TINY)
    with torch.no_grad():
        model.visual_projection.weight.mul_(1.5)
    model.save_pretrained(changed)
    code, _, err = run(capsys, "score", "--images", scenes / "val2017", "--reference", reference, "--encoder", changed)
    assert code == 2
    assert "weights of the encoder" in err


def test_truncated_captions_are_counted_in_the_json(tmp_path, capsys):
    (tmp_path / "long.txt").write_text("a red circle\n" * 20 + "red " * 40 + "circle\n")
    arguments = (
        "reference",
        "--captions",
        tmp_path / "long.txt",
        "--encoder",
        "tiny",
        "-o",
        tmp_path / "r.safetensors",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # as in a shell, where the command says it on standard error
        code, reported, err = run(capsys, *arguments)
    assert (code, reported["truncated"]) == (0, 1)
    assert "is cut to the context length" in err


def test_a_file_for_the_demos_folder_is_told(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    code, _, error = run(capsys, "demo", "-o", tmp_path / "taken")
    assert code == 2
    assert error.count("\n") == 1
    assert "taken is a file; name a folder" in error
