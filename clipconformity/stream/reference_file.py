"""Reference sets on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipconformity.data.embeddings import MADE_OF
from clipconformity.data.formats import REFERENCE
from clipconformity.data.strict_json import to_json
from clipconformity.data.untrusted import shown
from clipconformity.provenance import Provenance
from clipconformity.stream.merging import Piece, pieces_as_lists, pieces_from_lists
from clipconformity.stream.moments import SAMPLE, Moments, State
from clipconformity.stream.reference import ReferenceSet, reference_layout
from clipconformity.stream.state_file import (
    TEXT,
    StateKind,
    check_whole,
    checksum,
    field_damage,
    read_entries,
    read_state,
    sample_damage,
    shape_damage,
    state_shapes,
    sum_damage,
    write_state,
)

KIND = StateKind(
    REFERENCE,
    "reference file",
    "reference set",
    "build one with `clipconformity reference`",
    "build it again with `clipconformity reference`",
)
FORMAT_VERSION = "3"
OLDER_VERSION = "2"
"""The same without the second moment of the unit vectors: it serves every metric that does without."""
DERIVED = "sample_values"
"""Norms of the sampled rows: part of the state, and not of the file."""


def write_reference(path: Path | str, reference: ReferenceSet) -> None:
    """Write a reference; the file appears whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    version = FORMAT_VERSION if reference.moments.layout.unit_second_moment else OLDER_VERSION
    names = reference.moments.names
    ids = [names.get(label, "") for label in reference.sketch.ids.tolist()] if names else None
    about = {"format": KIND.format, "format_version": version}
    about |= {"reference": to_json(reference.describe()), "ids": to_json(ids)}
    about |= {MADE_OF: to_json(pieces_as_lists(reference.made_of))} if reference.made_of else {}
    write_state(path, _tensors(reference), about)


def reference_identity(reference: ReferenceSet) -> str:
    """Tell a reference by its statistics and rows: equal for one and its saved copy, whatever it is called."""
    return checksum(_tensors(reference), {})


def same_reference(one: ReferenceSet, other: ReferenceSet) -> bool:
    """Whether two references are one set, as two copies of a file are."""
    return one is other or (one.count == other.count and reference_identity(one) == reference_identity(other))


def _tensors(reference: ReferenceSet) -> dict[str, Tensor]:
    sample = dict(zip(SAMPLE, reference.sketch, strict=True))
    tensors = {name: reference.moments[name] for name in reference.moments.layout.shapes()} | sample
    del tensors[DERIVED]
    return tensors


def read_reference(path: Path | str) -> ReferenceSet:
    """Read what :func:`write_reference` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a reference, is damaged, or comes from another format.
    """
    path = Path(path)
    tensors, metadata = read_state(path, KIND)
    _check_version(path, metadata.get("format_version"))
    check_whole(path, KIND, tensors, metadata)
    about, ids = read_entries(path, metadata, "reference", "ids")
    whole = metadata["format_version"] == FORMAT_VERSION
    damage = next(_damage(about, ids, tensors, whole), None)
    if damage is not None:
        raise ValueError(f"{path}: damaged: {damage}.")
    return _built(about, ids, tensors, whole, read_pieces(path, metadata))


def write_part(path: Path, moments: Moments, further: Mapping[str, str]) -> None:
    """Write what some of the samples of a reference came to, with entries for the metadata; whole or not at all."""
    sketch = moments.sketch()
    tensors = {name: moments[name] for name in moments.layout.shapes()} | dict(zip(SAMPLE, sketch, strict=True))
    ids = [moments.names.get(label, "") for label in sketch.ids.tolist()] if moments.names else None
    layout = [moments.layout.dim, moments.layout.max_samples]
    write_state(path, tensors, {"format": KIND.format, "layout": to_json(layout), "ids": to_json(ids), **further})


def read_part(path: Path) -> Moments:
    """Read what :func:`write_part` wrote; samples may be too few, or bad, which is told of all of them together.

    Raises:
        ValueError: If it cannot be read, or its checksum does not fit.
    """
    tensors, metadata = read_state(path, KIND)
    check_whole(path, KIND, tensors, metadata)
    size, ids = read_entries(path, metadata, "layout", "ids")
    layout = reference_layout(*size)
    state: State = {name: tensors[name] for name in layout.shapes()} | {name: [tensors[name]] for name in SAMPLE}
    return Moments(layout, state, dict(zip(tensors["sample_ids"].tolist(), ids or [], strict=False)))


def read_pieces(path: Path, metadata: Mapping[str, str]) -> tuple[Piece, ...]:
    """Read what a file says that it is made of.

    Raises:
        ValueError: If it is damaged.
    """
    if MADE_OF not in metadata:
        return ()
    try:
        return pieces_from_lists(*read_entries(path, metadata, MADE_OF))
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}.") from None


def _check_version(path: Path, version: str | None) -> None:
    """Refuse the formats before and after this one."""
    if version == "1":
        raise ValueError(
            f"{path}: reference format 1, of version 0.1, which this version does not read; build it again with "
            f"`clipconformity reference ... -o {path.name}`."
        )
    if version not in (OLDER_VERSION, FORMAT_VERSION):
        raise ValueError(
            f"{path}: reference format {shown(version)}, this version reads {OLDER_VERSION} and "
            f"{FORMAT_VERSION}; use a newer clipconformity."
        )


def _built(
    about: dict[str, Any], ids: list[str] | None, tensors: dict[str, Tensor], whole: bool, made_of: Sequence[Piece] = ()
) -> ReferenceSet:
    layout = reference_layout(about["embed_dim"], about["max_samples"], unit_second_moment=whole)
    state: State = {name: tensors[name] for name in layout.shapes()}
    norms = torch.linalg.vector_norm(tensors["sample_rows"].double(), dim=1)
    state |= {name: [norms[:, None] if name == DERIVED else tensors[name]] for name in SAMPLE}
    names = dict(zip(tensors["sample_ids"].tolist(), ids or [], strict=False))
    provenance = Provenance(about["spec"], about["encoder_id"], about["modality"])
    return ReferenceSet(Moments(layout, state, names), provenance, dataset=about["dataset"], made_of=made_of)


def _damage(about: Any, ids: Any, tensors: dict[str, Tensor], whole: bool) -> Iterator[str]:
    """Say what no reference has; what comes later may rest on what comes before."""
    yield from field_damage(about, {"dataset": TEXT})
    layout = reference_layout(about["embed_dim"], about["max_samples"], unit_second_moment=whole)
    expected = state_shapes(layout, tensors)
    del expected[DERIVED]
    yield from shape_damage(about, tensors, expected)
    yield from sample_damage(about, tensors)
    if about["grouped"] and len(tensors["sample_groups"].unique()) < 2:
        yield "sample_groups: all rows are of one group"
    kept = len(tensors["sample_keys"])
    if ids is not None and (
        not isinstance(ids, list) or len(ids) != kept or not all(isinstance(one, str) for one in ids)
    ):
        yield "ids are not one string for each sampled row"
    yield from sum_damage(about, tensors)
