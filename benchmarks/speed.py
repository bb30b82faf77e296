"""Speed of update and compute, in units of one float32 Gram product of all rows.

The unit is ``rows.T @ rows``: what a matrix of second moments costs at the least in float32, on the same threads. A
case and the unit are timed in turns in one process, so that a busy machine slows both alike, and the medians of the
single ratios are shown: of processor time, which other processes disturb least, and of wall time.

- States: what a stream accumulates, without a metric class around it. "Light" is counts, bucketed sums of unit vectors,
  norms, and conformity to a reference with its histogram.
- Metrics: ``update`` of a class over all batches, and a read, which adds what waits.
- Compute: the first ``compute`` of a class whose reference has not been read out before; and what it is without the
  eigenvalue decompositions, which ``torch.linalg`` is asked for, where there are any.

``--before DIR`` times another copy of the package too, such as an older checkout, in processes of its own, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

KINDS = ("state", "fit", "metric", "compute")
DECOMPOSITIONS = ("eigh", "eigvalsh", "svd", "svdvals")


class Timing(NamedTuple):
    """Seconds of processor time and of wall time."""

    cpu: float
    wall: float


def timed(function: Callable[[], object]) -> Timing:
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return Timing(time.process_time() - cpu, time.perf_counter() - wall)


class Data(NamedTuple):
    """The rows that are timed, and those of their reference."""

    rows: Tensor
    reference_rows: Tensor
    size: int

    def batches(self) -> list[Tensor]:
        """The rows batch by batch."""
        return list(self.rows.split(self.size))

    def reference(self) -> object:
        """A reference that nothing has been read out of."""
        from clipconformity import ReferenceSet

        return ReferenceSet.fit(self.reference_rows.split(4096))


def embeddings(count: int, dim: int) -> tuple[Tensor, Tensor]:
    """Rows of a long-tailed spectrum around an offset, as CLIP's, and others of their kind."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(0, -1.5, dim)
    turn = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    draw = lambda: (torch.randn(count, dim, generator=generator) * spread) @ turn + 0.2  # noqa: E731
    return draw(), draw()


def state_cases(data: Data) -> dict[str, Callable[[], Timing]]:
    from clipconformity.stream.moments import Moments

    reference = data.reference()
    layouts = {
        "light": reference.view(),
        "raw second moment": reference.view(second_moment=True),
        "raw and unit": reference.view(second_moment=True, unit_second_moment=True),
        "raw, unit and row sample": reference.view(
            second_moment=True, unit_second_moment=True, max_samples=10_000, rows=True
        ),
    }

    def stream(layout: object) -> Timing:
        moments, batches = Moments(layout), data.batches()
        return timed(lambda: [*map(moments.update, batches), moments.flush()])

    return {name: lambda layout=layout: stream(layout) for name, layout in layouts.items()}


def fit_cases(data: Data) -> dict[str, Callable[[], Timing]]:
    from clipconformity import ReferenceSet

    return {"ReferenceSet.fit": lambda: timed(lambda: ReferenceSet.fit(data.batches()))}


def makers() -> dict[str, Callable[[object, int], object]]:
    """How each metric class is made; those of pairs are left out, which take two sets."""
    import clipconformity as cc

    compared = ("Conformity", "ConformityKL", "FrechetDistance", "GaussianLikelihood", "CosineMMD", "CMMD")
    alone = ("EmbeddingNorm", "EllipsoidGeometry", "SelfConformity", "VendiScore")
    made = {name: lambda reference, dim, name=name: getattr(cc, name)(reference) for name in compared}
    return made | {name: lambda reference, dim, name=name: getattr(cc, name)(embed_dim=dim) for name in alone}


def metric_cases(data: Data) -> dict[str, Callable[[], Timing]]:
    reference = data.reference()

    def update(make: Callable[[object, int], object]) -> Timing:
        metric, batches = make(reference, data.rows.shape[1]), data.batches()
        return timed(lambda: [*map(metric.update, batches), metric.num_samples])

    return {f"{name}.update": lambda make=make: update(make) for name, make in makers().items()}


@contextlib.contextmanager
def decompositions_counted(spent: list[Timing]) -> Iterator[None]:
    """Note the time of every decomposition."""
    own = {name: getattr(torch.linalg, name) for name in DECOMPOSITIONS}

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            found: list[object] = []
            spent.append(timed(lambda: found.append(function(*args, **options))))
            return found[0]

        return call

    try:
        for name, function in own.items():
            setattr(torch.linalg, name, counted(function))
        yield
    finally:
        for name, function in own.items():
            setattr(torch.linalg, name, function)


