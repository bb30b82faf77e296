"""What the HTML reports hold, without a browser: words first, nothing fetched, nothing unescaped, no growth with N."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ellipsoid_rows
from PIL import Image

import clipconformity as cc
from clipconformity.evaluation import Source, SourceBatch, compare, score, write_per_sample
from clipconformity.evaluation import geometry as properties
from clipconformity.functional import shift_sweep
from clipconformity.report import Run, write_geometry_report, write_report
from clipconformity.report.score_plots import PLOTS

DIM = 8
ATTACK = "<script>alert('x')</script> & \"quoted\""
VOID = {"meta", "link", "img", "br", "hr", "input", "use", "path", "polygon"}


class Page(HTMLParser):
    """Tags with their attributes, and the text of every tag by name; refuses tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self._open[-1] if self._open else "", data))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def said(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def scored(rows: torch.Tensor, reference: cc.ReferenceSet, ids: list[str] | None = None):
    names = ids or [f"sample {n}" for n in range(len(rows))]
    return score(Source(iter([SourceBatch(rows, names)]), len(rows)), reference, resamples=20)


@pytest.fixture
def reference(generator):
    return cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, generator), modality="image", dataset="a <b>set</b>")


@pytest.fixture
def rows(generator):
    return ellipsoid_rows(120, DIM, generator, offset=1.1)


def written(path, *arguments, **options) -> tuple[str, Page]:
    write_report(path, *arguments, **options)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def noise(path, size=256):
    """An image that compresses badly."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return path


def assert_nothing_is_fetched(text: str, page: Page) -> None:
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "data", "poster", "action"):
                assert value.startswith(("data:", "#")), (name, value)
    assert not re.search(r"url\((?!#)|@import", text)
    addresses = set(re.findall(r"https?://[^\"'<> ]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not places
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:")
    (script,) = page.said("script")  # the library's own, which alone the policy lets run
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert script == (files("clipconformity.report") / "page.js").read_text(encoding="utf-8")


SECTIONS = ["verdict", "distributions", "gallery", "figures", "terms", "measured", "cite"]


def test_the_verdict_stands_first_and_in_words(tmp_path, rows, reference):
    result = scored(rows + 1, reference)
    text, page = written(tmp_path / "r.html", [Run("mine", result)])
    assert [section["id"] for section in page.of("section")] == SECTIONS
    first = text[text.index('<section id="verdict"') : text.index('<section id="distributions"')]
    assert first.count("<svg role") == 1  # the map
    shift, ratio = result.figures["typicality_shift"], result.figures["variety_ratio"]
    (sentence,) = [text for text in page.said("li") if text.startswith(": ")]
    for figure, sign in ((shift, "+"), (ratio, "")):
        numbers = [format(x, f"{sign}.2f") for x in (figure.value, *figure.interval)]
        assert re.search(rf"{re.escape(numbers[0])} \w+, {re.escape(numbers[1])} to {re.escape(numbers[2])}", sentence)
    words = {"same": "as typical", "more": "more typical", "less": "less typical", "undecided": "typicality undecided"}
    assert words[result.verdicts["typicality"].outcome] in sentence
    assert "N = 120." in sentence


def test_the_ranking_is_that_of_the_comparison(tmp_path, monkeypatch, generator, reference):
    """A run than which another is surely more varied is not among the most varied, whatever the leader's interval."""
    results = {name: scored(ellipsoid_rows(60, DIM, generator), reference) for name in "abcd"}
    found = compare(results, reference)
    ranks = {"a": 1, "b": 1, "c": 2, "d": 2}
    monkeypatch.setattr(type(found), "ranks", lambda self, figure: ranks)
    _, page = written(tmp_path / "r.html", [Run(name, one) for name, one in results.items()])
    assert "Most varied: not decided between a and b. The other 2 are surely less varied." in page.said("p")


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning", "ignore::clipconformity.LowerBoundWarning")
def test_it_says_which_run_is_most_varied_and_whether_that_is_sure(tmp_path, generator, reference):
    narrow, wide = (ellipsoid_rows(200, DIM, generator, offset=x) for x in (2.5, 0.6))
    runs = {"narrow": narrow, "wide": wide, "wider": torch.cat([wide[:199], wide[:1] * 1.01])}
    results = {name: scored(x, reference) for name, x in runs.items()}
    found = compare(results, reference)
    assert found.difference("narrow", "wide", "variety_ratio").outcome == "less"
    assert found.difference("wide", "wider", "variety_ratio").outcome == "undecided"
    _, page = written(tmp_path / "r.html", [Run(name, one) for name, one in results.items()])
    (line,) = [text for text in page.said("p") if text.startswith("Most varied")]
    assert "not decided between" in line
    assert "wide" in line
    assert "wider" in line
    assert line.endswith("The other run is surely less varied.")
    _, page = written(tmp_path / "r.html", [Run(name, results[name]) for name in ("narrow", "wide")])
    assert "Most varied: wide, surely more than the other run." in page.said("p")
    _, page = written(tmp_path / "r.html", [Run("wide", results["wide"])])
    assert not any(text.startswith("Most") for text in page.said("p"))


