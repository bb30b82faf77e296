"""What files may ask for: every limit holds at its default, is raised by its option, and is named by its error."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipconformity.cli import main
from clipconformity.data import open_image, read_captions, read_coco, read_embeddings, read_results
from clipconformity.data.limits import ENVIRONMENT, LIMITS, LimitError, check_limit, get_limit, raise_limits
from clipconformity.encoders import load_encoder

SECURITY = Path(__file__).resolve().parents[2] / "SECURITY.md"


def blank_png(path: Path, width: int, height: int, bits: int = 8) -> Path:
    """A grey PNG of any size in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = bytes(1 + (width * bits + 7) // 8)
    content = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b""))
    return path


@pytest.fixture
def small(monkeypatch):
    """Set limits low, so that going over them costs nothing."""
    return lambda **limits: monkeypatch.setenv(ENVIRONMENT, ",".join(f"{k}={v}" for k, v in limits.items()))


def test_an_error_names_the_limit_its_option_and_what_was_found():
    check_limit("file", "rows", LIMITS["rows"].value)
    with pytest.raises(LimitError, match=r"^file: 5,000,001 rows .* limit of 5,000,000; .*--limit rows=5000001"):
        check_limit("file", "rows", LIMITS["rows"].value + 1)


def test_limits_are_raised_for_a_while_and_then_as_before(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "rows=7")
    with raise_limits(["pixels=9", "layers=3"]):
        assert (get_limit("rows"), get_limit("pixels"), get_limit("layers")) == (7, 9, 3)
    assert (get_limit("rows"), get_limit("pixels")) == (7, LIMITS["pixels"].value)
    monkeypatch.delenv(ENVIRONMENT)
    with raise_limits(["rows=8"]):
        assert get_limit("rows") == 8
    assert ENVIRONMENT not in os.environ


@pytest.mark.parametrize("reported", ["rows", "rows=", "rows=-1", "rows=1e9", "cells=3", "rows=" + "9" * 30])
def test_a_limit_that_is_none_is_told_with_those_that_are(reported):
    with pytest.raises(ValueError, match=r"expected NAME=NUMBER, with a name of pixels, "), raise_limits([reported]):
        pass


def test_the_table_in_the_documentation_is_that_of_the_code():
    text = SECURITY.read_text(encoding="utf-8")
    for name, limit in LIMITS.items():
        assert f"| `{name}` | {limit.value:,} |" in text, name


def test_an_image_of_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    path = blank_png(tmp_path / "a.png", 10_000, 9_000)
    assert path.stat().st_size < 200_000
    started = time.perf_counter()
    with pytest.raises(LimitError, match=r"a\.png: 90,000,000 pixels of an image are over the limit of 89,478,485"):
        open_image(path)
    assert time.perf_counter() - started < 1


def test_an_image_beyond_pillows_own_limit_is_named_too(tmp_path, small):
    path = blank_png(tmp_path / "a.png", 20_000, 10_000, 1)
    with pytest.raises(LimitError, match="200,000,000 pixels"):
        open_image(path)
    small(pixels=300_000_000)
    with pytest.raises(ValueError, match=r"its 200,000,000 pixels are over Pillow's own limit of 178,956,970"):
        open_image(path)


def test_a_raised_limit_takes_the_image_without_a_warning(tmp_path, small):
    small(pixels=95_000_000)
    assert open_image(blank_png(tmp_path / "a.png", 9_500, 9_500, 1)).size == (9_500, 9_500)


def test_a_line_of_pixels_is_refused(tmp_path):
    """Resized by its short side, it would take gigabytes."""
    with pytest.raises(LimitError, match="60,000 times its short side.* limit of 200"):
        open_image(blank_png(tmp_path / "a.png", 60_000, 1))
    assert open_image(blank_png(tmp_path / "b.png", 400, 2)).size == (400, 2)


