"""One run with all metrics of a stream, beside the peers' definitions run one after the other on the same embeddings.

Each runs in a process of its own: seconds of processor time, and the peak of its memory above what the embeddings take.
What grows with the square or the cube of N is timed on fewer rows and scaled, and says so; its memory is that of the
matrices which the published code holds.

- CMMD: the Gaussian kernel over all pairs, as published, here in blocks.
- Vendi score: the eigenvalues of the N x N matrix of cosines, as published.
- PRDC: precision, recall, density and coverage by whole matrices of distances, as published, beside `functional.prdc`.
- FID: torchmetrics' on the same features.
- KID: torchmetrics' on the same features, with the cubic kernel over 100 subsets of 1,000 rows that is its default.

None of the peers gives an uncertainty. The one run gives cosine MMD with its halves, CMMD, Vendi, RKE and Frechet with
intervals, noise floors and values at equal N, beside the core of every score.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

OWN = ("one_run", "own_prdc")
METRICS = ("cosine_mmd", "cmmd", "vendi", "frechet")
BATCH = 1000


class Found(NamedTuple):
    """What one of them took and gave."""

    seconds: float
    values: dict[str, float]
    gigabytes: float | None = None
    """Of memory that the published code needs, where it was not run in full."""
    how: str = "in full"


def one_run(rows: Tensor, reference: Tensor, part: int) -> Found:
    from clipconformity import ReferenceSet
    from clipconformity.evaluation.scoring import choose_read_outs, read_figures
    from clipconformity.stream.stream import Needs, Stream

    start = time.process_time()
    built = ReferenceSet.fit(reference.split(BATCH))
    chosen = choose_read_outs(METRICS)
    needs = Needs()
    for one in chosen:
        needs = needs.union(one.needs)
    stream = Stream.open_against(built, needs)
    for batch in rows.split(BATCH):
        stream.update(batch)
    figures = read_figures(chosen, stream, 1000).figures
    names = ("cosine_mmd", "cosine_mmd_typicality", "cosine_mmd_variety", "cmmd", "vendi", "frechet")
    return Found(time.process_time() - start, {name: float(figures[name].value or 0) for name in names})


def cmmd(rows: Tensor, reference: Tensor, part: int) -> Found:
    sides = [x / x.norm(dim=1, keepdim=True) for x in (rows, reference)]
    start, means = time.process_time(), []
    for first, second in ((0, 0), (1, 1), (0, 1)):
        some, total = sides[first][:part], 0.0
        for block in some.split(BATCH):
            total += float(torch.expm1((block @ sides[second].T - 1) / 100).double().sum())
        means.append(total / (len(some) * len(sides[second])))
    count = len(rows)
    taken = (time.process_time() - start) * count / min(part, count)
    how = "in full" if part >= count else f"{part} rows timed, scaled"
    matrices = 4 * (len(rows) ** 2 + len(reference) ** 2 + len(rows) * len(reference)) / 1e9
    return Found(taken, {"cmmd": 1000 * (means[0] + means[1] - 2 * means[2])}, matrices, how)


def vendi(rows: Tensor, reference: Tensor, part: int) -> Found:
    some = rows[:part] / rows[:part].norm(dim=1, keepdim=True)
    start = time.process_time()
    values = torch.linalg.eigvalsh(some @ some.T / len(some)).clamp_min(1e-12)
    value = float((-(values * values.log()).sum()).exp())
    taken = (time.process_time() - start) * (len(rows) / len(some)) ** 3
    how = "in full" if part >= len(rows) else f"{part} rows timed, scaled by the cube"
    return Found(taken, {f"vendi of {len(some)}": value}, 4 * len(rows) ** 2 / 1e9, how)


def kid(rows: Tensor, reference: Tensor, part: int) -> Found:
    from torchmetrics.image.kid import KernelInceptionDistance

    start = time.process_time()
    metric = KernelInceptionDistance(feature=torch.nn.Identity(), subset_size=min(1000, len(rows)))
    for real, side in ((True, reference), (False, rows)):
        for batch in side.split(BATCH):
            metric.update(batch, real=real)
    mean, spread = metric.compute()
    return Found(time.process_time() - start, {"kid": float(mean), "its spread": float(spread)})


def fid(rows: Tensor, reference: Tensor, part: int) -> Found:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(torch.nn.Module):
        num_features = rows.shape[1]

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    start = time.process_time()
    metric = FrechetInceptionDistance(feature=Features(), input_img_size=(rows.shape[1], 1, 1), normalize=True)
    for real, side in ((True, reference), (False, rows)):
        for batch in side.split(BATCH):
            metric.update(batch.double()[:, :, None, None], real=real)
    return Found(time.process_time() - start, {"frechet": float(metric.compute())})


def own_prdc(rows: Tensor, reference: Tensor, part: int) -> Found:
    from clipconformity.functional import prdc as compute_prdc

    some, others = rows[:part], reference[:part]
    start = time.process_time()
    found = compute_prdc(some, others)
    taken = (time.process_time() - start) * (len(rows) / len(some)) ** 2
    return Found(taken, {name: float(value) for name, value in found._asdict().items()}, how=_scaled(rows, part))


def prdc(rows: Tensor, reference: Tensor, part: int) -> Found:
    """Take the published formulas on whole matrices of distances, by scikit-learn as in the package."""
    from sklearn.metrics import pairwise_distances

    some, others = rows[:part].numpy(), reference[:part].numpy()
    start = time.process_time()
    mine, theirs = (np.partition(pairwise_distances(side), 5, axis=1)[:, 5] for side in (some, others))
    between = pairwise_distances(others, some)
    values = {
        "precision": float((between < theirs[:, None]).any(0).mean()),
        "recall": float((between < mine[None, :]).any(1).mean()),
        "density": float((between < theirs[:, None]).sum(0).mean() / 5),
        "coverage": float((between.min(1) < theirs).mean()),
    }
    taken = (time.process_time() - start) * (len(rows) / len(some)) ** 2
    return Found(taken, values, 4 * len(rows) ** 2 / 1e9, _scaled(rows, part))


def _scaled(rows: Tensor, part: int) -> str:
    return "in full" if part >= len(rows) else f"{part} rows timed, scaled by the square"


RUNS: dict[str, tuple[str, Callable[[Tensor, Tensor, int], Found]]] = {
    "one_run": ("clipconformity, one run with intervals", one_run),
    "cmmd": ("CMMD over all pairs", cmmd),
    "vendi": ("Vendi score from N x N", vendi),
    "own_prdc": ("clipconformity, PRDC", own_prdc),
    "prdc": ("PRDC over all pairs", prdc),
    "fid": ("FID of torchmetrics", fid),
    "kid": ("KID of torchmetrics, of subsets", kid),
}


def memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def alone(options: argparse.Namespace) -> None:
    """Run one of them, and print what it took as JSON."""
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -1.5, options.dim)
    mixing = torch.linalg.qr(torch.randn(options.dim, options.dim, generator=generator))[0]
    sides = [
        (torch.randn(options.count, options.dim, generator=generator) * spread * width) @ mixing + 0.2
        for width in (0.95, 1.0)
    ]
    before = memory()
    found = RUNS[options.only][1](sides[0], sides[1], options.part)
    print(json.dumps(found._asdict() | {"memory": memory() - before}))


def draw(taken: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """Draw the seconds of each as bars on a log axis: full where it ran so, hatched where it was scaled."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.subplots()
    for place, (name, one) in enumerate(reversed(taken.items())):
        own, whole = name in OWN, one["how"] == "in full"
        axes.barh(place, one["seconds"], color="#0072b2" if own else "#bbbbbb", hatch=None if whole else "//",
                  edgecolor="white", linewidth=0)  # fmt: skip
        reported = f"{one['seconds']:,.{0 if one['seconds'] >= 100 else 1}f} s" + ("" if whole else " (scaled)")
        axes.text(one["seconds"] * 1.15, place, reported, va="center", fontsize=9)
    axes.set_yticks(range(len(taken)), [RUNS[name][0] for name in reversed(taken)])
    axes.set_xscale("log")
    seconds = [max(one["seconds"], 0.01) for one in taken.values()]
    axes.set_xlim(min(1.0, min(seconds) / 2), max(seconds) * 40)
    axes.set_xlabel("seconds of processor time, log scale")
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def run_alone(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one of them in a process of its own, and give what it took."""
    command = [sys.executable, __file__, "--only", name]
    for option in ("count", "dim", "part", "threads"):
        command += [f"--{option}", str(getattr(options, option))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50_000, help="embeddings of either side (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="dimension (default: %(default)s)")
    parser.add_argument("--part", type=int, default=2000, help="rows timed of what is scaled (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of all (default: %(default)s)")
    parser.add_argument("--only", choices=RUNS, help="run one of them, and print JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the seconds as bars: .svg or .png")
    options = parser.parse_args()
    if options.only:
        alone(options)
        return 0
    title = f"{options.count:,} + {options.count:,} x {options.dim} float32, {options.threads} thread(s)"
    print(f"{title}.\n")
    print("| | seconds | how | memory, GB | values |")
    print("|---|---|---|---|---|")
    taken = {}
    for name, (about, _) in RUNS.items():
        one = taken[name] = run_alone(name, options)
        needed = one["memory"] if one["gigabytes"] is None else one["gigabytes"]
        values = ", ".join(f"{key} {value:.4f}" for key, value in one["values"].items())
        print(f"| {about} | {one['seconds']:.1f} | {one['how']} | {needed:.2f} | {values} |", flush=True)
    if options.plot is not None:
        draw(taken, title, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
