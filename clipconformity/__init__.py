"""Evaluate generative models by the geometry of raw CLIP embeddings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipconformity import functional
    from clipconformity.encoders import Encoder, load_encoder
    from clipconformity.evaluation import Verdict
    from clipconformity.functional import LowerBoundWarning
    from clipconformity.functional.resampling import Interval
    from clipconformity.metrics import (
        Conformity,
        ConformityKL,
        ConformityMetrics,
        EllipsoidGeometry,
        EmbeddingNorm,
        FrechetDistance,
        GaussianLikelihood,
        ModalityGap,
        SelfConformity,
    )
    from clipconformity.stream.reference import ReferenceSet

__version__ = "0.1.0"

__all__ = [
    "Conformity",
    "ConformityKL",
    "ConformityMetrics",
    "EllipsoidGeometry",
    "EmbeddingNorm",
    "Encoder",
    "FrechetDistance",
    "GaussianLikelihood",
    "Interval",
    "LowerBoundWarning",
    "ModalityGap",
    "ReferenceSet",
    "SelfConformity",
    "Verdict",
    "functional",
    "load_encoder",
]

_HOMES = {
    "Encoder": "encoders",
    "Interval": "functional.resampling",
    "LowerBoundWarning": "functional",
    "ReferenceSet": "stream.reference",
    "Verdict": "evaluation",
    "load_encoder": "encoders",
}
"""Where names lie that are no metrics. All load when first used: `clipconformity --help` does without torch, and a
reference without torchmetrics, which itself imports transformers, torchvision and matplotlib."""


def __getattr__(name: str) -> Any:
    if name == "functional":
        return import_module("clipconformity.functional")
    if name not in __all__:
        raise AttributeError(f"module 'clipconformity' has no attribute {name!r}")
    value = getattr(import_module(f"clipconformity.{_HOMES.get(name, 'metrics')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
