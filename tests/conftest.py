"""Fixtures shared by the tests."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

EXAMPLES = os.environ.get("CLIPCONFORMITY_EXAMPLES")
"""How many cases each property test takes, drawn anew; without it a few, always the same."""

settings.register_profile("few", max_examples=6, derandomize=True, database=None, deadline=None)
settings.register_profile("many", max_examples=int(EXAMPLES or 1), database=None, deadline=None, print_blob=True)
settings.load_profile("many" if EXAMPLES else "few")

if "PYTEST_XDIST_WORKER" in os.environ:  # threads on shared cores wait for each other longer than they work
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real embeddings; tests that need it skip where it is absent."""
    reported = os.environ.get("CLIPCONFORMITY_DATA")
    folder = Path(reported) if reported else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "vitb32-images-1803.pt").is_file():
        pytest.skip(f"no real embeddings in {folder}; set CLIPCONFORMITY_DATA to the folder that has them")
    return folder


@pytest.fixture(scope="session")
def images(data_dir: Path) -> torch.Tensor:
    """Raw ViT-B/32 image embeddings, (1803, 512) float32."""
    return torch.load(data_dir / "vitb32-images-1803.pt", weights_only=True)[:, 0].float()


@pytest.fixture(scope="session")
def lvis(data_dir: Path) -> torch.Tensor:
    """Raw ViT-B/32 text embeddings, (1203, 512) float16."""
    return torch.from_numpy(np.load(data_dir / "vitb32-text-lvis-1203.npy"))
