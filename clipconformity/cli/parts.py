"""The parts that the work of a command is cut into: kept beside its output, and shared among processes.

One mechanism serves for going on after a kill and for several processes. How work is cut depends on the samples alone,
and parts are joined in their order, so that the figures do not depend on who made which part, or when.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from clipconformity.cli.processes import ShareDone
from clipconformity.data.interrupts import defer_signals
from clipconformity.data.locks import FOLDER_SUFFIX, LOCK_NAME, Lock, Workplace, try_lock
from clipconformity.data.strict_json import to_json

if TYPE_CHECKING:
    from clipconformity.cli.ranks import Ranks
    from clipconformity.stream.reference import ReferenceSet

T = TypeVar("T")
PART = "part"
"""Entry of a part's metadata that tells what it is made of."""
SUFFIX = ".parts"
PAUSE = 0.1
"""Seconds between two looks at what other processes have done."""
_NAME = re.compile(r"\d{2,}-\d{6,}\.safetensors")


def digest(*key: object) -> str:
    """Checksum of what identifies something."""
    text = "\0".join(one if isinstance(one, str) else to_json(one) for one in key)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Job(Generic[T]):
    """Some work in parts.

    Attributes:
        keys: For each part the checksum of all that it depends on.
        sizes: For each the number of its samples.
        make: Makes the parts of some numbers, in the order of these, which may be asked for ahead; it calls what it is
            given with the number of samples of each batch.
        write: Writes a part, with entries for its metadata; whole or not at all.
        read: Reads a part.
        alike: What must be the same for all processes beside the samples, by what it is called.
    """

    keys: Sequence[str]
    sizes: Sequence[int]
    make: Callable[[Iterable[int], Callable[[int], None]], Iterator[T]]
    write: Callable[[Path, T, Mapping[str, str]], None]
    read: Callable[[Path], T]
    alike: Mapping[str, str] = field(default_factory=dict)


