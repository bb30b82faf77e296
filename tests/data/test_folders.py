"""What a folder of images holds is told: found, ignored, unreadable, repeated."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipconformity.cli import main
from clipconformity.data import folders, list_images, survey_images


@pytest.fixture
def folder(tmp_path) -> Path:
    """Four images, one of them twice, and one of each kind that does not count."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for number, name in enumerate(("a.png", "b.png", "sub/c.png")):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name)
    (root / "sub" / "again.png").write_bytes((root / "a.png").read_bytes())
    (root / ".ipynb_checkpoints").mkdir()
    Image.new("RGB", (9, 9)).save(root / ".ipynb_checkpoints" / "a-checkpoint.png")
    Image.new("RGB", (9, 9)).save(root / ".hidden.png")
    (root / "notes.txt").touch()
    (root / "photo.heic").touch()
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "gone.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(root / "pipe.png")
    return root


def test_everything_in_a_folder_is_counted_once(folder):
    found = survey_images(folder)
    assert [str(path.relative_to(folder)) for path in found.paths] == ["a.png", "b.png", "sub/again.png", "sub/c.png"]
    assert found.hidden == [".hidden.png", ".ipynb_checkpoints"]
    assert (found.linked, found.skipped) == (["link"], ["notes.txt", "photo.heic"])
    assert found.special == ["gone.png", "pipe.png"]
    assert found.repeated == ["sub/again.png"]
    assert found.describe() == {
        "found": 4,
        "ignored": 7,
        "unreadable": 0,
        "repeated": 1,
        "examples": {
            "hidden": [".hidden.png", ".ipynb_checkpoints"],
            "linked": ["link"],
            "skipped": ["notes.txt", "photo.heic"],
            "special": ["gone.png", "pipe.png"],
            "repeated": ["sub/again.png"],
        },
    }
    assert list_images(folder) == found.paths


def test_a_folder_that_cannot_be_listed_is_told(folder, monkeypatch):
    """As root every folder can be; so the system's refusal is played."""
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    found = survey_images(folder)
    assert (found.unreadable, len(found.paths)) == (["sub"], 2)
    assert "1 folders cannot be read ('sub')" in found.remark


def test_files_that_differ_only_in_their_middle_are_no_repeats(tmp_path):
    for name, middle in (("a.png", b"x"), ("b.png", b"y"), ("c.png", b"x"), ("d.png", b"x" * 2)):
        (tmp_path / name).write_bytes(b"h" * 9000 + middle + b"t" * 9000)
    assert survey_images(tmp_path).repeated == ["c.png"]


def test_files_of_different_sizes_are_not_read_for_repeats(tmp_path, monkeypatch):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(b"x" * number)
    monkeypatch.setattr(folders, "_read_tail", None)
    assert survey_images(tmp_path).repeated == []


def test_many_of_a_kind_are_counted_and_the_first_are_named(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for number in range(12):
        (tmp_path / f"{number:02}.txt").touch()
    about = survey_images(tmp_path).describe()
    assert about["ignored"] == 12
    assert about["examples"]["skipped"] == ["00.txt", "01.txt", "02.txt", "03.txt", "04.txt", "..."]


def test_a_clean_folder_says_its_number_alone(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    found = survey_images(tmp_path)
    assert (found.remark, found.describe()) == ("", {"found": 1, "ignored": 0, "unreadable": 0, "repeated": 0})


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "a.heic").touch()
    with pytest.raises(ValueError, match=r"no images in this folder.*1 of other suffixes \('a\.heic'\)"):
        list_images(tmp_path)


@pytest.mark.filterwarnings("always::UserWarning")
def test_the_commands_tell_it_in_the_json_and_on_standard_error(folder, tmp_path, capsys):
    for number in range(10):
        Image.new("RGB", (40, 40), (20 * number, 90, 9)).save(folder / f"z{number}.png")
    outputs = [str(tmp_path / name) for name in ("e.safetensors", "r.safetensors")]
    given = ["--images", str(folder), "--encoder", "tiny"]
    for arguments in (
        ["embed", *given, "-o", outputs[0]],
        ["reference", *given, "-o", outputs[1]],
        ["score", *given, "--reference", outputs[1], "--resamples", "2"],
    ):
        assert main(arguments) == 0
        captured = capsys.readouterr()
        reported = json.loads(captured.out)["folder"]
        assert (reported["found"], reported["ignored"], reported["repeated"]) == (14, 7, 1)
        assert "14 images found; 2 hidden ('.hidden.png', '.ipynb_checkpoints'); 1 links to folders" in captured.err


def test_links_to_images_count_under_their_own_names(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "real.png")
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "other.jfif", "JPEG")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "real.png")
    (tmp_path / "images" / "b.jpg").symlink_to(tmp_path / "other.jfif")
    found = survey_images(tmp_path / "images")
    assert (found.ids, found.ignored, found.remark) == (["b.jpg", "link.png"], 0, "")
