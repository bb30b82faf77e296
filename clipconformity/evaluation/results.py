"""Results with names: figures, verdicts and scores, and the words of a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from clipconformity.data.addresses import Place
from clipconformity.data.brief import format_brief
from clipconformity.evaluation.classes import ByClass
from clipconformity.functional.resampling import Estimate, Interval, student_quantile
from clipconformity.provenance import UNKNOWN, Provenance
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.merging import Piece
from clipconformity.stream.readouts import Direction, Field
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.stream import Stream

MARGINS = {"typicality": 0.2, "variety": 0.05}
"""Default margins of differences that do not matter: standard deviations of the reference, and a share."""
JUDGED = {"typicality_shift": "typicality", "variety_ratio": "variety"}
"""Verdict of each judged figure."""
EFFECT_ERRORS = 1.959964 + 0.841621
"""Effect in standard errors that is significant in 80% of cases."""
MARGIN_ERRORS = 1.959964 + 1.281552
"""Margin in standard errors inside which a true zero is found in 80% of cases."""
SMALL_REFERENCE = "the reference is too small"
Outcome = Literal["same", "more", "less", "undecided"]


class Figure(NamedTuple):
    """One figure of a score."""

    value: float | None
    """The value; None where it is unknown."""
    about: str
    unit: str
    better: Direction
    error: float | None = None
    """Standard error."""
    interval: Interval | None = None
    """95% interval."""
    reason: str | None = None
    """Reason why the value or its uncertainty is unknown."""

    @property
    def half_width(self) -> float:
        """Half width of the interval, for an error bar; 0 where there is none."""
        return 0.0 if self.interval is None else (self.interval.high - self.interval.low) / 2

    @property
    def with_ends(self) -> tuple[float, float, float]:
        """Value and ends of its interval, for a drawing; an unknown end is the value."""
        value = 0.0 if self.value is None else self.value
        return value, *(self.interval or (value, value))

    def text(self, digits: int = 3) -> str:
        """The value as text; empty where it is unknown."""
        return "" if self.value is None else f"{self.value:.{digits}f}"

    def interval_text(self, digits: int = 3) -> str:
        """The interval in brackets; empty where there is none."""
        return "" if self.interval is None else f"[{self.interval.low:.{digits}f}, {self.interval.high:.{digits}f}]"


class Verdict(NamedTuple):
    """Whether samples are more or less typical, or varied, than the reference."""

    outcome: Outcome
    effect: float
    """Size of the effect: standard deviations of the reference, or a ratio."""
    interval: Interval | None
    """95% interval of the effect; None where it is unknown."""
    margin: float
    """Difference that does not matter: standard deviations of the reference, or a share."""
    needed: int | None = None
    """Samples at which a true difference of zero would be ``same`` in 80% of cases; of an undecided verdict."""
    reason: str | None = None
    """Reason why it is undecided, or ``"few samples"`` or ``"few groups"`` where it is less accurate."""


@dataclass(frozen=True)
class Score:
    """A scored run.

    Attributes:
        figures: Every figure by its key.
        verdicts: Verdicts by ``"typicality"`` and ``"variety"``.
        count: Number of samples.
        ids: Their names.
        conformities: Conformity of every sample to the reference, ``(N,)`` float64.
        norms: Norm of every raw embedding, ``(N,)`` float64.
        reference: The reference of the score.
        exact: Whether quantiles and intervals rest on every sample rather than on row samples.
        measured: Encoder, modality, and differences from the reference's encoder.
        remarks: Samples that were left out or cut.
        notes: Notes on these samples, a sentence each, such as overlap with the reference.
        details: Details beside the figures, such as ids of samples, by the name of the metric.
        columns: Further values of every sample, in the order of ``ids``, by the name of their column.
        by: The classes of the samples, where they were given.
        provenance: Encoder and modality of the samples, as far as they are known.
        metrics: Names of the read-outs that the figures are of.
        stream: What was accumulated of the samples, by which scores are compared and saved; None of a score without.
        made_of: The saved scores that it was merged from, or the share of the samples that it is of.
    """

    figures: Mapping[str, Figure]
    verdicts: Mapping[str, Verdict]
    count: int
    ids: Sequence[str]
    conformities: Tensor
    norms: Tensor
    reference: ReferenceSet
    exact: bool = True
    kl_is_lower_bound: bool = False
    measured: Mapping[str, Any] = field(default_factory=dict)
    remarks: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    columns: Mapping[str, Sequence[float | str]] = field(default_factory=dict)
    by: ByClass | None = None
    provenance: Provenance = UNKNOWN
    metrics: Sequence[str] = ()
    stream: Stream | None = field(default=None, repr=False, compare=False)
    made_of: Sequence[Piece] = ()

    def __repr__(self) -> str:
        return format_brief(self, count=self.count, figures=len(self.figures), **list_outcomes(self.verdicts))

    @property
    def contrast(self) -> Contrast | None:
        """The buckets of both sides; None for a score without :attr:`stream`."""
        return None if self.stream is None else self.stream.contrast("score")

    def save(self, path: Path | str) -> None:
        """Write the state behind figures and comparisons as safetensors; the file appears whole or not at all.

        Figures of ``against`` and ``by`` are not kept, nor the reasons for skipped samples, which name files.

        Raises:
            OSError: If it cannot be written.
            ValueError: If the score was not made by ``score``, or the suffix is of another format.
        """
        from clipconformity.evaluation.saved import write_score

        write_score(path, self)

    @classmethod
    def load(cls, path: Place | str, reference: ReferenceSet, **options: Any) -> Score:
        """Read a score that :meth:`save` wrote; its figures are computed again, equal to the last bit.

        Args:
            path: The file, here or at an address.
            reference: The reference that the samples were scored against.
            options: ``resamples``, ``metrics``, ``margins`` and ``by``, as of ``score``; by default the metrics are
                those that it was scored with.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a saved score, is damaged or of a later format, was scored against another
                reference, or lacks what a metric needs.
        """
        from clipconformity.evaluation.saved import read_score

        return read_score(path, reference, **options)

    def value(self, name: str) -> float:
        """Return the value of a figure.

        Raises:
            KeyError: If there is no such figure, or its value is unknown.
        """
        found = self.figures.get(name)
        if found is None or found.value is None:
            known = ", ".join(key for key, figure in self.figures.items() if figure.value is not None)
            raise KeyError(f"{name!r} is not among the figures: {known}.")
        return found.value

    @property
    def conformity_mean(self) -> float:
        """Mean conformity to the reference: a measure of typicality."""
        return self.value("conformity_mean")

    @property
    def self_conformity_mean(self) -> float:
        """Mean cosine of two samples: low is varied."""
        return self.value("self_conformity_mean")

    @property
    def typicality_shift(self) -> float:
        """Mean conformity minus the reference's, in the reference's standard deviations."""
        return self.value("typicality_shift")

    @property
    def spread_ratio(self) -> float:
        """Standard deviation of conformity over the reference's."""
        return self.value("spread_ratio")

    @property
    def variety_ratio(self) -> float:
        """Mean cosine distance of two samples over the reference's: below 1 is less varied."""
        return self.value("variety_ratio")

    @property
    def p_value(self) -> float | None:
        """p-value of the test for one distribution of conformity; None where all samples belong to one group."""
        return self.figures["p_value"].value

    @property
    def conformity_kl(self) -> float:
        """KL of the conformity distribution from the reference's, nats."""
        return self.value("conformity_kl")

    @property
    def kl_interval(self) -> Interval | None:
        """95% interval of :attr:`conformity_kl`; None where all samples belong to one group."""
        return self.figures["conformity_kl"].interval

    @property
    def noise_floor(self) -> float | None:
        """Noise floor of :attr:`conformity_kl` in nats; None where all samples belong to one group."""
        return self.figures["noise_floor"].value

    @property
    def sentences(self) -> dict[str, str]:
        """The verdicts in words: ``"typical"`` and ``"varied"``."""
        return {
            "typical": describe_typicality(self.verdicts["typicality"]),
            "varied": describe_variety(self.verdicts["variety"]),
        }

    def _repr_html_(self) -> str:
        """Show the score in a notebook: both verdicts in words, then every figure with its interval."""
        ends = {name for name in self.figures if name.endswith(("_low", "_high", "_se"))}
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{one.text(4)}</td><td>{one.interval_text(4)}</td>"
            f"<td>{escape(one.unit)}</td><td>{escape(one.about)}</td></tr>"
            for name, one in self.figures.items()
            if name not in ends and one.value is not None
        )
        words = "".join(f"<p>{escape(each[:1].upper() + each[1:])}.</p>" for each in self.sentences.values())
        head = "".join(f"<th>{each}</th>" for each in ("figure", "value", "95% interval", "unit", "what it is"))
        return f"{words}<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>\n"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as the command prints them; unknown ones are None."""
        reference = self.reference
        result: dict[str, Any] = {"count": self.count} | {name: one.value for name, one in self.figures.items()}
        result |= {
            "reference_conformity_std": float(reference.spread.whole),
            "reference_self_conformity": float(reference.self_conformity),
            "reference_self_conformity_se": reference.known_error,
            "kl_is_lower_bound": self.kl_is_lower_bound,
            "exact": self.exact,
            "verdict": self.sentences,
            "verdicts": {name: verdict._asdict() for name, verdict in self.verdicts.items()},
            "reference": reference.describe(),
            "notes": list(self.notes),
            "measured": dict(self.measured),
        }
        if self.details:
            result["details"] = {name: dict(one) for name, one in self.details.items()}
        if self.by is not None:
            result["by"] = self.by.to_dict()
        return result | dict(self.remarks)


def list_outcomes(verdicts: Mapping[str, Verdict]) -> dict[str, Outcome]:
    """List the outcome of each verdict, by its name."""
    return {name: one.outcome for name, one in verdicts.items()}


def to_figures(
    fields: tuple[Field, ...], values: Mapping[str, Tensor], degrees: float, unknown: str
) -> dict[str, Figure]:
    """Make figures of values, with description, error and interval; values of other fields are ignored.

    Args:
        fields: Declarations of the figures.
        values: Values by key.
        degrees: Degrees of freedom of the standard errors.
        unknown: Reason why an uncertainty is unknown, where it is.
    """

    def plain(name: str | None) -> float | None:
        found = math.nan if name is None or name not in values else float(values[name])
        return found if math.isfinite(found) else None

    ends_and_errors = {name for one in fields for name in (one.error, *(one.interval or ()))}
    figures = {}
    for one in fields:
        if one.name not in values:
            continue
        value, error = plain(one.name), plain(one.error)
        ends = [plain(name) for name in one.interval or ()]
        interval = Interval(*ends) if ends and None not in ends else None  # type: ignore[arg-type]
        if interval is None and value is not None and error is not None and degrees > 0:
            half = student_quantile(0.975, degrees) * error
            interval = Interval(value - half, value + half)
        hidden = value is None and (one.name in ends_and_errors or not one.computed)
        reason = unknown if hidden or ((one.error or one.interval) and interval is None) else None
        figures[one.name] = Figure(value, one.about, one.unit, one.better, error, interval, reason)
    return figures


def judge(contrast: Contrast, margins: Mapping[str, float] | None = None) -> dict[str, Verdict]:
    """Judge typicality and variety, each by its effect with a 95% interval, against a margin.

    ``same``: the interval lies inside the margin. ``more`` or ``less``: it excludes zero difference, and does not lie
    inside the margin. ``undecided``: neither.

    Args:
        contrast: The evaluated samples beside the reference.
        margins: Differences that do not matter: of ``"typicality"`` in standard deviations of the reference, of
            ``"variety"`` as a share of its own; by default :data:`MARGINS`.

    Raises:
        ValueError: If a margin is unknown, or not between 0 and 1 for variety, or not above 0.
    """
    allowed = MARGINS | check_margins(margins or {})
    shift, variety = contrast.typicality_shift, contrast.log_variety_ratio
    ratio = math.exp(float(variety.value))
    found = {
        "typicality": (shift, float(shift.value), shift.interval(), 0.0),
        "variety": (variety, ratio, contrast.variety_interval, 1.0),
    }
    return {
        name: _make_verdict(estimate, effect, interval, no_effect, allowed[name], contrast)
        for name, (estimate, effect, interval, no_effect) in found.items()
    }


def check_margins(margins: Mapping[str, float]) -> dict[str, float]:
    """Refuse margins of unknown names or out of range."""
    for name, value in margins.items():
        if name not in MARGINS:
            raise ValueError(f"margins: {name!r} is unknown; expected {' or '.join(MARGINS)}.")
        if not 0 < value < (1 if name == "variety" else math.inf):
            allowed = "between 0 and 1" if name == "variety" else "above 0"
            raise ValueError(f"margins: expected {name} {allowed}, got {value}.")
    return dict(margins)


def _make_verdict(
    estimate: Estimate, effect: float, interval: Interval, no_effect: float, margin: float, contrast: Contrast
) -> Verdict:
    if not math.isfinite(interval.low) or not math.isfinite(interval.high):
        return Verdict("undecided", effect, None, margin, None, contrast.unknown)
    few = contrast.few
    if no_effect - margin <= interval.low and interval.high <= no_effect + margin:
        return Verdict("same", effect, interval, margin, None, few)
    if interval.low > no_effect:
        return Verdict("more", effect, interval, margin, None, few)
    if interval.high < no_effect:
        return Verdict("less", effect, interval, margin, None, few)
    logarithm = effect - no_effect if no_effect == 0 else float(estimate.value)
    needed = _estimate_needed(estimate, abs(logarithm), margin, contrast.count)
    return Verdict("undecided", effect, interval, margin, needed, few if needed is not None else SMALL_REFERENCE)


def _estimate_needed(estimate: Estimate, effect: float, margin: float, count: int) -> int | None:
    """Estimate the samples at which a true zero is ``same`` in 80% of cases; None where the reference is too small.

    The probability is 2 Phi(margin/se - 1.96) - 1, and the squared error is a part over n plus the reference's. Where
    there are that many samples already, the effect lies between zero and the margin: then the number at which an
    effect of this size would differ significantly from one of the two.
    """
    mine, theirs = estimate.parts  # squared errors of samples and reference, if independent
    paired = float(estimate.error) ** 2 / (mine + theirs)
    for error in (margin / MARGIN_ERRORS, max(effect, margin - effect) / EFFECT_ERRORS):
        left = error**2 - paired * theirs
        if left <= 0:
            return None
        needed = math.ceil(count * paired * mine / left)
        if needed > count:
            return needed
    return None


def describe_typicality(verdict: Verdict) -> str:
    """Describe a verdict on typicality in words."""
    return _choose_words(verdict, "typicality", "typical")


def describe_variety(verdict: Verdict) -> str:
    """Describe a verdict on variety in words."""
    return _choose_words(verdict, "variety", "varied")


def _choose_words(verdict: Verdict, noun: str, adjective: str) -> str:
    if verdict.outcome != "undecided":
        few = f" ({verdict.reason})" if verdict.reason else ""
        than = f"as {adjective} as" if verdict.outcome == "same" else f"{verdict.outcome} {adjective} than"
        return f"{than} the reference{few}"
    start = f"{noun}: cannot tell from the reference's"
    if verdict.needed is not None:
        return f"{start} at this N; about {round_up(verdict.needed):,} samples would tell"
    return f"{start} since {verdict.reason}"


def round_up(count: int) -> int:
    """Round a number of samples up to two digits."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit
