"""Damage of every kind to bytes, to JSON and to tensors, drawn from a seeded generator."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import torch


def deep(levels: int) -> Any:
    """Lists within lists."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda _: None,
    lambda _: True,
    lambda _: "",
    lambda _: [],
    lambda _: {},
    lambda _: float("nan"),
    lambda _: float("inf"),
    lambda _: "\ud800",
    lambda _: "a\0b",
    lambda _: "../" * 5 + "etc/passwd",
    lambda _: "hf:nobody/nothing",
    lambda _: "=cmd|' /C calc'!A0",
    lambda r: 10 ** r.randrange(40),
    lambda r: -(10 ** r.randrange(40)),
    lambda r: r.uniform(-1e3, 1e3),
    lambda r: 10.0 ** r.randrange(-320, 308),
    lambda r: "x" * 10 ** r.randrange(6),
    lambda r: [r.randrange(9) for _ in range(r.randrange(2000))],
    lambda r: deep(r.choice((3, 50, 400))),
)
LITERALS = (
    b"NaN",
    b"1e999",
    b"-Infinity",
    b"1" * 5000,
    b"[" * 2000,
    b'{"a":' * 2000,
    b'"\\ud800"',
    b"\xff\xfe",
    b"\0" * 9,
)


def damage_bytes(content: bytes, random: random.Random) -> bytes:
    """Flip, cut, repeat, move or put in bytes, some times over."""
    found = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        if not found:
            break
        at = random.randrange(len(found)) if random.random() < 0.5 else min(random.randrange(200), len(found) - 1)
        kind = random.randrange(7)
        if kind == 0:
            found[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            found[at] = random.randrange(256)
        elif kind == 2:
            del found[at:]
        elif kind == 3:
            del found[at : at + random.randrange(1, 64)]
        elif kind == 4:
            found[at:at] = found[at : at + random.randrange(1, 256)] * random.randrange(1, 5)
        elif kind == 5:
            found[at:at] = random.choice(LITERALS)
        else:
            size = random.choice((2, 4, 8))
            number = random.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)) % 256**size
            found[at : at + size] = number.to_bytes(size, random.choice(("little", "big")))
    return bytes(found)


def damage_json(content: Any, random: random.Random) -> Any:
    """Put odd values and keys in odd places, take some out, and double others."""
    content = copy.deepcopy(content)
    for _ in range(random.choice((1, 1, 2, 3))):
        places = _places(content)
        if not places:
            return random.choice(VALUES)(random)
        part, key = random.choice(places)
        kind = random.randrange(6)
        if kind == 0:
            del part[key]
        elif kind == 1 and isinstance(part, list):
            part.append(copy.deepcopy(part[key]))
        elif kind == 2 and isinstance(part, dict):
            part[random.choice(("", "id", "\ud800", "embeddings"))] = part.pop(key)
        elif kind == 3 and isinstance(part[key], int | float):
            part[key] *= random.choice((-1, 0, 2, 10, 1000, 10**12))
        else:
            part[key] = random.choice(VALUES)(random)
    return content


def _places(content: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    todo = [content]
    while todo and len(found) < 500:
        part = todo.pop()
        keys = list(part) if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
        found += [(part, key) for key in keys]
        todo += [part[key] for key in keys]
    return found


def as_json(content: Any) -> bytes:
    """Bytes of what may be no JSON: too deep, or with numbers that are none."""
    try:
        return json.dumps(content).encode()
    except (RecursionError, ValueError):
        return b"[" * 3000


def _strange(tensor: torch.Tensor) -> tuple[Callable[[], torch.Tensor], ...]:
    whole = tensor.is_floating_point()
    return (
        lambda: tensor.to(torch.float8_e4m3fn) if whole else tensor.bool(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.double() if whole else tensor.int(),
        lambda: tensor.half() if whole else tensor.to(torch.uint8),
        lambda: tensor.to_sparse(),
        lambda: torch.empty_like(tensor, device="meta"),
        lambda: tensor[:0],
        lambda: tensor[..., None],
        lambda: tensor.reshape(-1),
        lambda: tensor.reshape(-1)[0],
        lambda: tensor[:1].expand(10**9, *tensor.shape[1:]),
        lambda: tensor.T,
        lambda: tensor[:-1],
        lambda: -tensor,
        lambda: torch.zeros_like(tensor),
        lambda: torch.nn.Parameter(tensor, requires_grad=whole),
    )


def damage_tensor(tensor: torch.Tensor, random: random.Random) -> torch.Tensor:
    """Make values or the kind of a tensor odd."""
    if random.random() < 0.5 and tensor.numel():
        changed = tensor.clone()
        flat = changed.reshape(-1)
        odd = (0, -1, 1, 3, 1e30, -1e30, 1e300, float("nan"), float("inf"), 1e-300)
        value = random.choice(odd if tensor.is_floating_point() else (0, -1, 1, 2**62, -(2**62), 2**63 - 1))
        if tensor.dtype == torch.float32 and abs(value) == 1e300:
            value = 3e38
        flat[random.randrange(len(flat))] = value
        return flat.reshape(tensor.shape)
    try:
        return random.choice(_strange(tensor))()
    except (RuntimeError, TypeError, IndexError):  # nothing of the kind can be made of it
        return tensor


def blank_png(width: int, height: int) -> bytes:
    """A black PNG of any size, in few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    row = bytes(1 + (width + 7) // 8)
    rows = min(height, 2**24 // len(row))  # a file may end before its image does
    content = b"".join([*(packer.compress(row) for _ in range(rows)), packer.flush()])
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
