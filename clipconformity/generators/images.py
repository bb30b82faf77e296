"""Text to image: drive a pipeline over prompts so that a run can be split, batched, stopped and resumed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image, PngImagePlugin

from clipconformity.data.brief import format_brief
from clipconformity.data.files import replace_file
from clipconformity.data.images import to_images
from clipconformity.data.locks import hold_lock
from clipconformity.data.strict_json import to_json
from clipconformity.generators.pipelines import adapt_generator, describe_settings, unwrap
from clipconformity.generators.runs import (
    check_numbers,
    check_split,
    format_json_line,
    make_progress_bar,
    rank_path,
    sample_seed,
    split_batches,
)

OnBlack = Literal["keep", "exclude"]
SUFFIXES = {False: ".png", True: ".black"}
"""Suffix of an image, and of an excluded black one: also a PNG, under a name that no image folder lists."""
_KEY = "clipconformity"
_STEM = re.compile(r"\d{6,}_\d+\.(png|black)")


class Sample(NamedTuple):
    """An image to be generated."""

    prompt_index: int
    copy: int
    prompt: str
    seed: int

    @property
    def stem(self) -> str:
        """Name of its file, without suffix."""
        return f"{self.prompt_index:06d}_{self.copy}"


@dataclass
class ImageRun:
    """Results of this rank.

    Attributes:
        paths: Images that count, in the order of the prompts; without the black ones where they are excluded.
        manifest: The file with prompt and seed of each image.
        generated: Images made by this call.
        reused: Images found from an earlier call.
        black: Files that are entirely black, as a safety checker returns.
    """

    paths: list[Path]
    manifest: Path
    generated: int = 0
    reused: int = 0
    black: list[Path] = field(default_factory=list)

    def __repr__(self) -> str:
        counts = {"generated": self.generated, "reused": self.reused, "black": len(self.black)}
        return format_brief(self, manifest=self.manifest, paths=len(self.paths), **counts)


def generate_images(
    generator: Callable[..., Any],
    prompts: Iterable[str],
    output: Path | str,
    *,
    seed: int = 0,
    batch_size: int = 8,
    images_per_prompt: int = 1,
    options: Mapping[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    on_black: OnBlack = "keep",
    on_images: Callable[[list[Image.Image]], object] | None = None,
    progress: bool | None = None,
) -> ImageRun:
    """Generate an image for every prompt into a folder; images that are there already are kept.

    Every image has its own seed, made of ``seed`` and its prompt's index. So a run does not depend on the batch
    size, on the number of processes, or on where it was interrupted: the noise is the same bit for bit. The pixels
    are the same up to the rounding of batched arithmetic, which may change a value by a grey level.

    An image is written under a temporary name and then renamed, with prompt, seed and options inside the PNG; a file
    of JSON lines beside the images repeats them. A second call keeps existing images and makes the rest; while another
    process works on the same images it waits, with a warning.

    Args:
        generator: A diffusers text-to-image pipeline, which is called with ``prompt`` and ``generator``; or a function
            from a list of prompts and a list of seeds to a list of images. A pipeline whose ``generator`` argument is
            not annotated to accept a list gets one prompt at a time.
        prompts: A prompt for each image, or for each ``images_per_prompt`` images.
        output: Folder to write to; made if absent.
        seed: Seed of the run, at least 0.
        batch_size: Images made at once.
        images_per_prompt: Images made for each prompt.
        options: Further arguments of the pipeline or function, such as ``{"guidance_scale": 7.5}``; part of the run.
        rank: Number of this process.
        world: Number of processes; each takes every ``world``-th image.
        on_black: Whether entirely black images stay among the results. With ``"exclude"`` they are renamed
            to ``.black``, so that no folder of images lists them, and are not made again.
        on_images: Called with every batch that counts, reused ones included: ``metrics.update`` keeps a running score.
        progress: Whether to show a progress bar on standard error; by default where that is a terminal.

    Returns:
        The images of this process.

    Raises:
        TypeError: If a prompt is not a string, or the generator takes neither prompt and generator nor prompts and
            seeds.
        ValueError: If there is no prompt, one is empty, a number does not fit, the generator returns another number of
            images, or the folder holds images of another run: other prompts, seeds, options, weights or scheduler.
    """
    check_numbers({"seed": (seed, 0), "images_per_prompt": (images_per_prompt, 1)})
    check_split(batch_size, rank, world)
    if on_black not in ("keep", "exclude"):
        raise ValueError(f"on_black: expected 'keep' or 'exclude', got {on_black!r}.")
    prompts = _list_prompts(prompts)
    generator, given = unwrap(generator, dict(options or {}))
    call, together = adapt_generator(generator, given)
    every = [
        Sample(number, copy, prompt, sample_seed(seed, number, copy))
        for number, prompt in enumerate(prompts)
        for copy in range(images_per_prompt)
    ]
    samples = every[rank::world]
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(folder, on_black, describe_settings(generator, given), rank, world)
    with hold_lock(folder / f".{run.manifest.name}.lock", folder):
        run.refuse_surplus(every)
        todo = run.resume(samples)
        if on_images is not None:
            for reused in split_batches(run.list_kept(samples), batch_size):
                on_images(to_images(reused))
        _generate(run, call, todo, batch_size if together else 1, on_images, progress, len(samples))
    return ImageRun(run.list_kept(samples), run.manifest, len(todo), len(samples) - len(todo), run.list_black(samples))


def read_manifest(output: Path | str) -> list[dict[str, Any]]:
    """Read prompt, seed and file of all images in a folder, of all processes, from the metadata of the images.

    Returns:
        One entry an image, in the order of the prompts: file, prompt, prompt_index, copy, seed, black, settings.

    Raises:
        FileNotFoundError: If the folder has no manifest.
        ValueError: If an image is empty, or of another origin.
    """
    folder = Path(output)
    if not any(folder.glob("manifest*.jsonl")):
        raise FileNotFoundError(f"{folder}: no manifest*.jsonl; is this a folder of generate_images?")
    paths = [path for path in folder.iterdir() if _STEM.fullmatch(path.name)]
    entries = [_read_about(path) | {"file": path.name} for path in paths]
    return sorted(entries, key=lambda entry: (entry["prompt_index"], entry["copy"]))


def is_black(image: Image.Image) -> bool:
    """Whether every pixel is black, as in an image that a safety checker withheld.

    Example:
        >>> is_black(Image.new("RGB", (4, 4)))
        True
    """
    return image.convert("RGB").getbbox() is None


def _read_about(path: Path) -> dict[str, Any]:
    """Read how an image was generated from its metadata."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; delete it to generate the image again.")
    try:
        with Image.open(path, formats=("PNG",)) as image:
            about: dict[str, Any] = json.loads(getattr(image, "text", {})[_KEY])
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: no image of generate_images; give a folder of its own.") from error
    return about


