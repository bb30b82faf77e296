"""The command line: JSON on standard output, progress and messages on standard error."""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from clipconformity import __version__
from clipconformity.cli import commands, comparisons, references, scores
from clipconformity.cli.examples import EXAMPLES
from clipconformity.cli.messages import print_message
from clipconformity.cli.places import parse_input, parse_path, parse_reference
from clipconformity.cli.processes import ShareDone, is_one_of_others, join_ranks
from clipconformity.cli.signals import catch_stop_signals
from clipconformity.data.addresses import PROTOCOLS
from clipconformity.data.formats import list_suffixes
from clipconformity.data.limits import LIMITS, raise_limits
from clipconformity.data.strict_json import to_json
from clipconformity.encoders.registry import list_encoder_forms
from clipconformity.provenance import hide_secrets, shorten_paths

__all__ = ["main"]

REFERENCE = "file of `clipconformity reference`, or the address of one, such as hf://user/repo/file"
EXIT_UNMET = 3
"""Exit status where a requirement does not hold."""


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, and for which a ``Path`` is one of this machine, no address."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.register("type", Path, parse_path)

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        self.exit(2, f"{self.prog}: error: {hide_secrets(message)} (see {self.prog} --help)\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None, **others: Any) -> Any:
        """Name a mistyped option before a required one that is missing because of it."""
        known = self._option_string_actions
        for word in sys.argv[1:] if args is None else args:
            name = word.partition("=")[0]
            if name == "--" or (self._subparsers and not name.startswith("-")):
                break  # what follows a command is the command's
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if name.startswith("--") and name not in known and near:
                self.error(f"unrecognized arguments: {name}; did you mean {near[0]}?")
        return super().parse_known_args(args, namespace, **others)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Write help and version as results are written; argparse would ignore a failed write."""
        if file is sys.stderr:
            file.write(message)
        elif status := _write_output(message):
            self.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The arguments after the program's name; by default those of the process.

    Returns:
        0; 2 for invalid input; 1 for a failure while running, such as a full disk; 3 where ``--require`` does not hold.
        Each comes with one line on standard error. 128 plus the signal's number where a signal ended the command:
        130 for Ctrl-C, 143 for SIGTERM.
    """
    if sys.stderr is None:  # closed: the next opened file would get its number, and then the messages
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - for as long as the process lasts
    if sys.stdout is None:
        return _fail("standard output is closed, so that no result can be written; open it.", 1)
    options = _build_parser().parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    options.line = shlex.join(["clipconformity", *(shorten_paths(word, Path.cwd()) for word in words)])
    command: Callable[[argparse.Namespace], dict[str, Any] | str] = options.command
    with catch_stop_signals() as signals:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _ignore_warning if options.quiet or is_one_of_others() else _show_warning
                with raise_limits(options.limit or ()), join_ranks(options, words) as options.ranks:
                    result = command(options)
                if isinstance(result, str):
                    return _write_output(result)
                return _write_output(to_json(result, indent=2) + "\n") or _report_unmet(result)
        except ShareDone:
            return 0
        except KeyboardInterrupt:
            return signals.status or 130
        except Exception as error:
            if signals.status is not None:  # a library replaced the exception by its own
                return signals.status
            return _handle_error(error)


def _handle_error(error: Exception) -> int:
    """Print an error in one line and return the exit status; a bug of the library is raised."""
    if isinstance(error, OSError):
        return _fail(error, _choose_status(error))
    if isinstance(error, (ValueError, TypeError, ImportError)):
        return _fail(error, 2)
    if isinstance(error, (MemoryError, RuntimeError)):  # a device without memory, a process that was killed
        return _fail(str(error) or "there is not enough memory.", 1)
    raise error


def _report_unmet(result: dict[str, Any]) -> int:
    """Print the requirements that do not hold, and return the exit status."""
    failed = [one for one in result.get("requirements", ()) if not one["holds"]]
    for one in failed:
        print_message("error", f"--require {one['requirement']} does not hold: {_format_bound(one)}.")
    return EXIT_UNMET if failed else 0


def _format_bound(one: dict[str, Any]) -> str:
    if one["judged_by"] is None:
        return "it is not known well enough"
    bound = "" if one["judged_by"] == one["value"] else f", and the bound of its interval {one['judged_by']:.4g}"
    return f"the value is {one['value']:.4g}{bound}"


def _write_output(text: str) -> int:
    """Write to standard output, and return the exit status."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except (OSError, UnicodeError) as error:
        # Discard the rest of the buffer, or Python would report it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader closed the pipe
            return 0
        return _fail(f"standard output cannot be written: {error}", 1)
    return 0


def _choose_status(error: OSError) -> int:
    """Return 1 for a failure while running, such as a full disk or no connection, and 2 for invalid input."""
    from clipconformity.data.files import DEVICE_ERRORS

    return 1 if error.errno in DEVICE_ERRORS or isinstance(error, ConnectionError) else 2


def _fail(message: object, status: int) -> int:
    print_message("error", message)
    return status


def _ignore_warning(*_: Any, **__: Any) -> None:
    """Ignore a warning."""


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print_message("warning", message)


def _build_parser() -> Parser:
    parser = Parser(
        prog="clipconformity",
        description="Evaluate generative models by the geometry of raw CLIP embeddings.",
        epilog=f"examples:\n  {EXAMPLES['demo'][0]}\n  clipconformity score --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"clipconformity {__version__}")
    known = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    listed = _add_command(known, "encoders", "list the encoders that can be loaded here", commands.list_encoders)
    listed.add_argument("name", nargs="?", metavar="NAME", help="list the specs alone that have this in them")

    demo = _add_command(
        known, "demo", "score simulated generators on the embedded default, with no download", commands.run_demo
    )
    demo.add_argument(
        "-o", "--output", type=Path, default=Path("demo-output"), metavar="DIR", help="folder to write to"
    )

    embed = _add_command(known, "embed", "encode images or captions to a file of raw embeddings", commands.embed)
    _add_source(embed, embeddings=False)
    _add_processes(embed, "embeddings")
    embed.add_argument("-o", "--output", type=Path, required=True, help="file to write (.safetensors)")
    _add_overwrite(embed)

    reference = _add_command(known, "reference", "build a reference set", references.make_reference)
    _add_source(reference, coco=True)
    _add_processes(reference, "reference, for `merge`")
    reference.add_argument("--dataset", help="what the samples are, such as 'coco val2017'")
    reference.add_argument("--max-samples", type=int, default=10_000, help="rows kept (default: 10000)")
    reference.add_argument("-o", "--output", type=Path, required=True, help="file to write (.safetensors)")
    _add_overwrite(reference)

    score = _add_command(known, "score", "score samples against a reference", scores.score_samples)
    _add_source(score, pairs=True)
    score.add_argument(
        "--saved",
        type=parse_input,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="what --save kept, as of all shards: scored as one",
    )
    _add_processes(score, "score by --save, for --saved")
    score.add_argument("--reference", type=parse_reference, required=True, help=REFERENCE)
    score.add_argument("--per-sample", type=Path, metavar="FILE.csv", help="write id, conformity, norm and rank")
    score.add_argument("--curve", type=Path, metavar="FILE.csv", help="write every figure over the number of samples")
    score.add_argument(
        "--against",
        type=parse_input,
        nargs="+",
        action="extend",
        metavar="FILE|DIR",
        help="embeddings, as of a training set, to find copies in",
    )
    score.add_argument("--by", type=Path, metavar="FILE.csv", help="the class of each id: score each class by itself")
    score.add_argument("--per-class", type=Path, metavar="FILE.csv", help="write the figures of each class of --by")
    score.add_argument("--report", type=Path, metavar="FILE.html", help="write a report with plots and a gallery")
    score.add_argument("--save", type=Path, metavar="FILE.safetensors", help="keep the score, to be compared later")
    _add_scoring(score)
    score.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="FIGURE>=X",
        help="exit with status 3 unless the bound of the figure's interval meets it; may be repeated",
    )

    compare = _add_command(
        known, "compare", "score several models, and say which differ, in what", comparisons.compare_models
    )
    compare.add_argument(
        "models",
        nargs="+",
        metavar="NAME=SOURCE",
        help="folder or list of images, captions, embeddings, or what `score --save` kept",
    )
    compare.add_argument("--reference", type=parse_reference, required=True, help=REFERENCE)
    compare.add_argument(
        "--format", choices=("text", "csv", "markdown", "latex", "html", "json"), default="text", help="default: text"
    )
    compare.add_argument(
        "--table",
        choices=("runs", "differences", "classes"),
        help="which table (default: that of the runs, and but in CSV that of the classes of --by below it)",
    )
    compare.add_argument("--by", type=Path, metavar="FILE.csv", help="the class of each id: score each class by itself")
    compare.add_argument("--report", type=Path, metavar="FILE.html", help="write a report of all models")
    _add_scoring(compare)
    _add_embeddings(compare)
    _add_encoding(compare)
    _add_processes(compare)

    geometry = _add_command(
        known, "geometry", "measure the six geometric properties of embeddings", commands.measure_geometry
    )
    geometry.add_argument("--image-embeddings", type=parse_input, metavar="FILE", help="raw image embeddings")
    geometry.add_argument(
        "--text-embeddings", type=parse_input, metavar="FILE", help="raw text embeddings, in pairs or not"
    )
    geometry.add_argument("--logit-scale", type=float, default=100.0, help="the model's scale (default: 100)")
    geometry.add_argument("--unpaired", action="store_true", help="equal lengths are no pairs: leave out the loss")
    geometry.add_argument("--allow-normalized", action="store_true", help="take L2-normalised embeddings")
    geometry.add_argument("--report", type=Path, metavar="FILE.html", help="write a report with plots")
    _add_overwrite(geometry)

    merge = _add_command(
        known, "merge", "join references, saved scores or embeddings of different samples", references.merge_files
    )
    merge.add_argument(
        "references", type=parse_reference, nargs="+", metavar="FILE", help="files to join, or addresses of some"
    )
    merge.add_argument(
        "--reference", type=parse_reference, metavar="FILE", help="what saved scores were scored against"
    )
    merge.add_argument("-o", "--output", type=Path, required=True, help="file to write (.safetensors)")
    _add_overwrite(merge)
    return parser


def _add_command(
    known: Any, name: str, text: str, function: Callable[[argparse.Namespace], dict[str, Any] | str]
) -> Parser:
    lines = "\n".join(f"  {line}" for line in EXAMPLES[name])
    parser: Parser = known.add_parser(
        name,
        help=text,
        description=text.capitalize() + ".",
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=function, shared=False, ranks=None)
    parser.add_argument(
        "--limit",
        action="append",
        metavar="NAME=N",
        help=f"raise a limit on what files may ask for: {', '.join(LIMITS)}",
    )
    talk = parser.add_mutually_exclusive_group()
    talk.add_argument("--quiet", action="store_true", help="show neither progress nor warnings, but errors")
    talk.add_argument(
        "--verbose", action="store_true", help="tell the encoder, its settings, and how long each stage takes"
    )
    return parser


def _add_overwrite(parser: Parser) -> None:
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that are there already")


def _add_processes(parser: Parser, of_shard: str | None = None) -> None:
    parser.set_defaults(shared=True)
    parser.add_argument(
        "--processes", type=int, metavar="N", help="share the work among N processes here (default: 1, or torchrun's)"
    )
    if of_shard is not None:
        parser.add_argument("--shard", metavar="I/N", help=f"take the I-th of N shares of the samples: its {of_shard}")


def _add_scoring(parser: Parser) -> None:
    """Add the common options of ``score`` and ``compare``."""
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep what is encoded here, for other runs")
    parser.add_argument(
        "--no-images", action="store_true", help="leave the gallery out of the report: no image, prompt or caption"
    )
    parser.add_argument(
        "--reference-images", type=Path, metavar="DIR", help="the reference's images, to show them in the report"
    )
    parser.add_argument(
        "--reference-captions",
        type=Path,
        metavar="FILE",
        help="the reference's captions, to show them in the report",
    )
    _add_overwrite(parser)
    parser.add_argument(
        "--metrics",
        metavar="NAME,...",
        help="further read-outs by name, or 'all' (default: the core)",
    )
    parser.add_argument("--resamples", type=int, default=1000, help="redraws of intervals and tests (default: 1000)")
    parser.add_argument(
        "--margin",
        metavar="NAME=X,...",
        help="differences that do not matter (default: typicality=0.2,variety=0.05)",
    )


def _add_source(parser: Parser, *, embeddings: bool = True, coco: bool = False, pairs: bool = False) -> None:
    source: Any = parser.add_argument_group() if pairs else parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", type=Path, metavar="DIR|FILE", help="folder of images, or list of them")
    source.add_argument("--captions", type=Path, metavar="FILE", help="captions: .txt, .json, .jsonl, .csv or .tsv")
    if embeddings:
        source.add_argument(
            "--embeddings",
            type=parse_input,
            nargs="+",
            action="extend",
            metavar="FILE|DIR",
            help=f"raw embeddings: {list_suffixes()}; files, folders, or quoted patterns such as 'shards/*.npy', here "
            f"or at addresses: {', '.join(PROTOCOLS)}",
        )
        _add_embeddings(parser)
    if pairs:
        source.add_argument(
            "--caption-references", type=Path, metavar="FILE", help="captions of people for the same images"
        )
    if coco:
        source.add_argument("--coco", type=Path, metavar="ROOT", help="folder of MS-COCO: images and captions at once")
        parser.add_argument("--split", help="split of --coco (default: val2017)")
        parser.add_argument("--karpathy", type=Path, metavar="FILE", help="Karpathy split file; --split is one of its")
        parser.add_argument("--per-image", metavar="K", help="captions of an image, or 'all' (default: 1)")
        parser.add_argument("--seed", type=int, help="of the choice of captions (default: 0)")
    _add_encoding(parser, coco=coco)


def _add_embeddings(parser: Parser) -> None:
    parser.add_argument("--modality", choices=("image", "text"), help="what the embeddings are of")
    parser.add_argument("--ids", metavar="NAME", help="array or column of the ids of embeddings (default: id, ...)")
    parser.add_argument("--groups", metavar="NAME", help="that of their groups (default: groups)")
    parser.add_argument("--allow-normalized", action="store_true", help="take L2-normalised embeddings")


def _add_encoding(parser: Parser, *, coco: bool = False) -> None:
    parser.add_argument("--column", metavar="NAME", help="key or column of captions, listed images, or embeddings")
    parser.add_argument("--image-root", type=Path, metavar="DIR", help="folder of a list's images (default: its own)")
    many: Any = {"action": "append"} if coco else {}
    also = "; with --coco it may be repeated" if coco else ""
    parser.add_argument("--encoder", metavar="SPEC", help=list_encoder_forms() + also, **many)
    parser.add_argument("--device", help="where to run the encoder (default: CUDA if present)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="precision of the encoder's arithmetic"
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images or captions encoded at once (default: 64)")
    parser.add_argument("--workers", type=int, help="processes that decode images ahead (default: by their number)")
    parser.add_argument(
        "--on-error", choices=("raise", "skip"), default="raise", help="what to do with unreadable images or files"
    )
