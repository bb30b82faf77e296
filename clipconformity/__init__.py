"""Evaluate generative models by the geometry of raw CLIP embeddings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipconformity import functional as functional
    from clipconformity.encoders import Encoder as Encoder
    from clipconformity.encoders import load_encoder as load_encoder
    from clipconformity.evaluation import Verdict as Verdict
    from clipconformity.functional import LowerBoundWarning as LowerBoundWarning
    from clipconformity.functional.resampling import Interval as Interval
    from clipconformity.metrics import *
    from clipconformity.stream.reference import ReferenceSet as ReferenceSet
    from clipconformity.stream.stream import OverlapWarning as OverlapWarning

__version__ = "0.1.0"

_HOMES = {
    "Encoder": "encoders",
    "Interval": "functional.resampling",
    "LowerBoundWarning": "functional",
    "OverlapWarning": "stream.stream",
    "ReferenceSet": "stream.reference",
    "Verdict": "evaluation",
    "load_encoder": "encoders",
}
"""Modules of the names that are not metrics. All load on first use: `clipconformity --help` needs no torch, and a
reference without torchmetrics, which itself imports transformers, torchvision and matplotlib."""


def __getattr__(name: str) -> Any:
    if name == "functional":
        return import_module("clipconformity.functional")
    if name == "__all__":
        return sorted({"functional", *_HOMES, *import_module("clipconformity.metrics").__all__})
    home = import_module(f"clipconformity.{_HOMES.get(name, 'metrics')}") if _is_public(name) else None
    if home is None or (name not in _HOMES and name not in home.__all__):
        raise AttributeError(f"module 'clipconformity' has no attribute {name!r}")
    value = getattr(home, name)
    globals()[name] = value
    return value


def _is_public(name: str) -> bool:
    """Whether a name may be public here: the metrics are classes, and importing them loads torchmetrics."""
    return name in _HOMES or name[:1].isupper()


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
