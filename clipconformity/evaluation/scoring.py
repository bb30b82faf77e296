"""From a source to a score: one pass over the samples, and the figures computed from it."""

from __future__ import annotations

import warnings
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipconformity.data.cells import write_table
from clipconformity.data.names import Names
from clipconformity.evaluation.classes import score_by_class
from clipconformity.evaluation.results import Figure, Score, Verdict, check_margins, judge, to_figures
from clipconformity.evaluation.sources import Source, check_source
from clipconformity.evaluation.suggestions import suggest_metric
from clipconformity.functional.linalg import full_precision
from clipconformity.functional.resampling import effective_number
from clipconformity.functional.validation import check_same_dim
from clipconformity.provenance import Provenance
from clipconformity.stream.alignment import pair_buckets
from clipconformity.stream.contrast import Contrast
from clipconformity.stream.merging import Piece
from clipconformity.stream.readouts import Batch, ReadOut, failed_read_outs, read_outs
from clipconformity.stream.readouts.against import FIELDS as AGAINST
from clipconformity.stream.readouts.against import NearestElsewhere
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.stream import Needs, Stream

ROWS_AT_ONCE = 2**16
"""Rows of a table that are formatted at once."""
CORE = ("conformity", "conformity_kl", "norm")
"""Read-outs of every score; ``--metrics conformity`` names them together."""


def score(
    source: Source,
    reference: ReferenceSet,
    *,
    resamples: int = 1000,
    metrics: Sequence[str] = ("conformity",),
    margins: Mapping[str, float] | None = None,
    by: Mapping[str, str] | None = None,
    against: Iterable[Source] | None = None,
    allow_normalized: bool = False,
) -> Score:
    """Score a stream of samples against a reference.

    Args:
        source: The evaluated samples.
        reference: The reference set.
        resamples: Bootstrap redraws for intervals and noise floor.
        metrics: Names of read-outs beside the core, or ``("all",)``; see :func:`metric_names`.
        margins: Differences that do not matter to the verdicts: ``{"typicality": 0.2}``, standard deviations of the
            reference, and ``{"variety": 0.05}``, a share of its variety; these are the defaults.
        by: The class, or prompt, of each id: ``result.by`` then compares each class with the same class of the
            reference. It may also give the classes of the reference's ids.
        against: Further sets, such as a training set, searched for the nearest row of each sample, one set at a time.
            The samples are held in memory for it.
        allow_normalized: Accept L2-normalised embeddings.

    Metrics of other packages that cannot be imported are left out with a warning, unless they are requested by name.

    Raises:
        ValueError: If a metric or margin is unknown, encoder or modality differ from the reference's, the dimension
            does not fit, there are too few samples, or rows are zero, NaN, infinite or L2-normalised.
    """
    check_source(source)
    check_margins(margins or {})
    scoring = Scoring.of(source, reference, metrics, allow_normalized=allow_normalized, hold=against is not None)
    taken = scoring.take_in(source)
    if not len(taken.rows.ids):
        raise ValueError(source.nothing_read)
    return read_score(taken, scoring.chosen, resamples=resamples, margins=margins, by=by, against=against)


