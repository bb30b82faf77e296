"""The torchmetrics classes: each is the skin of a read-out of a stream."""

from clipconformity.metrics.collection import ConformityMetrics
from clipconformity.metrics.distribution import Conformity, ConformityKL, EmbeddingNorm, SelfConformity
from clipconformity.metrics.gaussian import FrechetDistance, GaussianLikelihood
from clipconformity.metrics.geometry import EllipsoidGeometry, ModalityGap

__all__ = [
    "Conformity",
    "ConformityKL",
    "ConformityMetrics",
    "EllipsoidGeometry",
    "EmbeddingNorm",
    "FrechetDistance",
    "GaussianLikelihood",
    "ModalityGap",
    "SelfConformity",
]
