"""Reference sets on disk: written whole, and told from a damaged file before they are used.

The format is safetensors: the sums of the stream and its row sample by name, and what the samples are as JSON, with a
checksum over all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipconformity.data.files import write_tensors
from clipconformity.data.strict_json import to_json
from clipconformity.data.untrusted import check_input, shown
from clipconformity.functional.validation import MAX_NORM, MIN_NORM
from clipconformity.provenance import MODALITIES, Provenance
from clipconformity.stream.moments import SAMPLE, SECOND_MOMENTS, Moments, State
from clipconformity.stream.reference import ReferenceSet, reference_layout

FORMAT = "clipconformity-reference"
FORMAT_VERSION = "3"
OLDER_VERSION = "2"
"""The same without the second moment of the unit vectors: it serves every metric that does without."""
CHECKSUM = "checksum"
"""Entry of the metadata that holds it."""
DERIVED = "sample_values"
"""Norms of the sampled rows: part of the state, and not of the file."""
MAX_COUNT = 2**53
"""Counts are kept in float64, which tells whole numbers apart below this."""
ROUNDING = 1e-6
"""Rows are stored in float32, the statistics in float64."""


def write_reference(path: Path | str, reference: ReferenceSet) -> None:
    """Write a reference; the file appears whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    from clipconformity import __version__

    sample = dict(zip(SAMPLE, reference.sketch, strict=True))
    tensors = {name: reference.moments[name] for name in reference.moments.layout.shapes()} | sample
    del tensors[DERIVED]
    version = FORMAT_VERSION if reference.moments.layout.unit_second_moment else OLDER_VERSION
    about = {"format": FORMAT, "format_version": version, "library_version": __version__}
    names = reference.moments.names
    ids = [names.get(label, "") for label in reference.sketch.ids.tolist()] if names else None
    about |= {"reference": to_json(reference.describe()), "ids": to_json(ids)}
    write_tensors(path, tensors, about | {CHECKSUM: checksum(tensors, about)})


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Checksum over the name, type, shape and bytes of every tensor, and over every entry of the metadata but itself.

    It tells a file that was damaged from a whole one, and is no signature: who changes a file can make it anew.
    """
    digest = hashlib.blake2b(digest_size=32)
    entries = sorted((name, text) for name, text in metadata.items() if name != CHECKSUM)
    digest.update(json.dumps(entries).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # Of no dimension, a tensor cannot be seen as bytes.
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_reference(path: Path | str) -> ReferenceSet:
    """Read what :func:`write_reference` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a reference, is damaged, or comes from another format.
    """
    from safetensors import safe_open

    path = Path(path)
    check_input(path, "reference file; build one with `clipconformity reference`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # a damaged file makes its reader fail in any way
        raise ValueError(f"{path}: not a readable safetensors file ({' '.join(str(error).split())[:200]}).") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: not a reference set; build one with `clipconformity reference`.")
    _check_version(path, metadata.get("format_version"))
    if CHECKSUM not in metadata:
        raise ValueError(f"{path}: damaged: it has no checksum; build it again with `clipconformity reference`.")
    if metadata[CHECKSUM] != checksum(tensors, metadata):
        raise ValueError(
            f"{path}: damaged: its checksum does not fit its content; copy it again, or build it again with "
            "`clipconformity reference`."
        )
    try:
        about, ids = json.loads(metadata["reference"]), json.loads(metadata["ids"])
    except (KeyError, ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits too
        raise ValueError(f"{path}: damaged: its metadata cannot be read ({error}).") from None
    whole = metadata["format_version"] == FORMAT_VERSION
    damage = next(_damage(about, ids, tensors, whole), None)
    if damage is not None:
        raise ValueError(f"{path}: damaged: {damage}.")
    return _built(about, ids, tensors, whole)


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


def _built(about: dict[str, Any], ids: list[str] | None, tensors: dict[str, Tensor], whole: bool) -> ReferenceSet:
    layout = reference_layout(about["embed_dim"], about["max_samples"], unit_second_moment=whole)
    state: State = {name: tensors[name] for name in layout.shapes()}
    norms = torch.linalg.vector_norm(tensors["sample_rows"].double(), dim=1)
    state |= {name: [norms[:, None] if name == DERIVED else tensors[name]] for name in SAMPLE}
    names = dict(zip(tensors["sample_ids"].tolist(), ids or [], strict=False))
    provenance = Provenance(about["spec"], about["encoder_id"], about["modality"])
    return ReferenceSet(Moments(layout, state, names), provenance, dataset=about["dataset"])


def _damage(about: Any, ids: Any, tensors: dict[str, Tensor], whole: bool) -> Iterator[str]:
    """Say what no reference has; what comes later may rest on what comes before."""
    yield from _fields(about)
    yield from _shapes(about, tensors, whole)
    yield from _sample(about, ids, tensors)
    yield from _statistics(about, tensors)


def _fields(about: Any) -> Iterator[str]:
    text = (str, type(None))
    kinds: dict[str, tuple[type, ...]] = {"count": (int,), "embed_dim": (int,), "max_samples": (int,)}
    kinds |= {"spec": text, "modality": text, "dataset": text, "encoder_id": (dict, type(None))}
    kinds |= {"normalized": (bool,), "grouped": (bool,)}
    if not isinstance(about, dict) or set(about) != set(kinds):
        yield f"expected the fields {', '.join(sorted(kinds))}"
        return
    for name, kind in kinds.items():
        if type(about[name]) not in kind:  # not isinstance: True is an int
            yield f"{name} is {shown(about[name])}"
    if not all(isinstance(part, str) for part in (about["encoder_id"] or {}).values()):
        yield f"encoder_id is {shown(about['encoder_id'])}; expected strings"
    if about["modality"] not in (*MODALITIES, None):
        yield f"modality is {shown(about['modality'])}; expected 'image', 'text' or null"
    if not 2 <= about["count"] < MAX_COUNT:
        yield f"count is {shown(about['count'])}; expected at least 2 and less than 2^53"
    if about["max_samples"] < 2:
        yield f"max_samples is {shown(about['max_samples'])}; expected at least 2"
    if not 1 <= about["embed_dim"] <= 2**20:
        yield f"embed_dim is {shown(about['embed_dim'])}; expected at least 1"


def _shapes(about: dict[str, Any], tensors: dict[str, Tensor], whole: bool) -> Iterator[str]:
    layout = reference_layout(about["embed_dim"], about["max_samples"], unit_second_moment=whole)
    expected = {name: (torch.float64, shape) for name, shape in layout.shapes().items()}
    kept = tensors["sample_keys"].numel() if "sample_keys" in tensors else 0
    for name, part in zip(SAMPLE, layout.empty_sample(torch.device("cpu")), strict=True):
        if name != DERIVED:
            expected[name] = (part.dtype, (kept, *part.shape[1:]))
    if set(tensors) != set(expected):
        yield f"expected the tensors {', '.join(sorted(expected))}"
        return
    if not 0 < kept <= min(about["count"], about["max_samples"]):
        yield f"sample_keys: {kept} rows of {about['count']} are kept, of which at most {about['max_samples']} may be"
    for name, (dtype, shape) in expected.items():
        if tensors[name].dtype != dtype:
            yield f"{name} is of {tensors[name].dtype}; expected {dtype}"
        if tuple(tensors[name].shape) != shape or not bool(torch.isfinite(tensors[name]).all()):
            yield f"{name} is not a finite tensor of shape {shape}"


def _sample(about: dict[str, Any], ids: Any, tensors: dict[str, Tensor]) -> Iterator[str]:
    keys, copies = tensors["sample_keys"], tensors["sample_copies"]
    if bool(keys[0] < 0) or bool((keys[1:] <= keys[:-1]).any()):
        yield "sample_keys do not rise from 0 on, each above the last"
    total = sum(copies.tolist())  # of Python, which does not overflow
    if bool((copies < 1).any()) or total > about["count"]:
        yield f"sample_copies are {total} rows, or less than 1 somewhere; the reference has {about['count']}"
    if len(keys) < about["max_samples"] and total != about["count"]:
        yield f"sample_copies are {total} rows of {about['count']}, though all of them were to be kept"
    norms = torch.linalg.vector_norm(tensors["sample_rows"].double(), dim=1)
    if bool((norms == 0).any()):
        yield "sample_rows hold a zero row"
    if bool((norms < MIN_NORM * (1 - ROUNDING)).any()) or bool((norms > MAX_NORM * (1 + ROUNDING)).any()):
        yield f"sample_rows hold a row of norm outside {MIN_NORM:g} to {MAX_NORM:g}"
    if about["grouped"] and len(tensors["sample_groups"].unique()) < 2:
        yield "sample_groups: all rows are of one group"
    if ids is not None and (
        not isinstance(ids, list) or len(ids) != len(keys) or not all(isinstance(one, str) for one in ids)
    ):
        yield "ids are not one string for each sampled row"


def _statistics(about: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[str]:
    count, unit_sum = about["count"], tensors["unit_sum"]
    if bool((tensors["count"] < 0).any()) or float(tensors["count"].sum()) != count:
        yield f"count: the buckets hold {float(tensors['count'].sum()):g} rows of {count}"
    for name, flag in (("normalized", about["normalized"]), ("grouped", about["grouped"])):
        if (float(tensors[name]) == count) != flag or not 0 <= float(tensors[name]) <= count:
            yield f"{name} is {float(tensors[name]):g} of {count} rows, and said to be {flag}"
    for name in ("bad", "out_of_range"):
        if float(tensors[name]) != 0:
            yield f"{name} is {float(tensors[name]):g}; a reference has no such rows"
    if bool((torch.linalg.vector_norm(unit_sum, dim=1) > tensors["count"] * (1 + ROUNDING)).any()):
        yield "unit_sum is longer than the unit vectors that it is made of"
    length, square = tensors["norm_sum"], tensors["norm_square_sum"]
    if bool((length < 0).any()) or bool((length.square() > tensors["count"] * square * (1 + ROUNDING)).any()):
        yield "norm_sum does not fit norm_square_sum"
    if bool((square > tensors["count"] * MAX_NORM**2 * (1 + ROUNDING)).any()):
        yield f"norm_square_sum is of norms beyond {MAX_NORM:g}"
    rows = tensors["sample_rows"].double()
    towards = rows @ unit_sum.sum(0) / torch.linalg.vector_norm(rows, dim=1)
    cosines = (towards - 1) / (count - 1)  # mean cosine of each row to the others of the set
    if float(cosines.abs().max()) > 1 + ROUNDING:
        yield "unit_sum does not fit sample_rows: a conformity lies outside of [-1, 1]"
    yield from _covariance(count, tensors)


def _covariance(count: int, tensors: dict[str, Tensor]) -> Iterator[str]:
    unit_mean = tensors["unit_sum"].sum(0) / count
    means = {"second_moment": tensors["raw_sum"] / count, "unit_second_moment": unit_mean}
    powers = {"second_moment": float(tensors["norm_square_sum"].sum()) / count, "unit_second_moment": 1.0}
    for name in SECOND_MOMENTS:
        if name not in tensors:  # of the older format
            continue
        second = tensors[name] / count
        if bool(((second - second.T).abs() > 1e-9 * second.diagonal().abs().max()).any()):
            yield f"{name} is not symmetric"
        # A spread far below the mean is known up to the rounding of the mean's square.
        if bool((second.diagonal() < means[name].square() * (1 - 1e-9)).any()):
            yield f"{name} has a negative variance on its diagonal"
        bound = second.diagonal().clamp(min=0).sqrt()
        if bool((second.abs() > (1 + 1e-9) * torch.outer(bound, bound) + 1e-12 * float(bound.max()) ** 2).any()):
            yield f"{name} has an entry beyond what its diagonal allows"
        if abs(float(second.trace()) - powers[name]) > ROUNDING * powers[name]:
            yield f"{name} does not fit {'norm_square_sum' if name == 'second_moment' else 'count'}"
