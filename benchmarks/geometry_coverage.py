"""Coverage of the 95% intervals of the geometry, by simulation.

Both modalities are turned ellipsoids off the origin, apart along two coordinates, in pairs that are correlated:
Gaussian (light tails) or with the length of each row from Student's t with 5 degrees of freedom (heavy tails). Thin
shell, ellipsoid, offset and gap are judged by the population's values; tilt, separability and loss by what sets of the
same size have on average, the mean of the runs. Prints a Markdown table of the shares of intervals that cover. Each run
gives two of thin shell, ellipsoid, offset and tilt, of the images and of the texts, four of the gap, and two of the
loss: of its difference from that at alpha 0, at the shifts of -0.25 and 0.25 that the property turns on.

The loss has runs and sizes of its own.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from clipconformity.evaluation.geometry import compute_gap_figures, six_properties
from clipconformity.functional import nt_xent
from clipconformity.functional.sweep import Pairs, jackknife_interval, left_out_losses_at

DEGREES = 5.0
ALIKE = 0.8
LOGIT_SCALE = 30.0
GAPS = 4
LARGE = 100_000
"""Rows of the simulation that the population's shell and gap are taken from."""
NAMES = ("thin shell", "ellipsoid", "offset", "gap", "tilt", "linear separability", "loss")


class Case(NamedTuple):
    """A line of the table."""

    dim: int
    tails: str
    count: int


class Found(NamedTuple):
    """A figure of one run: what its interval is of, and the ends."""

    value: float
    low: float
    high: float


class Model:
    """What rows are drawn from."""

    def __init__(self, dim: int, tails: str) -> None:
        generator = torch.Generator().manual_seed(dim)
        spectrum = torch.logspace(0, -1.5, dim, dtype=torch.float64)
        self.spectrum = spectrum / spectrum.sum()  # of trace 1
        turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
        self.root = self.spectrum.sqrt() * turn
        away = torch.randn(dim, generator=generator, dtype=torch.float64)
        apart = torch.zeros(dim, dtype=torch.float64)
        apart[:2] = 1.25 / math.sqrt(dim)
        self.means = [away / away.norm() + sign * apart for sign in (1, -1)]
        self.tails = tails

    def rows(self, count: int, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Pairs of images and texts ``(count, D)``."""
        dim = len(self.spectrum)
        first, other = (torch.from_numpy(draw.standard_normal((count, dim))) for _ in range(2))
        noise = [first, ALIKE * first + math.sqrt(1 - ALIKE**2) * other]
        if self.tails == "heavy":
            noise = [x / torch.from_numpy(np.sqrt(draw.chisquare(DEGREES, (count, 1)) / DEGREES)) for x in noise]
        image, text = (mean + x @ self.root.T for mean, x in zip(self.means, noise, strict=True))
        return image, text

    def truths(self) -> dict[str, float]:
        """The population's figures, by name and modality."""
        scale = DEGREES / (DEGREES - 2) if self.tails == "heavy" else 1.0
        draw, parts = np.random.default_rng(0), []
        for _ in range(LARGE // 2000):
            image, text = self.rows(2000, draw)
            distance = torch.linalg.vector_norm(image - self.means[0], dim=1)
            units = [torch.nn.functional.normalize(x).mean(0) for x in (image, text)]
            parts.append((distance, units[0] - units[1]))
        distance = torch.cat([one[0] for one in parts])
        axes = float(1 / self.spectrum.square().sum())
        gap = float(torch.stack([one[1] for one in parts]).mean(0).norm())
        truths = {f"gap of {number}": gap for number in range(GAPS)}
        for modality, mean in zip(("image", "text"), self.means, strict=True):
            truths[f"thin shell of {modality}"] = float(distance.mean().square() / distance.var())
            truths[f"ellipsoid of {modality}"] = axes
            truths[f"offset of {modality}"] = float(mean.norm()) / math.sqrt(scale)
        return truths


def simulate(case: Case, seed: int) -> dict[str, Found]:
    """Draw a set of pairs and measure it, and the gap of further sets, which costs little."""
    torch.set_num_threads(1)
    model, draw = Model(case.dim, case.tails), np.random.default_rng(seed)
    image, text = model.rows(case.count, draw)
    found = {
        f"{p.name} of {p.modality}": Found(p.value, p.low, p.high) for p in six_properties(image, text, paired=False)
    }
    for number in range(GAPS):
        image, text = model.rows(case.count, draw)
        gap = compute_gap_figures(image, text, paired=True)
        found[f"gap of {number}"] = Found(gap["gap"], gap["low"], gap["high"])
    return found


def simulate_loss(case: Case, seed: int) -> dict[str, Found]:
    """Draw a set of pairs and find their loss at both shifts, as ``shift_sweep`` does, without its divergences."""
    torch.set_num_threads(1)
    pairs = Pairs(*Model(case.dim, case.tails).rows(case.count, np.random.default_rng(seed)))
    alphas = (0.0, -0.25, 0.25)
    loss = torch.stack([nt_xent(*pairs.shift(alpha, alpha), LOGIT_SCALE) for alpha in alphas])
    left = torch.stack([left_out_losses_at(pairs, alpha, LOGIT_SCALE) for alpha in alphas])
    value = loss - loss[0]
    low, high = jackknife_interval(left - left[0], value, 0.95, -math.inf)
    return {f"loss of {alphas[n]}": Found(*(float(x[n]) for x in (value, low, high))) for n in (1, 2)}


def covered(runs: list[dict[str, Found]], truths: dict[str, float]) -> dict[str, float]:
    """Share of the intervals that hold the truth, else the mean of all runs, by name."""
    held: dict[str, list[bool]] = {}
    for key in runs[0]:
        truth = truths.get(key, float(np.mean([run[key].value for run in runs])))
        held.setdefault(key.split(" of ")[0], []).extend(run[key].low <= truth <= run[key].high for run in runs)
    return {name: float(np.mean(those)) for name, those in held.items()}


def line(case: Case, options: argparse.Namespace, truths: dict[str, float], pool: Executor) -> str:
    """One line of the table."""
    runs = options.runs if case.dim < 256 else options.large_runs
    shares = covered(list(pool.map(simulate, [case] * runs, range(runs))), truths)
    if case.count in options.loss_sizes and options.loss_runs:
        runs = options.loss_runs
        shares |= covered(list(pool.map(simulate_loss, [case] * runs, range(runs))), truths)
    cells = [f"{shares[name]:.0%}" if name in shares else "" for name in NAMES]
    return "| " + " | ".join([*map(str, case), *cells]) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="runs for each line (default: %(default)s)")
    parser.add_argument("--large-runs", type=int, default=30, help="the same from 256 dimensions on (default: 30)")
    parser.add_argument(
        "--loss-runs", type=int, default=40, help="the same for the loss; 0 leaves it out (default: 40)"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[25, 60, 200, 1000])
    parser.add_argument("--loss-sizes", type=int, nargs="*", default=[25, 60, 200, 1000])
    parser.add_argument("--dims", type=int, nargs="+", default=[32, 512])
    parser.add_argument("--tails", nargs="+", default=["light", "heavy"], choices=["light", "heavy"])
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    start = time.perf_counter()
    print("| D | tails | N | " + " | ".join(NAMES) + " |")
    print("|---" * (3 + len(NAMES)) + "|", flush=True)
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        for dim in options.dims:
            for tails in options.tails:
                truths = Model(dim, tails).truths()
                for count in options.sizes:
                    print(line(Case(dim, tails, count), options, truths, pool), flush=True)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
