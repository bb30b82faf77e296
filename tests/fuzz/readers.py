"""What is fuzzed: for each reader, how a damaged input is made, and what is done with what it reads."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import torch
from damage import as_json, blank_png, damage_bytes, damage_json, damage_tensor
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

import clipconformity as cc
from clipconformity.data import (
    Coco,
    open_image,
    read_captions,
    read_classes,
    read_coco,
    read_embeddings,
    read_image_list,
    read_results,
    write_embeddings,
)
from clipconformity.encoders.registry import TINY
from clipconformity.evaluation import Score, build_reference, compare, embedding_source, score
from clipconformity.provenance import Provenance
from clipconformity.stream.state_file import compute_checksum

Random = random.Random
Act = Callable[[], object]
"""Reads an input that has been made, and uses what it reads."""
PYARROW = find_spec("pyarrow") is not None
"""Whether Parquet files can be made; it is an extra."""
ROWS = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) + 1
GROUPS = torch.arange(40) // 2


def _text(random: Random, content: Any) -> bytes:
    """JSON that is damaged as such, or as bytes."""
    if random.random() < 0.6:
        return as_json(damage_json(content, random))
    return damage_bytes(json.dumps(content).encode(), random)


ENTRIES = [{"image_id": n, "id": 10 + n, "caption": f"a dog number {n}"} for n in range(6)]


def captions(folder: Path, random: Random) -> Act:
    suffix = random.choice((".txt", ".json", ".json"))
    path = folder / f"c{suffix}"
    if suffix == ".txt":
        path.write_bytes(
            damage_bytes("a dog\na cat\nzwei Hündchen\n".encode(random.choice(("utf-8", "utf-16"))), random)
        )
    else:
        content = random.choice((ENTRIES, {"annotations": ENTRIES}, ["a dog", "a cat"]))
        path.write_bytes(_text(random, content))
    return lambda: _check_texts(read_captions(path).texts)


def _check_texts(texts: list[str]) -> None:
    for text in texts:
        text.encode()


def results(folder: Path, random: Random) -> Act:
    path = folder / "r.json"
    path.write_bytes(_text(random, ENTRIES))
    wanted = random.choice((None, list(range(6))))
    return lambda: _check_texts(read_results(path, wanted, on_missing="skip").texts)


def classes(folder: Path, random: Random) -> Act:
    path = folder / "by.csv"
    path.write_bytes(damage_bytes(b'id,class\na.png,dog\n"b,c.png","big ""cat"""\n', random))
    return lambda: _check_texts([word for pair in read_classes(path).items() for word in pair])


def image_list(folder: Path, random: Random) -> Act:
    names = [f"{n}.png" for n in range(4)]
    for name in names:
        (folder / name).touch()
    lines = {
        ".txt": names,
        ".csv": ["path,n", *(f"{name},1" for name in names)],
        ".jsonl": [json.dumps({"path": name}) for name in names],
    }
    suffix = random.choice(list(lines))
    path = folder / f"l{suffix}"
    path.write_bytes(damage_bytes("\n".join(lines[suffix]).encode(), random))
    return lambda: _inside(folder, read_image_list(path, on_missing="skip").paths)


def _inside(folder: Path, paths: list[Path]) -> None:
    assert all(folder.resolve() in path.resolve().parents for path in paths)


def coco(folder: Path, random: Random) -> Act:
    (folder / "annotations").mkdir()
    (folder / "val2017").mkdir()
    for n in range(3):
        (folder / "val2017" / f"{n}.jpg").touch()
    if random.random() < 0.5:
        images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
        texts = [{"id": n, "image_id": n % 3, "caption": f"a dog {n}"} for n in range(6)]
        content: Any = {"images": images, "annotations": texts}
        (folder / "annotations" / "captions_val2017.json").write_bytes(_text(random, content))
        return lambda: _check_places(folder, read_coco(folder, on_missing="skip"))
    said = [{"sentid": n, "raw": f"a dog {n}", "tokens": ["a", "dog"]} for n in range(2)]
    images = [
        {"split": "test", "filename": f"{n}.jpg", "filepath": "val2017", "cocoid": n, "sentences": said[n : n + 1]}
        for n in range(2)
    ]
    (folder / "k.json").write_bytes(_text(random, {"images": images}))
    return lambda: _check_places(folder, read_coco(folder, "test", karpathy=folder / "k.json", on_missing="skip"))


