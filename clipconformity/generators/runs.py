"""Common parts of runs of both kinds: split of the work, batches, seeds, progress, and JSON lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clipconformity.data.strict_json import to_json

T = TypeVar("T")


def check_numbers(least: Mapping[str, tuple[int, int]]) -> None:
    """Refuse numbers that are too small.

    Args:
        least: For each argument its value and its minimum.

    Raises:
        ValueError: If one is smaller.
    """
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ValueError(f"{name}: expected at least {smallest}, got {value}.")


def check_split(batch_size: int, rank: int, world: int) -> None:
    """Refuse a batch size below 1, and a rank outside ``world``.

    Raises:
        ValueError: If one does not fit.
    """
    check_numbers({"batch_size": (batch_size, 1), "rank": (rank, 0), "world": (world, rank + 1)})


def split_batches(items: list[T], size: int) -> Iterator[list[T]]:
    """Split items into batches, in order."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def sample_seed(seed: int, prompt_index: int, copy: int = 0) -> int:
    """Seed of one image: a number of 53 bits that depends only on the run's seed and the prompt's index.

    Example:
        >>> sample_seed(0, 3) == sample_seed(0, 3), sample_seed(0, 3) == sample_seed(1, 3)
        (True, False)
    """
    state = np.random.SeedSequence([seed, prompt_index, copy]).generate_state(1, np.uint64)
    return int(state[0]) >> 11


def rank_path(output: Path | str, rank: int, world: int) -> Path:
    """File of one process among several.

    Example:
        >>> rank_path("out.json", 1, 2).name
        'out-1-of-2.json'
    """
    path = Path(output)
    return path if world == 1 else path.with_name(f"{path.stem}-{rank}-of-{world}{path.suffix}")


def make_progress_bar(total: int, done: int, progress: bool | None) -> Any:
    """Make a progress bar on standard error; by default where that is a terminal."""
    from tqdm import tqdm

    disable = None if progress is None else not progress
    return tqdm(total=total, initial=done, unit="image", file=sys.stderr, disable=disable)


def format_json_line(entry: Any) -> str:
    """Format an entry of a file of JSON lines."""
    return to_json(entry) + "\n"
