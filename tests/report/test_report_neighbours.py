"""What a report shows of repeats, copies and what is missed."""

from __future__ import annotations

import re

import pytest
import torch

import clipconformity as cc
from clipconformity.demo import draw_scene, sample_scenes
from clipconformity.evaluation import Source, SourceBatch, score
from clipconformity.report import Run, write_report

COUNT = 120


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six samples that repeat each other, five copies of one reference row, and one far from all."""
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path_factory.mktemp("images")
    image = draw_scene(sample_scenes(1, seed=0)[0], seed=0)
    names = [f"image {n}.png" for n in range(COUNT)]
    for name in names:
        image.save(folder / name)
    reference = torch.randn(150, 24, generator=generator) + 0.5
    rows = torch.randn(COUNT, 24, generator=generator) + 0.5
    rows[:6], rows[10:15], rows[20] = rows[0], reference[3], 40.0
    reported = cc.ReferenceSet.fit(reference, ids=[f"/home/ann/<row> {n}" for n in range(150)])
    source = Source(iter([SourceBatch(rows, names)]), COUNT)
    with pytest.warns(cc.OverlapWarning):
        result = score(source, reported, metrics=["prdc", "nearest"], resamples=20)
    return Run("a run", result, {name: folder / name for name in names})


def page(run, path, **options) -> str:
    write_report(path, [run], **options)
    return path.read_text()


def test_samples_are_shown_under_what_they_do_and_reference_rows_named(run, tmp_path):
    html = page(run, tmp_path / "r.html")
    section = html.split('<section id="neighbours"')[1].split("</section>")[0]
    parts = {part.split("</h4>")[0]: part for part in section.split("<h4>")[1:]}
    assert list(parts) == ["Repeated", "Copied", "Off the manifold", "Not covered"]
    assert "6 times, 5 times" in parts["Repeated"]
    assert re.search(r"image [0-5]\.png", parts["Repeated"])
    assert "&lt;row&gt; 3 (1)" in parts["Copied"]
    assert re.search(r"image 1[0-4]\.png", parts["Copied"])
    assert "image 20.png" in parts["Off the manifold"]
    assert parts["Not covered"].count("<li>") == 12
    assert "/home/ann" not in html
    assert section.count("data:image/png") <= 12


def test_the_thumbnails_are_no_more_than_told_and_none_without_images(run, tmp_path):
    for most in (48, 12, 4):
        assert 0 < page(run, tmp_path / f"{most}.html", thumbnails=most).count('src="data:image') <= most
    html = page(run, tmp_path / "none.html", thumbnails=0)
    assert 'id="neighbours"' not in html
    assert "image 20.png" not in html


def test_originals_and_what_is_missed_are_shown_where_the_references_images_are_given(run, tmp_path):
    theirs = dict.fromkeys(run.score.reference.sample_ids, run.images["image 0.png"])
    write_report(tmp_path / "r.html", [run], reference_images=theirs)
    html = (tmp_path / "r.html").read_text()
    section = html.split('<section id="neighbours"')[1].split("</section>")[0]
    parts = {part.split("</h4>")[0]: part for part in section.split("<h4>")[1:]}
    assert re.search(r"image 1[0-4]\.png.*original: &lt;row&gt; 3<", parts["Copied"], re.DOTALL)
    assert 0 < parts["Not covered"].count("data:image/png") <= 4
    assert html.count('src="data:image') <= 48
    gallery = html.split('<section id="gallery"')[1].split("</section>")[0]
    assert "<h3>reference</h3>" in gallery
    assert "/home/ann" not in html
