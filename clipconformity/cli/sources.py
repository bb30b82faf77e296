"""From the options to the samples: folders, lists, caption files, embeddings."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipconformity.cli.messages import print_details, print_encoder, report_time

if TYPE_CHECKING:
    from clipconformity.cli.parts import Cache, Parts
    from clipconformity.data import ImageFolder
    from clipconformity.data.files import NamedPath
    from clipconformity.encoders import Encoder
    from clipconformity.evaluation import Source
    from clipconformity.stream.reference import ReferenceSet

KINDS = ("images", "captions", "embeddings")
"""Options that name the samples."""
COCO_OPTIONS = ("split", "karpathy", "per_image", "seed")
MIN_FOR_WORKERS = 512
"""Number of images from which worker processes for decoding pay off."""
INPUT_FILES = (
    "by",
    "captions",
    "caption_references",
    "image_embeddings",
    "text_embeddings",
    "reference",
    "references",
    "karpathy",
    "saved",
)
"""Options of every command that name files to read."""
EMBEDDINGS = ("embeddings", "against")
"""Options that name files of embeddings, folders or patterns."""
COLUMNS = ("ids", "groups")
"""Options that name columns of embeddings."""


def list_inputs(options: argparse.Namespace) -> Iterator[NamedPath]:
    """List every file that a command reads, each with the option that names it."""
    from clipconformity.data.folders import find_image_files
    from clipconformity.data.layout import list_embedding_files
    from clipconformity.encoders.registry import find_encoder_files

    given = vars(options)
    for name in EMBEDDINGS:
        for place in _as_list(given.get(name)):
            yield from ((_format_option(name), path) for path in list_embedding_files(place))
    for name in INPUT_FILES:
        files = (path for path in _as_list(given.get(name)) if isinstance(path, Path))  # not on the hub
        yield from ((_format_option(name), path) for path in files)
    for place in _as_list(given.get("images")):
        listed = iter([place, *read_images(options, place).paths]) if place.is_file() else find_image_files(place)
        yield from (("--images", path) for path in listed)
    if given.get("coco"):
        yield from (("--coco", path) for path in find_image_files(options.coco))
        yield from (("--coco", path) for path in (options.coco / "annotations").glob("*"))
    if "encoder" in given:
        for spec in _as_list(options.encoder) or ["tiny"]:
            yield from (("--encoder", path) for path in find_encoder_files(spec))
    yield "standard output", Path("/dev/stdout")  # redirected to a file, which an output would replace


def _as_list(value: Any) -> list[Any]:
    """Return the values of an option as a list, also where it takes one value or was not given."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _format_option(name: str) -> str:
    words = {"references": "REFERENCE", "saved": "NAME=SOURCE"}
    return words.get(name, f"--{name.replace('_', '-')}")


def open_source(
    options: argparse.Namespace,
    reference_encoder: str | None = None,
    parts: Parts | Cache | None = None,
    encoder: Encoder | None = None,
) -> Source:
    """Open the source that ``--images``, ``--captions`` or ``--embeddings`` names.

    Args:
        options: Options of the command.
        reference_encoder: Encoder of the reference; used where no encoder is given, if it comes with the package.
        parts: Where embeddings are stored, and those of an earlier run are read.
        encoder: The encoder; by default the one that the options name is loaded.

    Raises:
        ValueError: If options do not fit together, no encoder is named, or a file cannot be read.
    """
    source = _open_single(options, reference_encoder, parts, encoder)
    return name_source(options, source, *_as_list(options.images or options.captions or options.embeddings))


def name_source(options: argparse.Namespace, source: Source, *places: Path) -> Source:
    """Name a source for messages about it."""
    source.quiet = options.quiet
    source.name = str(places[0]) + (f" and {len(places) - 1} more" if len(places) > 1 else "")
    return source


