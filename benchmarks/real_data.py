"""A run on real data: one half of 1,803 CLIP ViT-B/32 image embeddings as the reference, the rest scored against it.

The even rows are the reference. Scored are the odd rows, each of their seven classes alone, and the texts of the LVIS
class names: declared as text, which is refused, and undeclared, as if nobody had said what they are. Prints a Markdown
table; ``--json`` prints every figure.

The embeddings are no part of the package. They are looked for in the folder that CLIPCONFORMITY_DATA names, else in
../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from clipconformity.cli import main as command
from clipconformity.data import read_embeddings

FOLDER = Path(os.environ.get("CLIPCONFORMITY_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
IMAGES, NAMES, TEXTS = "vitb32-images-1803.pt", "vitb32-images-1803.txt", "vitb32-text-lvis-1203.npy"


def clipconformity(*arguments: object) -> dict[str, Any]:
    """Run a command in this process: its JSON, or its one line of refusal."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command([str(argument) for argument in arguments])
    return json.loads(out.getvalue()) if status == 0 else {"error": err.getvalue().strip().splitlines()[-1]}


def run(folder: Path, resamples: int, scratch: Path) -> dict[str, dict[str, Any]]:
    """Build the reference and score every set through the commands."""
    images = read_embeddings(folder / IMAGES).embeddings.numpy()
    # The folder of a file name is its class.
    classes = np.array([Path(name).parent.name for name in (folder / NAMES).read_text().splitlines()])
    odd = np.arange(len(images)) % 2 == 1
    reference = scratch / "reference.safetensors"
    np.save(scratch / "even.npy", images[~odd])
    clipconformity("reference", "--embeddings", scratch / "even.npy", "--modality", "image", "-o", reference)

    results = {}
    for name in ("other half", *sorted(set(classes))):
        chosen = odd if name == "other half" else odd & (classes == name)
        np.save(scratch / "samples.npy", images[chosen])
        results[name] = clipconformity(
            *("score", "--embeddings", scratch / "samples.npy", "--modality", "image"),
            *("--reference", reference, "--resamples", resamples),
        )
    texts = ("score", "--embeddings", folder / TEXTS, "--reference", reference, "--resamples", resamples)
    results["LVIS text, declared"] = clipconformity(*texts, "--modality", "text")
    results["LVIS text, undeclared"] = clipconformity(*texts)
    return results


def line(name: str, figures: dict[str, Any]) -> str:
    if "error" in figures:
        return f"| {name} | refused | | | | | | | |"
    interval = f"{figures['conformity_kl']:.3f} [{figures['kl_low']:.3f}, {figures['kl_high']:.3f}]"
    if figures["kl_is_lower_bound"]:
        interval = f"at least {figures['conformity_kl']:.1f}"
    mean = f"{figures['conformity_mean']:.4f} ± {figures['conformity_se']:.4f}"
    shift, variety = (
        f"{figures[key]:{sign}.2f} [{figures[key + '_low']:{sign}.2f}, {figures[key + '_high']:{sign}.2f}]"
        for key, sign in (("typicality_shift", "+"), ("variety_ratio", ""))
    )
    return (
        f"| {name} | {figures['count']} | {mean} | {figures['self_conformity_mean']:.4f} | {shift} | {variety} "
        f"| {figures['p_value']:.3f} | {interval} | {figures['noise_floor']:.3f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=FOLDER, help="folder of the embeddings")
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap redraws (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print every figure as JSON")
    options = parser.parse_args()
    if not (options.data / IMAGES).is_file():
        print(f"real_data: no embeddings in {options.data}; set CLIPCONFORMITY_DATA.", file=sys.stderr)
        return 2

    with tempfile.TemporaryDirectory() as scratch:
        results = run(options.data, options.resamples, Path(scratch))
    if options.json:
        print(json.dumps(results, indent=2))
        return 0
    half = results["other half"]
    print(f"Reference: {half['reference']['count']} images, self-conformity {half['reference_self_conformity']:.4f} ")
    print(f"± {half['reference_self_conformity_se']:.4f}. {options.resamples} resamples.\n")
    columns = "samples | count | conformity | self-conformity | typicality shift [95%] | variety ratio [95%] | p"
    print(f"| {columns} | KL [95%] | noise floor |")
    print("|---" * 9 + "|")
    for name, figures in results.items():
        print(line(name, figures))
    print()
    for name, figures in results.items():
        if "error" in figures:
            print(f"{name}: {figures['error']}")
        else:
            print(f"{name}: {figures['verdict']['typical']}; {figures['verdict']['varied']}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
