"""References on the model hub: the card of a reference, and the commit of both."""

from __future__ import annotations

import hashlib
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from clipconformity.data.files import SAFETENSORS
from clipconformity.data.hub import SCHEME, Address, import_client, is_hub_reachable
from clipconformity.stream.reference import ReferenceSet

CARD = "README.md"
_LICENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{1,63}")


def push(
    reference: ReferenceSet, repo: str, *, licence: str, file: str, private: bool | None, about: str, api: Any
) -> str:
    """Upload a reference; arguments, result and errors as of ``ReferenceSet.push_to_hub``."""
    _check_licence(licence)
    address = Address.parse(SCHEME + repo.removeprefix(SCHEME))
    if address.file is not None or address.revision is not None:
        raise ValueError(f"repo: expected 'user/repo' or 'datasets/user/repo', got {repo!r}; name the file by file=.")
    address = Address.parse(f"{address}/{file}")  # refuses a name outside the repository
    if not file.endswith(SAFETENSORS):
        raise ValueError(f"file: expected a name that ends in {SAFETENSORS}, got {file!r}.")
    client = import_client(f"push_to_hub({repo!r})")
    if api is None:
        if not is_hub_reachable():
            raise ConnectionError(f"{address}: cannot be shared: the model hub does not answer or is switched off.")
        api = client.HfApi()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "reference.safetensors")
        reference.save(path)
        card = format_card(reference, address, licence, checksum=_hash_file(path), about=about)
        files = [(file, path), (CARD, card.encode())]
        try:
            api.create_repo(address.repo, repo_type=address.kind, private=private, exist_ok=True)
            commit = api.create_commit(
                address.repo,
                [client.CommitOperationAdd(name, content) for name, content in files],  # both files or neither
                commit_message=f"Add {file}",
                repo_type=address.kind,
            )
        except Exception as error:  # errors of client or connection
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
            message = f"{address}: cannot be shared ({reason}); log in by `hf auth login` to write to it."
            raise OSError(message) from error
    return str(address._replace(revision=commit.oid))


def format_card(reference: ReferenceSet, address: Address, licence: str, *, checksum: str, about: str = "") -> str:
    """Write the card of a reference's repository.

    Args:
        reference: The reference.
        address: Its address on the hub.
        licence: Licence of its data.
        checksum: SHA-256 of its file.
        about: Further text.

    Raises:
        ValueError: If no licence is given.
    """
    _check_licence(licence)
    rows = {
        "dataset": reference.dataset,
        "modality": reference.modality,
        "encoder": reference.spec,
        **{f"encoder: {name}": value for name, value in (reference.encoder_id or {}).items()},
        "samples": f"{reference.count:,}",
        "dimension": reference.embed_dim,
        "rows kept": f"{len(reference.sample.keys):,}",
        "grouped": "yes" if reference.grouped else "no",
        "embeddings": "L2-normalised" if reference.normalized else "raw",
        "mean pairwise cosine": f"{float(reference.self_conformity):.4f}",
        "licence of the data": licence,
        "SHA-256": checksum,
    }
    table = "\n".join(f"| {name} | {_format_cell(value)} |" for name, value in rows.items())
    words = f"{about.strip()}\n\n" if about.strip() else ""
    known = "" if reference.spec is None else f" --encoder {shlex.quote(reference.spec)}"
    return f"""---
license: {licence.lower()}
library_name: clipconformity
tags:
- clipconformity
- clip
---

# Reference set: {_format_cell(reference.dataset)}

Statistics of raw CLIP embeddings, and a sample of them, which clipconformity compares generated samples with.

{words}| | |
|---|---|
{table}

```python
import clipconformity as cc

reference = cc.ReferenceSet.load("{address}")
```

```console
$ clipconformity score --images samples/{known} --reference {address}
```
"""


def _format_cell(value: object) -> str:
    """Format a value for a table or a heading of Markdown."""
    text = " ".join(str("unknown" if value is None else value).split())
    return text.replace("|", "\\|").replace("<", "&lt;")


def _check_licence(licence: str) -> None:
    """Refuse an invalid licence: it states how others may use the data."""
    if not isinstance(licence, str) or not _LICENCE.fullmatch(licence):
        raise ValueError(
            f"licence: expected that of the data, as the hub calls it, such as 'cc-by-4.0', got {licence!r}; 'other' "
            "and 'unknown' are names of the hub's too."
        )


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()