@dataclass(frozen=True)
class Scoring:
    """What is accumulated of samples to be scored, settled before they are read.

    Attributes:
        reference: What they are compared with.
        chosen: What is read out of them.
        differs: What differs from the reference's encoder.
        allow_normalized: Whether L2-normalised embeddings are taken.
        hold: Whether the rows are held, to be compared with further sets.
    """

    reference: ReferenceSet
    chosen: Sequence[ReadOut]
    differs: Sequence[str]
    allow_normalized: bool
    hold: bool = False

    @classmethod
    def of(
        cls,
        source: Source,
        reference: ReferenceSet,
        metrics: Sequence[str],
        *,
        allow_normalized: bool = False,
        hold: bool = False,
    ) -> Scoring:
        """Settle it for a source, which is not read yet; arguments and errors as of :func:`score`."""
        chosen = choose_read_outs(metrics, paired=source.paired, with_references=source.with_references)
        for reason in failed_read_outs().values():
            warnings.warn(f"metrics: {reason}; it is left out.", stacklevel=3)
        differs = reference.provenance.check(source.provenance)
        return cls(reference, chosen, differs, allow_normalized or reference.normalized, hold)

    def take_in(self, source: Source) -> AccumulatedSamples:
        """Read a source, or a part of it."""
        needs = reduce(Needs.union, (one.needs for one in self.chosen))
        stream = Stream.open_against(self.reference, needs, allow_normalized=self.allow_normalized)
        source.allow_normalized = self.allow_normalized
        rows, held = _stream_in(source, stream, self.chosen, hold=self.hold)
        return AccumulatedSamples(stream, rows, source.provenance, self.differs, source.remarks, held)


class SampleValues(NamedTuple):
    """Values of every sample, computed in the same pass."""

    ids: Sequence[str]
    norms: Tensor
    conformities: Tensor
    columns: dict[str, list[float | str]]


class AccumulatedSamples(NamedTuple):
    """Samples after the pass."""

    stream: Stream
    rows: SampleValues
    provenance: Provenance
    differs: Sequence[str]
    """What differs from the reference's encoder."""
    remarks: Mapping[str, Any]
    """What was left out or cut."""
    held: Sequence[tuple[Tensor, Tensor]] = ()
    """Rows and their buckets, of each batch, where they are to be compared with further sets."""
    made_of: Sequence[Piece] = ()
    """The files that they were merged from, or the share of the samples that they are."""


def join_taken(first: AccumulatedSamples, second: AccumulatedSamples) -> AccumulatedSamples:
    """Join samples that were taken in with others, which come behind them."""
    ids = Names()
    for names in (first.rows.ids, second.rows.ids):
        ids.extend(names)
    norms = torch.cat([first.rows.norms, second.rows.norms])
    conformities = torch.cat([first.rows.conformities, second.rows.conformities])
    columns = {name: column + second.rows.columns[name] for name, column in first.rows.columns.items()}
    return first._replace(
        stream=first.stream.merge(second.stream),
        rows=SampleValues(ids, norms, conformities, columns),
        remarks=_join_remarks(first.remarks, second.remarks),
        held=[*first.held, *second.held],
        made_of=(*first.made_of, *second.made_of),
    )