def compute_cases(data: Data) -> dict[str, Callable[[], Timing]]:
    def compute(make: Callable[[object, int], object], without: bool) -> Timing:
        metric = make(data.reference(), data.rows.shape[1])
        for batch in data.batches():
            metric.update(batch)
        assert metric.num_samples == len(data.rows)  # batches that wait are added, as part of the updates
        spent: list[Timing] = []
        with decompositions_counted(spent):
            whole = timed(metric.compute)
        taken = Timing(sum(one.cpu for one in spent), sum(one.wall for one in spent))
        return Timing(whole.cpu - taken.cpu, whole.wall - taken.wall) if without else whole

    cases = {}
    for name, make in makers().items():
        cases[f"{name}.compute"] = lambda make=make: compute(make, False)
        if name in ("FrechetDistance", "GaussianLikelihood", "VendiScore", "EllipsoidGeometry", "CMMD"):
            cases[f"{name}.compute but for decompositions"] = lambda make=make: compute(make, True)
    square = data.rows[: 4 * data.rows.shape[1]].double()
    square = square.T @ square
    return cases | {"one eigenvalue decomposition": lambda: timed(lambda: torch.linalg.eigh(square))}


CASES = {"state": state_cases, "fit": fit_cases, "metric": metric_cases, "compute": compute_cases}


def measure(options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Ratios to the unit by case: processor time and wall time, one pair a repeat."""
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    data = Data(*embeddings(options.count, options.dim), options.batch)
    ratios: dict[str, list[list[float]]] = {}

    def unit() -> Timing:
        return timed(lambda: data.rows.T @ data.rows)

    unit()
    for kind in options.kinds:
        cases = {name: case for name, case in CASES[kind](data).items() if options.only in name}
        for case in cases.values():  # what is imported or allocated at the first use
            case()
        for _ in range(options.repeats):
            for name, case in cases.items():
                before, found, after = unit(), case(), unit()
                pair = [2 * own / (one + two) for own, one, two in zip(found, before, after, strict=True)]
                ratios.setdefault(name, []).append(pair)
    return ratios


def measured_apart(package: Path, options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Measure a copy of the package in a process of its own."""
    names = ("count", "dim", "batch", "threads", "repeats", "only")
    command = [sys.executable, __file__, "--json", "--kinds", *options.kinds]
    for name in names:
        command += [f"--{name}", str(getattr(options, name))]
    environment = os.environ | {"PYTHONPATH": str(package)}
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def show(found: dict[str, dict[str, list[list[float]]]]) -> None:
    """Print a table: for each case its median ratios, of every copy of the package."""
    heads = [f"{name}{kind}" for name in found for kind in ("processor time", "wall time")]
    print(f"| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for case in next(iter(found.values())):
        cells = [
            f"{statistics.median(pair[side] for pair in ratios[case]):.2f}"
            for ratios in found.values()
            for side in (0, 1)
        ]
        print(f"| {case} | {' | '.join(cells)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="embeddings (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="dimension (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=500, help="rows of a batch (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="what is timed (default: all)")
    parser.add_argument("--only", default="", metavar="WORD", help="the cases that have this word in their name")
    parser.add_argument("--before", type=Path, metavar="DIR", help="another copy of the package, timed in turns")
    parser.add_argument("--rounds", type=int, default=2, help="turns with --before (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print all ratios as JSON")
    options = parser.parse_args()
    if options.json:
        print(json.dumps(measure(options)))
        return 0
    print(
        f"{options.count} x {options.dim} float32 in batches of {options.batch}, {options.threads} thread(s), "
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"load before {os.getloadavg()[0]:.1f}.\n"
    )
    if options.before is None:
        show({"": measure(options)})
        return 0
    found: dict[str, dict[str, list[list[float]]]] = {"before, ": {}, "after, ": {}}
    own = Path(__file__).resolve().parent.parent
    for _ in range(options.rounds):
        for name, package in zip(found, (options.before.resolve(), own), strict=True):
            for case, ratios in measured_apart(package, options).items():
                found[name].setdefault(case, []).extend(ratios)
    show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