class _Run:
    """The folder of a run: existing and new images."""

    def __init__(self, folder: Path, on_black: OnBlack, settings: str, rank: int, world: int) -> None:
        self.folder, self.on_black, self.settings = folder, on_black, settings
        self.manifest = rank_path(folder / "manifest.jsonl", rank, world)
        self.entries: dict[str, dict[str, Any]] = {}

    def resume(self, samples: list[Sample]) -> list[Sample]:
        """Read the existing images, write the manifest again, and return the missing ones."""
        todo = []
        for sample in samples:
            found = [path for suffix in SUFFIXES.values() if (path := self._path(sample, suffix)).is_file()]
            if not found:
                todo.append(sample)
                continue
            about = self._read_own(found[0], sample)
            path = self._path(sample, SUFFIXES[about["black"] and self.on_black == "exclude"])
            if path != found[0]:
                found[0].replace(path)
            self.entries[sample.stem] = about | {"file": path.name}
        with replace_file(self.manifest) as temporary:
            temporary.write_text("".join(format_json_line(entry) for entry in self.entries.values()), encoding="utf-8")
        return todo

    def refuse_surplus(self, every: list[Sample]) -> None:
        """Refuse a folder with images beyond this run, which a score of the folder would count."""
        known = {sample.stem for sample in every}
        extra = sorted(p.name for p in self.folder.glob("*") if _STEM.fullmatch(p.name) and p.stem not in known)
        if extra:
            raise ValueError(
                f"{self.folder}: holds {len(extra)} images of a longer run, such as {extra[0]}; give another "
                "folder, or delete them."
            )

    def add(self, samples: list[Sample], images: list[Image.Image]) -> list[Image.Image]:
        """Store images; return those that count."""
        kept = []
        with self.manifest.open("a", encoding="utf-8") as manifest:
            for sample, image in zip(samples, images, strict=True):
                about = sample._asdict() | {"black": is_black(image), "settings": self.settings}
                excluded = about["black"] and self.on_black == "exclude"
                path = self._path(sample, SUFFIXES[excluded])
                info = PngImagePlugin.PngInfo()
                info.add_itxt(_KEY, to_json(about))
                with replace_file(path) as temporary:
                    image.save(temporary, format="PNG", pnginfo=info)
                self.entries[sample.stem] = about | {"file": path.name}
                manifest.write(format_json_line(self.entries[sample.stem]))
                if not excluded:
                    kept.append(image)
        return kept

    def list_kept(self, samples: list[Sample]) -> list[Path]:
        """List the files that count."""
        exclude = self.on_black == "exclude"
        entries = [self.entries[sample.stem] for sample in samples if sample.stem in self.entries]
        return [self.folder / entry["file"] for entry in entries if not (exclude and entry["black"])]

    def list_black(self, samples: list[Sample]) -> list[Path]:
        """List the black ones."""
        entries = [self.entries[sample.stem] for sample in samples]
        return [self.folder / entry["file"] for entry in entries if entry["black"]]

    def _path(self, sample: Sample, suffix: str) -> Path:
        return self.folder / (sample.stem + suffix)

    def _read_own(self, path: Path, sample: Sample) -> dict[str, Any]:
        """Read the metadata of an image, which must be of this run."""
        about = _read_about(path)
        expected = sample._asdict() | {"settings": self.settings}
        for name, value in expected.items():
            if about.get(name) != value:
                raise ValueError(
                    f"{path} is of another run: its {name} is {about.get(name)!r:.120}, here it is {value!r:.120}. "
                    "Give another folder, or the arguments of the first run."
                )
        return about


