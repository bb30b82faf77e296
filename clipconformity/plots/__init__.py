"""Figures from plain arrays; matplotlib loads when one is drawn."""

from clipconformity.plots.alignment import typicality_alignment
from clipconformity.plots.comparison import Place, figures, forest, series, typicality_and_variety
from clipconformity.plots.distributions import (
    CONFORMITY,
    conformity_distribution,
    conformity_panels,
    distributions,
    norm_histogram,
    ridgelines,
)
from clipconformity.plots.geometry import (
    Projection,
    covariance_spectrum,
    over_alpha,
    project,
    separability_scatter,
    shells,
    shift_panels,
    tilt_heat_map,
)
from clipconformity.plots.style import (
    COLORS,
    POINTS,
    REFERENCE_COLOR,
    Look,
    for_paper,
    run_look,
    save,
    use_text_color,
)

__all__ = [
    "COLORS",
    "CONFORMITY",
    "POINTS",
    "REFERENCE_COLOR",
    "Look",
    "Place",
    "Projection",
    "conformity_distribution",
    "conformity_panels",
    "covariance_spectrum",
    "distributions",
    "figures",
    "for_paper",
    "forest",
    "norm_histogram",
    "over_alpha",
    "project",
    "ridgelines",
    "run_look",
    "save",
    "separability_scatter",
    "series",
    "shells",
    "shift_panels",
    "tilt_heat_map",
    "typicality_alignment",
    "typicality_and_variety",
    "use_text_color",
]