def test_16_bits_are_scaled_alike_in_parts_and_at_once(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (1500, 1000), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    found = np.asarray(open_image(tmp_path / "a.png"))
    np.testing.assert_array_equal(found[..., 0], (values.astype(np.float64) * (255 / 65535)).round().astype(np.uint8))


def test_images_of_a_batch_are_held_one_at_a_time(monkeypatch):
    """All that is kept of an image is what the encoder takes in."""
    encoder = load_encoder("tiny", "cpu")
    seen = []
    whole = type(encoder).preprocess_images.fget(encoder)
    monkeypatch.setattr(
        type(encoder), "preprocess_images", property(lambda _: lambda images: seen.append(len(images)) or whole(images))
    )
    images = [Image.new("RGB", (n, 40), (n, 0, 0)) for n in range(30, 37)]
    found = encoder.encode_image(images)
    assert seen == [1] * len(images)
    torch.testing.assert_close(found, encoder.project_image(whole(images)))


def test_a_file_of_many_rows_is_refused(tmp_path, small):
    small(rows=3)
    torch.save(torch.ones(4, 2), tmp_path / "e.pt")
    (tmp_path / "c.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / "l.json").write_text(json.dumps(["a", "b", "c", "d"]))
    results = [{"image_id": n, "caption": "a"} for n in range(4)]
    (tmp_path / "r.json").write_text(json.dumps(results))
    for read, name in (
        (read_embeddings, "e.pt"),
        (read_captions, "c.txt"),
        (read_captions, "l.json"),
        (read_captions, "r.json"),
        (read_results, "r.json"),
    ):
        with pytest.raises(LimitError, match=rf"{name}: 4 rows of a file are over the limit of 3.*--limit rows=4"):
            read(tmp_path / name)


def test_a_file_of_many_columns_is_refused(tmp_path):
    """A file of 40 kB would take gigabytes, for its covariance."""
    np.save(tmp_path / "e.npy", np.ones((2, 5000), np.float32))
    with pytest.raises(LimitError, match=r"e\.npy: 5,000 columns of embeddings.* limit of 4,096"):
        read_embeddings(tmp_path / "e.npy")


def test_a_view_that_repeats_its_rows_is_refused(tmp_path):
    """A file of a kilobyte, of a thousand million rows."""
    torch.save(torch.ones(1, 1).expand(10**9, 1), tmp_path / "e.pt")
    with pytest.raises(LimitError, match=r"e\.pt: .* times the size of its file"):
        read_embeddings(tmp_path / "e.pt")
    torch.save({"embeddings": torch.ones(3, 2), "groups": torch.zeros(1).long().expand(10**9)}, tmp_path / "g.pt")
    with pytest.raises(LimitError, match=r"g\.pt: .* times the size of its file"):
        read_embeddings(tmp_path / "g.pt")


def test_an_npz_that_grows_without_bounds_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "e.npz", embeddings=np.zeros((2**14, 2**10), np.float64))
    assert (tmp_path / "e.npz").stat().st_size < 2**18
    started = time.perf_counter()
    with pytest.raises(LimitError, match=r"e\.npz: .* times the size of its file.* limit of 20"):
        read_embeddings(tmp_path / "e.npz")
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_shorter_than_it_says_is_refused_before_it_is_made(suffix, tmp_path):
    name = tmp_path / f"e{suffix}"
    with (tmp_path / "long.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**10, 512)})
    if suffix == ".npy":
        (tmp_path / "long.npy").rename(name)
    else:
        import zipfile

        with zipfile.ZipFile(name, "w") as file:
            file.write(tmp_path / "long.npy", "embeddings.npy")
    with pytest.raises(
        ValueError, match="its header has the shape .10000000000, 512., and the file is too short for it"
    ):
        read_embeddings(name)


def test_a_long_caption_is_refused_wherever_it_comes_from(tmp_path):
    text = "a " * 5001
    (tmp_path / "c.txt").write_text(f"short\n{text}x\n")
    with pytest.raises(LimitError, match=r"c\.txt: line 2: 10,003 characters of a caption .* limit of 10,000"):
        read_captions(tmp_path / "c.txt")
    (tmp_path / "r.json").write_text(json.dumps([{"image_id": 1, "caption": text + "x"}]))
    for read in (read_captions, read_results):
        with pytest.raises(LimitError, match=r"r\.json: entry 0: 10,003 characters"):
            read(tmp_path / "r.json")
    with pytest.raises(LimitError, match="texts: 10,003 characters"):
        load_encoder("tiny", "cpu").encode_text([text + "x"])


def test_the_longest_caption_allowed_is_encoded_quickly():
    encoder = load_encoder("tiny", "cpu")
    started = time.perf_counter()
    with pytest.warns(UserWarning, match="cut to the context length"):
        encoder.encode_text(["a circle " * 1100])
    assert time.perf_counter() - started < 2


def test_a_large_file_of_captions_is_refused_by_its_size(tmp_path, small):
    small(text_bytes=10)
    (tmp_path / "c.txt").write_text("a circle\na square\n")
    with pytest.raises(LimitError, match="18 bytes of a file of captions, annotations or results"):
        read_captions(tmp_path / "c.txt")


def test_many_json_values_are_refused_before_they_are_made(tmp_path, small):
    small(json_values=100)
    (tmp_path / "c.json").write_text("[" + "[]," * 60 + "[]]")
    with pytest.raises(LimitError, match=r"c\.json: 122 values of a JSON file are over the limit of 100"):
        read_captions(tmp_path / "c.json")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "c.json").rename(tmp_path / "annotations" / "captions_val2017.json")
    with pytest.raises(LimitError, match="122 values"):
        read_coco(tmp_path)


def test_the_command_takes_a_raised_limit_and_gives_it_back(tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(3):
        Image.new("RGB", (300 + n, 1), (80 * n, 9, 9)).save(folder / f"{n}.png")
    arguments = ["embed", "--images", str(folder), "--encoder", "tiny", "-o", str(tmp_path / "e.safetensors")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--limit aspect=300" in error
    assert main([*arguments, "--limit", "aspect=400"]) == 0
    assert ENVIRONMENT not in os.environ
    capsys.readouterr()
    assert main([*arguments, "--limit", "speed=400"]) == 2
    assert "expected NAME=NUMBER" in capsys.readouterr().err
