"""The report of scored runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from clipconformity.evaluation import Score
from clipconformity.report.figures import Drawing
from clipconformity.report.gallery import Card, choose_extremes, make_cards, make_reference_cards
from clipconformity.report.lead import RunSummary, collect_notes, describe_margins, describe_ranking, summarise_runs
from clipconformity.report.neighbours import Part, collect_parts
from clipconformity.report.page import Section, write_page
from clipconformity.report.score_plots import Panel, draw_plots
from clipconformity.report.tables import make_class_tables, make_figure_tables, name_reference
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.reference_file import same_reference

THUMBNAILS = 48
"""Largest number of samples in the galleries of a report, all runs together."""
MAX_EACH = 12
"""Largest number of samples at either end of a run's gallery."""
ORDERS = {
    "conformity down": "conformity, highest first",
    "conformity up": "conformity, lowest first",
    "norm down": "norm, highest first",
    "norm up": "norm, lowest first",
    "nearest down": "nearest reference, closest first",
}
"""Orders of the gallery: a key of :attr:`Card.order` and a direction."""


@dataclass(frozen=True)
class Run:
    """A scored run, with images and captions of its samples where these are known.

    Attributes:
        name: Name of the run in the report.
        score: Result of :func:`clipconformity.evaluation.score`; runs with the same reference share a plot.
        images: Image files, by id or in the order of ``score.ids``.
        captions: Captions, likewise. Where both are given they stand beside each other.

    Raises:
        ValueError: If a sequence has another length than the score.
    """

    name: str
    score: Score
    images: Mapping[str, Path] | Sequence[Path] | None = None
    captions: Mapping[str, str] | Sequence[str] | None = None

    def __post_init__(self) -> None:
        for name, values in (("images", self.images), ("captions", self.captions)):
            if values is not None and not isinstance(values, Mapping) and len(values) != len(self.score.ids):
                raise ValueError(
                    f"{name}: expected one for each of the {len(self.score.ids)} samples, got {len(values)}; "
                    "give a dict by id where some are left out."
                )


class _Shown(NamedTuple):
    """Runs scored against one reference, as the first sections show them."""

    of: str
    """Words such as " of images"."""
    called: str
    samples: int
    map: Drawing
    plots: list[Drawing]
    verdicts: list[RunSummary]
    best: list[str]
    margins: str
    notes: list[str]


class _End(NamedTuple):
    """Samples at one end of a gallery."""

    title: str
    cards: list[Card]


class _Gallery(NamedTuple):
    """The samples of a run, or of a reference."""

    name: str
    ends: list[_End]


class _Neighbours(NamedTuple):
    """Samples of a run that the metrics of neighbours name."""

    name: str
    parts: list[Part]


