"""Plots as inline SVG that takes the page's colour of text, light or dark."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from clipconformity import plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK = "#010203"
"""Stands for the page's own colour of text until the drawing is written."""


def figure(
    key: str, draw: Callable[[Axes], Any], *, alt: str, caption: str, size: tuple[float, float] = (5.0, 3.4)
) -> str:
    """Draw into an HTML figure.

    Args:
        key: Unlike that of any other figure on the page: put before the drawing's own names.
        draw: Draws on the axes.
        alt: What a screen reader says in place of the drawing.
        caption: Stands under it.
        size: Width and height in inches; small, so that the text is still readable on a phone.
    """
    return f'<figure class="plot">{_svg(key, draw, alt, size)}<figcaption>{escape(caption)}</figcaption></figure>'


def label(name: str, width: int = 26) -> str:
    """Give a run's name as text in a plot: broken into lines, and not refused, read as mathematics or left out."""
    text = name.encode("utf-8", "backslashreplace").decode("utf-8")  # a folder's name may be none
    lines = textwrap.fill(text, width).replace("$", r"\$")  # broken first: a line's end would part the two signs
    return f"\N{ZERO WIDTH SPACE}{lines}" if lines.startswith("_") else lines


def _svg(key: str, draw: Callable[[Axes], Any], alt: str, size: tuple[float, float]) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    out = io.StringIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": key}
    with plots.drawing_in(INK), mpl.rc_context(settings):
        drawing = Figure(figsize=size, layout="constrained")
        draw(drawing.subplots())
        drawing.savefig(out, format="svg", dpi=150, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style type=.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', text)
    text = re.sub(r'((?:xlink:)?href="|url\()#', rf"\g<1>#{key}-", text)
    text = re.sub(r'<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'<svg([^>]*?) height="[^"]*"', r"<svg\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
    return text.replace(INK, "currentColor").strip()
