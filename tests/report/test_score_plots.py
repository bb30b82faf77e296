"""What every plot of the report of scored runs must hold, as claims about each row of ``PLOTS``."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from html import escape
from html.parser import HTMLParser
from itertools import combinations

import pytest
import torch
from helpers import ellipsoid_rows
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

import clipconformity as cc
from clipconformity import plots
from clipconformity.evaluation import Score, Source, SourceBatch, score
from clipconformity.report import Run, score_plots, write_report
from clipconformity.report.lead import summarise_runs
from clipconformity.report.score_plots import PLOTS, Panel, ScorePlot, draw_plots
from clipconformity.stream.alignment import Partners

DIM = 8
ODD = ("_a$b", "$x_1$ at $5", r"a\b", "<b>&", "%s {0}", "caf\udce9", "x" * 25 + "$y$")
every_plot = pytest.mark.parametrize("row", PLOTS, ids=[row.key for row in PLOTS])


@cache
def reference(modality: str | None) -> cc.ReferenceSet:
    return cc.ReferenceSet.fit(ellipsoid_rows(300, DIM, torch.Generator().manual_seed(1)), modality=modality)


@cache
def scored(modality: str | None, number: int = 0, grouped: bool = False) -> Score:
    """A run; each number gives other samples, and one group leaves no interval and no floor."""
    rows = ellipsoid_rows(60, DIM, torch.Generator().manual_seed(2 + number), offset=1.1 + number / 10)
    names = [f"sample {n}" for n in range(60)]
    batch = SourceBatch(rows, names, [0] * 60 if grouped else None, partners=Partners(rows.flip(0), [1] * 60))
    metrics = ("conformity",) if grouped else ("all",)
    return score(Source(iter([batch]), 60, paired=True), reference(modality), resamples=20, metrics=metrics)


def panel(modality: str | None, *names: str) -> Panel:
    return Panel(reference(modality), {name: scored(modality, number) for number, name in enumerate(names)})


class Drawing(HTMLParser):
    """The text of a drawing, and what a screen reader says in its place."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.alts: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.alts += [value for name, value in attrs if name == "aria-label"]

    def handle_data(self, data):
        self.text += data

    def shows(self, words: str) -> bool:
        """Whether words are drawn, on one line or on several."""
        return "".join(words.split()) in "".join(self.text.split())


def html(row: ScorePlot, runs: Panel, monkeypatch) -> str:
    monkeypatch.setattr(score_plots, "PLOTS", (row,))
    return "".join(f"{one.svg}<p>{escape(one.caption)}</p>" for one in draw_plots("plot0", runs).values())


def drawn(row: ScorePlot, runs: Panel, monkeypatch) -> Drawing:
    return Drawing(html(row, runs, monkeypatch))


def axes(row: ScorePlot, runs: Panel):
    ax = Figure(figsize=(score_plots.WIDTH, row.height(len(runs.scores)))).subplots()
    row.draw(ax, runs)
    return ax


@every_plot
@pytest.mark.parametrize(("count", "modality"), [(1, "image"), (1, "text"), (1, None), (2, "image"), (9, None)])
def test_it_draws_and_says_every_run(row, count, modality, monkeypatch):
    runs = panel(modality, *(f"run {n}" for n in range(count)))
    found = drawn(row, runs, monkeypatch)
    assert len(found.alts) == 1
    for name in runs.scores:
        assert found.shows(name)
        assert f"{name}: " in found.alts[0]
    assert found.shows(row.caption(runs))
    assert row.alt(runs).endswith(".")
    assert row.caption(runs).endswith((".", "?"))
    assert all(word not in row.alt(runs) + row.caption(runs) for word in ("None", "nan", "  "))


@every_plot
@pytest.mark.parametrize("count", [1, len(ODD)])
def test_odd_names_are_shown_as_they_are(row, count, monkeypatch):
    for first in range(0, len(ODD), count):
        names = ODD[first : first + count]
        found = drawn(row, panel(None, *names), monkeypatch)
        for name in names:
            assert found.shows(name.encode("utf-8", "backslashreplace").decode()), name
            assert f"{name}: " in found.alts[0], name


