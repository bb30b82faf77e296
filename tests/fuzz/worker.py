"""Runs cases in a process of its own, which a case that takes more than ten seconds ends."""

from __future__ import annotations

import argparse
import faulthandler
import json
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

from readers import READERS, run_case

SECONDS = 10
"""Of computing; and six times as many on the clock, since others may work on the machine."""
MEMORY = 2 * 2**30
"""Bytes that a case may hold beyond what the process held before."""
RESERVE = 2**32
"""Address space beyond that, so that no case takes the machine down."""


def held(name: str) -> int:
    """A figure of this process's memory, in bytes: ``VmHWM`` is the most that was held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name}")


def forget_most() -> None:
    """Begin the count of the most memory held anew."""
    Path("/proc/self/clear_refs").write_text("5")


class Watch:
    """Time and memory of what is done within; too much time ends the process."""

    seconds, bytes = 0.0, 0

    def __enter__(self) -> None:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)
        forget_most()
        self.before, self.started = held("VmRSS"), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds, self.bytes = time.process_time() - self.started, held("VmHWM") - self.before
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def main() -> int:
    """Run cases, and tell in a line of JSON what became of them."""
    import resource  # which not every system has

    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--count", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    faulthandler.register(
        signal.SIGPROF, chain=True
    )  # and then it ends the process, as it does where nobody handles it
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in READERS}
    slowest, largest, failures = (0.0, -1), (0, -1), []
    with tempfile.TemporaryDirectory() as place:
        for number in range(len(READERS)):  # what loads when first used is no case's time or memory
            run_case(number, -1, Path(place) / "w")
        used = held("VmSize")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY + RESERVE, -1))
        for number in range(options.start, options.start + options.count):
            print(f"case {number}", file=sys.stderr, flush=True)  # noqa: T201 - of a process that ends, the last is shown
            watch = Watch()
            try:
                outcome = run_case(number, options.seed, Path(place) / "c", watch)
            except BaseException:
                outcome = "FAILED"
                failures.append({"case": number, "error": traceback.format_exc()[-1500:]})
            slowest, largest = max(slowest, (watch.seconds, number)), max(largest, (watch.bytes, number))
            if watch.bytes > MEMORY:
                failures.append({"case": number, "error": f"held {watch.bytes / 2**30:.2f} GiB"})
            outcomes[list(READERS)[number % len(READERS)]][outcome] += 1
    reported = {"outcomes": outcomes, "seconds": slowest, "bytes": largest, "failures": failures}
    print(json.dumps(reported))  # noqa: T201
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
