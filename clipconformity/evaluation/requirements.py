"""Requirements that a score must meet, such as ``variety_ratio>=0.9``, for scripts."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from clipconformity.evaluation.results import Score

COMPARED: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt,
}  # fmt: skip
BOUNDED = ("conformity_kl", "reverse_kl", "kl_low", "kl_high")
"""Figures that may be larger than what is given where the divergence is a lower bound."""
FORM = re.compile(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\S+)\s*")


class Requirement(NamedTuple):
    """A figure, a comparison and a bound."""

    name: str
    comparison: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read ``FIGURE>=NUMBER``, or the same with another comparison.

        Raises:
            ValueError: If it is not of that form.
        """
        found = FORM.fullmatch(text)
        try:
            if found is not None:
                return cls(found[1], found[2], float(found[3]))
        except ValueError:
            pass
        raise ValueError(f"expected a requirement such as 'variety_ratio>=0.9', got {text!r}.")

    def __str__(self) -> str:
        return f"{self.name}{self.comparison}{self.bound:g}"

    def judge(self, score: Score) -> dict[str, Any]:
        """Judge a score by the unfavourable end of the figure's interval: a requirement holds only with confidence.

        Raises:
            ValueError: If the score has no such figure.
        """
        if self.name not in score.figures:
            raise ValueError(f"{self}: there is no figure {self.name!r}; expected one of {', '.join(score.figures)}.")
        figure = score.figures[self.name]
        low, high = figure.interval or (figure.value, figure.value)
        end = low if self.comparison.startswith(">") else high
        known = end is not None and figure.reason is None
        if score.kl_is_lower_bound and self.name in BOUNDED and self.comparison.startswith("<"):
            known = False  # a lower bound: the true value may be larger
        holds = known and COMPARED[self.comparison](float(end or 0.0), self.bound)
        return {"requirement": str(self), "holds": holds, "value": figure.value, "judged_by": end if known else None}
