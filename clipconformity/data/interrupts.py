"""Critical sections that signals such as Ctrl-C do not interrupt."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defer :data:`SIGNALS` that are handled to the end of the block; only the main thread receives any."""
    handlers = {kind: signal.getsignal(kind) for kind in SIGNALS}
    caught = {kind: handler for kind, handler in handlers.items() if callable(handler)}
    if threading.current_thread() is not threading.main_thread() or not caught:
        yield
        return
    came: list[tuple[int, FrameType | None]] = []

    def put_off(kind: int, frame: FrameType | None) -> None:
        came.append((kind, frame))

    for kind in caught:
        signal.signal(kind, put_off)
    try:
        yield
    finally:
        for kind, handler in caught.items():
            signal.signal(kind, handler)
    for number, frame in came[:1]:
        caught[signal.Signals(number)](number, frame)