def _generate(
    run: _Run,
    call: Callable[[list[str], list[int]], list[Image.Image]],
    todo: list[Sample],
    batch_size: int,
    on_images: Callable[[list[Image.Image]], object] | None,
    progress: bool | None,
    total: int,
) -> None:
    with make_progress_bar(total, total - len(todo), progress) as bar:
        for batch in split_batches(todo, batch_size):
            images = call([sample.prompt for sample in batch], [sample.seed for sample in batch])
            if len(images) != len(batch):
                raise ValueError(f"the generator returned {len(images)} images for {len(batch)} prompts; expected one.")
            kept = run.add(batch, images)
            if kept and on_images is not None:
                on_images(kept)
            bar.update(len(batch))


def _list_prompts(given: Iterable[str]) -> list[str]:
    """Check prompts and list them."""
    if isinstance(given, str):
        raise TypeError("prompts: expected a list of strings, got a string.")
    prompts = list(given)
    if not prompts:
        raise ValueError("prompts: expected at least one, got none.")
    for number, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(f"prompts: expected strings, got {type(prompt).__name__} at place {number}.")
    empty = [number for number, prompt in enumerate(prompts) if not prompt.strip()]
    if empty:
        places = ", ".join(map(str, empty[:3])) + (", ..." if len(empty) > 3 else "")
        raise ValueError(f"prompts: {len(empty)} of {len(prompts)} are empty, at places {places}; leave them out.")
    return prompts
