"""What is written replaces nothing that it should not, and appears whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from clipconformity import ReferenceSet
from clipconformity.data import locks, merge_results, write_embeddings, write_results
from clipconformity.data.files import (
    Publication,
    _Part,
    check_outputs,
    make_scratch_folder,
    refuse_same,
    replace_file,
    write_tensors,
)
from clipconformity.data.locks import LOCK_NAME, hold_lock, try_lock


def write(path: Path, text: str = "new") -> None:
    with replace_file(path) as temporary:
        temporary.write_text(text)


def fail_half_way(path: Path, error: Exception) -> None:
    with replace_file(path) as temporary:
        temporary.write_text("half")
        raise error


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    """A /dev/null of one's own: a test of a broken check must not cost the machine its device."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


SPECIAL = {"pipe": pipe, "device": device, "loop of links": loop}
WRITERS = {
    "replacing": write,
    "embeddings": lambda path: write_embeddings(path, torch.ones(2, 3)),
    "reference": lambda path: ReferenceSet.fit(torch.rand(9, 4) + 0.1).save(path),
    "results": lambda path: write_results(path, [1], ["a dog"]),
}


def without_access_time(path):
    """What a path says of itself; to follow a link is to access it."""
    about = path.lstat()
    return about.st_mode, about.st_ino, about.st_size, about.st_mtime_ns, about.st_nlink


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_not_replaced_by_one(kind, writer, tmp_path):
    path = tmp_path / "out.safetensors"
    SPECIAL[kind](path)
    before = without_access_time(path)
    with pytest.raises(OSError, match=r"out\.safetensors is not a regular file, but a device, a pipe"):
        WRITERS[writer](path)
    assert without_access_time(path) == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_to_a_pipe_is_not_replaced_either(tmp_path):
    pipe(tmp_path / "pipe")
    (tmp_path / "out").symlink_to(tmp_path / "pipe")
    with pytest.raises(OSError, match="is not a regular file"):
        write(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("old", ["old", None])
def test_through_a_link_the_file_behind_it_is_written_and_the_link_stays(old, tmp_path):
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    target.parent.mkdir()
    if old is not None:
        target.write_text(old)
    link.symlink_to(target)
    write(link)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_failure_leaves_the_old_file_behind_a_link(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(RuntimeError):
        fail_half_way(tmp_path / "link", RuntimeError())
    assert (tmp_path / "target").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_a_full_disk_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(OSError, match="No space left on device") as raised:
        fail_half_way(tmp_path / "out", OSError(errno.ENOSPC, "No space left on device"))
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "out"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", ["I/O error: No space left (os error 28)", "IoError(Os { code: 28, kind: StorageFull })"]
)
def test_a_failure_of_safetensors_to_write_is_an_error_of_the_system(words, tmp_path, monkeypatch):
    """As safetensors words it today and before version 0.5."""
    from safetensors import SafetensorError

    def fail(*_):
        raise SafetensorError(f"Error while serializing: {words}")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match=r"out\.safetensors") as raised:
        write_tensors(tmp_path / "out.safetensors", {"a": torch.ones(1)}, {})
    assert raised.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.fixture