class Parts:
    """The folder ``OUTPUT.parts`` of a command; it goes when the command is done.

    Args:
        output: What is written, beside which the parts are kept; None keeps none, unless there are several processes.
        ranks: The processes, where there are several.
        card: What must be the same for all of them, by what it is called.
        quiet: Show no progress.
        tell: Tells how long parts took.
    """

    def __init__(
        self,
        output: Path | None,
        ranks: Ranks | None = None,
        card: Mapping[str, str] | None = None,
        *,
        quiet: bool = False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.ranks, self.quiet, self._tell = ranks, quiet, tell
        self._card = dict(card or {})
        if output is None and ranks is not None:
            output = Path(f"clipconformity-{digest(self._card)[:12]}")
        self.folder = None if output is None else output.with_name(output.name + SUFFIX)
        self._lock: Lock | None = None
        self._jobs = 0
        self._pending: list[Callable[[], None]] = []

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._lock is None or self.folder is None:
            return
        if kind is None:
            Workplace(self.folder, self._lock).remove()
            return
        self._lock.release()
        with suppress(OSError):  # it is empty
            self.folder.rmdir()
        if self.folder.exists():
            warnings.warn(f"what is finished is kept in {self.folder}, and the same command takes it up.", stacklevel=2)

    def require_same(self, reference: ReferenceSet) -> None:
        """Let the reference be the same for all processes."""
        from clipconformity.stream.reference_file import reference_identity

        if self.ranks is not None:
            self._card |= {"reference": reference_identity(reference)[:12]}

    def leave(self) -> None:
        """Do the share of this process in all that is to be done, and end here; the first goes on, and joins the parts.

        Raises:
            ShareDone: On every process but the first.
            ValueError: If the processes are about to do different work.
            RuntimeError: If another process fails.
            OSError: If a part cannot be written, or the folder is another's.
        """
        if self.ranks is None:
            return
        pending, self._pending = self._pending, []
        with self.ranks.sharing():
            for do_share in pending:
                do_share()
        if not self.ranks.first:
            raise ShareDone

    def agree(self, found: bool) -> None:
        """Make sure that all processes have found what is kept for other runs, or none has.

        Raises:
            ValueError: If they differ.
        """
        if self.ranks is not None:
            self.ranks.agree(self._next(), self._card | {"cache": "found" if found else "empty"})

    def _next(self) -> int:
        """The number of the next job, the same for every process."""
        number, self._jobs = self._jobs, self._jobs + 1
        return number

    def run(self, job: Job[T]) -> Iterator[T]:
        """Give the parts in order: those that lie here, and those that are made now, which are kept here.

        With several processes they are made by :meth:`leave`, after which the first gives them.
        """
        ranks, number = self.ranks, self._next()
        if ranks is None:
            return self._alone(number, job)
        self._pending.append(lambda: self._do_share(ranks, number, job))
        return self._collect(ranks, number, job)

    def _alone(self, number: int, job: Job[T]) -> Iterator[T]:
        keep = (len(job.keys) > 1 or (self.folder is not None and self.folder.exists())) and self._enter()
        stored = self._read_stored(number, job) if keep else set()
        since = time.monotonic()
        with self._bar(job, stored) as bar:
            made = job.make((part for part in range(len(job.keys)) if part not in stored), bar.update)
            for part in range(len(job.keys)):
                if part in stored:
                    yield self._read(number, job, part)
                    continue
                found = next(made)
                if keep and len(job.keys) > 1:
                    self._write(number, job, part, found)
                yield found
        self._tell_time(len(job.keys) - len(stored), since)

    def _do_share(self, ranks: Ranks, number: int, job: Job[T]) -> None:
        """Make the parts that this process takes; the first waits for those of the others."""
        ranks.agree(number, self._card | dict(job.alike) | {"samples": digest(*job.keys)[:12]})
        since = time.monotonic()
        stored = self._find_stored_for_all(number, job) if ranks.first else set()
        undone = ranks.share(number, [part for part in range(len(job.keys)) if part not in stored])
        claimed: deque[int] = deque()

        def claims() -> Iterator[int]:
            for part in ranks.claims(number, undone):
                claimed.append(part)
                yield part

        before = sum(job.sizes[part] for part in stored)
        with self._bar(job, stored) as bar:

            def advance(count: int) -> None:
                ranks.check()
                done = ranks.advance(number, count)
                if ranks.first:
                    bar.update(before + done - bar.n)

            for found in job.make(claims(), advance):
                self._write(number, job, claimed.popleft(), found)
            ranks.finish(number)
            while ranks.first and not ranks.finished(number):
                time.sleep(PAUSE)
                advance(0)
        self._tell_time(len(undone), since)

    def _find_stored_for_all(self, number: int, job: Job[Any]) -> set[int]:
        """Take the folder, and find the parts that lie there.

        Raises:
            OSError: If it is another's.
        """
        if not self._enter():
            raise OSError(
                f"{self.folder}: another run is at work there, or other files lie in it; wait for that run, or name "
                "another output."
            )
        return self._read_stored(number, job)

    def _tell_time(self, made: int, since: float) -> None:
        self._tell(f"{made} parts in {time.monotonic() - since:.2f} s")

    def _collect(self, ranks: Ranks, number: int, job: Job[T]) -> Iterator[T]:
        for part in range(len(job.keys)):
            ranks.check()
            yield self._read(number, job, part)

    def _enter(self) -> bool:
        """Take the folder, unless another run has it or other things lie in it."""
        if self._lock is not None or self.folder is None:
            return self._lock is not None
        with suppress(FileExistsError):
            self.folder.mkdir()
        if not self.folder.is_dir():
            return False
        for path in self.folder.iterdir():
            if not (_NAME.fullmatch(path.name) or path.name == LOCK_NAME or path.name.endswith(FOLDER_SUFFIX)):
                return False
        with suppress(OSError), defer_signals():  # one in between would leave the file of the lock
            self._lock = try_lock(self.folder / LOCK_NAME)
        return self._lock is not None

    def _read_stored(self, number: int, job: Job[Any]) -> set[int]:
        """Find the parts that lie here and are of this work; warn of the others."""
        found, foreign = set(), 0
        for part, key in enumerate(job.keys):
            says = read_key(self._path(number, part))
            found |= {part} if says == key else set()
            foreign += says not in (None, key)
        if foreign:
            warnings.warn(
                f"{foreign} of the parts in {self.folder} are of other work (other samples, encoder or options, or "
                "another version), and are made anew.",
                stacklevel=2,
            )
        if found:
            count = sum(job.sizes[part] for part in found)
            warnings.warn(f"{count} of {sum(job.sizes)} samples are taken up from {self.folder}.", stacklevel=2)
        return found

    def _read(self, number: int, job: Job[T], part: int) -> T:
        """Read a part; one that cannot be read is made anew."""
        try:
            return job.read(self._path(number, part))
        except Exception:  # a damaged file makes its reader fail in any way
            return next(job.make([part], lambda _: None))

    def _write(self, number: int, job: Job[T], part: int, found: T) -> None:
        job.write(self._path(number, part), found, {PART: job.keys[part]})

    def _path(self, number: int, part: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:02d}-{part:06d}.safetensors"

    def _bar(self, job: Job[Any], stored: set[int]) -> Any:
        from tqdm import tqdm

        hidden = True if self.quiet or (self.ranks is not None and not self.ranks.first) else None
        done = sum(job.sizes[part] for part in stored)
        return tqdm(total=sum(job.sizes), initial=done, unit="sample", file=sys.stderr, disable=hidden)


def read_key(path: Path) -> str | None:
    """What a part says that it is made of; None where there is none that can be read."""
    from safetensors import safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get(PART))
    except Exception:  # a damaged file makes its reader fail in any way
        return None


def cut(count: int, size: int, most: int) -> list[tuple[int, int]]:
    """Cut samples into parts of so many, or larger ones where these were more than ``most``: first, and behind last.

    Example:
        >>> cut(10, 4, 100), cut(10, 4, 2)
        ([(0, 4), (4, 8), (8, 10)], [(0, 8), (8, 10)])
    """
    step = size * max(1, -(-count // (size * most)))
    return [(start, min(start + step, count)) for start in range(0, count, step)]
