"""What ``score`` does: one set of samples against a reference, at once, by shards, or as it was saved."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clipconformity import __version__
from clipconformity.cli import outputs
from clipconformity.cli.encoded import Cache
from clipconformity.cli.messages import print_summary, report_time
from clipconformity.cli.reports import make_run, read_reference_samples, write_page
from clipconformity.cli.sources import (
    check_given,
    describe_shard,
    keep_parts,
    open_against,
    open_pairs,
    open_source,
    refuse_unnamed,
)
from clipconformity.cli.states import take_in_scored

if TYPE_CHECKING:
    from clipconformity.cli.parts import Parts
    from clipconformity.cli.reports import ReferenceSamples
    from clipconformity.data.files import Publication
    from clipconformity.evaluation import Score, Source
    from clipconformity.evaluation.requirements import Requirement
    from clipconformity.stream.reference import ReferenceSet

CORE = "conformity"
"""What is read out unless ``--metrics`` names more."""


def score_samples(options: argparse.Namespace) -> dict[str, Any]:
    """Score samples against a reference."""
    from clipconformity.data.files import Publication
    from clipconformity.stream.reference import ReferenceSet

    check_given(options)
    written = {
        "--save": options.save,
        "--report": options.report,
        "--per-sample": options.per_sample,
        "--per-class": options.per_class,
        "--curve": options.curve,
    }
    outputs.check(options, list(written.items()))
    if options.per_class is not None and options.by is None:
        raise ValueError("--per-class: goes with --by; leave it out.")
    check_numbers(options)
    settings = list_score_settings(options)
    requirements = _requirements(options, settings["metrics"])
    if options.shard is not None:
        return _score_shard(options, settings)
    with report_time(options, "reading the reference"):
        reference = ReferenceSet.load(options.reference)
    samples = read_reference_samples(options, reference)
    place = next((path for path in written.values() if path is not None), None)
    with keep_parts(options, place) as parts:
        result, partner_of = (
            _read_saved(options, reference, settings)
            if options.saved
            else _score_here(options, parts, reference, settings)
        )
        with (
            report_time(options, "writing"),
            Publication(overwrite=options.overwrite) as files,
        ):  # all of the files or none
            _write(options, files, result, partner_of, samples)
    given = {
        name: [str(path) for path in (value if isinstance(value, list) else [value])]
        for name in ("images", "captions", "caption_references", "embeddings", "saved", "by", "against")
        if (value := getattr(options, name))
    }
    summary = result.to_dict()
    if requirements:
        summary["requirements"] = [one.judge(result) for one in requirements]
    return summary | {"measured": given | summary["measured"] | {"clipconformity": __version__}}


def _requirements(options: argparse.Namespace, metrics: Sequence[str] | None) -> list[Requirement]:
    """Read what ``--require`` asks for, of figures that there will be."""
    from clipconformity.evaluation.scoring import choose_read_outs
    from clipconformity.stream.readouts import read_outs
    from clipconformity.stream.readouts.against import FIELDS as AGAINST

    paired, people = bool(options.images and options.captions), options.caption_references is not None
    # What a saved score has its file says; until it is read every figure may be there.
    chosen = (
        [*read_outs().values()]
        if options.saved
        else choose_read_outs(metrics or (), paired=paired, with_references=people)
    )
    fields = [*(field for one in chosen for field in one.fields), *(AGAINST if options.against else ())]
    return [_parse_requirements(text, {field.name for field in fields}) for text in options.require]


def _score_here(
    options: argparse.Namespace, parts: Parts, reference: ReferenceSet, settings: dict[str, Any]
) -> tuple[Score, Mapping[str, str]]:
    """Score samples that are read now; with the id of each one's partner."""
    from clipconformity.evaluation.scoring import read_score

    source = _open(options, parts, reference, settings)
    with report_time(options, "figures", source):
        scoring, taken = take_in_scored(options, parts, source, reference, settings, hold=options.against is not None)
        against = open_against(options)
        figures = {name: settings[name] for name in ("resamples", "margins", "by")}
        result = read_score(taken, scoring.chosen, against=against, **figures)
    print_summary(options, source)
    return result, source.partner_of


def _open(options: argparse.Namespace, parts: Parts, reference: ReferenceSet, settings: Mapping[str, Any]) -> Source:
    parts.require_same(reference)
    cache = open_cache(options, parts)
    if options.images and options.captions:
        source = open_pairs(options, parts, reference, cache)
    else:
        source = open_source(options, parts, reference.spec, cache)
    check_classes(options, source, settings["by"])
    return source


def _read_saved(
    options: argparse.Namespace, reference: ReferenceSet, settings: Mapping[str, Any]
) -> tuple[Score, Mapping[str, str]]:
    """Read what ``--saved`` names as one score, of whose samples no partners are known."""
    from clipconformity.data.files import refuse_same
    from clipconformity.evaluation.saved import read_scores

    refuse_unnamed("--saved", options.saved)
    refuse_same([("--saved", path) for path in options.saved])
    figures = {name: settings[name] for name in ("resamples", "metrics", "margins", "by")}
    with report_time(options, "reading and joining the saved scores"):
        return read_scores(options.saved, reference, **figures), {}


