"""The command line: JSON on standard output, progress and messages on standard error."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from clipconformity import __version__

if TYPE_CHECKING:
    from torch import Tensor

    from clipconformity.evaluation import Score, Source
    from clipconformity.properties import Property
    from clipconformity.reference import ReferenceSet


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: What follows the program's name; by default that of the process.

    Returns:
        0, or 2 for bad input, which is told in one line on standard error.
    """
    options = _parser().parse_args(arguments)
    options.line = shlex.join(["clipconformity", *(sys.argv[1:] if arguments is None else arguments)])
    command: Callable[[argparse.Namespace], dict[str, Any] | None] = options.command
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            result = command(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"clipconformity: error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        return 130
    try:
        if result is not None:
            sys.stdout.write(json.dumps(result, indent=2) + "\n")
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"clipconformity: warning: {' '.join(str(message).split())}", file=sys.stderr)  # noqa: T201


def _parser() -> Parser:
    parser = Parser(
        prog="clipconformity",
        description="Evaluate generative models by the geometry of raw CLIP embeddings.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"clipconformity {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    _command(commands, "encoders", "list the encoders that can be loaded here", _encoders)

    demo = _command(commands, "demo", "score simulated generators on the embedded default, with no download", _demo)
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("demo-output"), metavar="DIR", help="folder to write to"
    )

    embed = _command(commands, "embed", "encode images or captions to a file of raw embeddings", _embed)
    _add_source(embed, embeddings=False)
    embed.add_argument("-o", "--output", type=Path, required=True, help="file to write (.safetensors)")

    reference = _command(commands, "reference", "build a reference set", _reference)
    _add_source(reference, coco=True)
    reference.add_argument("--dataset", help="what the samples are, such as 'coco val2017'")
    reference.add_argument("--max-samples", type=int, default=10_000, help="rows kept (default: 10000)")
    reference.add_argument("-o", "--output", type=Path, required=True, help="file to write (.safetensors)")

    score = _command(commands, "score", "score samples against a reference", _score)
    _add_source(score)
    score.add_argument("--reference", type=Path, required=True, help="file of `clipconformity reference`")
    score.add_argument("--per-sample", type=Path, metavar="FILE.csv", help="write id, conformity, norm and rank")
    score.add_argument("--report", type=Path, metavar="FILE.html", help="write a report with plots and a gallery")
    score.add_argument("--resamples", type=int, default=1000, help="bootstrap redraws (default: 1000)")

    geometry = _command(commands, "geometry", "measure the six geometric properties of embeddings", _geometry)
    geometry.add_argument("--image-embeddings", type=Path, metavar="FILE", help="raw image embeddings")
    geometry.add_argument("--text-embeddings", type=Path, metavar="FILE", help="raw text embeddings, in pairs or not")
    geometry.add_argument("--logit-scale", type=float, default=100.0, help="the model's scale (default: 100)")
    geometry.add_argument("--unpaired", action="store_true", help="equal lengths are no pairs: leave out the loss")
    geometry.add_argument("--allow-normalized", action="store_true", help="take L2-normalised embeddings")
    geometry.add_argument("--report", type=Path, metavar="FILE.html", help="write a report with plots")

    merge = _command(commands, "merge", "join references of different samples", _merge)
    merge.add_argument("references", type=Path, nargs="+", metavar="REFERENCE", help="files to join")
    merge.add_argument("-o", "--output", type=Path, required=True, help="file to write (.safetensors)")
    return parser


def _command(
    commands: Any, name: str, text: str, function: Callable[[argparse.Namespace], dict[str, Any] | None]
) -> Parser:
    parser: Parser = commands.add_parser(name, help=text, description=text.capitalize() + ".", allow_abbrev=False)
    parser.set_defaults(command=function)
    return parser


def _add_source(parser: Parser, *, embeddings: bool = True, coco: bool = False) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, metavar="DIR", help="folder of images")
    source.add_argument("--captions", type=Path, metavar="FILE", help="text lines, COCO annotations or COCO results")
    if embeddings:
        source.add_argument(
            "--embeddings", type=Path, nargs="+", metavar="FILE", help="raw embeddings: .safetensors, .npy, .npz, .pt"
        )
        parser.add_argument("--modality", choices=("image", "text"), help="what the embeddings are of")
        parser.add_argument("--allow-normalized", action="store_true", help="take L2-normalised embeddings")
    if coco:
        source.add_argument("--coco", type=Path, metavar="ROOT", help="folder of MS-COCO: images and captions at once")
        parser.add_argument("--split", default="val2017", help="split of --coco (default: val2017)")
        parser.add_argument("--karpathy", type=Path, metavar="FILE", help="Karpathy split file; --split is one of its")
        parser.add_argument("--per-image", default="1", metavar="K", help="captions of an image, or 'all' (default: 1)")
        parser.add_argument("--seed", type=int, default=0, help="of the choice of captions (default: 0)")
    parser.add_argument(
        "--encoder", metavar="SPEC", help="'tiny', 'open_clip:MODEL/PRETRAINED', 'hf:MODEL' or a folder"
    )
    parser.add_argument("--device", help="where to run the encoder (default: CUDA if present)")
    parser.add_argument("--batch-size", type=int, default=64, help="images or captions encoded at once (default: 64)")
    parser.add_argument("--workers", type=int, help="processes that decode images ahead (default: by their number)")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="what to do with unreadable images"
    )


