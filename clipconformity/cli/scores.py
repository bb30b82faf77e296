"""The commands that score: one set of samples, or several models."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipconformity import __version__
from clipconformity.cli import outputs
from clipconformity.cli.messages import print_summary, report_time
from clipconformity.cli.parts import Cache
from clipconformity.cli.reports import make_run, read_reference_samples, write_page
from clipconformity.cli.sources import (
    KINDS,
    check_columns,
    check_given,
    open_against,
    open_encoder,
    open_pairs,
    open_source,
    select_kind,
)

if TYPE_CHECKING:
    from clipconformity.encoders import Encoder
    from clipconformity.evaluation import Comparison, Score, Source
    from clipconformity.evaluation.requirements import Requirement
    from clipconformity.stream.reference import ReferenceSet

SAVED = "saved"
"""Kind of a source that ``score --save`` wrote, beside the kinds of samples."""


def score_samples(options: argparse.Namespace) -> dict[str, Any]:
    """Score samples against a reference."""
    from clipconformity.data.files import Publication
    from clipconformity.evaluation import sample_size_curve, score, write_classes, write_curve, write_per_sample
    from clipconformity.evaluation.scoring import choose_read_outs
    from clipconformity.stream.readouts.against import FIELDS as AGAINST
    from clipconformity.stream.reference import ReferenceSet

    check_given(options)
    written = {
        "--per-sample": options.per_sample,
        "--per-class": options.per_class,
        "--curve": options.curve,
        "--report": options.report,
        "--save": options.save,
    }
    outputs.check(options, list(written.items()))
    if options.per_class is not None and options.by is None:
        raise ValueError("--per-class: goes with --by; leave it out.")
    _check_numbers(options)
    settings = _list_settings(options)
    paired, people = bool(options.images and options.captions), options.caption_references is not None
    chosen = choose_read_outs(settings["metrics"], paired=paired, with_references=people)
    fields = [*(field for one in chosen for field in one.fields), *(AGAINST if options.against else ())]
    known = {field.name for field in fields}
    requirements = [_parse_requirements(text, known) for text in options.require]
    with report_time(options, "reading the reference"):
        reference = ReferenceSet.load(options.reference)
    samples = read_reference_samples(options, reference)
    cache = _open_cache(options)
    source = open_pairs(options, reference, cache) if paired else open_source(options, reference.spec, cache)
    _check_classes(options, source, settings["by"])
    with report_time(options, "figures", source):
        result = score(source, reference, against=open_against(options), **settings)
    print_summary(options, source)
    with report_time(options, "writing"), Publication(overwrite=options.overwrite) as files:  # all of the files or none
        if options.per_sample is not None:
            write_per_sample(files.add(options.per_sample), result)
        if options.per_class is not None and result.by is not None:
            write_classes(files.add(options.per_class), result.by.classes)
        if options.curve is not None:
            write_curve(files.add(options.curve), sample_size_curve(result))
        if options.report is not None:
            runs = [make_run(options, result, source.partner_of)]
            write_page(options, files.add(options.report), runs, samples)
        if options.save is not None:
            result.save(files.add(options.save))
    given = {
        name: [str(path) for path in (value if isinstance(value, list) else [value])]
        for name in ("images", "captions", "caption_references", "embeddings", "by", "against")
        if (value := getattr(options, name))
    }
    summary = result.to_dict()
    if requirements:
        summary["requirements"] = [one.judge(result) for one in requirements]
    return summary | {"measured": given | summary["measured"] | {"clipconformity": __version__}}


def compare_models(options: argparse.Namespace) -> dict[str, Any] | str:
    """Score several models against one reference, and compare every two of them."""
    from clipconformity.data.files import replace_file
    from clipconformity.encoders import BaseEncoder
    from clipconformity.evaluation import compare
    from clipconformity.stream.reference import ReferenceSet

    models = {name: (_find_kind(name, path, options.column), path) for name, path in _parse_models(options.models)}
    for kind in (*KINDS, SAVED):
        setattr(options, kind, [path for its, path in models.values() if its == kind])
    lists = [path for path in options.images if path.is_file()]
    if options.column is not None and not (options.captions or lists or options.embeddings):
        raise ValueError("--column: goes with embeddings, a file of captions or a list of images; leave it out.")
    if options.image_root is not None and not lists:
        raise ValueError("--image-root: goes with a list of images; leave it out.")
    if options.table is not None and options.format == "json":
        raise ValueError("--table: JSON holds all of them; leave it out.")
    if options.table == "classes" and options.by is None:
        raise ValueError("--table: classes goes with --by; give the class of each id.")
    check_columns(options)
    outputs.check(options, [("--report", options.report)])
    _check_numbers(options)
    settings = _list_settings(options)
    further = _choose_columns(settings["metrics"])
    with report_time(options, "reading the reference"):
        reference = ReferenceSet.load(options.reference)
    samples = read_reference_samples(options, reference)
    encoder = open_encoder(options, reference.spec) if options.images or options.captions else None
    scores, each = {}, {}
    for name, (kind, path) in models.items():
        if isinstance(encoder, BaseEncoder):
            encoder.truncated = 0
        each[name] = _select_model(options, kind, path)
        try:
            scores[name] = _score_run(each[name], kind, path, reference, encoder, settings)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}: {error}") from None
    with report_time(options, "differences"):
        found = compare(scores, reference)
    if options.report is not None:
        with report_time(options, "writing"), replace_file(options.report, overwrite=options.overwrite) as path:
            runs = [make_run(each[name], one, {}, name) for name, one in scores.items()]
            write_page(options, path, runs, samples)
    if options.format == "json":
        given = {name: str(path) for name, (_, path) in models.items()}
        return found.to_dict() | {"measured": {"models": given, "clipconformity": __version__}}
    return _format_tables(options, found, further)


def _score_run(
    options: argparse.Namespace,
    kind: str,
    path: Path,
    reference: ReferenceSet,
    encoder: Encoder | None,
    settings: dict[str, Any],
) -> Score:
    """Score the source of one ``NAME=SOURCE``, or load its saved score."""
    from clipconformity.evaluation import Score, score

    if kind == SAVED:
        return Score.load(path, reference, **{name: settings[name] for name in settings if name != "allow_normalized"})
    source = open_source(options, reference.spec, _open_cache(options), encoder)
    _check_classes(options, source, settings["by"])
    with report_time(options, f"figures of {path.name}", source):
        found = score(source, reference, **settings)
    print_summary(options, source)
    return found


def _choose_columns(metrics: Sequence[str]) -> list[str]:
    """Choose the figures of a table of runs."""
    from clipconformity.evaluation.scoring import choose_read_outs, list_pair_metrics
    from clipconformity.evaluation.tables import FIGURES

    chosen = choose_read_outs([name for name in metrics if name not in list_pair_metrics()])
    return [*FIGURES, *(one.value for one in chosen if one.value not in (None, *FIGURES))]


def _format_tables(options: argparse.Namespace, found: Comparison, figures: Sequence[str]) -> str:
    """Return the requested table; below that of the runs that of the classes, where the format allows two."""
    from clipconformity.evaluation.scoring import list_pair_metrics

    of_pairs = [name for name in list_pair_metrics() if all(name in one.figures for one in found.scores.values())]
    if options.table in ("differences", "classes"):
        return found.table(options.format, of=options.table)
    text = found.table(options.format, [*figures, *of_pairs])
    if options.by is None or options.table is not None or options.format == "csv":
        return text
    return f"{text}\n{found.table(options.format, of='classes')}"


def _parse_models(models: Sequence[str]) -> list[tuple[str, Path]]:
    """Split ``NAME=SOURCE``, and refuse duplicate names."""
    from clipconformity.data.layout import is_pattern

    found = []
    for text in models:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ValueError(f"compare: expected NAME=SOURCE, such as mine=samples/, got {text!r}.")
        if not Path(path).exists() and not is_pattern(Path(path)):
            raise FileNotFoundError(f"{name}: {path}: no such file or folder.")
        found.append((name, Path(path)))
    names = [name for name, _ in found]
    if len(names) < 2:
        raise ValueError("compare: expected at least two models; for one there is clipconformity score.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"compare: two models are called {twice!r}; give each a name of its own.")
    return found


def _select_model(options: argparse.Namespace, kind: str, path: Path) -> argparse.Namespace:
    """Return the options for one of the models."""
    listed = kind == "images" and path.is_file()
    others = options.captions or any(path.is_file() for path in options.images)
    named = listed or kind == "captions" or (kind == "embeddings" and not others)
    column = options.column if named else None
    found = select_kind(options, kind, [path] if kind == "embeddings" else path, column)
    found.image_root = options.image_root if listed else None
    return found


def _find_kind(name: str, path: Path, column: str | None) -> str:
    """Return the kind of a source: images, captions, embeddings, or a saved score, as its metadata say."""
    from clipconformity.data.captions import FORMATS
    from clipconformity.data.folders import walk_images
    from clipconformity.data.formats import KINDS as FILE_KINDS
    from clipconformity.data.formats import REFERENCE, SCORE, read_kind
    from clipconformity.data.image_lists import is_image_list
    from clipconformity.data.layout import is_pattern, list_embedding_files

    if is_pattern(path):
        return "embeddings"
    if path.is_dir():
        return "embeddings" if any(list_embedding_files(path)) and not walk_images(path).paths else "images"
    if is_image_list(path, column):
        return "images"
    stated = read_kind(path)
    if stated == REFERENCE:
        raise ValueError(f"{name}: {path} is {'; '.join(FILE_KINDS[REFERENCE])}.")
    if stated == SCORE:
        return SAVED
    return "captions" if path.suffix.lower() in FORMATS else "embeddings"


def _open_cache(options: argparse.Namespace) -> Cache | None:
    return None if options.cache is None else Cache(options.cache)


def _list_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of ``score`` beside the samples and the reference."""
    from clipconformity.data import read_classes

    return {
        "resamples": options.resamples,
        "metrics": options.metrics.split(","),
        "margins": _parse_margins(options.margin),
        "by": None if options.by is None else read_classes(options.by),
        "allow_normalized": options.allow_normalized,
    }


