"""Files of strangers: no hang, no traceback, nothing outside of their folder."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipconformity import ReferenceSet
from clipconformity.data import list_images, open_image, read_captions, read_coco, read_embeddings, read_results
from clipconformity.data.untrusted import MIN_TORCH, check_unpickling, format_value, read_json


def quickly(call, *arguments):
    """The exception that a call ends with, within seconds."""
    found = []

    def run():
        try:
            call(*arguments)
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(10)
    assert found, "it hangs or passes"
    return found[0]


READERS = {
    "captions.txt": read_captions,
    "captions.json": read_captions,
    "results.json": read_results,
    "e.npy": read_embeddings,
    "e.npz": read_embeddings,
    "e.pt": read_embeddings,
    "e.safetensors": read_embeddings,
    "r.safetensors": ReferenceSet.load,
    "a.png": open_image,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused_and_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    error = quickly(READERS[name], tmp_path / name)
    assert isinstance(error, OSError)
    assert "expected a regular file, got a pipe" in str(error)


@pytest.mark.parametrize("name", READERS)
def test_a_device_is_refused(name, tmp_path):
    (tmp_path / name).symlink_to("/dev/zero")
    assert "expected a regular file" in str(quickly(READERS[name], tmp_path / name))


@pytest.mark.parametrize("name", READERS)
def test_a_folder_and_an_impossible_name_are_no_files(name, tmp_path):
    (tmp_path / name).mkdir()
    for path in (tmp_path / "a\0b" / name, tmp_path / "absent" / name):
        with pytest.raises(FileNotFoundError, match="no such"):
            READERS[name](path)
    with pytest.raises(FileNotFoundError, match=f"{name}: it is a folder, and no "):
        READERS[name](tmp_path / name)


def test_a_pipe_in_a_folder_of_images_is_not_listed(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert [path.name for path in list_images(tmp_path)] == ["a.png"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("name", ["c.txt", "c.json"])
def test_utf_16_is_no_caption_file_with_and_without_its_mark(encoding, name, tmp_path):
    (tmp_path / name).write_bytes('["a dog", "a cat"]'.encode(encoding))
    with pytest.raises(ValueError, match=rf"{name}: not UTF-8 text"):
        read_captions(tmp_path / name)


@pytest.mark.parametrize("text", ['["a \\ud800 dog"]', '[{"image_id": "\\udfff", "caption": "a dog"}]'])
def test_half_of_a_surrogate_pair_is_told_with_its_place(text, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=r"c\.json: entry 0: .* holds half of a surrogate pair") as raised:
        read_captions(tmp_path / "c.json")
    str(raised.value).encode()


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, "1"], "entry 1: its image_id is '1' and that of entry 0 1"),
        ([True, 2], "entry 0: expected a whole number of at most 64 bits or a string as id, got True"),
        ([10**30, 2], "entry 0: expected a whole number of at most 64 bits"),
        ([-(2**63) - 1, 2], "entry 0: expected a whole number of at most 64 bits"),
        ([1.5, 2], "entry 0: expected a whole number"),
        ([None, 2], "entry 0: expected a whole number"),
        ([[1], 2], "entry 0: expected a whole number"),
    ],
)
def test_ids_of_other_types_are_told_with_their_place(ids, message, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps([{"image_id": name, "caption": "a dog"} for name in ids]))
    with pytest.raises(ValueError, match=r"c\.json: ") as raised:
        read_captions(tmp_path / "c.json")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" + "1" * 5000 + "]", "broken JSON: Exceeds the limit"),
        ('[{"image_id": NaN, "caption": "a"}]', "broken JSON: NaN is no number in JSON"),
        ('[{"image_id": 1, "caption": Infinity}]', "broken JSON: Infinity is no number in JSON"),
        ('[{"image_id": 1, "caption": ' + "[" * 400 + "]" * 400 + "}]", "expected a caption in words"),
        ("{" + '"k": ' * 1 + "1}", "COCO annotations with a list 'annotations'"),
    ],
)
def test_json_that_is_none_is_told_in_one_short_line(text, message, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=message) as raised:
        read_captions(tmp_path / "c.json")
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(tmp_path))


def test_values_are_shown_short_whatever_they_are():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**6, 10**4000, {"a\nb": "\ud800"}, list(range(10**6))):
        assert len(format_value(value)) <= 80
        assert format_value(value).isprintable()
    while deep:  # so that its end is not recursive
        deep = deep.pop()


def annotations(root: Path, **entries) -> Path:
    """A COCO folder with one image and one caption, some of whose fields are others."""
    image = {"id": 1, "file_name": "a.jpg"} | {k: v for k, v in entries.items() if k in ("id", "file_name")}
    text = {"id": 5, "image_id": image["id"], "caption": "a dog"} | {k: v for k, v in entries.items() if k == "caption"}
    (root / "annotations").mkdir()
    path = root / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps({"images": [image], "annotations": [text]}))
    return root


OUTSIDE = ["../a.jpg", "/etc/passwd", "x/../../a.jpg", "C:\\a.jpg", "..\\a.jpg", "\\\\host\\share\\a.jpg", "c:a.jpg"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_file_name_does_not_lead_out_of_the_folder(name, tmp_path):
    annotations(tmp_path, file_name=name)
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"captions_val2017\.json: the file name .* leads out of the folder of images"):
        read_coco(tmp_path, on_missing="skip")


def test_half_of_a_surrogate_pair_in_a_folder_is_told_with_the_file(tmp_path):
    entry = {"split": "test", "filename": "a.jpg", "imgid": 1, "sentences": [{"sentid": 1, "raw": "a dog"}]}
    (tmp_path / "k.json").write_text(json.dumps({"images": [entry | {"filepath": "\ud800"}]}))
    with pytest.raises(ValueError, match=r"k\.json: the name of a file or folder: .* holds half of a surrogate pair"):
        read_coco(tmp_path, "test", karpathy=tmp_path / "k.json", on_missing="skip")


def test_a_file_name_longer_than_any_is_told_short(tmp_path):
    with pytest.raises(ValueError, match="has over 255 bytes") as raised:
        read_coco(annotations(tmp_path, file_name="x" * 10_000), on_missing="skip")
    assert len(str(raised.value)) < 250 + len(str(tmp_path))


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("key", ["filepath", "filename"])
def test_a_karpathy_file_does_not_lead_out_of_the_folder(key, name, tmp_path):
    entry = {"split": "test", "filename": "a.jpg", "imgid": 1, "sentences": [{"sentid": 1, "raw": "a dog"}]}
    (tmp_path / "k.json").write_text(json.dumps({"images": [entry | {key: name}]}))
    with pytest.raises(ValueError, match="leads out of the folder of images"):
        read_coco(tmp_path, "test", karpathy=tmp_path / "k.json", on_missing="skip")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"id": -1}, "expected id from 0 to 2\\^63, got -1"),
        ({"id": 10**30}, "expected id from 0 to 2\\^63"),
        ({"file_name": "a\0.jpg"}, "null character"),
        ({"file_name": 3}, "expected file_name"),
        ({"caption": "\ud800"}, "half of a surrogate pair"),
        ({"caption": "a" * 20_000}, "20,000 characters of a caption"),
    ],
)
def test_annotations_of_wrong_values_are_told(entries, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_coco(annotations(tmp_path, **entries), on_missing="skip")


ROWS = torch.arange(12.0).reshape(4, 3) + 1
ODD = {
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "got a nested tensor"),
    "meta": (lambda: torch.empty(4, 3, device="meta"), "got a tensor of the meta device"),
    "sparse": (lambda: ROWS.to_sparse(), "got torch.sparse_coo"),
    "float8": (lambda: ROWS.to(torch.float8_e4m3fn), "expected at least 16 bits, got torch.float8_e4m3fn"),
    "complex": (lambda: ROWS.to(torch.complex64), "expected floating-point raw embeddings"),
    "whole": (lambda: ROWS.long(), "expected floating-point raw embeddings"),
    "scalar": (lambda: torch.tensor(1.0), "expected shape"),
    "empty": (lambda: torch.ones(3, 0), "expected shape"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_without_plain_values_are_refused(kind, tmp_path):
    make, message = ODD[kind]
    torch.save(make(), tmp_path / "e.pt")
    with pytest.raises((TypeError, ValueError), match=rf"e\.pt: .*{message}") as raised:
        read_embeddings(tmp_path / "e.pt")
    assert "\n" not in str(raised.value)


GROUPS = {
    "sparse": (lambda: torch.tensor([0, 1, 0, 2]).to_sparse(), "expected a dense array of groups"),
    "two-dimensional": (lambda: torch.zeros(4, 2, dtype=torch.int64), r"groups of shape \(4, 2\) do not match"),
    "meta": (lambda: torch.empty(4, dtype=torch.int64, device="meta"), "meta device"),
    "floats": (lambda: torch.zeros(4), "groups: expected whole numbers, got torch.float32"),
    "truths": (lambda: torch.zeros(4, dtype=torch.bool), "groups: expected whole numbers, got torch.bool"),
    "one": (lambda: torch.tensor(1), r"groups of shape \(\) do not match"),
    "short": (lambda: torch.zeros(3, dtype=torch.int64), r"groups of shape \(3,\) do not match"),
}


@pytest.mark.parametrize("kind", GROUPS)
def test_groups_that_are_no_list_of_numbers_are_refused(kind, tmp_path):
    make, message = GROUPS[kind]
    torch.save({"embeddings": ROWS, "groups": make()}, tmp_path / "e.pt")
    with pytest.raises((TypeError, ValueError), match=message):
        read_embeddings(tmp_path / "e.pt")


def test_groups_in_a_column_are_taken_as_a_list(tmp_path):
    torch.save({"embeddings": ROWS, "groups": torch.tensor([[3], [3], [4], [4]])}, tmp_path / "e.pt")
    assert read_embeddings(tmp_path / "e.pt").groups.tolist() == [3, 3, 4, 4]


@pytest.mark.parametrize(
    ("labels", "error"),
    [([1, "a", 2, 3], TypeError), ([10**30, 1, 2, 3], TypeError), ([[1, 2]] * 4, ValueError), ([1.5] * 4, TypeError)],
)
def test_group_ids_of_mixed_or_endless_kinds_are_refused(labels, error):
    with pytest.raises(error, match="groups: expected"):
        ReferenceSet.fit(ROWS, groups=labels)


@pytest.mark.parametrize(
    ("version", "sound"),
    [
        ("2.2.0", False),
        ("2.5.1+cu121", False),
        ("2.6.0", False),
        ("2.9.1", False),
        ("2.10.0", True),
        ("2.10.0a0+git1", True),
        ("2.14.1+cpu", True),
        ("3.0.0", True),
    ],
)
def test_pickles_are_read_only_by_a_torch_that_does_so_safely(version, sound):
    if sound:
        check_unpickling(Path("e.pt"), version)
        return
    with pytest.raises(ValueError, match=r"CVE-2025-32434, CVE-2026-24747\); use torch 2\.10 or newer"):
        check_unpickling(Path("e.pt"), version)
    assert MIN_TORCH == (2, 10)


def test_a_pt_file_is_refused_under_an_unsound_torch(tmp_path, monkeypatch):
    torch.save(ROWS, tmp_path / "e.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    with pytest.raises(ValueError, match=r"e\.pt: holds a pickle, which torch 2\.9\.1 reads unsafely"):
        read_embeddings(tmp_path / "e.pt")


def test_other_formats_are_read_under_an_unsound_torch(tmp_path, monkeypatch):
    import numpy as np

    np.save(tmp_path / "e.npy", ROWS.numpy())
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert read_embeddings(tmp_path / "e.npy").embeddings.shape == (4, 3)


def test_a_byte_order_mark_is_no_damage(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json", "file") == [1]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("kind", ["nested", "meta", "sparse", "float8"])
def test_embeddings_and_groups_without_plain_values_are_refused_in_python_too(kind):
    with pytest.raises(TypeError, match="embeddings_or_batches: expected"):
        ReferenceSet.fit(ODD[kind][0]())
    if kind != "float8":
        with pytest.raises(TypeError, match="groups: expected a dense tensor"):
            ReferenceSet.fit(ROWS, groups=ODD[kind][0]())