def test_the_test_and_the_divergence_are_a_line_under_the_verdict(tmp_path, rows, reference):
    result = dataclasses.replace(scored(rows, reference), notes=["one thing to know"])
    _, page = written(tmp_path / "r.html", [Run("mine", result)])
    (line,) = [text for text in page.said("span") if text.startswith("Test of equal distributions")]
    assert f"p = {result.p_value:.3g}" in line
    assert f"noise floor {result.noise_floor:.4g}" in line
    assert "One thing to know." in page.said("p")


def test_a_note_of_several_runs_is_said_once(tmp_path, rows, reference):
    one, other = (dataclasses.replace(scored(rows + n, reference), notes=["of both", f"of {n}"]) for n in range(2))
    _, page = written(tmp_path / "r.html", [Run("one", one), Run("other", other)])
    assert [text for text in page.said("p") if "of both" in text.lower()] == ["Of both."]
    assert "one: Of 0." in page.said("p")


def test_every_term_of_a_table_is_explained(tmp_path, rows, reference):
    _, page = written(tmp_path / "r.html", [Run("mine", scored(rows, reference))])
    anchors = {attributes.get("id") for attributes in page.of("div")}
    linked = [a for a in page.of("a") if a.get("class") == "term"]
    assert {a["href"][1:] for a in linked} <= anchors
    reported = " ".join(page.said("a"))
    for word in ("conformity", "self-conformity", "typicality shift", "variety ratio", "KL", "noise floor", "p"):
        assert word in reported
    assert all(len(a["title"]) > 10 for a in linked)


def test_it_tells_how_to_cite_as_the_citation_file_does(tmp_path, rows, reference):
    _, page = written(tmp_path / "r.html", [Run("mine", scored(rows, reference))])
    cited = "".join(page.said("code"))
    citation = (Path(__file__).parents[2] / "CITATION.cff").read_text()
    for part in ("The Double-Ellipsoid Geometry of CLIP", "2411.14517", cc.__version__, "Gilboa", "2025"):
        assert part in cited.replace("{CLIP}", "CLIP")
        assert part in citation