def _write(
    options: argparse.Namespace,
    files: Publication,
    result: Score,
    partner_of: Mapping[str, str],
    samples: ReferenceSamples,
) -> None:
    """Write the files that are asked for."""
    from clipconformity.evaluation import sample_size_curve, write_classes, write_curve, write_per_sample

    if options.per_sample is not None:
        write_per_sample(files.add(options.per_sample), result)
    if options.per_class is not None and result.by is not None:
        write_classes(files.add(options.per_class), result.by.classes)
    if options.curve is not None:
        write_curve(files.add(options.curve), sample_size_curve(result))
    if options.report is not None:
        write_page(options, files.add(options.report), [make_run(options, result, partner_of)], samples)
    if options.save is not None:
        result.save(files.add(options.save))


OF_ALL = ("report", "per_sample", "per_class", "curve", "by", "against", "require", "caption_references", "saved")
"""Options of ``score`` that need all samples, so that they go with ``--saved`` at the end and not with a shard."""


def _score_shard(options: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """Take in one share of the samples, and save it to be joined with the others."""
    from clipconformity.data.files import replace_file
    from clipconformity.evaluation.saved import write_taken
    from clipconformity.stream.checks import check_stream
    from clipconformity.stream.reference import ReferenceSet

    if options.save is None:
        raise ValueError("--shard: a shard is kept to be joined with the others; give --save FILE.safetensors.")
    for name in OF_ALL:
        if getattr(options, name):
            raise ValueError(f"--{name.replace('_', '-')}: is of all samples; give it to the command that joins them.")
    if options.images and options.captions:
        raise ValueError(
            "--shard: goes with one kind of samples. Images with captions are shared by --processes N or torchrun; or "
            "leave out one of the two, and with it CLIPScore."
        )
    with report_time(options, "reading the reference"):
        reference = ReferenceSet.load(options.reference)
    with keep_parts(options, options.save) as parts:
        source = _open(options, parts, reference, settings)
        with report_time(options, "taking in", source):
            scoring, taken = take_in_scored(options, parts, source, reference, settings)
        print_summary(options, source)
        check_stream(taken.stream.evaluated, scoring.allow_normalized)
        with replace_file(options.save, overwrite=options.overwrite) as path:
            write_taken(path, taken._replace(made_of=source.made_of), [one.name for one in scoring.chosen])
    return {"output": str(options.save), "count": len(taken.rows.ids)} | describe_shard(options) | source.remarks


def open_cache(options: argparse.Namespace, parts: Parts) -> Cache | None:
    """The folder of ``--cache``."""
    return None if options.cache is None else Cache(options.cache, parts)


def list_score_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What ``score`` takes beside the samples and the reference."""
    from clipconformity.data import read_classes

    # A saved score has metrics of its own; those that are compared are to have the same.
    own = options.metrics is None and "models" not in options and options.saved
    return {
        "resamples": options.resamples,
        "metrics": None if own else [name.strip() for name in (options.metrics or CORE).split(",")],
        "margins": _parse_margins(options.margin),
        "by": None if options.by is None else read_classes(options.by),
        "allow_normalized": options.allow_normalized,
    }


def check_classes(options: argparse.Namespace, source: Source, by: Mapping[str, str] | None) -> None:
    """Refuse classes of none of the images, before these are encoded; ids of other samples are known when read."""
    if by is None or source.folder is None:
        return
    names = source.folder.ids
    if by.keys().isdisjoint(names):
        raise ValueError(
            f"--by: {options.by} has none of the {len(names)} images of {source.name}; give their names as they are in "
            f"the folder, such as {names[0]!r}."
        )


def check_numbers(options: argparse.Namespace) -> None:
    """Refuse numbers that are too small, and options of the report without one.

    Raises:
        ValueError: If there are some.
    """
    from clipconformity.data.limits import check_limit

    for name in ("no_images", "reference_images", "reference_captions"):
        if getattr(options, name) and options.report is None:
            raise ValueError(f"--{name.replace('_', '-')}: goes with --report; leave it out.")
    if options.resamples < 1:
        raise ValueError(f"--resamples: expected at least 1, got {options.resamples}.")
    check_limit("--resamples", "resamples", options.resamples)


def _parse_requirements(text: str, known: set[str]) -> Requirement:
    from clipconformity.evaluation.requirements import Requirement
    from clipconformity.evaluation.suggestions import suggest_figure
    from clipconformity.stream.readouts import read_outs

    try:
        found = Requirement.parse(text)
    except ValueError as error:
        raise ValueError(f"--require: {error}") from None
    if found.name not in known:
        expected = f"expected one of {', '.join(sorted(known))}"
        meant = suggest_figure(found.name, known, read_outs())
        raise ValueError(f"--require: there is no figure {found.name!r}: {expected}{meant}")
    return found


def _parse_margins(text: str | None) -> dict[str, float]:
    from clipconformity.evaluation.results import check_margins

    margins = {}
    for part in (text or "").split(",") if text else ():
        name, _, value = part.partition("=")
        try:
            margins[name.strip()] = float(value)
        except ValueError:
            raise ValueError(f"--margin: expected NAME=NUMBER such as variety=0.05, got {part!r}.") from None
    return check_margins(margins)
