"""The commands that make references: from samples, from MS-COCO, and from other references."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipconformity.cli import outputs
from clipconformity.cli.messages import print_summary, report_time
from clipconformity.cli.parts import Parts
from clipconformity.cli.sources import (
    check_options,
    choose_image_settings,
    name_source,
    open_encoder,
    open_source,
    require_spec,
)

if TYPE_CHECKING:
    from clipconformity.data import Coco
    from clipconformity.encoders import Encoder
    from clipconformity.stream.reference import ReferenceSet


def make_reference(options: argparse.Namespace) -> dict[str, Any]:
    """Build a reference set."""
    from clipconformity.data.files import replace_file
    from clipconformity.evaluation import build_reference

    if options.coco is not None:
        return _build_from_coco(options)
    if len(options.encoder or ()) > 1:
        raise ValueError("--encoder: several go with --coco alone; name one.")
    options.encoder = options.encoder[0] if options.encoder else None
    outputs.check(options, [("--output", options.output)])
    with Parts(options.output) as parts:
        source = open_source(options, parts=parts)
        with report_time(options, "statistics", source):
            reference = build_reference(
                source,
                dataset=options.dataset,
                max_samples=options.max_samples,
                allow_normalized=options.allow_normalized,
            )
        print_summary(options, source)
        summary = describe_reference(reference, options.output)  # may raise before anything is written
        with report_time(options, "writing"), replace_file(options.output, overwrite=options.overwrite) as output:
            reference.save(output)
    return summary | source.remarks


def _build_from_coco(options: argparse.Namespace) -> dict[str, Any]:
    """Build ``NAME-image`` and ``NAME-text`` from one reading of MS-COCO, with the chosen captions beside them.

    With several encoders, ``NAME-ENCODER-image`` and ``NAME-ENCODER-text`` for each; each file is decoded once.
    """
    from clipconformity.data.files import Publication

    specs = [require_spec(spec) for spec in options.encoder or [None]]
    names = _name_files(specs)
    paths = {
        (name, kind): options.output.with_name("-".join(filter(None, (options.output.stem, name, kind))) + suffix)
        for suffix in [options.output.suffix or ".safetensors"]
        for name in names
        for kind in ("image", "text")
    }
    chosen = options.output.with_name(f"{options.output.stem}-captions.json")
    outputs.check(options, [*(("--output", path) for path in paths.values()), ("captions beside --output", chosen)])
    coco = open_coco(options)
    encoders = [open_encoder(argparse.Namespace(**vars(options) | {"encoder": spec})) for spec in specs]
    built = {
        "image": _build_from_images(options, coco, encoders),
        "text": _build_from_captions(options, coco, encoders),
    }
    summary: dict[str, dict[str, Any]] = {spec: {} for spec in specs}
    with report_time(options, "writing"), Publication(overwrite=options.overwrite) as files:  # all of the files or none
        for kind, references in built.items():
            for spec, name, (reference, remarks) in zip(specs, names, references, strict=True):
                summary[spec][kind] = (
                    describe_reference(reference, paths[name, kind]) | remarks
                )  # may raise before writing
                reference.save(files.add(paths[name, kind]))
        coco.save_captions(files.add(chosen))
    result = summary[specs[0]] if len(specs) == 1 else {"encoders": summary}
    missing = {"missing": {"count": len(coco.missing), "files": [str(path) for path in coco.missing]}}
    return result | {"captions": str(chosen), "coco": coco.describe()} | (missing if coco.missing else {})


def _name_files(specs: Sequence[str]) -> list[str]:
    """Return the part of the file names that is of each encoder; empty for a single one.

    Raises:
        ValueError: If two encoders are the same, or would write the same files.
    """
    names = [re.sub(r"[^\w.]+", "-", spec).strip("-.") for spec in specs]
    twice = next((spec for spec, name in zip(specs, names, strict=True) if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--encoder: {twice!r} is there twice, or another whose files would have the same names.")
    return names if len(names) > 1 else [""]


def open_coco(options: argparse.Namespace) -> Coco:
    """Read the images and the chosen captions that ``--coco`` names.

    Raises:
        ValueError: If options do not fit together, or a file is broken.
        FileNotFoundError: If annotations or images are missing.
    """
    from clipconformity.data import read_coco

    check_options(options)
    if options.modality is not None:
        raise ValueError("--modality: --coco builds the references of both; leave it out.")
    per_image = options.per_image or "1"
    if per_image != "all" and not per_image.isdecimal():
        raise ValueError(f"--per-image: expected a number or 'all', got {per_image!r}.")
    with report_time(options, "reading the annotations"):
        return read_coco(
            options.coco,
            options.split or "val2017",
            per_image=None if per_image == "all" else int(per_image),
            seed=options.seed or 0,
            karpathy=options.karpathy,
            on_missing=options.on_error,
        )


def _build_from_images(
    options: argparse.Namespace, coco: Coco, encoders: Sequence[Encoder]
) -> list[tuple[ReferenceSet, dict[str, Any]]]:
    """Build a reference of the images for each encoder, with the remarks on it."""
    from clipconformity.evaluation import build_references, image_sources

    settings = choose_image_settings(options, len(coco.image_paths))
    sources = image_sources(coco.image_paths, encoders, root=options.coco, **settings)
    for source in sources:
        name_source(options, source, options.coco).missing = len(coco.missing)
    for source in sources[1:]:
        source.quiet = True  # one progress bar for all, since they are read in step
    dataset = options.dataset or coco.name
    references = build_references(sources, dataset=dataset, max_samples=options.max_samples)
    print_summary(options, sources[0])
    return [(reference, source.remarks) for reference, source in zip(references, sources, strict=True)]


def _build_from_captions(
    options: argparse.Namespace, coco: Coco, encoders: Sequence[Encoder]
) -> list[tuple[ReferenceSet, dict[str, Any]]]:
    """Build a reference of the captions for each encoder, with the remarks on it."""
    from clipconformity.evaluation import build_reference, caption_source

    found = []
    for encoder in encoders:
        source = name_source(
            options, caption_source(coco.captions, encoder, batch_size=options.batch_size), options.coco
        )
        dataset = options.dataset or coco.name
        reference = build_reference(source, dataset=dataset, max_samples=options.max_samples)
        print_summary(options, source)
        found.append((reference, source.remarks))
    return found


def merge_references(options: argparse.Namespace) -> dict[str, Any]:
    """Merge references of different samples."""
    from clipconformity.data.files import refuse_same, replace_file
    from clipconformity.stream.reference import ReferenceSet

    if len(options.references) < 2:
        raise ValueError("merge: expected at least two references.")
    refuse_same([("REFERENCE", path) for path in options.references if isinstance(path, Path)])
    outputs.check(options, [("--output", options.output)])
    with report_time(options, "reading the references"):
        merged, *others = (ReferenceSet.load(path) for path in options.references)
    for other in others:
        merged = merged.merge(other)
    summary = describe_reference(merged, options.output)
    with replace_file(options.output, overwrite=options.overwrite) as output:
        merged.save(output)
    return summary


def describe_reference(reference: ReferenceSet, path: Path) -> dict[str, Any]:
    """Describe a written reference with its figures, as plain values."""
    values = reference.conformities
    figures = {
        "conformity_mean": float(reference.self_conformity),
        "conformity_std": float(values.std()),
        "conformity_min": float(values.min()),
        "conformity_max": float(values.max()),
        "self_conformity_se": reference.known_error,
        "conformity_fit": {name: float(x) for name, x in reference.conformity_fit._asdict().items()},
        "norm_mean": float(reference.norms.mean()),
        "norm_std": float(reference.norms.std()),
        "exact": reference.exact,
    }
    return {"output": str(path)} | reference.describe() | figures
