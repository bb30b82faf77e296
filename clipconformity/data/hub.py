"""Files on the model hub: addresses given by the user, and a hub that may not respond."""

from __future__ import annotations

import logging
import re
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

SCHEME = "hf://"
"""Start of the address of a shared file."""
NOT_REACHED = "it is not in the cache, and the model hub does not answer or is switched off"
TIMEOUT = 3.0
"""Seconds to wait for the hub's response."""
_ADDRESS = re.compile(r"hf://(datasets/)?([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?")


class Address(NamedTuple):
    """Address of a file on the hub: ``hf://user/repo/file``, ``hf://user/repo@revision/file``, ``hf://datasets/...``."""

    repo: str
    kind: str
    """``"model"`` or ``"dataset"``, the hub's kinds of repositories."""
    file: str | None = None
    revision: str | None = None
    """A branch, a tag or a commit; None is the head of the main branch."""

    def __str__(self) -> str:
        place = f"{SCHEME}{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"
        return place + (f"@{self.revision}" if self.revision else "") + (f"/{self.file}" if self.file else "")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse an address; that of a repository alone has no file.

        Raises:
            ValueError: If it is invalid.

        Example:
            >>> Address.parse("hf://ann/coco@v1/image.safetensors")
            Address(repo='ann/coco', kind='model', file='image.safetensors', revision='v1')
        """
        found = _ADDRESS.fullmatch(text)
        if found is None or not {"", ".", ".."}.isdisjoint((found[4] or "x").split("/")):
            raise ValueError(
                f"{text}: expected {SCHEME}user/repo/file, {SCHEME}user/repo@revision/file or "
                f"{SCHEME}datasets/user/repo/file."
            )
        kind = "dataset" if found[1] else "model"
        return cls(found[2], kind, found[4], None if found[3] is None else unquote(found[3]))


def is_shared(place: object) -> bool:
    """Whether a place is the address of a file on the hub rather than a path."""
    return isinstance(place, str) and place.startswith(SCHEME)


def fetch_file(text: str) -> Path:
    """Download a file of the hub, or find it in the cache of the hub's client.

    Only the cache is used where the hub does not respond within :data:`TIMEOUT` or is off (``HF_HUB_OFFLINE=1``).

    Args:
        text: The address, given by the user; never one from a file.

    Raises:
        ValueError: If it is not an address.
        FileNotFoundError: If there is no such file, or it can neither be downloaded nor found in the cache.
        ImportError: If huggingface_hub is not installed.
    """
    address = Address.parse(text)
    if address.file is None:
        raise ValueError(f"{text}: names no file; expected {text.rstrip('/')}/FILE.safetensors.")
    client = import_client(text)
    usable = is_hub_reachable()
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # it logs each retry; the outcome is reported here
    try:
        return Path(
            client.hf_hub_download(
                address.repo,
                address.file,
                repo_type=address.kind,
                revision=address.revision,
                local_files_only=not usable,
            )
        )
    except Exception as error:  # errors of client, connection or disk
        raise _explain_absence(address, error, usable) from error
    finally:
        logger.setLevel(before)


def import_client(what: str) -> Any:
    """Import the module huggingface_hub.

    Raises:
        ImportError: If it is not installed; says that it is needed for ``what``.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{what}: huggingface_hub cannot be imported ({error}); install it with `pip install huggingface_hub`."
        ) from error
    return huggingface_hub


def _explain_absence(address: Address, error: Exception, usable: bool) -> Exception:
    """Explain in one line why a file could not be fetched."""
    from huggingface_hub import errors

    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, errors.HfHubHTTPError):
        return error  # an error of the disk
    reasons = [
        (errors.GatedRepoError, "access to it must be asked for on the hub, and a token given (HF_TOKEN)"),
        (errors.RepositoryNotFoundError, f"there is no repository {address.repo}, or it is private: give a token"),
        (errors.RevisionNotFoundError, f"the repository has no revision {address.revision!r}"),
        (errors.RemoteEntryNotFoundError, f"the repository has no file {address.file!r}"),
    ]
    reason = next((words for kind, words in reasons if isinstance(error, kind)), "")
    if not reason and not usable:
        reason = NOT_REACHED
    if not reason:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = (lines[0][:200] if lines else type(error).__name__).rstrip(".")
    if left := _count_partial_bytes(address):
        reason += f"; an interrupted download of {left:,} bytes lies in the cache, so load it again with a connection"
    advice = "" if usable else "; check the address and the connection, or give a file that is on this machine"
    return FileNotFoundError(f"{address}: cannot be fetched ({reason}){advice}.")


def _count_partial_bytes(address: Address) -> int:
    """Count the bytes of unfinished downloads of a repository."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=address.repo, repo_type=address.kind)
    return sum(path.stat().st_size for path in (folder / "blobs").glob("*.incomplete"))


def is_hub_reachable() -> bool:
    """Whether the model hub can be reached: it is not switched off, and responds within :data:`TIMEOUT`."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _ask_hub(constants.ENDPOINT)


def _ask_hub(address: str) -> bool:
    found = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=TIMEOUT).close()
        except urllib.error.HTTPError:
            pass
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # the hub's client may use other certificates
                return
        except Exception:  # a connection that breaks during the response
            return
        found.append(True)

    # In a thread, since name resolution has no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    return bool(found)
