"""The commands without a file of their own, from options to output."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipconformity import __version__
from clipconformity.cli import outputs
from clipconformity.cli.messages import print_summary
from clipconformity.cli.sources import describe_shard, keep_parts, open_source
from clipconformity.provenance import shorten_paths

if TYPE_CHECKING:
    from torch import Tensor


def list_encoders(options: argparse.Namespace) -> dict[str, Any]:
    """List the encoders that can be loaded here."""
    from clipconformity.encoders import available_encoders, encoder_specs
    from clipconformity.evaluation.suggestions import suggest_name

    if options.name is None:
        return available_encoders()
    specs = encoder_specs()
    found = [one for one in specs if options.name.lower() in one["spec"].lower()]
    if not found:
        known = [one["spec"] for one in specs] + [one["spec"].partition(":")[2].partition("/")[0] for one in specs]
        raise ValueError(f"encoders: no spec has {options.name!r} in it{suggest_name(options.name, known)}")
    return {"encoders": found}


def run_demo(options: argparse.Namespace) -> str:
    """Score simulated generators with the embedded encoder, and return the table."""
    from clipconformity.encoders import hide_progress_bars

    hide_progress_bars()
    from clipconformity.demo.simulation import run

    return run(options.output)[1]


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """Encode images or captions to a file of raw embeddings."""
    import torch

    from clipconformity.data import write_embeddings
    from clipconformity.data.files import replace_file
    from clipconformity.stream.merging import format_pieces
    from clipconformity.stream.row_sample import hash_labels

    outputs.check(options, [("--output", options.output)])
    with keep_parts(options, options.output) as parts:
        source = open_source(options, parts)
        parts.leave()
        batches = list(source)
        print_summary(options, source)
        if not batches:
            raise ValueError(source.nothing_read)
        embeddings = torch.cat([batch.embeddings.cpu() for batch in batches])
        groups = None
        if source.groups is not None:
            groups = hash_labels(source.groups, len(embeddings), embeddings.device)
        with replace_file(options.output, overwrite=options.overwrite) as output:
            write_embeddings(
                output,
                embeddings,
                ids=[name for batch in batches for name in batch.ids],
                groups=groups,
                provenance=source.provenance,
                made_of=format_pieces(source.made_of),
            )
    result = {"output": str(options.output), "count": len(embeddings), "embed_dim": embeddings.shape[1]}
    origin = {"encoder": source.provenance.spec, "modality": source.provenance.modality}
    return result | origin | describe_shard(options) | source.remarks


def measure_geometry(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the six geometric properties of embeddings."""
    from clipconformity.data import read_embeddings
    from clipconformity.data.files import replace_file
    from clipconformity.evaluation import geometry as properties
    from clipconformity.stream.checks import refuse_normalized

    outputs.check(options, [("--report", options.report)])
    paths = {"image": options.image_embeddings, "text": options.text_embeddings}
    rows, groups, origins = {}, {}, {}
    for modality, path in paths.items():
        if path is None:
            continue
        file = read_embeddings(path)
        if file.provenance.modality not in (None, modality):
            raise ValueError(f"{path}: holds {file.provenance.modality} embeddings, but was given as {modality}.")
        if not options.allow_normalized:
            refuse_normalized(file.embeddings, str(path))
        groups[modality] = file.groups
        origins[modality] = file.provenance
        rows[modality] = file.embeddings.float()
    if len(origins) == 2 and not origins["image"].is_same_encoder(origins["text"]):
        named = ", ".join(str(one.spec) for one in origins.values())
        raise ValueError(f"the files come from different encoders ({named}); encode both with the same one.")
    image, text = rows.get("image"), rows.get("text")
    paired = image is not None and text is not None and len(image) == len(text) and not options.unpaired
    sweep = gap = None
    if image is not None and text is not None:
        sweep = properties.sweep_loss(image, text, options.logit_scale) if paired else None
        if paired and any(_has_repeats(ids) for ids in groups.values()):
            warnings.warn("the loss takes pairs of one group as independent: its interval is too narrow.", stacklevel=2)
        gap = properties.compute_gap_figures(
            image, text, paired=paired, image_groups=groups.get("image"), text_groups=groups.get("text")
        )
    found = properties.six_properties(
        image,
        text,
        paired=paired,
        logit_scale=options.logit_scale,
        sweep=sweep,
        image_groups=groups.get("image"),
        text_groups=groups.get("text"),
    )
    print(properties.format_table(found), file=sys.stderr)  # noqa: T201
    measured = {f"{name}_embeddings": str(path) for name, path in paths.items() if path is not None}
    if options.report is not None:
        from clipconformity.report import write_geometry_report

        with replace_file(options.report, overwrite=options.overwrite) as output:
            write_geometry_report(
                output,
                found,
                image=image,
                text=text,
                sweep=sweep,
                gap=gap,
                measured={name: shorten_paths(path, Path.cwd()) for name, path in measured.items()},
                command=options.line,
            )
    result = {"properties": properties.as_json(found)} | ({} if gap is None else {"gap": gap})
    return result | {"measured": measured | {"clipconformity": __version__}}


def _has_repeats(groups: Tensor | None) -> bool:
    return groups is not None and len(groups.unique()) < len(groups)
