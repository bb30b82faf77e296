"""Commands on several processes, by ``torchrun`` and ``--processes``: the figures of one, and none outlives another."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from clipconformity import ReferenceSet
from clipconformity.cli import encoded, main, states
from clipconformity.demo import sample_scenes, write_coco_scenes

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("always")]

# Parts are small, and a silent process is noticed soon; else the commands are as they are.
SMALL = """
import os, sys, time
from clipconformity.cli import encoded, main, parts, ranks, states
states.ROWS, encoded.SAMPLES, ranks.SILENCE = 4096, 4, 10.0
pause = float(os.environ.get("PAUSE", "0"))
if pause:
    write = parts.Parts._write
    def slow(self, *arguments):
        write(self, *arguments)
        time.sleep(pause)
    parts.Parts._write = slow
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
IMAGES = ["--images", "coco/val2017", "--batch-size", "4", "--encoder", "tiny"]
PAIRS = ["--images", "coco/val2017", "--captions", "c.json", "--modality", "text", "--batch-size", "4"]
ROWS = ["--embeddings", "a.npy", "b.npy"]
AGAINST = ["--reference", "r.safetensors", "--resamples", "5"]
MODELS = ["real=coco/val2017", "again=coco/val2017", "--reference", "i.safetensors", "--batch-size", "4"]
COMMANDS = {
    "embed": ["embed", *IMAGES, "-o", "out.safetensors"],
    "reference of images": ["reference", *IMAGES, "-o", "out.safetensors"],
    "reference of rows": ["reference", *ROWS, "-o", "out.safetensors", "--max-samples", "300"],
    "reference of coco": ["reference", "--coco", "coco", "--encoder", "tiny", "-o", "out.safetensors"],
    "score of rows": ["score", *ROWS, *AGAINST, "--save", "out.safetensors"],
    "score of pairs": [
        "score",
        *PAIRS,
        "--reference",
        "t.safetensors",
        "--resamples",
        "5",
        "--save",
        "out.safetensors",
    ],
    "compare": ["compare", *MODELS, "--encoder", "tiny", "--resamples", "5", "--format", "json"],
}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("material")
    write_coco_scenes(folder / "coco", sample_scenes(30, seed=0), captions_per_image=1, seed=0)
    shutil.copy(folder / "coco" / "annotations" / "captions_val2017.json", folder / "c.json")
    random = np.random.default_rng(0)
    rows = (random.normal(size=(30_000, 5)) + 1).astype("f4")
    np.save(folder / "a.npy", rows[:9000])
    np.save(folder / "b.npy", rows[9000:])
    np.save(folder / "r.npy", rows[::9] + np.float32(0.1))
    (folder / "small.py").write_text(SMALL)
    kinds = {"r": ["--embeddings", f"{folder}/r.npy"], "i": ["--images", f"{folder}/coco/val2017"]}
    kinds["t"] = ["--captions", f"{folder}/c.json"]
    for name, source in kinds.items():
        encoder = [] if name == "r" else ["--encoder", "tiny"]
        assert main(["reference", *source, *encoder, "-o", f"{folder}/{name}.safetensors", "--quiet"]) == 0
    return folder


@pytest.fixture
def folder(material, tmp_path, monkeypatch) -> Iterator[Path]:
    """All of it in a folder of its own; this process takes parts of the same size, on as many threads as the others."""
    fill(tmp_path, material)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(states, "ROWS", 4096)
    monkeypatch.setattr(encoded, "SAMPLES", 4)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(before)


def fill(folder: Path, material: Path) -> None:
    for one in material.iterdir():
        (folder / one.name).symlink_to(one)


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=os.environ | environment, timeout=300, check=False
    )


def torchrun(world: int) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]


def outputs() -> dict[str, tuple[dict, dict]]:
    found = {}
    for path in sorted(Path().glob("out*.safetensors")):
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
            found[path.name] = tensors, file.metadata()
        path.unlink()
    return found


def left() -> list[str]:
    return sorted(path.name for path in Path().iterdir() if "parts" in path.name or path.name.endswith(".tmp"))


