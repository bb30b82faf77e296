"""The plots in the report of scored runs: one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from clipconformity import plots
from clipconformity.evaluation import Score
from clipconformity.evaluation.results import JUDGED
from clipconformity.functional.conformity import pearson
from clipconformity.functional.resampling import Interval
from clipconformity.report.figures import Drawing, draw_figure, format_label
from clipconformity.report.page import format_interval, format_number
from clipconformity.stream.reference import ReferenceSet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 5.6
"""Inches."""
MAX_OVERLAID = 3
"""Largest number of runs with overlaid distributions; more have a line each."""


class Panel(NamedTuple):
    """Runs scored against one reference, which share their plots."""

    reference: ReferenceSet
    scores: Mapping[str, Score]
    """Scores by the name of the run; a drawing shows it by :func:`~clipconformity.report.figures.format_label`."""

    @property
    def of(self) -> str:
        """Words such as " of images", with the space; empty where the modality is unknown."""
        return f" of {self.reference.modality}s" if self.reference.modality else ""

    def has_figure(self, name: str) -> bool:
        """Whether every run has a figure of this name."""
        found = [score.figures.get(name) for score in self.scores.values()]
        return all(one is not None and one.value is not None for one in found)

    def label_runs(self, take: Callable[[Score], Any]) -> dict[str, Any]:
        """Return a value of each run by its name in a drawing."""
        return {format_label(name): take(score) for name, score in self.scores.items()}

    def describe_runs(self, tell: Callable[[Score], str]) -> str:
        """Describe each run in words."""
        return "; ".join(f"{name}: {tell(score)}" for name, score in self.scores.items())


def _overlay_or_stack(runs: int) -> float:
    return 3.4 if runs <= MAX_OVERLAID else 1.0 + 0.5 * runs


def _stack_distributions(runs: int) -> float:
    return max(2.2, 1.2 + 0.5 * runs)


def _choose_map_height(runs: int) -> float:
    return max(3.8, 1.0 + 0.35 * runs)


class ScorePlot(NamedTuple):
    """A plot of the report: one row of ``PLOTS``."""

    key: str
    """Its unique name on the page."""
    draw: Callable[[Axes, Panel], Any]
    alt: Callable[[Panel], str]
    """Makes the text for screen readers: a description with the figures of each run."""
    caption: Callable[[Panel], str]
    height: Callable[[int], float] = _overlay_or_stack
    """Height in inches, by the number of runs."""
    needs: tuple[str, ...] = ()
    """Figures beside those of every score; the plot is left out where a run lacks one."""


def draw_plots(key: str, panel: Panel) -> dict[str, Drawing]:
    """Draw every plot of a panel; ``key`` is unique to the panel.

    Returns:
        The drawings by the key of their row.
    """
    return {
        row.key: draw_figure(
            f"{key}-{row.key}",
            lambda ax, row=row: row.draw(ax, panel),  # type: ignore[misc]
            alt=row.alt(panel),
            caption=row.caption(panel),
            size=(WIDTH, row.height(len(panel.scores))),
        )
        for row in PLOTS
        if all(map(panel.has_figure, row.needs))
    }


def _draw_distributions(
    ax: Axes, panel: Panel, take: Callable[[Score], Tensor], own: Tensor, quantity: str = plots.CONFORMITY
) -> None:
    """Draw a distribution of the samples over that of the reference."""
    draw = plots.distributions if len(panel.scores) <= MAX_OVERLAID else plots.ridgelines
    draw(panel.label_runs(take), own, quantity=quantity, modality=panel.reference.modality, ax=ax)


def _draw_conformity(ax: Axes, panel: Panel) -> None:
    _draw_distributions(ax, panel, lambda s: s.conformities, panel.reference.conformities)


def _describe_conformity(panel: Panel) -> str:
    own = panel.reference.conformities
    runs = panel.describe_runs(
        lambda s: f"mean {format_number(s.conformity_mean)}, std {format_number(s.value('conformity_std'))}"
    )
    return (
        f"Conformity distribution{panel.of}. "
        f"reference: mean {format_number(float(own.mean()))}, std {format_number(float(own.std()))}; {runs}."
    )


def _draw_map(ax: Axes, panel: Panel) -> None:
    first = next(iter(panel.scores.values()))
    margins = first.verdicts["typicality"].margin, first.verdicts["variety"].margin
    places = {
        format_label(name, 16): plots.Place(*(one.figures[key].with_ends for key in JUDGED))
        for name, one in panel.scores.items()
    }
    plots.typicality_and_variety(places, margins=margins, modality=panel.reference.modality, ax=ax)


def _describe_map(panel: Panel) -> str:
    def tell(score: Score) -> str:
        shift, variety = (format_interval(*score.figures[key].with_ends[1:]) for key in JUDGED)
        return (
            f"typicality shift {format_number(score.typicality_shift)} ({shift}), "
            f"variety ratio {format_number(score.variety_ratio)} ({variety})"
        )

    runs = panel.describe_runs(tell)
    return f"Typicality against variety{panel.of}, with 95% intervals; the reference is at 0 and 1. {runs}."


def _draw_variety(ax: Axes, panel: Panel) -> None:
    first = next(iter(panel.scores.values()))
    _draw_forest(
        ax, panel, [s.figures["variety_ratio"].with_ends for s in panel.scores.values()],
        quantity="variety ratio (the reference is at 1)", null=1.0, margin=first.verdicts["variety"].margin,
    )  # fmt: skip


def _describe_variety(panel: Panel) -> str:
    def tell(score: Score) -> str:
        value, *ends = score.figures["variety_ratio"].with_ends
        return f"{format_number(value)} ({format_interval(*ends)})"

    return f"Variety ratio{panel.of} with 95% intervals. {panel.describe_runs(tell)}."


def _draw_forest(ax: Axes, panel: Panel, values: Sequence[tuple[float, float, float]], **options: Any) -> None:
    """Draw a figure of each run with its interval."""
    names = [format_label(name, 16) for name in panel.scores]
    points, low, high = zip(*values, strict=True)
    plots.forest(points, low, high, names, runs=True, modality=panel.reference.modality, ax=ax, **options)


def _draw_kl(ax: Axes, panel: Panel) -> None:
    scores = panel.scores.values()
    values = [(s.conformity_kl, *(s.kl_interval or Interval(s.conformity_kl, s.conformity_kl))) for s in scores]
    _draw_forest(ax, panel, values, quantity="conformity KL (nats)", floors=[s.noise_floor for s in scores])


def _describe_kl(panel: Panel) -> str:
    def tell(score: Score) -> str:
        interval = "" if score.kl_interval is None else f" ({format_interval(*score.kl_interval)})"
        floor = "" if score.noise_floor is None else f", noise floor {format_number(score.noise_floor)}"
        return format_number(score.conformity_kl) + interval + floor

    return f"KL of conformity with 95% intervals, in nats. {panel.describe_runs(tell)}."


def _draw_norm(ax: Axes, panel: Panel) -> None:
    quantity = "norm of the raw embedding (its units)"
    _draw_distributions(ax, panel, lambda s: s.norms, panel.reference.norms, quantity)


def _describe_norm(panel: Panel) -> str:
    runs = panel.describe_runs(lambda s: f"mean {format_number(float(s.norms.mean()))}")
    own = format_number(float(panel.reference.norms.mean()))
    return f"Norms of the raw embeddings{panel.of}. Reference: mean {own}; {runs}."


def _list_alignment(score: Score) -> tuple[Tensor, Tensor]:
    """List conformity and CLIPScore of every sample."""
    return score.conformities, torch.tensor(score.columns["clip_score"], dtype=torch.float64)


def _draw_alignment(ax: Axes, panel: Panel) -> None:
    plots.typicality_alignment(panel.label_runs(_list_alignment), modality=panel.reference.modality, ax=ax)


def _describe_alignment(panel: Panel) -> str:
    runs = panel.describe_runs(
        lambda s: f"mean {format_number(s.value('clip_score'))}, correlation {format_number(float(_correlate(s)))}"
    )
    return f"CLIPScore over conformity{panel.of}. {runs}."


def _correlate(score: Score) -> Tensor:
    return pearson(*_list_alignment(score))


def _caption_map(panel: Panel) -> str:
    return "To the right is more typical than the reference, upwards more varied. In the grey box is the same."


def _caption_conformity(panel: Panel) -> str:
    return f"Conformity{panel.of}: to the right is typical, to the left rare. Grey is the reference."


def _caption_variety(panel: Panel) -> str:
    return "How varied each run is beside the reference: below 1 is less. In the grey band is the same."


def _caption_kl(panel: Panel) -> str:
    return (
        "How far each conformity distribution is from the reference's. The grey stroke is the run's own noise floor: "
        "a KL below it says nothing."
    )


def _caption_norm(panel: Panel) -> str:
    return f"Norms of the raw embeddings{panel.of}. Grey is the reference."


def _caption_alignment(panel: Panel) -> str:
    return "How well samples fit their partners (upwards) and how typical they are (to the right)."


PLOTS: tuple[ScorePlot, ...] = (
    ScorePlot("map", _draw_map, _describe_map, _caption_map, _choose_map_height),
    ScorePlot("conformity", _draw_conformity, _describe_conformity, _caption_conformity),
    ScorePlot("variety", _draw_variety, _describe_variety, _caption_variety, _stack_distributions),
    ScorePlot("kl", _draw_kl, _describe_kl, _caption_kl, _stack_distributions),
    ScorePlot("norm", _draw_norm, _describe_norm, _caption_norm),
    ScorePlot("alignment", _draw_alignment, _describe_alignment, _caption_alignment, needs=("clip_score",)),
)
"""The plots, in the order of the page. A new one needs only a row, a function that draws it, and texts."""
