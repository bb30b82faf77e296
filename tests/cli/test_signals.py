"""Signals end a command with their own status, and leave nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from clipconformity.cli import main
from clipconformity.cli.signals import catch_stop_signals

STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
# A command that is held while its output is half written.
HELD = """
import signal, sys, time
from pathlib import Path
for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # nohup, or a shell in the background, may have them ignored
    signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
from clipconformity.cli import main
from clipconformity.data import embeddings
write = embeddings.write_tensors
def held(path, *arguments):
    Path(path).write_text("half")
    print("half", file=sys.stderr, flush=True)
    time.sleep(60)
embeddings.write_tensors = held
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def held(tmp_path):
    (tmp_path / "c.txt").write_text("a red circle\na blue star\n")
    command = ["embed", "--captions", "c.txt", "--encoder", "tiny", "-o", "out.safetensors"]
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, *command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while process.stderr.readline().strip() != "half":
        assert process.poll() is None
    assert (tmp_path / ".out.safetensors.1.tmp").is_dir()
    yield process
    process.kill()
    process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", STATUS)
def test_a_signal_cleans_up_and_has_its_status(name, held, tmp_path):
    held.send_signal(getattr(signal, name))
    out, err = held.communicate(timeout=60)
    assert (held.returncode, out, err) == (STATUS[name], "", "")
    assert names(tmp_path) == ["c.txt"]


def test_what_the_signal_that_nothing_catches_leaves_is_removed_by_the_next_run(held, tmp_path, monkeypatch, capsys):
    held.kill()
    held.wait()
    assert names(tmp_path) == [".out.safetensors.1.tmp", "c.txt"]
    monkeypatch.chdir(tmp_path)
    assert main(["embed", "--captions", "c.txt", "--encoder", "tiny", "-o", "out.safetensors"]) == 0
    assert names(tmp_path) == ["c.txt", "out.safetensors"]


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_stop_signals() as signals:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
        assert signals.status == 143
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_of_which_a_library_makes_an_error_keeps_its_status(monkeypatch, capsys):
    def interrupted(*_):
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    monkeypatch.setattr("clipconformity.cli.commands.list_encoders", interrupted)
    assert main(["encoders"]) == 143
    assert capsys.readouterr() == ("", "")


def test_a_command_runs_in_a_thread_too(tmp_path):
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(1, 1, (60, 8)).astype(np.float32))
    status = []
    command = ["reference", "--embeddings", str(tmp_path / "e.npy"), "-o", str(tmp_path / "r.safetensors")]
    thread = threading.Thread(target=lambda: status.append(main(command)))
    thread.start()
    thread.join()
    assert status == [0]


def test_memory_that_is_not_there_is_a_failure_under_way(tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("clipconformity.cli.commands.open_source", fail)
    (tmp_path / "c.txt").write_text("a red circle\n")
    command = [
        "embed",
        "--captions",
        str(tmp_path / "c.txt"),
        "--encoder",
        "tiny",
        "-o",
        str(tmp_path / "o.safetensors"),
    ]
    assert main(command) == 1
    assert capsys.readouterr().err == "clipconformity: error: there is not enough memory.\n"
