"""Why a server did not give what was asked for: what fsspec's packages raise, in one line without secrets."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from clipconformity.data.addresses import PROTOCOLS, RemotePath
from clipconformity.provenance import hide_secrets

_STATUS = ("status", "status_code", "code")
"""Names of the status of an error; the last warns in aiohttp, and is looked at last."""


class RemoteError(OSError):
    """A server does not give what was asked for, whatever is in the file."""


class RemoteMissingError(RemoteError, FileNotFoundError):
    """There is no such file or folder at an address."""


class RemoteRefusedError(RemoteError, PermissionError):
    """Access is refused."""


class RemoteConnectionError(RemoteError, ConnectionError):
    """There is no connection, or it broke off; it may work later."""


def explain(place: RemotePath, error: Exception) -> RemoteError:
    """Explain in one line why a server did not give what was asked for."""
    causes = list(_list_causes(error))
    status = next(filter(None, map(_get_status, causes)), None)
    if status in (404, 410) or (status is None and isinstance(causes[-1], FileNotFoundError)):
        return RemoteMissingError(f"{place}: no such file or folder there; check the address.")
    if status in (401, 403) or _any(causes, "Permission", "Credential", "Forbidden", "Unauthorized"):
        how = "as user:password@host" if place.on_web else f"where {PROTOCOLS[place.protocol]} looks for them"
        what = f"refused (HTTP status {status})" if status else "refused"
        return RemoteRefusedError(f"{place}: access is {what}; check the address, and give credentials {how}.")
    if status in (408, 429) or (status is not None and status >= 500):
        return RemoteConnectionError(f"{place}: the server fails (HTTP status {status}); try again later.")
    if status is not None:
        return RemoteError(f"{place}: the server refuses the request (HTTP status {status}); check the address.")
    if any("range requests" in str(one) for one in causes):
        return RemoteError(
            f"{place}: the server gives whole files only, no blocks of them (no HTTP ranges), and no file is held "
            "whole; download it first."
        )
    reason = _find_reason(place, causes)
    if reason is None:
        said = "" if place.query or "@" in place.host else ": " + hide_secrets(" ".join(str(error).split()))[:120]
        reason = f"{type(error).__name__}{said.rstrip('.')}"
        if isinstance(error, (ValueError, TypeError, NotImplementedError)):  # the package takes no such address
            return RemoteError(f"{place}: cannot be read ({reason}); check the address.")
    return RemoteConnectionError(f"{place}: cannot be read ({reason}); check the address and the connection.")


def _find_reason(place: RemotePath, causes: list[BaseException]) -> str | None:
    """Say what is wrong with a connection, where that is known."""
    host = place.identity[1] or f"of {place.protocol}://"
    if any(isinstance(one, ssl.SSLError) for one in causes) or _any(causes, "Certificate"):
        return f"the certificate or the encryption of the host {host} is not accepted"
    if any(isinstance(one, socket.gaierror) for one in causes) or _any(causes, "DNS"):
        return f"the host {host} is not known"
    if any(isinstance(one, ConnectionRefusedError) for one in causes):
        return f"the host {host} refuses the connection"
    if any(isinstance(one, TimeoutError) for one in causes) or _any(causes, "Timeout"):
        return f"the host {host} does not answer in time"
    if _any(causes, "Disconnected", "Payload", "ConnectionError", "ConnectError"):
        return f"the connection to the host {host} fails or broke off"
    return None


def _list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """List an error and what it was raised from: fsspec calls each failure of a web server a missing file."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        inner = getattr(error, "os_error", None)
        if isinstance(inner, OSError):
            yield inner
        error = error.__cause__ or error.__context__


def find_remote_error(error: BaseException) -> RemoteError | None:
    """Find what a server did not give, below an error of a reader: zipfile takes it for a damaged file."""
    return next((one for one in _list_causes(error) if isinstance(one, RemoteError)), None)


def _any(causes: list[BaseException], *words: str) -> bool:
    """Whether the name of an error, or of a class of it, has one of some words."""
    names = {kind.__name__ for one in causes for kind in type(one).__mro__}
    return any(word in name for word in words for name in names)


def _get_status(error: BaseException) -> int | None:
    """Get the HTTP status that an error of aiohttp, gcsfs, azure, httpx or botocore has."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        response = response.get("ResponseMetadata", {})
        return _parse_status(response.get("HTTPStatusCode"))
    found = (_parse_status(getattr(one, name, None)) for one in (response, error) for name in _STATUS)
    return next((status for status in found if status is not None), None)


def _parse_status(value: object) -> int | None:
    return int(str(value)) if str(value).isdecimal() and 400 <= int(str(value)) < 600 else None
