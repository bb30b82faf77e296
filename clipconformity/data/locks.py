"""Locks that end with their process in any case: which process writes a file, and remains of killed processes."""

from __future__ import annotations

import itertools
import os
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipconformity.data.interrupts import defer_signals

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_NAME = ".lock"
"""Name of the lock in a folder of temporary files."""
FOLDER_SUFFIX = ".tmp"
"""Suffix of such folders."""
POLL_SECONDS = 0.1
"""Seconds between two checks of a lock that another process has."""


@dataclass
class Lock:
    """A held lock: a file that exists as long.

    Attributes:
        path: The file.
        handle: The open file, which holds the lock: the system releases it when the process ends.
        sure: Whether the system supports locks there: not on Windows, nor on every network drive.
    """

    path: Path
    handle: int
    sure: bool

    def release(self) -> None:
        """Release the lock; the file is removed first, so that a waiting process sees that it is free."""
        try:
            self.path.unlink()
        except PermissionError:  # Windows cannot remove an open file
            os.close(self.handle)
            with suppress(OSError):
                self.path.unlink()
        except OSError:
            os.close(self.handle)
        else:
            os.close(self.handle)


def try_lock(path: Path) -> Lock | None:
    """Make and lock a file; None where another process or thread holds the lock.

    Raises:
        OSError: If the file cannot be made.
    """
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            taken = _lock_handle(handle)
            if taken is not False and _is_at(handle, path):
                return Lock(path, handle, taken is True)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if taken is False:
            return None  # else its holder released and removed it in between


def _lock_handle(handle: int) -> bool | None:
    """Lock an open file; False where another process holds it, None where locks are not supported."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def hold_lock(path: Path, place: object) -> Iterator[None]:
    """Hold a lock in the block; where another process has it, warn and wait for it.

    Where the system does not support locks, it does not wait.

    Raises:
        OSError: If the lock's file cannot be made.
    """
    lock = None
    warned = False
    try:
        while lock is None:
            with defer_signals():
                lock = try_lock(path)
            if lock is None:
                if not warned:
                    warnings.warn(f"{place}: another run is using it; this one waits for it to end.", stacklevel=4)
                warned = True
                time.sleep(POLL_SECONDS)
        yield
    finally:
        with defer_signals():
            if lock is not None:
                lock.release()


@dataclass
class Workplace:
    """A folder of temporary files of this process; its lock shows other processes that it is in use."""

    folder: Path
    lock: Lock

    def remove(self) -> None:
        """Remove the folder with its content."""
        with defer_signals():
            with suppress(OSError):
                self.clear()
            self.lock.release()  # the last file: from here on another process may take the folder
            with suppress(OSError):
                self.folder.rmdir()

    def clear(self) -> None:
        """Remove the content but for the lock."""
        for path in self.folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path != self.lock.path:
                path.unlink()


def claim_workplace(target: Path) -> Workplace:
    """Make a folder of temporary files beside ``target``, and remove those of killed processes.

    Its name is the target's with a number, the first that no running process uses: so remains are found without
    listing a folder of a million files.

    Raises:
        OSError: If it cannot be made.
    """
    place = None
    try:
        with defer_signals():
            numbers = itertools.count(1)
            while (place := _enter_folder(_make_place(target, next(numbers)))) is None:
                pass
            while (later := _make_place(target, next(numbers))).is_dir():
                left = _enter_folder(later)
                if left is not None:
                    left.remove()
    except BaseException:  # an interrupt in between
        if place is not None:
            place.remove()
        raise
    return place


def _make_place(target: Path, number: int) -> Path:
    return target.with_name(f".{target.name}.{number}{FOLDER_SUFFIX}")


def _enter_folder(folder: Path) -> Workplace | None:
    """Lock a folder, new or left by a killed process; None where another process has or may have it."""
    while True:
        try:
            folder.mkdir()
            new = True
        except FileExistsError:
            new = False
        try:
            lock = try_lock(folder / LOCK_NAME)
        except FileNotFoundError:  # its owner removed it in between
            continue
        except OSError:
            if new:
                with suppress(OSError):
                    folder.rmdir()
                raise
            return None
        if lock is None:
            return None
        if not new and not lock.sure:  # unknown whether its owner is running
            os.close(lock.handle)
            return None
        place = Workplace(folder, lock)
        place.clear()
        return place