def _check_places(folder: Path, coco: Coco) -> None:
    for path in coco.image_paths:
        assert folder.resolve() in path.resolve().parents


def _use(path: Path | str) -> None:
    found = read_embeddings(path)
    if found.embeddings.numel() > 2**20:  # whole, and a matter of computing
        return
    reference = cc.ReferenceSet.fit(found.embeddings, groups=found.groups, ids=found.ids, allow_normalized=True)
    _check_figures(reference)


def _check_figures(reference: cc.ReferenceSet) -> None:
    figures = [
        reference.self_conformity,
        reference.conformities.sum(),
        reference.covariance.sum(),
        reference.mean.sum(),
    ]
    assert all(bool(torch.isfinite(figure)) for figure in figures), "a figure is not finite"
    json.dumps(reference.describe(), allow_nan=False)


def safetensors(folder: Path, random: Random) -> Act:
    path = folder / "e.safetensors"
    origin = Provenance("hf:nobody/nothing", {"weights": "1"}, "image")
    write_embeddings(path, ROWS, ids=[f"{n}.png" for n in range(40)], groups=GROUPS, provenance=origin)
    if random.random() < 0.5:
        path.write_bytes(damage_bytes(path.read_bytes(), random))
    else:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
        about["about"] = as_json(damage_json(json.loads(about["about"]), random)).decode()
        _save(path, _damaged({"embeddings": ROWS, "groups": GROUPS}, random), about)
    return lambda: _use(path)


def _damaged(tensors: dict[str, torch.Tensor], random: Random) -> dict[str, torch.Tensor]:
    name = random.choice(sorted(tensors))
    return tensors | {name: damage_tensor(tensors[name], random)}


def _save(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str]) -> None:
    """What cannot be saved is left as it was."""
    try:
        save_file(
            {name: value.detach().contiguous() for name, value in tensors.items() if value.numel() < 10**7}, path, about
        )
    except (SafetensorError, ValueError, RuntimeError, KeyError, NotImplementedError):
        return


def numpy_arrays(folder: Path, random: Random) -> Act:
    kind = random.choice(("npy", "npz", "npz"))
    rows: Any = ROWS.numpy()
    odd = (
        rows.astype(np.float16),
        rows.astype(object),
        rows.astype("U3"),
        rows.astype(">f8"),
        rows.astype(np.complex64),
        rows.view("V4"),
        np.asfortranarray(rows),
        rows[None],
        rows[:0],
        rows.repeat(10 ** random.randrange(5), 1)[:2],
        np.zeros((random.randrange(1, 80_000), 256), np.float32),
    )
    rows = random.choice(odd) if random.random() < 0.3 else rows
    path = folder / f"e.{kind}"
    with path.open("wb") as file:
        if kind == "npy":
            np.save(file, rows, allow_pickle=True)
        else:
            save = random.choice((np.savez, np.savez_compressed))
            save(file, embeddings=rows, groups=GROUPS.numpy())
    if random.random() < 0.8:
        path.write_bytes(damage_bytes(path.read_bytes(), random))
    return lambda: _use(path)


def parquet(folder: Path, random: Random) -> Act:
    path = folder / "e.parquet"
    _write_parquet(path, random)
    if random.random() < 0.8:
        path.write_bytes(damage_bytes(path.read_bytes(), random))
    return lambda: _use(path)


def _write_parquet(path: Path, random: Random) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = random.choice((ROWS.numpy(), ROWS.half().numpy(), ROWS.numpy()[:0]))
    odd: Any = (
        [1.0, None],
        [[1.0], [2.0, 3.0]],
        [None, [1.0]],
        [["a"]],
        [[[1.0]]],
        [{"a": 1.0}],
        [[]],
        [[None]],
        [True],
    )
    if random.random() < 0.3:
        column = pa.array(random.choice(odd))
    elif random.random() < 0.5:
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    else:
        column = pa.ListArray.from_arrays(pa.array(np.arange(0, rows.size + 1, rows.shape[1], np.int32)), rows.ravel())
    ids = [
        random.choice(("a", "b\0", None, "c" * 20_000, "ü")) if random.random() < 0.02 else str(n)
        for n in range(len(column))
    ]
    encoded = pa.array([one or "" for one in ids]).dictionary_encode()  # nulls in a dictionary cannot be written
    words = random.choice((ids, encoded, list(range(len(column)))))
    names = random.choice(("embedding", "embeddings", "v")), random.choice(("id", "url", "other"))
    table = pa.table({names[0]: column, names[1]: words, "groups": list(range(len(column)))})
    pq.write_table(
        table, path, row_group_size=random.choice((7, 1000)), compression=random.choice(("snappy", "none", "zstd"))
    )


