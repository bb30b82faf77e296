"""What a notebook shows of a result stays short, however many samples it holds."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import clipconformity as cc
from clipconformity import data, evaluation, generators
from clipconformity.data.addresses import parse_place
from clipconformity.data.brief import format_brief
from clipconformity.demo import sample_scenes, write_coco_scenes

COUNT = 400
RECORDS = {"ClassScore", "Difference", "Figure", "HumanSpread", "Verdict"}
"""Classes whose fields are single values, or one a fold, and are shown as they are."""
OWN = {"TransformersCaptioner"}
"""What is no result, and is shown as any object."""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """One of each class, of many samples, and what is shown of it."""
    folder = tmp_path_factory.mktemp("shown")
    generator = torch.Generator().manual_seed(0)
    rows, real = torch.randn(2, COUNT, 8, generator=generator) + 1
    ids = [f"{row}.png" for row in range(COUNT)]
    data.write_embeddings(folder / "rows.safetensors", rows, ids=ids)
    file = data.read_embeddings(folder / "rows.safetensors")
    reference = cc.ReferenceSet.fit(real)
    by = {name: f"class {row % 9}" for row, name in enumerate(ids)}
    source = evaluation.embedding_source([folder / "rows.safetensors"])
    batch = next(iter(source))
    scored = evaluation.score(
        evaluation.embedding_source([folder / "rows.safetensors"]), reference, by=by, resamples=20
    )
    write_coco_scenes(folder, sample_scenes(COUNT, seed=0), captions_per_image=2, seed=0)
    coco = data.read_coco(folder, per_image=None)
    (folder / "val2017" / "notes.md").write_text("no image")
    texts = evaluation.caption_source(coco.captions, cc.load_encoder("tiny", "cpu"))
    found = [
        file,
        source,
        batch,
        scored,
        scored.by,
        evaluation.compare({"a": scored, "b": scored}, reference),
        evaluation.sample_size_curve(scored, [20])[0],
        coco,
        coco.captions,
        data.survey_images(folder / "val2017"),
        texts,
        generators.CaptionRun(folder / "results.json", coco.captions, generated=COUNT),
        generators.ImageRun(coco.image_paths, folder / "manifest.jsonl", generated=COUNT, black=coco.image_paths[:3]),
    ]
    return {type(one).__name__: repr(one) for one in found}


def test_every_public_class_is_shown_in_a_line(shown):
    public = {
        name
        for module in (data, evaluation, generators)
        for name in module.__all__
        if inspect.isclass(getattr(module, name))
    }
    assert public - RECORDS - OWN <= set(shown)
    for name, text in shown.items():
        assert text.startswith(f"{name}("), text
        assert len(text) < 250, text
        assert "\n" not in text
        assert "object at 0x" not in text


def test_it_says_how_much_there_is(shown):
    assert "count=400, embed_dim=8" in shown["EmbeddingFile"]
    assert shown["SourceBatch"] == "SourceBatch(count=400, embed_dim=8, first='0.png')"
    assert "count=400, used=400" in shown["FileSource"]
    assert "kind='captions', count=800, used=0, spec='tiny', modality='text'" in shown["Source"]
    assert shown["Captions"] == "Captions(count=800, images=400)"
    assert shown["Coco"] == "Coco(split='val2017', images=400, captions=800, missing=0, seed=0)"
    assert shown["ByClass"] == "ByClass(classes=9, without_class=0)"
    assert shown["Comparison"].startswith("Comparison(runs=['a', 'b'], differences=")
    assert shown["ImageFolder"].endswith(", found=400, skipped=1)")
    assert shown["ImageRun"].endswith("paths=400, generated=400, reused=0, black=3)")
    assert shown["CaptionRun"].endswith("captions=800, generated=400, reused=0, empty=0)")


def test_a_score_says_its_verdicts(shown):
    assert shown["Score"].startswith("Score(count=400, figures=")
    assert "typicality='" in shown["Score"]
    assert "variety='" in shown["SizePoint"]


def test_a_path_or_address_is_shown_as_a_text_without_secrets():
    place = parse_place("https://ann:secret@example.org/e.npy?key=abc")
    assert format_brief(1, path=place) == "int(path='https://example.org/e.npy')"
    assert format_brief(Path("a"), root=Path("b") / "c", file=None) == f"{type(Path()).__name__}(root='b/c')"
