"""Signals that end a command: each cleans up as Ctrl-C does, and has an exit status of its own."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = ("SIGINT", "SIGTERM", "SIGHUP")
"""Ctrl-C; what a scheduler sends; the end of the terminal's connection, which Windows has not."""


class Ended(KeyboardInterrupt):
    """A signal that ends the command.

    Attributes:
        status: The exit status, as of a shell: 128 and the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


@contextmanager
def ending() -> Iterator[None]:
    """Raise :class:`Ended` for each of :data:`ENDING`, but for those that are ignored or handled already.

    Signals reach the main thread alone; in another nothing changes.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ENDING:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, _: FrameType | None) -> None:
    raise Ended(number)
