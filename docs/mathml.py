"""Formulas as MathML, which browsers draw by themselves: without a script, a font or a connection."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert


def to_mathml(formula: str, display: str) -> str:
    """Convert LaTeX; bars and slashes stand close, which browsers would set apart as they do relations."""
    written = convert(formula, display=display)
    return re.sub(
        r'<mo(?: stretchy="false")?>(&#x0007C;|&#x0002F;)</mo>',
        r'<mo stretchy="false" lspace="0" rspace="0">\1</mo>',
        written,
    )


def write_inline(writer: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    writer.body.append(to_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def write_block(writer: Any, node: nodes.math_block) -> None:
    """Write a formula on lines of its own."""
    writer.body.append(f'<div class="math">{to_mathml(node.astext(), "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer, which `html_math_renderer` chooses."""
    app.add_html_math_renderer("mathml", (write_inline, None), (write_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
