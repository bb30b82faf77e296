"""What the examples are run on: drawn scenes in the layout of MS-COCO, references of them, saved small checkpoints."""

from __future__ import annotations

import importlib.util
import io
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import checkpoints
import pytest
import torch

import clipconformity as cc
from clipconformity.data import read_coco, write_results
from clipconformity.demo import sample_scenes, write_coco_scenes
from clipconformity.evaluation import build_reference, caption_source, image_source

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Done(NamedTuple):
    """What an example said, and how it ended."""

    status: int
    stdout: str
    stderr: str


class Material(NamedTuple):
    """Folder of images; files of one caption each, of all, of one each as results, and of references."""

    images: Path
    prompts: Path
    captions: Path
    results: Path
    image_reference: Path
    text_reference: Path


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    def refused(*_: object) -> None:
        raise OSError("the network was asked for something")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    root = tmp_path_factory.mktemp("material")
    write_coco_scenes(root, sample_scenes(60, seed=0), seed=0)
    one, every = read_coco(root), read_coco(root, per_image=None)
    names = ("val2017", "prompts.json", "all.json", "results.json", "image.safetensors", "text.safetensors")
    found = Material(*(root / name for name in names))
    write_results(found.results, one.image_ids, one.captions.texts)
    encoder = cc.load_encoder("tiny", "cpu")
    one.save_captions(found.prompts)
    every.save_captions(found.captions)
    build_reference(image_source(one.image_paths, encoder)).save(found.image_reference)
    build_reference(caption_source(every.captions, encoder)).save(found.text_reference)
    return found


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Save a small checkpoint of a kind, once."""
    root = tmp_path_factory.mktemp("checkpoints")

    def saved(kind: str) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of third parties
            return root / kind if (root / kind).is_dir() else checkpoints.save(kind, root / kind)

    return saved


@pytest.fixture(scope="session")
def example() -> Callable[[str], ModuleType]:
    """Load an example from its file alone, as a copy of it would be."""
    loaded: dict[str, ModuleType] = {}

    def load(name: str) -> ModuleType:
        if name not in loaded:
            spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            loaded[name] = importlib.util.module_from_spec(spec)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of third parties at import
                spec.loader.exec_module(loaded[name])
        return loaded[name]

    return load


@pytest.fixture
def run(example: Callable[[str], ModuleType]) -> Iterator[Callable[..., Done]]:
    """Call an example's ``main`` as its last line does, from the state that a new process has."""

    def called(name: str, *arguments: object, status: int = 0) -> Done:
        script, out, err = example(name), io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of third parties
            torch.manual_seed(0)
            try:
                found = script.main([str(one) for one in arguments])
            except SystemExit as end:
                found = end.code
        assert found == status, err.getvalue()
        return Done(found, out.getvalue(), err.getvalue())

    return called
