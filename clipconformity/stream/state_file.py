"""Saved states of streams: written whole, and checked for damage before use.

The format is safetensors: the sums of the stream and its row sample by name, and a description of the samples as JSON,
with a checksum over all. References and saved scores share this code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipconformity.data.addresses import Place
from clipconformity.data.failures import find_remote_error
from clipconformity.data.files import write_tensors
from clipconformity.data.formats import KINDS, READERS, copy_header
from clipconformity.data.places import copy_here, look_up
from clipconformity.data.untrusted import format_value
from clipconformity.functional.validation import MAX_NORM, MIN_NORM
from clipconformity.provenance import MODALITIES
from clipconformity.stream.layout import SAMPLE, SECOND_MOMENTS, Layout

CHECKSUM = "checksum"
"""Metadata entry of the checksum."""
MAX_COUNT = 2**53
"""Limit of counts: float64 is exact for whole numbers below it."""
ROUNDING = 1e-6
"""Rows are stored in float32, the statistics in float64."""
TEXT = (str, type(None))
FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("count", "embed_dim", "max_samples"), (int,)),
    **dict.fromkeys(("spec", "modality"), TEXT),
    "encoder_id": (dict, type(None)),
    **dict.fromkeys(("normalized", "grouped"), (bool,)),
}
"""Fields on the samples in every such file, with their types."""


class StateKind(NamedTuple):
    """A kind of file that holds a state."""

    format: str
    """Its name in the metadata."""
    file: str
    noun: str
    first: str
    """How to make one."""
    again: str
    """How to make it again."""


def write_state(path: Path | str, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write a state with its checksum; the file appears whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    from clipconformity import __version__

    metadata = {"library_version": __version__, **about}
    write_tensors(path, tensors, metadata | {CHECKSUM: compute_checksum(tensors, metadata)})


def compute_checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Compute a checksum of every tensor's name, type, shape and bytes, and of all other metadata.

    It detects damage, and is not a signature: whoever changes a file can compute it again.
    """
    digest = hashlib.blake2b(digest_size=32)
    entries = sorted((name, text) for name, text in metadata.items() if name != CHECKSUM)
    digest.update(json.dumps(entries).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # A 0-dimensional tensor has no view as bytes.
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_state(path: Place, kind: StateKind, *, rows: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata; the version is looked at by who knows it, the checksum by :func:`check_whole`.

    Args:
        path: The file, here or at an address.
        kind: What it should be.
        rows: Whether tensors are read; else the metadata alone.

    Raises:
        FileNotFoundError: If there is no such file.
        OSError: If a server does not give it.
        ValueError: If it cannot be read, or is of another kind.
        ImportError: If what reads an address is not installed.
    """
    from safetensors import safe_open

    look_up(path, f"{kind.file}; {kind.first}")
    try:
        with (copy_here if rows else copy_header)(path) as local, safe_open(local, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in (file.keys() if rows else ())}
    except ImportError:
        raise
    except Exception as error:  # a damaged file makes its reader fail in any way
        if (failure := find_remote_error(error)) is not None:
            raise failure from None
        if path.suffix in READERS and path.suffix != ".safetensors":
            raise ValueError(f"{path}: not a {kind.noun}; {kind.first}.") from None
        raise ValueError(
            f"{path}: not a readable safetensors file ({' '.join(str(error).split())[:200]}); "
            "where it was one, it is damaged: copy it again, or make it again."
        ) from None
    found = metadata.get("format")
    if found != kind.format:
        but = f", but {'; '.join(KINDS[found])}" if found in KINDS else f"; {kind.first}"
        raise ValueError(f"{path}: not a {kind.noun}{but}.")
    return tensors, metadata


def check_whole(path: Place, kind: StateKind, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Refuse a file with a wrong checksum.

    Raises:
        ValueError: If it is wrong.
    """
    if CHECKSUM not in metadata:
        raise ValueError(f"{path}: damaged: it has no checksum; {kind.again}.")
    if metadata[CHECKSUM] != compute_checksum(tensors, metadata):
        raise ValueError(f"{path}: damaged: its checksum does not fit its content; copy it again, or {kind.again}.")


def read_entries(path: Place, metadata: Mapping[str, str], *names: str) -> list[Any]:
    """Parse entries of the metadata that are JSON.

    Raises:
        ValueError: If one is missing or invalid.
    """
    try:
        return [json.loads(metadata[name]) for name in names]
    except (KeyError, ValueError, RecursionError) as error:  # ValueError: also a number with thousands of digits
        raise ValueError(f"{path}: damaged: its metadata cannot be read ({error}).") from None


def find_field_damage(about: Any, further: Mapping[str, tuple[type, ...]]) -> Iterator[str]:
    """List damage of the fields on samples; later checks may rely on earlier ones."""
    kinds = FIELDS | dict(further)
    if not isinstance(about, dict) or set(about) != set(kinds):
        yield f"expected the fields {', '.join(sorted(kinds))}"
        return
    for name, kind in kinds.items():
        if type(about[name]) not in kind:  # not isinstance: True is an int
            yield f"{name} is {format_value(about[name])}"
    if not all(isinstance(part, str) for part in (about["encoder_id"] or {}).values()):
        yield f"encoder_id is {format_value(about['encoder_id'])}; expected strings"
    if about["modality"] not in (*MODALITIES, None):
        yield f"modality is {format_value(about['modality'])}; expected 'image', 'text' or null"
    if not 2 <= about["count"] < MAX_COUNT:
        yield f"count is {format_value(about['count'])}; expected at least 2 and less than 2^53"
    if about["max_samples"] < 2:
        yield f"max_samples is {format_value(about['max_samples'])}; expected at least 2"
    if not 1 <= about["embed_dim"] <= 2**20:
        yield f"embed_dim is {format_value(about['embed_dim'])}; expected at least 1"


def list_state_shapes(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """List type and shape of every tensor of a state with this number of kept rows."""
    expected = {name: (torch.float64, shape) for name, shape in layout.shapes().items()}
    kept = tensors["sample_keys"].numel() if "sample_keys" in tensors else 0
    for name, part in zip(SAMPLE, layout.empty_sample(torch.device("cpu")), strict=True):
        expected[name] = (part.dtype, (kept, *part.shape[1:]))
    return expected


def find_shape_damage(
    about: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    any_value: Collection[str] = (),
) -> Iterator[str]:
    """List tensors that are missing, of a wrong type or shape, or not finite.

    Args:
        about: The description of the samples.
        tensors: What it holds.
        expected: Type and shape of each tensor.
        any_value: Tensors that may have NaN and infinite values.
    """
    if set(tensors) != set(expected):
        yield f"expected the tensors {', '.join(sorted(expected))}"
        return
    kept = tensors["sample_keys"].numel()
    if not 0 < kept <= min(about["count"], about["max_samples"]):
        yield f"sample_keys: {kept} rows of {about['count']} are kept, of which at most {about['max_samples']} may be"
    for name, (dtype, shape) in expected.items():
        if tensors[name].dtype != dtype:
            yield f"{name} is of {tensors[name].dtype}; expected {dtype}"
        finite = name in any_value or bool(torch.isfinite(tensors[name]).all())
        if tuple(tensors[name].shape) != shape or not finite:
            yield f"{name} is not a finite tensor of shape {shape}"


def find_sample_damage(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """List damage of a row sample."""
    keys, copies = tensors["sample_keys"], tensors["sample_copies"]
    if bool(keys[0] < 0) or bool((keys[1:] <= keys[:-1]).any()):
        yield "sample_keys do not rise from 0 on, each above the last"
    total = sum(copies.tolist())  # Python numbers do not overflow
    if bool((copies < 1).any()) or total > about["count"]:
        yield f"sample_copies are {total} rows, or less than 1 somewhere; the file is of {about['count']}"
    if len(keys) < about["max_samples"] and total != about["count"]:
        yield f"sample_copies are {total} rows of {about['count']}, though all of them were to be kept"
    norms = torch.linalg.vector_norm(tensors["sample_rows"].double(), dim=1)
    if bool((norms == 0).any()):
        yield "sample_rows hold a zero row"
    if bool((norms < MIN_NORM * (1 - ROUNDING)).any()) or bool((norms > MAX_NORM * (1 + ROUNDING)).any()):
        yield f"sample_rows hold a row of norm outside {MIN_NORM:g} to {MAX_NORM:g}"


def find_sum_damage(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """List damage of the sums of rows."""
    count, unit_sum = about["count"], tensors["unit_sum"]
    if bool((tensors["count"] < 0).any()) or float(tensors["count"].sum()) != count:
        yield f"count: the buckets hold {float(tensors['count'].sum()):g} rows of {count}"
    for name, flag in (("normalized", about["normalized"]), ("grouped", about["grouped"])):
        if (float(tensors[name]) == count) != flag or not 0 <= float(tensors[name]) <= count:
            yield f"{name} is {float(tensors[name]):g} of {count} rows, and said to be {flag}"
    for name in ("bad", "out_of_range"):
        if float(tensors[name]) != 0:
            yield f"{name} is {float(tensors[name]):g}; such a file has no such rows"
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
    yield from _compute_covariance(count, tensors)


def _compute_covariance(count: int, tensors: Mapping[str, Tensor]) -> Iterator[str]:
    unit_mean = tensors["unit_sum"].sum(0) / count
    means = {"second_moment": tensors["raw_sum"] / count, "unit_second_moment": unit_mean}
    powers = {"second_moment": float(tensors["norm_square_sum"].sum()) / count, "unit_second_moment": 1.0}
    for name in SECOND_MOMENTS:
        if name not in tensors:
            continue
        second = tensors[name] / count
        if bool(((second - second.T).abs() > 1e-9 * second.diagonal().abs().max()).any()):
            yield f"{name} is not symmetric"
        # A spread far below the mean is accurate to the rounding of the mean's square.
        if bool((second.diagonal() < means[name].square() * (1 - 1e-9)).any()):
            yield f"{name} has a negative variance on its diagonal"
        bound = second.diagonal().clamp(min=0).sqrt()
        if bool((second.abs() > (1 + 1e-9) * torch.outer(bound, bound) + 1e-12 * float(bound.max()) ** 2).any()):
            yield f"{name} has an entry beyond what its diagonal allows"
        if abs(float(second.trace()) - powers[name]) > ROUNDING * powers[name]:
            yield f"{name} does not fit {'norm_square_sum' if name == 'second_moment' else 'count'}"
