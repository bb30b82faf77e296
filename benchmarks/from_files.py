"""What reading costs: a reference and a score of rows in a `.npy` file, beside the same of the rows in memory.

Each pair is timed in turns in one process, after one run of either for what is imported and cached; shown are the
medians of both, and that of their ratios. The file is in the page cache, so that it is the reading that is measured and
not the disk. `build_reference` and `score` do all that the commands do, but for parsing and writing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipconformity import ReferenceSet
from clipconformity.evaluation import build_reference, embedding_source, score
from clipconformity.evaluation.sources import Source, SourceBatch
from clipconformity.provenance import Provenance

BATCH = 4096


def clock(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_memory(rows: Tensor, names: list[str]) -> Source:
    """Give rows and their names as a file gives them."""
    batches = (
        SourceBatch(part, names[start : start + BATCH], None, placed=True)
        for start, part in zip(range(0, len(rows), BATCH), rows.split(BATCH), strict=True)
    )
    return Source(batches, len(rows), Provenance(None, None, None))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="rows of the file (default: %(default)s)")
    parser.add_argument("--dim", type=int, default=512, help="dimension (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timings of each (default: %(default)s)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(options.count, options.dim, generator=generator) * torch.logspace(0, -1.5, options.dim) + 0.2
    names = [f"rows.npy:{row}" for row in range(len(rows))]
    reference = ReferenceSet.fit(torch.randn(10_000, options.dim, generator=generator) + 0.2)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.npy")
        np.save(file, rows.numpy())
        cases = {
            "reference": (
                lambda: build_reference(embedding_source([file])),
                lambda: build_reference(in_memory(rows, names)),
            ),
            "score": (
                lambda: score(embedding_source([file]), reference, resamples=1),
                lambda: score(in_memory(rows, names), reference, resamples=1),
            ),
        }
        print(
            f"{options.count:,} x {options.dim} float32, {options.threads} thread(s), torch {torch.__version__}, "
            f"load before {os.getloadavg()[0]:.1f}.\n"
        )
        print("| | from the file, s | from memory, s | ratio |\n|---|---|---|---|")
        for name, pair in cases.items():
            for function in pair:
                function()
            found = [[clock(function) for function in pair] for _ in range(options.repeats)]
            file_time, memory_time = (statistics.median(one) for one in zip(*found, strict=True))
            ratio = statistics.median(one / two for one, two in found)
            print(f"| {name} | {file_time:.2f} | {memory_time:.2f} | {ratio:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
