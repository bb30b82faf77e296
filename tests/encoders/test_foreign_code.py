"""Nothing that comes with data or with a checkpoint is run."""

from __future__ import annotations

import ast
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import EpsImagePlugin, Image

import clipconformity as cc
from clipconformity.data import list_images
from clipconformity.data.images import FORMATS, IMAGE_FORMATS, open_image
from clipconformity.encoders.registry import TINY
from clipconformity.generators import read_manifest

ROOT = Path(__file__).resolve().parents[2]
CODE = """
from pathlib import Path
from transformers import PretrainedConfig
Path({marker!r}).touch()
class Config(PretrainedConfig):
    model_type = "foreign"
Model = Tokenizer = Processor = Config
"""
AUTO_MAPS = {
    "config.json": {"AutoConfig": "code.Config", "AutoModel": "code.Model"},
    "tokenizer_config.json": {"AutoTokenizer": ["code.Tokenizer", None]},
    "preprocessor_config.json": {"AutoImageProcessor": "code.Processor"},
}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch) -> Path:
    """A checkpoint that brings Python, and a standard input that says yes to every question."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(TINY, folder)
    (folder / "code.py").write_text(CODE.format(marker=str(tmp_path / "ran")))
    for name, classes in AUTO_MAPS.items():
        content = json.loads((folder / name).read_text()) | {"auto_map": classes}
        (folder / name).write_text(json.dumps(content))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    return folder


def renamed(folder: Path) -> None:
    """Make it a model and a tokenizer that the library does not have, which need the code."""
    for name, other in (
        ("config.json", {"model_type": "foreign"}),
        ("tokenizer_config.json", {"tokenizer_class": "ForeignTokenizer"}),
    ):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | other))


def test_a_model_of_the_library_is_loaded_without_the_code_beside_it(checkpoint, capsys):
    assert cc.load_encoder(checkpoint, "cpu").encode_text("a star").shape == (1, cc.load_encoder("tiny").embed_dim)
    assert not (checkpoint.parent / "ran").exists()
    assert capsys.readouterr().out == ""


def test_a_model_that_needs_its_own_code_is_refused(checkpoint, capsys):
    renamed(checkpoint)
    with pytest.raises(ValueError, match="code that comes with a checkpoint is not run here"):
        cc.load_encoder(checkpoint, "cpu")
    assert not (checkpoint.parent / "ran").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("trusted", [False, True])
@pytest.mark.parametrize("part", ["hf_model_name", "hf_tokenizer_name"])
def test_a_part_of_an_open_clip_model_that_needs_its_own_code_is_refused(part, trusted, checkpoint, capsys):
    """Also where the model's settings say that the code is to be trusted."""
    open_clip = pytest.importorskip("open_clip")
    renamed(checkpoint)
    text = {
        "hf_tokenizer_name": str(TINY),
        "context_length": 8,
        "vocab_size": 100,
        "width": 32,
        "heads": 2,
        "layers": 1,
    }
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    model = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text | {part: str(checkpoint)}}
    if trusted:
        model["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    (checkpoint / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    (checkpoint / "model.safetensors").unlink()
    if part == "hf_tokenizer_name":  # the model itself is sound
        weights = open_clip.CLIP(16, vision, text).state_dict()
        torch.save(weights, checkpoint / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match="code that comes with a checkpoint is not run here"):
        cc.load_encoder(f"open_clip:local-dir:{checkpoint}", "cpu")
    assert not (checkpoint.parent / "ran").exists()
    assert capsys.readouterr().out == ""


def calls(folder: str, name: str) -> list[tuple[str, ast.Call]]:
    """Calls of a method of that name, or of a function's, with where they stand."""
    return [
        (f"{path.name}:{node.lineno}", node)
        for path in sorted((ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == name
    ]


@pytest.mark.parametrize("folder", ["clipconformity", "examples"])
def test_every_loading_says_that_code_is_not_trusted(folder):
    found = calls(folder, "from_pretrained")
    assert found
    for place, call in found:
        reported = {word.arg: word.value for word in call.keywords}.get("trust_remote_code")
        assert isinstance(reported, ast.Constant), place
        assert reported.value is False, place


def test_every_opening_of_an_image_names_its_formats():
    found = [(place, call) for place, call in calls("clipconformity", "open") if ast.unparse(call.func) == "Image.open"]
    assert found
    for place, call in found:
        assert "formats" in [word.arg for word in call.keywords], place


@pytest.fixture
def started(monkeypatch) -> list[object]:
    """What Ghostscript was started for."""
    calls = []

    def ghostscript(*arguments, **_):
        calls.append(arguments)
        return Image.new("RGB", (9, 9)).im

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", ghostscript)
    return calls


def test_postscript_under_the_name_of_an_image_starts_nothing(started, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.load()
    assert len(started) == 1  # by Pillow left to itself
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image \(expected one in the format .*BMP, GIF"):
        open_image(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "000000_0.png")
    (tmp_path / "manifest.jsonl").touch()
    with pytest.raises(ValueError, match="no image of generate_images"):
        read_manifest(tmp_path)
    assert len(started) == 1


@pytest.mark.parametrize("suffix", [suffix for suffix, kind in IMAGE_FORMATS.items() if kind in FORMATS])
def test_every_suffix_that_is_listed_can_be_opened(suffix, tmp_path):
    Image.new("RGB", (9, 9), "red").save(tmp_path / f"a{suffix}", IMAGE_FORMATS[suffix])
    (path,) = list_images(tmp_path)
    assert open_image(path).size == (9, 9)


def test_a_photograph_of_several_pictures_is_a_jpeg(tmp_path):
    """As telephones write them: MPO, under the suffix .jpg."""
    first, second = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second])
    assert open_image(tmp_path / "a.jpg").getpixel((4, 4))[0] > 200
