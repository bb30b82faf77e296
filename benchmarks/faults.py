"""Faults at random moments: whether anything is lost, left, or wrong afterwards.

Each command is run in a process of its own, and killed, starved of disk, robbed of its inputs or run twice at once;
then it is run again. An output must be whole or absent, nothing but finished parts may lie beside it, the inputs must
be as they were, no process may outlive the command, and the second run must take up every finished part, and give what
an undisturbed one gives. Parts are small here, so that many kills fall between two of them. Of the commands on two
processes each of the two is killed in turn, and the second run is by one process. Linux only.

    python benchmarks/faults.py [--kills 50] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import clipconformity.report  # noqa: F401 - loaded before the processes part, so that kills fall into the work
from clipconformity import ReferenceSet, cli
from clipconformity.cli import encoded, states
from clipconformity.data.folders import find_image_files
from clipconformity.demo import sample_scenes, write_coco_scenes
from clipconformity.encoders import load_encoder
from clipconformity.evaluation import images
from clipconformity.generators import caption_images, generate_images

PROMPTS = [f"prompt {number}" for number in range(24)]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
EXPECTED = {signal.SIGTERM: 143, signal.SIGINT: 130}
INPUTS = ("coco", "reference.safetensors", "rows.npy", "of-rows.safetensors")
SCENES, ROWS = 40, 60_000
encoded.SAMPLES, states.ROWS = 4, 4096  # also in the processes that a command starts, which import this file


def made(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
    time.sleep(0.01)
    return [Image.fromarray(np.random.default_rng(s).integers(0, 256, (16, 16, 3), dtype=np.uint8)) for s in seeds]


def captioned(images: list[Image.Image]) -> list[str]:
    time.sleep(0.01)
    return [f"sum {int(np.asarray(image).astype(int).sum())}" for image in images]


def command(*words: str, two: bool = False) -> Callable[[], int]:
    share = ["--processes", "2"] if two else []
    return lambda: cli.main([*words, *(["--overwrite"] if again else share)])


def generate() -> int:
    generate_images(made, PROMPTS, "images", batch_size=2, progress=False)
    return 0


def caption() -> int:
    caption_images(captioned, sorted(find_image_files(Path("coco"))), "captions.json", batch_size=2, progress=False)
    return 0


again = False
"""Whether the commands may replace what is there."""
IMAGES = ("--images", "coco/val2017", "--batch-size", "4")
SCORE = (*IMAGES, "--reference", "reference.safetensors", "--resamples", "50")
OF_ROWS = ("--embeddings", "rows.npy")
AGAINST = ("--reference", "of-rows.safetensors", "--resamples", "5")
RUNS: dict[str, tuple[Callable[[], int], tuple[str, ...]]] = {
    "embed": (command("embed", *IMAGES, "--encoder", "tiny", "-o", "e.safetensors"), ("e.safetensors",)),
    "reference": (command("reference", *IMAGES, "--encoder", "tiny", "-o", "r.safetensors"), ("r.safetensors",)),
    "score": (command("score", *SCORE, "--per-sample", "s.csv", "--report", "s.html"), ("s.csv", "s.html")),
    "reference of rows": (command("reference", *OF_ROWS, "-o", "q.safetensors"), ("q.safetensors",)),
    "score of rows": (command("score", *OF_ROWS, *AGAINST, "--save", "v.safetensors"), ("v.safetensors",)),
    "reference by two": (command("reference", *OF_ROWS, "-o", "p.safetensors", two=True), ("p.safetensors",)),
    "score by two": (command("score", *OF_ROWS, *AGAINST, "--save", "w.safetensors", two=True), ("w.safetensors",)),
    "generate": (generate, ("images",)),
    "caption": (caption, ("captions.json",)),
}
RESUMED = ("generate", "caption")
BY_TWO = ("reference by two", "score by two")
GRACE = 20.0
"""Seconds after a command within which the processes that it started must have ended."""
FAULTS = ("killed", "full disk", "two at once", "an input changes")


def start(run: Callable[[], int], *before: Callable[[], object]) -> int:
    """Run in a process of its own, which says nothing; give its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.setpgid(0, 0)  # so that what it starts is known by its group
    for number in (1, 2):
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    tqdm.set_lock(threading.RLock())  # its own is shared with the processes that were killed while they held it
    for prepare in before:
        prepare()
    try:
        status = run()
    except KeyboardInterrupt:
        status = 130
    except OSError as error:
        status = cli._choose_status(error)
    except BaseException:  # no error may lead out of here, into what the other process does
        traceback.print_exc()
        status = 70
    os._exit(status)