def _check_classes(options: argparse.Namespace, source: Source, by: Mapping[str, str] | None) -> None:
    """Refuse classes of which no image is in, before images are encoded; other ids are known only when read."""
    if by is None or source.folder is None:
        return
    names = source.folder.ids
    if by.keys().isdisjoint(names):
        raise ValueError(
            f"--by: {options.by} has none of the {len(names)} images of {source.name}; give their names as they are in "
            f"the folder, such as {names[0]!r}."
        )


def _check_numbers(options: argparse.Namespace) -> None:
    from clipconformity.data.limits import check_limit

    for name in ("no_images", "reference_images", "reference_captions"):
        if getattr(options, name) and options.report is None:
            raise ValueError(f"--{name.replace('_', '-')}: goes with --report; leave it out.")
    if options.resamples < 1:
        raise ValueError(f"--resamples: expected at least 1, got {options.resamples}.")
    check_limit("--resamples", "resamples", options.resamples)


def _parse_requirements(text: str, known: set[str]) -> Requirement:
    from clipconformity.evaluation.requirements import Requirement
    from clipconformity.evaluation.scoring import suggest_name

    try:
        found = Requirement.parse(text)
    except ValueError as error:
        raise ValueError(f"--require: {error}") from None
    if found.name not in known:
        expected = f"expected one of {', '.join(sorted(known))}"
        raise ValueError(f"--require: there is no figure {found.name!r}: {expected}{suggest_name(found.name, known)}")
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
