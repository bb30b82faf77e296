"""What is passed on says nothing of the machine: reports, references and manifests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipconformity.cli import main
from clipconformity.data import list_images
from clipconformity.demo import sample_scenes, write_coco_scenes
from clipconformity.encoders import load_encoder
from clipconformity.encoders.registry import TINY
from clipconformity.evaluation import build_reference, image_source, score
from clipconformity.generators import generate_images
from clipconformity.provenance import Provenance, shorten_paths
from clipconformity.report import Run, write_report


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder with what a user has there; the working directory is elsewhere."""
    home = tmp_path / "home" / "anna"
    write_coco_scenes(home / "coco", sample_scenes(30, seed=0), seed=0)
    shutil.copytree(TINY, home / "checkpoint")
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "work")
    return home


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments: object) -> None:
    assert main([str(one) for one in arguments]) == 0


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning", "ignore::clipconformity.LowerBoundWarning")
def test_no_report_reference_or_embeddings_say_where_things_lie(home, capsys):
    images, captions = home / "coco" / "val2017", home / "coco" / "annotations" / "captions_val2017.json"
    reported = ["--encoder", home / "checkpoint"]
    run("reference", "--images", images, *reported, "-o", "image.safetensors")
    run("reference", "--coco", home / "coco", *reported, "-o", "coco.safetensors")
    for kind, source in (("--images", images), ("--captions", captions)):
        reference = f"coco-{'image' if kind == '--images' else 'text'}.safetensors"
        run("embed", kind, source, *reported, "-o", f"e{kind}.safetensors")
        outputs = ["--report", f"r{kind}.html", "--per-sample", f"s{kind}.csv", "--save", f"k{kind}.safetensors"]
        run("score", kind, source, f"--encoder={home}/checkpoint", "--reference", reference, *outputs)
    embeddings = [Path.cwd() / f"e--{kind}.safetensors" for kind in ("images", "captions")]
    run("geometry", "--image-embeddings", embeddings[0], "--text-embeddings", embeddings[1], "--report", "g.html")
    written = contents(Path.cwd())
    assert len(written) == 13
    for name, content in written.items():
        for secret in (b"anna", str(Path.cwd()).encode(), str(home.parent.parent).encode()):
            assert secret not in content, name
    assert b"--encoder=checkpoint --reference coco-image.safetensors" in written["r--images.html"]
    assert b"--image-embeddings e--images.safetensors" in written["g.html"]


def made(prompts, seeds, **options):
    return [Image.fromarray(np.full((8, 8, 3), 9, np.uint8)) for _ in prompts]


def test_a_manifest_tells_a_file_by_its_name_and_another_of_that_name_from_it(home, tmp_path):
    options = {"style": home / "style.png", "words": f"{home}/words.txt"}
    generate_images(made, ["a"], "images", options=options)
    written = contents(Path("images"))
    assert set(written) == {"000000_0.png", "manifest.jsonl"}
    assert not [name for name, content in written.items() if b"anna" in content]
    settings = json.loads(written["manifest.jsonl"])["settings"]
    assert "style.png" in settings
    generate_images(made, ["a"], "images", options=options)
    with pytest.raises(ValueError, match="another run"):
        generate_images(made, ["a"], "images", options=options | {"style": tmp_path / "style.png"})


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning", "ignore::clipconformity.LowerBoundWarning")
@pytest.mark.parametrize("kind", ["--images", "--captions"])
def test_without_images_a_report_shows_no_image_prompt_or_caption(kind, home, capsys):
    source = home / "coco" / ("val2017" if kind == "--images" else "annotations/captions_val2017.json")
    run("reference", kind, source, "--encoder", "tiny", "-o", "r.safetensors")
    score = ["score", kind, source, "--reference", "r.safetensors", "--report"]
    run(*score, "with.html")
    run(*score, "without.html", "--no-images")
    words = json.loads((home / "coco" / "annotations" / "captions_val2017.json").read_text())["annotations"]
    shown = {name: Path(name).read_text(encoding="utf-8") for name in ("with.html", "without.html")}
    found = {name: 'class="gallery"' in page for name, page in shown.items()}
    assert found == {"with.html": True, "without.html": False}
    for name in ("with.html", "without.html"):
        assert any(entry["caption"] in shown[name] for entry in words) == (kind == "--captions" and name == "with.html")
    assert "000000000001.png" not in shown["without.html"]
    assert "image/jpeg" not in shown["without.html"]
    capsys.readouterr()
    assert main([str(one) for one in [*score[:-1], "--no-images"]]) == 2
    assert "--no-images: goes with --report" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "reported"),
    [
        ("/home/anna/images", "images"),
        ("/home/anna/images/", "images"),
        ("~/images", "images"),
        ("~anna/images", "images"),
        ("../../home/anna/images", "images"),
        ("images/../../x.csv", "x.csv"),
        ("--encoder=/home/anna/vit", "--encoder=vit"),
        ("a=/home/anna/x.npy", "a=x.npy"),
        ("open_clip:ViT-B-32//home/anna/b.pt", "open_clip:ViT-B-32/b.pt"),
        ("open_clip:local-dir:/home/anna/b", "open_clip:local-dir:b"),
        ("hf:../anna/vit", "hf:vit"),
        ("/", "..."),
        ("..", "..."),
        ("hf:openai/clip-vit-base-patch32", None),
        ("open_clip:ViT-B-32/openai", None),
        ("images/val2017", None),
        ("a red circle and/or a blue star", None),
        ("a file..", None),
        ("-o", None),
        ("", None),
    ],
)
def test_a_word_keeps_what_tells_nothing_of_the_machine(word, reported):
    assert shorten_paths(word) == (word if reported is None else reported)
    assert Provenance(word).spec == (word if reported is None else reported)


def test_what_lies_in_the_working_directory_is_told_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shorten_paths(f"--report={tmp_path}/a/b.html", tmp_path) == "--report=a/b.html"
    assert shorten_paths("a/../b.html", tmp_path) == "b.html"
    assert shorten_paths("/elsewhere/b.html", tmp_path) == "b.html"


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning", "ignore::clipconformity.LowerBoundWarning")
def test_a_report_from_python_tells_samples_by_their_names(home):
    paths, encoder = list_images(home / "coco" / "val2017"), load_encoder("tiny")
    reference = build_reference(image_source(paths, encoder))
    result = score(image_source(paths, encoder), reference, resamples=5)
    assert result.ids[0] == paths[0].name
    write_report("r.html", [Run("run", result, paths)])
    page = Path("r.html").read_text(encoding="utf-8")
    assert "anna" not in page
    assert 'class="name">0000' in page
