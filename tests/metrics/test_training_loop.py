"""Metrics in a training loop: Lightning, accelerate, and the wrappers of torchmetrics."""

from __future__ import annotations

import ast
import copy
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import ellipsoid_rows
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.wrappers import BootStrapper, MetricTracker

import clipconformity as cc
from clipconformity.metrics.collection import _Core

DIM = 8
SCALARS = ("SelfConformity", "ConformityKL", "FrechetDistance")


@pytest.fixture(scope="module")
def reference() -> cc.ReferenceSet:
    return cc.ReferenceSet.fit(ellipsoid_rows(400, DIM, torch.Generator().manual_seed(1)))


@pytest.fixture(scope="module")
def epochs() -> list[Tensor]:
    """Rows of two epochs that differ."""
    return [ellipsoid_rows(120, DIM, torch.Generator().manual_seed(2 + n), offset=1.1 + 0.4 * n) for n in range(2)]


def make(name: str, reference: cc.ReferenceSet):
    return cc.SelfConformity(embed_dim=DIM) if name == "SelfConformity" else getattr(cc, name)(reference)


def fed(metric, rows: Tensor, size: int = 50):
    for batch in rows.split(size):
        metric.update(batch)
    return metric


def numbers(values) -> dict[str, float]:
    return {name: float(value) for name, value in values.items()}


def train(make_metrics, epochs: list[Tensor], folder, where: str, call: str) -> list[dict[str, float]]:
    """What Lightning has logged at the end of each of two epochs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties at import
        lightning = pytest.importorskip("lightning")
    logged = []

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(DIM, 1)
            self.metrics = make_metrics()

        def note(self, batch: Tensor) -> None:
            getattr(self.metrics, call)(epochs[self.current_epoch][batch])
            log = self.log_dict if isinstance(self.metrics, cc.ConformityMetrics) else self.log
            log(*(() if log == self.log_dict else ("x",)), self.metrics, on_step=False, on_epoch=True)

        def training_step(self, batch: Tensor, _) -> Tensor:
            if where == "training":
                self.note(batch)
            return self.layer(epochs[0][batch]).square().mean()

        def validation_step(self, batch: Tensor, _) -> None:
            if where == "validation":
                self.note(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    class Note(lightning.Callback):
        def keep(self, trainer, *_) -> None:
            if not trainer.sanity_checking:
                logged.append(numbers(trainer.callback_metrics))

        on_train_epoch_end = keep if where == "training" else lightning.Callback.on_train_epoch_end
        on_validation_end = keep if where == "validation" else lightning.Callback.on_validation_end

    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        callbacks=[Note()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = DataLoader(torch.arange(120), batch_size=50)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*|.*number of training batches.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)  # of Lightning's own call of torch
        trainer.fit(Module(), loader, loader)
    # A hook at the end of the training epoch comes before Lightning reduces; the last is in the trainer.
    return [*logged[1:], numbers(trainer.callback_metrics)] if where == "training" else logged


@pytest.mark.parametrize("where", ["training", "validation"])
@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize("name", SCALARS)
def test_a_logged_metric_is_that_of_each_epoch_alone(name, call, where, reference, epochs, tmp_path):
    found = train(lambda: make(name, reference), epochs, tmp_path, where, call)
    expected = [float(fed(make(name, reference), rows).compute()) for rows in epochs]
    assert abs(expected[0] - expected[1]) > 0.01
    assert found[-1]["x"] == pytest.approx(expected[1], rel=1e-6)
    if where == "validation":
        assert [one["x"] for one in found] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("where", ["training", "validation"])
@pytest.mark.parametrize("intervals", [False, True])
def test_a_logged_collection_is_that_of_each_epoch_alone(intervals, where, reference, epochs, tmp_path, monkeypatch):
    monkeypatch.setattr("clipconformity.metrics.collection.RESAMPLES", 50)

    def collection():
        return cc.ConformityMetrics(reference, prefix="val_", intervals=intervals)

    found = train(collection, epochs, tmp_path, where, "update")
    expected = [numbers(fed(collection(), rows).compute()) for rows in epochs]
    assert {"val_kl_low", "val_kl_high", "val_noise_floor"} <= set(expected[0]) or not intervals
    assert found[-1] == pytest.approx(expected[1], rel=1e-6)
    if where == "validation":
        assert found[0] == pytest.approx(expected[0], rel=1e-6)


# --- accelerate ------------------------------------------------------------------------------------------------------

BEFORE = """
import accelerate
import torch
import clipconformity as cc

class encoder:
    encode_image = staticmethod(lambda batch: batch)

