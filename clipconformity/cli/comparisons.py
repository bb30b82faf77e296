"""What ``compare`` does: several models against one reference, and every two of them beside each other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipconformity import __version__
from clipconformity.cli import outputs
from clipconformity.cli.encoders import open_encoder
from clipconformity.cli.messages import print_summary, report_time
from clipconformity.cli.processes import ShareDone
from clipconformity.cli.reports import make_run, read_reference_samples, write_page
from clipconformity.cli.scores import check_classes, check_numbers, list_score_settings, open_cache
from clipconformity.cli.sources import KINDS, check_columns, keep_parts, open_source, select_kind
from clipconformity.cli.states import take_in_scored

if TYPE_CHECKING:
    from clipconformity.cli.parts import Parts
    from clipconformity.data.addresses import Place
    from clipconformity.encoders import Encoder
    from clipconformity.evaluation import Comparison, Score
    from clipconformity.stream.reference import ReferenceSet

SAVED = "saved"
"""What ``score --save`` kept, beside the kinds of samples."""


def compare_models(options: argparse.Namespace) -> dict[str, Any] | str:
    """Score several models against one reference, and compare every two of them."""
    from clipconformity.data.files import replace_file
    from clipconformity.encoders import BaseEncoder
    from clipconformity.evaluation import compare
    from clipconformity.stream.reference import ReferenceSet

    models = {name: (_kind(name, path, options.column), path) for name, path in _models(options.models)}
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
    check_numbers(options)
    settings = list_score_settings(options)
    further = _columns(settings["metrics"])
    with report_time(options, "reading the reference"):
        reference = ReferenceSet.load(options.reference)
    samples = read_reference_samples(options, reference)
    encoder = open_encoder(options, reference.spec) if options.images or options.captions else None
    each = {name: _build_one(options, kind, path) for name, (kind, path) in models.items()}
    scores: dict[str, Score] = {}
    with keep_parts(options, options.report) as parts:
        parts.require_same(reference)
        for name, (kind, path) in models.items():
            if isinstance(encoder, BaseEncoder):
                encoder.truncated = 0
            try:
                scores[name] = _scored(each[name], parts, kind, path, reference, encoder, settings)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name}: {error}") from None
            except ShareDone:
                continue  # there may be more to do of the next one
        parts.leave()
        with report_time(options, "differences"):
            found = compare(scores, reference)
        if options.report is not None:
            with report_time(options, "writing"), replace_file(options.report, overwrite=options.overwrite) as path:
                runs = [make_run(each[name], one, {}, name) for name, one in scores.items()]
                write_page(options, path, runs, samples)
    if options.format == "json":
        given = {name: str(path) for name, (_, path) in models.items()}
        return found.to_dict() | {"measured": {"models": given, "clipconformity": __version__}}
    return _tables(options, found, further)


def _scored(
    options: argparse.Namespace,
    parts: Parts,
    kind: str,
    path: Place,
    reference: ReferenceSet,
    encoder: Encoder | None,
    settings: dict[str, Any],
) -> Score:
    """Score what one ``NAME=SOURCE`` names, or load what was saved of it."""
    from clipconformity.evaluation import Score
    from clipconformity.evaluation.scoring import read_score

    if kind == SAVED:
        parts.leave()
        return Score.load(path, reference, **{name: settings[name] for name in settings if name != "allow_normalized"})
    source = open_source(options, parts, reference.spec, open_cache(options, parts), encoder)
    check_classes(options, source, settings["by"])
    with report_time(options, f"figures of {path.name}", source):
        scoring, taken = take_in_scored(options, parts, source, reference, settings)
        figures = {name: settings[name] for name in ("resamples", "margins", "by")}
        found = read_score(taken, scoring.chosen, **figures)
    print_summary(options, source)
    return found


def _columns(metrics: Sequence[str]) -> list[str]:
    """The figures that a table of runs has."""
    from clipconformity.evaluation.scoring import choose_read_outs, list_pair_metrics
    from clipconformity.evaluation.tables import FIGURES

    chosen = choose_read_outs([name for name in metrics if name not in list_pair_metrics()])
    return [*FIGURES, *(one.value for one in chosen if one.value not in (None, *FIGURES))]


def _tables(options: argparse.Namespace, found: Comparison, figures: Sequence[str]) -> str:
    """Give the table that is asked for; under that of the runs that of the classes, where a format takes two."""
    from clipconformity.evaluation.scoring import list_pair_metrics

    of_pairs = [name for name in list_pair_metrics() if all(name in one.figures for one in found.scores.values())]
    if options.table in ("differences", "classes"):
        return found.table(options.format, of=options.table)
    table = found.table(options.format, [*figures, *of_pairs])
    if options.by is None or options.table is not None or options.format == "csv":
        return table
    return f"{table}\n{found.table(options.format, of='classes')}"


def _models(models: Sequence[str]) -> list[tuple[str, Place]]:
    """Split ``NAME=SOURCE``, and refuse names that come twice."""
    from clipconformity.data.addresses import parse_place
    from clipconformity.data.places import is_file, is_folder, is_pattern

    found = []
    for text in models:
        name, equals, words = text.partition("=")
        if not (name and equals and words) or "://" in name:
            raise ValueError(f"compare: expected NAME=SOURCE, such as mine=samples/, got {text!r}.")
        path = parse_place(words)
        there = path.exists() if isinstance(path, Path) else is_folder(path) or is_file(path)
        if not there and not is_pattern(path):
            raise FileNotFoundError(f"{name}: {path}: no such file or folder.")
        found.append((name, path))
    names = [name for name, _ in found]
    if len(names) < 2:
        raise ValueError("compare: expected at least two models; for one there is clipconformity score.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"compare: two models are called {twice!r}; give each a name of its own.")
    return found


def _build_one(options: argparse.Namespace, kind: str, path: Place) -> argparse.Namespace:
    """Give the options as they are for one of the models."""
    listed = kind == "images" and isinstance(path, Path) and path.is_file()
    others = options.captions or any(path.is_file() for path in options.images)
    named = listed or kind == "captions" or (kind == "embeddings" and not others)
    column = options.column if named else None
    found = select_kind(options, kind, [path] if kind == "embeddings" else path, column)
    found.image_root = options.image_root if listed else None
    return found


def _kind(name: str, path: Place, column: str | None) -> str:
    """Say what a source is: images, captions, embeddings, or a saved score, as its metadata say."""
    from clipconformity.data.captions import FORMATS
    from clipconformity.data.folders import walk_images
    from clipconformity.data.formats import KINDS as FILE_KINDS
    from clipconformity.data.formats import REFERENCE, SCORE, read_kind
    from clipconformity.data.image_lists import is_image_list
    from clipconformity.data.layout import list_embedding_files
    from clipconformity.data.places import is_pattern

    if is_pattern(path):
        return "embeddings"
    if isinstance(path, Path) and path.is_dir():
        return "embeddings" if any(list_embedding_files(path)) and not walk_images(path).paths else "images"
    if isinstance(path, Path) and is_image_list(path, column):
        return "images"
    kind = read_kind(path)
    if kind == REFERENCE:
        raise ValueError(f"{name}: {path} is {'; '.join(FILE_KINDS[REFERENCE])}.")
    if kind == SCORE:
        return SAVED
    return "captions" if isinstance(path, Path) and path.suffix.lower() in FORMATS else "embeddings"
