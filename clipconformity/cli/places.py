"""Arguments that name files: on this machine, or where they may be, at addresses."""

from __future__ import annotations

import argparse
from pathlib import Path

from clipconformity.data.addresses import Place, parse_place, refuse_address
from clipconformity.data.hub import is_shared


def parse_path(text: str) -> Path:
    """Return a path of this machine.

    Raises:
        ArgumentTypeError: If it is an address.
    """
    try:
        refuse_address(text, "a file or folder")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Path(text)


def parse_input(text: str) -> Place:
    """Return a path, or an address, of what is read.

    Raises:
        ArgumentTypeError: If it is an address that is not read.
    """
    try:
        return parse_place(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_reference(text: str) -> Place | str:
    """Return a path or an address as :func:`parse_input`; one on the hub as it is, for the hub's own cache."""
    return text if is_shared(text) else parse_input(text)
