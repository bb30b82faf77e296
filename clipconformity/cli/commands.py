"""What each command does: from its options to what it prints."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipconformity import __version__
from clipconformity.cli import outputs
from clipconformity.cli.messages import tell_summary
from clipconformity.cli.sources import kept_parts, open_source, told_shard
from clipconformity.provenance import without_folders

if TYPE_CHECKING:
    from torch import Tensor


def list_encoders(options: argparse.Namespace) -> dict[str, Any]:
    """List the encoders that can be loaded here."""
    from clipconformity.encoders import available_encoders, encoder_specs
    from clipconformity.evaluation.scoring import did_you_mean

    if options.name is None:
        return available_encoders()
    specs = encoder_specs()
    found = [one for one in specs if options.name.lower() in one["spec"].lower()]
    if not found:
        known = [one["spec"] for one in specs] + [one["spec"].partition(":")[2].partition("/")[0] for one in specs]
        raise ValueError(f"encoders: no spec has {options.name!r} in it{did_you_mean(options.name, known)}")
    return {"encoders": found}


def run_demo(options: argparse.Namespace) -> str:
    """Score simulated generators on the embedded default, and give the table."""
    from clipconformity.encoders import hide_progress_bars

    hide_progress_bars()
    from clipconformity.demo.simulation import run

    return run(options.output)[1]


def embed(options: argparse.Namespace) -> dict[str, Any]:
    """Encode images or captions to a file of raw embeddings."""
    import torch

    from clipconformity.data import write_embeddings
    from clipconformity.data.files import replacing
    from clipconformity.stream.merging import pieces_as_lists
    from clipconformity.stream.row_sample import hash_labels

    outputs.check(options, [("--output", options.output)])
    with kept_parts(options, options.output) as parts:
        source = open_source(options, parts)
        parts.leave()
        batches = list(source)
        tell_summary(options, source)
        if not batches:
            raise ValueError(source.nothing_read)
        embeddings = torch.cat([batch.embeddings.cpu() for batch in batches])
        groups = None
        if source.groups is not None:
            groups = hash_labels(source.groups, len(embeddings), embeddings.device)
        with replacing(options.output, overwrite=options.overwrite) as output:
            write_embeddings(
                output,
                embeddings,
                ids=[name for batch in batches for name in batch.ids],
                groups=groups,
                provenance=source.provenance,
                made_of=pieces_as_lists(source.made_of),
            )
    result = {"output": str(options.output), "count": len(embeddings), "embed_dim": embeddings.shape[1]}
    origin = {"encoder": source.provenance.spec, "modality": source.provenance.modality}
    return result | origin | told_shard(options) | source.remarks


def measure_geometry(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the six geometric properties of embeddings."""
    from clipconformity.data import read_embeddings
    from clipconformity.data.files import replacing
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
    if len(origins) == 2 and not origins["image"].same_encoder(origins["text"]):
        named = ", ".join(str(one.spec) for one in origins.values())
        raise ValueError(f"the files come from different encoders ({named}); encode both with the same one.")
    image, text = rows.get("image"), rows.get("text")
    paired = image is not None and text is not None and len(image) == len(text) and not options.unpaired
    sweep = gap = None
    if image is not None and text is not None:
        sweep = properties.loss_sweep(image, text, options.logit_scale) if paired else None
        if paired and any(_repeated(ids) for ids in groups.values()):
            warnings.warn("the loss takes pairs of one group as independent: its interval is too narrow.", stacklevel=2)
        gap = properties.gap_figures(
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
    print(properties.table(found), file=sys.stderr)  # noqa: T201
    measured = {f"{name}_embeddings": str(path) for name, path in paths.items() if path is not None}
    if options.report is not None:
        from clipconformity.report import write_geometry_report

        with replacing(options.report, overwrite=options.overwrite) as output:
            write_geometry_report(
                output,
                found,
                image=image,
                text=text,
                sweep=sweep,
                gap=gap,
                measured={name: without_folders(path, Path.cwd()) for name, path in measured.items()},
                command=options.line,
            )
    result = {"properties": properties.as_json(found)} | ({} if gap is None else {"gap": gap})
    return result | {"measured": measured | {"clipconformity": __version__}}


def _repeated(groups: Tensor | None) -> bool:
    return groups is not None and len(groups.unique()) < len(groups)
