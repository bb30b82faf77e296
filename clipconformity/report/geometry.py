"""The report of the six geometric properties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipconformity import plots
from clipconformity.evaluation.geometry import FAILS, HOLDS, Property
from clipconformity.functional import ShiftSweep, linear_separability
from clipconformity.report.figures import Drawing, draw_figure
from clipconformity.report.page import Section, Table, format_interval, format_number, write_page


def write_geometry_report(
    path: Path | str,
    properties: Sequence[Property],
    *,
    image: Tensor | None = None,
    text: Tensor | None = None,
    sweep: ShiftSweep | None = None,
    gap: Mapping[str, float] | None = None,
    measured: Mapping[str, Any] | None = None,
    command: str | None = None,
    title: str = "Geometry report",
) -> None:
    """Write the geometric properties as one self-contained HTML file that opens offline.

    Args:
        path: File to write.
        properties: Result of :func:`clipconformity.evaluation.geometry.six_properties`.
        image: The raw image embeddings ``(N, D)`` that they are of, for the plots.
        text: The raw text embeddings ``(M, D)``.
        sweep: Loss and KL over the shift, of :func:`clipconformity.functional.shift_sweep`.
        gap: Figures of the modality gap, of :func:`clipconformity.evaluation.geometry.compute_gap_figures`.
        measured: Description of the measurement, such as the files, by name.
        command: The command that measured it.
        title: Heading of the page.

    Raises:
        ValueError: If there are no properties.
        OSError: If the file cannot be written.
    """
    if not properties:
        raise ValueError("properties: expected at least one, got none.")
    rows = {name: x for name, x in (("image", image), ("text", text)) if x is not None}
    counts, verdict = _describe_verdict(properties)
    context = {
        "counts": counts,
        "verdict": verdict,
        "tables": _make_tables(properties, gap),
        "plots": _draw_plots(rows, sweep),
        "measured": [_list_settings(properties, rows, measured)],
    }
    sections = [
        Section("verdict", "Verdict", "geometry/verdict.html"),
        Section("properties", "Properties", "geometry/properties.html"),
        *([Section("plots", "Plots", "geometry/plots.html")] if context["plots"] else []),
        Section("measured", "Measured with", "measured.html"),
        Section("cite", "How to cite", "cite.html"),
    ]
    note = "Which geometric properties of CLIP's latent space hold for these embeddings?"
    write_page(path, title, note, sections, context, command)


def _describe_verdict(properties: Sequence[Property]) -> tuple[str, dict[str, str]]:
    words = {HOLDS: "Hold", FAILS: "Do not hold"}
    found: dict[str, list[str]] = {"Hold": [], "Do not hold": [], "Cannot tell at this N": []}
    for each in properties:
        of = "" if each.modality == "both" else f" ({each.modality})"
        found[words.get(each.verdict, "Cannot tell at this N")].append(each.name + of)
    counts = f"{len(found['Hold'])} of {len(properties)} hold."
    return counts, {name: ", ".join(names) + "." for name, names in found.items() if names}


def _make_tables(properties: Sequence[Property], gap: Mapping[str, float] | None) -> list[Table]:
    measured = Table(
        "The properties, with 95% intervals",
        ["property", "of", "verdict", "value", "95% interval", "holds if", "without it", "paper"],
        [
            [
                p.name, p.modality, p.verdict, format_number(p.value), format_interval(p.low, p.high), p.threshold,
                "" if p.null is None else format_number(p.null), "" if p.paper is None else format_number(p.paper),
            ]
            for p in properties
        ],
    )  # fmt: skip
    meant = Table(
        "What each value is",
        ["property", "of", "quantity", "interval covers", "in sample", "N"],
        [[p.name, p.modality, p.quantity, p.covers, format_number(p.in_sample), str(p.samples)] for p in properties],
    )
    if not gap:
        return [measured, meant]
    names = {
        "gap": "modality gap", "raw_gap": "gap of the raw means", "matched_cosine": "cosine of matched pairs",
        "squared_gap": "squared gap without the part of chance", "null": "gap by chance at these sizes",
        "low": "low end of the 95% interval of the population's gap", "high": "high end of it",
    }  # fmt: skip
    figures = [[names.get(name, name.replace("_", " ")), format_number(value)] for name, value in gap.items()]
    return [measured, meant, Table("The gap between the modalities", ["quantity", "value"], figures)]


def _draw_plots(rows: Mapping[str, Tensor], sweep: ShiftSweep | None) -> list[Drawing]:
    parts = _draw_modalities(rows) if rows else []
    if len(rows) == 2:
        parts += _draw_both(rows["image"], rows["text"])
    if sweep is not None:
        parts += _draw_sweep(sweep)
    return parts


def _draw_modalities(rows: Mapping[str, Tensor]) -> list[Drawing]:
    covariances = {name: torch.cov(x.double().cpu().T) for name, x in rows.items()}
    spectra: dict[str | None, Tensor] = {
        name: torch.linalg.eigvalsh(matrix).clamp_min(0) for name, matrix in covariances.items()
    }
    ends = "; ".join(
        f"{name}: largest {format_number(float(x.max()))}, median {format_number(float(x.median()))}"
        for name, x in spectra.items()
    )
    parts = [
        draw_figure(
            "spectrum",
            lambda ax: plots.covariance_spectrum(spectra, ax=ax),
            alt=f"Eigenvalues of the covariance over their rank, on a logarithmic scale. {ends}.",
            caption="Ellipsoid: the covariance spectrum. A sphere would be flat and its participation ratio the "
            "number of dimensions; the dots mark it.",
        )
    ]
    for name, matrix in covariances.items():
        parts.append(
            draw_figure(
                f"tilt-{name}",
                lambda ax, matrix=matrix: plots.tilt_heat_map(matrix, ax=ax),  # type: ignore[misc]
                alt=f"Absolute correlations between the dimensions of largest variance of the {name} embeddings.",
                caption=f"Tilt of the {name} ellipsoid: correlations of its dimensions of largest variance. "
                "Without tilt all would be dark.",
                size=(5.0, 4.0),
            )
        )
    return parts


def _draw_both(image: Tensor, text: Tensor) -> list[Drawing]:
    best = linear_separability(image, text, k=2)
    dimensions = [int(d) for d in best.dimensions]
    accuracy = format_number(100 * float(best.held_out_accuracy))
    return [
        draw_figure(
            "separability",
            lambda ax: plots.separability_scatter(image, text, dimensions, ax=ax),
            alt=f"Images and texts in dimensions {dimensions[0]} and {dimensions[1]}, counted from 0; "
            f"the best two tell them apart with a held-out balanced accuracy of {accuracy}%.",
            caption=f"Separability: the two dimensions that tell the modalities apart best ({accuracy}% held out).",
        ),
        draw_figure(
            "shells",
            lambda ax: plots.shells(image, text, ax=ax),
            alt="Sketch of the image and the text embeddings along the gap between their means and their leading "
            "direction; crosses mark the means and a plus the origin.",
            caption="The two shells, off the origin and apart. A shell is hollow in all its dimensions; seen along "
            "two of them it looks filled.",
            size=(5.0, 3.8),
        ),
    ]


def _draw_sweep(sweep: ShiftSweep) -> list[Drawing]:
    curves = {
        "loss": (f"NT-Xent of {sweep.pairs} pairs (nats)", sweep.loss, sweep.loss_low, sweep.loss_high),
        "kl": ("KL of conformity, image || text (nats)", sweep.kl, sweep.kl_low, sweep.kl_high),
    }
    bounds = ", ".join(format_number(float(alpha)) for alpha in sweep.alphas[sweep.kl_lower_bound])
    remarks = {"kl": f" At alpha {bounds} it is only a lower bound." if bounds else ""}
    parts = []
    for key, (quantity, values, low, high) in curves.items():
        lowest = format_number(float(sweep.alphas[values.argmin()]))
        parts.append(
            draw_figure(
                f"sweep-{key}",
                lambda ax, q=quantity, v=(values, low, high): plots.over_alpha(  # type: ignore[misc]
                    sweep.alphas, *v, quantity=q, ax=ax
                ),
                alt=f"{quantity} over alpha, lowest at alpha {lowest} with {format_number(float(values.min()))}.",
                caption=f"{quantity} as each modality is shifted along its own mean; lowest at alpha {lowest}."
                + remarks.get(key, ""),
            )
        )
    return parts


def _list_settings(
    properties: Sequence[Property], rows: Mapping[str, Tensor], measured: Mapping[str, Any] | None
) -> dict[str, str]:
    settings = {name.replace("_", " ").capitalize(): str(value) for name, value in (measured or {}).items()}
    settings |= {f"Samples of {name}": f"{len(x)}, {x.shape[1]} dimensions" for name, x in rows.items()}
    return settings if rows else settings | {"Samples": str(max(p.samples for p in properties))}