reference = cc.ReferenceSet.load("reference.safetensors")
loader = torch.utils.data.DataLoader(torch.load("rows.pt"), batch_size=20)
"""
STARTS = {"one process": [], "two processes": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}


@pytest.mark.slow
@pytest.mark.skipif(find_spec("accelerate") is None, reason="needs accelerate")
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_the_page_on_accelerate_counts_every_row_once(start, reference, epochs, tmp_path):
    page = Path(__file__).parents[2].joinpath("docs", "training-loop.md").read_text(encoding="utf-8")
    code = re.search(r"\n## accelerate\n.*?```python\n(.*?)```", page, re.DOTALL)[1]
    (tmp_path / "evaluate.py").write_text(f"{BEFORE}\n{code}", encoding="utf-8")
    rows = epochs[0][:101]  # two processes have unequally many
    torch.save(rows, tmp_path / "rows.pt")
    reference.save(tmp_path / "reference.safetensors")
    run = subprocess.run(
        [sys.executable, *start, "evaluate.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = ast.literal_eval(run.stdout)  # one line: only the main process prints
    expected = numbers(fed(cc.ConformityMetrics(reference), rows).compute())
    assert set(found) == set(expected)
    for name, value in expected.items():
        # Rows without groups are dealt to buckets as they come, on each process anew.
        assert found[name] == pytest.approx(value, rel=0.3 if name.endswith("_se") else 1e-5), name


# --- wrappers of torchmetrics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCALARS)
def test_a_tracker_keeps_each_step_and_finds_the_best(name, reference, epochs):
    tracker = MetricTracker(make(name, reference), maximize=False)
    for rows in epochs:
        tracker.increment()
        fed(tracker, rows)
    expected = [float(fed(make(name, reference), rows).compute()) for rows in epochs]
    assert tracker.compute_all().tolist() == pytest.approx(expected, rel=1e-6)
    best, step = tracker.best_metric(return_step=True)
    assert (best, step) == (pytest.approx(min(expected)), expected.index(min(expected)))


def test_a_tracker_keeps_the_steps_of_a_collection_apart(reference, epochs):
    metrics = cc.ConformityMetrics(reference)
    tracker = MetricTracker(metrics, maximize=[False] * len(metrics))
    for rows in epochs:
        tracker.increment()
        fed(tracker, rows)
    expected = [numbers(fed(cc.ConformityMetrics(reference), rows).compute()) for rows in epochs]
    for name, values in tracker.compute_all().items():
        assert values.tolist() == pytest.approx([one[name] for one in expected], rel=1e-6), name


@pytest.mark.parametrize("name", SCALARS)
def test_a_bootstrap_of_a_metric_lies_about_its_value(name, reference, epochs):
    torch.manual_seed(0)
    strapped = fed(BootStrapper(make(name, reference), num_bootstraps=20, sampling_strategy="multinomial"), epochs[1])
    value, found = float(fed(make(name, reference), epochs[1]).compute()), numbers(strapped.compute())
    assert found["std"] > 0
    assert abs(found["mean"] - value) < 3 * found["std"] + 0.02 * abs(value)


# --- the collection --------------------------------------------------------------------------------------------------


def test_forward_gives_the_values_of_the_batch(reference, epochs):
    metrics = cc.ConformityMetrics(reference, prefix="val_")
    for batch in epochs[0].split(60):
        expected = fed(cc.ConformityMetrics(reference, prefix="val_"), batch, 60).compute()
        assert numbers(metrics(batch)) == pytest.approx(numbers(expected), rel=1e-6)
    assert numbers(metrics.compute()) == numbers(
        fed(cc.ConformityMetrics(reference, prefix="val_"), epochs[0], 60).compute()
    )


COPIES = {"clone": lambda m: m.clone(), "deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}
MOVES = {"to": lambda m: m.to("cpu"), "half": lambda m: m.half(), "bfloat16": lambda m: m.to(torch.bfloat16)}


@pytest.mark.parametrize("change", [*COPIES.values(), *MOVES.values()], ids=[*COPIES, *MOVES])
def test_the_figures_of_a_changed_collection_still_have_one_state(change, reference, epochs):
    metrics = change(fed(cc.ConformityMetrics(reference), epochs[0]))
    assert {id(figure._core) for figure in metrics.values()} == {id(metrics._core)}
    assert metrics._core.evaluated_count.dtype == torch.float64
    fed(metrics, epochs[1])
    expected = numbers(fed(fed(cc.ConformityMetrics(reference), epochs[0]), epochs[1]).compute())
    assert numbers(metrics.compute()) == pytest.approx(expected, rel=1e-6)
    assert numbers({name: figure.compute() for name, figure in metrics.items()}) == pytest.approx(expected, rel=1e-6)


def test_all_figures_are_synchronised_once(reference, epochs, monkeypatch):
    calls = []
    sync = _Core._sync_dist
    monkeypatch.setattr(_Core, "_sync_dist", lambda self, *a, **k: calls.append(1) or sync(self, *a, **k))
    metrics = fed(cc.ConformityMetrics(reference), epochs[0])
    for metric in (metrics._core, *metrics.values()):
        metric.distributed_available_fn = lambda: True
        metric.dist_sync_fn = lambda tensor, group=None: [tensor, tensor]  # as of two ranks with the same rows
    for figure in metrics.values():
        figure.compute()
    values = metrics.compute()
    assert len(calls) == 1
    twice = fed(fed(cc.ConformityMetrics(reference), epochs[0]), epochs[0]).compute()
    assert float(values["self_conformity_mean"]) == pytest.approx(float(twice["self_conformity_mean"]), rel=1e-6)
    assert int(metrics._core.evaluated_count.sum()) == 120


def test_a_figure_says_which_values_are_better(reference):
    metrics = cc.ConformityMetrics(reference)
    assert metrics["conformity_kl"].higher_is_better is False
    assert metrics["norm_mean"].higher_is_better is None


def test_a_reset_figure_resets_all(reference, epochs):
    metrics = fed(cc.ConformityMetrics(reference), epochs[0])
    metrics.compute()
    metrics["norm_mean"].reset()
    fed(metrics, epochs[1])
    assert numbers(metrics.compute()) == numbers(fed(cc.ConformityMetrics(reference), epochs[1]).compute())
    assert all(math.isfinite(float(figure.compute())) for figure in metrics.values())
