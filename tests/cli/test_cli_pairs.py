"""Images and captions scored together."""

from __future__ import annotations

import csv
import json

import pytest
import torch

import clipconformity as cc
from clipconformity.cli import main
from clipconformity.demo import draw_scene, sample_scenes
from clipconformity.functional import clip_score, ref_clip_score

pytestmark = [
    pytest.mark.filterwarnings("ignore::clipconformity.LowerBoundWarning"),  # of twelve samples
    pytest.mark.filterwarnings("ignore:.* captions are mostly of words that the tokenizer of tiny does not know"),
]
LOOKS = ("red", "green", "blue", "small", "large", "dark", "round", "square", "thin", "wide", "lonely", "far")
CAPTIONS = [f"a {look} thing" for look in LOOKS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve images in the manner of MS-COCO, captions with two of the first image, and what people said."""
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "images").mkdir()
    scenes = [draw_scene(scene, seed=n) for n, scene in enumerate(sample_scenes(12, seed=0))]
    for number, image in enumerate(scenes):
        image.save(folder / "images" / f"{number + 1:012d}.png")
    entries = [{"image_id": n + 1, "caption": text} for n, text in enumerate(CAPTIONS)]
    people = [{"image_id": n % 12 + 1, "id": 900 + n, "caption": f"a {n}"} for n in range(24)]
    files = {
        "results.json": entries[::-1],
        "two.json": {"annotations": [*({**one, "id": 50 + n} for n, one in enumerate(entries)),
                                     {"image_id": 1, "id": 99, "caption": "a star"}]},
        "people.json": {"annotations": people},
        "short.json": entries[:-2],
        "named.csv": "image,text\n" + "".join(f"{n + 1:012d}.png,{text}\n" for n, text in enumerate(CAPTIONS)),
    }  # fmt: skip
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    tiny = cc.load_encoder("tiny", "cpu")
    images, texts = tiny.encode_image(scenes), tiny.encode_text(CAPTIONS)
    for name, rows in (("image", images), ("text", texts)):
        reference = cc.ReferenceSet.fit(torch.cat([rows + 0.1 * torch.randn_like(rows) for _ in range(3)]),
                                        modality=name, spec=tiny)  # fmt: skip
        reference.save(folder / f"{name}.safetensors")
    return folder, images, texts, tiny


def run(folder, reference, captions, *more):
    given = ["--images", str(folder / "images"), "--captions", str(folder / captions)]
    return main(["score", *given, "--reference", str(folder / f"{reference}.safetensors"), "--resamples", "20", *more])


@pytest.fixture
def reported(folder, capsys):
    def call(reference, captions, *more):
        capsys.readouterr()
        assert run(folder[0], reference, captions, *more) == 0
        return json.loads(capsys.readouterr().out)

    return call


def test_captions_of_named_files_are_joined_too(folder, reported):
    _, images, texts, _ = folder
    assert reported("image", "named.csv")["clip_score"] == pytest.approx(
        float(clip_score(images, texts).mean()), abs=1e-3
    )


def test_a_second_run_with_a_cache_encodes_neither_side(folder, reported, tmp_path, encoded):
    cache = ("--cache", str(tmp_path / "cache"), "--caption-references", str(folder[0] / "people.json"))
    first = reported("text", "results.json", *cache)
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert all(encoded.values())

    encoded.update(encode_text=0, project_image=0)
    assert reported("text", "results.json", *cache) == first
    assert not any(encoded.values())


def test_images_are_scored_with_their_captions(folder, reported, tmp_path):
    _, images, texts, _ = folder
    expected = clip_score(images, texts)
    found = reported(
        "image", "results.json", "--per-sample", str(tmp_path / "s.csv"), "--report", str(tmp_path / "r.html")
    )
    assert found["clip_score"] == pytest.approx(float(expected.mean()), abs=1e-3)
    assert found["clip_score_se"] > 0
    assert found["measured"]["modality"] == "image"
    rows = {row["id"]: row for row in csv.DictReader((tmp_path / "s.csv").read_text().splitlines())}
    assert float(rows["000000000004.png"]["clip_score"]) == pytest.approx(float(expected[3]), abs=1e-3)
    page = (tmp_path / "r.html").read_text()
    assert "a red thing" in page
    assert 'src="data:image/png' in page
    assert f"CLIPScore over conformity of images. images: mean {float(expected.mean()):.3g}"[:-1] in page


def test_captions_are_scored_with_their_images_and_with_references(folder, reported, tmp_path):
    root, images, texts, tiny = folder
    people = tiny.encode_text([f"a {n}" for n in range(24)])
    references = [people[[n, n + 12]] for n in range(12)]
    found = reported("text", "results.json", "--caption-references", str(root / "people.json"), "--report",
                 str(tmp_path / "r.html"))  # fmt: skip
    assert found["clip_score"] == pytest.approx(float(clip_score(images, texts).mean()), abs=1e-3)
    expected = ref_clip_score(images, texts, references).mean()
    assert found["ref_clip_score"] == pytest.approx(float(expected), abs=1e-3)
    assert found["measured"]["modality"] == "text"
    assert 'src="data:image/png' in (tmp_path / "r.html").read_text()


def test_annotations_with_ids_are_joined_by_image_and_several_captions_averaged(folder, reported):
    _, images, texts, tiny = folder
    expected = clip_score(images, texts)
    more = clip_score(images[:1], tiny.encode_text(["a star"]))[0]
    mean = (expected.sum() - expected[0] + (expected[0] + more) / 2) / 12
    assert reported("image", "two.json")["clip_score"] == pytest.approx(float(mean), abs=1e-3)


def test_a_sample_without_a_partner_is_an_error_or_left_out(folder, reported, capsys):
    assert run(folder[0], "image", "short.json") == 2
    assert "2 of the 12 samples of a batch have no caption of their id: 000000000011.png" in capsys.readouterr().err
    found = reported("image", "short.json", "--on-error", "skip")
    assert found["count"] == 10
    assert [one["id"] for one in found["skipped"]["files"]] == ["000000000011.png", "000000000012.png"]


REFUSED = {
    "no pairs": (["--images", "images", "--metrics", "clip_score"], "'clip_score' needs images and captions together"),
    "no references": (
        ["--images", "images", "--captions", "results.json", "--metrics", "ref_clip_score"],
        "'ref_clip_score' needs reference captions; give --caption-references",
    ),
    "people alone": (
        ["--images", "images", "--caption-references", "people.json"],
        "--caption-references: goes with --images and --captions together",
    ),
    "of images": (
        ["--images", "images", "--captions", "results.json", "--caption-references", "people.json"],
        "judge captions, but images are scored",
    ),
    "three": (["--images", "images", "--embeddings", "e.npy"], "--embeddings: goes without --images"),
    "none": ([], "one of --images, --captions, --embeddings and --saved is required"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(case, folder, capsys, monkeypatch):
    given, words = REFUSED[case]
    monkeypatch.chdir(folder[0])
    assert main(["score", *given, "--reference", "image.safetensors"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
