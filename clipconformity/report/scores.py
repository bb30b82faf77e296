"""The report of scored runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from clipconformity.evaluation import ClassScore, Figure, Score
from clipconformity.evaluation.classes import interval
from clipconformity.evaluation.scoring import core_fields, uncertainty_fields
from clipconformity.report.gallery import cards, extremes
from clipconformity.report.neighbours import neighbours
from clipconformity.report.page import Section, between, code, facts, number, table, versions, write_page
from clipconformity.report.score_plots import Panel, draw_plots
from clipconformity.stream.reference import ReferenceSet

THUMBNAILS = 48
"""Most samples in the galleries of a report, all runs together."""
MOST_CLASSES = 40
"""Most classes of a run that are shown."""
MOST_EACH = 12
"""Most samples at either end of a run's gallery."""


@dataclass(frozen=True)
class Run:
    """A scored run, with what its samples look like where that is known.

    Attributes:
        name: What the run is called in the report.
        score: Of :func:`clipconformity.evaluation.score`; runs with the same reference share a plot.
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


def write_report(
    path: Path | str,
    runs: Sequence[Run],
    *,
    command: str | None = None,
    title: str = "Conformity report",
    note: str = "Are the samples as typical and as varied as the reference?",
    thumbnails: int = THUMBNAILS,
) -> None:
    """Write scored runs as one HTML file that opens offline and asks for nothing off itself.

    The verdict stands first, in words; then the plots, a gallery of the most and the least typical samples, the
    figures, and what was measured with what. The file stays under 3 MB with 48 thumbnails and does not grow with the
    number of samples.

    Args:
        path: File to write.
        runs: One or more scored runs, such as checkpoints or models.
        command: The command that measured them, to be told in the report.
        title: Heading of the page.
        note: One line under the heading.
        thumbnails: Most samples in the galleries, all runs together.

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
    found, used = _neighbours(runs, thumbnails // 3)
    sections = [
        Section("verdict", "Verdict", _verdicts(runs)),
        Section("distributions", "Distributions", _plots(runs)),
        Section("gallery", "Most and least typical samples", _galleries(runs, thumbnails - used)),
        *([Section("neighbours", "Repeats, copies, and what is missed", found)] if found else []),
        Section("figures", "Figures", _table(runs) + _classes(runs)),
        Section("measured", "What was measured with what", _measured(runs, command)),
    ]
    write_page(path, title, note, sections if thumbnails else [s for s in sections if s.key != "gallery"])


def _verdicts(runs: Sequence[Run]) -> str:
    return '<div class="verdicts">' + "".join(_verdict(run) for run in runs) + "</div>"


def _verdict(run: Run) -> str:
    """The two verdicts in words, and under them what the distributions say, which judges nothing."""
    answers = facts({
        "Typical?": _sentence(run.score, "typicality"),
        "Varied?": _sentence(run.score, "variety"),
    })  # fmt: skip
    lines = [_distributions(run.score), *run.score.notes]
    notes = "".join(f'<p class="note">{escape(line[:1].upper() + line[1:])}</p>' for line in lines)
    return f'<article class="verdict"><h3>{escape(run.name)}</h3>{answers}{notes}</article>'


def _sentence(score: Score, name: str) -> str:
    """A verdict in words, then its effect, interval and margin."""
    words = score.sentences["typical" if name == "typicality" else "varied"].removeprefix(f"{name}: ")
    verdict = score.verdicts[name]
    if name == "typicality":
        told, allowed = f"shift {verdict.effect:+.2f} standard deviations", f"{verdict.margin}"
    else:
        told, allowed = f"variety {verdict.effect:.2f} times the reference's", f"{verdict.margin:.0%}"
    if verdict.interval is not None:
        low, high = verdict.interval
        told += f" ({low:.2f} to {high:.2f}); {allowed} either way does not matter"
    return f"{words[:1].upper()}{words[1:]}: {told}."


def _distributions(score: Score) -> str:
    """The test and the divergence in one line."""
    kl = f"KL of conformity {_kl(score)} nats"
    if score.kl_interval is None or score.noise_floor is None or score.p_value is None:
        return f"{kl}; {score.figures['conformity_kl'].reason}, so no interval and no test."
    floor = f"noise floor {number(score.noise_floor)}"
    return f"Test of equal distributions: p = {score.p_value:.3g}. {kl} ({between(*score.kl_interval)}), {floor}."


def _kl(score: Score) -> str:
    return ("at least " if score.kl_is_lower_bound else "") + number(score.conformity_kl)


def _by_reference(runs: Sequence[Run]) -> list[tuple[ReferenceSet, list[Run]]]:
    groups: dict[int, tuple[ReferenceSet, list[Run]]] = {}
    for run in runs:
        groups.setdefault(id(run.score.reference), (run.score.reference, []))[1].append(run)
    return list(groups.values())


def _plots(runs: Sequence[Run]) -> str:
    return "".join(
        draw_plots(f"plot{n}", Panel(reference, {run.name: run.score for run in members}))
        for n, (reference, members) in enumerate(_by_reference(runs))
    )


def _galleries(runs: Sequence[Run], thumbnails: int) -> str:
    each = max(1, min(MOST_EACH, thumbnails // (2 * len(runs))))
    parts, left = [], thumbnails
    for run in runs:
        chosen = extremes(run.score, min(each, left // 2))
        left -= len(chosen.most) + len(chosen.least)
        if chosen.most:
            ends = "".join(
                f"<div><h4>{words}</h4>{cards(run.score, rows, run.images, run.captions)}</div>"
                for words, rows in (("Most typical", chosen.most), ("Least typical", chosen.least))
            )
            parts.append(f'<h3>{escape(run.name)}</h3><div class="ends">{ends}</div>')
    return "".join(parts) or "<p>There are too few samples, or too many runs, for a gallery.</p>"


def _neighbours(runs: Sequence[Run], thumbnails: int) -> tuple[str, int]:
    """What the metrics of neighbours name, as HTML, and the number of samples shown."""
    parts, used = [], 0
    for run in runs if thumbnails else ():
        shown, count = neighbours(run.score, thumbnails - used, run.images, run.captions)
        used += count
        if shown:
            parts.append(f"<h3>{escape(run.name)}</h3>{shown}")
    return "".join(parts), used


def _table(runs: Sequence[Run]) -> str:
    head = [
        "run", "N", "conformity", "self-conformity", "KL (nats)", "95% interval", "noise floor",
        "reverse KL (nats)", "typicality shift (std)", "variety ratio", "spread ratio", "p", "norm",
    ]  # fmt: skip
    rows: list[list[str]] = []
    for reference, members in _by_reference(runs):
        own = float(reference.self_conformity)
        norm = number(float(reference.norms.mean()))
        count = str(reference.count)
        rows.append([_called(reference), count, number(own), _own_estimate(reference), *[""] * 8, norm])
        rows += [_row(run) for run in members]
    return (
        "<p>Conformity says how typical samples are, higher being more common; self-conformity how alike they are, "
        "lower being more varied. Brackets hold 95% intervals.</p>"
        + table("Figures of every run", head, rows)
        + _more_figures(runs)
    )


def _called(reference: ReferenceSet) -> str:
    parts = [part for part in (reference.dataset, reference.modality) if part]
    return "reference" + (f" ({', '.join(parts)})" if parts else "")


def _own_estimate(reference: ReferenceSet) -> str:
    value, interval = number(float(reference.self_conformity)), reference.own_pairs.interval()
    return f"{value} ({between(*interval)})" if reference.known_error is not None else value


def _row(run: Run) -> list[str]:
    s = run.score
    return [
        run.name,
        str(s.count),
        _of_figure(s.figures["conformity_mean"]),
        _of_figure(s.figures["self_conformity_mean"]),
        _kl(s),
        "" if s.kl_interval is None else between(*s.kl_interval),
        "" if s.noise_floor is None else number(s.noise_floor),
        number(s.value("reverse_kl")),
        _of_figure(s.figures["typicality_shift"]),
        _of_figure(s.figures["variety_ratio"]),
        _of_figure(s.figures["spread_ratio"]),
        "" if s.p_value is None else f"{s.p_value:.3g}",
        number(s.value("norm_mean")),
    ]


def _of_figure(figure: Figure) -> str:
    """A figure with its interval, as far as they can be had."""
    if figure.value is None:
        return "not to be had"
    if figure.interval is not None:
        return f"{number(figure.value)} ({between(*figure.interval)})"
    return number(figure.value)


def _more_figures(runs: Sequence[Run]) -> str:
    """What further read-outs gave, a row each; the ends of an interval stand beside their figure."""
    hidden = core_fields() | uncertainty_fields()
    shown = {name: one for run in runs for name, one in run.score.figures.items() if name not in hidden}
    if not shown:
        return ""
    rows = [
        [f"{one.about} ({name})", one.unit, *(_of_figure(run.score.figures[name]) if name in run.score.figures else ""
         for run in runs)]
        for name, one in shown.items()
    ]  # fmt: skip
    return table("Further figures", ["figure", "unit", *(run.name for run in runs)], rows)


def _classes(runs: Sequence[Run]) -> str:
    """The classes of each run, those first that lost most."""
    head = ["class", "N", "against", "conformity", "typicality shift (std)", "p", "variety ratio", "shrunken", "p"]
    parts = []
    for run in runs:
        if run.score.by is None:
            continue
        found = run.score.by.classes
        parts.append(table(f"Classes of {run.name}", head, [_class(one) for one in found[:MOST_CLASSES]]))
        left = f"{len(found) - MOST_CLASSES} further classes are not shown. " if len(found) > MOST_CLASSES else ""
        parts.append(
            f"<p>{left}Brackets hold 95% intervals of one class; p is adjusted ({run.score.by.correction}). Those that "
            "lost most variety stand first, by a ratio that is shrunk towards the classes' mean.</p>"
        )
    return "".join(parts)


def _class(one: ClassScore) -> list[str]:
    """A row of the table of classes."""
    if one.variety_ratio is None:
        return [one.name, str(one.count), one.reason or "", *[""] * 6]
    against = f"{'its own class' if one.against == 'class' else 'the whole reference'}, {one.reference_count}"
    return [
        one.name,
        str(one.count),
        against + (f" ({one.reason})" if one.reason else ""),
        "" if one.conformity_mean is None else number(one.conformity_mean),
        _of_class(one, "typicality_shift"),
        "" if one.typicality_p is None else f"{one.typicality_p:.3g}",
        _of_class(one, "variety_ratio"),
        "" if one.variety_ratio_shrunken is None else number(one.variety_ratio_shrunken),
        "" if one.variety_p is None else f"{one.variety_p:.3g}",
    ]


def _of_class(one: ClassScore, figure: str) -> str:
    value, ends = getattr(one, figure), interval(one, figure)
    return "" if value is None else number(value) + ("" if ends is None else f" ({between(*ends)})")


def _measured(runs: Sequence[Run], command: str | None) -> str:
    parts = [facts({"Command": code(command)})] if command else []
    for reference, members in _by_reference(runs):
        about = reference.describe()
        told = {
            "Reference": _called(reference),
            "Samples of the reference": f"{about['count']}, {about['embed_dim']} dimensions",
            "Encoder": str(about["spec"] or "not told"),
            "Embeddings": "L2-normalised" if about["normalized"] else "raw",
        }
        told |= {f"Encoder's {name}": str(value) for name, value in (about["encoder_id"] or {}).items()}
        told["Runs"] = "; ".join(f"{run.name}, N = {run.score.count}" for run in members)
        for run in members:
            told |= _remarks(run)
        parts.append(facts(told))
    return "".join([*parts, facts({"Versions": versions()})])


def _remarks(run: Run) -> dict[str, str]:
    score, told = run.score, {}
    if remarks := score.measured.get("remarks"):
        told[f"Remarks on {run.name}"] = " ".join(str(remark) for remark in remarks)
    if skipped := score.remarks.get("skipped"):
        told[f"Left out of {run.name}"] = f"{skipped['count']} that could not be read"
    if truncated := score.remarks.get("truncated"):
        told[f"Cut in {run.name}"] = f"{truncated} captions beyond the encoder's context length"
    if unknown := score.remarks.get("unknown_words"):
        told[f"Unknown words in {run.name}"] = (
            f"{unknown['count']} captions are mostly of words that the encoder's tokenizer does not know, such as "
            f"{', '.join(unknown['examples'])}"
        )
    if not score.exact:
        told[f"Precision of {run.name}"] = "quantiles and intervals rest on a row sample"
    return told
