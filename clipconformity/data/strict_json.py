"""JSON as it is written everywhere: strict, in ASCII."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Format plain values as JSON; NaN and infinities, which JSON lacks, become null.

    Raises:
        TypeError: If a value is none that JSON has.

    Example:
        >>> to_json({"kl": float("inf"), "count": 3})
        '{"kl": null, "count": 3}'
    """
    return json.dumps(_replace_nonfinite(value), indent=indent, allow_nan=False)


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        # A key that is no finite number is written as a word, as json writes other numbers.
        return {str(k) if isinstance(k, float) else k: _replace_nonfinite(one) for k, one in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(one) for one in value]
    return value