def shards(folder: Path, random: Random) -> Act:
    """A folder of files of several kinds, of which some are damaged."""
    for number in range(random.randrange(1, 5)):
        rows, path = ROWS[number * 9 :], folder / random.choice(("a", "a/b", ".c", "img_emb", "metadata"))
        path.mkdir(parents=True, exist_ok=True)
        kind = random.choice(("npy", "npz", "safetensors", *["parquet"][: int(PYARROW)]))
        name = random.choice(
            (f"e{number}", f"img_emb_{number}", f"text_emb_{number}", f"metadata_{number}", f"é{number}")
        )
        file = path / f"{name}.{kind}"
        if kind == "npy":
            np.save(file, rows.numpy())
        elif kind == "npz":
            np.savez_compressed(file, embeddings=rows.numpy())
        elif kind == "safetensors":
            save_file({"embeddings": rows.contiguous()}, file)
        else:
            _write_parquet(file, random)
        if random.random() < 0.4:
            file.write_bytes(damage_bytes(file.read_bytes(), random))
    skip = random.random() < 0.5
    place = random.choice((folder, folder / "*", folder / "**" / "*.np?"))
    return lambda: _stream(place, skip)


def _stream(place: Path, skip: bool) -> None:
    source = embedding_source([place], skip_errors=skip)
    _check_figures(build_reference(source, allow_normalized=True))
    assert sum(one.used for one in source.files) == source.used


def addresses(folder: Path, random: Random) -> Act:
    """A damaged file at an address."""
    random.choice((safetensors, numpy_arrays, *[parquet][: int(PYARROW)]))(folder, random)
    [path] = folder.iterdir()
    fsspec.filesystem("memory").pipe_file(f"/fuzz/{path.name}", path.read_bytes())
    return lambda: _use(f"memory://fuzz/{path.name}")


def pickled(folder: Path, random: Random) -> Act:
    path = folder / "e.pt"
    tensors: Any = {"embeddings": ROWS, "groups": GROUPS}
    kind = random.randrange(4)
    if kind == 0:
        tensors = _damaged(tensors, random)
    elif kind == 1:
        tensors = damage_tensor(ROWS, random)
    elif kind == 2:
        tensors = random.choice(([ROWS], {}, {3: ROWS}, {"a": ROWS, "b": ROWS}, torch.nn.Parameter(ROWS), 3, None))
    torch.save(tensors, path, _use_new_zipfile_serialization=random.random() < 0.8)
    if kind == 3 or random.random() < 0.3:
        path.write_bytes(damage_bytes(path.read_bytes(), random))
    return lambda: _use(path)


def saved_score(folder: Path, random: Random) -> Act:
    path, reference = folder / "s.safetensors", cc.ReferenceSet.fit(ROWS + 0.1, modality="image")
    write_embeddings(folder / "e.safetensors", ROWS, ids=[f"{n}.png" for n in range(40)], groups=GROUPS)
    metrics = random.choice((["conformity"], ["nearest", "vendi"]))
    score(embedding_source([folder / "e.safetensors"]), reference, resamples=1, metrics=metrics).save(path)
    whole = path.read_bytes()
    if random.random() < 0.4:
        path.write_bytes(damage_bytes(whole, random))
        if path.read_bytes() != whole:
            return lambda: _must_fail(lambda: Score.load(path, reference, resamples=1))
    else:
        _damage_state(path, ("score", "ids", "words"), random)
    return lambda: _check_score(Score.load(path, reference, resamples=1))


def _check_score(one: Score) -> None:
    json.dumps(one.to_dict(), allow_nan=False)
    assert all(figure.value is None or np.isfinite(figure.value) for figure in one.figures.values())
    compare({"a": one, "b": one}, one.reference).table()


def reference(folder: Path, random: Random) -> Act:
    path = folder / "r.safetensors"
    size = random.choice((25, 10_000))
    names = [f"{n}.png" for n in range(40)]
    groups = random.choice((None, GROUPS))
    cc.ReferenceSet.fit(ROWS, spec="hf:nobody/nothing", groups=groups, ids=names, max_samples=size).save(path)
    whole = path.read_bytes()
    if random.random() < 0.4:
        path.write_bytes(damage_bytes(whole, random))
        if path.read_bytes() != whole:
            return lambda: _must_fail(lambda: cc.ReferenceSet.load(path))
    else:
        _damage_state(path, ("reference", "ids"), random)
    return lambda: _check_figures(cc.ReferenceSet.load(path))


