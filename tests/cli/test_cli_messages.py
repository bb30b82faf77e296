"""What the commands tell on standard error: a summary of each source, and with --verbose how the work goes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from clipconformity.cli import main
from clipconformity.demo import draw_scene, sample_scenes, write_coco_scenes

CAPTIONS = ["a red circle", "a blue square", "a green star", "一只猫坐在沙发上", "a tiny ring", "красный круг на траве"]
CAPTIONS += [
    f"a {colour} {shape}" for colour in ("cyan", "pink", "orange") for shape in ("ring", "bar", "heart", "cross")
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Eighteen images, a broken one, a file that is none, captions, and embeddings, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for number, scene in enumerate(sample_scenes(18, seed=0)):
        draw_scene(scene, seed=number).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG\r\n")
    (tmp_path / "images" / "notes.doc").write_text("x")
    entries = [{"image_id": f"{number}", "caption": text} for number, text in enumerate(CAPTIONS)]
    (tmp_path / "captions.json").write_text(json.dumps(entries))
    rows = np.random.default_rng(0).normal(size=(40, 64)).astype("f4") + 1
    np.save(tmp_path / "a.npy", rows)
    np.save(tmp_path / "b.npy", rows[:20] + 0.1)
    return tmp_path


def run(capsys, *arguments: str) -> tuple[dict, list[str]]:
    assert main(list(arguments)) == 0
    reported = capsys.readouterr()
    return json.loads(reported.out), reported.err.splitlines()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("given", "summary"),
    [
        (
            ["--images", "images", "--on-error", "skip"],
            "images: 19 images found, 18 used, 1 left out, 1 files",
        ),
        (["--captions", "captions.json"], "captions.json: 18 captions found, 18 used."),
        (["--embeddings", "a.npy", "b.npy"], "a.npy and 1 more: 60 rows found, 60 used, of 2 files (a 40, b 20)."),
    ],
)
def test_every_kind_of_source_is_summed_up(given, summary, folder, capsys):
    encoder = [] if "--embeddings" in given else ["--encoder", "tiny"]
    _, err = run(capsys, "reference", *given, *encoder, "-o", "r.safetensors")
    (line,) = [line for line in err if line.startswith("clipconformity: summary: ")]
    assert line.startswith(f"clipconformity: summary: {summary}")
    assert main(["reference", *given, *encoder, "-o", "r.safetensors", "--overwrite", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("default")
def test_images_and_captions_together_are_summed_up_one_by_one(folder, capsys):
    run(capsys, "reference", "--images", "images", "--on-error", "skip", "--encoder", "tiny", "-o", "r.safetensors")
    given = ["--images", "images", "--captions", "captions.json", "--reference", "r.safetensors", "--resamples", "2"]
    found, err = run(capsys, "score", *given, "--on-error", "skip")
    reported = [line for line in err if ": summary: " in line]
    assert reported == [
        "clipconformity: summary: images: 19 images found, 18 used, 1 left out, 1 files and folders ignored.",
        "clipconformity: summary: captions.json: 18 captions found, 18 used.",
    ]
    assert found["unknown_words"] == {"count": 2, "examples": ["3", "5"]}


@pytest.mark.filterwarnings("default")
def test_ms_coco_is_summed_up_by_its_images_and_captions(folder, capsys):
    write_coco_scenes("coco", sample_scenes(8, seed=0), seed=0)
    (first, *_) = sorted((folder / "coco" / "val2017").iterdir())
    first.unlink()
    _, err = run(
        capsys, "reference", "--coco", "coco", "--encoder", "tiny", "--on-error", "skip", "-o", "c.safetensors"
    )
    reported = [line for line in err if ": summary: " in line]
    assert reported == [
        "clipconformity: summary: coco: 7 images found, 7 used, 1 missing.",
        "clipconformity: summary: coco: 7 captions found, 7 used.",
    ]


@pytest.mark.filterwarnings("default")
def test_captions_in_words_that_the_encoder_does_not_know_are_told_everywhere(folder, capsys):
    run(capsys, "reference", "--captions", "captions.json", "--encoder", "tiny", "-o", "r.safetensors", "--quiet")
    given = ["--captions", "captions.json", "--reference", "r.safetensors", "--resamples", "2"]
    found, err = run(capsys, "score", *given, "--report", "r.html")
    reported = [line for line in err if "does not know" in line]
    assert len(reported) == 1
    assert "2 of 18 captions are mostly of words that the tokenizer of tiny does not know" in reported[0]
    assert "the id '3'" in reported[0]
    assert found["unknown_words"] == {"count": 2, "examples": ["3", "5"]}
    assert "2 captions are mostly of words that the encoder&#x27;s tokenizer does not know, such as 3, 5" in re.sub(
        r"&#39;|'", "&#x27;", (folder / "r.html").read_text()
    )


@pytest.mark.filterwarnings("default")
def test_the_cache_and_what_is_taken_up_know_of_unknown_words_too(folder, capsys):
    run(capsys, "reference", "--captions", "captions.json", "--encoder", "tiny", "-o", "r.safetensors", "--quiet")
    given = ["--captions", "captions.json", "--reference", "r.safetensors", "--resamples", "2", "--cache", "kept"]
    assert [run(capsys, "score", *given)[0]["unknown_words"]["count"] for _ in range(2)] == [2, 2]


@pytest.mark.filterwarnings("default")
def test_verbose_tells_the_encoder_its_settings_and_the_time_of_each_stage(folder, capsys):
    (folder / "images" / "broken.png").unlink()
    made = ["reference", "--images", "images", "--encoder", "tiny", "-o", "r.safetensors", "--verbose"]
    _, err = run(capsys, *made)
    reported = "\n".join(line.removeprefix("clipconformity: verbose: ") for line in err if ": verbose: " in line)
    for pattern in (
        r"^looking through the images: \d+\.\d\d s$",
        r"^loading the encoder: \d+\.\d\d s$",
        r"^encoder tiny: dimension 64, weights [0-9a-f]{32}, precision float32, .*, device cpu, .*; batches of 64",
        r"^18 images in batches of 64, decoded by no processes$",
        r"^reading and encoding: \d+\.\d\d s, \d+\.\d images/s$",
        r"^statistics: \d+\.\d\d s$",
        r"^writing: \d+\.\d\d s$",
    ):
        assert re.search(pattern, reported, re.MULTILINE), pattern
    given = ["--images", "images", "--reference", "r.safetensors", "--resamples", "2", "--verbose"]
    quiet, err = run(capsys, "score", *given)
    assert {"reading the reference", "figures"} <= {line.split(": ")[2] for line in err if ": verbose: " in line}
    assert run(capsys, "score", *given[:-1])[0] == quiet  # what is told changes no result


def test_quiet_and_verbose_exclude_each_other(folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["reference", "--embeddings", "a.npy", "-o", "r.safetensors", "--quiet", "--verbose"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_each_file_is_decoded_once_for_several_encoders(folder, capsys, monkeypatch):
    from clipconformity.evaluation import images

    write_coco_scenes("coco", sample_scenes(8, seed=0), seed=0)
    (folder / "made.py").write_text(
        "import torch\nfrom clipconformity.encoders import CallableEncoder\n"
        "def make():\n"
        "    return CallableEncoder(\n"
        "        lambda images: torch.tensor([[sum(i.getpixel((x, 9))) + 1.0 for x in range(6)] for i in images]),\n"
        "        lambda texts: torch.tensor([[float(len(t)), float(t.count('a')), 1.0] * 2 for t in texts]),\n"
        "        6, spec='made')\n"
    )
    opened = []
    monkeypatch.setattr(images, "open_image", lambda path, _old=images.open_image: opened.append(path) or _old(path))
    base = ["reference", "--coco", "coco", "--quiet"]
    alone = {
        spec: run(capsys, *base, "--encoder", spec, "-o", f"{spec[:4]}.safetensors")[0]
        for spec in ("tiny", "made:make")
    }
    opened.clear()
    both, _ = run(capsys, *base, "--encoder", "tiny", "--encoder", "made:make", "-o", "both.safetensors")
    assert len(opened) == len(set(opened)) == 8
    assert set(both["encoders"]) == {"tiny", "made:make"}
    for spec, name in (("tiny", "tiny"), ("made:make", "made-make")):
        for kind in ("image", "text"):
            found = both["encoders"][spec][kind]
            assert found["output"] == f"both-{name}-{kind}.safetensors"
            assert (folder / found["output"]).is_file()
            assert found | {"output": ""} == alone[spec][kind] | {"output": ""}
    assert (folder / "both-captions.json").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--embeddings", "a.npy", "--encoder", "tiny", "--encoder", "x"], "--encoder: several go with --coco alone"),
        (["--coco", "coco", "--encoder", "tiny", "--encoder", "tiny"], "--encoder: 'tiny' is there twice"),
        (["--coco", "coco"], "--encoder: say which encoder to use"),
    ],
)
def test_encoders_that_do_not_fit_are_refused(given, message, folder, capsys):
    assert main(["reference", *given, "-o", "r.safetensors"]) == 2
    assert message in capsys.readouterr().err


def test_several_encoders_of_the_same_kind_see_the_same_images_with_workers(folder):
    import clipconformity as cc
    from clipconformity.evaluation import build_references, image_source, image_sources

    (folder / "images" / "broken.png").unlink()
    paths = sorted((folder / "images").glob("*.png"))
    Image.open(paths[0]).resize((200, 90)).save(paths[0])
    encoders = [cc.load_encoder("tiny", "cpu"), cc.load_encoder("tiny", "cpu")]
    sources = image_sources(paths, encoders, batch_size=4, workers=2)
    one, two = build_references(sources)
    (alone,) = build_references([image_source(paths, encoders[0], batch_size=4)])
    assert one.describe() == two.describe() == alone.describe()
    assert one.sketch.rows.equal(alone.sketch.rows)