def write_report(
    path: Path | str,
    runs: Sequence[Run],
    *,
    command: str | None = None,
    title: str = "Conformity report",
    note: str = "Are the samples as typical and as varied as the reference?",
    thumbnails: int = THUMBNAILS,
    reference_images: Mapping[str, Path] | None = None,
    reference_captions: Mapping[str, str] | None = None,
) -> None:
    """Write scored runs as one self-contained HTML file that opens offline.

    The first screen has the map of typicality and variety and a sentence for each run. Then come the distributions, a
    gallery of the most and the least typical samples, repeated, copied and missed samples, the figures, and the
    settings of the measurement. The file stays under 3 MB with 48 thumbnails and does not grow with the number of
    samples.

    Args:
        path: File to write.
        runs: One or more scored runs, such as checkpoints or models.
        command: The command that measured them, shown in the report.
        title: Heading of the page.
        note: One line under the heading.
        thumbnails: Largest number of samples in the galleries, all runs together; 0 leaves the galleries out.
        reference_images: Image files of the reference's samples, by id: shown beside those of the runs.
        reference_captions: Captions of the reference's samples, by id.

    Raises:
        ValueError: If there is no run, two have the same name, or ``thumbnails`` is negative.
        OSError: If the file cannot be written.
    """
    names = [run.name for run in runs]
    if not runs:
        raise ValueError("runs: expected at least one, got none.")
    if len(set(names)) < len(names):
        raise ValueError(f"runs: expected different names, got {names}.")
    if thumbnails < 0:
        raise ValueError(f"thumbnails: expected at least 0, got {thumbnails}.")
    theirs = reference_images, reference_captions
    panels, (found, used) = _make_panels(runs), _make_neighbours(runs, thumbnails // 3, *theirs)
    galleries = _make_galleries(runs, [panel.reference for panel in panels], thumbnails - used, *theirs)
    known = {key for one in galleries for end in one.ends for card in end.cards for key in card.order}
    context = {
        "panels": [_show(f"plot{number}", panel) for number, panel in enumerate(panels)],
        "galleries": galleries,
        "orders": {order: words for order, words in ORDERS.items() if order.split()[0] in known},
        "neighbours": found,
        "tables": make_figure_tables(panels),
        "classes": make_class_tables({run.name: run.score for run in runs}),
        "measured": _list_settings(panels),
    }
    sections = [
        Section("verdict", "Verdict", "score/verdict.html"),
        Section("distributions", "Distributions", "score/distributions.html"),
        *([Section("gallery", "Gallery: most and least typical", "score/gallery.html")] if thumbnails else []),
        *([Section("neighbours", "Repeats, copies, gaps", "score/neighbours.html")] if found else []),
        Section("figures", "Figures", "score/figures.html"),
        Section("terms", "Terms", "terms.html"),
        Section("measured", "Measured with", "measured.html"),
        Section("cite", "How to cite", "cite.html"),
    ]
    write_page(path, title, note, sections, context, command)


def _make_panels(runs: Sequence[Run]) -> list[Panel]:
    """Group the runs by reference; two copies of a reference are one."""
    found: list[Panel] = []
    for run in runs:
        known = next((one for one in found if same_reference(one.reference, run.score.reference)), None)
        if known is None:
            found.append(Panel(run.score.reference, {run.name: run.score}))
        else:
            found[found.index(known)] = known._replace(scores={**known.scores, run.name: run.score})
    return found


def _show(key: str, panel: Panel) -> _Shown:
    drawn = draw_plots(key, panel)
    return _Shown(
        panel.of,
        name_reference(panel.reference),
        panel.reference.count,
        drawn.pop("map"),
        list(drawn.values()),
        summarise_runs(panel),
        describe_ranking(panel),
        describe_margins(panel),
        collect_notes(panel.scores),
    )


def _make_galleries(
    runs: Sequence[Run],
    references: Sequence[ReferenceSet],
    thumbnails: int,
    reference_images: Mapping[str, Path] | None,
    reference_captions: Mapping[str, str] | None,
) -> list[_Gallery]:
    theirs = reference_images, reference_captions
    shown = references if theirs != (None, None) else ()
    each = max(1, min(MAX_EACH, thumbnails // (2 * (len(runs) + len(shown)))))
    left = thumbnails

    def choose(conformities: Tensor, lay_out: Callable[[Sequence[int]], list[Card]]) -> list[_End]:
        nonlocal left
        chosen = choose_extremes(conformities, min(each, left // 2))
        left -= len(chosen.most) + len(chosen.least)
        titles = {"Most typical": chosen.most, "Least typical": chosen.least}
        return [_End(title, lay_out(rows)) for title, rows in titles.items() if rows]

    found = [
        _Gallery(run.name, choose(run.score.conformities, partial(make_cards, run.score, images=run.images,
                                                                   captions=run.captions)))
        for run in runs
    ]  # fmt: skip
    found += [
        _Gallery(name_reference(one), choose(one.conformities, partial(
            make_reference_cards, one, images=reference_images, captions=reference_captions)))
        for one in shown
    ]  # fmt: skip
    return [one for one in found if one.ends]


def _make_neighbours(
    runs: Sequence[Run],
    thumbnails: int,
    reference_images: Mapping[str, Path] | None,
    reference_captions: Mapping[str, str] | None,
) -> tuple[list[_Neighbours], int]:
    """Collect the samples that the metrics of neighbours name, and their number."""
    found, used = [], 0
    for run in runs if thumbnails else ():
        theirs = reference_images, reference_captions
        parts, count = collect_parts(run.score, thumbnails - used, run.images, run.captions, *theirs)
        used += count
        if parts:
            found.append(_Neighbours(run.name, parts))
    return found, used


def _list_settings(panels: Sequence[Panel]) -> list[dict[str, str]]:
    parts = []
    for reference, scores in panels:
        about = reference.describe()
        settings = {
            "Reference": name_reference(reference),
            "Samples of the reference": f"{about['count']}, {about['embed_dim']} dimensions",
            "Encoder": str(about["spec"] or "not known"),
            "Embeddings": "L2-normalised" if about["normalized"] else "raw",
        }
        settings |= {f"Encoder's {name}": str(value) for name, value in (about["encoder_id"] or {}).items()}
        settings["Runs"] = "; ".join(f"{name}, N = {score.count}" for name, score in scores.items())
        for name, score in scores.items():
            settings |= _list_remarks(name, score)
        parts.append(settings)
    return parts


def _list_remarks(name: str, score: Score) -> dict[str, str]:
    settings = {}
    if remarks := score.measured.get("remarks"):
        settings[f"Remarks on {name}"] = " ".join(str(remark) for remark in remarks)
    if skipped := score.remarks.get("skipped"):
        settings[f"Left out of {name}"] = f"{skipped['count']} that could not be read"
    if truncated := score.remarks.get("truncated"):
        settings[f"Cut in {name}"] = f"{truncated} captions beyond the encoder's context length"
    if unknown := score.remarks.get("unknown_words"):
        settings[f"Unknown words in {name}"] = (
            f"{unknown['count']} captions are mostly of words that the encoder's tokenizer does not know, such as "
            f"{', '.join(unknown['examples'])}"
        )
    if not score.exact:
        settings[f"Precision of {name}"] = "quantiles and intervals rest on a row sample"
    return settings
