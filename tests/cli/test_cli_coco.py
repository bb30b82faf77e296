"""``clipconformity reference --coco``: both references in one pass, with the chosen captions beside them."""

import json

import pytest

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.data import read_captions
from clipconformity.demo import sample_scenes, write_coco_scenes


@pytest.fixture
def root(tmp_path):
    write_coco_scenes(tmp_path / "coco", sample_scenes(30, seed=0), seed=0)
    return tmp_path / "coco"


def reference(root, *more):
    return main(
        ["reference", "--coco", str(root), "--encoder", "tiny", "-o", str(root.parent / "r.safetensors"), *more]
    )


def test_both_references_and_the_chosen_captions_are_written(root, capsys):
    assert reference(root, "--split", "val2017", "--seed", "3") == 0
    result = json.loads(capsys.readouterr().out)
    for modality in ("image", "text"):
        found = cc.ReferenceSet.load(root.parent / f"r-{modality}.safetensors")
        assert (found.modality, found.count) == (modality, 30)
        assert found.dataset == result[modality]["dataset"] == "coco val2017, captions per image: 1, seed 3"
    assert len(read_captions(root.parent / "r-captions.json").ids) == 30


def test_missing_images_are_an_error_or_counted(root, capsys):
    (root / "val2017" / "000000000003.png").unlink()
    assert reference(root) == 2
    assert "1 of 30 images of val2017 are missing" in capsys.readouterr().err
    assert reference(root, "--on-error", "skip", "--per-image", "all") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["missing"]["count"], result["text"]["count"]) == (1, 145)


def test_wrong_arguments_are_one_line(root, capsys):
    for more, message in ((("--per-image", "x"), "--per-image"), (("--modality", "text"), "--modality")):
        assert reference(root, *more) == 2
        assert message in capsys.readouterr().err
