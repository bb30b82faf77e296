"""Messages of the commands on standard error."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from clipconformity.provenance import hide_secrets

if TYPE_CHECKING:
    from clipconformity.encoders import Encoder
    from clipconformity.evaluation import Source


def print_message(kind: str, message: object) -> None:
    """Print a message in one line."""
    with suppress(OSError):  # a failed write to standard error cannot be reported
        print(f"clipconformity: {kind}: {hide_secrets(' '.join(str(message).split()))}", file=sys.stderr)  # noqa: T201


def print_summary(options: argparse.Namespace, source: Source) -> None:
    """Print what was found, used and ignored of a source, unless ``--quiet`` is given."""
    if not options.quiet:
        for one in (source, *source.beside):
            print_message("summary", one.summary)
    if options.verbose and source.seconds:
        rate = source.used / source.seconds
        print_details(options, f"reading and encoding: {source.seconds:.2f} s, {rate:.1f} {source.kind}/s")


def print_details(options: argparse.Namespace, message: str) -> None:
    """Print a message where ``--verbose`` is given."""
    if options.verbose:
        print_message("verbose", message)


def print_encoder(options: argparse.Namespace, encoder: Encoder) -> None:
    """Print which encoder is used, and how, where ``--verbose`` is given."""
    if not options.verbose:
        return
    details = [f"dimension {encoder.embed_dim}", *(f"{name} {value}" for name, value in encoder.id.items())]
    details += [f"{name} {getattr(encoder, name)}" for name in ("device", "context_length") if hasattr(encoder, name)]
    print_message("verbose", f"encoder {encoder.spec}: {', '.join(details)}; batches of {options.batch_size}")


@contextmanager
def report_time(options: argparse.Namespace, name: str, *sources: Source) -> Iterator[None]:
    """Print how long a step took, where ``--verbose`` is given.

    Args:
        options: Options of the command.
        name: Name of the step.
        sources: Sources read in this step; their time is in their summary, and is subtracted here.
    """
    since, before = time.monotonic(), sum(source.seconds for source in sources)
    yield
    took = time.monotonic() - since - (sum(source.seconds for source in sources) - before)
    print_details(options, f"{name}: {took:.2f} s")
