"""From samples to results: sources, scores, the six geometric properties, and human captions as a yardstick."""

from clipconformity.evaluation.classes import ByClass, ClassScore, write_classes
from clipconformity.evaluation.comparison import Comparison, compare
from clipconformity.evaluation.difference import Difference
from clipconformity.evaluation.images import image_source, image_sources
from clipconformity.evaluation.pairs import paired_source
from clipconformity.evaluation.people import HumanSpread, human_spread
from clipconformity.evaluation.results import Figure, Score, Verdict
from clipconformity.evaluation.sample_size import SizePoint, decided_at, sample_size_curve, write_curve
from clipconformity.evaluation.scoring import metric_names, score, write_per_sample
from clipconformity.evaluation.shards import embedding_source
from clipconformity.evaluation.sources import (
    Source,
    SourceBatch,
    build_reference,
    build_references,
    caption_source,
)

__all__ = [
    "ByClass",
    "ClassScore",
    "Comparison",
    "Difference",
    "Figure",
    "HumanSpread",
    "Score",
    "SizePoint",
    "Source",
    "SourceBatch",
    "Verdict",
    "build_reference",
    "build_references",
    "caption_source",
    "compare",
    "decided_at",
    "embedding_source",
    "human_spread",
    "image_source",
    "image_sources",
    "metric_names",
    "paired_source",
    "sample_size_curve",
    "score",
    "write_classes",
    "write_curve",
    "write_per_sample",
]
