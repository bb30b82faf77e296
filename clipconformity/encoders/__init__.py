"""Encoders: from images and texts to raw embeddings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipconformity.encoders.registry import available_encoders, encoder_specs, hide_progress_bars, load_encoder

if TYPE_CHECKING:
    from clipconformity.encoders.base import BaseEncoder
    from clipconformity.encoders.callables import CallableEncoder
    from clipconformity.encoders.protocol import Encoder

__all__ = [
    "BaseEncoder",
    "CallableEncoder",
    "Encoder",
    "available_encoders",
    "encoder_specs",
    "hide_progress_bars",
    "load_encoder",
]

_HOMES = {"BaseEncoder": "base", "CallableEncoder": "callables", "Encoder": "protocol"}
"""These need torch, and load on first use: the help of the commands shows the registry without torch."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
