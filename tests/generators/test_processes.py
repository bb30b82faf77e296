"""Runs split over real processes, and killed in the middle: the same result, and nothing made twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from clipconformity.data import list_images, merge_results, read_results
from clipconformity.generators import caption_images, generate_images, rank_path, read_manifest

pytestmark = pytest.mark.slow
COUNT = 30
PROMPTS = [f"prompt {number}" for number in range(COUNT)]

# What a worker process runs: it notes what it was asked for, before it answers.
GENERATOR = """
def made(prompts, seeds):
    images = []
    for prompt, seed in zip(prompts, seeds):
        values = np.random.default_rng([seed, len(prompt)]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        images.append(Image.fromarray(values))
    return images
"""
WORKER = (
    """
import sys, time
from pathlib import Path
import numpy as np
from PIL import Image
from clipconformity.generators import caption_images
from clipconformity.generators import generate_images
"""
    + GENERATOR
    + """
kind, folder, log, pause, rank, world = sys.argv[1:]
folder, rank, world = Path(folder), int(rank), int(world)

def noted(names):
    with open(log, "a") as file:
        file.writelines(f"{name}\\n" for name in names)
    time.sleep(float(pause))

def slow(prompts, seeds):
    noted(prompts)
    return made(prompts, seeds)

def captioner(images):
    texts = [f"sum {int(np.asarray(image).astype(int).sum())}" for image in images]
    noted(texts)
    return texts

prompts = [f"prompt {number}" for number in range(30)]
if kind == "images":
    generate_images(slow, prompts, folder / "images", batch_size=2, rank=rank, world=world)
else:
    paths = sorted((folder / "source").glob("*.png"))
    caption_images(captioner, paths, folder / "out.json", batch_size=2, rank=rank, world=world)
"""
)


def made(prompts, seeds):
    namespace = {"np": np, "Image": Image}
    exec(GENERATOR, namespace)
    return namespace["made"](prompts, seeds)


def summed(images):
    return [f"sum {int(np.asarray(image).astype(int).sum())}" for image in images]


def start(kind, folder, log, *, pause=0.0, rank=0, world=1):
    arguments = [kind, folder, log, pause, rank, world]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", WORKER, *map(str, arguments)], env=environment)


def kill_when(process, happened):
    """Kill a process, with the signal that it cannot catch, once something has happened."""
    limit = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def lines(path):
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def pixels(folder):
    return {path.name: Image.open(path).tobytes() for path in list_images(folder)}


def test_a_killed_generation_goes_on_and_makes_nothing_twice(tmp_path):
    whole = generate_images(made, PROMPTS, tmp_path / "whole", batch_size=2)
    log, images = tmp_path / "log", tmp_path / "images"
    kill_when(start("images", tmp_path, log, pause=0.05), lambda: len(list(images.glob("0*.png"))) > 6)
    kept = {path.name: path.stat().st_mtime_ns for path in list_images(images)}
    assert 6 < len(kept) < COUNT
    assert start("images", tmp_path, log).wait() == 0
    assert pixels(images) == pixels(whole.manifest.parent)
    assert all((images / name).stat().st_mtime_ns == stamp for name, stamp in kept.items())
    asked = Counter(lines(log))
    assert set(asked) == set(PROMPTS)
    for name in kept:  # whatever had reached the disk was not asked for again
        assert asked[PROMPTS[int(name[:6])]] == 1
    assert sum(asked.values()) <= COUNT + 2  # of the batch under way when it was killed, at most
    assert [entry["prompt"] for entry in read_manifest(images)] == PROMPTS


def test_two_processes_at_once_one_of_them_killed_make_the_same_images(tmp_path):
    whole = generate_images(made, PROMPTS, tmp_path / "whole", batch_size=3)
    log, images = tmp_path / "log", tmp_path / "images"
    first = start("images", tmp_path, log, pause=0.02, rank=0, world=2)
    second = start("images", tmp_path, log, pause=0.05, rank=1, world=2)
    kill_when(second, lambda: len(list(images.glob("0*.png"))) > 8)
    assert first.wait() == 0
    assert len(list_images(images)) < COUNT
    assert start("images", tmp_path, log, rank=1, world=2).wait() == 0
    assert pixels(images) == pixels(whole.manifest.parent)
    assert len(read_manifest(images)) == COUNT
    assert sum(Counter(lines(log)).values()) <= COUNT + 2


def test_two_generations_in_one_folder_at_once_make_each_image_once(tmp_path):
    whole = generate_images(made, PROMPTS, tmp_path / "whole", batch_size=2)
    log, images = tmp_path / "log", tmp_path / "images"
    both = [start("images", tmp_path, log, pause=0.02) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert pixels(images) == pixels(whole.manifest.parent)
    assert sorted(lines(log)) == sorted(PROMPTS)
    assert lines(images / "manifest.jsonl") == lines(whole.manifest)
    assert {path.suffix for path in images.iterdir()} == {".png", ".jsonl"}


def test_two_captioners_of_one_file_at_once_caption_each_image_once(tmp_path):
    source = tmp_path / "source"
    generate_images(made, PROMPTS, source)
    log, target = tmp_path / "log", tmp_path / "out.json"
    both = [start("captions", tmp_path, log, pause=0.02) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert sorted(lines(log)) == sorted(read_results(target).texts)
    assert len(lines(log)) == COUNT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out.json", "source"]


@pytest.mark.parametrize("kind", ["images", "captions"])
def test_the_lock_of_a_killed_run_holds_nobody_up(kind, tmp_path):
    generate_images(made, PROMPTS, tmp_path / "source")
    log = tmp_path / "log"
    kill_when(start(kind, tmp_path, log, pause=0.05), lambda: len(lines(log)) > 4)
    place = tmp_path / "images" if kind == "images" else tmp_path
    assert list(place.glob(".*.lock"))
    assert start(kind, tmp_path, log).wait(120) == 0
    assert not list(place.glob(".*"))


@pytest.mark.parametrize("world", [1, 2])
def test_a_killed_captioner_goes_on_and_captions_nothing_twice(tmp_path, world):
    source = tmp_path / "source"
    generate_images(made, PROMPTS, source)
    paths = sorted(source.glob("*.png"))
    whole = caption_images(summed, paths, tmp_path / "whole.json")
    log, target = tmp_path / "log", tmp_path / "out.json"
    parts = [target] if world == 1 else [rank_path(target, rank, world) for rank in range(world)]
    partial = parts[-1].with_name(parts[-1].name + ".partial.jsonl")
    others = [start("captions", tmp_path, log, pause=0.02, rank=rank, world=world) for rank in range(world - 1)]
    last = start("captions", tmp_path, log, pause=0.05, rank=world - 1, world=world)
    kill_when(last, lambda: len(lines(partial)) > 4)
    assert all(process.wait() == 0 for process in others)
    assert not parts[-1].is_file()
    stored = {json.loads(line)["caption"] for line in lines(partial)}
    assert start("captions", tmp_path, log, rank=world - 1, world=world).wait() == 0
    found = merge_results(parts, target) if world > 1 else read_results(target)
    assert found == whole.captions
    asked = Counter(lines(log))
    assert all(asked[text] == 1 for text in stored)
    assert sum(asked.values()) <= COUNT + 2
