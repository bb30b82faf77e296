"""How a command comes to several processes: torchrun has started them, or it starts them itself."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from clipconformity.cli.ranks import Ranks

STARTED = "CLIPCONFORMITY_STARTED_BY"
"""Variable of the environment with the number of the process that started this one by ``--processes``."""
TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process."""
GRACE = 10.0
"""Seconds that a process has to end once another has failed, before it is ended."""


class ShareDone(Exception):  # noqa: N818 - no error: this process has nothing more to do
    """This process has done its share; the first one tells the result."""


def of_many() -> bool:
    """Whether torchrun, or another process of ``--processes``, started this one beside others."""
    return all(os.environ.get(name) for name in TOLD) and os.environ["WORLD_SIZE"] != "1"


def is_one_of_others() -> bool:
    """Whether this is another process than the first, which speaks for all."""
    return of_many() and os.environ["RANK"] != "0"


@contextmanager
def join_ranks(options: argparse.Namespace, words: Sequence[str]) -> Iterator[Ranks | None]:
    """Join the processes of a command, or start them; None where there is one alone.

    Args:
        options: Of the command; ``processes`` of them are started.
        words: The command line.

    Raises:
        ShareDone: If the first process does alone what is not shared, and this is another.
        ValueError: If there are fewer than one, or torchrun has started some already.
    """
    if not options.shared:
        if is_one_of_others():
            raise ShareDone
        yield None
        return
    count = options.processes
    if count is not None and count < 1:
        raise ValueError(f"--processes: expected at least 1, got {count}.")
    if of_many():
        if count is not None and STARTED not in os.environ:
            raise ValueError("--processes: goes without torchrun, which has started processes already; leave it out.")
        with _run_ranks(_read_environment()) as ranks:
            yield ranks
    elif count is not None and count > 1:
        with _start_processes(count, words) as ranks:
            yield ranks
    else:
        yield None


@contextmanager
def _run_ranks(ranks: Ranks) -> Iterator[Ranks]:
    """Tell the others how this process ends."""
    try:
        yield ranks
    except ShareDone:
        raise
    except BaseException as error:
        ranks.fail("it was interrupted" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__)
        raise
    finally:
        ranks.leave()


def _read_environment() -> Ranks:
    """Join those that torchrun, or ``--processes``, has started.

    Raises:
        RuntimeError: If the first of them cannot be reached.
    """
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    from clipconformity.cli.ranks import ARRIVAL, SILENCE, Ranks

    given = os.environ
    rank, world = int(given["RANK"]), int(given["WORLD_SIZE"])
    held_by_torchrun = given.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        given["MASTER_ADDR"],
        int(given["MASTER_PORT"]),
        world,
        rank == 0 and not held_by_torchrun and STARTED not in given,
        timeout=timedelta(seconds=ARRIVAL),
        wait_for_workers=False,
    )
    store.set_timeout(timedelta(seconds=SILENCE))  # from here on nothing is waited for in it
    attempt = PrefixStore(f"clipconformity/{given.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return Ranks(attempt, rank, world, int(given.get("LOCAL_RANK", "0")), int(given.get("LOCAL_WORLD_SIZE", "1")))


def _end_with(parent: int) -> None:
    """End this process when the one that started it is killed: no part is left half-written by that."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _start_processes(count: int, words: Sequence[str]) -> Iterator[Ranks]:
    """Start the others, which this process is the first of; the cores are divided among them."""
    import multiprocessing

    import torch
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    from clipconformity.cli.ranks import Ranks

    store = TCPStore("127.0.0.1", 0, count, True, wait_for_workers=False)
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, cores() // count)))
    environment = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        STARTED: str(os.getpid()),
        "OMP_NUM_THREADS": str(threads),
    }
    spawn = multiprocessing.get_context("spawn")
    others: list[SpawnProcess] = []
    try:
        for rank in range(1, count):
            other = spawn.Process(target=_work, args=(list(words),))
            with _environment(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}):
                other.start()
            others.append(other)
        both = (threads, torch.get_num_threads())
        named = PrefixStore("clipconformity/0", store)
        with _run_ranks(Ranks(named, 0, count, 0, count, both, lambda: _failed(others))) as ranks:
            yield ranks
    finally:
        _end(others)


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _work(words: list[str]) -> None:
    """Do the share of one of the processes; what it has to say the first one says."""
    _end_with(int(os.environ[STARTED]))  # before anything is waited for, which would last minutes
    from clipconformity.cli import main

    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lasts
    sys.exit(main(words))


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _failed(others: Sequence[SpawnProcess]) -> str | None:
    """Say which of the others has failed, and how, once one has."""
    for rank, other in enumerate(others, start=1):
        if other.exitcode:
            how = f"was ended by signal {-other.exitcode}" if other.exitcode < 0 else "has failed"
            return f"rank {rank} {how}"
    return None


def _end(others: Sequence[SpawnProcess]) -> None:
    """Wait for the others to end, and end those that do not."""
    until = time.monotonic() + GRACE
    steps: tuple[Any, ...] = (lambda _: None, lambda one: one.terminate(), lambda one: one.kill())
    for end in steps:
        for other in others:
            if other.is_alive():
                end(other)
        for other in others:
            other.join(max(0.0, until - time.monotonic()))
        until = time.monotonic() + GRACE
