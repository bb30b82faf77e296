"""Pure functions on ``(N, D)`` tensors of raw embeddings; torch is all that they need."""

from clipconformity.functional.conformity import (
    ConformityFit,
    NormStatistics,
    conformity,
    conformity_fit,
    estimated_conformity,
    norm_statistics,
    self_conformity,
)
from clipconformity.functional.divergence import LowerBoundWarning, conformity_kl

__all__ = [
    "ConformityFit",
    "LowerBoundWarning",
    "NormStatistics",
    "conformity",
    "conformity_fit",
    "conformity_kl",
    "estimated_conformity",
    "norm_statistics",
    "self_conformity",
]
