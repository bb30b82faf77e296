"""Saved scores: the state behind their figures, so that they can be compared as if scored again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipconformity.data.addresses import Place, parse_place
from clipconformity.data.embeddings import MADE_OF
from clipconformity.data.formats import SCORE
from clipconformity.data.names import Names
from clipconformity.data.strict_json import to_json
from clipconformity.data.untrusted import format_value
from clipconformity.evaluation.results import Score, check_margins
from clipconformity.evaluation.scoring import AccumulatedSamples, SampleValues, choose_read_outs, join_taken
from clipconformity.evaluation.scoring import read_score as read_figures
from clipconformity.functional.clip_score import WEIGHT
from clipconformity.functional.linalg import units
from clipconformity.provenance import Provenance
from clipconformity.stream.alignment import SUMS, MeanScore
from clipconformity.stream.layout import SAMPLE, SECOND_MOMENTS, Layout, State
from clipconformity.stream.merging import Merging, Piece, format_pieces, list_pieces
from clipconformity.stream.moments import Moments, assign_buckets
from clipconformity.stream.readouts import Needs, ReadOut
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.reference_file import read_pieces, reference_identity
from clipconformity.stream.row_sample import hash_labels
from clipconformity.stream.state_file import (
    ROUNDING,
    StateKind,
    check_whole,
    compute_checksum,
    find_field_damage,
    find_sample_damage,
    find_shape_damage,
    find_sum_damage,
    list_state_shapes,
    read_entries,
    read_state,
    write_state,
)
from clipconformity.stream.stream import EVALUATED, Stream

KIND = StateKind(
    SCORE,
    "saved score",
    "saved score",
    "make one with `clipconformity score --save`",
    "save it again with `clipconformity score --save`",
)
FORMAT_VERSION = "2"
PAIRS = {"clip": "clip_scores", "ref_clip": "ref_clip_scores"}
"""Sums over pairs: prefix of their tensors, and attribute of the stream."""
FLAGS = {"paired": "clip", "with_references": "ref_clip"}
"""Metadata key that tells whether there are such sums."""
MAX_PAIR_SCORE = {"clip": 100.0, "ref_clip": 100 * 2 * WEIGHT / (1 + WEIGHT)}
"""The most that one pair can have: of RefCLIPScore the harmonic mean of its weight and 1."""
HELD = ("held_rows", "held_buckets")
"""Tensors of the rows that are to be compared with further sets; in parts alone."""
COLUMN = "column "
"""Prefix of the tensors of columns of numbers."""
FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("metrics", "columns"), (list,)),
    **dict.fromkeys(("second_moment", "unit_second_moment", "paired", "with_references"), (bool,)),
    **dict.fromkeys(("skipped", "truncated"), (int,)),
    "reference": (dict,),
}
"""Metadata beside those of every state: names of metrics and columns, flags, and the reference."""


def write_score(path: Path | str, score: Score) -> None:
    """Write a score; the file appears whole or not at all.

    Raises:
        OSError: If it cannot be written.
        ValueError: If the score was not made by ``score``.
    """
    if score.stream is None:
        raise ValueError("score: expected a Score that score() gave, which keeps its samples.")
    rows = SampleValues(
        score.ids, score.norms, score.conformities, {name: list(one) for name, one in score.columns.items()}
    )
    taken = AccumulatedSamples(score.stream, rows, score.provenance, (), score.remarks, made_of=score.made_of)
    write_taken(path, taken, score.metrics)


def write_taken(
    path: Path | str, taken: AccumulatedSamples, metrics: Sequence[str], further: Mapping[str, str] | None = None
) -> None:
    """Write samples that were taken in to be scored, with further entries of the metadata; whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    moments, rows = taken.stream.evaluated.cpu(), taken.rows
    tensors = {name: moments.get_sum(name) for name in moments.layout.shapes()}
    tensors |= dict(zip(SAMPLE, moments.sketch(), strict=True))
    tensors |= {"norms": rows.norms.double(), "conformities": rows.conformities.double()}
    for start, name in PAIRS.items():
        pairs: MeanScore = getattr(taken.stream, name)
        if pairs.total > 0:
            tensors |= {f"{start}_{part}": sums.cpu() for part, sums in pairs.state.items()}
    words = {
        name: [*map(str, column)] for name, column in rows.columns.items() if any(isinstance(x, str) for x in column)
    }
    numbers = {name: column for name, column in rows.columns.items() if name not in words}
    tensors |= {COLUMN + name: torch.tensor(column, dtype=torch.float64) for name, column in numbers.items()}
    if taken.held:
        tensors |= dict(zip(HELD, (torch.cat(part) for part in zip(*taken.held, strict=True)), strict=True))
    texts = {"ids": to_json([*map(str, rows.ids)]), "words": to_json(words)}
    about = _describe_samples(taken, moments, metrics) | {name: f"{x}_pair_bad" in tensors for name, x in FLAGS.items()}
    texts |= {"score": to_json(about)} | ({MADE_OF: to_json(format_pieces(taken.made_of))} if taken.made_of else {})
    write_state(path, tensors, {"format": KIND.format, "format_version": FORMAT_VERSION} | texts | dict(further or {}))


