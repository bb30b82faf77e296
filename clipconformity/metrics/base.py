"""Base of the metric classes: a torchmetrics wrapper of a stream, and the encoder."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from clipconformity.encoders.protocol import Encoder
from clipconformity.functional.linalg import full_precision
from clipconformity.functional.validation import check_same_dim
from clipconformity.metrics.inputs import (
    EncoderOrSpec,
    check_batch_modality,
    encode_batch,
    open_encoder,
    resolve_dimension,
)
from clipconformity.metrics.pictures import draw_figures, draw_values
from clipconformity.metrics.ranks import check_ranks
from clipconformity.provenance import Provenance
from clipconformity.stream.layout import Layout, State
from clipconformity.stream.pending import Pending
from clipconformity.stream.readouts.base import ReadOut
from clipconformity.stream.reference import ReferenceSet
from clipconformity.stream.row_sample import Labels
from clipconformity.stream.stream import EVALUATED, Stream, choose_layouts


class EmbeddingMetric(Metric):
    """Streams raw embeddings, or encoded images and texts, and computes the fields of a :class:`ReadOut`.

    The encoder is not part of the module tree: it is neither saved nor moved, a clone shares it, and a pickle holds
    its spec. States stay float64 for any dtype of a parent module.
    """

    readout: ReadOut
    is_differentiable = False
    full_state_update = False
    higher_is_better: bool | None = None

    def __init__(
        self,
        reference: ReferenceSet | None = None,
        *,
        encoder: EncoderOrSpec | None = None,
        embed_dim: int | None = None,
        max_samples: int = 10_000,
        allow_normalized: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        encoder = open_encoder(encoder)
        self.embed_dim = resolve_dimension(type(self).__name__, reference, encoder, embed_dim)
        if reference is not None and encoder is not None and reference.encoder_id is not None:
            reference.provenance.check(Provenance.from_encoder(encoder))
        self.allow_normalized = allow_normalized or (reference is not None and reference.normalized)
        # Bypasses nn.Module.__setattr__, which would register an encoder that is a module.
        self.__dict__.update(_encoder=encoder, _encoder_spec=None, _reference=reference)
        self._modality: str | None = None
        self.max_samples = max_samples
        self._layouts = self._make_layouts()
        self._names: dict[str, dict[int, str]] = {side: {} for side in self._layouts}
        self._pending = {side: Pending() for side in self._layouts}
        # A collection shares states of metrics with equal states: this one distinguishes what is accumulated.
        self.add_state("layout_key", torch.tensor(self._layout_key(), dtype=torch.float64), dist_reduce_fx="max")
        # As a module's buffers these are kept apart, so that reading one adds the batches that wait.
        self.__dict__["_sums"] = dict.fromkeys(
            f"{side}_{name}" for side, layout in self._layouts.items() for name in layout.names()
        )
        for side, layout in self._layouts.items():
            for name, value in layout.zeros().items():
                self.add_state(f"{side}_{name}", value, dist_reduce_fx="cat" if isinstance(value, list) else "sum")

    def _make_layouts(self) -> dict[str, Layout]:
        """Make the layouts of both sides."""
        return choose_layouts(self.embed_dim, self.readout.needs, self.reference, self.max_samples)

    def _layout_key(self) -> int:
        digest = hashlib.blake2b(repr(self._layouts.keys()).encode(), digest_size=3)
        for layout in self._layouts.values():
            digest.update(repr((layout.shapes(), layout.max_samples, layout.rows, layout.grid)).encode())
            if layout.direction is not None:
                digest.update(layout.direction.numpy().tobytes())
        return int.from_bytes(digest.digest(), "big")

    @property
    def encoder(self) -> Encoder | None:
        """The encoder of images and texts; after unpickling, loaded by its spec."""
        if self.__dict__["_encoder"] is None and self.__dict__["_encoder_spec"] is not None:
            from clipconformity.encoders import load_encoder

            self.__dict__["_encoder"] = load_encoder(self.__dict__["_encoder_spec"])
        return cast("Encoder | None", self.__dict__["_encoder"])

    @property
    def reference(self) -> ReferenceSet | None:
        """The reference given at construction."""
        return cast("ReferenceSet | None", self.__dict__["_reference"])

    @property
    def num_samples(self) -> int:
        """Number of evaluated samples so far, on all ranks."""
        with self._synchronise():
            return int(self._stream().evaluated.total)

    @property
    def exact(self) -> bool:
        """Whether non-additive figures use every sample so far rather than the row sample."""
        with self._synchronise():
            return self._stream().exact

    def update(
        self, batch: Any, *, real: bool = False, groups: Labels | None = None, ids: Sequence[object] | None = None
    ) -> None:
        """Accumulate a batch; one without rows changes nothing.

        Args:
            batch: Raw embeddings ``(N, D)``, or images or texts if there is an encoder.
            real: Whether these are rows of the reference. Where a reference was given at construction, or none is
                needed, real rows are left out.
            groups: One id for each row; rows of one group, such as the captions of one image, are dependent.
            ids: A name for each row.

        Raises:
            TypeError: If the batch is neither embeddings nor valid input of the encoder.
            ValueError: If the shape, the dimension, the groups or the ids do not fit. Invalid values are reported by
                ``compute``.
        """
        embeddings, modality = self._encode(batch)
        self._stream().update(embeddings, real=real, groups=groups, ids=ids)
        self._modality = modality

    @full_precision
    def forward(
        self, batch: Any, *, real: bool = False, groups: Labels | None = None, ids: Sequence[object] | None = None
    ) -> Any:
        """Accumulate the batch, and return its own value: NaN where it is too small, and for real rows."""
        if self._is_synced:
            raise TorchMetricsUserError("forward was called on a synchronised metric; call unsync first.")
        embeddings, modality = self._encode(batch)
        self.update(embeddings, real=real, groups=groups, ids=ids)
        self._modality = modality
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # only compute warns of values, and raises
            stream = self._batch_stream()
            if not real:
                stream.update(embeddings, groups=groups, ids=ids)
            try:
                self._forward_cache = self._value(self._read(stream))
            except ValueError:
                self._forward_cache = self._value(self._make_nan_fields(stream))
        return self._forward_cache

    @full_precision
    def compute(self) -> Any:
        """Compute the metric over all samples so far, on all ranks.

        Raises:
            ValueError: If there are too few samples, or rows that were zero, NaN, infinite or L2-normalised.
        """
        return self._value(self._read(self._stream()))

    def _read(self, stream: Stream) -> dict[str, Tensor]:
        """Compute the fields; unknown ones stay NaN, so that the keys are the same for every batch."""
        return self._make_nan_fields(stream) | self.readout.read(stream)

    def _make_nan_fields(self, stream: Stream) -> dict[str, Tensor]:
        return {name: torch.tensor(float("nan")) for name in self.readout.names(stream.has_reference)}

    def _value(self, fields: Mapping[str, Tensor]) -> Any:
        """Return the result of ``compute``: the read-out's value, or a dict of all its fields, in float32."""
        if self.readout.value is not None:
            return fields[self.readout.value].float()
        return {name: value.float() for name, value in fields.items()}

    def _encode(self, batch: Any) -> tuple[Tensor, str | None]:
        """Return the embeddings of a batch, and the modality of the metric after it."""
        modality = check_batch_modality(batch, self._modality, self.reference)
        embeddings = encode_batch(batch, self.encoder)
        check_same_dim(embeddings, self.embed_dim, "batch", "this metric")
        return embeddings, modality

    def _stream(self) -> Stream:
        """View the states as a stream."""
        sums = self.__dict__["_sums"]
        states: dict[str, State] = {
            side: {name: sums[f"{side}_{name}"] for name in layout.names()} for side, layout in self._layouts.items()
        }
        return Stream(
            self._layouts,
            reference=self.reference,
            allow_normalized=self.allow_normalized,
            states=states,
            names=self._names,
            pending=self._pending,
        )

    def _flush(self) -> None:
        """Add the batches that wait."""
        if any(pending.count for pending in self._pending.values()):
            for side in self._stream().sides.values():
                side.flush()

    def __getattr__(self, name: str) -> Any:
        sums = self.__dict__.get("_sums", ())
        if name not in sums:
            return super().__getattr__(name)
        self._flush()
        return sums[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.__dict__.get("_sums", ()):
            super().__setattr__(name, value)
            return
        self._flush()
        self._sums[name] = value

    def _batch_stream(self) -> Stream:
        """Make a stream for one batch, which is compared with all real rows so far."""
        stream = self._stream()
        device = stream.evaluated["count"].device
        states = {side: moments.state for side, moments in stream.sides.items()}
        states[EVALUATED] = self._layouts[EVALUATED].zeros(device)
        return Stream(self._layouts, reference=self.reference, allow_normalized=self.allow_normalized, states=states)

    @contextmanager
    def _synchronise(self) -> Iterator[None]:
        """Synchronise ranks for a read-out beside ``compute``."""
        if self._is_synced:
            yield
            return
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            yield

    @contextmanager
    def _read_stream(self) -> Iterator[Stream]:
        """Return the stream of all ranks, for a read-out beside ``compute``."""
        with self._synchronise():
            yield self._stream()

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        check_ranks(self, *args, **kwargs)
        for side in self._stream().sides.values():  # a rank without rows sends an empty sample of the right shapes
            if side.layout.max_samples:
                side.replace_sample(side.sample())
        super()._sync_dist(*args, **kwargs)

    def reset(self) -> None:
        """Forget all samples."""
        self._names = {side: {} for side in self._layouts}
        self._modality = None
        for pending in self._pending.values():
            pending.clear()
        with torch.inference_mode(False):  # as in add_state
            super().reset()

    def add_state(self, name: str, default: Any, *args: Any, **kwargs: Any) -> None:
        """Add a state; one made under ``torch.inference_mode`` could not be updated outside of it."""
        with torch.inference_mode(False):
            super().add_state(name, default.clone() if isinstance(default, Tensor) else default, *args, **kwargs)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the metric's figures with intervals and noise floor, or ``val``: one or several values of ``compute``.

        Returns:
            ``(figure, axes)``.
        """
        return self._plot_figures(ax) if val is None else draw_values(self._plotted, val, ax)

    @full_precision
    def _plot_figures(self, ax: Any) -> Any:
        """Draw the figures that have the unit of the metric's value, a line each."""
        with self._read_stream() as stream:
            return draw_figures(self._plotted, stream, ax)

    @property
    def _plotted(self) -> ReadOut:
        """The read-out whose figures a plot shows."""
        return self.readout

    def set_dtype(self, dst_type: str | torch.dtype) -> EmbeddingMetric:
        """Do nothing: states stay float64, which is accurate for streams of any length."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        def move(tensor: Tensor) -> Tensor:
            device = fn(torch.empty(0, device=tensor.device)).device
            return tensor.to("cpu" if device.type == "mps" else device)  # MPS has no float64

        return super()._apply(move, exclude_state)

    def _get_settled_state(self) -> dict[str, Any]:
        """Give the state without batches that wait."""
        self._flush()
        return super().__getstate__() | {"_pending": {side: Pending() for side in self._layouts}}

    def __getstate__(self) -> dict[str, Any]:
        state = self._get_settled_state()
        if state["_encoder"] is not None:
            state["_encoder_spec"] = state["_encoder"].spec
        return state | {"_encoder": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingMetric:
        state = self._get_settled_state()
        shared = {name: state.pop(name) for name in ("_encoder", "_reference", "_layouts")}
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        with torch.inference_mode(False):  # as in add_state
            new.__setstate__({**copy.deepcopy(state, memo), **shared})
        return new


class SetMetric(EmbeddingMetric):
    """A metric of the evaluated set alone, without a reference: real rows are ignored."""

    def __init__(
        self,
        *positional: object,
        encoder: EncoderOrSpec | None = None,
        embed_dim: int | None = None,
        max_samples: int = 10_000,
        allow_normalized: bool = False,
        **kwargs: Any,
    ) -> None:
        if positional:
            raise TypeError(
                f"{type(self).__name__}: takes no reference, since it measures the evaluated samples alone; give "
                "options by name, such as embed_dim."
            )
        super().__init__(
            None,
            encoder=encoder,
            embed_dim=embed_dim,
            max_samples=max_samples,
            allow_normalized=allow_normalized,
            **kwargs,
        )

    def _make_layouts(self) -> dict[str, Layout]:
        """Make the layout of the evaluated side; there is no other, even where the read-out could compare."""
        return choose_layouts(self.embed_dim, self.readout.needs._replace(reference=False), None, self.max_samples)


class PairMetric(SetMetric):
    """A metric of pairs of images and texts: row i of one belongs to row i of the other."""

    def _encode_pair(self, images: Any, texts: Any) -> tuple[Tensor, Tensor]:
        pair = encode_batch(images, self.encoder), encode_batch(texts, self.encoder)
        for rows in pair:
            check_same_dim(rows, self.embed_dim, "batch", "this metric")
        if len(pair[0]) != len(pair[1]):
            raise ValueError(
                f"images and texts: expected pairs, got {len(pair[0])} images and {len(pair[1])} texts; "
                "repeat an image for each of its captions, or choose one caption."
            )
        return pair
