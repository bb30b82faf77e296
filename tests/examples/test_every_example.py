"""What holds for every example: one file that can be copied, a help that says what it costs, errors of one line."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LONGEST = 120
NAMES = {
    "blip": "Salesforce/blip-image-captioning-large",
    "caption_reward": "open_clip:ViT-B-32/openai",
    "clipcap": "gpt2",
    "compare_models": "open_clip:ViT-B-32/openai",
    "glide": "openai/glide-text2im",
    "stable_diffusion": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "training_loop": "google/ddpm-cifar10-32",
    "unclip": "kakaobrain/karlo-v1-alpha",
    "vslerp_unclip": "kakaobrain/karlo-v1-alpha-image-variations",
}
"""Every example, with what it takes by default."""
RECIPES = {"datasets_map": "open_clip:ViT-B-32/openai", "ray_reference": "open_clip:ViT-B-32/openai"}
"""Recipes for other packages, which make references themselves; run in ``test_recipes.py``."""
OF_THE_EMBEDDED_MODEL = {"tiny_clip_figures", "train_tiny_clip"}
OF_PUBLISHED_FILES = {"published_captions", "published_generators"}
"""Tested in ``tests/test_published.py``."""
OF_TEXTS = ("blip", "caption_reward", "clipcap")
"""Examples whose reference is of captions."""


def required(name, material, **instead):
    """What an example cannot do without; other values by option."""
    two = sorted(material.images.iterdir())[:2]
    plain = {
        "caption_reward": (f"a={material.results}", f"b={material.results}"),
        "compare_models": (f"a={material.images}", f"b={material.images}"),
        "vslerp_unclip": two,
    }
    options = {"reference": material.text_reference if name in OF_TEXTS else material.image_reference}
    if name in ("blip", "clipcap", "training_loop"):
        options["images"] = material.images
    if name in ("caption_reward", "glide", "stable_diffusion", "unclip"):
        options["captions"] = material.captions
    if name == "clipcap":
        options |= {"mapper-weights": "none.pt", "clip": "tiny"}
    if name != "vslerp_unclip":  # it takes its encoder from the pipeline
        options["encoder"] = "tiny"
    options |= instead
    return [*plain.get(name, ()), *(word for key, value in options.items() for word in (f"--{key}", value))]


def test_every_example_is_known_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NAMES) | set(
        RECIPES
    ) | OF_THE_EMBEDDED_MODEL | OF_PUBLISHED_FILES


@pytest.mark.parametrize("name", [*NAMES, *RECIPES])
def test_an_example_is_one_short_file_that_stands_alone(name, example):
    text = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    if name not in ("clipcap", *RECIPES):  # its mapper is written out, and how states or embeddings travel
        assert len(text.splitlines()) <= LONGEST
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module)
        elif isinstance(node, ast.Import):
            imported |= {one.name for one in node.names}
    assert not imported & {path.stem for path in EXAMPLES.glob("*.py")}
    assert "smoke" not in text
    signature = inspect.signature(example(name).main)
    assert list(signature.parameters) == ["argv"]
    assert signature.parameters["argv"].default is None
    assert signature.return_annotation == "int"


@pytest.mark.parametrize("name", [*NAMES, *RECIPES])
def test_the_help_says_what_is_downloaded_how_large_it_is_and_how_long_it_takes(name, run):
    said = run(name, "--help").stdout
    assert (NAMES | RECIPES)[name] in said
    assert "--reference" in said or name in RECIPES
    costs = [line for line in said.splitlines() if line.startswith(("Downloads", "Time"))]
    assert len(costs) == 2
    assert all("(estimate" in line for line in costs)
    assert " GB" in said[said.index("Downloads") :]
    assert "GPU" in said[said.index("Time") :]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_given_wrong_is_told_in_one_line(name, run, material, tmp_path):
    def refused(*arguments):
        said = run(name, *arguments, status=2).stderr
        lines = [line for line in said.splitlines() if line and not line.startswith("Loading ")]  # transformers' bar
        assert len(lines) == 1, said
        assert ": error: " in lines[0]
        return lines[0]

    assert "--reference" in refused()
    out = ("-o", tmp_path / "out")
    missing = tmp_path / "missing.safetensors"
    assert str(missing) in refused(*required(name, material, reference=missing), *out)
    if name != "vslerp_unclip":
        other = material.image_reference if name in OF_TEXTS else material.text_reference
        assert "lie in different places" in refused(*required(name, material, reference=other), *out)
    if name not in ("caption_reward", "compare_models"):
        model = tmp_path / "no-model"
        said = refused(*required(name, material, model=model), *out)
        assert ("glide_text2im" if name == "glide" else str(model)) in said
    assert not list((tmp_path / "out").glob("*.html"))


@pytest.mark.slow
def test_an_example_runs_as_a_process(material, tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(EXAMPLES.parent)}

    def process(*arguments):
        command = [sys.executable, str(EXAMPLES / "compare_models.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)

    assert process("--help").returncode == 0
    done = process("one=missing", "--reference", "missing.safetensors", "-o", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert process(*required("compare_models", material), "-o", tmp_path).returncode == 0
    assert (tmp_path / "report.html").is_file()
