"""Signals that stop a command: each cleans up as Ctrl-C does, and has its own exit status."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C; the signal of schedulers; the end of the terminal's connection, which Windows lacks."""


class Signals:
    """The signal that was caught.

    Attributes:
        status: Exit status of the first signal, as in a shell: 128 plus its number.
    """

    status: int | None = None

    def _raise(self, number: int, _: FrameType | None) -> None:
        self.status = self.status or 128 + number
        raise KeyboardInterrupt


@contextmanager
def catch_stop_signals() -> Iterator[Signals]:
    """Raise ``KeyboardInterrupt`` for each of :data:`STOP_SIGNALS` that is not ignored or handled already.

    Signals reach only the main thread; in another thread nothing changes.
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
