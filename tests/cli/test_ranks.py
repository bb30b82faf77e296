"""Processes of one command share its parts, do the same work, and end together; here each is a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import HashStore

from clipconformity.cli import ranks as ranks_module
from clipconformity.cli import states
from clipconformity.cli.parts import Job, Parts
from clipconformity.cli.processes import ShareDone
from clipconformity.cli.ranks import Ranks
from clipconformity.evaluation import build_reference, embedding_source
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.reference_file import reference_identity


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ranks_module, "BEAT", 0.02)
    monkeypatch.setattr(ranks_module, "LINGER", 0.5)


def together(world: int, work: Callable[[Ranks], Any], *, silent: int | None = None) -> list[Any]:
    """Run the work of each process in a thread; what each gives, or the error that it ends with."""
    store, found = HashStore(), [None] * world

    def run(rank: int) -> None:
        ranks = Ranks(store, rank, world)
        try:
            found[rank] = work(ranks)
        except Exception as error:
            found[rank] = error
            if not isinstance(error, ShareDone):
                ranks.fail(str(error))
        finally:
            if rank == silent:
                ranks._stop.set()  # as one that was killed
            else:
                ranks.leave()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    return found


@pytest.mark.parametrize(("world", "count"), [(2, 7), (3, 2), (3, 0), (5, 40)])
def test_each_part_is_taken_once_whatever_the_shares(world, count):
    def work(ranks: Ranks) -> list[int]:
        undone = ranks.share(0, list(range(100, 100 + count)) if ranks.first else [])
        mine = list(ranks.claims(0, undone))
        ranks.finish(0)
        while ranks.first and not ranks.finished(0):
            time.sleep(0.01)
        return mine

    found = together(world, work)
    assert sorted(part for mine in found for part in mine) == list(range(100, 100 + count))


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_processes_that_differ_end_with_an_error_on_each(odd):
    def work(ranks: Ranks) -> None:
        ranks.agree(0, {"options": "alike", "reference": "other" if ranks.rank == odd else "this"})

    found = together(3, work)
    assert all(isinstance(error, ValueError) for error in found), found
    assert len({str(error) for error in found}) == 1
    assert "the processes differ in the reference: rank 0 has " in str(found[0])


def test_processes_that_agree_go_on():
    assert together(3, lambda ranks: ranks.agree(0, {"reference": "this"})) == [None] * 3


def test_one_that_fails_ends_the_others_with_its_message():
    def work(ranks: Ranks) -> None:
        if ranks.rank == 1:
            raise ValueError("cat.png is no image")
        while True:
            ranks.check()
            time.sleep(0.01)

    found = together(3, work)
    other = "rank 1: cat.png is no image"
    assert [str(error) for error in found] == [other, "cat.png is no image", other]


@pytest.mark.parametrize("silent", [0, 1])
def test_one_that_is_silent_ends_the_others_within_the_time(silent, monkeypatch):
    monkeypatch.setattr(ranks_module, "SILENCE", 0.4)

    def work(ranks: Ranks) -> None:
        ranks.agree(0, {"samples": "these"})
        if ranks.rank == silent:
            time.sleep(0.2)
            return
        while True:
            ranks.check()
            time.sleep(0.01)

    began = time.monotonic()
    found = together(3, work, silent=silent)
    assert time.monotonic() - began < 5
    del found[silent]
    assert all(f"rank {silent} has given no sign of life for 0 seconds" in str(error) for error in found), found


def test_one_that_never_comes_is_waited_for_no_longer_than_told(monkeypatch):
    monkeypatch.setattr(ranks_module, "ARRIVAL", 0.2)
    found = together(2, lambda ranks: ranks.agree(0, {}) if ranks.first else time.sleep(0.6))
    assert str(found[0]) == "rank 1 has not arrived within 0 seconds."


def test_a_process_that_was_started_and_failed_is_told_of():
    ranks = Ranks(HashStore(), 0, 2, ended=lambda: "rank 1 was ended by signal 9")
    time.sleep(0.5)
    with pytest.raises(RuntimeError, match="rank 1 was ended by signal 9; what is finished is kept"):
        ranks.check()
    ranks.leave()


# --- parts of rows ---------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path, monkeypatch) -> list[Path]:
    """Two files, of which the parts are of two batches each; the last part is smaller."""
    monkeypatch.setattr(states, "ROWS", 8192)
    random = np.random.default_rng(0)
    values = (random.normal(size=(30_000, 6)) + 1).astype("f4")
    for name, part in (("a", values[:11_111]), ("b", values[11_111:])):
        np.save(tmp_path / f"{name}.npy", part)
    return [tmp_path / "a.npy", tmp_path / "b.npy"]


def built(paths: list[Path], parts: Parts) -> ReferenceSet:
    source = embedding_source(paths)
    moments = states.build_moments(parts, source, 500, {"kind": "test"})
    assert source.used == 30_000
    assert [file.used for file in source.files] == [11_111, 18_889]
    return ReferenceSet.from_moments(moments, source.provenance)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_any_number_of_processes_gives_the_reference_of_one_to_the_last_bit(world, rows, tmp_path):
    with Parts(tmp_path / "one") as parts:
        one = built(rows, parts)

    def work(ranks: Ranks) -> ReferenceSet:
        with Parts(tmp_path / "out", ranks, quiet=True) as parts:
            return built(rows, parts)

    first, *others = together(world, work)
    assert isinstance(first, ReferenceSet), first
    assert all(isinstance(one, ShareDone) for one in others)
    assert reference_identity(first) == reference_identity(one)
    assert torch.equal(first.conformities, one.conformities)
    assert first.sample_ids == one.sample_ids
    assert not (tmp_path / "out.parts").exists()
    whole = build_reference(embedding_source(rows), max_samples=500)  # one pass, not in parts
    assert torch.equal(whole.sample.keys, first.sample.keys)
    for name, tensor in whole.moments.state.items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(first.moments.get_sum(name), whole.moments.get_sum(name), rtol=1e-12, atol=1e-9)


def test_what_some_processes_left_another_number_of_them_takes_up(rows, tmp_path):
    with Parts(tmp_path / "one") as parts:
        one = built(rows, parts)
    made: list[str] = []

    def failing(ranks: Ranks) -> None:
        with Parts(tmp_path / "out", ranks, quiet=True) as parts:
            write = parts._write

            def write_two(*arguments: Any) -> None:
                write(*arguments)
                made.append("part")
                if len(made) == 2:
                    raise OSError(28, "No space left on device")

            parts._write = write_two  # type: ignore[method-assign]
            built(rows, parts)

    with pytest.warns(UserWarning, match="what is finished is kept in"):
        found = together(2, failing)
    assert all(isinstance(error, (OSError, RuntimeError)) for error in found), found
    left = sorted(path.name for path in (tmp_path / "out.parts").iterdir())
    assert 2 <= len(left) <= 3  # the other may have been about to end one too

    def work(ranks: Ranks) -> ReferenceSet:
        with Parts(tmp_path / "out", ranks, quiet=True) as parts:
            return built(rows, parts)

    with pytest.warns(UserWarning, match="of 30000 samples are taken up"):
        again = together(3, work)[0]
    assert isinstance(again, ReferenceSet), again
    assert reference_identity(again) == reference_identity(one)


def test_one_that_reads_other_rows_ends_all(rows, tmp_path):
    def work(ranks: Ranks) -> None:
        with Parts(tmp_path / "out", ranks, quiet=True) as parts:
            states.build_moments(parts, embedding_source(rows[: 2 - ranks.rank]), 500, {})

    found = together(2, work)
    assert all("the processes differ in the samples" in str(error) for error in found), found
    assert not (tmp_path / "out.parts").exists()


def test_a_folder_of_another_run_is_refused_by_several(rows, tmp_path):
    (tmp_path / "out.parts").mkdir()
    (tmp_path / "out.parts" / "thesis.tex").write_text("mine")

    def work(ranks: Ranks) -> None:
        with Parts(tmp_path / "out", ranks, quiet=True) as parts:
            built(rows, parts)

    found = together(2, work)
    assert all("another run is at work there, or other files lie in it" in str(error) for error in found), found
    assert [path.name for path in (tmp_path / "out.parts").iterdir()] == ["thesis.tex"]


def test_a_part_that_cannot_be_read_is_made_by_the_first(tmp_path):
    """As on a network drive that does not show yet what another machine has written."""
    made: list[int] = []

    def make(numbers: Any, advance: Any) -> Any:
        for number in numbers:
            made.append(number)
            advance(1)
            yield number

    def read(path: Path) -> int:
        raise FileNotFoundError(path)

    job = Job(["a", "b", "c"], [1, 1, 1], make, lambda path, found, reported: None, read)

    def work(ranks: Ranks) -> list[int]:
        with Parts(tmp_path / "out", ranks, quiet=True) as parts:
            found = parts.run(job)
            parts.leave()
            return list(found)

    assert together(2, work)[0] == [0, 1, 2]
    assert sorted(made) == [0, 0, 1, 1, 2, 2]
