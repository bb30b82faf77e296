"""Scores by class or prompt: which classes lost variety, and which shifted in typicality."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from clipconformity.data.brief import format_brief
from clipconformity.data.cells import write_table
from clipconformity.functional.multiplicity import adjust_p_values, shrink_estimates
from clipconformity.functional.resampling import Estimate, Interval, jackknife, student_tail
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.moments import Moments
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.row_sample import Sample
from clipconformity.stream.stream import Needs, Stream

MIN_ROWS = 5
"""Smallest number of rows of a class on either side for a comparison: with these, tests are conservative."""
CORRECTION = "Benjamini-Hochberg over the classes that are compared with the same kind of set"


class ClassScore(NamedTuple):
    """A class of the samples, compared with the same class of the reference or, where that has none, with all of it."""

    name: str
    count: int  # type: ignore[assignment]
    """Number of samples of the class."""
    against: Literal["class", "reference"]
    """The set that it is compared with."""
    reference_count: int
    """Number of rows of that set."""
    conformity_mean: float | None = None
    """Mean conformity to the compared set."""
    conformity_mean_low: float | None = None
    conformity_mean_high: float | None = None
    conformity_se: float | None = None
    typicality_shift: float | None = None
    """Mean conformity minus that of the compared set, in its standard deviations."""
    typicality_shift_low: float | None = None
    typicality_shift_high: float | None = None
    typicality_p: float | None = None
    """p-value of a difference from 0, adjusted for the number of classes."""
    variety_ratio: float | None = None
    """Mean cosine distance of two samples over that of the compared set."""
    variety_ratio_low: float | None = None
    variety_ratio_high: float | None = None
    variety_p: float | None = None
    """p-value of a difference from 1, adjusted likewise; only against the same class."""
    variety_ratio_shrunken: float | None = None
    """Ratio shrunk towards the mean of the classes compared with the same kind of set; classes are sorted by it."""
    reason: str | None = None
    """Reason why figures are missing or inaccurate."""


class ByClass(NamedTuple):
    """A score by class."""

    classes: list[ClassScore]
    """Sorted by loss of variety; classes compared with the whole reference come last."""
    without_class: int
    """Number of samples without a class."""
    correction: str = CORRECTION
    """Method of adjusting p-values."""

    def __repr__(self) -> str:
        return format_brief(self, classes=len(self.classes), without_class=self.without_class)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return self._asdict() | {"classes": [one._asdict() for one in self.classes]}


def score_by_class(stream: Stream, by: Mapping[str, str], ids: Sequence[str]) -> ByClass:
    """Score each class on the row samples of both sides; the classes with the largest loss of variety come first.

    A class is compared with the reference's rows of the same class, where ``by`` gives at least five of these rows the
    class by their ids, else with the whole reference: then it is less varied by nature, which is not tested, and such
    classes come last.

    Args:
        stream: All samples.
        by: The class of each id, of the samples and, where they are known, of the reference's rows.
        ids: Ids of all samples.

    Raises:
        ValueError: If no sample has a class.
    """
    counts = Counter(by[name] for name in ids if name in by)
    if not counts:
        raise ValueError(f"by: none of the {len(ids)} samples has a class; give their ids, such as {ids[0]!r}.")
    reference = stream.require_reference("by")
    mine = stream.evaluated.good_sample().cpu()
    own = _group_rows([by.get(stream.evaluated.names.get(label, "")) for label in mine.ids.tolist()])
    there = _group_rows([by.get(name) for name in reference.sample_ids or ()])
    found = []
    for name, count in counts.items():
        rows, others = own.get(name, []), there.get(name, [])
        against = _make_reference(reference, others) or reference
        plain = ClassScore(name, count, "reference" if against is reference else "class", len(against.sample.keys))
        found.append(_score_class(plain, _select_rows(mine, rows), stream.evaluated, against))
    kinds = [[pair for pair in found if pair[0].against == kind] for kind in ("class", "reference")]
    ordered = [one for kind in kinds for one in sorted(_adjust_together(kind), key=_sort_key)]
    return ByClass(ordered, len(ids) - counts.total())


def _score_class(
    plain: ClassScore, sample: Sample, whole: Moments, reference: ReferenceSet
) -> tuple[ClassScore, tuple[Estimate, Estimate] | None]:
    """Compare a class; return also its shift and log variety, for the adjustment over all classes."""
    if len(sample.keys) < MIN_ROWS:
        few = f"fewer than {MIN_ROWS} samples" + ("" if plain.count < MIN_ROWS else " in the row sample")
        return plain._replace(reason=few), None
    stream = Stream.open_against(reference, Needs(conformity=True, rows=True, reference=True), allow_normalized=True)
    stream.update(sample.rows, **_choose_labels(sample, whole.names, whole.grouped))
    contrast = Contrast.build(stream.read_side(), reference)
    shift, variety, ratio = contrast.typicality_shift, contrast.log_variety_ratio, contrast.variety_interval
    mean = jackknife(contrast.conformity.whole, contrast.conformity.evaluated, contrast.counts[0])
    low, high = shift.interval()
    figures = plain._replace(
        conformity_mean=_to_finite(mean.value),
        conformity_mean_low=_to_finite(mean.interval().low),
        conformity_mean_high=_to_finite(mean.interval().high),
        conformity_se=_to_finite(mean.error),
        typicality_shift=_to_finite(shift.value),
        typicality_shift_low=_to_finite(low),
        typicality_shift_high=_to_finite(high),
        variety_ratio=_to_finite(variety.value.exp()),
        variety_ratio_low=_to_finite(ratio.low),
        variety_ratio_high=_to_finite(ratio.high),
        reason=contrast.few if shift.degrees > 0 else contrast.unknown,
    )
    known = all(one.degrees > 0 and float(one.error) > 0 for one in (shift, variety))
    return figures, (shift, variety) if known else None


def _adjust_together(classes: Sequence[tuple[ClassScore, tuple[Estimate, Estimate] | None]]) -> list[ClassScore]:
    """Adjust the p-values of classes of one kind for their number, and shrink their variety."""
    known = {n: pair for n, (_, pair) in enumerate(classes) if pair is not None}
    p_values = [
        adjust_p_values([student_tail(float(x[k].value / x[k].error), x[k].degrees) for x in known.values()])
        for k in (0, 1)
    ]
    logs = [variety for _, variety in known.values()]
    shrunk = shrink_estimates([float(one.value) for one in logs], [float(one.error) for one in logs])
    result = [one for one, _ in classes]
    for place, n in enumerate(known):
        result[n] = result[n]._replace(
            typicality_p=p_values[0][place],
            variety_p=p_values[1][place] if result[n].against == "class" else None,
            variety_ratio_shrunken=None if shrunk is None else math.exp(shrunk[place]),
        )
    return result


def _sort_key(one: ClassScore) -> tuple[float, str]:
    """Return a sort key: least varied first, classes without figures last."""
    value = one.variety_ratio if one.variety_ratio_shrunken is None else one.variety_ratio_shrunken
    return (math.inf if value is None else value, one.name)


def _group_rows(labels: Sequence[str | None]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        if label is not None:
            found.setdefault(label, []).append(row)
    return found


def _select_rows(sample: Sample, rows: list[int]) -> Sample:
    return Sample(*(part[rows] for part in sample))


def _make_reference(reference: ReferenceSet, rows: list[int]) -> ReferenceSet | None:
    """Make a reference of some sampled rows; None for too few, for one group, and for rows that do not vary."""
    if len(rows) < MIN_ROWS:
        return None
    part = _select_rows(reference.sample, rows)
    labels = _choose_labels(part, reference.moments.names, reference.grouped)
    try:
        found = ReferenceSet.fit(part.rows, max_samples=len(rows), allow_normalized=True, **labels)
        return found if found.grid.cell > 0 else None
    except ValueError:
        return None


def _choose_labels(sample: Sample, names: Mapping[int, str], grouped: bool) -> dict[str, Any]:
    """Return the labels that assign rows to buckets: their groups, else their ids where these were used."""
    if grouped:
        return {"groups": sample.groups}
    if len(sample.ids) and bool((sample.ids == sample.groups).all()):
        return {"ids": [names[label] for label in sample.ids.tolist()]}
    return {}


def _to_finite(value: Any) -> float | None:
    return float(value) if math.isfinite(float(value)) else None


def write_classes(path: Path | str, classes: Sequence[ClassScore]) -> None:
    """Write the classes as CSV, in the given order.

    Raises:
        OSError: If the file cannot be written.
    """
    write_table(path, ClassScore._fields, classes)


def get_interval(one: ClassScore, figure: str) -> Interval | None:
    """Return the 95% interval of a figure of a class; None where it cannot be computed."""
    low, high = (getattr(one, f"{figure}_{end}") for end in Interval._fields)
    return None if low is None or high is None else Interval(low, high)
