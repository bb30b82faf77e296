"""What a stream accumulates: the names and shapes of its state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from clipconformity.functional.density import CELLS, Grid
from clipconformity.stream.row_sample import BUCKETS, Sample

SAMPLE = tuple(f"sample_{name}" for name in Sample._fields)
SAMPLE_KEYS = "sample_keys"
RAW, UNIT = SECOND_MOMENTS = "second_moment", "unit_second_moment"
State: TypeAlias = "dict[str, Tensor | list[Tensor]]"


@dataclass(frozen=True)
class Layout:
    """What a stream accumulates.

    Attributes:
        dim: Dimension D of the embeddings.
        buckets: Number of buckets G.
        direction: The reference's mean unit vector ``(D,)``, where conformity to it is accumulated.
        between: The same without each bucket ``(G, D)``, where the reference has groups: what rows with groups are
            taken to, since the reference may hold others of their group.
        grid: Cells of the conformity histogram; goes with ``direction``.
        max_samples: Rows of the sample; 0 keeps none.
        rows: Whether the sample keeps the raw rows, beside their norm and their conformity to ``direction``.
        second_moment: Whether the D x D second moment is accumulated.
        unit_second_moment: Whether that of the unit rows is.
    """

    dim: int
    buckets: int = BUCKETS
    direction: Tensor | None = None
    between: Tensor | None = None
    grid: Grid | None = None
    max_samples: int = 0
    rows: bool = True
    second_moment: bool = False
    unit_second_moment: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every sum in the state."""
        shapes: dict[str, tuple[int, ...]] = {
            "count": (self.buckets,),
            "bad": (),  # rows that were zero, NaN or infinite
            "out_of_range": (),  # rows whose norm was
            "normalized": (),  # rows of norm 1
            "grouped": (),  # rows that came with groups
            "raw_sum": (self.dim,),
            "unit_sum": (self.buckets, self.dim),
            "norm_sum": (self.buckets,),
            "norm_square_sum": (self.buckets,),
        }
        if self.direction is not None:
            sums = dict.fromkeys(("conformity_sum", "conformity_square_sum"), (self.buckets,))
            shapes |= {**sums, "conformity_counts": (self.buckets, CELLS + 2)}
        return shapes | {name: (self.dim, self.dim) for name in SECOND_MOMENTS if getattr(self, name)}

    def zeros(self, device: torch.device | None = None) -> State:
        """Empty state: the identity of the merge."""
        state: State = {
            name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in self.shapes().items()
        }
        return state | ({name: [] for name in SAMPLE} if self.max_samples else {})

    def names(self) -> list[str]:
        """Names of the state's parts."""
        return [*self.shapes(), *(SAMPLE if self.max_samples else ())]

    def empty_sample(self, device: torch.device) -> Sample:
        """A sample without rows, of the right shapes and types."""
        whole = torch.empty(0, dtype=torch.int64, device=device)
        rows = torch.empty(0, self.dim if self.rows else 0, dtype=torch.float32, device=device)
        values = torch.empty(0, 1 if self.direction is None else 2, dtype=torch.float64, device=device)
        return Sample(rows, values, whole, whole, whole, whole)
