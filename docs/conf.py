import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from clipconformity import __version__

sys.path.insert(0, str(Path(__file__).parent))
# The notebooks call the command line of the environment that builds the pages, and see no settings of the user.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
profile = Path(__file__).parent / "_build" / "ipython" / "profile_default"
profile.mkdir(parents=True, exist_ok=True)
(profile / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 'ERROR'\n", encoding="utf-8")
os.environ["IPYTHONDIR"] = str(profile.parent)
logging.getLogger("traitlets").setLevel(logging.WARNING)

project = "clipconformity"
copyright = "The clipconformity contributors"
author = "The clipconformity contributors"
release = version = __version__

extensions = [
    "mathml",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

html_theme = "furo"
html_title = f"clipconformity {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

EXECUTED = {"gallery", "tutorial"}
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 600
nb_output_stderr = "remove"  # progress bars
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"Groups": "Groups"}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# The examples in docstrings are run by pytest, in the namespace of their module; here run those of the pages.
doctest_test_doctest_blocks = ""


def escape_bars(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write norms as |v|, which reStructuredText would take for a substitution, except in formulas."""
    formula = None  # indentation of the formula that a line belongs to
    for number, line in enumerate(lines):
        depth = len(line) - len(line.lstrip())
        if line.lstrip().startswith(".. math::"):
            formula = depth
        elif line.strip() and formula is not None and depth <= formula:
            formula = None
        if formula is None:
            parts = re.split(r"(`[^`]*`)", line)
            lines[number] = "".join(part if part.startswith("`") else part.replace("|", r"\|") for part in parts)


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", escape_bars, priority=400)
    # What is executed shows the library as it is now, so it is never taken from an earlier build.
    app.connect("env-get-outdated", lambda *_: sorted(EXECUTED))