def aliases(tmp_path) -> dict[str, Path]:
    """One file by its name, by a roundabout path, by a symbolic and by a hard link."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "symbolic").symlink_to("file")
    (tmp_path / "hard").hardlink_to(tmp_path / "file")
    about = tmp_path / "folder" / ".." / "file"
    return {"name": tmp_path / "file", "path": about, "symbolic": tmp_path / "symbolic", "hard": tmp_path / "hard"}


@pytest.mark.parametrize("kind", ["name", "path", "symbolic", "hard"])
def test_one_file_is_known_by_all_of_its_names(kind, aliases):
    with pytest.raises(ValueError, match=r"--report .* and --captions .*file are the same file; name each file once"):
        check_outputs([("--report", aliases[kind])], [("--captions", aliases["name"])])
    with pytest.raises(ValueError, match="are the same file"):
        refuse_same([("--embeddings", aliases["name"]), ("--embeddings", aliases[kind])])


def test_outputs_that_are_not_there_yet_are_told_apart(tmp_path):
    (tmp_path / "link").symlink_to("new")
    check_outputs([("-o", tmp_path / "new"), ("--report", tmp_path / "other")])
    with pytest.raises(ValueError, match="-o .*new and --report .*link are the same file"):
        check_outputs([("-o", tmp_path / "new"), ("--report", tmp_path / "link")])


def test_inputs_may_be_one_file_among_themselves(aliases, tmp_path):
    (tmp_path / "old").write_text("x")
    check_outputs([("-o", tmp_path / "old")], [("--captions", path) for path in aliases.values()])


def test_results_are_not_merged_into_one_of_their_parts(tmp_path):
    parts = [tmp_path / "a.json", tmp_path / "b.json"]
    for number, part in enumerate(parts):
        write_results(part, [number], ["a dog"])
    before = parts[1].read_bytes()
    with pytest.raises(ValueError, match="are the same file"):
        merge_results(parts, parts[1])
    assert parts[1].read_bytes() == before


# --- killed, together, and not over what is there --------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from clipconformity.data.files import replace_file
with replace_file(Path(sys.argv[1])) as temporary:
    temporary.write_text("half of a file")
    print("written", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def writer():
    """Start processes that write half of a file, and wait."""
    started = []

    def start(path: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, writer):
    kill(writer(tmp_path / "out"))
    assert names(tmp_path) == [".out.1.tmp"]
    write(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "new"


def test_what_a_living_process_writes_is_left_to_it(tmp_path, writer):
    living = writer(tmp_path / "out")
    write(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "new"
    assert (tmp_path / ".out.1.tmp" / ".out").read_text() == "half of a file"
    living.communicate()
    assert living.returncode == 0
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "half of a file"


def test_what_several_killed_processes_left_is_removed_beside_a_living_one(tmp_path, writer):
    first, living, last = (writer(tmp_path / "out") for _ in range(3))
    kill(first)
    kill(last)
    write(tmp_path / "out")
    assert names(tmp_path) == [".out.2.tmp", "out"]
    living.communicate()
    assert names(tmp_path) == ["out"]


def test_what_lies_there_without_locks_is_never_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("clipconformity.data.locks.fcntl", None)
    (tmp_path / ".out.1.tmp").mkdir()
    (tmp_path / ".out.1.tmp" / ".out").write_text("someone's")
    write(tmp_path / "out")
    assert names(tmp_path) == [".out.1.tmp", "out"]
    assert (tmp_path / ".out.1.tmp" / ".out").read_text() == "someone's"


def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    texts = [str(number) * 1000 for number in range(8)]
    threads = [threading.Thread(target=write, args=(tmp_path / "out", text)) for text in texts for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() in texts


def test_files_appear_together_when_all_are_written(tmp_path):
    with Publication() as files:
        for name in ("a", "b"):
            files.add(tmp_path / name).write_text(name)
            assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert names(tmp_path) == ["a", "b"]


def publish(folder: Path, *names: str, overwrite: bool, meanwhile: str | None = None) -> None:
    """Publish files; ``meanwhile`` appears before they do."""
    with Publication(overwrite=overwrite) as files:
        for name in names:
            files.add(folder / name).write_text("new")
        if meanwhile is not None:
            (folder / meanwhile).write_text("another's")


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_where_the_last_cannot_appear_the_first_is_taken_back(overwrite, error, tmp_path, monkeypatch):
    if overwrite:
        (tmp_path / "a").write_text("old")
    publish_part = _Part.publish

    def fail(part, *arguments):
        if part.path.name == "b":
            raise error
        publish_part(part, *arguments)
        assert part.target.read_text() == "new"

    monkeypatch.setattr(_Part, "publish", fail)
    with pytest.raises(type(error)):
        publish(tmp_path, "a", "b", overwrite=overwrite)
    assert names(tmp_path) == (["a"] if overwrite else [])
    assert not overwrite or (tmp_path / "a").read_text() == "old"


def test_a_file_that_appeared_under_way_is_not_replaced_without_leave(tmp_path):
    with pytest.raises(FileExistsError, match="out was written by another process during this run"):
        publish(tmp_path, "first", "out", overwrite=False, meanwhile="out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out").read_text() == "another's"


def test_without_second_names_files_appear_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for overwrite in (False, True):
        publish(tmp_path, "out", overwrite=overwrite)
        assert (tmp_path / "out").read_text() == "new"
    (tmp_path / "out").write_text("old")
    with pytest.raises(FileExistsError):
        publish(tmp_path, "out", overwrite=False)
    assert (tmp_path / "out").read_text() == "old"


def fail_in_scratch(path: Path) -> None:
    with make_scratch_folder(path) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("x")
        raise RuntimeError


def test_a_scratch_folder_is_gone_afterwards(tmp_path):
    with pytest.raises(RuntimeError):
        fail_in_scratch(tmp_path / "scenes")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["x.pt", "x", "x.npy", "x.SAFETENSORS"])
@pytest.mark.parametrize("writer", ["embeddings", "reference"])
def test_a_name_of_another_format_is_not_written_as_safetensors(name, writer, tmp_path):
    with pytest.raises(ValueError, match=r"expected a name that ends in \.safetensors, got"):
        WRITERS[writer](tmp_path / name)
    assert names(tmp_path) == []


@pytest.mark.parametrize("writer", WRITERS)
def test_in_python_an_older_file_is_replaced(writer, tmp_path):
    path = tmp_path / "out.safetensors"
    path.write_text("old")
    WRITERS[writer](path)
    assert path.read_bytes() != b"old"
    assert names(tmp_path) == ["out.safetensors"]


def test_a_lock_is_one_holder_s(tmp_path):
    held = try_lock(tmp_path / LOCK_NAME)
    assert held is not None
    assert try_lock(tmp_path / LOCK_NAME) is None
    held.release()
    assert names(tmp_path) == []
    again = try_lock(tmp_path / LOCK_NAME)
    assert again is not None
    again.release()


def test_who_comes_second_is_told_and_waits(tmp_path):
    inside, order = threading.Event(), []

    def first():
        with hold_lock(tmp_path / LOCK_NAME, "here"):
            inside.set()
            waiting.wait(20)
            order.append("first")

    waiting = threading.Event()
    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(20)
    threading.Timer(0.3, waiting.set).start()
    with pytest.warns(UserWarning, match="here: another run is using it"), hold_lock(tmp_path / LOCK_NAME, "here"):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]
    assert names(tmp_path) == []


def test_what_reads_and_writes_files_imports_where_there_are_no_locks():
    """As on Windows."""
    code = "import sys; sys.modules['fcntl'] = None; import clipconformity.cli, clipconformity.data.files"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


# --- signals ---------------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """What the handler of a test makes of SIGTERM."""


def hold(folder: Path) -> None:
    with hold_lock(folder / ".a.lock", folder):
        pass


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "work", [lambda folder: locks.claim_workplace(folder / "a"), hold, lambda folder: write(folder / "a")]
)
def test_a_signal_while_a_lock_is_made_leaves_nothing(tmp_path, monkeypatch, kind, work):
    """It comes between the making of the file and the return to who cleans up."""

    def stop(*_: object) -> None:
        raise StoppedError

    real = locks._is_at

    def struck(handle: int, path: Path) -> bool:
        os.kill(os.getpid(), kind)
        time.sleep(0.01)  # until it is handled
        return real(handle, path)

    monkeypatch.setattr(locks, "_is_at", struck)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises((KeyboardInterrupt, StoppedError)):
            work(tmp_path)
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == []
