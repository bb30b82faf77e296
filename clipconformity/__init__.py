"""Evaluate generative models by the geometry of raw CLIP embeddings."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from clipconformity import functional
from clipconformity.functional import LowerBoundWarning
from clipconformity.reference import ReferenceSet

if TYPE_CHECKING:
    from clipconformity.encoders import Encoder, load_encoder
    from clipconformity.metrics import (
        Conformity,
        ConformityKL,
        ConformityMetrics,
        EllipsoidGeometry,
        EmbeddingNorm,
        FrechetDistance,
        GaussianLikelihood,
        ModalityGap,
    )

__version__ = "0.1.0"

# Loaded when first used: torchmetrics itself imports transformers, torchvision and matplotlib.
_METRICS = (
    "Conformity",
    "ConformityKL",
    "ConformityMetrics",
    "EllipsoidGeometry",
    "EmbeddingNorm",
    "FrechetDistance",
    "GaussianLikelihood",
    "ModalityGap",
)
_LAZY = dict.fromkeys(_METRICS, "metrics") | {"Encoder": "encoders", "load_encoder": "encoders"}

__all__ = [
    "Conformity",
    "ConformityKL",
    "ConformityMetrics",
    "EllipsoidGeometry",
    "EmbeddingNorm",
    "Encoder",
    "FrechetDistance",
    "GaussianLikelihood",
    "LowerBoundWarning",
    "ModalityGap",
    "ReferenceSet",
    "functional",
    "load_encoder",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'clipconformity' has no attribute {name!r}")
    value = getattr(import_module(f"clipconformity.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
