"""From the options to the samples: folders, caption files, embeddings, MS-COCO."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from clipconformity.cli.parts import Cache, Parts
    from clipconformity.data import Coco, ImageFolder
    from clipconformity.data.files import NamedPath
    from clipconformity.encoders import Encoder
    from clipconformity.evaluation import Source
    from clipconformity.stream.reference import ReferenceSet

KINDS = ("images", "captions", "embeddings")
"""Options that name the samples."""
COCO_OPTIONS = ("split", "karpathy", "per_image", "seed")
MANY = 512
"""Images from which starting processes to decode them pays off."""
INPUT_FILES = (
    "against",
    "by",
    "captions",
    "caption_references",
    "embeddings",
    "image_embeddings",
    "text_embeddings",
    "reference",
    "references",
    "karpathy",
    "saved",
)
"""Options of every command that name files to read."""


def inputs(options: argparse.Namespace) -> Iterator[NamedPath]:
    """Find every file that a command reads, each with the option that leads to it."""
    from clipconformity.data.folders import image_files
    from clipconformity.encoders.registry import encoder_files

    given = vars(options)
    for name in INPUT_FILES:
        value = given.get(name) or []
        yield from ((_flag(name), path) for path in (value if isinstance(value, list) else [value]))
    folders = given.get("images") or []
    for folder in folders if isinstance(folders, list) else [folders]:
        yield from (("--images", path) for path in image_files(folder))
    if given.get("coco"):
        yield from (("--coco", path) for path in image_files(options.coco))
        yield from (("--coco", path) for path in (options.coco / "annotations").glob("*"))
    if "encoder" in given:
        yield from (("--encoder", path) for path in encoder_files(options.encoder or "tiny"))
    yield "standard output", Path("/dev/stdout")  # sent to a file, which would be replaced beneath it


def _flag(name: str) -> str:
    words = {"references": "REFERENCE", "saved": "NAME=SOURCE"}
    return words.get(name, f"--{name.replace('_', '-')}")


def open_source(
    options: argparse.Namespace,
    reference_encoder: str | None = None,
    parts: Parts | Cache | None = None,
    encoder: Encoder | None = None,
) -> Source:
    """Open what one of ``--images``, ``--captions`` and ``--embeddings`` names.

    Args:
        options: Of the command.
        reference_encoder: What the reference says; taken where no encoder is told, if it comes with the package.
        parts: Where what is encoded is kept, and what another run left is taken up.
        encoder: By default the one that the options name is loaded.

    Raises:
        ValueError: If options do not fit together, no encoder is named, or a file cannot be read.
    """
    source = _opened(options, reference_encoder, parts, encoder)
    source.quiet = options.quiet
    return source


def _opened(
    options: argparse.Namespace, reference_encoder: str | None, parts: Parts | Cache | None, encoder: Encoder | None
) -> Source:
    from clipconformity.data import Captions, read_captions, survey_images
    from clipconformity.data.files import refuse_same
    from clipconformity.evaluation import caption_source, embedding_source

    _check_options(options)
    for name in COCO_OPTIONS:
        if getattr(options, name, None) is not None:
            raise ValueError(f"{_flag(name)}: goes with --coco; leave it out.")
    if getattr(options, "embeddings", None):
        refuse_same([("--embeddings", path) for path in options.embeddings])
        return embedding_source(options.embeddings, spec=options.encoder, modality=options.modality)
    kind = "image" if options.images else "text"
    if getattr(options, "modality", None) not in (None, kind):
        raise ValueError(
            f"--modality: {options.modality} was told, but --{'images' if options.images else 'captions'} given."
        )
    if options.images:
        folder = survey_images(options.images)
        if folder.remark:
            warnings.warn(folder.remark, stacklevel=2)
        loaded = encoder or open_encoder(options, reference_encoder)

        def images_from(start: int) -> Source:
            return _images(options, folder.paths[start:], options.images, loaded, folder)

        if parts is None:
            return images_from(0)
        told = [_told(path, options.images) for path in folder.paths]
        return parts.source(loaded, told, (kind, options.batch_size, options.on_error), images_from)
    captions = read_captions(options.captions, options.column)
    if captions.remark:
        warnings.warn(captions.remark, stacklevel=2)
    loaded = encoder or open_encoder(options, reference_encoder)

    def captions_from(start: int) -> Source:
        left = Captions(captions.texts[start:], captions.ids[start:], captions.groups and captions.groups[start:])
        source = caption_source(left, loaded, batch_size=options.batch_size)
        source.groups = captions.groups
        return source

    if parts is None:
        return captions_from(0)
    groups = captions.groups or [""] * len(captions.ids)
    told = [f"{name} {group} {text}" for name, group, text in zip(captions.ids, groups, captions.texts, strict=True)]
    return parts.source(loaded, told, (kind, options.batch_size), captions_from)


def _told(path: Path, root: Path) -> str:
    """What an image file is told by, without reading it."""
    found = path.stat()
    return f"{path.relative_to(root)} {found.st_size} {found.st_mtime_ns}"


def check_given(options: argparse.Namespace) -> None:
    """Refuse what is neither one source nor images and captions together.

    Raises:
        ValueError: If it is not.
    """
    given = [name for name in KINDS if getattr(options, name)]
    if not given:
        raise ValueError("one of --images, --captions and --embeddings is required, or --images with --captions.")
    if len(given) > 1 and given != ["images", "captions"]:
        raise ValueError(f"--embeddings: goes without --{given[0]}; give one of them.")
    if options.caption_references is not None and len(given) < 2:
        raise ValueError("--caption-references: goes with --images and --captions together; leave it out.")


def open_against(options: argparse.Namespace) -> Iterator[Source] | None:
    """Open the files of ``--against`` one after the other; None where there are none."""
    from clipconformity.data.files import refuse_same
    from clipconformity.data.untrusted import check_input
    from clipconformity.evaluation import embedding_source

    if options.against is None:
        return None
    refuse_same([("--against", path) for path in options.against])
    for path in options.against:  # they are read last
        check_input(path, "file")
    return (embedding_source([path], modality=options.modality) for path in options.against)


def open_pairs(options: argparse.Namespace, reference: ReferenceSet, parts: Cache | None = None) -> Source:
    """Open images and captions, joined by id; what the reference is of is scored.

    Raises:
        ValueError: As :func:`open_source`, or if nothing says which of them is scored.
    """
    from clipconformity.evaluation import paired_source

    scored: Any = reference.modality if options.modality is None else options.modality
    if scored is None:
        raise ValueError("--modality: the reference does not say what it is of; say which is scored, image or text.")
    if scored == "image" and options.caption_references is not None:
        raise ValueError("--caption-references: judge captions, but images are scored; give a reference of captions.")
    sides = [only(options, "images", options.images), only(options, "captions", options.captions)]
    if options.caption_references is not None:
        sides.append(only(options, "captions", options.caption_references))
        sides[-1].column = None
    for side in sides:
        side.modality = None  # it says which is scored
    encoder = open_encoder(options, reference.spec)
    images, captions, *people = (open_source(side, reference.spec, parts, encoder) for side in sides)
    references = people[0] if people else None
    return paired_source(images, captions, scored=scored, references=references, on_missing=options.on_error)


def only(options: argparse.Namespace, kind: str, given: object) -> argparse.Namespace:
    """Give the options as they are for one kind of samples alone."""
    column = options.column if kind == "captions" else None
    return argparse.Namespace(**vars(options) | dict.fromkeys(KINDS) | {kind: given, "column": column})


class CocoSources(NamedTuple):
    """Images and captions of MS-COCO."""

    coco: Coco
    image: Source
    text: Source


def open_coco(options: argparse.Namespace) -> CocoSources:
    """Open the images and the chosen captions that ``--coco`` names.

    Raises:
        ValueError: If options do not fit together, no encoder is named, or a file is broken.
        FileNotFoundError: If annotations or images are missing.
    """
    from clipconformity.data import read_coco
    from clipconformity.evaluation import caption_source

    _check_options(options)
    if options.modality is not None:
        raise ValueError("--modality: --coco builds the references of both; leave it out.")
    per_image = options.per_image or "1"
    if per_image != "all" and not per_image.isdecimal():
        raise ValueError(f"--per-image: expected a number or 'all', got {per_image!r}.")
    _named(options.encoder)
    coco = read_coco(
        options.coco,
        options.split or "val2017",
        per_image=None if per_image == "all" else int(per_image),
        seed=options.seed or 0,
        karpathy=options.karpathy,
        on_missing=options.on_error,
    )
    encoder = open_encoder(options)
    found = CocoSources(
        coco,
        _images(options, coco.image_paths, options.coco, encoder),
        caption_source(coco.captions, encoder, batch_size=options.batch_size),
    )
    found.image.quiet = found.text.quiet = options.quiet
    return found


def _check_options(options: argparse.Namespace) -> None:
    for name, least in (("batch_size", 1), ("workers", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{_flag(name)}: expected at least {least}, got {value}.")
    if options.column is not None and not options.captions:
        raise ValueError("--column: goes with --captions; leave it out.")


def _named(spec: str | None) -> str:
    if spec is None:
        raise ValueError("--encoder: say which encoder to use, such as 'tiny' or 'open_clip:ViT-B-32/openai'.")
    return spec


def open_encoder(options: argparse.Namespace, of_reference: str | None = None) -> Encoder:
    """Load the encoder that the options name.

    Raises:
        ValueError: If they name none, or the reference's is another that does not come with the package.
    """
    import torch

    from clipconformity.encoders import hide_progress_bars, load_encoder
    from clipconformity.encoders.callables import call_function, is_function

    if options.encoder is None and of_reference not in (None, "tiny"):  # data do not decide what is loaded
        raise ValueError(
            f"--encoder: the reference names encoder {of_reference!r}; pass --encoder {of_reference!r} to load it."
        )
    spec = _named(options.encoder or of_reference)
    if options.quiet or not sys.stderr.isatty():
        hide_progress_bars()
    if is_function(spec):
        return call_function(spec)
    return load_encoder(spec, options.device, dtype=None if options.dtype is None else getattr(torch, options.dtype))


def _images(
    options: argparse.Namespace,
    paths: Sequence[Path],
    root: Path,
    encoder: Encoder,
    folder: ImageFolder | None = None,
) -> Source:
    from clipconformity.evaluation import image_source

    workers = options.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if len(paths) >= MANY else 0
    return image_source(
        paths,
        encoder,
        root=root,
        batch_size=options.batch_size,
        workers=workers,
        skip_errors=options.on_error == "skip",
        folder=folder,
    )