def _join_remarks(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Add up what was left out or cut."""
    skipped = [one["skipped"]["count"] for one in (first, second) if "skipped" in one]
    truncated = [one["truncated"] for one in (first, second) if "truncated" in one]
    found: dict[str, Any] = {"skipped": {"count": sum(skipped)}} if skipped else {}
    return found | ({"truncated": sum(truncated)} if truncated else {})


def read_score(
    taken: AccumulatedSamples,
    chosen: Sequence[ReadOut],
    *,
    resamples: int,
    margins: Mapping[str, float] | None,
    by: Mapping[str, str] | None,
    against: Iterable[Source] | None = None,
) -> Score:
    """Compute a score from accumulated samples; arguments and errors as of :func:`score`.

    Args:
        taken: The samples.
        chosen: The read-outs, with those of the core.
        resamples: Bootstrap redraws.
        margins: Differences that do not matter.
        by: The class of each id.
        against: Further sets, in which the nearest row of each sample is looked for.
    """
    stream, rows = taken.stream, taken.rows
    reference = stream.require_reference("score")
    stream.of_one_kind = None not in (taken.provenance.modality, reference.modality)
    found = read_figures(chosen, stream, resamples, margins)
    details = {one.name: detail for one in chosen if (detail := one.details(stream))}
    columns: dict[str, Sequence[float | str]] = {**rows.columns}
    if against is not None:
        nearest = _look_elsewhere(taken, against)
        found.figures.update(to_figures(AGAINST, nearest.read(), found.degrees, found.contrast.unknown))
        details["against"] = nearest.details(rows.ids)
        columns |= nearest.columns()
    origin = {"encoder": taken.provenance.spec or reference.spec, "modality": taken.provenance.modality}
    return Score(
        found.figures,
        found.verdicts,
        count=int(stream.evaluated.total),
        ids=rows.ids,
        conformities=rows.conformities,
        norms=rows.norms,
        reference=reference,
        exact=stream.exact and reference.exact,
        kl_is_lower_bound=found.kl_is_lower_bound,
        measured=origin | {"remarks": list(taken.differs)},
        remarks=taken.remarks,
        notes=[note for one in chosen for note in one.notes(stream)],
        details=details,
        columns=columns,
        by=None if by is None else score_by_class(stream, by, rows.ids),
        provenance=taken.provenance,
        metrics=[one.name for one in chosen],
        stream=stream,
        made_of=taken.made_of,
    )


class ReadFigures(NamedTuple):
    """Figures and verdicts computed from a stream."""

    figures: dict[str, Figure]
    verdicts: dict[str, Verdict]
    kl_is_lower_bound: bool
    contrast: Contrast
    degrees: float
    """Degrees of freedom of the standard errors."""


def read_figures(
    chosen: Sequence[ReadOut], stream: Stream, resamples: int, margins: Mapping[str, float] | None = None
) -> ReadFigures:
    """Compute figures and verdicts from a stream; the read-outs include the core.

    Raises:
        ValueError: As :func:`score`.
    """
    stream.read_side(min_samples=max(one.min_samples for one in chosen))  # checked at once, not for each read-out
    values, lower_bound = _read_fields(chosen, stream, resamples)
    contrast = stream.contrast("score")
    verdicts = judge(contrast, margins)
    degrees = effective_number(stream.evaluated["count"]) - 1
    figures: dict[str, Figure] = {}
    for one in chosen:
        figures |= to_figures(one.fields, values, degrees, contrast.unknown)
    return ReadFigures(figures, verdicts, lower_bound, contrast, degrees)


def metric_names() -> list[str]:
    """List the names that ``score`` takes as metrics beside ``"all"``."""
    return sorted(set(read_outs()) - set(CORE) | {CORE[0]})


def list_uncertainty_fields() -> set[str]:
    """List the figures that are the error of another one, or an end of its interval."""
    fields = [field for one in read_outs().values() for field in one.fields]
    return {name for field in fields for name in (field.error, *(field.interval or ())) if name is not None}


def list_core_fields() -> set[str]:
    """List the figures that every score has."""
    return {field.name for name in CORE for field in read_outs()[name].fields}


def choose_read_outs(names: Sequence[str], *, paired: bool = False, with_references: bool = False) -> list[ReadOut]:
    """Return the read-outs of the core and of the names, and for pairs those of pairs.

    Args:
        names: Names of read-outs, or ``"all"``.
        paired: Whether each sample has partners of the other modality.
        with_references: Whether each has reference captions.

    Raises:
        ValueError: If a name is unknown, cannot be imported, or needs partners that the samples lack.
    """
    known, failed = read_outs(), failed_read_outs()

    def possible(one: ReadOut) -> bool:
        return (paired or not one.needs.partners) and (with_references or not one.needs.references)

    for name in names:
        if name in failed:
            raise ValueError(f"metrics: {failed[name]}.")
        if name != "all" and name not in known:
            expected = f"expected 'all' or {', '.join(metric_names())}"
            raise ValueError(f"metrics: {name!r} is unknown: {expected}{suggest_metric(name, known, CORE)}")
        if name != "all" and not possible(known[name]):
            raise ValueError(
                f"metrics: {name!r} needs {'reference captions' if paired else 'images and captions together'}; give "
                f"{'--caption-references' if paired else '--images and --captions'}, or a source of paired_source."
            )
    wanted = known if "all" in names else dict.fromkeys([*CORE, *names])
    listed = [known[name] for name in dict.fromkeys([*CORE, *wanted, *list_pair_metrics()])]
    return [one for one in listed if possible(one)]


def list_pair_metrics() -> list[str]:
    """List the read-outs of images with captions."""
    return [name for name, one in read_outs().items() if one.needs.partners]


def _stream_in(
    source: Source, stream: Stream, chosen: Sequence[ReadOut], hold: bool
) -> tuple[SampleValues, list[tuple[Tensor, Tensor]]]:
    """Take every batch in; what there is of each sample falls out of the same pass."""
    ids = Names()
    norms, conformities = array("d"), array("d")
    columns: dict[str, list[float | str]] = {}
    held: list[tuple[Tensor, Tensor]] = []
    assert stream.reference is not None
    for batch in source:
        found = stream.update(
            batch.embeddings,
            groups=batch.groups,
            ids=batch.ids,
            placed=batch.placed,
            partners=batch.partners,
            values=True,
        )
        assert found is not None
        assert found.conformity is not None
        ids.extend(batch.ids)
        norms.frombytes(found.norm.cpu().numpy().tobytes())
        conformities.frombytes(found.conformity.cpu().numpy().tobytes())
        if hold:
            buckets = pair_buckets(batch.embeddings, batch.groups, None if batch.placed else batch.ids)
            held.append((batch.embeddings.float().cpu(), buckets.cpu()))
        if bool(torch.isfinite(found.norm).all()):  # else the read-out reports the error
            for one in chosen:
                for name, values in one.columns(Batch(batch.embeddings, batch.partners), stream.reference).items():
                    columns.setdefault(name, []).extend(values)
    none = torch.empty(0, dtype=torch.float64)
    length, towards = (torch.frombuffer(part, dtype=torch.float64) if part else none for part in (norms, conformities))
    return SampleValues(ids, length, towards, columns), held


def _look_elsewhere(taken: AccumulatedSamples, against: Iterable[Source]) -> NearestElsewhere:
    """Find the nearest row of each sample in further sets."""
    embeddings, buckets = (torch.cat(part) for part in zip(*taken.held, strict=True))
    found = NearestElsewhere(embeddings, buckets)
    for other in against:
        check_source(other)
        other.provenance.check(taken.provenance)
        for batch in other:
            check_same_dim(batch.embeddings, embeddings.shape[1], "against", "the samples")
            found.update(batch.embeddings, list(batch.ids))
    if not found.count:
        raise ValueError("against: expected a source at least, got none.")
    return found


@full_precision
def _read_fields(chosen: Sequence[ReadOut], stream: Stream, resamples: int) -> tuple[dict[str, Tensor], bool]:
    """Compute every field, and whether the KL is only a lower bound."""
    values: dict[str, Tensor] = {}
    for one in chosen:
        values |= {name: torch.tensor(float("nan")) for name in one.names(compared=True)}
        found = one.figures(stream, resamples=resamples)
        if unknown := set(found) - {field.name for field in one.fields}:
            raise ValueError(f"metrics: {one.name!r} returned {', '.join(sorted(unknown))}, not among its fields.")
        values |= found
    return values, bool(values.pop("kl_is_lower_bound"))


def write_per_sample(path: Path | str, result: Score) -> None:
    """Write id, conformity, norm and rank of every sample as CSV, from the most to the least typical.

    Metrics may add columns, such as the id of the nearest reference row.

    Raises:
        OSError: If the file cannot be written.
    """
    order = result.conformities.argsort(descending=True, stable=True)
    further = result.columns.values()

    def rows() -> Iterator[list[float | str]]:
        for part in order.split(ROWS_AT_ONCE):  # Python numbers would take ten times the memory
            own = zip(part.tolist(), result.conformities[part].tolist(), result.norms[part].tolist(), strict=True)
            for row, conformity, norm in own:
                rank = next(ranks)
                yield [result.ids[row], conformity, norm, rank, *(column[row] for column in further)]

    ranks = count(1)
    write_table(path, ["id", "conformity", "norm", "rank", *result.columns], rows())
