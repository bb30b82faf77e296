"""The plots in the report of scored runs: one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from clipconformity import plots
from clipconformity.evaluation import Score
from clipconformity.evaluation.results import JUDGED
from clipconformity.functional.conformity import pearson
from clipconformity.functional.resampling import Interval
from clipconformity.report.figures import figure, label
from clipconformity.report.page import between, number
from clipconformity.stream.reference import ReferenceSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 5.0
"""Inches."""


class Panel(NamedTuple):
    """Runs scored against one reference, which share their plots."""

    reference: ReferenceSet
    scores: Mapping[str, Score]
    """By the name of the run; a drawing shows it as :func:`~clipconformity.report.figures.label` gives it."""

    @property
    def of(self) -> str:
        """Words such as "of images", with a space before; empty where the modality is not known."""
        return f" of {self.reference.modality}s" if self.reference.modality else ""

    @property
    def floor(self) -> float | None:
        """The highest noise floor of the runs."""
        return max((s.noise_floor for s in self.scores.values() if s.noise_floor is not None), default=None)

    def has(self, name: str) -> bool:
        """Whether every run has a figure."""
        found = [score.figures.get(name) for score in self.scores.values()]
        return all(one is not None and one.value is not None for one in found)

    def labelled(self, take: Callable[[Score], Any]) -> dict[str, Any]:
        """Give something of each run by its name in a drawing."""
        return {label(name): take(score) for name, score in self.scores.items()}

    def told(self, tell: Callable[[Score], str]) -> str:
        """Say something of each run."""
        return "; ".join(f"{name}: {tell(score)}" for name, score in self.scores.items())


def _beside_a_legend(runs: int) -> float:
    return 3.4 + 0.18 * max(0, runs - 2)


def _line_each(runs: int) -> float:
    return max(2.2, 1.2 + 0.55 * runs)


class ScorePlot(NamedTuple):
    """A plot of the report: one row of ``PLOTS``."""

    key: str
    """Its name on the page, unlike that of any other."""
    draw: Callable[[Axes, Panel], Any]
    alt: Callable[[Panel], str]
    """What a screen reader says in its place: what it shows, with the figures of each run."""
    caption: Callable[[Panel], str]
    height: Callable[[int], float] = _beside_a_legend
    """Inches, by the number of runs."""
    needs: tuple[str, ...] = ()
    """Figures beside those of every score; it is left out where a run lacks one."""


def draw_plots(key: str, panel: Panel) -> str:
    """Draw every plot of a panel into HTML; ``key`` is unlike that of any other panel."""
    drawn = "".join(
        figure(
            f"{key}-{row.key}",
            lambda ax, row=row: row.draw(ax, panel),  # type: ignore[misc]
            alt=row.alt(panel),
            caption=row.caption(panel),
            size=(WIDTH, row.height(len(panel.scores))),
        )
        for row in PLOTS
        if all(map(panel.has, row.needs))
    )
    return f'<h3>Against the reference{panel.of}</h3><div class="plots">{drawn}</div>'


def _draw_conformity(ax: Axes, panel: Panel) -> None:
    reference = panel.reference
    runs = panel.labelled(lambda s: s.conformities)
    plots.distributions(runs, reference.conformities, modality=reference.modality, ax=ax)


def _tell_conformity(panel: Panel) -> str:
    own = panel.reference.conformities
    runs = panel.told(lambda s: f"mean {number(s.conformity_mean)}, std {number(s.value('conformity_std'))}")
    return (
        f"Conformity distribution{panel.of}. "
        f"reference: mean {number(float(own.mean()))}, std {number(float(own.std()))}; {runs}."
    )


def _draw_map(ax: Axes, panel: Panel) -> None:
    first = next(iter(panel.scores.values()))
    margins = first.verdicts["typicality"].margin, first.verdicts["variety"].margin
    places = {
        label(name, 16): plots.Place(*(one.figures[key].with_ends for key in JUDGED))
        for name, one in panel.scores.items()
    }
    plots.typicality_and_variety(places, margins=margins, ax=ax)


def _tell_map(panel: Panel) -> str:
    def tell(score: Score) -> str:
        shift, variety = (between(*score.figures[key].with_ends[1:]) for key in JUDGED)
        return (
            f"typicality shift {number(score.typicality_shift)} ({shift}), "
            f"variety ratio {number(score.variety_ratio)} ({variety})"
        )

    return f"Typicality against variety{panel.of}, with 95% intervals; the reference is at 0 and 1. {panel.told(tell)}."


def _draw_kl(ax: Axes, panel: Panel) -> None:
    scores = panel.scores.values()
    ends = [s.kl_interval or Interval(s.conformity_kl, s.conformity_kl) for s in scores]
    plots.series(
        [s.conformity_kl for s in scores],
        [low for low, _ in ends],
        [high for _, high in ends],
        names=[label(name, 16) for name in panel.scores],
        floor=panel.floor,
        modality=panel.reference.modality,
        ax=ax,
    )


def _tell_kl(panel: Panel) -> str:
    def tell(score: Score) -> str:
        interval = "" if score.kl_interval is None else f" ({between(*score.kl_interval)})"
        return number(score.conformity_kl) + interval

    floor = "" if panel.floor is None else f" Noise floor {number(panel.floor)}."
    return f"KL of conformity with 95% intervals, in nats. {panel.told(tell)}.{floor}"


def _caption_kl(panel: Panel) -> str:
    floor = " The noise floor is the highest of the runs'." if len(panel.scores) > 1 else ""
    return f"How far the conformity distribution is from the reference's, with 95% intervals.{floor}"


def _draw_norm(ax: Axes, panel: Panel) -> None:
    reference = panel.reference
    runs, quantity = panel.labelled(lambda s: s.norms), "norm of the raw embedding (its units)"
    plots.distributions(runs, reference.norms, quantity=quantity, modality=reference.modality, ax=ax)


def _tell_norm(panel: Panel) -> str:
    runs = panel.told(lambda s: f"mean {number(float(s.norms.mean()))}")
    own = number(float(panel.reference.norms.mean()))
    return f"Norms of the raw embeddings{panel.of}. Reference: mean {own}; {runs}."


def _aligned(score: Score) -> tuple[Tensor, Tensor]:
    """Conformity and CLIPScore of every sample."""
    return score.conformities, torch.tensor(score.columns["clip_score"], dtype=torch.float64)


def _draw_alignment(ax: Axes, panel: Panel) -> None:
    plots.typicality_alignment(panel.labelled(_aligned), modality=panel.reference.modality, ax=ax)


def _tell_alignment(panel: Panel) -> str:
    runs = panel.told(lambda s: f"mean {number(s.value('clip_score'))}, correlation {number(float(_correlation(s)))}")
    return f"CLIPScore over conformity{panel.of}. {runs}."


def _correlation(score: Score) -> Tensor:
    return pearson(*_aligned(score))


PLOTS: tuple[ScorePlot, ...] = (
    ScorePlot(
        "map",
        _draw_map,
        _tell_map,
        lambda panel: "To the right is more typical than the reference, upwards more varied. The grey box is the same.",
        lambda runs: 3.8,
    ),
    ScorePlot(
        "conformity",
        _draw_conformity,
        _tell_conformity,
        lambda panel: f"Conformity{panel.of}: to the right is typical, to the left rare.",
    ),
    ScorePlot("kl", _draw_kl, _tell_kl, _caption_kl, _line_each),
    ScorePlot("norm", _draw_norm, _tell_norm, lambda panel: f"Norms of the raw embeddings{panel.of}."),
    ScorePlot(
        "alignment",
        _draw_alignment,
        _tell_alignment,
        lambda _: "How well samples fit their partners (upwards) and how typical they are (to the right).",
        needs=("clip_score",),
    ),
)
"""The plots, in the order of the page. A row is all that a new one needs beside what draws and tells it."""
