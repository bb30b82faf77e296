"""Calls that give messages of the page on troubleshooting, word for word, in an empty working directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import clipconformity as cc
from clipconformity import data
from clipconformity.cli import main
from clipconformity.evaluation import embedding_source, score
from clipconformity.functional import conformity, ellipsoid
from clipconformity.provenance import Provenance

ROWS = torch.randn(500, 8, generator=torch.Generator().manual_seed(0)) + 1
B_32, L_14 = "open_clip:ViT-B-32/openai", "open_clip:ViT-L-14/openai"


def read_out(metric: Any, *batches: Any, **options: Any) -> None:
    for batch in batches:
        metric.update(batch, **options)
    metric.compute()


def give_bad_rows() -> None:
    read_out(cc.Conformity(embed_dim=8), torch.cat([ROWS[3:], torch.full((3, 8), torch.nan)]))


def give_two_arrays() -> None:
    np.savez("rows.npz", a=ROWS.numpy(), b=ROWS.numpy())
    data.read_embeddings("rows.npz")


def give_no_embeddings() -> None:
    Path("img_emb").mkdir()
    embedding_source(["img_emb"])


def give_no_encoder() -> None:
    cc.ReferenceSet.fit(ROWS, spec=B_32, modality="text").save("reference.safetensors")
    Path("captions.txt").write_text("a dog\n")
    main(["score", "--captions", "captions.txt", "--reference", "reference.safetensors"])


def give_another_dimension() -> None:
    data.write_embeddings("wide-embeddings.safetensors", torch.ones(30, 768))
    score(embedding_source(["wide-embeddings.safetensors"]), cc.ReferenceSet.fit(torch.randn(30, 512)))


def give_few_samples() -> None:
    data.write_embeddings("few-embeddings.safetensors", ROWS[:7] + 1)
    score(embedding_source(["few-embeddings.safetensors"]), cc.ReferenceSet.fit(ROWS))


def give_no_images() -> None:
    Path("samples").mkdir()
    data.list_images("samples")


def give_normalised_pixels() -> None:
    pixels = torch.zeros(1, 3, 8, 8)
    pixels[0, 0, 0, :2] = torch.tensor([-2.1, 2.6])
    cc.load_encoder("tiny", "cpu").encode_image(pixels)


def give_a_path_as_text() -> None:
    Image.new("RGB", (8, 8)).save("photo.jpg")
    cc.load_encoder("tiny", "cpu")(["photo.jpg"])


def give_another_key() -> None:
    Path("results.json").write_text(json.dumps([{"image": "a.png", "sentence": "a dog"}]))
    data.read_captions("results.json")


def give_some_groups() -> None:
    metric = cc.Conformity(embed_dim=8)
    metric.update(ROWS, groups=torch.arange(500))
    read_out(metric, ROWS)


def give_an_output_that_is_there() -> None:
    Path("report.html").touch()
    main(["score", "--embeddings", "e.npy", "--reference", "r.safetensors", "--report", "report.html"])


MAKERS: list[Callable[[], object]] = [
    give_bad_rows,
    give_two_arrays,
    give_no_embeddings,
    give_no_encoder,
    give_another_dimension,
    give_no_images,
    give_normalised_pixels,
    give_a_path_as_text,
    give_another_key,
    give_some_groups,
    give_an_output_that_is_there,
    give_few_samples,
    lambda: cc.ReferenceSet.fit(torch.nn.functional.normalize(ROWS)),
    lambda: conformity(ROWS.to(torch.float8_e4m3fn)),
    lambda: conformity(ROWS.numpy()),  # type: ignore[arg-type]
    lambda: Provenance(L_14).check(Provenance(B_32)),
    lambda: Provenance(modality="image").check(Provenance(modality="text")),
    lambda: cc.load_encoder("open_clip:RN50x4", "cpu"),
    lambda: cc.ReferenceSet.fit(ROWS, groups=torch.zeros(500, dtype=torch.int64)),
    lambda: main(["reference", "--embeddings", "e.npy", "-o", "out.npy"]),
    lambda: cc.Conformity(),
    lambda: cc.Conformity(embed_dim=8).update(["a dog"]),  # type: ignore[arg-type]
    lambda: read_out(cc.ConformityKL(embed_dim=8), ROWS),
    lambda: read_out(cc.ConformityKL(cc.ReferenceSet.fit(ROWS)), -ROWS),
    lambda: ellipsoid(torch.full((50, 16), 2.5)),
]
"""Each gives one message: it raises it, warns of it, or prints it on standard error."""
