"""Default plots of metrics: their figures, or given values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipconformity.functional.resampling import effective_number, student_quantile
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.stream import Stream

RESAMPLES = 500
"""Redraws for the intervals and floors of a plot."""


def draw_figures(readout: ReadOut, stream: Stream, ax: Any) -> Any:
    """Draw the figures that have the unit of the read-out's value, a line each, with intervals and noise floor."""
    from clipconformity import plots

    reference, values = stream.get_reference(), readout.figures(stream, resamples=RESAMPLES)
    degrees = effective_number(stream.evaluated["count"]) - 1
    fields = {one.name: one for one in readout.fields}
    unit = fields[readout.value].unit if readout.value else ""
    apart = {name for one in fields.values() for name in (one.error, *(one.interval or ()))}
    drawn = [
        one for name, one in fields.items()
        if one.unit == unit and name not in apart and name in values and bool(values[name].isfinite())
    ]  # fmt: skip
    floors = [one for one in drawn if one.name.endswith("noise_floor")]
    shown = [one for one in drawn if one not in floors]
    ends = [_get_interval(one, values, degrees) for one in shown]
    return plots.forest(
        [float(values[one.name]) for one in shown],
        [low for low, _ in ends],
        [high for _, high in ends],
        [one.name.replace("_", " ") for one in shown],
        quantity=format_quantity(readout),
        floors=[float(values[one.name]) for one in floors],
        modality=None if reference is None else reference.modality,
        ax=ax,
    )


def draw_values(readout: ReadOut, val: Any, ax: Any) -> Any:
    """Draw one or several values of ``compute``."""
    from clipconformity import plots

    if isinstance(val[0] if isinstance(val, list | tuple) else val, dict):
        return plots.figures(val, ax=ax)
    return plots.series(list_values(val), quantity=format_quantity(readout), ax=ax)


def format_quantity(readout: ReadOut) -> str:
    """Name the value with its unit, for an axis."""
    if readout.value is None:
        return "value"
    return format_field(next(one for one in readout.fields if one.name == readout.value))


def format_field(field: Field) -> str:
    """Name a figure with its unit, for an axis."""
    return field.about + (f" ({field.unit})" if field.unit else "")


def list_values(val: Any) -> list[Any]:
    """Return one or several values as a list."""
    if isinstance(val, Tensor):
        return list(val.reshape(-1))
    return list(val) if isinstance(val, list | tuple) else [val]


def _get_interval(field: Field, values: Mapping[str, Tensor], degrees: float) -> tuple[float, float]:
    """Return the ends of a field's 95% interval; the value where it has none."""
    value = float(values[field.name])
    if field.interval is not None:
        low, high = (float(values[name]) for name in field.interval)
    else:
        error = float(values.get(field.error or "", torch.tensor(math.nan)))
        half = student_quantile(0.975, degrees) * error if degrees > 0 else math.nan
        low, high = value - half, value + half
    return (low, high) if math.isfinite(low) and math.isfinite(high) else (value, value)
