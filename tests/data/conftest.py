"""Fixtures of the tests of files."""

from __future__ import annotations

import pytest
from servers import serve

from clipconformity.data import remote


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A web server of the temporary folder, whose failures are not waited for."""
    pytest.importorskip("aiohttp", reason="https:// is read with aiohttp")
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serve(tmp_path) as server:
        yield server