def test_the_date_of_a_repeated_build_is_the_one_told(tmp_path, rows, reference, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    _, page = written(tmp_path / "r.html", [Run("mine", scored(rows, reference))])
    assert "1970-01-02" in page.said("dd")
    first = (tmp_path / "r.html").read_bytes()
    written(tmp_path / "r.html", [Run("mine", scored(rows, reference))])
    assert (tmp_path / "r.html").read_bytes() == first


def test_captions_names_and_commands_are_escaped(tmp_path, rows, reference):
    result = scored(rows, reference, [f"{n}{ATTACK}" for n in range(len(rows))])
    run = Run(ATTACK, result, captions=[ATTACK] * len(rows))
    text, page = written(tmp_path / "r.html", [run], command=f"run {ATTACK}", title=ATTACK, note=ATTACK)
    assert_nothing_is_fetched(text, page)
    assert page.of("b") == []
    assert page.said("q") == [ATTACK] * 24
    assert page.said("title") == [ATTACK]
    assert page.said("code")[0] == f"run {ATTACK}"
    assert "a <b>set</b>" in "".join(page.said("dd"))


def test_dollars_and_underscores_in_a_run_name_are_drawn(tmp_path, rows, reference):
    _, page = written(tmp_path / "r.html", [Run("_$x_1$ at $5", scored(rows, reference))])
    assert any("$x_1$ at $5" in text for text in page.said("text"))


def test_nothing_is_fetched(tmp_path, rows, reference):
    picture = noise(tmp_path / "a.png")
    run = Run("mine", scored(rows, reference), images=[picture] * len(rows))
    assert_nothing_is_fetched(*written(tmp_path / "r.html", [run]))


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning", "ignore::clipconformity.LowerBoundWarning")
def test_names_on_the_page_are_there_once(tmp_path, rows, reference):
    other = cc.ReferenceSet.fit(rows, modality="text")
    runs = [Run(f"run {n}", scored(rows + n, reference)) for n in range(3)]
    _, page = written(tmp_path / "r.html", [*runs, Run("text", scored(rows, other))])
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a.get("href") or a.get("xlink:href") for _, a in page.tags if a.get("href") or a.get("xlink:href")]
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)
    drawings = [svg for svg in page.of("svg") if svg.get("class") != "marker"]
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)


def test_the_gallery_shows_both_ends_with_conformity_and_norm(tmp_path, rows, reference):
    result = scored(rows, reference)
    captions = {name: f"caption of {name}" for name in result.ids}
    _, page = written(tmp_path / "r.html", [Run("mine", result, captions=captions)], thumbnails=6)
    order = result.conformities.argsort(descending=True)
    shown = [*order[:3].tolist(), *order.flip(0)[:3].tolist()]
    assert page.said("q") == [f"caption of sample {n}" for n in shown]
    figures = [text for text in page.said("span") if not text.startswith("Test of")]
    assert figures[:3] == [
        f"sample {shown[0]}",
        f"conformity {float(result.conformities[shown[0]]):.4g}",
        f"norm {float(result.norms[shown[0]]):.4g}",
    ]


def test_a_caption_stands_beside_its_image(tmp_path, rows, reference):
    picture, result = noise(tmp_path / "a.png", 20), scored(rows, reference)
    images = dict.fromkeys(result.ids, picture)
    run = Run("mine", result, images=images, captions=["words"] * len(rows))
    text, page = written(tmp_path / "r.html", [run])
    assert len(page.of("img")) == 24
    assert len(re.findall(r'<li [^>]*><figure><img [^>]*><figcaption><q>words</q><span class="name">', text)) == 24
    assert all(image["alt"].startswith("Sample sample") for image in page.of("img"))


def test_an_unreadable_image_is_told(tmp_path, rows, reference):
    (tmp_path / "broken.png").write_bytes(b"no image")
    run = Run("mine", scored(rows, reference), images=[tmp_path / "broken.png"] * len(rows))
    _, page = written(tmp_path / "r.html", [run], thumbnails=2)
    assert page.said("p").count("This image cannot be read.") == 2


def test_48_thumbnails_stay_under_3_mb(tmp_path, generator, reference):
    picture = noise(tmp_path / "a.png", 1024)
    rows = ellipsoid_rows(100, DIM, generator)
    runs = [Run(f"run {n}", scored(rows, reference), images=[picture] * 100) for n in range(2)]
    _, page = written(tmp_path / "r.html", runs)
    assert len(page.of("img")) == 48
    assert (tmp_path / "r.html").stat().st_size < 3_000_000


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning", "ignore::clipconformity.LowerBoundWarning")
def test_the_size_does_not_grow_with_the_samples(tmp_path, generator, reference):
    sizes = []
    for count in (200, 20_000):
        result = scored(ellipsoid_rows(count, DIM, generator), reference)
        run = Run("mine", result, captions=["x" * 10_000] * count)
        written(tmp_path / "r.html", [run])
        sizes.append((tmp_path / "r.html").stat().st_size)
    assert sizes[1] < 1.1 * sizes[0]
    assert sizes[1] < 200_000


