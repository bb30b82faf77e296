"""Which files may be written, and writing whole files or none; and which kinds of image are read."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

NamedPath = tuple[str, Path]
"""A file, and the option or argument that names it."""

FULL = frozenset({errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO})
"""What fails under way though nothing was given wrong: no space is left, or the device does not work."""


def check_output(path: Path) -> Path:
    """Refuse what cannot be written as a file, before any work is done.

    Returns:
        Where the file comes to lie: behind a symbolic link, which stays.

    Raises:
        OSError: If it is a folder, a device, a pipe, a socket or a loop of links, or if its folder does not exist or
            takes no files.
    """
    target = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write.")
    # Asked of the path as given: behind /dev/stdout there may be a pipe, which has no path of its own.
    if (path.exists() and not path.is_file()) or target.is_symlink():
        raise OSError(
            f"{path} is not a regular file, but a device, a pipe, a socket or a loop of links; name a file to write."
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {target.parent} does not exist.")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"cannot write {path}: the folder {target.parent} is not writable.")
    return target


def check_outputs(outputs: Sequence[NamedPath], inputs: Iterable[NamedPath] = ()) -> None:
    """Refuse outputs that cannot be written, or that would replace an input or one another.

    Args:
        outputs: What is to be written.
        inputs: What is read; gone through only where an output exists, since others replace nothing.

    Raises:
        OSError: If an output cannot be written.
        ValueError: If two are the same file, whatever they are called.
    """
    for _, path in outputs:
        check_output(path)
    refuse_same(outputs, inputs if any(path.exists() for _, path in outputs) else ())


def refuse_same(paths: Sequence[NamedPath], others: Iterable[NamedPath] = ()) -> None:
    """Refuse paths that lead to one file, by whatever links: among themselves, or from one of the others.

    Raises:
        ValueError: If two do; names both.
    """
    seen: dict[object, NamedPath] = {}
    for number, (name, path) in enumerate([*paths, *others]):
        key = _identity(path)
        if key in seen:
            first = " ".join(map(str, seen[key]))
            raise ValueError(f"{first} and {name} {path} are the same file; name each file once.")
        if number < len(paths):
            seen[key] = (name, path)


def _identity(path: Path) -> object:
    """Tell files apart: by device and number, which hard links share, and by place where there is no file yet."""
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary file beside ``path`` to write to; it takes the name only when all went well.

    Through a symbolic link the file behind it is replaced.

    Raises:
        OSError: If it cannot be written, as of :func:`check_output`, or no space is left; then nothing is.
    """
    target = check_output(Path(path))
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except OSError as error:
        ours = temporary is None or error.filename in (None, str(temporary))
        if ours and error.errno in FULL:  # said of the file that was asked for
            raise OSError(error.errno, f"cannot be written ({os.strerror(error.errno)})", str(path)) from error
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(contiguous, temporary, dict(metadata))
        except SafetensorError as error:  # keeps the number of the system's error in its words alone
            number = re.search(r"(?:os error|code:) (\d+)", str(error))
            if number is None:
                raise OSError(f"{path}: cannot be written ({error}).") from error
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(temporary)) from error
