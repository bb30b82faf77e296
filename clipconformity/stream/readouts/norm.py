"""The norms of raw embeddings, as they are and centred on their mean."""

from __future__ import annotations

from torch import Tensor

from clipconformity.functional.conformity import pearson, quantiles
from clipconformity.functional.geometry import distances_from
from clipconformity.functional.resampling import mean_error
from clipconformity.stream.pairs import LeftOut, Without
from clipconformity.stream.readouts.base import Field, ReadOut, read_sample
from clipconformity.stream.readouts.conformity import LEVELS, own_set_values
from clipconformity.stream.stream import Needs, Stream

RAW = "raw units"


class NormReadOut(ReadOut):
    """Norms, which carry information only before L2 normalisation."""

    name = "norm"
    needs = Needs(rows=True)
    fields = (
        Field("norm_mean", "mean norm of the raw embeddings", RAW, error="norm_se"),
        Field("norm_std", "standard deviation of the norm", RAW),
        Field("norm_se", "standard error of the mean norm", RAW),
        Field("centered_norm_mean", "mean distance from the mean", RAW),
        Field("centered_norm_std", "standard deviation of the distance from the mean", RAW),
        Field("norm_conformity_correlation", "correlation of the norm with the own-set conformity"),
        Field("norm_q05", "5% quantile of the norm", RAW),
        Field("centered_norm_q05", "5% quantile of the distance from the mean", RAW),
        Field("norm_q50", "median norm", RAW),
        Field("centered_norm_q50", "median distance from the mean", RAW),
        Field("norm_q95", "95% quantile of the norm", RAW),
        Field("centered_norm_q95", "95% quantile of the distance from the mean", RAW),
    )

    def read(self, stream: Stream) -> dict[str, Tensor]:
        """Return exact mean, standard deviation and error, and the rest from the row sample."""
        moments = stream.read_side()
        total = moments.total
        first, second = moments["norm_sum"].sum(), moments["norm_square_sum"].sum()
        norms, centered = compute_sampled_norms(stream)
        result = {
            "norm_mean": first / total,
            "norm_std": ((second - first.square() / total) / (total - 1)).clamp_min(0).sqrt(),
            "norm_se": mean_error(moments["norm_sum"], moments["count"]),
            "centered_norm_mean": centered.mean(),
            "centered_norm_std": centered.std(),
            "norm_conformity_correlation": pearson(norms, own_set_values(moments, read_sample(stream))),
        }
        for name, level in LEVELS.items():
            result[f"norm_{name}"] = quantiles(norms, (level,))[0]
            result[f"centered_norm_{name}"] = quantiles(centered, (level,))[0]
        return result

    def left_out(self, stream: Stream) -> dict[str, LeftOut]:
        """Return the mean norm."""
        moments = stream.read_side().cpu()
        sums, count = moments["norm_sum"], moments["count"]
        left = (sums.sum() - sums) / (count.sum() - count)
        return {"norm_mean": LeftOut(Without.from_one_side(sums.sum() / count.sum(), left), (count,))}


def compute_sampled_norms(stream: Stream) -> tuple[Tensor, Tensor]:
    """Compute the norms of the sampled rows ``(k,)``, raw and centred on the mean of all."""
    sample = read_sample(stream)
    return sample.values[:, 0], distances_from(sample.rows, stream.read_side().mean.cpu())
