"""Plots as inline SVG in the page's text colour, light or dark."""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from clipconformity import plots
from clipconformity.report.page import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = 32
"""Largest number of characters of a name in a plot."""
INK = "#010203"
"""Placeholder of the page's text colour in the drawing."""


class Drawing(NamedTuple):
    """A drawing and its caption."""

    svg: Markup
    caption: str


def draw_figure(
    key: str, draw: Callable[[Axes], Any], *, alt: str, caption: str, size: tuple[float, float] = (5.0, 3.4)
) -> Drawing:
    """Draw a figure as inline SVG.

    Args:
        key: Unique key of the figure on the page, a prefix of the names inside the drawing.
        draw: Draws on the axes.
        alt: Text for screen readers in place of the drawing.
        caption: Text below the drawing.
        size: Width and height in inches; small, so that the text is still readable on a phone.
    """
    return Drawing(_render_svg(key, draw, alt, size), caption)


def draw_marker(look: plots.Look) -> Markup:
    """Draw a run's marker as a small inline SVG, to stand beside its name."""
    from matplotlib.markers import MarkerStyle

    style = MarkerStyle(look.marker)
    path = style.get_path().transformed(style.get_transform())
    outlines = [np.asarray(points) for points in path.to_polygons()]
    shapes = [" ".join(f"{x:.3f},{-y:.3f}" for x, y in points.tolist()) for points in outlines]
    drawn = Markup("").join(Markup('<polygon points="{}"/>').format(points) for points in shapes)
    svg = Markup('<svg class="marker" viewBox="-0.6 -0.6 1.2 1.2" fill="{}" aria-hidden="true">{}</svg>')
    return svg.format(look.color, drawn)


def format_label(name: str, width: int = 26) -> str:
    """Format a run's name for a plot: shortened, broken into lines, and escaped from mathematics."""
    text = shorten(name.encode("utf-8", "backslashreplace").decode("utf-8"), NAME)  # a folder's name may be empty
    lines = textwrap.fill(text, width).replace("$", r"\$")  # broken first: a line break would split the two characters
    return f"\N{ZERO WIDTH SPACE}{lines}" if lines.startswith("_") else lines


def _render_svg(key: str, draw: Callable[[Axes], Any], alt: str, size: tuple[float, float]) -> Markup:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    out = io.StringIO()
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": key}
    with plots.use_text_color(INK), mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's fonts draw the text
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
    return Markup(text.replace(INK, "currentColor").strip())
