"""Several processes at one command: whether they do the same work, who does which part, and whether all live.

They talk through a store of keys and values, which torchrun or the first of them holds; no tensor is sent, so that no
process group, of gloo or of nccl, is needed.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from clipconformity.data.strict_json import to_json

BEAT = 1.0
"""Seconds between two signs of life."""
SILENCE = 60.0
"""Seconds without one after which a process counts as gone."""
ARRIVAL = 600.0
"""Seconds that the others are waited for at the start of some work: a model may have to be loaded."""
PAUSE = 0.05
"""Seconds between two looks at what others have done."""
LINGER = 10.0
"""Seconds that the holder of the store stays for others who have still to read why they end."""
LEFT = "left"


class Ranks:
    """The processes of one command, as one of them sees them.

    Args:
        store: What they talk through, of ``torch.distributed``.
        rank: Number of this one, from 0 on.
        world: Number of them.
        local_rank: Number of this one on its machine.
        local_world: Number of those on its machine.
        threads: Of this process while it does its share, and after that, where they are divided among those of the
            machine.
        ended: Tells why a process that this one started has ended, if it has failed.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world: int,
        local_rank: int = 0,
        local_world: int = 1,
        threads: tuple[int, int] | None = None,
        ended: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.rank, self.world = rank, world
        self.local_rank, self.local_world, self._threads = local_rank, local_world, threads
        self._store, self._ended = store, ended
        self._failure: str | None = None
        self._stop = threading.Event()
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    @property
    def first(self) -> bool:
        """Whether this is the one that joins the parts, and tells the result."""
        return self.rank == 0

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Do a share on as many threads as this process has among the others; then all are its own again."""
        import torch

        if self._threads is not None:
            torch.set_num_threads(self._threads[0])
        try:
            yield
        finally:
            if self._threads is not None:
                torch.set_num_threads(self._threads[1])

    def check(self) -> None:
        """Look whether another process has failed.

        Raises:
            RuntimeError: If one has, or is gone; says why.
        """
        if self._failure is None:
            self._look()
        if self._failure is not None:
            raise RuntimeError(self._failure)

    def agree(self, job: int, card: Mapping[str, str]) -> None:
        """Make sure that all processes are about to do the same work.

        Args:
            job: Number of the work.
            card: What must be the same, by what it is called.

        Raises:
            ValueError: If something differs, on every process alike.
            RuntimeError: If another one fails meanwhile, or does not arrive.
        """
        self._set(f"card/{job}/{self.rank}", to_json(dict(card)))
        cards = [json.loads(self._wait_for(f"card/{job}/{rank}", rank)) for rank in range(self.world)]
        for name in cards[0]:
            other = next((rank for rank, one in enumerate(cards) if one.get(name) != cards[0][name]), None)
            if other is not None:
                raise ValueError(
                    f"the processes differ in the {name}: rank 0 has {cards[0][name]}, rank {other} has "
                    f"{cards[other].get(name)}; start all of them with the same command on the same files."
                )

    def share(self, job: int, undone: Sequence[int]) -> list[int]:
        """Give the parts that are to be done, as the first process knows them, for which the others wait."""
        if self.first:
            self._set(f"undone/{job}", to_json(list(undone)))
        found: list[int] = json.loads(self._wait_for(f"undone/{job}", 0))
        return found

    def claims(self, job: int, undone: Sequence[int]) -> Iterator[int]:
        """Take the next part that nobody has taken, until there are none."""
        while (number := self._add(f"next/{job}", 1) - 1) < len(undone):
            self.check()
            yield undone[number]

    def advance(self, job: int, count: int) -> int:
        """Count samples that are done, and give the number of those of all processes."""
        return self._add(f"samples/{job}", count)

    def finish(self, job: int) -> None:
        """Say that this process has done its share."""
        self._add(f"finished/{job}", 1)

    def finished(self, job: int) -> bool:
        """Whether all have done theirs.

        Raises:
            RuntimeError: If one has failed.
        """
        self.check()
        return self._add(f"finished/{job}", 0) == self.world

    def fail(self, reason: str) -> None:
        """Tell the others that this process has failed; they end too."""
        if self._failure is None:  # else it ends because of another
            with suppress(RuntimeError):
                self._store.set("failure", f"rank {self.rank}: {reason}")

    def leave(self) -> None:
        """End the part of this process; the first stays a while for those who have not read why they end."""
        self._stop.set()
        self._thread.join()
        with suppress(RuntimeError):
            self._store.set(f"alive/{self.rank}", LEFT)
            gone, until = self._store.add("gone", 1), time.monotonic() + LINGER
            while self.first and gone < self.world and time.monotonic() < until and self._ended() is None:
                time.sleep(PAUSE)
                gone = self._store.add("gone", 0)

    def _live(self) -> None:
        """Give signs of life, and listen for those of others: the first for all of them, the others for the first."""
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                self._store.set(f"alive/{self.rank}", str(number))
                self._listen()
            except RuntimeError as error:
                self._failure = self._failure or _gone(error)
            self._stop.wait(BEAT)

    def _listen(self) -> None:
        reason = self._ended()
        for rank in range(1, self.world) if self.first else [0]:
            key = f"alive/{rank}"
            if not self._store.check([key]):
                continue  # it has not arrived yet
            sign, now = self._store.get(key), time.monotonic()
            if rank not in self._heard or self._heard[rank][0] != sign:
                self._heard[rank] = (sign, now)
            elif sign != LEFT.encode() and now - self._heard[rank][1] > SILENCE:
                reason = reason or f"rank {rank} has given no sign of life for {SILENCE:.0f} seconds"
        if reason is not None and self._failure is None and not self._store.check(["failure"]):
            self._store.set("failure", f"{reason}; what is finished is kept, and the same command goes on from it.")

    def _look(self) -> None:
        try:
            if self._store.check(["failure"]):
                self._failure = self._store.get("failure").decode()
        except RuntimeError as error:
            self._failure = self._failure or _gone(error)

    def _wait_for(self, key: str, rank: int) -> str:
        until = time.monotonic() + ARRIVAL
        while not self._check(key):
            self.check()
            if time.monotonic() > until:
                raise RuntimeError(f"rank {rank} has not arrived within {ARRIVAL:.0f} seconds.")
            time.sleep(PAUSE)
        found: str = self._call(lambda: self._store.get(key).decode())
        return found

    def _set(self, key: str, value: str) -> None:
        self._call(lambda: self._store.set(key, value))

    def _add(self, key: str, count: int) -> int:
        found: int = self._call(lambda: self._store.add(key, count))
        return found

    def _check(self, key: str) -> bool:
        found: bool = self._call(lambda: self._store.check([key]))
        return found

    def _call(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except RuntimeError as error:
            self._failure = self._failure or _gone(error)
            raise RuntimeError(self._failure) from None


def _gone(error: RuntimeError) -> str:
    reason = (str(error).strip() or "no reason given").splitlines()[0][:200]
    return f"the other processes cannot be reached ({reason}): the first of them, or torchrun, has ended."
