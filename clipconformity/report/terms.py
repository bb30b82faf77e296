"""Glossary of a report, for first-time readers."""

from __future__ import annotations

import re
from typing import NamedTuple


class Term(NamedTuple):
    """A word and its meaning."""

    anchor: str
    """Its address on the page."""
    meaning: str


_MEANINGS = {
    "N": "Number of samples.",
    "conformity": "Mean cosine similarity of a sample to the reference, -1 to 1. High: it is common. Low: it is rare.",
    "self-conformity": "Mean cosine similarity of two samples of one set. Low: the set is varied.",
    "typicality shift": "Mean conformity less the reference's, in standard deviations of the reference. Above 0: more "
    "typical than the reference; below 0: less.",
    "variety ratio": "Mean cosine distance of two samples, divided by the reference's. 1: as varied; below 1: less.",
    "spread ratio": "Standard deviation of conformity, divided by the reference's. Below 1: rare samples are missing, "
    "or common ones.",
    "KL": "Divergence of the conformity distribution from the reference's, nats. 0: the same distribution. It says how "
    "far, not in which direction.",
    "reverse KL": "Divergence of the reference's conformity distribution from that of the samples, nats.",
    "noise floor": "The KL that chance alone exceeds in 5% of cases, were both sets of one distribution. A KL below it "
    "says nothing.",
    "p": "Chance of a difference at least as large where both sets are of one distribution (Anderson-Darling test on "
    "conformity). Below 0.05 is called significant.",
    "95% interval": "Where the true value lies: in 95% of evaluations like this one, the interval holds it.",
    "norm": "Length of the raw embedding, before any normalisation; mean over the samples.",
    "undecided": "The interval holds both no difference and a difference that matters: more samples would tell.",
    "nearest reference": "The reference sample of highest cosine similarity. A value near 1 is a copy or nearly one.",
}
TERMS = {name: Term(f"term-{re.sub('[^a-z0-9]+', '-', name.lower())}", meaning) for name, meaning in _MEANINGS.items()}
"""Terms by word, in the order of the page."""