def _open_single(
    options: argparse.Namespace, reference_encoder: str | None, parts: Parts | Cache | None, encoder: Encoder | None
) -> Source:
    from clipconformity.data import read_captions
    from clipconformity.data.files import refuse_same
    from clipconformity.data.layout import find_embeddings
    from clipconformity.evaluation import caption_source, embedding_source, image_source

    check_options(options)
    for name in COCO_OPTIONS:
        if getattr(options, name, None) is not None:
            raise ValueError(f"{_format_option(name)}: goes with --coco; leave it out.")
    if getattr(options, "embeddings", None):
        with report_time(options, "looking through the embeddings"):
            found = find_embeddings(options.embeddings, options.modality)
            refuse_same([("--embeddings", path) for path in found.paths])
            return embedding_source(options.embeddings, spec=options.encoder, **get_embedding_settings(options))
    kind = "image" if options.images else "text"
    if getattr(options, "modality", None) not in (None, kind):
        raise ValueError(
            f"--modality: got {options.modality} with --{'images' if options.images else 'captions'}; leave it out."
        )
    if options.images:
        with report_time(options, "looking through the images"):
            folder = read_images(options, options.images)
        if folder.remark:
            warnings.warn(folder.remark, stacklevel=2)
        loaded = encoder or open_encoder(options, reference_encoder)

        def images_from(start: int) -> Source:
            return image_source(folder, loaded, start=start, **choose_image_settings(options, len(folder.paths)))

        if parts is None:
            return images_from(0)
        samples = [_identify_file(path, name) for path, name in zip(folder.paths, folder.ids, strict=True)]
        return parts.make_source(loaded, samples, (kind, options.batch_size, options.on_error), images_from)
    captions = read_captions(options.captions, options.column)
    if captions.remark:
        warnings.warn(captions.remark, stacklevel=2)
    loaded = encoder or open_encoder(options, reference_encoder)

    def captions_from(start: int) -> Source:
        return caption_source(captions, loaded, batch_size=options.batch_size, start=start)

    if parts is None:
        return captions_from(0)
    groups = captions.groups or [""] * len(captions.ids)
    samples = [f"{name} {group} {text}" for name, group, text in zip(captions.ids, groups, captions.texts, strict=True)]
    return parts.make_source(loaded, samples, (kind, options.batch_size), captions_from)


def get_embedding_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options for reading embeddings."""
    columns = {name: getattr(options, name, None) for name in ("column", *COLUMNS)}
    return {"modality": options.modality, **columns, "skip_errors": options.on_error == "skip"}


def read_images(options: argparse.Namespace, place: Path) -> ImageFolder:
    """List the images of a folder, or read a list of them.

    Raises:
        OSError: If the folder or list, or an image of the list, is missing.
        ValueError: If there are none, or the list is broken.
    """
    from clipconformity.data import read_image_list, survey_images

    if place.is_dir() or not place.exists():
        return survey_images(place)
    return read_image_list(place, options.column, root=options.image_root, on_missing=options.on_error)


def find_image_folder(options: argparse.Namespace, place: Path) -> Path:
    """Return the folder that the ids of images are relative to."""
    return place if place.is_dir() else options.image_root or place.parent


def _identify_file(path: Path, name: str) -> str:
    """Return what identifies an image file, without reading it."""
    found = path.stat()
    return f"{name} {found.st_size} {found.st_mtime_ns}"


def check_given(options: argparse.Namespace) -> None:
    """Refuse options that name neither one source nor images with captions.

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
    """Open the sources of ``--against`` one after the other; None where it is not given."""
    from clipconformity.data.files import refuse_same
    from clipconformity.data.layout import find_embeddings
    from clipconformity.data.untrusted import check_input
    from clipconformity.evaluation import embedding_source

    if options.against is None:
        return None
    found = find_embeddings(options.against, options.modality)
    refuse_same([("--against", path) for path in found.paths])
    for path in found.paths:  # they are read last
        check_input(path, "file")
    settings = get_embedding_settings(options) | {"groups": None} | ({} if options.embeddings else {"column": None})
    return (embedding_source([place], **settings) for place in options.against)


