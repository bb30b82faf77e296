"""Lists of images: which files they name, under the names that they have there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import clipconformity as cc
from clipconformity.data import read_image_list
from clipconformity.data.image_lists import is_image_list
from clipconformity.demo import draw_scene, sample_scenes
from clipconformity.evaluation import image_source

NAMES = ["photos/a.png", "b.png", "photos/c.jfif"]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three images in two folders; a list goes beside them."""
    (tmp_path / "photos").mkdir()
    for number, (name, scene) in enumerate(zip(NAMES, sample_scenes(3, seed=0), strict=True)):
        draw_scene(scene, seed=number).save(tmp_path / name, "JPEG" if name.endswith("jfif") else None)
    return tmp_path


def write(folder: Path, kind: str, names: list[str]) -> Path:
    path = folder / f"list.{kind}"
    if kind == "txt":
        text = "\n".join(names) + "\n\n"
    elif kind == "jsonl":
        text = "\n".join(json.dumps({"path": name, "score": 1}) for name in names)
    else:
        text = "\n".join([",".join(["file_name", "n"]), *(f"{name},1" for name in names)])
        text = text.replace(",", "\t") if kind == "tsv" else text
    path.write_text(text)
    return path


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv"])
def test_every_kind_of_list_gives_its_files_in_its_order_under_its_names(kind, folder):
    path = write(folder, kind, ["b.png", "./photos/a.png", "photos/c.jfif"])
    found = read_image_list(path)
    assert found.ids == ["b.png", "./photos/a.png", "photos/c.jfif"]
    assert [one.resolve() for one in found.paths] == [(folder / name).resolve() for name in found.ids]
    assert is_image_list(path)
    source = image_source(found, cc.load_encoder("tiny", "cpu"))
    batches = list(source)
    assert [name for batch in batches for name in batch.ids] == found.ids
    alone = torch.cat([batch.embeddings for batch in image_source(found.paths, cc.load_encoder("tiny", "cpu"))])
    assert torch.equal(torch.cat([batch.embeddings for batch in batches]), alone)
    assert source.remarks["folder"]["found"] == 3


def test_a_column_of_any_name_can_be_told(folder):
    path = folder / "list.csv"
    path.write_text("image,thumbnail\nb.png,photos/a.png\n")
    assert read_image_list(path).ids == ["b.png"]
    assert read_image_list(path, "thumbnail").ids == ["photos/a.png"]
    with pytest.raises(ValueError, match="expected a key 'picture', got"):
        read_image_list(path, "picture")


def test_names_may_be_relative_to_another_folder(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("splits") / "test.txt"
    path.write_text("a.png\n")
    assert read_image_list(path, root=folder / "photos").paths == [folder / "photos" / "a.png"]
    with pytest.raises(NotADirectoryError, match="absent: expected the folder of the images"):
        read_image_list(path, root=folder / "absent")


def test_files_that_are_listed_twice_or_repeat_others_are_counted(folder):
    (folder / "again.png").write_bytes((folder / "b.png").read_bytes())
    found = read_image_list(write(folder, "txt", ["b.png", "photos/a.png", "b.png", "again.png"]))
    assert len(found.paths) == 4
    assert found.describe()["repeated"] == 2
    assert "2 repeat the content of others ('again.png', 'b.png')" in found.remark
    assert found.remark.startswith(f"{folder / 'list.txt'}: 4 images found")


def test_missing_files_are_counted_in_one_line_or_left_out(folder):
    names = ["b.png", *(f"gone/{number}.png" for number in range(5))]
    path = write(folder, "txt", names)
    with pytest.raises(FileNotFoundError) as reported:
        read_image_list(path)
    assert f"{path}: 5 of 6 images are missing: {folder / 'gone/0.png'}, " in str(reported.value)
    assert "\n" not in str(reported.value)
    found = read_image_list(path, on_missing="skip")
    assert (found.ids, found.describe()["missing"]) == (["b.png"], 5)
    assert "5 are listed and missing ('gone/0.png', 'gone/1.png', ...)" in found.remark
    with pytest.raises(FileNotFoundError, match="1 of 1 images are missing"):
        read_image_list(write(folder, "txt", ["gone.png"]), on_missing="skip")


@pytest.mark.parametrize("name", ["../b.png", "/etc/b.png", "photos/../../b.png", "C:\\b.png", "..\\b.png"])
def test_no_name_leads_out_of_the_folder(name, folder):
    with pytest.raises(ValueError, match="leads out of the folder of images"):
        read_image_list(write(folder, "txt", [name]))


def test_a_path_may_be_longer_than_the_longest_name_of_a_file(folder):
    deep = Path(*["d" * 100] * 3)
    (folder / deep).mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / deep / "a.png")
    assert read_image_list(write(folder, "txt", [str(deep / "a.png")])).ids == [str(deep / "a.png")]
    with pytest.raises(ValueError, match="over 255 bytes"):
        read_image_list(write(folder, "txt", ["d" * 256]))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.txt", "\n\n", "names no images"),
        ("list.csv", "a,b\nx.png,y.png\n", "expected a key with the path of an image, one of .*--column"),
        ("list.jsonl", '{"path": "b.png"}\n{"path": 3}', "line 2: expected the path of an image, got"),
        ("list.jsonl", '"b.png"\n["b.png"]', "line 2: expected the path of an image, got"),
        ("list.json", '["b.png"]', r"expected a folder of images, or a list of them whose name ends in \.txt"),
    ],
)
def test_what_is_no_list_is_refused(name, text, message, folder):
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_image_list(folder / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.txt", "a photograph of a dog\n"),
        ("c.csv", "image,caption\nb.png,a dog\n"),
        ("c.jsonl", '{"image_name": "b.png", "prediction": "a dog"}'),
        ("c.txt", ""),
        ("c.json", '["b.png"]'),
        ("e.npy", "x"),
    ],
)
def test_captions_and_embeddings_are_no_lists(name, text, folder):
    (folder / name).write_text(text)
    assert not is_image_list(folder / name)


def test_links_to_images_are_images_under_their_own_names(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "real.png"
    elsewhere.write_bytes((folder / "b.png").read_bytes())
    (folder / "link.png").symlink_to(elsewhere)
    found = read_image_list(write(folder, "txt", ["link.png"]))
    (batch,) = image_source(found, cc.load_encoder("tiny", "cpu"))
    (direct,) = image_source([elsewhere], cc.load_encoder("tiny", "cpu"))
    assert list(batch.ids) == ["link.png"]
    assert torch.equal(batch.embeddings, direct.embeddings)
