"""Images of every mode and source come out as the same upright RGB."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipconformity.data import list_images
from clipconformity.data.images import open_image, to_images, to_rgb


def gradient(height=24, width=40):
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([red, green, np.full_like(red, 90)], axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_mode_becomes_rgb_of_the_same_size(mode):
    image = Image.fromarray(gradient()).convert(mode) if mode != "LAB" else Image.new("LAB", (40, 24))
    converted = to_rgb(image)
    assert converted.mode == "RGB"
    assert converted.size == (40, 24)


def test_16_bit_grey_is_scaled_and_not_cut_off(tmp_path):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    read = np.asarray(open_image(tmp_path / "deep.png"))[..., 0]
    assert np.abs(read.astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


def test_float_image_in_unit_range_is_scaled():
    image = Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
    assert np.abs(np.asarray(to_rgb(image))[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


def test_exif_rotation_is_applied(tmp_path):
    image = Image.fromarray(gradient())
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    upright = np.asarray(open_image(tmp_path / "turned.png"))
    assert np.array_equal(upright, np.rot90(gradient(), k=-1))


def test_palette_with_transparency_needs_no_warning(tmp_path):
    image = Image.fromarray(gradient()).quantize(16)
    image.info["transparency"] = b"\x00" * 16
    image.save(tmp_path / "palette.png")
    assert open_image(tmp_path / "palette.png").mode == "RGB"


def test_tensors_arrays_paths_and_pil_are_the_same_pixels(tmp_path):
    pixels = gradient()
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tensor = torch.tensor(pixels).permute(2, 0, 1)
    for batch in (
        Image.fromarray(pixels),
        tmp_path / "a.png",
        tensor,
        tensor[None],
        tensor.float() / 255,
        pixels,
        pixels[None],
        [Image.fromarray(pixels)],
        [tmp_path / "a.png"],
        [tensor],
    ):
        (image,) = to_images(batch)
        assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (torch.zeros(2, 3, 8, 8) - 0.5, ValueError, r"in \[0, 1\], got values from -0.5"),
        (torch.full((3, 8, 8), float("nan")), ValueError, r"in \[0, 1\]"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), ValueError, r"\(3, H, W\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), TypeError, "uint8 or floating-point"),
        (np.zeros((8, 8), dtype=np.uint8), ValueError, r"\(H, W, 3\)"),
        (np.zeros((8, 8, 3)), ValueError, "uint8 arrays"),
        ([3], TypeError, "got int"),
        (["a.png"], TypeError, "pathlib.Path"),
    ],
)
def test_what_is_no_image_is_refused(batch, error, message):
    with pytest.raises(error, match=message):
        to_images(batch)


def test_unreadable_files_are_named(tmp_path):
    Image.fromarray(gradient(256, 256)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("cut.jpg", "text.png"):
        with pytest.raises(ValueError, match=f"{name}: cannot be read as an image"):
            open_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"absent\.png: no such image"):
        open_image(tmp_path / "absent.png")


def test_folders_are_listed_in_order_and_in_depth(tmp_path):
    for name in ("b/2.PNG", "a/1.jpeg", "c.webp", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in list_images(tmp_path)] == ["a/1.jpeg", "b/2.PNG", "c.webp"]


def test_empty_and_absent_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no images in this folder"):
        list_images(tmp_path)
    with pytest.raises(NotADirectoryError, match="expected a folder"):
        list_images(tmp_path / "absent")
