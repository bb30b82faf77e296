"""Figures over the number of samples, on real embeddings: which move with it, and how many samples a verdict takes.

1,803 CLIP ViT-B/32 image embeddings, exact repeats dropped. In every run they are split at random: one half is the
reference, and N rows of the other half are the samples. So nothing differs, and every difference is chance or a bias of
the figure. The second set is the same samples drawn to their mean by a twentieth: more typical, less varied.
Prints Markdown tables; `--pictures DIR` draws them.

The embeddings are no part of the package. They are looked for in the folder that CLIPCONFORMITY_DATA names, else in
../shared/data beside the repository.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import clipconformity as cc
from clipconformity import functional as f
from clipconformity import plots
from clipconformity.data import read_embeddings
from clipconformity.evaluation.results import judge
from clipconformity.stream.stream import Needs, Stream

FOLDER = Path(os.environ.get("CLIPCONFORMITY_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
IMAGES = "vitb32-images-1803.pt"
SIZES = (25, 50, 100, 200, 400, 800)
DRAWN = 0.95
"""What is left of the distance to the mean in the second set."""
STEADY = ("typicality shift", "variety ratio", "CMMD, unbiased", "conformity KL (nats)")
MOVING = ("CMMD as published", "Frechet distance", "Vendi score", "coverage")

Figures = dict[str, float]


def measure(rows: Tensor, reference: Tensor, fitted: cc.ReferenceSet) -> Figures:
    """Every figure of one draw."""
    stream = Stream.open_against(fitted, Needs(rows=True, conformity=True, reference=True))
    stream.update(rows)
    contrast = stream.contrast("benchmark")
    verdicts = judge(contrast)
    halves = {"typicality": contrast.typicality_shift.interval(), "variety": contrast.variety_interval}
    found = {f"{name} half-width": (high - low) / 2 for name, (low, high) in halves.items()}
    found |= {
        f"{name} {word}": float(one.outcome == word) for name, one in verdicts.items() for word in ("same", "undecided")
    }
    found |= {
        f"{name} right": float(verdicts[name].outcome == word)
        for name, word in (("typicality", "more"), ("variety", "less"))
    }
    return found | {
        "typicality shift": verdicts["typicality"].effect,
        "variety ratio": verdicts["variety"].effect,
        "CMMD, unbiased": float(f.cmmd(rows, reference, unbiased=True)),
        "CMMD as published": float(f.cmmd(rows, reference)),
        "conformity KL (nats)": float(f.conformity_kl(f.conformity(rows, fitted), fitted.conformities)),
        "Frechet distance": float(f.frechet_distance(rows, reference)),
        "Vendi score": float(f.vendi_score(rows)),
        "coverage": float(f.prdc(rows, reference).coverage),
    }


def run(images: Tensor, runs: int, change: Callable[[Tensor], Tensor]) -> dict[int, list[Figures]]:
    """Split, draw and measure, `runs` times at each size."""
    found: dict[int, list[Figures]] = {size: [] for size in SIZES}
    for number in range(runs):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(number))
        reference, pool = images[order[: len(images) // 2]], change(images[order[len(images) // 2 :]])
        fitted = cc.ReferenceSet.fit(reference, modality="image")
        for size in SIZES:
            found[size].append(measure(pool[:size], reference, fitted))
        print(f"run {number + 1} of {runs}", file=sys.stderr)
    return found


def spread(runs: Sequence[Figures], name: str) -> tuple[float, float, float]:
    """Mean, and the range of the middle 90% of the runs."""
    values = torch.tensor([one[name] for one in runs], dtype=torch.float64)
    low, high = values.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64))
    return float(values.mean()), float(low), float(high)


def figures_table(found: dict[int, list[Figures]]) -> str:
    """Mean and range of every figure at every size."""
    lines = ["| N | " + " | ".join((*STEADY, *MOVING)) + " |", "|" + "---|" * (1 + len(STEADY) + len(MOVING))]
    for size, runs in found.items():
        cells = [spread(runs, name) for name in (*STEADY, *MOVING)]
        lines.append(
            f"| {size} | " + " | ".join(f"{mean:.3g} [{low:.3g}, {high:.3g}]" for mean, low, high in cells) + " |"
        )
    return "\n".join(lines)


def verdicts_table(equal: dict[int, list[Figures]], drawn: dict[int, list[Figures]]) -> str:
    """Half-widths of intervals, and how often each verdict is decided."""
    lines = [
        "| N | typicality: half-width | same | undecided | variety: half-width | same | undecided "
        "| more typical found | less varied found |",
        "|" + "---|" * 9,
    ]
    for size in SIZES:
        cells = [str(size)]
        for name in ("typicality", "variety"):
            cells.append(f"{spread(equal[size], f'{name} half-width')[0]:.3f}")
            cells += [f"{spread(equal[size], f'{name} {word}')[0]:.0%}" for word in ("same", "undecided")]
        cells += [f"{spread(drawn[size], f'{name} right')[0]:.0%}" for name in ("typicality", "variety")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_figures(found: dict[int, list[Figures]], names: Sequence[str], path: Path) -> None:
    """Draw figures over the number of samples, a panel each; bars are the middle 90% of the runs."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(8.4, 5.6), layout="constrained")
    for ax, name in zip(axes.flat, names, strict=True):
        mean, low, high = zip(*(spread(found[size], name) for size in SIZES), strict=True)
        plots.series(mean, low, high, steps=SIZES, quantity=name, modality="image", ax=ax)
        ax.set_xscale("log")
        ax.set_xticks(SIZES, [str(size) for size in SIZES])
        ax.minorticks_off()
        ax.set_xlabel("number of samples")
    plots.save(figure, path)


def draw_verdicts(equal: dict[int, list[Figures]], drawn: dict[int, list[Figures]], path: Path) -> None:
    """Draw how often each verdict is decided over the number of samples."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.4), layout="constrained", sharey=True)
    shown = (
        ("nothing differs: share of the runs that say same", equal, "same"),
        ("drawn to the mean by a twentieth: share that find it", drawn, "right"),
    )
    for ax, (title, found, word) in zip(axes, shown, strict=True):
        for number, name in enumerate(("typicality", "variety")):
            look = plots.run_look(number, 2, None)
            shares = [spread(found[size], f"{name} {word}")[0] for size in SIZES]
            ax.plot(SIZES, shares, color=look.color, linestyle=look.line, marker=look.marker, label=name)
        ax.set_title(title, loc="left", fontsize="medium")
        ax.set_xscale("log")
        ax.set_xticks(SIZES, [str(size) for size in SIZES])
        ax.minorticks_off()
        ax.set_xlabel("number of samples")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of the runs")
    axes[0].legend(frameon=False)
    plots.save(figure, path)


def main() -> int:
    """Run both sets, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40, help="random splits (default: %(default)s)")
    parser.add_argument("--pictures", type=Path, help="folder to draw the curves to")
    options = parser.parse_args()
    images = read_embeddings(FOLDER / IMAGES).embeddings.unique(dim=0)
    print(f"{len(images)} different images, halves of {len(images) // 2} and {len(images) - len(images) // 2}\n")
    equal = run(images, options.runs, lambda rows: rows)
    drawn = run(images, options.runs, lambda rows: rows.mean(0) + DRAWN * (rows - rows.mean(0)))
    print(figures_table(equal))
    print()
    print(verdicts_table(equal, drawn))
    if options.pictures:
        draw_figures(equal, STEADY, options.pictures / "sizes-steady.png")
        draw_figures(equal, MOVING, options.pictures / "sizes-moving.png")
        draw_verdicts(equal, drawn, options.pictures / "sizes-verdicts.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