def open_pairs(options: argparse.Namespace, reference: ReferenceSet, parts: Cache | None = None) -> Source:
    """Open images and captions, joined by id; the modality of the reference is scored.

    Raises:
        ValueError: As :func:`open_source`, or if it is unknown which of them is scored.
    """
    from clipconformity.evaluation import paired_source

    scored: Any = reference.modality if options.modality is None else options.modality
    if scored is None:
        raise ValueError("--modality: the reference does not say what it is of; say which is scored, image or text.")
    if scored == "image" and options.caption_references is not None:
        raise ValueError("--caption-references: judge captions, but images are scored; give a reference of captions.")
    sides = [
        select_kind(options, "images", options.images),
        select_kind(options, "captions", options.captions, options.column),
    ]
    if options.caption_references is not None:
        sides.append(select_kind(options, "captions", options.caption_references))
    for side in sides:
        side.modality = None  # it gives the scored modality
    for side in sides[1:]:
        side.image_root = None
    encoder = open_encoder(options, reference.spec)
    images, captions, *people = (open_source(side, reference.spec, parts, encoder) for side in sides)
    references = people[0] if people else None
    return paired_source(images, captions, scored=scored, references=references, on_missing=options.on_error)


def select_kind(options: argparse.Namespace, kind: str, given: object, column: str | None = None) -> argparse.Namespace:
    """Return the options for one kind of samples alone."""
    others = dict.fromkeys(KINDS if kind == "embeddings" else (*KINDS, *COLUMNS))
    return argparse.Namespace(**vars(options) | others | {kind: given, "column": column})


def check_options(options: argparse.Namespace) -> None:
    """Refuse numbers that are too small, and options that need another one.

    Raises:
        ValueError: If there are any.
    """
    for name, least in (("batch_size", 1), ("workers", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"{_format_option(name)}: expected at least {least}, got {value}.")
    listed = options.images is not None and options.images.is_file()
    embeddings = getattr(options, "embeddings", None)
    if options.column is not None and not (options.captions or listed or embeddings):
        raise ValueError("--column: goes with --captions, --embeddings or a list of images; leave it out.")
    check_columns(options)
    if getattr(options, "image_root", None) is not None and not listed:
        raise ValueError("--image-root: goes with a list of images; leave it out.")


def check_columns(options: argparse.Namespace) -> None:
    """Refuse options for columns of embeddings where no embeddings are read.

    Raises:
        ValueError: If there are any.
    """
    for name in COLUMNS:
        if getattr(options, name, None) is not None and not any(getattr(options, one, None) for one in EMBEDDINGS):
            raise ValueError(f"{_format_option(name)}: goes with embeddings; leave it out.")


def require_spec(spec: str | None) -> str:
    """Return the spec of an encoder that has to be given.

    Raises:
        ValueError: If none is given.
    """
    if spec is None:
        raise ValueError("--encoder: say which encoder to use, such as 'tiny' or 'open_clip:ViT-B-32/openai'.")
    return spec


def open_encoder(options: argparse.Namespace, of_reference: str | None = None) -> Encoder:
    """Load the encoder that the options name.

    Raises:
        ValueError: If they name none, and the reference's encoder does not come with the package.
    """
    import torch

    from clipconformity.encoders import hide_progress_bars, load_encoder
    from clipconformity.encoders.callables import call_function, is_function

    if options.encoder is None and of_reference not in (None, "tiny"):  # data must not decide what is loaded
        raise ValueError(
            f"--encoder: the reference names encoder {of_reference!r}; pass --encoder {of_reference!r} to load it."
        )
    spec = require_spec(options.encoder or of_reference)
    if options.quiet or not sys.stderr.isatty():
        hide_progress_bars()
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    with report_time(options, "loading the encoder"):
        encoder = call_function(spec) if is_function(spec) else load_encoder(spec, options.device, dtype=dtype)
    print_encoder(options, encoder)
    return encoder


def choose_image_settings(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Return the settings for encoding this many images."""
    workers = options.workers
    if workers is None:
        workers = min(8, os.cpu_count() or 1) if count >= MIN_FOR_WORKERS else 0
    print_details(options, f"{count} images in batches of {options.batch_size}, decoded by {workers or 'no'} processes")
    return {"batch_size": options.batch_size, "workers": workers, "skip_errors": options.on_error == "skip"}