@every_plot
def test_a_run_without_intervals_is_drawn(row):
    alone = {"one group": scored("image", grouped=True)}
    assert alone["one group"].kl_interval is None
    for scores in (alone, alone | {"other": scored("image")}):
        runs = Panel(reference("image"), scores)
        if all(map(runs.has_figure, row.needs)):
            axes(row, runs)
            assert "None" not in row.alt(runs)


@every_plot
def test_it_shows_the_samples_that_it_was_given(row, monkeypatch):
    one, other = (Panel(reference(None), {"a": scored(None, n)}) for n in range(2))
    assert row.alt(one) != row.alt(other)
    assert html(row, one, monkeypatch) != html(row, other, monkeypatch)
    assert html(row, one, monkeypatch) == html(row, one, monkeypatch)


@every_plot
def test_its_axis_names_a_quantity_and_the_page_has_room(row):
    for count in (1, 9):
        ax = axes(row, panel("image", *(f"run {n}" for n in range(count))))
        assert ax.get_xlabel()
        assert 1.5 < row.height(count) < 8


def test_the_names_of_the_map_do_not_lie_over_each_other():
    """Nor does a name leave the picture, with runs that all lie at one place."""
    same = scored("image")
    many = Panel(reference("image"), {f"run number {n} of many" if n % 2 else f"r{n}": same for n in range(12)})
    row = PLOTS[0]
    figure = Figure(figsize=(score_plots.WIDTH, row.height(12)), layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    row.draw(ax, many)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in ax.texts if text.get_text() != "reference"]  # without the line
    assert len(boxes) == 12
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.height and box.x1 <= figure.bbox.width for box in boxes)


@every_plot
def test_the_colour_of_another_modality_is_not_used(row, monkeypatch):
    """A modality keeps its colour everywhere."""
    for modality, other, names in (("image", "text", "a"), ("text", "image", "abc")):
        assert plots.COLORS[other] not in html(row, panel(modality, *names), monkeypatch).upper()


@every_plot
def test_a_run_has_its_own_colour_in_every_plot(row, monkeypatch):
    """Of many runs beside each other each has the colour that the text beside the map gives it."""
    names = "abcdefghijkl"
    runs = panel("image", *names)
    source = html(row, runs, monkeypatch).lower()
    looks = [one.look for one in summarise_runs(runs)]
    assert all(look.color.lower() in source for look in looks)
    assert len({(look.color, str(look.marker)) for look in looks}) == len(names)


def test_keys_differ_and_are_names_on_a_page():
    keys = [row.key for row in PLOTS]
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[a-z][a-z-]*", key) for key in keys)


# --- what a new row brings -------------------------------------------------------------------------------------------


def dots(ax, runs):
    scores = runs.scores.values()
    ax.scatter([s.conformity_mean for s in scores], [s.value("new_figure") for s in scores])


NEW = ScorePlot("new", dots, lambda _: "A new alt.", lambda _: "A new caption.", needs=("new_figure",))


def with_new_figure(result: Score, value: float | None) -> Score:
    figure = result.figures["norm_mean"]._replace(value=value)
    return dataclasses.replace(result, figures=result.figures | {"new_figure": figure})


@pytest.fixture
def _new_row(monkeypatch):
    monkeypatch.setattr(score_plots, "PLOTS", (*PLOTS, NEW))


@pytest.mark.usefixtures("_new_row")
def test_a_new_row_is_in_the_report(tmp_path):
    write_report(tmp_path / "r.html", [Run("mine", with_new_figure(scored(None), 1.0))])
    found = Drawing((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert found.alts.count("A new alt.") == 1
    assert found.shows("A new caption.")


@pytest.mark.usefixtures("_new_row")
@pytest.mark.parametrize("value", ["absent", "not to be had"])
def test_a_plot_of_a_figure_that_one_run_lacks_is_left_out(value):
    lacking = scored(None, 1) if value == "absent" else with_new_figure(scored(None, 1), None)
    runs = Panel(reference(None), {"whole": with_new_figure(scored(None), 1.0), "lacking": lacking})
    found = draw_plots("plot0", runs)
    assert list(found) == [row.key for row in PLOTS]
