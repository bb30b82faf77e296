"""Limits on files: all with their defaults in one table, and how to raise them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

ENVIRONMENT = "CLIPCONFORMITY_LIMITS"
"""Variable that raises limits, as ``pixels=200000000,rows=10000000``: processes that decode images inherit it."""


class RefusedError(ValueError):
    """A file is not read, although it may be intact."""


class LimitError(RefusedError):
    """A value is over a limit."""


class Limit(NamedTuple):
    """A bound on the resources that a file may request."""

    value: int
    what: str
    """What is counted, in words for errors and the documentation."""


LIMITS = {
    "pixels": Limit(89_478_485, "pixels of an image"),
    "aspect": Limit(200, "times its short side, which an image is long,"),
    "batch_pixels": Limit(500_000_000, "pixels of the images that are decoded at once"),
    "expansion": Limit(20, "times the size of its file, of arrays beyond 64 MiB"),
    "listed": Limit(1_000_000, "files and folders at an address"),
    "rows": Limit(5_000_000, "rows of a file"),
    "dimension": Limit(4096, "columns of embeddings, whose square is held,"),
    "text_bytes": Limit(2**28, "bytes of a file of captions, annotations or results"),
    "json_values": Limit(20_000_000, "values of a JSON file"),
    "caption_characters": Limit(10_000, "characters of a caption"),
    "checkpoint_bytes": Limit(2**36, "bytes of a checkpoint"),
    "config_bytes": Limit(2**26, "bytes of a checkpoint's configuration or tokenizer"),
    "layers": Limit(500, "layers of a model"),
    "resolution": Limit(4096, "pixels along a side of an encoder's input"),
    "resamples": Limit(20_000, "redraws, each of 16 KiB a few times over,"),
}
"""Every limit by the name that raises it. Pillow warns from the same number of pixels on."""


def get_limit(name: str) -> int:
    """Return the present value of a limit.

    Raises:
        ValueError: If :data:`ENVIRONMENT` is wrong.
    """
    return _parse_limits(os.environ.get(ENVIRONMENT, "")).get(name, LIMITS[name].value)


def check_limit(where: object, name: str, found: int) -> None:
    """Refuse a value over a limit.

    Raises:
        LimitError: If it is; names the limit, and how to raise it.
    """
    most = get_limit(name)
    if found > most:
        raise LimitError(
            f"{where}: {found:,} {LIMITS[name].what} are over the limit of {most:,}; where the file can be trusted, "
            f"raise it with --limit {name}={found}, or in Python with {ENVIRONMENT}={name}={found} in the environment."
        )


@contextmanager
def raise_limits(limits: Sequence[str]) -> Iterator[None]:
    """Raise limits inside the block, in this process and in those that it starts.

    Args:
        limits: Each as ``NAME=NUMBER``.

    Raises:
        ValueError: If one is wrong.
    """
    before = os.environ.get(ENVIRONMENT)
    words = ",".join([*([before] if before else []), *limits])
    _parse_limits(words)
    if limits:
        os.environ[ENVIRONMENT] = words
    try:
        yield
    finally:
        if limits:
            os.environ.pop(ENVIRONMENT)
            if before is not None:
                os.environ[ENVIRONMENT] = before


@lru_cache(maxsize=8)
def _parse_limits(words: str) -> dict[str, int]:
    found = {}
    for word in filter(None, words.split(",")):
        name, _, number = word.strip().partition("=")
        if name not in LIMITS or not (number.isascii() and number.isdigit()) or not 0 < len(number) <= 18:
            raise ValueError(
                f"limit {word!r:.80}: expected NAME=NUMBER, with a name of {', '.join(LIMITS)}, and a whole number."
            )
        found[name] = int(number)
    return found
