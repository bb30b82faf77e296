"""Signals that end a command: each cleans up as Ctrl-C does, and has an exit status of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C; what a scheduler sends; the end of the terminal's connection, which Windows has not."""


class Signals:
    """The signal that was caught.

    Attributes:
        status: Exit status of the first signal that came, as of a shell: 128 and its number.
    """

    status: int | None = None

    def _raise(self, number: int, _: FrameType | None) -> None:
        self.status = self.status or 128 + number
        raise KeyboardInterrupt


@contextmanager
def catch_stop_signals() -> Iterator[Signals]:
    """Raise ``KeyboardInterrupt`` for each of :data:`STOP_SIGNALS` that is not ignored or handled already.

    Signals reach the main thread alone; in another nothing changes.
    """
    signals, before = Signals(), {}
    if threading.current_thread() is threading.main_thread():
        for name in STOP_SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, signals._raise)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
