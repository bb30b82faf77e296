"""A collection on one state: each batch is encoded once, accumulated once and synchronised once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from clipconformity.encoders.protocol import Encoder
from clipconformity.functional.resampling import Interval
from clipconformity.metrics.distribution import Conformity, ConformityKL, EmbeddingNorm
from clipconformity.metrics.inputs import EncoderOrSpec
from clipconformity.metrics.pictures import format_field, list_values
from clipconformity.stream.readouts.base import Field, ReadOut
from clipconformity.stream.readouts.conformity import ConformityReadOut
from clipconformity.stream.readouts.conformity_kl import ConformityKLReadOut
from clipconformity.stream.readouts.norm import NormReadOut
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.row_sample import Labels
from clipconformity.stream.stream import Needs, Stream

__all__ = ["ConformityMetrics"]

PARTS: tuple[ReadOut, ...] = (ConformityReadOut(), ConformityKLReadOut(), NormReadOut())
INTERVALS = ("kl_low", "kl_high", "noise_floor", "p_value")
RESAMPLES = 1000


class _CoreReadOut(ReadOut):
    """The read-outs of the collection as one."""

    name = "core"
    fields = tuple(field for part in PARTS for field in part.fields)
    needs = Needs.union(PARTS[0].needs, PARTS[2].needs)

    def __init__(self, intervals: bool) -> None:
        self.intervals = intervals

    def read(self, stream: Stream) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for part in PARTS:
            found |= part.figures(stream, resamples=RESAMPLES) if self.intervals else part.read(stream)
        return {name: found[name] for name in self.names(compared=True)}

    def names(self, compared: bool) -> list[str]:
        return super().names(compared) + (list(INTERVALS) if self.intervals else [])


class _Core(ConformityKL):
    """The one state behind the collection."""

    def __init__(self, *args: Any, intervals: bool, **options: Any) -> None:
        self.__dict__["readout"] = _CoreReadOut(intervals)
        super().__init__(*args, **options)

    @property
    def _plotted(self) -> ReadOut:
        return ConformityKL.readout

    histogram = Conformity.histogram


class FigureMetric(Metric):
    """One figure of a :class:`ConformityMetrics`: a scalar metric without its own state.

    It can be used where a scalar metric is needed, such as Lightning's ``self.log``. Updates go to the collection.
    """

    _core: _Core
    is_differentiable = False
    full_state_update = False

    def __init__(self, core: _Core, field: Field) -> None:
        super().__init__(sync_on_compute=False)
        self.__dict__["_core"] = core  # not a child module: it belongs to all figures
        self.field = field

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """Whether higher values are better; None where neither is."""
        return {"higher": True, "lower": False, "neither": None}[self.field.better]

    @property
    def update_called(self) -> bool:
        """Whether the collection has been updated."""
        return bool(self._core.update_called)

    def update(self) -> None:
        """Do nothing: the collection accumulates the batches."""

    def compute(self) -> Tensor:
        """Compute the figure over all samples so far; all figures are computed and synchronised together."""
        value: Tensor = self._core.compute()[self.field.name]
        return value

    def reset(self) -> None:
        """Forget the samples of the whole collection."""
        super().reset()
        if self._core.update_called:
            self._core.reset()

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the figure, or ``val``: one or several values of ``compute``.

        Returns:
            ``(figure, axes)``.
        """
        from clipconformity import plots

        values = list_values(self.compute() if val is None else val)
        return plots.series(values, quantity=format_field(self.field), ax=ax)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        self._core._apply(fn, exclude_state)
        return super()._apply(fn, exclude_state)