def _damage_state(path: Path, entries: tuple[str, ...], random: Random) -> None:
    """By someone who makes the checksum anew."""
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors = load_file(path)
    if random.random() < 0.5:
        name = random.choice(entries)
        about[name] = as_json(damage_json(json.loads(about[name]), random)).decode()
    else:
        tensors = _damaged(tensors, random)
    try:
        about["checksum"] = compute_checksum(tensors, about)
    except (RuntimeError, NotImplementedError, TypeError):  # of no plain values, and cannot be saved either
        tensors = load_file(path)
    _save(path, tensors, about)


def _must_fail(read: Act) -> None:
    read()
    raise AssertionError("a damaged file was read")


TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"
"""What says that an image is to be turned."""


def images(folder: Path, random: Random) -> Act:
    formats = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "gif": "GIF", "tif": "TIFF", "bmp": "BMP", "ppm": "PPM"}
    suffix = random.choice(sorted(formats))
    path = folder / f"a.{suffix}"
    if random.random() < 0.1:
        path.write_bytes(blank_png(int(10 ** random.uniform(0, 5)), int(10 ** random.uniform(0, 5))))
    else:
        more = {"png": ["RGBA", "P", "I;16", "1"], "tif": ["F", "I;16", "CMYK", "I"]}
        modes = ["RGB", "L", *more.get(suffix, [])]
        mode = random.choice(modes)
        plain = Image.fromarray(np.random.default_rng(random.randrange(99)).integers(0, 256, (40, 50, 3), np.uint8))
        image = Image.new(mode, (50, 40), 7) if mode in ("I;16", "I", "F") else plain.convert(mode)
        buffer = io.BytesIO()
        image.save(
            buffer,
            formats[suffix],
            exif=random.choice((b"", b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0")),
        )
        path.write_bytes(damage_bytes(buffer.getvalue(), random) if random.random() < 0.9 else buffer.getvalue())
    return lambda: open_image(path).load()


SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def checkpoint(folder: Path, random: Random) -> Act:
    place = folder / "c"
    place.mkdir()
    for path in TINY.iterdir():
        if path.is_file():
            (place / path.name).symlink_to(path)
    name = random.choice((*SETTINGS, *SETTINGS[:2], "model.safetensors"))
    content = (place / name).read_bytes()
    (place / name).unlink()
    if name.endswith(".json") and random.random() < 0.8:
        (place / name).write_bytes(as_json(damage_json(json.loads(content), random)))
    elif random.random() < 0.9:
        (place / name).write_bytes(damage_bytes(content, random))
    return lambda: _encode(place)


def _encode(place: Path) -> None:
    encoder = cc.load_encoder(place, "cpu")
    encoder.encode_text(["a red circle", "two squares"])
    encoder.encode_image([Image.new("RGB", (40, 50), "red")])


READERS: dict[str, Callable[[Path, Random], Act]] = {
    reader.__name__: reader
    for reader in (
        captions,
        results,
        classes,
        image_list,
        coco,
        safetensors,
        numpy_arrays,
        *[parquet][: int(PYARROW)],
        shards,
        addresses,
        pickled,
        reference,
        saved_score,
        images,
        checkpoint,
    )
}


def run_case(number: int, seed: int, folder: Path, watched: AbstractContextManager[object] | None = None) -> str:
    """Run one case; each depends on the seed and its number alone.

    Args:
        number: Of the case.
        seed: Of all cases.
        folder: Where the input is made; emptied before.
        watched: Entered for the reading, and not for the making of the input.

    Returns:
        ``"read"``, or the name of the declared error that it ended with.

    Raises:
        AssertionError: If an error has more than one line, or is very long.
    """
    reader = list(READERS.values())[number % len(READERS)]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    act = reader(folder, random.Random(f"{seed} {number}"))
    try:
        with watched or nullcontext():
            act()
    except (ValueError, OSError, TypeError) as error:
        message = str(error)
        assert "\n" not in message, f"more than one line: {message!r}"
        assert len(message) < 1500, f"{len(message)} characters: {message[:500]!r}"
        return type(error).__name__
    return "read"