def wait(child: int) -> int:
    status = os.waitpid(child, 0)[1]
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def all_processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def is_left(group: int) -> bool:
    """Whether a process of a group outlives it, after some time to end; it is ended then."""
    until = time.monotonic() + GRACE
    while members := [pid for pid in all_processes() if is_running(pid, group)]:
        if time.monotonic() > until:
            for pid in members:
                os.kill(pid, signal.SIGKILL)
            return True
        time.sleep(0.05)
    return False


def worker_of(child: int) -> int | None:
    """The process that a command has started to share its work; None before that."""
    for one in map(int, Path(f"/proc/{child}/task/{child}/children").read_text().split()):
        if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes():
            return one
    return None


def wait_for_parts(child: int, count: int) -> None:
    """Wait until a command has finished some parts, or has ended."""
    while is_running(child) and len(list(Path().glob("*.parts/*.safetensors"))) < count:
        time.sleep(0.01)


def is_running(pid: int, group: int | None = None) -> bool:
    """Whether a process runs, and is of a group, where that is given."""
    try:
        state, _, its_group = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:3]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z" and group in (None, int(its_group))


def contents(*names: str) -> dict[str, bytes]:
    found = (path for name in names for path in (Path(name), *Path(name).rglob("*")))
    return {str(path): content(path) for path in found if path.is_file()}


def content(path: Path) -> bytes:
    """What a file holds: a report tells its command, which the second time has the option."""
    data = path.read_bytes()
    if path.suffix != ".safetensors" or len(data) < 8:
        return data.replace(b" --overwrite", b"")
    end = 8 + int.from_bytes(data[:8], "little")  # safetensors draws the order of the metadata
    try:
        return json.dumps(json.loads(data[8:end]), sort_keys=True).encode() + data[end:]
    except ValueError:  # a broken one
        return data


def sizes(part: Path) -> int:
    """Samples of a finished part."""
    number, of_rows = int(part.stem.partition("-")[2]), part.parent.name[0] in "qvpw"
    size, count = (states.ROWS, ROWS) if of_rows else (encoded.SAMPLES, SCENES)
    return min(size, count - number * size)


class Check:
    """What one command must leave."""

    def __init__(self, name: str) -> None:
        self.name, (self.run, self.outputs) = name, RUNS[name]
        for _ in range(2):  # the first is slower
            self.clear()
            began = time.monotonic()
            assert wait(start(self.run)) == 0, Path("log").read_text()
            self.seconds = time.monotonic() - began
        self.whole, self.inputs = contents(*self.outputs), contents(*INPUTS)
        self.wrong: Counter[str] = Counter()
        self.kept = 0
        """Second runs that found finished parts."""

    def clear(self) -> None:
        """Begin anew."""
        for path in Path().iterdir():
            if path.name not in INPUTS:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def note(self, problem: str, happened: bool) -> None:
        """Count what should not happen."""
        self.wrong[problem] += bool(happened)

    def after_fault(self, caught: bool) -> None:
        """Outputs are whole or absent; where the process could clean up, nothing else is left."""
        found = contents(*self.outputs)
        shown = {name: data for name, data in found.items() if not Path(name).name.startswith(".")}
        whole = {name: self.whole.get(name) for name in shown}
        if self.name in RESUMED:  # each image counts by itself, and the manifest grows
            shown.pop("images/manifest.jsonl", None)
            whole.pop("images/manifest.jsonl", None)
            whole = {name: data for name, data in whole.items() if not name.startswith("images/.")}
        else:
            self.note("parts of the outputs", shown and set(shown) != set(self.whole))
        self.note("broken output", shown != whole)
        if caught:
            left = sorted(str(path) for path in Path().rglob(".*") if path.suffix in (".tmp", ".lock"))
            self.note(f"left behind ({', '.join(left)})", bool(left))

    def afterwards(self) -> None:
        """The second run is right, and nothing else lies there."""
        global again
        again = self.name not in RESUMED
        finished = sum(sizes(path) for path in Path().glob("*.parts/*.safetensors"))
        self.kept += finished > 0
        Path("log").write_bytes(b"")
        self.note("second run failed", wait(start(self.run)) != 0)
        taken = re.search(r"(\d+) of \d+ samples are taken up", Path("log").read_text())
        self.note("finished part lost", finished > int(taken[1] if taken else 0))
        again = False
        self.note("second run differs", contents(*self.outputs) != self.whole)
        self.note("input changed", contents(*INPUTS) != self.inputs)
        known = {*INPUTS, *self.outputs, "log"}
        self.note("left after all", {path.name for path in Path().iterdir()} != known)