class ConformityMetrics(MetricCollection):
    """Every figure of :class:`Conformity`, :class:`ConformityKL` and :class:`EmbeddingNorm` against one reference.

    A batch of images or texts is encoded once, in ``update`` and in ``forward``, and accumulated once. Each figure is
    a scalar metric under its own key, so ``self.log_dict(metrics)`` works in a LightningModule.

    Args:
        reference: Set to compare with.
        encoder: The encoder of images and texts, or a spec as ``load_encoder`` takes it.
        max_samples: Rows kept.
        allow_normalized: Accept L2-normalised embeddings.
        intervals: Also give ``kl_low``, ``kl_high``, ``noise_floor`` and ``p_value``, of 1,000 redraws: about 0.3 s.
        prefix: Put before every key.
        postfix: Put after every key.

    Raises:
        ValueError: If encoder and reference have different dimensions.

    Example:
        >>> import torch
        >>> import clipconformity as cc
        >>> g = torch.Generator().manual_seed(0)
        >>> metrics = cc.ConformityMetrics(cc.ReferenceSet.fit(torch.randn(500, 16, generator=g) + 1))
        >>> metrics.update(torch.randn(100, 16, generator=g) + 1)
        >>> sorted(metrics.compute())[:2]
        ['centered_norm_mean', 'centered_norm_q05']
    """

    _core: _Core

    def __init__(
        self,
        reference: ReferenceSet,
        *,
        encoder: EncoderOrSpec | None = None,
        max_samples: int = 10_000,
        allow_normalized: bool = False,
        intervals: bool = False,
        prefix: str | None = None,
        postfix: str | None = None,
    ) -> None:
        core = _Core(
            reference, encoder=encoder, max_samples=max_samples, allow_normalized=allow_normalized, intervals=intervals
        )
        shown = core.readout.names(compared=True)
        figures: dict[str, Metric | MetricCollection] = {
            field.name: FigureMetric(core, field) for field in core.readout.fields if field.name in shown
        }
        super().__init__(figures, prefix=prefix, postfix=postfix, compute_groups=False)
        self.__dict__["_core"] = core

    def add_module(self, name: str, module: torch.nn.Module | None) -> None:
        """Add a figure; one with the name of a method, such as ``noise_floor``, is reached by its key."""
        self._modules[name] = cast("Metric", module)

    @property
    def encoder(self) -> Encoder | None:
        """The encoder of images and texts."""
        return self._core.encoder

    @property
    def reference(self) -> ReferenceSet | None:
        """The reference set."""
        return self._core.reference

    @property
    def num_samples(self) -> int:
        """Number of evaluated samples so far, on all ranks."""
        return self._core.num_samples

    @property
    def kl_is_lower_bound(self) -> bool:
        """Whether the supports barely overlap, so that ``compute`` returns only a lower bound."""
        return self._core.is_lower_bound

    def interval(
        self, confidence: float = 0.95, *, resamples: int = RESAMPLES, generator: torch.Generator | None = None
    ) -> Interval:
        """Bootstrap interval of ``conformity_kl``; see :meth:`ConformityKL.interval`."""
        return self._core.interval(confidence, resamples=resamples, generator=generator)

    def noise_floor(
        self, quantile: float = 0.95, *, resamples: int = RESAMPLES, generator: torch.Generator | None = None
    ) -> float:
        """Noise floor of ``conformity_kl``; see :meth:`ConformityKL.noise_floor`."""
        return self._core.noise_floor(quantile, resamples=resamples, generator=generator)

    def p_value(self, *, resamples: int = RESAMPLES, generator: torch.Generator | None = None) -> float:
        """Test whether the conformities differ in distribution; see :meth:`ConformityKL.p_value`."""
        return self._core.p_value(resamples=resamples, generator=generator)

    def update(
        self, batch: Any, *, real: bool = False, groups: Labels | None = None, ids: Sequence[object] | None = None
    ) -> None:
        """Encode a batch once and accumulate it; arguments as of the metrics."""
        self._core.update(batch, real=real, groups=groups, ids=ids)
        self._forget_values()

    def forward(
        self, batch: Any, *, real: bool = False, groups: Labels | None = None, ids: Sequence[object] | None = None
    ) -> dict[str, Any]:
        """Encode a batch once, accumulate it, and return its own values."""
        values = self._core.forward(batch, real=real, groups=groups, ids=ids)
        self._forget_values()
        for name, figure in self._modules.items():
            figure._forward_cache = values[name]
        return {self._set_name(name): value for name, value in values.items()}

    def compute(self) -> dict[str, Any]:
        """Compute every figure over all samples so far, on all ranks.

        Raises:
            ValueError: If there are too few samples, or rows that were zero, NaN, infinite or L2-normalised.
        """
        return {self._set_name(name): value for name, value in self._core.compute().items()}

    def reset(self) -> None:
        """Forget all samples."""
        self._core.reset()
        self._forget_values()

    def _forget_values(self) -> None:
        for figure in self._modules.values():
            figure._computed = None

    def plot(self, val: Any = None, ax: Any = None, together: bool = False) -> Any:
        """Plot the conformity distribution, the KL and the norms, or ``val``: values of ``compute``.

        Returns:
            A list of ``(figure, axes)``, one for each metric; with ``together`` a single pair, as in torchmetrics.
        """
        if together:
            return super().plot(val, ax, together=True)
        kinds: tuple[Any, ...] = (Conformity, ConformityKL, EmbeddingNorm)
        axes = [None] * len(kinds) if ax is None else list(ax)
        return [
            kind.plot(self._core, None if val is None else self._select_values(kind.readout, val), own)
            for kind, own in zip(kinds, axes, strict=True)
        ]

    def _select_values(self, readout: ReadOut, val: Any) -> Any:
        """Select one metric's values from those of ``compute``."""
        if isinstance(val, list | tuple):
            return [self._select_values(readout, one) for one in val]
        if readout.value is not None:
            return val[self._set_name(readout.value)]
        return {name: val[self._set_name(name)] for name in readout.names(compared=True)}
