"""Results with names: figures, verdicts and scores, and the words of a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from torch import Tensor

from clipconformity.functional.resampling import Interval
from clipconformity.stream.readouts import Direction, Field
from clipconformity.stream.reference import ReferenceSet

SHIFT = 0.1
"""Shift of the mean, in standard deviations of the reference, below which a difference is one of the spread."""
SPREAD = "the spread differs"
ONE_GROUP = "all samples belong to one group"
Outcome = Literal["same", "more", "less", "undecided"]


class Figure(NamedTuple):
    """One figure of a score."""

    value: float | None
    """None where it cannot be had."""
    about: str
    unit: str
    better: Direction
    error: float | None = None
    """Standard error."""
    interval: Interval | None = None
    """95% interval."""
    reason: str | None = None
    """Why the value or its uncertainty cannot be had."""

    def text(self, digits: int = 3) -> str:
        """The value; empty where it cannot be had."""
        return "" if self.value is None else f"{self.value:.{digits}f}"

    def interval_text(self, digits: int = 3) -> str:
        """The interval in brackets; empty where there is none."""
        return "" if self.interval is None else f"[{self.interval.low:.{digits}f}, {self.interval.high:.{digits}f}]"


class Verdict(NamedTuple):
    """Whether samples are more or less typical, or varied, than the reference."""

    outcome: Outcome
    effect: float
    """How far: standard deviations of the reference, or a ratio."""
    interval: Interval | None = None
    margin: float | None = None
    needed: int | None = None
    """Samples at which a difference of zero would be ``same``."""
    reason: str | None = None


@dataclass(frozen=True)
class Score:
    """A scored run.

    Attributes:
        figures: Every figure by its key.
        verdicts: Under ``"typicality"`` and ``"variety"``.
        count: Number of samples.
        ids: Their names.
        conformities: Conformity of every sample to the reference, ``(N,)`` float64.
        norms: Norm of every raw embedding, ``(N,)`` float64.
        reference: What it was scored against.
        exact: Whether quantiles and intervals rest on every sample rather than on row samples.
        measured: What was measured: encoder, modality, and what differs from the reference's encoder.
        remarks: What was left out or cut.
    """

    figures: Mapping[str, Figure]
    verdicts: Mapping[str, Verdict]
    count: int
    ids: list[str]
    conformities: Tensor
    norms: Tensor
    reference: ReferenceSet
    exact: bool = True
    kl_is_lower_bound: bool = False
    measured: Mapping[str, Any] = field(default_factory=dict)
    remarks: Mapping[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> float:
        """Give the value of a figure.

        Raises:
            KeyError: If there is no such figure, or its value cannot be had.
        """
        found = self.figures.get(name)
        if found is None or found.value is None:
            known = ", ".join(key for key, figure in self.figures.items() if figure.value is not None)
            raise KeyError(f"{name!r} is not among the figures: {known}.")
        return found.value

    @property
    def conformity_mean(self) -> float:
        """Mean conformity to the reference: how typical."""
        return self.value("conformity_mean")

    @property
    def self_conformity_mean(self) -> float:
        """Mean cosine of two samples: how alike."""
        return self.value("self_conformity_mean")

    @property
    def typicality_shift(self) -> float:
        """Mean conformity less the reference's, in the reference's standard deviations."""
        return self.value("typicality_shift")

    @property
    def spread_ratio(self) -> float:
        """Standard deviation of conformity over the reference's."""
        return self.value("spread_ratio")

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
        """What sampling noise alone gives :attr:`conformity_kl`, nats; None where all samples belong to one group."""
        return self.figures["noise_floor"].value

    @property
    def sentences(self) -> dict[str, str]:
        """The verdicts in words: ``"typical"`` and ``"varied"``."""
        return {"typical": typical(self.verdicts["typicality"]), "varied": varied(self.verdicts["variety"])}

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, as the command prints them; what cannot be had is None."""
        reference = self.reference
        result: dict[str, Any] = {"count": self.count} | {name: one.value for name, one in self.figures.items()}
        result |= {
            "reference_conformity_std": float(reference.conformities.std()),
            "reference_self_conformity": float(reference.self_conformity),
            "reference_self_conformity_se": float(reference.self_conformity_se),
            "kl_is_lower_bound": self.kl_is_lower_bound,
            "exact": self.exact,
            "verdict": self.sentences,
            "verdicts": {name: verdict._asdict() for name, verdict in self.verdicts.items()},
            "reference": reference.describe(),
            "measured": dict(self.measured),
        }
        return result | dict(self.remarks)


def to_figures(fields: tuple[Field, ...], values: Mapping[str, Tensor]) -> dict[str, Figure]:
    """Give values their meaning, error and interval; those of other fields are passed over."""

    def plain(name: str | None) -> float | None:
        found = math.nan if name is None or name not in values else float(values[name])
        return found if math.isfinite(found) else None

    figures = {}
    for one in fields:
        if one.name not in values:
            continue
        ends = [plain(name) for name in one.interval or ()]
        interval = Interval(*ends) if ends and None not in ends else None  # type: ignore[arg-type]
        unknown = plain(one.error) is None if one.error else one.interval is not None and interval is None
        reason = ONE_GROUP if unknown else None
        figures[one.name] = Figure(plain(one.name), one.about, one.unit, one.better, plain(one.error), interval, reason)
    return figures


def judge(figures: Mapping[str, Figure], self_conformity: float, error: float) -> dict[str, Verdict]:
    """Judge typicality and variety.

    Typicality differs when the KL's interval lies above the noise floor; variety, when the self-conformities are
    more than 1.96 standard errors apart. Otherwise no difference can be told at this N.

    Args:
        figures: Of the core.
        self_conformity: The reference's.
        error: Its standard error.
    """
    shift, own = (figures[name].value for name in ("typicality_shift", "self_conformity_mean"))
    assert shift is not None  # exact for any two samples
    assert own is not None
    interval, floor = figures["conformity_kl"].interval, figures["noise_floor"].value
    own_error = figures["self_conformity_mean"].error
    apart = own - self_conformity
    if interval is None or floor is None or own_error is None:
        return {
            "typicality": Verdict("undecided", shift, reason=ONE_GROUP),
            "variety": Verdict("undecided", apart, reason=ONE_GROUP),
        }
    typicality = Verdict("undecided", shift)
    if interval.low > floor:
        if abs(shift) < SHIFT:
            typicality = Verdict("undecided", shift, reason=SPREAD)
        else:
            typicality = Verdict("more" if shift > 0 else "less", shift)
    half = 1.96 * math.hypot(own_error, error)
    outcome: Outcome = "undecided" if abs(apart) <= half else "less" if apart > 0 else "more"
    return {"typicality": typicality, "variety": Verdict(outcome, apart, Interval(apart - half, apart + half))}


def typical(verdict: Verdict) -> str:
    """Say a verdict on typicality in words."""
    if verdict.reason == SPREAD:
        return "as typical on average as the reference, but the spread differs"
    if verdict.outcome == "undecided":
        return f"typicality: {_undecided(verdict)}"
    return f"{verdict.outcome} typical than the reference"


def varied(verdict: Verdict) -> str:
    """Say a verdict on variety in words."""
    if verdict.outcome == "undecided":
        return f"variety: {_undecided(verdict)}"
    return f"{verdict.outcome} varied than the reference"


def _undecided(verdict: Verdict) -> str:
    return "cannot tell from the reference's " + (f"since {verdict.reason}" if verdict.reason else "at this N")