def _describe_samples(taken: AccumulatedSamples, moments: Moments, metrics: Sequence[str]) -> dict[str, Any]:
    """What the file says of the samples, but for whether there are pairs."""
    return taken.provenance.describe() | {
        "count": int(moments.total),
        "embed_dim": moments.layout.dim,
        "max_samples": moments.layout.max_samples,
        "normalized": moments.normalized,
        "grouped": moments.grouped,
        "metrics": [*metrics],
        "columns": [*taken.rows.columns],
        # Of what was skipped the number alone: the reasons name files of this machine.
        "skipped": taken.remarks.get("skipped", {}).get("count", 0),
        "truncated": taken.remarks.get("truncated", 0),
        "reference": _describe_reference(taken.stream.require_reference("score")),
        **{name: getattr(moments.layout, name) for name in SECOND_MOMENTS},
    }


def _describe_reference(reference: ReferenceSet) -> dict[str, Any]:
    """Describe a reference for the file: its checksum, and what it is of for a reader."""
    return {"identity": reference_identity(reference)} | reference.describe()


def read_score(
    path: Place | str,
    reference: ReferenceSet,
    *,
    resamples: int = 1000,
    metrics: Sequence[str] | None = None,
    margins: Mapping[str, float] | None = None,
    by: Mapping[str, str] | None = None,
) -> Score:
    """Read what :func:`write_score` wrote, and its figures out of it; arguments and errors as of ``Score.load``."""
    return read_scores([path], reference, resamples=resamples, metrics=metrics, margins=margins, by=by)


def read_scores(
    paths: Sequence[Place | str],
    reference: ReferenceSet,
    *,
    resamples: int = 1000,
    metrics: Sequence[str] | None = None,
    margins: Mapping[str, float] | None = None,
    by: Mapping[str, str] | None = None,
) -> Score:
    """Read files of shards, or of different samples, as one score; arguments and errors as of ``Score.load``.

    Raises:
        ValueError: If two of them hold the same samples, or differ in what they are of.
    """
    check_margins(margins or {})
    saved = merge_saved(paths, reference)
    names = saved.metrics if metrics is None else metrics
    chosen = choose_read_outs(names, paired=saved.about["paired"], with_references=saved.about["with_references"])
    _check_needs(parse_place(paths[0]), saved.about, chosen)
    return read_figures(saved.taken, chosen, resamples=resamples, margins=margins, by=by)


