"""From the options to the samples: folders, lists, caption files, embeddings."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clipconformity.cli.encoders import open_encoder
from clipconformity.cli.messages import print_details, report_time
from clipconformity.cli.shards import Shard

if TYPE_CHECKING:
    from clipconformity.cli.encoded import Cache
    from clipconformity.cli.parts import Parts
    from clipconformity.data import Captions, ImageFolder
    from clipconformity.data.addresses import Place
    from clipconformity.data.files import NamedPath
    from clipconformity.encoders import Encoder
    from clipconformity.evaluation import Source
    from clipconformity.stream.merging import Piece
    from clipconformity.stream.reference import ReferenceSet

Told: TypeAlias = "Callable[[Encoder], Piece]"
"""Tells a shard by its samples and the encoder."""
OWN = ("command", "device", "dtype", "line", "processes", "quiet", "ranks", "verbose", "workers")
"""Options that may differ between the processes of a command, or are compared by themselves."""
KINDS = ("images", "captions", "embeddings")
"""Options that name the samples."""
COCO_OPTIONS = ("split", "karpathy", "per_image", "seed")
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
    """List every file of this machine that a command reads, each with the option that names it."""
    from clipconformity.data.folders import find_image_files
    from clipconformity.data.layout import list_embedding_files
    from clipconformity.encoders.registry import find_encoder_files

    given = vars(options)
    for name in EMBEDDINGS:
        for place in _as_list(given.get(name)):
            if isinstance(place, Path):
                listed = (path for path in list_embedding_files(place) if isinstance(path, Path))
                yield from ((_format_option(name), path) for path in listed)
    for name in INPUT_FILES:
        files = [path for path in _as_list(given.get(name)) if isinstance(path, Path)]  # not those at addresses
        flag = "NAME=SOURCE" if name == "saved" and "models" in given else _format_option(name)
        yield from ((flag, path) for path in files)
    for place in _as_list(given.get("images")):
        images = iter([place, *read_images(options, place).paths]) if place.is_file() else find_image_files(place)
        yield from (("--images", path) for path in images)
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
    words = {"references": "FILE"}
    return words.get(name, f"--{name.replace('_', '-')}")


def open_source(
    options: argparse.Namespace,
    parts: Parts,
    reference_encoder: str | None = None,
    cache: Cache | None = None,
    encoder: Encoder | None = None,
) -> Source:
    """Open the source that ``--images``, ``--captions`` or ``--embeddings`` names.

    Args:
        options: Of the command.
        parts: Where what is encoded is kept, and what another run left is taken up. With several processes each encodes
            its share before this returns.
        reference_encoder: What the reference says; taken where no encoder is given, if it comes with the package.
        cache: Where what is encoded is kept for other runs.
        encoder: By default the one that the options name is loaded.

    Raises:
        ValueError: If options do not fit together, no encoder is named, or a file cannot be read.
    """
    source = _open_single(options, parts, reference_encoder, cache, encoder)
    return name_source(options, source, *_as_list(options.images or options.captions or options.embeddings))


def name_source(options: argparse.Namespace, source: Source, *places: Place) -> Source:
    """Name a source for messages about it."""
    source.quiet = options.quiet
    source.name = str(places[0]) + (f" and {len(places) - 1} more" if len(places) > 1 else "")
    return source


def _open_single(
    options: argparse.Namespace,
    parts: Parts,
    reference_encoder: str | None,
    cache: Cache | None,
    encoder: Encoder | None,
) -> Source:
    from clipconformity.cli.encoded import read_captions_in_parts, read_images_in_parts

    check_options(options)
    for name in COCO_OPTIONS:
        if getattr(options, name, None) is not None:
            raise ValueError(f"{_format_option(name)}: goes with --coco; leave it out.")
    if getattr(options, "embeddings", None):
        return _open_embeddings(options)
    kind = "image" if options.images else "text"
    if getattr(options, "modality", None) not in (None, kind):
        raise ValueError(
            f"--modality: got {options.modality} with --{'images' if options.images else 'captions'}; leave it out."
        )
    if options.images:
        images, piece = _open_images(options)
        loaded = encoder or open_encoder(options, reference_encoder)
        [source] = read_images_in_parts(options, parts, images, [loaded], cache=cache)
    else:
        captions, piece = _open_captions(options)
        loaded = encoder or open_encoder(options, reference_encoder)
        source = read_captions_in_parts(options, parts, captions, loaded, cache)
    source.made_of = () if piece is None else [piece(loaded)]
    return source


def _open_embeddings(options: argparse.Namespace) -> Source:
    from clipconformity.data.embeddings import Columns
    from clipconformity.data.files import refuse_same
    from clipconformity.data.layout import find_embeddings
    from clipconformity.evaluation.shards import ROWS, open_embedding_files

    with report_time(options, "looking through the embeddings"):
        found = find_embeddings(options.embeddings, options.modality)
        refuse_same([("--embeddings", path) for path in found.paths])
        settings = get_embedding_settings(options)
        columns = Columns(*(settings.pop(name) for name in ("column", *COLUMNS)))
        opened = open_embedding_files(options.embeddings, columns, spec=options.encoder, **settings)
    shard = parse_shard(options)
    if shard is None:
        return opened.source()
    source = opened.source(*shard.span(opened.count, ROWS))
    sizes = [[name, one.count, one.stamps[0][1].size] for name, one in zip(opened.names, opened.shards, strict=True)]
    source.made_of = [shard.piece("embeddings", sizes)]
    return source


def _open_images(options: argparse.Namespace) -> tuple[ImageFolder, Told | None]:
    """Look through the images, or those of the shard."""
    with report_time(options, "looking through the images"):
        folder = read_images(options, options.images)
    if folder.remark:
        warnings.warn(folder.remark, stacklevel=2)
    shard = parse_shard(options)
    if shard is None:
        return folder, None
    part = slice(*shard.span(len(folder.paths), options.batch_size))
    sizes = [[name, path.stat().st_size] for name, path in zip(folder.ids, folder.paths, strict=True)]
    images = replace(folder, paths=folder.paths[part], names=folder.names[part])
    return images, lambda encoder: shard.piece("images", sizes, dict(encoder.id))


def _open_captions(options: argparse.Namespace) -> tuple[Captions, Told | None]:
    """Read the captions, or those of the shard."""
    from clipconformity.data import read_captions

    captions = read_captions(options.captions, options.column)
    if captions.remark:
        warnings.warn(captions.remark, stacklevel=2)
    shard = parse_shard(options)
    if shard is None:
        return captions, None
    part = slice(*shard.span(len(captions.texts), options.batch_size))
    texts = [captions.ids, captions.texts]
    groups = None if captions.groups is None else captions.groups[part]
    cut = replace(captions, texts=captions.texts[part], ids=captions.ids[part], groups=groups)
    return cut, lambda encoder: shard.piece("captions", texts, dict(encoder.id))


def parse_shard(options: argparse.Namespace) -> Shard | None:
    """The shard that ``--shard`` names."""
    text = getattr(options, "shard", None)
    return None if text is None else Shard.parse(text)


def describe_shard(options: argparse.Namespace) -> dict[str, Any]:
    """Say which shard it is that a command made."""
    return {} if getattr(options, "shard", None) is None else {"shard": options.shard}


def keep_parts(options: argparse.Namespace, output: Path | None) -> Parts:
    """Give the folder of parts of a command, which all of its processes must be given the same options for."""
    from clipconformity import __version__
    from clipconformity.cli.parts import Parts, digest

    alike = {name: str(value) for name, value in vars(options).items() if name not in OWN}
    card = {"version of clipconformity": __version__, "options": digest(sorted(alike.items()))[:12]}
    if hasattr(options, "dtype"):
        card["--dtype"] = str(options.dtype)
    return Parts(output, options.ranks, card, quiet=options.quiet, tell=partial(print_details, options))


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


def check_given(options: argparse.Namespace) -> None:
    """Refuse options that name neither one source nor images with captions.

    Raises:
        ValueError: If it is not.
    """
    given = [name for name in (*KINDS, "saved") if getattr(options, name)]
    if not given:
        raise ValueError(
            "one of --images, --captions, --embeddings and --saved is required, or --images with --captions."
        )
    if len(given) > 1 and given != ["images", "captions"]:
        raise ValueError(f"--{given[-1]}: goes without --{given[0]}; give one of them.")
    if options.saved and options.against:
        raise ValueError("--against: needs the samples themselves, which --saved does not keep; leave it out.")
    if options.caption_references is not None and len(given) < 2:
        raise ValueError("--caption-references: goes with --images and --captions together; leave it out.")


def refuse_unnamed(option: str, paths: Iterable[Place]) -> None:
    """Refuse folders and patterns where each file is to be named.

    Raises:
        ValueError: If there is one.
    """
    from clipconformity.data.places import is_folder, is_pattern

    for path in paths:
        if is_folder(path):
            raise ValueError(f"{option}: {path} is a folder; name its files, such as {path / '*.safetensors'}.")
        if is_pattern(path):
            raise ValueError(f"{option}: no file is called {path}; a pattern goes without quotes.")


def open_against(options: argparse.Namespace) -> Iterator[Source] | None:
    """Open the sources of ``--against`` one after the other; None where it is not given."""
    from clipconformity.data.files import refuse_same
    from clipconformity.data.layout import find_embeddings
    from clipconformity.data.places import look_up
    from clipconformity.evaluation import embedding_source

    if options.against is None:
        return None
    found = find_embeddings(options.against, options.modality)
    refuse_same([("--against", path) for path in found.paths])
    for path in found.paths:  # they are read last
        look_up(path)
    settings = get_embedding_settings(options) | {"groups": None} | ({} if options.embeddings else {"column": None})
    return (embedding_source([place], **settings) for place in options.against)


def open_pairs(
    options: argparse.Namespace, parts: Parts, reference: ReferenceSet, cache: Cache | None = None
) -> Source:
    """Open images and captions, joined by id; what the reference is of is scored.

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
    images, captions, *people = (open_source(side, parts, reference.spec, cache, encoder) for side in sides)
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
