"""The first screen of a report: a sentence for each run, and which run is most typical and most varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from clipconformity import plots
from clipconformity.evaluation import Comparison, Score, Verdict
from clipconformity.evaluation.comparison import compare_scores
from clipconformity.evaluation.results import round_up
from clipconformity.evaluation.scoring import CORE
from clipconformity.report.figures import draw_marker
from clipconformity.report.page import format_interval, format_number
from clipconformity.report.score_plots import Panel

ADJECTIVES = {"typicality": "typical", "variety": "varied"}


class RunLook(NamedTuple):
    """Colour and marker of a run in every plot and in the text."""

    color: str
    marker: Markup
    """SVG."""


class RunSummary(NamedTuple):
    """Statements on a run."""

    name: str
    look: RunLook
    sentence: str
    """Both verdicts with effects and N."""
    distributions: str
    """Test and divergence of the distributions, beside the verdicts."""


def summarise_runs(panel: Panel) -> list[RunSummary]:
    """Summarise how typical and how varied every run is relative to the reference."""
    said = []
    for number_, (name, score) in enumerate(panel.scores.items()):
        look = plots.run_look(number_, len(panel.scores), panel.reference.modality)
        typical, varied = (_describe_verdict(key, score.verdicts[key]) for key in ADJECTIVES)
        sentence = f"{typical} and {varied}; N = {score.count:,}."
        mark = RunLook(look.color, draw_marker(look))
        said.append(RunSummary(name, mark, sentence, _describe_distributions(score)))
    return said


def _describe_verdict(key: str, verdict: Verdict) -> str:
    """Describe a verdict in words, with effect, interval and the samples that would decide it in brackets."""
    adjective = ADJECTIVES[key]
    words = {
        "same": f"as {adjective}",
        "more": f"more {adjective}",
        "less": f"less {adjective}",
        "undecided": f"{key} undecided",
    }[verdict.outcome]
    sign, unit = ("+", " std") if key == "typicality" else ("", " times")
    text = f"{verdict.effect:{sign}.2f}{unit}"
    if verdict.interval is not None:
        low, high = verdict.interval
        text += f", {low:{sign}.2f} to {high:{sign}.2f}"
    if verdict.needed is not None:
        text += f"; about {round_up(verdict.needed):,} samples would tell"
    elif verdict.reason:
        text += f"; {verdict.reason}"
    return f"{words} ({text})"


def collect_notes(scores: Mapping[str, Score]) -> list[str]:
    """Collect the notes on the samples, each once, with the runs that it concerns."""
    found: dict[str, list[str]] = {}
    for name, score in scores.items():
        for note in score.notes:
            found.setdefault(_make_sentence(note), []).append(name)
    of_all = [f"{note}." for note, names in found.items() if len(names) == len(scores)]
    return of_all + [f"{', '.join(names)}: {note}." for note, names in found.items() if len(names) < len(scores)]


def _make_sentence(note: str) -> str:
    """Capitalise a note, unless it begins with the key of a figure, and remove its full stop."""
    first = note.split(maxsplit=1)[0]
    return (note if "_" in first else note[:1].upper() + note[1:]).rstrip(".")


def _describe_distributions(score: Score) -> str:
    """Describe the test and the divergence in one line."""
    kl = f"KL of conformity {format_kl(score)} nats"
    if score.kl_interval is None or score.noise_floor is None or score.p_value is None:
        return f"{kl}; {score.figures['conformity_kl'].reason}, so no interval and no test"
    floor = f"noise floor {format_number(score.noise_floor)}"
    return (
        f"Test of equal distributions: p = {score.p_value:.3g}. {kl} ({format_interval(*score.kl_interval)}), {floor}"
    )


def format_kl(score: Score) -> str:
    """Format the KL, and whether it is a lower bound."""
    return ("at least " if score.kl_is_lower_bound else "") + format_number(score.conformity_kl)


def describe_margins(panel: Panel) -> str:
    """Explain the brackets and the margins."""
    verdicts = next(iter(panel.scores.values())).verdicts
    pairs = len(panel.scores) * (len(panel.scores) - 1) // 2
    same = f"{verdicts['typicality'].margin:g} standard deviations or {verdicts['variety'].margin:.0%} of variety"
    text = (
        "In brackets: typicality shift in the reference's standard deviations, and variety as a multiple of the "
        f"reference's, with 95% intervals. Within {same} counts as the same."
    )
    together = "for both runs" if pairs == 1 else f"for all {pairs} pairs of runs together (Holm)"
    ranked = f" Which run is most so is decided {together}: with 95% nothing of it is wrong."
    best = " Neither is better when it is higher: a good model is near the reference."
    return text + (ranked if pairs else "") + best


def describe_ranking(panel: Panel) -> list[str]:
    """Describe which run is most varied and most typical, and whether that is significant; empty for a single run."""
    scores = panel.scores
    if len(scores) < 2 or any(one.stream is None for one in scores.values()):
        return []
    found = compare_scores(scores, panel.reference, metrics=CORE[:1])
    return [_name_first(found, "variety_ratio", "varied"), _name_first(found, "typicality_shift", "typical")]


def _name_first(found: Comparison, figure: str, adjective: str) -> str:
    """Name the runs above which no other is significantly."""
    ranks = found.ranks(figure)
    first, others = [name for name, rank in ranks.items() if rank == 1], sum(rank > 1 for rank in ranks.values())
    if len(first) == 1:
        rest = "the other run" if others == 1 else "every other run"
        return f"Most {adjective}: {first[0]}, surely more than {rest}."
    beaten = "" if not others else f" The other {'run is' if others == 1 else f'{others} are'} surely less {adjective}."
    return f"Most {adjective}: not decided between {_join_names(first)}.{beaten}"


def _join_names(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
