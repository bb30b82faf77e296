"""Difference of two runs in one figure."""

from __future__ import annotations

import math
from typing import NamedTuple

from clipconformity.evaluation.results import Outcome
from clipconformity.functional.resampling import Interval

MAX_RATIO = 1000.0
"""Largest ratio: beyond it the variety of one run is only rounding."""


class Difference(NamedTuple):
    """Difference of two runs in one figure."""

    first: str
    second: str
    figure: str
    """Key of the figure, such as ``"typicality_shift"``."""
    value: float
    """First minus second, or first over second, limited to 1/1000 to 1000."""
    interval: Interval | None
    """95% interval of this pair alone; None where it is unknown."""
    outcome: Outcome
    """Outcome of the first against the second: ``more`` or ``less`` where :attr:`p_adjusted` is at most 0.05."""
    p_value: float | None = None
    """p-value of no difference, of this pair alone; None where it is unknown."""
    p_adjusted: float | None = None
    """p-value adjusted for the number of pairs in this figure (Holm 1979)."""
    ratio: bool = False
    """Whether the two are compared by their ratio, as variety ratios are, rather than by their difference."""

    @property
    def no_difference(self) -> float:
        """The value where the two do not differ."""
        return 1.0 if self.ratio else 0.0

    def text(self) -> str:
        """State the difference in a sentence."""
        adjective, of = "typical", "standard deviations of the reference apart"
        if self.figure == "variety_ratio":
            adjective, of = "varied", "times as varied"
        elif self.figure != "typicality_shift":
            return self._format_unjudged()
        if self.interval is None:
            return f"{self.first}, {self.second}: nothing is known of how {adjective} they are"
        apart = f"{self.value:.3f} [{self.interval.low:.3f}, {self.interval.high:.3f}] {of}"
        if self.ratio and abs(math.log(self.value)) > 0.9999 * math.log(MAX_RATIO):
            apart = f"one of the two has next to no variety: over {MAX_RATIO:,.0f} times less"
        if self.outcome == "undecided":
            return f"{self.first}, {self.second}: no difference in how {adjective} can be told ({apart})"
        return f"{self.first} is {self.outcome} {adjective} than {self.second} ({apart})"

    def _format_unjudged(self) -> str:
        """State the difference in a figure that is not judged."""
        what = self.figure.replace("_", " ")
        if self.interval is None:
            return f"{self.first}, {self.second}: nothing is known of the difference in {what}"
        of = "times" if self.ratio else "apart"
        apart = f"{self.value:.3g} [{self.interval.low:.3g}, {self.interval.high:.3g}] {of}"
        if self.outcome == "undecided":
            return f"{self.first}, {self.second}: no difference in {what} can be told ({apart})"
        level = "a higher" if self.outcome == "more" else "a lower"
        return f"{self.first} has {level} {what} than {self.second} ({apart})"
