"""Checks of output files, and writing of whole files or none."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from clipconformity.data.addresses import Place, RemotePath, refuse_address
from clipconformity.data.locks import Workplace, claim_workplace

if TYPE_CHECKING:
    from torch import Tensor

NamedPath: TypeAlias = "tuple[str, Path]"
"""A file, and the option or argument that names it."""
NamedPlace: TypeAlias = "tuple[str, Place]"
"""The same of a file that may be at an address."""

SAFETENSORS = ".safetensors"
"""Suffix of files in that format."""
DEVICE_ERRORS = frozenset(
    {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)
"""Errors of the device in spite of valid input: no space is left, or it does not work."""


def check_output(path: Path) -> Path:
    """Refuse an output that cannot be written, before any work is done.

    Returns:
        The final path of the file: behind a symbolic link, which is kept.

    Raises:
        OSError: If it is a folder, a device, a pipe, a socket or a loop of links, or if its folder does not exist or
            takes no files.
        ValueError: If it is an address.
    """
    refuse_address(path, "a file to write")
    target = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write.")
    # Checked for the path as given: /dev/stdout may be a pipe, which has no other path.
    if (path.exists() and not path.is_file()) or target.is_symlink():
        raise OSError(
            f"{path} is not a regular file, but a device, a pipe, a socket or a loop of links; name a file to write."
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {target.parent} does not exist; make it first.")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"cannot write {path}: the folder {target.parent} is not writable.")
    return target


def check_outputs(outputs: Sequence[NamedPath], inputs: Iterable[NamedPlace] = ()) -> None:
    """Refuse outputs that cannot be written, or that would replace an input or one another.

    Args:
        outputs: Files to be written.
        inputs: Files that are read; compared only where an output exists, since others replace nothing.

    Raises:
        OSError: If an output cannot be written.
        ValueError: If two are the same file, also under different names, or an output is an address.
    """
    for _, path in outputs:
        check_output(path)
    refuse_same(outputs, inputs if any(path.exists() for _, path in outputs) else ())


def refuse_same(paths: Sequence[NamedPlace], others: Iterable[NamedPlace] = ()) -> None:
    """Refuse paths that lead to the same file, also by links: among themselves, or with one of the others.

    Raises:
        ValueError: If two do; names both.
    """
    seen: dict[object, NamedPlace] = {}
    for number, (name, path) in enumerate([*paths, *others]):
        key = _identify(path)
        if key in seen:
            first = " ".join(map(str, seen[key]))
            raise ValueError(f"{first} and {name} {path} are the same file; name each file once.")
        if number < len(paths):
            seen[key] = (name, path)


def _identify(path: Place) -> object:
    """Identify a file: by device and inode, which hard links share, or by its path where it does not exist yet."""
    if isinstance(path, RemotePath):
        return path.identity
    try:
        found = path.stat()
    except OSError:
        return os.path.realpath(path)
    return found.st_dev, found.st_ino


@dataclass
class _Part:
    """A file of a publication: where it is written, and its final path."""

    path: Path
    """The path as given."""
    target: Path
    place: Workplace

    @property
    def written(self) -> Path:
        """The hidden temporary file, with the suffix of the final one."""
        return self.place.folder / f".{self.path.name}"

    @property
    def older(self) -> Path:
        """The replaced file, until all files are published."""
        return self.place.folder / ".older"

    def publish(self, overwrite: bool) -> None:
        if not overwrite:
            return self._publish_new()
        with suppress(OSError):  # no such file, or a file system without hard links
            os.link(self.target, self.older)
        self.written.replace(self.target)
        return None

    def _publish_new(self) -> None:
        """Rename the file to its final name unless another file has it by now."""
        try:
            os.link(self.written, self.target)
        except OSError as error:
            if isinstance(error, FileExistsError) or self.target.exists():
                raise FileExistsError(
                    f"{self.path} was written by another process during this run, and is kept; name another file, or "
                    "replace it with --overwrite."
                ) from None
            self.written.replace(self.target)  # a file system without hard links

    def take_back(self) -> None:
        """Undo :meth:`publish` as far as it was done."""
        if self.written.exists() and not (self.target.exists() and self.written.samefile(self.target)):
            return
        if self.older.exists():
            self.older.replace(self.target)
        else:
            self.target.unlink(missing_ok=True)


class Publication:
    """Files that appear together after all are written, or not at all.

    Until then each is in a hidden folder beside its final path. The next process that writes to the same path removes
    such folders of killed processes, but not those of running ones.

    Args:
        overwrite: Replace existing files.

    Raises:
        OSError: If a file cannot be written, or no space is left; names the final file.
    """

    def __init__(self, *, overwrite: bool = True) -> None:
        self.overwrite = overwrite
        self._parts: list[_Part] = []

    def add(self, path: Path | str) -> Path:
        """Return a temporary file that will become ``path``; a symbolic link is followed.

        Raises:
            OSError: If there can be no such file, as in :func:`check_output`.
        """
        path = Path(path)
        target = check_output(path)
        try:
            part = _Part(path, target, claim_workplace(target))
        except OSError as error:
            raise _replace_path(path, error) from error
        self._parts.append(part)
        return part.written

    def __enter__(self) -> Publication:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self._publish()
            elif isinstance(error, OSError) and (renamed := self._rename_error(error)) is not error:
                raise renamed from error
        finally:
            for part in self._parts:
                part.place.remove()

    def _publish(self) -> None:
        mask = os.umask(0)
        os.umask(mask)
        try:
            for part in self._parts:
                part.written.chmod(0o666 & ~mask)
                part.publish(self.overwrite)
        except BaseException as error:
            for part in reversed(self._parts):
                part.take_back()
            if isinstance(error, OSError) and (renamed := self._rename_error(error)) is not error:
                raise renamed from error
            raise

    def _rename_error(self, error: OSError) -> OSError:
        """Make an error about a temporary file one about the final file."""
        name = error.filename
        if name is None and self._parts:
            return _replace_path(self._parts[-1].path, error)
        place = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else Path()
        part = next((part for part in self._parts if part.place.folder in place.parents), None)
        return error if part is None else _replace_path(part.path, error)


def _replace_path(path: Path, error: OSError) -> OSError:
    if error.errno not in DEVICE_ERRORS:
        return error
    return OSError(error.errno, f"cannot be written ({os.strerror(error.errno)})", str(path))


@contextmanager
def replace_file(path: Path | str, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary file that becomes ``path`` if the block succeeds.

    A symbolic link is followed, and its target replaced.

    Raises:
        OSError: If it cannot be written, as in :func:`check_output`, or no space is left; then nothing is written.
    """
    with Publication(overwrite=overwrite) as files:
        yield files.add(path)


@contextmanager
def make_scratch_folder(beside: Path) -> Iterator[Path]:
    """Yield a folder of temporary files beside a path; the next run removes that of a killed run.

    Raises:
        OSError: If it cannot be made.
    """
    place = claim_workplace(beside)
    try:
        yield place.folder
    finally:
        place.remove()


def write_tensors(path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all.

    Raises:
        OSError: If it cannot be written.
        ValueError: If its suffix is of another format.
    """
    check_output(Path(path))
    if Path(path).suffix != SAFETENSORS:
        raise ValueError(f"expected a name that ends in {SAFETENSORS}, got {path}.")
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    with replace_file(path) as temporary:
        try:
            save_file(contiguous, temporary, dict(metadata))
        except SafetensorError as error:  # has the system's error number only in its message
            number = re.search(r"(?:os error|code:) (\d+)", str(error))
            if number is None:
                raise OSError(f"{path}: cannot be written ({error}).") from error
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(temporary)) from error