def kills(check: Check, count: int, draw: random.Random) -> None:
    struck = 0
    while struck < count:
        check.clear()
        kind = SIGNALS[struck % len(SIGNALS)]
        child = start(check.run)
        if check.name in BY_TWO and struck // 2 % 2:  # most of their time is that of starting
            wait_for_parts(child, draw.randrange(ROWS // states.ROWS))
        else:
            time.sleep(draw.uniform(0.02, 0.98) * check.seconds)
        other = worker_of(child) if check.name in BY_TWO and struck % 2 else None
        os.kill(child if other is None else other, kind)
        status = wait(child)
        check.note("process left", is_left(child))
        if status == 0:  # it had ended: the first ones were slower
            check.seconds *= 0.95
            continue
        struck += 1
        if other is not None:
            check.note(f"status {status} after the other was killed", status != 1)
            check.after_fault(caught=False)  # of the other a hidden file may be left, for the second run
            check.afterwards()
            continue
        # In Python only Ctrl-C is an exception; the commands make one of SIGTERM.
        caught = kind == signal.SIGINT or (kind == signal.SIGTERM and check.name not in RESUMED)
        # Before the command began, or where nothing catches it, the signal ends the process itself.
        check.note(f"status {status}", status not in ((EXPECTED[kind], -kind) if caught else (-kind,)))
        check.after_fault(caught and status != -kind)
        check.afterwards()


def full_disk(check: Check, draw: random.Random) -> None:
    """The system refuses what goes beyond a size, as where no space is left."""
    largest = max(len(data) for data in check.whole.values())
    for limit in (0, 1, largest // 2, largest - 1, *(draw.randrange(largest) for _ in range(4))):
        check.clear()
        Path("log").write_bytes(b"")

        def small(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        status = wait(start(check.run, small))
        check.note(f"status {status}", status != 1)
        check.after_fault(caught=True)
        check.afterwards()


def inputs_change(check: Check) -> None:
    """The last image vanishes, is cut or is emptied while the first is read."""
    last = max(find_image_files(Path("coco")))
    data = last.read_bytes()
    for change in (last.unlink, lambda: last.write_bytes(data[:40]), lambda: last.write_bytes(b"")):
        check.clear()

        def lie(change: Callable[[], object] = change) -> None:
            read = images.open_image

            def changed(path: Path) -> Image.Image:
                images.open_image = read
                change()
                return read(path)

            images.open_image = changed

        status = wait(start(check.run, lie))
        last.write_bytes(data)
        check.note(f"status {status}", status != 2)
        check.note("output all the same", bool(contents(*check.outputs)))
        check.afterwards()


def two_at_once(check: Check, count: int, draw: random.Random) -> None:
    for _ in range(count):
        check.clear()
        children = [start(check.run)]
        time.sleep(draw.uniform(0, 0.5) * check.seconds)
        children.append(start(check.run))
        found = sorted(wait(child) for child in children)
        check.note(f"statuses {found}", found != ([0, 0] if check.name in RESUMED else [0, 2]))
        check.note("output differs", contents(*check.outputs) != check.whole)
        check.after_fault(caught=True)
        check.afterwards()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=RUNS, default=list(RUNS), help="default: all")
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS, help="default: all")
    options = parser.parse_args()
    torch.set_num_threads(1)
    draw = random.Random(options.seed)
    load_encoder("tiny", "cpu").encode_text(["a red circle"])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_coco_scenes("coco", sample_scenes(SCENES, seed=0), seed=0)
        rows = np.random.default_rng(0).normal(size=(ROWS, 64)).astype("f4") + 1
        np.save("rows.npy", rows)
        of_rows = torch.from_numpy(rows[::7] + np.float32(0.1))
        ReferenceSet.fit(of_rows, max_samples=1000).save("of-rows.safetensors")
        assert wait(start(command("reference", *IMAGES, "--encoder", "tiny", "-o", "reference.safetensors"))) == 0
        print("| fault | command | runs | with finished parts | what went wrong |\n|---|---|---|---|---|")
        for name in options.commands:
            faults: dict[str, tuple[int, Callable[[Check], None]]] = {
                "killed": (options.kills, lambda check: kills(check, options.kills, draw)),
                "full disk": (8, lambda check: full_disk(check, draw)),
                "two at once": (10, lambda check: two_at_once(check, 10, draw)),
            }
            if name in ("embed", "reference", "score"):
                faults["an input changes"] = (3, inputs_change)
            for fault in options.faults:
                if fault not in faults:
                    continue
                runs, cause = faults[fault]
                check = Check(name)
                cause(check)
                wrong = ", ".join(f"{what}: {times}" for what, times in check.wrong.items() if times) or "nothing"
                print(f"| {fault} | {name}, {check.seconds:.1f} s | {runs} | {check.kept} | {wrong} |", flush=True)
        os.chdir("/")


if __name__ == "__main__":
    main()
