"""Cells of CSV files that a spreadsheet may open."""

from __future__ import annotations

import re


def spreadsheet_safe(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would run as a formula; numbers stay.

    Example:
        >>> spreadsheet_safe("=cmd|' /C calc'!A0"), spreadsheet_safe("-3"), spreadsheet_safe("cat.png")
        ("'=cmd|' /C calc'!A0", '-3', 'cat.png')
    """
    runs = text[:1] in ("=", "+", "-", "@", "\t", "\r") and not re.fullmatch(r"[+-]?\d+(\.\d+)?", text)
    return f"'{text}" if runs else text


def spreadsheet_cell(value: object) -> object:
    """Write a value for a cell: texts safely, numbers with nine digits, None as nothing."""
    if isinstance(value, str):
        return spreadsheet_safe(value)
    return f"{value:.9g}" if isinstance(value, float) else value