class Saved(NamedTuple):
    """A saved score, before anything is read out."""

    taken: AccumulatedSamples
    about: Mapping[str, Any]
    """What the file says of the samples."""

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that it was made for."""
        return list(self.about["metrics"])


def merge_saved(paths: Sequence[Place | str], reference: ReferenceSet) -> Saved:
    """Read files of different samples as one, two at a time; the order in which shards are named changes nothing.

    Raises:
        ValueError: As :func:`read_scores`.
    """
    places = map(parse_place, paths)
    files = sorted(places, key=lambda path: [(one.work or "", one.share or 0) for one in _pieces(path)])
    merging: Merging[Saved] = Merging(_join, lambda saved: saved.taken.made_of, "saved scores")
    for path in files:
        merging.add(path, read_saved(path, reference))
    return merging.joined()


def _join(first: Saved, second: Saved) -> Saved:
    names = ("embed_dim", "normalized", "grouped", "metrics", "columns", *SECOND_MOMENTS, *FLAGS)
    for name in names:
        if first.about[name] != second.about[name]:
            raise ValueError(
                f"cannot merge saved scores of different {name}: {first.about[name]!r} and {second.about[name]!r}; "
                "score all shards with the same options."
            )
    Provenance.combine([first.taken.provenance, second.taken.provenance], "the saved scores")
    return Saved(join_taken(first.taken, second.taken), first.about)


def _pieces(path: Place) -> tuple[Piece, ...]:
    """What a file is made of, by its metadata alone."""
    return read_pieces(path, read_state(path, KIND, rows=False)[1])


def read_saved(path: Place | str, reference: ReferenceSet, *, part: bool = False) -> Saved:
    """Read what :func:`write_taken` wrote.

    Args:
        path: The file.
        reference: That the samples are compared with.
        part: Whether it is a part of samples, which may be too few, or bad: that is reported of all of them together.

    Raises:
        ValueError: If it is damaged, or of another reference.
    """
    path = parse_place(path)
    tensors, metadata = read_state(path, KIND)
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        older = version == "1"  # keys and buckets are by another hash of the rows
        raise ValueError(
            f"{path}: saved score of format {format_value(version)}, this version reads "
            f"{FORMAT_VERSION}; {'score the samples again' if older else 'use a newer clipconformity'}."
        )
    check_whole(path, KIND, tensors, metadata)
    about, ids, words = read_entries(path, metadata, "score", "ids", "words")
    if not part:
        _refuse(path, find_field_damage(about, FIELDS))
    _check_reference(path, about["reference"], reference)
    layout = reference.view(max_samples=about["max_samples"], rows=True, **{x: about[x] for x in SECOND_MOMENTS})
    if not part:
        _refuse(path, _find_damage(about, ids, words, tensors, layout))
    columns = {name: words[name] if name in words else tensors[COLUMN + name].tolist() for name in about["columns"]}
    names = Names()
    names.extend(ids)
    provenance = Provenance(about["spec"], about["encoder_id"], about["modality"])
    taken = AccumulatedSamples(
        _build_stream(about, ids, tensors, layout, reference),
        SampleValues(names, tensors["norms"], tensors["conformities"], columns),
        provenance,
        [] if part else reference.provenance.check(provenance),
        _read_remarks(about),
        [(tensors[HELD[0]], tensors[HELD[1]])] if HELD[0] in tensors else (),
        () if part else list_pieces(read_pieces(path, metadata), lambda: compute_checksum(tensors, {})),
    )
    return Saved(taken, about)


def _refuse(path: Place, damage: Iterator[str]) -> None:
    found = next(damage, None)
    if found is not None:
        raise ValueError(f"{path}: damaged: {found}.")


def _check_reference(path: Place, recorded: dict[str, Any], reference: ReferenceSet) -> None:
    """Refuse a reference other than the one that the samples were scored against."""
    here = _describe_reference(reference)
    if recorded.get("identity") != here["identity"]:
        raise ValueError(
            f"{path}: scored against {_name_reference(recorded)}, and this is {_name_reference(here)}; "
            "give the reference that it was scored against, or score the samples again."
        )


def _name_reference(reference: Mapping[str, Any]) -> str:
    """Name a reference by its dataset, size and start of its checksum."""
    recorded = [
        format_value(reference[name]) for name in ("dataset", "spec", "modality") if reference.get(name) is not None
    ]
    recorded.append(f"{format_value(reference.get('count'))} samples")
    return f"the reference {str(reference.get('identity'))[:12]!r} ({', '.join(recorded)})"


def _check_needs(path: Place, about: Mapping[str, Any], chosen: Sequence[ReadOut]) -> None:
    """Refuse read-outs whose state was not accumulated."""
    there = {"conformity", "rows", "reference", *(name for name in SECOND_MOMENTS if about[name])}
    there |= {"partners"} if about["paired"] else set()
    there |= {"references"} if about["with_references"] else set()
    words = {"second_moment": "second moments of the rows", "unit_second_moment": "second moments of the unit vectors"}
    for one in chosen:
        lacking = [name for name in Needs._fields if getattr(one.needs, name) and name not in there]
        if lacking:
            raise ValueError(
                f"{path}: metric {one.name!r} needs {' and '.join(words.get(name, name) for name in lacking)}, which "
                f"this saved score lacks; score the samples again with --metrics {one.name} --save, or leave it out."
            )


def _find_damage(
    about: dict[str, Any], ids: Any, words: Any, tensors: dict[str, Tensor], layout: Layout
) -> Iterator[str]:
    """List damage of a saved score; later checks may rely on earlier ones."""
    count = about["count"]
    if about["embed_dim"] != layout.dim:
        yield f"embed_dim is {about['embed_dim']}, and the reference's {layout.dim}"
    if not all(isinstance(name, str) for name in about["metrics"] + about["columns"]):
        yield "metrics or columns are not names"
    if min(about["skipped"], about["truncated"]) < 0:
        yield "skipped or truncated is below 0"
    if not _are_words(ids, count):
        yield f"ids are not one string for each of {count} samples"
    if not isinstance(words, dict) or not set(words) <= set(about["columns"]):
        yield "words are not columns"
    if not all(_are_words(column, count) for column in words.values()):
        yield f"words are not one string for each of {count} samples"
    expected = list_state_shapes(layout, tensors) | dict.fromkeys(("norms", "conformities"), (torch.float64, (count,)))
    for name, start in FLAGS.items():
        expected |= {f"{start}_{part}": (torch.float64, SUMS[part]) for part in SUMS if about[name]}
    numbers = {COLUMN + name: (torch.float64, (count,)) for name in about["columns"] if name not in words}
    yield from find_shape_damage(about, tensors, expected | numbers, any_value=numbers)
    yield from find_sample_damage(about, tensors)
    yield from find_sum_damage(about, tensors)
    yield from _find_value_damage(about, ids, tensors, layout)


def _are_words(column: Any, count: int) -> bool:
    return isinstance(column, list) and len(column) == count and all(isinstance(one, str) for one in column)


def _find_value_damage(
    about: Mapping[str, Any], ids: list[str], tensors: dict[str, Tensor], layout: Layout
) -> Iterator[str]:
    """List values of samples that do not fit their sums, or the rows."""
    count = tensors["count"]
    first, second = tensors["conformity_sum"], tensors["conformity_square_sum"]
    if bool((first.abs() > count * (1 + ROUNDING)).any()) or bool((second > count * (1 + ROUNDING)).any()):
        yield "conformity_sum is of conformities outside of [-1, 1]"
    if bool((first.square() > count * second * (1 + ROUNDING) + ROUNDING).any()):
        yield "conformity_sum does not fit conformity_square_sum"
    counts = tensors["conformity_counts"]
    if bool((counts < 0).any()) or not torch.equal(counts.sum(1), count):
        yield "conformity_counts do not fit count"
    for name, total in (("norms", tensors["norm_sum"].sum()), ("conformities", first.sum())):
        values = tensors[name]
        if float((values.sum() - total).abs()) > ROUNDING * float(values.abs().sum()):
            yield f"{name} do not fit their sum by buckets"
    rows, values = tensors["sample_rows"].double(), tensors["sample_values"]
    norms = torch.linalg.vector_norm(rows, dim=1)
    if bool(((values[:, 0] - norms).abs() > ROUNDING * norms).any()):
        yield "sample_values do not fit the norms of sample_rows"
    if bool(((values[:, 1] - _compute_conformities(rows, about, tensors, layout)).abs() > ROUNDING).any()):
        yield "sample_values do not fit the conformities of sample_rows to the reference"
    if not set(tensors["sample_ids"].tolist()) <= set(hash_labels(ids, len(ids), torch.device("cpu"), "ids").tolist()):
        yield "sample_ids are of other ids"
    for start in PAIRS:
        if f"{start}_pair_bad" in tensors:
            yield from _find_pair_damage(start, {name: tensors[f"{start}_{name}"] for name in SUMS}, about["count"])


def _compute_conformities(
    rows: Tensor, about: Mapping[str, Any], tensors: Mapping[str, Tensor], layout: Layout
) -> Tensor:
    """Compute the conformity of the sampled rows to the reference, ``(k,)``."""
    assert layout.direction is not None
    directions = units(rows)
    if about["grouped"] and layout.between is not None:
        return (directions * layout.between[assign_buckets(tensors["sample_groups"])]).sum(1)
    return directions @ layout.direction


def _find_pair_damage(start: str, sums: Mapping[str, Tensor], count: int) -> Iterator[str]:
    pairs, scores = sums["pair_count"], sums["pair_score_sum"]
    if bool((pairs < 0).any()) or float(pairs.sum()) != count or float(sums["pair_bad"]) != 0:
        yield f"{start}_pair_count is not of {count} pairs"
    if bool((scores < 0).any()) or bool((scores > MAX_PAIR_SCORE[start] * pairs * (1 + ROUNDING)).any()):
        yield f"{start}_pair_score_sum is of scores outside of 0 to {MAX_PAIR_SCORE[start]:.0f}"


def _build_stream(
    about: Mapping[str, Any], ids: list[str], tensors: dict[str, Tensor], layout: Layout, reference: ReferenceSet
) -> Stream:
    state: State = {name: tensors[name] for name in layout.shapes()}
    state |= {name: [tensors[name]] for name in SAMPLE}
    kept = set(tensors["sample_ids"].tolist())
    hashes = hash_labels(ids, len(ids), torch.device("cpu"), "ids").tolist()
    stream = Stream(
        {EVALUATED: layout},
        reference=reference,
        allow_normalized=about["normalized"],  # else there would be no score
        states={EVALUATED: state},
        names={EVALUATED: {label: name for label, name in zip(hashes, ids, strict=True) if label in kept}},
    )
    for start, name in PAIRS.items():
        if f"{start}_pair_bad" in tensors:
            setattr(stream, name, MeanScore({part: tensors[f"{start}_{part}"] for part in SUMS}))
    return stream


def _read_remarks(about: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"skipped": {"count": about["skipped"]}} if about["skipped"] else {}
    return found | ({"truncated": about["truncated"]} if about["truncated"] else {})
