"""Pure functions on ``(N, D)`` tensors of raw embeddings: torch, and SciPy for densities and quantiles when used."""

from clipconformity.functional.clip_score import clip_score, ref_clip_score
from clipconformity.functional.conformity import (
    ConformityFit,
    NormStatistics,
    conformity,
    conformity_fit,
    estimated_conformity,
    norm_statistics,
    self_conformity,
)
from clipconformity.functional.contrastive import alignment, nt_xent, shift, uniformity
from clipconformity.functional.divergence import LowerBoundWarning, conformity_kl
from clipconformity.functional.frechet import frechet_distance
from clipconformity.functional.geometry import (
    Ellipsoid,
    ModalityGapResult,
    ThinShell,
    Tilt,
    ellipsoid,
    modality_gap,
    offset,
    thin_shell,
    tilt,
)
from clipconformity.functional.interpolation import slerp, vslerp
from clipconformity.functional.likelihood import SingularWarning, log_likelihood, whiten
from clipconformity.functional.mmd import MMDHalves, cmmd, cosine_mmd, mmd_halves
from clipconformity.functional.neighbours import Nearest, PRDCResult, authenticity, nearest, prdc
from clipconformity.functional.ranks import RankCorrelation, rank_correlation
from clipconformity.functional.separability import LinearSeparability, linear_separability
from clipconformity.functional.sweep import ShiftGrid, ShiftSweep, shift_grid, shift_sweep
from clipconformity.functional.vendi import vendi_score

__all__ = [
    "ConformityFit",
    "Ellipsoid",
    "LinearSeparability",
    "LowerBoundWarning",
    "MMDHalves",
    "ModalityGapResult",
    "Nearest",
    "NormStatistics",
    "PRDCResult",
    "RankCorrelation",
    "ShiftGrid",
    "ShiftSweep",
    "SingularWarning",
    "ThinShell",
    "Tilt",
    "alignment",
    "authenticity",
    "clip_score",
    "cmmd",
    "conformity",
    "conformity_fit",
    "conformity_kl",
    "cosine_mmd",
    "ellipsoid",
    "estimated_conformity",
    "frechet_distance",
    "linear_separability",
    "log_likelihood",
    "mmd_halves",
    "modality_gap",
    "nearest",
    "norm_statistics",
    "nt_xent",
    "offset",
    "prdc",
    "rank_correlation",
    "ref_clip_score",
    "self_conformity",
    "shift",
    "shift_grid",
    "shift_sweep",
    "slerp",
    "thin_shell",
    "tilt",
    "uniformity",
    "vendi_score",
    "vslerp",
    "whiten",
]
