"""Changes to files that hold a state, made by someone who makes the checksum anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clipconformity.stream.state_file import compute_checksum

Change = Callable[[torch.Tensor], "torch.Tensor | None"]


def rewrite(path: Path, tensors: dict[str, torch.Tensor] | None = None, **entries: Any) -> None:
    """Replace some tensors, and entries of the metadata: fields of one by a dict, or its whole text by another."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    for name, fields in entries.items():
        reported = json.loads(metadata[name]) | fields if isinstance(fields, dict) else fields
        metadata[name] = reported if isinstance(reported, str) else json.dumps(reported)
    everything = load_file(path) | (tensors or {})
    save_file(everything, path, metadata | {"checksum": compute_checksum(everything, metadata)})


def of(name: str, change: Change) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """Damage one tensor: what is changed is a copy, and may be returned anew."""

    def damage(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensor = tensors[name].clone()
        changed = change(tensor)
        return {name: tensor if changed is None else changed}

    return damage


def put(*place: Any) -> Change:
    """Set the entry at a place to the last of the arguments."""
    *index, value = place

    def change(tensor: torch.Tensor) -> None:
        tensor[tuple(index)] = value

    return change
