"""What a killed run has encoded is taken up by the next, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors import safe_open

from clipconformity.cli import encoded as encoded_parts
from clipconformity.cli import main, parts
from clipconformity.data import read_embeddings
from clipconformity.data.locks import try_lock
from clipconformity.demo import sample_scenes, write_coco_scenes
from clipconformity.encoders.base import BaseEncoder
from clipconformity.encoders.registry import TINY

# As the commands show them.
pytestmark = pytest.mark.filterwarnings("always")

IMAGES = ["--images", "coco/val2017", "--batch-size", "4", "--encoder", "tiny", "--on-error", "skip"]
CAPTIONS = ["--captions", "c.json", "--batch-size", "4", "--encoder", "tiny"]
COMMANDS = {
    f"{command} {kind}": [command, *source, "-o", "out.safetensors"]
    for command in ("embed", "reference")
    for kind, source in (("images", IMAGES), ("captions", CAPTIONS))
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write_coco_scenes(tmp_path / "coco", sample_scenes(30, seed=0), captions_per_image=2, seed=0)
    shutil.copy(tmp_path / "coco" / "annotations" / "captions_val2017.json", tmp_path / "c.json")
    captions = json.loads((tmp_path / "c.json").read_text())
    captions["annotations"][3]["caption"] = "red " * 60 + "circle"  # cut
    (tmp_path / "c.json").write_text(json.dumps(captions))
    (tmp_path / "coco" / "val2017" / "000000000005.png").write_bytes(b"broken")  # skipped
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoded_parts, "SAMPLES", 4)
    return tmp_path


@pytest.fixture
def encoded(monkeypatch):
    """Count the samples that are encoded; at the given number Ctrl-C comes."""
    found = {"samples": 0, "stop": None}

    def counted(name):
        encode = getattr(BaseEncoder, name)

        def wrapper(self, batch, *arguments, **options):
            values = encode(self, batch, *arguments, **options)
            found["samples"] += len(values)
            if found["stop"] is not None and found["samples"] >= found["stop"]:
                signal.raise_signal(signal.SIGINT)
            return values

        monkeypatch.setattr(BaseEncoder, name, wrapper)

    counted("project_image")
    counted("encode_text")
    monkeypatch.setattr(BaseEncoder, "_try", lambda self: None)  # it encodes a square and a word
    return found


def content(path: str) -> tuple[dict, dict]:
    """Every byte of the tensors, and the metadata, whose order safetensors draws."""
    with safe_open(path, framework="np") as file:
        return {name: file.get_tensor(name).tobytes() for name in file.keys()}, file.metadata()  # noqa: SIM118


def names() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if path.name not in ("coco", "c.json"))


def stopped(command: list[str], encoded: dict, stop: int) -> None:
    encoded.update(samples=0, stop=stop)
    assert main(command) == 130
    encoded.update(samples=0, stop=None)
    assert names() == ["out.safetensors.parts"]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_was_encoded_is_taken_up_bit_for_bit(command, folder, encoded, capsys):
    arguments = COMMANDS[command]
    assert main(arguments) == 0
    assert names() == ["out.safetensors"]
    reported, whole, total = json.loads(capsys.readouterr().out), content("out.safetensors"), encoded["samples"]
    assert ("skipped" in reported, "truncated" in reported) == ("images" in command, "captions" in command)
    Path("out.safetensors").unlink()
    for stop in (13, 9):  # stopped twice, the second time further on
        stopped(arguments, encoded, stop)
    assert "what is finished is kept in out.safetensors.parts" in capsys.readouterr().err
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert 0 < encoded["samples"] < total - 16
    assert f"{total - encoded['samples'] + ('images' in command)} of " in captured.err
    assert json.loads(captured.out) == reported
    assert content("out.safetensors") == whole
    assert names() == ["out.safetensors"]


@pytest.mark.parametrize("change", ["image", "encoder", "batch size", "order", "damage"])
def test_what_is_of_other_samples_is_encoded_anew(change, folder, encoded, capsys):
    arguments = [*COMMANDS["embed images"]]
    stopped(arguments, encoded, 20)
    images = sorted(Path("coco/val2017").iterdir())
    if change == "image":
        shutil.copy(images[20], images[1])
        os.utime(images[1], ns=(0, 0))
    elif change == "encoder":
        arguments[arguments.index("tiny")] = "encoder"
        shutil.copytree(TINY, "encoder")
        config = json.loads(Path("encoder/preprocessor_config.json").read_text())
        Path("encoder/preprocessor_config.json").write_text(json.dumps(config | {"image_mean": [0.4, 0.4, 0.4]}))
    elif change == "batch size":
        arguments[arguments.index("4")] = "5"
    elif change == "order":
        images[1].rename("coco/val2017/000000000099.png")
    else:
        Path("out.safetensors.parts/00-000000.safetensors").write_bytes(b"broken")
    assert main(arguments) == 0
    reported = capsys.readouterr().err
    # Of five parts, 19 images and a broken one, the first has changed, or all of them have.
    assert encoded["samples"] == (29 - 15 if change in ("image", "damage") else 29)
    assert ("16 of 30 samples are taken up" in reported) == (change in ("image", "damage"))
    foreign = {"image": "1 of the parts", "damage": None}.get(change, "5 of the parts")
    assert reported.count("of other work") == (foreign is not None)
    assert foreign is None or foreign in reported
    again = [*arguments[:-1], "again.safetensors"]
    assert main(again) == 0
    assert content("again.safetensors") == content("out.safetensors")
    assert not Path("out.safetensors.parts").exists()


def test_a_sample_that_changed_behind_them_leaves_the_first_parts_valid(folder, encoded):
    stopped(COMMANDS["embed images"], encoded, 20)
    last = max(Path("coco/val2017").iterdir())
    last.unlink()
    assert main(COMMANDS["embed images"]) == 0
    assert encoded["samples"] == 28 - 19  # five batches of four, one of them with the broken one
    assert len(read_embeddings("out.safetensors").ids) == 28


def test_a_folder_of_that_name_with_other_things_in_it_is_left_alone(folder):
    Path("out.safetensors.parts").mkdir()
    Path("out.safetensors.parts/thesis.tex").write_text("mine")
    assert main(COMMANDS["embed images"]) == 0
    assert names() == ["out.safetensors", "out.safetensors.parts"]
    assert [path.name for path in Path("out.safetensors.parts").iterdir()] == ["thesis.tex"]


def test_a_signal_while_the_folder_is_locked_leaves_nothing(folder, encoded, monkeypatch):
    def interrupted(path):
        lock = try_lock(path)
        signal.raise_signal(signal.SIGINT)
        return lock

    monkeypatch.setattr(parts, "try_lock", interrupted)
    assert main(COMMANDS["embed images"]) == 130
    assert not Path("out.safetensors.parts").exists()


def test_a_short_run_that_fails_leaves_nothing(folder, encoded, monkeypatch):
    monkeypatch.setattr(encoded_parts, "SAMPLES", 512)
    encoded["stop"] = 13
    assert main(COMMANDS["embed images"]) == 130
    assert names() == []


def test_texts_that_were_cut_are_counted_of_all_captions(folder, encoded, capsys):
    assert main(["reference", *CAPTIONS, "-o", "r.safetensors", "--quiet"]) == 0
    shutil.copy("c.json", "people.json")
    command = ["score", *IMAGES, "--captions", "c.json", "--caption-references", "people.json", "--resamples", "5"]
    for cache in ([], ["--cache", "kept"], ["--cache", "kept"]):
        capsys.readouterr()
        assert main([*command, "--modality", "text", "--reference", "r.safetensors", *cache]) == 0
        assert json.loads(capsys.readouterr().out)["truncated"] == 2