def test_many_runs_share_the_gallery_and_the_table(tmp_path, rows, reference):
    runs = [Run(f"run {n}", scored(rows + n / 5, reference)) for n in range(5)]
    text, page = written(tmp_path / "r.html", runs)
    assert len(re.findall(r"<li data-conformity", text)) <= 48
    heads = page.said("th")
    assert all(f"run {n}" in heads for n in range(5))
    cells = page.said("td")
    for run in runs:
        low, high = run.score.kl_interval
        assert any(f"({low:.4g} to {high:.4g})" in cell for cell in cells)
    assert text.count("<svg role") == len([row for row in PLOTS if not row.needs])


@pytest.mark.filterwarnings("ignore::clipconformity.OverlapWarning", "ignore::clipconformity.LowerBoundWarning")
def test_what_was_measured_with_what_is_told(tmp_path, rows):
    reference = cc.ReferenceSet.fit(rows, spec="tiny", modality="image", dataset="scenes")
    _, page = written(tmp_path / "r.html", [Run("mine", scored(rows, reference))], command="a b")
    reported = " ".join(page.said("dd") + page.said("code"))
    for part in ("tiny", "scenes", "mine, N = 120", "120, 8 dimensions", torch.__version__, cc.__version__, "a b"):
        assert part in reported


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, "expected at least one"),
        (["a", "a"], {}, "different names"),
        (["a"], {"thumbnails": -1}, "at least 0"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, rows, reference, names, options, message):
    runs = [Run(name, scored(rows, reference)) for name in names]
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path / "r.html", runs, **options)
    assert not (tmp_path / "r.html").exists()


def test_a_sequence_of_another_length_is_refused(rows, reference):
    with pytest.raises(ValueError, match="captions: expected one for each of the 120 samples, got 2"):
        Run("mine", scored(rows, reference), captions=["a", "b"])


# --- geometry --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(generator):
    image = ellipsoid_rows(150, DIM, generator)
    return image, ellipsoid_rows(150, DIM, generator, offset=-1.0)


def geometry(path, *arguments, **options) -> tuple[str, Page]:
    write_geometry_report(path, *arguments, **options)
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_geometry_report_says_which_properties_hold(tmp_path, pair):
    image, text = pair
    found = properties.six_properties(image, text)
    sweep = shift_sweep(image, text, [-0.1, 0.0, 0.1], resamples=20)
    sweep = sweep._replace(kl_lower_bound=sweep.alphas > 0)
    source, page = geometry(
        tmp_path / "g.html", found, image=image, text=text, sweep=sweep,
        gap=properties.compute_gap_figures(image, text, paired=True),
        measured={"image_embeddings": ATTACK}, command=ATTACK,
    )  # fmt: skip
    assert_nothing_is_fetched(source, page)
    assert [section["id"] for section in page.of("section")] == ["verdict", "properties", "plots", "measured", "cite"]
    holding = sum(p.verdict == properties.HOLDS for p in found)
    assert page.said("h3") == [f"{holding} of 10 hold."]
    assert len(page.of("svg")) == 7
    assert any("At alpha 0.1 it is only a lower bound." in words for words in page.said("figcaption"))
    heads, cells = page.said("th"), page.said("td")
    for each in found:
        assert each.name in heads
        assert f"{each.low:.4g} to {each.high:.4g}" in cells
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_one_modality_alone_has_no_plots_of_both(tmp_path, pair):
    found = properties.six_properties(text=pair[1])
    _, page = geometry(tmp_path / "g.html", found, text=pair[1])
    assert len(page.of("svg")) == 2
    _, page = geometry(tmp_path / "g.html", found)
    assert page.of("svg") == []


def test_no_properties_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        write_geometry_report(tmp_path / "g.html", [])


def test_names_that_are_not_utf8_stop_neither_the_report_nor_the_table(tmp_path, rows, reference):
    names = [f"caf\udce9 {number}" for number in range(len(rows))]  # as Python reads a file name in Latin-1
    result = scored(rows, reference, names)
    run = Run("mine", result, captions=[f"of {name}" for name in names])
    text, _ = written(tmp_path / "r.html", [run])
    assert "caf&#56553; " in text
    write_per_sample(tmp_path / "r.csv", result)
    assert (tmp_path / "r.csv").read_text(encoding="utf-8").count("caf\\udce9 ") == len(rows)
