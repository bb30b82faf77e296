"""What is written replaces nothing that it should not, and appears whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import torch

from clipconformity import ReferenceSet
from clipconformity.data import merge_results, write_embeddings, write_results
from clipconformity.data.files import check_outputs, refuse_same, replacing, write_tensors


def write(path: Path, text: str = "new") -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def fail_half_way(path: Path, error: Exception) -> None:
    with replacing(path) as temporary:
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


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_not_replaced_by_one(kind, writer, tmp_path):
    path = tmp_path / "out.safetensors"
    SPECIAL[kind](path)
    before = path.lstat()
    with pytest.raises(OSError, match=r"out\.safetensors is not a regular file, but a device, a pipe"):
        WRITERS[writer](path)
    assert path.lstat() == before
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
