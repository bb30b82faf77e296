"""The README fits one screen, and each of its links names a file at the one address of the project."""

from __future__ import annotations

import re

import pytest
from pages import ROOT, blocks, pages

TEXT = pages()["README.md"]
LINKS = re.findall(r"\]\(([^)]+)\)", TEXT)


def repository() -> str:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return re.search(r'^Repository = "(.+)"$', text, re.MULTILINE)[1]


def test_it_fits_one_screen():
    assert len(TEXT.splitlines()) <= 80


@pytest.mark.parametrize("link", LINKS)
def test_links_are_absolute_and_name_files(link):
    found = re.fullmatch(rf"{re.escape(repository())}/(blob|raw)/main/(.+)", link)
    assert found, f"expected {repository()}/blob/main/FILE, or raw for a picture"
    assert (ROOT / found[2]).is_file()
    assert (found[1] == "raw") == link.endswith(".png")


def test_there_are_links_and_a_picture():
    assert len(LINKS) >= 10
    assert sum(link.endswith(".png") for link in LINKS) == 1


def test_the_table_is_that_of_the_page():
    page = pages()["real-captioners.md"]
    rows = re.findall(r"^\| [^|]+ \| ([^|]+ ± [^|]+) \| ([^|]+ ± [^|]+) \|", TEXT, re.MULTILINE)
    assert len(rows) == 5
    for shift, ratio in rows:
        assert re.search(rf"\| {re.escape(shift)} \| {re.escape(ratio)} \|", page)


def test_its_code_runs(tmp_path, monkeypatch):
    from clipconformity.demo import draw_scene, sample_scenes

    monkeypatch.chdir(tmp_path)
    drawn = [draw_scene(scene, seed=number) for number, scene in enumerate(sample_scenes(80, seed=0))]
    code = next(content for language, content in blocks(TEXT) if language == "python")
    names = {"real_images": [drawn[:30], drawn[30:50]], "generated": [drawn[50:65], drawn[65:]]}
    exec(f"{code}\nfigures = metrics.compute()".replace("open_clip:ViT-B-32/openai", "tiny"), names)
    promised = {"typicality_shift", "variety_ratio", "conformity_kl", "kl_low", "kl_high"}
    assert promised | {"typicality_shift_low", "variety_ratio_high"} <= set(names["figures"])
    assert (tmp_path / "real-reference.safetensors").is_file()
