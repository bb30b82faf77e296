"""What a stored reference must hold to be one: a damaged file is told from a whole one before it is used."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from clipconformity.moments import SAMPLE

MODALITIES = ("image", "text")
TENSORS = ("mean", "unit_sum", "covariance", *SAMPLE)
"""Names of a stored reference's tensors."""
_DOUBLE, _WHOLE = torch.float64, torch.int64
_DTYPES = dict(zip(TENSORS, (_DOUBLE, _DOUBLE, _DOUBLE, torch.float32, _WHOLE, _WHOLE, _WHOLE), strict=True))
_LARGEST = 2**53
"""Counts are kept in float64, which tells whole numbers apart below this."""
_ROUNDING = 1e-6
"""Rows are stored in float32, the statistics in float64."""


def check_stored(about: Any, tensors: dict[str, Tensor]) -> None:
    """Refuse fields and tensors that no reference has.

    Args:
        about: The fields of ``ReferenceSet.describe``, as JSON gives them.
        tensors: Those of :data:`TENSORS`.

    Raises:
        ValueError: If one is damaged, with its name.
    """
    damage = next(_damage(about, tensors), None)
    if damage is not None:
        raise ValueError(f"damaged: {damage}.")


def _damage(about: Any, tensors: dict[str, Tensor]) -> Iterator[str]:
    """Say what is wrong; what comes later may rest on what comes before."""
    yield from _fields(about)
    yield from _layout(about, tensors)
    yield from _sample(about, tensors)
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
            yield f"{name} is {about[name]!r:.80}"
    if not all(isinstance(part, str) for part in (about["encoder_id"] or {}).values()):
        yield f"encoder_id is {about['encoder_id']!r:.80}; expected strings"
    if about["modality"] not in (*MODALITIES, None):
        yield f"modality is {about['modality']!r:.80}; expected 'image', 'text' or null"
    if not 2 <= about["count"] < _LARGEST:
        yield f"count is {about['count']!r:.80}; expected at least 2 and less than 2^53"
    if about["max_samples"] < 2:
        yield f"max_samples is {about['max_samples']!r:.80}; expected at least 2"


def _layout(about: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[str]:
    dim, kept = about["embed_dim"], tensors["sample_keys"].numel()
    if dim < 1:
        yield f"embed_dim is {dim!r:.80}; expected at least 1"
    if not 0 < kept <= min(about["count"], about["max_samples"]):
        yield f"sample_keys: {kept} rows of {about['count']} are kept, of which at most {about['max_samples']} may be"
    shapes = ((dim,), (dim,), (dim, dim), (kept, dim), (kept,), (kept,), (kept,))
    for name, shape in zip(TENSORS, shapes, strict=True):
        tensor = tensors[name]
        if tensor.dtype != _DTYPES[name]:
            yield f"{name} is of {tensor.dtype}; expected {_DTYPES[name]}"
        if tuple(tensor.shape) != shape or not bool(torch.isfinite(tensor).all()):
            yield f"{name} is not a finite tensor of shape {shape}"


def _sample(about: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[str]:
    keys, copies = tensors["sample_keys"], tensors["sample_copies"]
    if bool(keys[0] < 0) or bool((keys[1:] <= keys[:-1]).any()):
        yield "sample_keys do not rise from 0 on, each above the last"
    total = sum(copies.tolist())  # of Python, which does not overflow
    if bool((copies < 1).any()) or total > about["count"]:
        yield f"sample_copies are {total} rows, or less than 1 somewhere; the reference has {about['count']}"
    if len(keys) < about["max_samples"] and total != about["count"]:
        yield f"sample_copies are {total} rows of {about['count']}, though all of them were to be kept"
    if bool((torch.linalg.vector_norm(tensors["sample_rows"].double(), dim=1) == 0).any()):
        yield "sample_rows hold a zero row"


def _statistics(about: dict[str, Any], tensors: dict[str, Tensor]) -> Iterator[str]:
    count, unit_sum = about["count"], tensors["unit_sum"]
    if float(torch.linalg.vector_norm(unit_sum)) > count * (1 + _ROUNDING):
        yield f"unit_sum is longer than the {count} unit vectors that it is made of"
    rows = tensors["sample_rows"].double()
    towards = rows @ unit_sum / torch.linalg.vector_norm(rows, dim=1)
    cosines = (towards - 1) / (count - 1)  # mean cosine of each row to the others of the set
    if float(cosines.abs().max()) > 1 + _ROUNDING:
        yield "unit_sum does not fit sample_rows: a conformity lies outside of [-1, 1]"
    covariance, mean = tensors["covariance"], tensors["mean"]
    diagonal = covariance.diagonal()
    # A spread far below the mean is known up to the rounding of the mean's square.
    rounding = 1e-9 * mean.square()
    if bool((diagonal < -rounding).any()):
        yield "covariance has a negative variance on its diagonal"
    scale = (diagonal.clamp_min(0) + rounding).sqrt()
    if bool(((covariance - covariance.T).abs() > 1e-4 * torch.outer(scale, scale)).any()):
        yield "covariance is not symmetric"