def _source(options: argparse.Namespace, default_encoder: str | None = None) -> Source:
    from clipconformity import evaluation
    from clipconformity.datasets import list_images, read_captions
    from clipconformity.encoders import hide_progress_bars, load_encoder

    for name, least in (("batch_size", 1), ("workers", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}.")
    if getattr(options, "embeddings", None):
        return evaluation.embedding_source(options.embeddings, spec=options.encoder, modality=options.modality)
    kind = "image" if options.images else "text"
    if getattr(options, "modality", None) not in (None, kind):
        raise ValueError(
            f"--modality: {options.modality} was told, but --{'images' if options.images else 'captions'} given."
        )
    paths = list_images(options.images) if options.images else []
    captions = read_captions(options.captions) if options.captions else None
    spec = options.encoder or default_encoder
    if spec is None:
        raise ValueError("--encoder: say which encoder to use, such as 'tiny' or 'open_clip:ViT-B-32/openai'.")
    if not sys.stderr.isatty():
        hide_progress_bars()
    encoder = load_encoder(spec, options.device)
    if captions is not None:
        return evaluation.caption_source(captions, encoder, batch_size=options.batch_size)
    workers = options.workers
    if workers is None:  # starting processes pays off for many images alone
        workers = min(8, os.cpu_count() or 1) if len(paths) >= 512 else 0
    return evaluation.image_source(
        paths,
        encoder,
        root=options.images,
        batch_size=options.batch_size,
        workers=workers,
        skip_errors=options.on_error == "skip",
    )


def _encoders(options: argparse.Namespace) -> dict[str, Any]:
    from clipconformity.encoders import available_encoders

    return available_encoders()


def _demo(options: argparse.Namespace) -> None:
    from clipconformity.encoders import hide_progress_bars

    hide_progress_bars()
    from clipconformity.demo import run

    run(options.output)


def _embed(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from clipconformity.datasets import write_embeddings
    from clipconformity.moments import hash_groups

    _check_output(options.output)
    source = _source(options)
    batches = list(source)
    if not batches:
        raise ValueError(f"no sample could be read: {len(source.skipped)} of {source.count} were skipped.")
    embeddings = torch.cat([batch.embeddings.cpu() for batch in batches])
    groups = None
    if source.groups is not None:
        groups = hash_groups(source.groups, len(embeddings), embeddings.device)
    write_embeddings(
        options.output,
        embeddings,
        ids=[name for batch in batches for name in batch.ids],
        groups=groups,
        spec=source.spec,
        encoder_id=source.encoder_id,
        modality=source.modality,
    )
    result = {"output": str(options.output), "count": len(embeddings), "embed_dim": embeddings.shape[1]}
    return result | {"encoder": source.spec, "modality": source.modality} | source.remarks


def _reference(options: argparse.Namespace) -> dict[str, Any]:
    from clipconformity.evaluation import build_reference

    if options.coco is not None:
        return _coco_references(options)
    _check_output(options.output)
    source = _source(options)
    reference = build_reference(
        source,
        dataset=options.dataset,
        max_samples=options.max_samples,
        allow_normalized=options.allow_normalized,
    )
    described = _described(reference, options.output)  # may refuse, and then nothing is written
    reference.save(options.output)
    return described | source.remarks


def _coco_references(options: argparse.Namespace) -> dict[str, Any]:
    """Build ``NAME-image`` and ``NAME-text`` from one reading of MS-COCO, with the chosen captions beside them."""
    from clipconformity import evaluation
    from clipconformity.datasets import read_coco
    from clipconformity.encoders import hide_progress_bars, load_encoder

    if options.encoder is None:
        raise ValueError("--encoder: say which encoder to use, such as 'tiny' or 'open_clip:ViT-B-32/openai'.")
    if options.modality is not None:
        raise ValueError("--modality: --coco builds the references of both; leave it out.")
    if options.per_image != "all" and not options.per_image.isdecimal():
        raise ValueError(f"--per-image: expected a number or 'all', got {options.per_image!r}.")
    for name, least in (("batch_size", 1), ("workers", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}.")
    suffix = options.output.suffix or ".safetensors"
    paths = {name: options.output.with_name(f"{options.output.stem}-{name}{suffix}") for name in ("image", "text")}
    chosen = options.output.with_name(f"{options.output.stem}-captions.json")
    for path in (*paths.values(), chosen):
        _check_output(path)
    coco = read_coco(
        options.coco,
        options.split,
        per_image=None if options.per_image == "all" else int(options.per_image),
        seed=options.seed,
        karpathy=options.karpathy,
        on_missing=options.on_error,
    )
    if not sys.stderr.isatty():
        hide_progress_bars()
    encoder = load_encoder(options.encoder, options.device)
    workers = options.workers
    if workers is None:  # starting processes pays off for many images alone
        workers = min(8, os.cpu_count() or 1) if len(coco.image_paths) >= 512 else 0
    sources = {
        "image": evaluation.image_source(
            coco.image_paths,
            encoder,
            root=options.coco,
            batch_size=options.batch_size,
            workers=workers,
            skip_errors=options.on_error == "skip",
        ),
        "text": evaluation.caption_source(coco.captions, encoder, batch_size=options.batch_size),
    }
    result: dict[str, Any] = {}
    for name, source in sources.items():
        reference = evaluation.build_reference(
            source, dataset=options.dataset or coco.name, max_samples=options.max_samples
        )
        described = _described(reference, paths[name])  # may refuse, and then nothing is written
        reference.save(paths[name])
        result[name] = described | source.remarks
    coco.save_captions(chosen)
    missing = {"missing": {"count": len(coco.missing), "files": [str(path) for path in coco.missing]}}
    return result | {"captions": str(chosen), "coco": coco.describe()} | (missing if coco.missing else {})


def _score(options: argparse.Namespace) -> dict[str, Any]:
    from clipconformity.evaluation import score, write_per_sample
    from clipconformity.reference import ReferenceSet

    for output in (options.per_sample, options.report):
        if output is not None:
            _check_output(output)
    if options.resamples < 1:
        raise ValueError(f"--resamples: expected at least 1, got {options.resamples}.")
    reference = ReferenceSet.load(options.reference)
    source = _source(options, default_encoder=reference.spec)
    result = score(source, reference, resamples=options.resamples, allow_normalized=options.allow_normalized)
    if options.per_sample is not None:
        write_per_sample(options.per_sample, result)
    if options.report is not None:
        _report(options, result, reference)
    given = {
        name: [str(path) for path in (value if isinstance(value, list) else [value])]
        for name in ("images", "captions", "embeddings")
        if (value := getattr(options, name))
    }
    summary = result.summary
    return summary | {"measured": given | summary["measured"] | {"clipconformity": __version__}}


def _report(options: argparse.Namespace, result: Score, reference: ReferenceSet) -> None:
    from clipconformity.datasets import read_captions
    from clipconformity.report import Run, write_report

    images = {name: options.images / name for name in result.ids} if options.images else None
    captions = read_captions(options.captions).texts if options.captions else None
    given = options.images or options.captions or options.embeddings[0]
    run = Run(given.name or str(given), result, reference, images, captions)
    write_report(options.report, [run], command=options.line)


def _geometry(options: argparse.Namespace) -> dict[str, Any]:
    from clipconformity import properties
    from clipconformity.checks import refuse_normalized
    from clipconformity.datasets import read_embeddings

    if options.report is not None:
        _check_output(options.report)
    paths = {"image": options.image_embeddings, "text": options.text_embeddings}
    rows = {}
    for modality, path in paths.items():
        if path is None:
            continue
        file = read_embeddings(path)
        if file.modality not in (None, modality):
            raise ValueError(f"{path}: holds {file.modality} embeddings, but was given as {modality}.")
        if not options.allow_normalized:
            refuse_normalized(file.embeddings, str(path))
        if file.groups is not None and len(file.groups.unique()) < len(file.groups):
            warnings.warn(
                f"{path}: rows of one group count as independent here, so the intervals are too narrow; give one row "
                "of each group.",
                stacklevel=2,
            )
        rows[modality] = file.embeddings.float()
    paired = len(rows) == 2 and len(rows["image"]) == len(rows["text"]) and not options.unpaired
    found = properties.six_properties(**rows, paired=paired, logit_scale=options.logit_scale)
    print(properties.table(found), file=sys.stderr)  # noqa: T201
    result: dict[str, Any] = {"properties": properties.as_json(found)}
    if len(rows) == 2:
        result["gap"] = properties.gap_figures(rows["image"], rows["text"], paired=paired)
    measured = {f"{name}_embeddings": str(path) for name, path in paths.items() if path is not None}
    if options.report is not None:
        _geometry_report(options, found, rows, paired, result.get("gap"), measured)
    return result | {"measured": measured | {"clipconformity": __version__}}


def _geometry_report(
    options: argparse.Namespace,
    found: list[Property],
    rows: dict[str, Tensor],
    paired: bool,
    gap: dict[str, float] | None,
    measured: dict[str, str],
) -> None:
    from clipconformity import properties
    from clipconformity.functional import shift_sweep
    from clipconformity.report import write_geometry_report

    image, text = rows.get("image"), rows.get("text")
    sweep = None
    if paired and image is not None and text is not None:
        sweep = shift_sweep(image, text, properties.ALPHAS, options.logit_scale)
    write_geometry_report(
        options.report,
        found,
        image=image,
        text=text,
        sweep=sweep,
        gap=gap,
        measured=measured,
        command=options.line,
    )


def _merge(options: argparse.Namespace) -> dict[str, Any]:
    from clipconformity.reference import ReferenceSet

    if len(options.references) < 2:
        raise ValueError("merge: expected at least two references.")
    _check_output(options.output)
    merged, *others = (ReferenceSet.load(path) for path in options.references)
    for other in others:
        merged = merged.merge(other)
    described = _described(merged, options.output)
    merged.save(options.output)
    return described


def _described(reference: ReferenceSet, path: Path) -> dict[str, Any]:
    values = reference.conformities
    figures = {
        "conformity_mean": float(reference.self_conformity),
        "conformity_std": float(values.std()),
        "conformity_min": float(values.min()),
        "conformity_max": float(values.max()),
        "self_conformity_se": float(reference.self_conformity_se),
        "conformity_fit": {name: float(x) for name, x in reference.conformity_fit._asdict().items()},
        "norm_mean": float(reference.norms.mean()),
        "norm_std": float(reference.norms.std()),
        "exact": reference.exact,
    }
    return {"output": str(path)} | reference.describe() | figures


def _check_output(path: Path) -> None:
    """Refuse an output that cannot be written before any work is done."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {path.parent} does not exist.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"cannot write {path}: the folder {path.parent} is not writable.")
