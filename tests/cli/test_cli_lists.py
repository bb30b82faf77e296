"""Lists of images in place of folders, in every command that takes images."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from safetensors import safe_open

from clipconformity.cli import main
from clipconformity.demo import draw_scene, sample_scenes

COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Images, lists of all of them in another order than the folder's, and a reference of other ones."""
    root = tmp_path_factory.mktemp("lists")
    for kind, seed in (("samples", 0), ("real", 1)):
        (root / kind).mkdir()
        for number, scene in enumerate(sample_scenes(COUNT, seed=seed)):
            draw_scene(scene, seed=number).save(root / kind / f"{number:02d}.png")
    names = [f"samples/{number:02d}.png" for number in reversed(range(COUNT))]
    (root / "list.txt").write_text("\n".join(names))
    (root / "list.csv").write_text("\n".join(["caption,photo", *(f"a dog,{name}" for name in names)]))
    (root / "half.jsonl").write_text("\n".join(json.dumps(name) for name in names[::2]))
    (root / "split").mkdir()
    (root / "split" / "test.txt").write_text("\n".join(name.removeprefix("samples/") for name in names))
    made = ["reference", "--images", str(root / "real"), "--encoder", "tiny", "-o", str(root / "r.safetensors")]
    assert main([*made, "--quiet"]) == 0
    return root


def reported(capsys, *arguments: object) -> dict:
    assert main(list(map(str, arguments))) == 0
    return json.loads(capsys.readouterr().out)


def test_a_list_scores_as_its_folder_does_under_the_names_of_the_list(folder, tmp_path, capsys):
    capsys.readouterr()
    rest = ["--reference", folder / "r.safetensors", "--resamples", 5, "--quiet"]
    one = reported(capsys, "score", "--images", folder / "samples", *rest)
    two = reported(capsys, "score", "--images", folder / "list.txt", *rest, "--per-sample", tmp_path / "s.csv")
    assert two["conformity_mean"] == pytest.approx(one["conformity_mean"], abs=1e-6)
    assert two["folder"] == {"found": COUNT, "ignored": 0, "unreadable": 0, "repeated": 0, "missing": 0}
    with (tmp_path / "s.csv").open() as file:
        names = sorted(row["id"] for row in csv.DictReader(file))
    assert names == [f"samples/{number:02d}.png" for number in range(COUNT)]


def test_a_report_finds_the_images_of_a_list(folder, tmp_path, capsys):
    rest = ["--reference", folder / "r.safetensors", "--resamples", 2, "--quiet"]
    reported(capsys, "score", "--images", folder / "list.txt", *rest, "--report", tmp_path / "a.html")
    given = ["--images", folder / "split/test.txt", "--image-root", folder / "samples"]
    reported(capsys, "score", *given, *rest, "--report", tmp_path / "b.html")
    for name in ("a.html", "b.html"):
        assert (tmp_path / name).read_text().count("data:image/") >= COUNT


def test_embed_and_reference_take_lists_and_a_column(folder, tmp_path, capsys):
    output = tmp_path / "e.safetensors"
    given = ["--images", folder / "list.csv", "--column", "photo", "--encoder", "tiny", "--quiet"]
    assert reported(capsys, "embed", *given, "-o", output)["count"] == COUNT
    with safe_open(output, framework="pt") as file:
        ids = json.loads(file.metadata()["about"])["ids"]
    assert ids == [f"samples/{number:02d}.png" for number in reversed(range(COUNT))]
    assert reported(capsys, "reference", *given, "-o", tmp_path / "r.safetensors")["count"] == COUNT


def test_compare_tells_lists_from_captions(folder, capsys):
    models = [f"half={folder / 'half.jsonl'}", f"all={folder / 'list.txt'}", f"folder={folder / 'samples'}"]
    rest = ["--reference", folder / "r.safetensors", "--resamples", 2, "--format", "json", "--quiet"]
    found = reported(capsys, "compare", *models, *rest)
    assert [found["runs"][name]["count"] for name in ("half", "all", "folder")] == [COUNT // 2, COUNT, COUNT]


@pytest.mark.filterwarnings("default")
def test_missing_images_end_in_one_line_or_are_counted(folder, tmp_path, capsys):
    path = folder / "gone.txt"
    path.write_text("samples/00.png\ngone.png\nsamples/01.png\n")
    given = ["embed", "--images", str(path), "--encoder", "tiny", "-o", str(tmp_path / "e.safetensors")]
    assert main(given) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"clipconformity: error: {path}: 1 of 3 images are missing: {folder / 'gone.png'}. ")
    assert err.count("\n") == 1
    assert main([*given, "--on-error", "skip"]) == 0
    out, err = capsys.readouterr()
    assert "2 images found; 1 are listed and missing ('gone.png')." in err
    assert "2 images found, 2 used, 1 missing." in err
    found = json.loads(out)
    assert (found["count"], found["folder"]["missing"]) == (2, 1)


@pytest.mark.parametrize("target", ["list.txt", "samples/03.png"])
def test_neither_a_list_nor_its_images_are_written_over(target, folder, tmp_path, capsys):
    output = tmp_path / "e.safetensors"
    output.symlink_to(folder / target)
    before = (folder / target).read_bytes()
    given = ["embed", "--images", str(folder / "list.txt"), "--encoder", "tiny", "-o", str(output), "--overwrite"]
    assert main(given) == 2
    assert "are the same file" in capsys.readouterr().err
    assert (folder / target).read_bytes() == before


def test_a_cache_knows_a_list_again_and_tells_changed_names(folder, tmp_path, capsys, encoded):
    rest = ["--reference", folder / "r.safetensors", "--resamples", 2, "--quiet", "--cache", tmp_path / "cache"]
    first = reported(capsys, "score", "--images", folder / "list.txt", *rest)
    done = encoded["project_image"]
    assert reported(capsys, "score", "--images", folder / "list.txt", *rest) == first
    assert encoded["project_image"] == done
    reported(capsys, "score", "--images", folder / "samples", *rest)  # the same files under other names
    assert encoded["project_image"] > done


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--images", "samples", "--image-root", "real"], "--image-root: goes with a list of images"),
        (["--images", "samples", "--column", "x"], "--column: goes with --captions, --embeddings or a list of images"),
        (["--images", "absent"], "expected a folder of images"),
        (["--images", "r.safetensors"], "expected a folder of images, or a list of them whose name ends in .txt"),
    ],
)
def test_options_that_do_not_fit_are_refused(given, message, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert main(["embed", *given, "--encoder", "tiny", "-o", str(tmp_path / "e.safetensors")]) == 2
    assert message in capsys.readouterr().err
