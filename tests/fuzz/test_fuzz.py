"""Damaged inputs of every kind end in a declared error of one line, soon, and in little memory.

``CLIPCONFORMITY_FUZZ`` is the number of cases: few beside the other tests, and a minute of them in ``make test-fuzz``.
A case depends on the seed and its number alone: ``python tests/fuzz/worker.py --start NUMBER`` runs one again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = int(os.environ.get("CLIPCONFORMITY_FUZZ", "72"))
SEED = int(os.environ.get("CLIPCONFORMITY_FUZZ_SEED", "0"))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux tells it")


def run(worker: Path, *arguments: str, timeout: float) -> tuple[int, str, str]:
    command = [sys.executable, str(worker), *arguments]
    quiet = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, timeout=timeout, check=False)
    return done.returncode, done.stdout, done.stderr


def test_damaged_inputs_end_in_a_declared_error_soon_and_in_little_memory():
    code, out, err = run(HERE / "worker.py", "--seed", str(SEED), "--count", str(CASES), timeout=120 + 2 * CASES)
    assert out, f"it hung, ran out of memory, or crashed:\n{err[-3000:]}"
    reported = json.loads(out)
    assert reported["failures"] == []
    assert code == 0
    assert sum(sum(found.values()) for found in reported["outcomes"].values()) == CASES
    # Damage is neither always fatal nor always harmless: the cases reach behind the first check.
    if CASES >= 500:
        for name, found in reported["outcomes"].items():
            assert found.get("ValueError", 0) > 0, name
            assert found.get("read", 0) > 0, name


FAULTS = {
    "an undeclared error": ("raise KeyError('no such')", "KeyError: 'no such'"),
    "two lines": ("raise ValueError('one\\ntwo')", "more than one line"),
    "memory": ("held = b'1' * (2200 * 2**20)", "held 2.1"),
    "a hang that waits": ("__import__('time').sleep(60)", ""),
    "a hang that computes": ("sum(range(10**12))", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_the_fuzzer_itself_sees(kind, tmp_path):
    fault, message = FAULTS[kind]
    for path in HERE.glob("*.py"):
        (tmp_path / path.name).write_text(path.read_text())
    text = (tmp_path / "readers.py").read_text()
    spot = "            act()\n"
    assert text.count(spot) == 1
    faulty = f"            if seed >= 0:\n                {fault}\n            act()\n"
    (tmp_path / "readers.py").write_text(text.replace(spot, faulty))
    worker = (tmp_path / "worker.py").read_text()
    assert "SECONDS = 10\n" in worker
    if kind.startswith("a hang"):
        (tmp_path / "worker.py").write_text(worker.replace("SECONDS = 10\n", "SECONDS = 1\n"))
    code, out, err = run(tmp_path / "worker.py", "--start", "1", timeout=120)
    assert code != 0
    assert message in out
    assert not kind.startswith("a hang") or (out == "" and "readers.py" in err)
