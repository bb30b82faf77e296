"""Imports point one way, and stay lazy where they should."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "clipconformity"

# Bottom to top: each part imports only what stands above it in this list. CONTRIBUTING shows the same.
LAYERS = [
    "functional",
    "provenance",
    "data",
    "stream",
    "plots",
    "encoders",
    "metrics",
    "evaluation",
    "generators",
    "report",
    "demo",
    "cli",
    "__main__",
]
LEVEL = {part: level for level, part in enumerate(LAYERS)}


def part_of(module: str) -> str:
    """The part that a module of the package belongs to."""
    return module.split(".")[0]


def imported(source: str, module: str) -> Iterator[str]:
    """Parts of the package that a module imports, at its top or inside a function; ``""`` is the package itself."""
    base = module.split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = ["clipconformity", *base[: len(base) - node.level]] if node.level else []
            origin = ".".join([*stem, *([node.module] if node.module else [])])
            if origin != "clipconformity":
                names = [origin]
            elif {alias.name for alias in node.names} == {"__version__"}:
                continue
            else:
                names = [f"clipconformity.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "clipconformity":
                yield part_of(rest)


def violations(files: dict[str, str]) -> list[str]:
    """Imports against the direction; ``files`` maps a module such as ``metrics.base`` to its source."""
    found = []
    for module, source in files.items():
        part = part_of(module)
        if part == "__init__":
            continue
        if part not in LEVEL:
            found.append(f"{module} has no layer")
            continue
        for other in imported(source, module):
            if other != part and LEVEL.get(other, len(LAYERS)) >= LEVEL[part]:
                found.append(f"{module} imports {other or 'the package itself'}")
    return found


def package_files() -> dict[str, str]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in PACKAGE.rglob("*.py")
    }


def test_imports_point_one_way():
    files = package_files()
    assert {"functional.conformity", "metrics.base", "cli.commands"} <= set(files)
    assert violations(files) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("functional.x", "from clipconformity.stream.moments import Moments"),
        ("provenance", "import clipconformity.stream.reference"),
        ("stream.x", "def f():\n    from clipconformity import plots"),
        ("stream.x", "from clipconformity import ReferenceSet"),
        ("metrics.x", "import clipconformity"),
        ("metrics.x", "from ..evaluation import score"),
        ("stream.moments", "from ..metrics import Conformity"),
        ("data.x", "from clipconformity.encoders import Encoder"),
        ("evaluation.x", "if TYPE_CHECKING:\n    from clipconformity.cli import main"),
        ("novelty", ""),
    ],
)
def test_the_check_finds_an_import_against_the_direction(module, source):
    assert len(violations({module: source})) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("metrics.x", "from clipconformity.functional import conformity\nfrom clipconformity import plots"),
        ("metrics.x", "from .base import EmbeddingMetric\nfrom ..stream.moments import Moments"),
        ("stream.reference", "from clipconformity.provenance import Provenance"),
        ("cli", "from clipconformity import evaluation"),
        ("stream.reference", "from clipconformity import __version__\nimport torch"),
    ],
)
def test_the_check_lets_an_import_in_the_direction_pass(module, source):
    assert violations({module: source}) == []


def test_no_module_that_another_folder_imports_is_private():
    private = [
        f"{module} imports {name}"
        for module, source in package_files().items()
        for name in re.findall(r"(?:from|import) clipconformity\.([\w.]+)", source)
        if any(part.startswith("_") for part in name.split(".")) and part_of(name) != part_of(module)
    ]
    assert private == []


def test_each_folder_opens_with_a_line_that_says_what_belongs_there():
    for folder in PACKAGE.iterdir():
        if (folder / "__init__.py").is_file():
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder.name


def test_contributing_shows_the_same_map():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.findall(r"^(\w+)/? +", text.split("```text\n")[1].split("```")[0], flags=re.MULTILINE)
    assert shown == [part for part in LAYERS if part != "__main__"]


NUMERIC = ("functional.density", "functional.resampling", "functional.two_sample")


def test_pure_functions_need_torch_alone_but_for_densities_quantiles_and_permutations():
    torch_only = {*sys.stdlib_module_names, "torch", "clipconformity"}
    for module, source in package_files().items():
        if not module.startswith("functional"):
            continue
        for node in ast.walk(ast.parse(source)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            extra = {"numpy", "scipy"} if module in NUMERIC else set()
            allowed = torch_only | extra
            assert {name.split(".")[0] for name in names} <= allowed, module


# --- lazy imports ----------------------------------------------------------------------------------------------------

HEAVY = ["open_clip", "transformers", "diffusers", "matplotlib", "torchmetrics", "torchvision"]


def python(code: str) -> str:
    """Run code in a fresh interpreter; its standard output."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def loaded_after(code: str) -> list[str]:
    return python(f"{code}\nimport sys\nprint(*(name for name in {HEAVY} if name in sys.modules))").split()


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import clipconformity") == []


def test_the_help_of_every_command_does_without_torch_and_numpy():
    code = (
        "import contextlib, io, sys\nfrom clipconformity.cli import main\n"
        "for command in ([], ['demo'], ['score'], ['reference'], ['geometry'], ['merge']):\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "        main([*command, '--help'])\n"
        "print(*(name for name in ('torch', 'numpy', 'PIL', 'tqdm') if name in sys.modules))"
    )
    assert python(code).strip() == ""


def test_pure_functions_and_references_load_nothing_heavy(tmp_path):
    code = (
        "import torch, clipconformity as cc\n"
        "rows = torch.randn(50, 4) + 1\n"
        f"cc.ReferenceSet.fit(rows).save({str(tmp_path / 'r.safetensors')!r})\n"
        f"reference = cc.ReferenceSet.load({str(tmp_path / 'r.safetensors')!r})\n"
        "cc.functional.conformity_kl(cc.functional.conformity(rows, reference), reference.conformities)"
    )
    assert loaded_after(code) == []


def test_that_test_can_fail():
    assert loaded_after("import matplotlib, clipconformity") == ["matplotlib"]


def test_reference_and_score_on_embeddings_load_nothing_heavy(tmp_path):
    """Neither torchmetrics, which brings in transformers, torchvision and matplotlib by itself, nor a model library."""
    code = (
        "import contextlib, io, numpy as np\n"
        f"folder = {str(tmp_path)!r}\n"
        "random = np.random.default_rng(0)\n"
        "np.save(folder + '/e.npy', random.normal(size=(60, 4)).astype('f4') + 1)\n"
        "from clipconformity.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert main(['reference', '--embeddings', folder + '/e.npy', '-o', folder + '/r.safetensors']) == 0\n"
        "    assert main(['score', '--embeddings', folder + '/e.npy', '--reference', folder + '/r.safetensors',\n"
        "                 '--resamples', '5', '--per-sample', folder + '/s.csv']) == 0"
    )
    assert loaded_after(code) == []


def test_public_names_are_there():
    import clipconformity

    assert set(clipconformity.__all__) <= set(dir(clipconformity))
    assert all(getattr(clipconformity, name) is not None for name in clipconformity.__all__)


def test_an_unknown_name_is_an_attribute_error():
    import clipconformity

    with pytest.raises(AttributeError, match="no attribute 'conformty'"):
        _ = clipconformity.conformty
