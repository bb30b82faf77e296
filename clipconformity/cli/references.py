"""The commands that make references: from samples, from MS-COCO, and from other references."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipconformity.cli import outputs
from clipconformity.cli.encoded import read_captions_in_parts, read_images_in_parts
from clipconformity.cli.encoders import open_encoder, require_spec
from clipconformity.cli.messages import print_summary, report_time
from clipconformity.cli.sources import (
    check_options,
    describe_shard,
    get_embedding_settings,
    keep_parts,
    name_source,
    open_source,
    refuse_unnamed,
)
from clipconformity.cli.states import build_moments

if TYPE_CHECKING:
    from clipconformity.cli.parts import Parts
    from clipconformity.data import Coco
    from clipconformity.encoders import Encoder
    from clipconformity.evaluation import Source
    from clipconformity.stream.reference import ReferenceSet


def make_reference(options: argparse.Namespace) -> dict[str, Any]:
    """Build a reference set."""
    from clipconformity.data.files import replace_file

    if options.coco is not None:
        return _build_from_coco(options)
    if len(options.encoder or ()) > 1:
        raise ValueError("--encoder: several go with --coco alone; name one.")
    options.encoder = options.encoder[0] if options.encoder else None
    outputs.check(options, [("--output", options.output)])
    with keep_parts(options, options.output) as parts:
        source = open_source(options, parts)
        with report_time(options, "statistics", source):
            reference = _build(options, parts, source)
        print_summary(options, source)
        summary = describe_reference(reference, options.output)  # may raise before anything is written
        with report_time(options, "writing"), replace_file(options.output, overwrite=options.overwrite) as output:
            reference.save(output)
    return summary | describe_shard(options) | source.remarks


def _build(options: argparse.Namespace, parts: Parts, source: Source) -> ReferenceSet:
    """Build a reference of a source, by parts where it is of files of embeddings."""
    from clipconformity.evaluation import build_reference
    from clipconformity.evaluation.shards import FileSource
    from clipconformity.stream.reference import ReferenceSet

    summary: dict[str, Any] = {"dataset": options.dataset, "allow_normalized": options.allow_normalized}
    if not isinstance(source, FileSource):
        parts.leave()
        return build_reference(source, max_samples=options.max_samples, **summary)
    source.allow_normalized = options.allow_normalized
    moments = build_moments(parts, source, options.max_samples, get_embedding_settings(options))
    reference = ReferenceSet.from_moments(moments, source.provenance, **summary)
    reference.made_of = tuple(source.made_of)
    return reference


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
    summary: dict[str, dict[str, Any]] = {spec: {} for spec in specs}
    with keep_parts(options, options.output) as parts:
        built = _build_both(options, parts, coco, specs)
        with (
            report_time(options, "writing"),
            Publication(overwrite=options.overwrite) as files,
        ):  # all of the files or none
            for kind, references in built.items():
                for spec, name, (reference, remarks) in zip(specs, names, references, strict=True):
                    summary[spec][kind] = (
                        describe_reference(reference, paths[name, kind]) | remarks
                    )  # may refuse; then none is
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
    if options.shard is not None:
        raise ValueError(
            "--shard: goes with one kind of samples. --coco is shared by --processes N or torchrun; or give its folder "
            "of images to --images, and its annotations to --captions, each with --shard."
        )
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


def _build_both(
    options: argparse.Namespace, parts: Parts, coco: Coco, specs: Sequence[str]
) -> dict[str, list[tuple[ReferenceSet, dict[str, Any]]]]:
    """Build a reference of the images and one of the captions for each encoder, with the remarks on it."""
    from clipconformity.evaluation import build_reference, build_references

    encoders = [open_encoder(argparse.Namespace(**vars(options) | {"encoder": spec})) for spec in specs]
    images = _images(options, parts, coco, encoders)
    captions = [
        name_source(options, read_captions_in_parts(options, parts, coco.captions, encoder), options.coco)
        for encoder in encoders
    ]
    parts.leave()
    settings = {"dataset": options.dataset or coco.name, "max_samples": options.max_samples}
    references = build_references(images, **settings)
    print_summary(options, images[0])
    found = {"image": [(each, source.remarks) for each, source in zip(references, images, strict=True)], "text": []}
    for source in captions:
        reference = build_reference(source, **settings)
        print_summary(options, source)
        found["text"].append((reference, source.remarks))
    return found


def _images(options: argparse.Namespace, parts: Parts, coco: Coco, encoders: Sequence[Encoder]) -> list[Source]:
    """Open the images for each encoder; they are decoded once for all."""
    sources = read_images_in_parts(options, parts, coco.image_paths, encoders, root=options.coco)
    for source in sources:
        name_source(options, source, options.coco).missing = len(coco.missing)
    return sources


def merge_files(options: argparse.Namespace) -> dict[str, Any]:
    """Join files of different samples: references, saved scores or embeddings, as the first of them is."""
    from clipconformity.data.files import refuse_same
    from clipconformity.data.formats import FORMAT, SCORE

    named = [path for path in options.references if not isinstance(path, str)]  # text is of the hub
    refuse_unnamed("merge", named)
    if len(options.references) < 2:
        raise ValueError(f"merge: expected at least two files, got {options.references[0]} alone.")
    refuse_same([("FILE", path) for path in named])
    outputs.check(options, [("--output", options.output)])
    kind = _find_kind(named)
    if kind != SCORE and options.reference is not None:
        raise ValueError("--reference: goes with saved scores; leave it out.")
    if kind == SCORE:
        return _merge_scores(options)
    return _merge_embeddings(options) if kind == FORMAT else _merge_references(options)


def _find_kind(paths: Sequence[Path]) -> str | None:
    """Return of which kind all files are; None where only their reader can say.

    Raises:
        ValueError: If there are files of two kinds.
    """
    from clipconformity.data.formats import FORMAT, KINDS, READERS, read_kind

    others = set(READERS) - {".safetensors"}
    kinds = {path: FORMAT if path.suffix in others else read_kind(path) for path in paths}
    known = {kind: path for path, kind in reversed(kinds.items()) if kind is not None}
    if len(known) > 1:
        (mine, first), (theirs, second) = list(known.items())[::-1][:2]
        raise ValueError(
            f"merge: {first} is {KINDS[mine][0]} and {second} is {KINDS[theirs][0]}; join files of one kind."
        )
    return next(iter(known), None)


def _merge_references(options: argparse.Namespace) -> dict[str, Any]:
    from clipconformity.data.files import replace_file
    from clipconformity.stream.merging import Merging, identify_reference
    from clipconformity.stream.reference import ReferenceSet

    merging = Merging(ReferenceSet.merge, identify_reference, "references")
    with report_time(options, "reading and joining the references"):
        for path in options.references:
            merging.add(path, ReferenceSet.load(path))
        merged = merging.joined()
    summary = describe_reference(merged, options.output)
    with replace_file(options.output, overwrite=options.overwrite) as output:
        merged.save(output)
    return summary


def _merge_scores(options: argparse.Namespace) -> dict[str, Any]:
    from clipconformity.data.files import replace_file
    from clipconformity.evaluation.saved import merge_saved, write_taken
    from clipconformity.stream.reference import ReferenceSet

    if options.reference is None:
        raise ValueError("--reference: give the reference that the saved scores were scored against, to join them.")
    with report_time(options, "reading and joining the saved scores"):
        merged = merge_saved(options.references, ReferenceSet.load(options.reference))
    with replace_file(options.output, overwrite=options.overwrite) as output:
        write_taken(output, merged.taken, merged.metrics)
    return {"output": str(options.output), "count": len(merged.taken.rows.ids), "metrics": merged.metrics}


def _merge_embeddings(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from clipconformity.data import write_embeddings
    from clipconformity.data.embeddings import Columns
    from clipconformity.data.files import replace_file
    from clipconformity.evaluation.shards import open_embedding_files
    from clipconformity.stream.merging import format_pieces

    with report_time(options, "reading and joining the embeddings"):
        opened = open_embedding_files(options.references, Columns())
        batches = list(opened.source())
        embeddings = torch.cat([batch.embeddings for batch in batches])
    groups = [batch.groups for batch in batches if isinstance(batch.groups, torch.Tensor)]
    with replace_file(options.output, overwrite=options.overwrite) as output:
        write_embeddings(
            output,
            embeddings,
            ids=[name for batch in batches for name in batch.ids],
            groups=torch.cat(groups) if groups else None,
            provenance=opened.provenance,
            made_of=format_pieces(opened.pieces_of_files),
        )
    return {"output": str(options.output), "count": len(embeddings), "embed_dim": embeddings.shape[1]}


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
