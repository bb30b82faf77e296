"""The torchmetrics classes."""

from clipconformity.metrics.collection import ConformityMetrics
from clipconformity.metrics.distribution import Conformity, ConformityKL, EmbeddingNorm

__all__ = ["Conformity", "ConformityKL", "ConformityMetrics", "EmbeddingNorm"]
