"""The report of what a command scored: its images, captions and prompts, and those of the reference."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clipconformity.cli.sources import find_image_folder

if TYPE_CHECKING:
    from clipconformity.evaluation import Score
    from clipconformity.report import Run
    from clipconformity.stream.reference import ReferenceSet


class ReferenceSamples(NamedTuple):
    """Images and captions of the reference's samples, by id."""

    images: dict[str, Path] | None
    captions: dict[str, str] | None


def read_reference_samples(options: argparse.Namespace, reference: ReferenceSet) -> ReferenceSamples:
    """Find the images and captions of ``--reference-images`` and ``--reference-captions``, before any work.

    Raises:
        OSError: If there is no such folder or file.
        ValueError: If they cannot be read, or none belongs to the reference.
    """
    from clipconformity.data import list_images, read_captions

    folder, file = options.reference_images, options.reference_captions
    images: dict[str, Path] | None = None
    captions: dict[str, str] | None = None
    if folder is not None:  # listed, since a reference may name files elsewhere
        try:
            images = {found.relative_to(folder).as_posix(): found for found in list_images(folder)}
        except (OSError, ValueError) as error:
            raise type(error)(f"--reference-images: {error}") from None
        _check_known("--reference-images", reference, images)
    if file is not None:
        try:
            listed = read_captions(file, None)
        except (OSError, ValueError) as error:
            raise type(error)(f"--reference-captions: {error}") from None
        captions = dict(zip(listed.ids, listed.texts, strict=True))
        _check_known("--reference-captions", reference, captions)
    return ReferenceSamples(images, captions) if not options.no_images else ReferenceSamples(None, None)


def _check_known(option: str, reference: ReferenceSet, given: Mapping[str, object]) -> None:
    """Refuse input that holds none of the reference's samples, and warn of samples that it lacks."""
    ids = reference.sample_ids or []
    lacking = [name for name in ids if name not in given]
    if len(lacking) == len(ids):
        named = f"such as {ids[0]!r}" if ids else "which has no ids"
        raise ValueError(
            f"{option}: none of its samples is in the reference, {named}; give those that it was built from."
        )
    if lacking:
        warnings.warn(
            f"{option}: {len(lacking)} of {len(ids)} samples of the reference are not in it, such as {lacking[0]!r}; "
            "is it what the reference was built of?",
            stacklevel=2,
        )


def make_run(options: argparse.Namespace, result: Score, partner_of: Mapping[str, str], name: str | None = None) -> Run:
    """Return a scored run with its images and captions for the report, unless they are to be left out."""
    from clipconformity.data import read_captions
    from clipconformity.report import Run

    if name is None:
        given = options.images or options.captions or (options.embeddings or options.saved)[0]
        name = given.name or str(given)
    images: Mapping[str, Path] | None = None
    captions: Mapping[str, str] | Sequence[str] | None = None
    if not options.no_images:
        listed = read_captions(options.captions, options.column) if options.captions else None
        folder = find_image_folder(options, options.images or Path())
        if options.images and listed is not None:  # joined: scored samples have the ids of their partners
            texts = dict(zip(listed.ids, listed.texts, strict=True))
            of_images = result.measured["modality"] == "image"
            images = {name: folder / (name if of_images else partner_of[name]) for name in result.ids}
            captions = {name: texts[partner_of[name] if of_images else name] for name in result.ids}
        elif options.images:
            images = {name: folder / name for name in result.ids}
            captions = _read_prompts(folder)
        elif listed is not None:
            captions = listed.texts
    return Run(name, result, images, captions)


def _read_prompts(folder: Path) -> dict[str, str] | None:
    """Read the prompts of a folder of ``generate_images``; None for any other folder."""
    from clipconformity.generators import read_manifest

    try:
        return {one["file"]: one["prompt"] for one in read_manifest(folder)}
    except (FileNotFoundError, ValueError):
        return None


def write_page(options: argparse.Namespace, path: Path, runs: Sequence[Run], samples: ReferenceSamples) -> None:
    """Write the report of scored runs."""
    from clipconformity.report import write_report
    from clipconformity.report.scores import THUMBNAILS

    write_report(
        path,
        runs,
        command=options.line,
        thumbnails=0 if options.no_images else THUMBNAILS,
        reference_images=samples.images,
        reference_captions=samples.captions,
    )
