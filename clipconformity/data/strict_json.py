"""Strict JSON in ASCII, the only form that is written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Format plain values as JSON; NaN and infinities, which JSON lacks, become null.

    Raises:
        TypeError: If a value has no form in JSON.

    Example:
        >>> to_json({"kl": float("inf"), "count": 3})
        '{"kl": null, "count": 3}'
    """
    return json.dumps(_replace_nonfinite(value), indent=indent, allow_nan=False)


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        # A non-finite key becomes a string, as json does with other numbers.
        return {str(k) if isinstance(k, float) else k: _replace_nonfinite(one) for k, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(one) for one in value]
    return value
