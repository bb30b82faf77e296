"""Fixtures of the commands' tests."""

from __future__ import annotations

import pytest

from clipconformity import encoders


@pytest.fixture
def encoded(monkeypatch):
    """Count what is encoded."""
    counts = {"encode_text": 0, "project_image": 0}
    for name in counts:
        old = getattr(encoders.BaseEncoder, name)

        def new(self, batch, *more, _old=old, _name=name):
            count = len(batch) if isinstance(batch, list) else len(next(iter(batch.values())))
            counts[_name] += count > 1  # a single one tries the encoder out
            return _old(self, batch, *more)

        monkeypatch.setattr(encoders.BaseEncoder, name, new)
    return counts
