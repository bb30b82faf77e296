"""Reference sets on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipconformity.data.addresses import Place, parse_place
from clipconformity.data.embeddings import MADE_OF
from clipconformity.data.formats import REFERENCE
from clipconformity.data.strict_json import to_json
from clipconformity.data.untrusted import format_value
from clipconformity.provenance import Provenance
from clipconformity.stream.layout import SAMPLE, State
from clipconformity.stream.merging import Piece, format_pieces, parse_pieces
from clipconformity.stream.moments import Moments
from clipconformity.stream.reference import ReferenceSet, reference_layout
from clipconformity.stream.state_file import (
    TEXT,
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

KIND = StateKind(
    REFERENCE,
    "reference file",
    "reference set",
    "build one with `clipconformity reference`",
    "build it again with `clipconformity reference`",
)
FORMAT_VERSION = "4"
OLDER_VERSIONS = ("1", "2", "3")
"""Formats without buckets, or whose buckets and keys are by another hash of the rows."""
DERIVED = "sample_values"
"""Norms of the sampled rows: part of the state, but not of the file."""


def write_reference(path: Path | str, reference: ReferenceSet) -> None:
    """Write a reference; the file appears whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    names = reference.moments.names
    ids = [names.get(label, "") for label in reference.sketch.ids.tolist()] if names else None
    about = {"format": KIND.format, "format_version": FORMAT_VERSION}
    about |= {"reference": to_json(reference.describe()), "ids": to_json(ids)}
    about |= {MADE_OF: to_json(format_pieces(reference.made_of))} if reference.made_of else {}
    write_state(path, _list_tensors(reference), about)


def reference_identity(reference: ReferenceSet) -> str:
    """Identify a reference by a hash of its statistics and rows: equal for a saved copy, whatever its name."""
    return reference.cache("identity", lambda: compute_checksum(_list_tensors(reference), {}))


def same_reference(one: ReferenceSet, other: ReferenceSet) -> bool:
    """Whether two references hold the same set, as two copies of a file do."""
    return one is other or (one.count == other.count and reference_identity(one) == reference_identity(other))


def _list_tensors(reference: ReferenceSet) -> dict[str, Tensor]:
    sample = dict(zip(SAMPLE, reference.sketch, strict=True))
    tensors = {name: reference.moments.get_sum(name) for name in reference.moments.layout.shapes()} | sample
    del tensors[DERIVED]
    return tensors


def read_reference(path: Place | str) -> ReferenceSet:
    """Read a file of :func:`write_reference`.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If a server does not give it.
        ValueError: If it is not a reference, is damaged, or comes from another format.
        ImportError: If what reads an address is not installed.
    """
    path = parse_place(path)
    tensors, metadata = read_state(path, KIND)
    _check_version(path, metadata.get("format_version"))
    check_whole(path, KIND, tensors, metadata)
    about, ids = read_entries(path, metadata, "reference", "ids")
    damage = next(_find_damage(about, ids, tensors), None)
    if damage is not None:
        raise ValueError(f"{path}: damaged: {damage}.")
    return _build_reference(about, ids, tensors, read_pieces(path, metadata))


def write_part(path: Path, moments: Moments, further: Mapping[str, str]) -> None:
    """Write the state of some of the samples of a reference; the file appears whole or not at all.

    Unlike a reference it may be of no samples, of one, or of bad ones: this is judged once all parts are merged.

    Args:
        path: The file.
        moments: Accumulated moments, as of ``reference_layout``.
        further: Entries for the metadata.

    Raises:
        OSError: If it cannot be written.
    """
    sketch = moments.sketch()
    tensors = {name: moments.get_sum(name) for name in moments.layout.shapes()} | dict(zip(SAMPLE, sketch, strict=True))
    ids = [moments.names.get(label, "") for label in sketch.ids.tolist()] if moments.names else None
    layout = [moments.layout.dim, moments.layout.max_samples]
    write_state(path, tensors, {"format": KIND.format, "layout": to_json(layout), "ids": to_json(ids), **further})


def read_part(path: Path) -> Moments:
    """Read a file of :func:`write_part`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or is damaged.
    """
    tensors, metadata = read_state(path, KIND)
    check_whole(path, KIND, tensors, metadata)
    size, ids = read_entries(path, metadata, "layout", "ids")
    layout = reference_layout(*size)
    state: State = {name: tensors[name] for name in layout.shapes()} | {name: [tensors[name]] for name in SAMPLE}
    return Moments(layout, state, dict(zip(tensors["sample_ids"].tolist(), ids or [], strict=False)))


def read_pieces(path: Place, metadata: Mapping[str, str]) -> tuple[Piece, ...]:
    """Read what a file says that it is made of.

    Raises:
        ValueError: If it is damaged.
    """
    if MADE_OF not in metadata:
        return ()
    try:
        return parse_pieces(*read_entries(path, metadata, MADE_OF))
    except ValueError as error:
        raise ValueError(f"{path}: damaged: {error}.") from None


def _check_version(path: Place, version: str | None) -> None:
    """Refuse older and newer formats."""
    if version in OLDER_VERSIONS:
        raise ValueError(
            f"{path}: reference format {version}, of an earlier version, which this version does not read; build it "
            f"again with `clipconformity reference ... -o {path.name}`."
        )
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: reference format {format_value(version)}, this version reads {FORMAT_VERSION}; use a newer "
            "clipconformity."
        )


def _build_reference(
    about: dict[str, Any], ids: list[str] | None, tensors: dict[str, Tensor], made_of: Sequence[Piece] = ()
) -> ReferenceSet:
    layout = reference_layout(about["embed_dim"], about["max_samples"])
    state: State = {name: tensors[name] for name in layout.shapes()}
    norms = torch.linalg.vector_norm(tensors["sample_rows"].double(), dim=1)
    state |= {name: [norms[:, None] if name == DERIVED else tensors[name]] for name in SAMPLE}
    names = dict(zip(tensors["sample_ids"].tolist(), ids or [], strict=False))
    provenance = Provenance(about["spec"], about["encoder_id"], about["modality"])
    return ReferenceSet(Moments(layout, state, names), provenance, dataset=about["dataset"], made_of=made_of)


def _find_damage(about: Any, ids: Any, tensors: dict[str, Tensor]) -> Iterator[str]:
    """List damage of a reference; later checks may rely on earlier ones."""
    yield from find_field_damage(about, {"dataset": TEXT})
    layout = reference_layout(about["embed_dim"], about["max_samples"])
    expected = list_state_shapes(layout, tensors)
    del expected[DERIVED]
    yield from find_shape_damage(about, tensors, expected)
    yield from find_sample_damage(about, tensors)
    if about["grouped"] and len(tensors["sample_groups"].unique()) < 2:
        yield "sample_groups: all rows are of one group"
    kept = len(tensors["sample_keys"])
    if ids is not None and (
        not isinstance(ids, list) or len(ids) != kept or not all(isinstance(one, str) for one in ids)
    ):
        yield "ids are not one string for each sampled row"
    yield from find_sum_damage(about, tensors)