def alone(capsys, words: list[str]) -> tuple[Any, Any, str]:
    """Run a command in this process alone: what it tells, its files, which are removed, and what it says."""
    capsys.readouterr()
    assert main(words) == 0
    reported = capsys.readouterr()
    files = outputs()
    Path("out-captions.json").unlink(missing_ok=True)
    return json.loads(reported.out), files, reported.err


@pytest.mark.parametrize(("command", "world"), [(name, 2 + number % 2) for number, name in enumerate(COMMANDS)])
def test_torchrun_gives_the_result_of_one_process_once(command, world, folder, capsys):
    reported, files, said = alone(capsys, COMMANDS[command])
    many = run(*torchrun(world), "small.py", *COMMANDS[command])
    assert many.returncode == 0, many.stderr
    assert json.loads(many.stdout) == reported  # one result, to the last digit
    assert many.stderr.count("clipconformity: summary:") == said.count("clipconformity: summary:")
    assert outputs() == files
    assert left() == []


@pytest.mark.parametrize(("command", "world"), [("embed", 2), ("score of rows", 5)])
def test_processes_of_one_machine_give_the_result_of_one(command, world, folder, capsys):
    reported, files, _ = alone(capsys, COMMANDS[command])
    many = run("small.py", *COMMANDS[command], "--processes", str(world))
    assert many.returncode == 0, many.stderr
    assert json.loads(many.stdout) == reported
    assert outputs() == files
    assert left() == []


def test_more_processes_than_parts_leave_some_without_a_share(folder, capsys):
    words = ["reference", "--embeddings", "r.npy", "-o", "out.safetensors"]
    reported, files, _ = alone(capsys, words)
    many = run(*torchrun(3), "small.py", *words)
    assert many.returncode == 0, many.stderr
    assert json.loads(many.stdout) == reported
    assert outputs() == files


def started(
    rank: int, world: int, port: int, *words: str, place: Path | None = None, **environment: str
) -> subprocess.Popen[str]:
    """Start one of several processes, as any launcher does."""
    reported = {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "small.py", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | reported | environment,
        cwd=place,
    )


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize("differ", ["reference", "--dtype", "options", "samples"])
def test_processes_that_differ_end_with_an_error_on_each(differ, material, folder):
    words = [["score", *IMAGES, "--resamples", "5", "--reference", "i.safetensors"] for _ in range(3)]
    words[1] += {"--dtype": ["--dtype", "bfloat16"], "options": ["--metrics", "vendi"]}.get(differ, [])
    places = [folder / f"of-{rank}" for rank in range(3)]
    for place in places:
        place.mkdir()
        fill(place, material)
    if differ == "reference":
        (places[1] / "i.safetensors").unlink()
        ReferenceSet.fit(torch.randn(100, 64) + 1, modality="image").save(places[1] / "i.safetensors")
    if differ == "samples":
        (places[1] / "coco").unlink()
        shutil.copytree("coco", places[1] / "coco")
        max((places[1] / "coco" / "val2017").iterdir()).unlink()
    port = free_port()
    ranks = [started(rank, 3, port, *words[rank], place=places[rank]) for rank in range(3)]
    said = [one.communicate(timeout=120)[1] for one in ranks]
    assert [one.returncode for one in ranks] == [2, 2, 2], said
    assert all(f"clipconformity: error: the processes differ in the {differ}: rank 0 has" in text for text in said), (
        said
    )


