"""Citations of the paper and of this library, as BibTeX."""

from __future__ import annotations

from clipconformity import __version__

PAPER = """@inproceedings{levi2025doubleellipsoid,
  title     = {The Double-Ellipsoid Geometry of {CLIP}},
  author    = {Levi, Meir Yossef and Gilboa, Guy},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2025},
  note      = {arXiv:2411.14517}
}"""


def format_citations() -> tuple[str, str]:
    """Format the entries of the paper and of this version of the library."""
    library = f"""@software{{clipconformity,
  title   = {{clipconformity: evaluation of generative models by the geometry of {{CLIP}} embeddings}},
  author  = {{{{The clipconformity developers}}}},
  version = {{{__version__}}},
  license = {{Apache-2.0}}
}}"""
    return PAPER, library
