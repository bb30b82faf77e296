"""Checks of a command's outputs before any work."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from clipconformity.cli.sources import list_inputs

KINDS = {
    "--output": (".safetensors",),
    "--per-sample": (".csv",),
    "--per-class": (".csv",),
    "--curve": (".csv",),
    "--save": (".safetensors",),
    "--report": (".html", ".htm"),
}
"""Suffixes of outputs, by the option that names them."""


def check(options: argparse.Namespace, outputs: Sequence[tuple[str, Path | None]]) -> None:
    """Refuse outputs that cannot be written, are an input or another kind of file, or exist already.

    Args:
        options: Options of the command; with ``--overwrite`` existing files may be replaced.
        outputs: Each output with the option that names it; None is not written.

    Raises:
        OSError: If one cannot be written, or exists.
        ValueError: If one is an input, or its suffix is of another format.
    """
    from clipconformity.data.files import check_outputs

    given = [(name, path) for name, path in outputs if path is not None]
    check_outputs(given, list_inputs(options))
    for name, path in given:
        kinds = KINDS.get(name)
        if kinds is not None and path.suffix not in kinds:
            raise ValueError(f"{name}: expected a name that ends in {' or '.join(kinds)}, got {path}.")
    for name, path in given:
        if path.exists() and not options.overwrite:
            raise FileExistsError(f"{name}: {path} is there already; name another file, or give --overwrite.")