@pytest.mark.parametrize("killed", [0, 2])
def test_a_killed_process_ends_the_others_in_time(killed, folder, capsys):
    """No launcher looks after them: they notice by themselves, and what is finished is kept."""
    port = free_port()
    words = [*COMMANDS["reference of rows"]]
    ranks = [started(rank, 3, port, *words, PAUSE="2") for rank in range(3)]
    until = time.monotonic() + 120
    while len(list(Path().glob("out.safetensors.parts/*.safetensors"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    ranks[killed].kill()
    began = time.monotonic()
    said = [one.communicate(timeout=60)[1] for one in ranks]
    assert time.monotonic() - began < 10 + 30  # of silence, and of a part on a machine with other work
    del ranks[killed], said[killed]
    # Another that had done its share by then has ended well; the first, which joins the parts, has not.
    assert {one.returncode for one in ranks} <= {0, 1}, said
    assert killed == 0 or ranks[0].returncode == 1, said
    reported = f"rank {killed} has given no sign of life" if killed else "the other processes cannot be reached"
    assert all(one.returncode == 0 or reported in text for one, text in zip(ranks, said, strict=True)), said
    assert not Path("out.safetensors").exists()
    reported, files, said = alone(capsys, words)
    assert "samples are taken up from out.safetensors.parts" in said
    assert left() == []
    assert alone(capsys, words)[:2] == (reported, files)


@pytest.mark.parametrize("which", ["first", "other"])
def test_a_kill_among_the_processes_of_a_machine_leaves_none_behind(which, folder):
    words = [*COMMANDS["reference of rows"], "--processes", "3"]
    first = subprocess.Popen(
        [sys.executable, "small.py", *words],
        env=os.environ | {"PAUSE": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while len(list(Path().glob("out.safetensors.parts/*.safetensors"))) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    workers = workers_of(first.pid)
    assert len(workers) == 2
    os.kill(first.pid if which == "first" else workers[1], signal.SIGKILL)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == (-signal.SIGKILL if which == "first" else 1)
    assert which == "first" or "was ended by signal 9; what is finished is kept" in said
    until = time.monotonic() + 10
    while any(is_running(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(is_running(pid) for pid in workers)
    assert main(words[:-2]) == 0
    assert left() == []


def test_a_worker_that_is_still_starting_does_not_outlive_the_first(folder):
    """It would look for the first process for minutes."""
    words = [*COMMANDS["reference of rows"], "--processes", "2"]
    first = subprocess.Popen([sys.executable, "small.py", *words], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (workers := workers_of(first.pid)) and time.monotonic() < until:
        time.sleep(0.02)
    first.kill()
    first.wait()
    until = time.monotonic() + 20
    while is_running(workers[0]) and time.monotonic() < until:
        time.sleep(0.1)
    assert not is_running(workers[0])


def workers_of(pid: int) -> list[int]:
    """The processes that one has started to share its work, without those of Python itself."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [one for one in children if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_with_its_status(sent, folder):
    words = [*COMMANDS["reference of rows"], "--processes", "2"]
    first = subprocess.Popen(
        [sys.executable, "small.py", *words],
        env=os.environ | {"PAUSE": "2"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    until = time.monotonic() + 120
    while not list(Path().glob("out.safetensors.parts/*.safetensors")) and time.monotonic() < until:
        time.sleep(0.05)
    workers = workers_of(first.pid)
    first.send_signal(sent)
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 128 + sent
    assert "what is finished is kept in out.safetensors.parts" in said
    assert len(workers) == 1
    assert not is_running(workers[0])


def test_a_full_disk_ends_all_with_its_message_and_keeps_nothing_broken(folder):
    words = [*COMMANDS["reference of rows"], "--processes", "2"]

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    found = subprocess.run(
        [sys.executable, "small.py", *words], capture_output=True, text=True, preexec_fn=small, timeout=120, check=False
    )
    assert found.returncode == 1
    assert "cannot be written (File too large)" in found.stderr
    assert not Path("out.safetensors").exists()
    assert list(Path().glob("out.safetensors.parts/*.safetensors")) == []
    assert main(words[:-2]) == 0
    assert left() == []


@pytest.mark.parametrize(
    ("words", "said"),
    [(["--processes", "0"], "--processes: expected at least 1, got 0"), (["--processes", "x"], "invalid int value")],
)
def test_numbers_of_processes_that_cannot_be_are_refused(words, said, folder):
    found = run("small.py", *COMMANDS["reference of rows"], *words)
    assert found.returncode == 2
    assert said in found.stderr


def test_processes_go_without_torchrun(folder):
    found = run(*torchrun(2), "small.py", *COMMANDS["reference of rows"], "--processes", "2")
    assert found.returncode != 0
    assert "--processes: goes without torchrun" in found.stderr


def test_what_is_not_shared_the_first_process_does_alone(folder):
    found = run(*torchrun(2), "small.py", "merge", "i.safetensors", "t.safetensors", "-o", "out.safetensors")
    assert "cannot merge references of different modality" in found.stderr
    assert found.stderr.count("clipconformity: error") == 1
