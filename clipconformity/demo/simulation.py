"""The demo: simulated generators scored with the embedded encoder, by the same code as real CLIP and COCO."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipconformity.data import Captions, list_images, read_captions, write_results
from clipconformity.data.files import Publication, check_outputs, make_scratch_folder
from clipconformity.data.locks import FOLDER_SUFFIX
from clipconformity.data.strict_json import to_json
from clipconformity.demo.scenes import (
    Scene,
    draw_scene,
    generic_caption,
    sample_scenes,
    specific_caption,
    write_coco_scenes,
)
from clipconformity.encoders import BaseEncoder, load_encoder
from clipconformity.evaluation import Score, Source, build_reference, caption_source, compare, image_source, score
from clipconformity.functional import conformity
from clipconformity.stream.reference import ReferenceSet

REAL, GENERATED = 2000, 1000
"""Number of real scenes, each with five captions, and of samples of each generator."""
COMMON, DIVERSE = 2.0, 1.1
"""Concentrations: the generators draw scenes with probability proportional to p ** concentration."""
FIRST_CAPTIONED_ID = 1_000_000
"""First image id of the scenes that the captioners describe; these are not real ones."""
SPLIT_NAME = "val2017"
REPORT, RESULTS, PLOT = "report.html", "results.json", "distributions.png"
METRICS = ("cosine_mmd", "cmmd", "vendi")
"""Usual metrics, shown in the report below conformity."""
RUNS = ("images-common", "images-diverse", "images-single", "captions-generic", "captions-specific")


class Run(NamedTuple):
    """A simulated generator."""

    name: str
    title: str
    source: Source
    reference: ReferenceSet
    images: list[Path]
    captions: list[str] | None = None


def run(output: Path) -> tuple[dict[str, Any], str]:
    """Build references from real scenes, score five simulated generators, and write results, a plot and a report.

    Args:
        output: Folder to write :data:`RESULTS`, :data:`PLOT` and :data:`REPORT` to; made if absent. Those of an earlier
            demo are replaced, once all is computed.

    Returns:
        The content of ``results.json``, and the same as a table.

    Raises:
        OSError: If a file cannot be written there.
        ValueError: If it is a folder with files in it, and a demo did not make it.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output: {output} is a file; name a folder.")
    output.mkdir(parents=True, exist_ok=True)
    check_outputs([("--output", output / name) for name in (REPORT, RESULTS, PLOT)])
    _refuse_foreign(output)
    encoder = load_encoder("tiny")
    with make_scratch_folder(output / "scenes") as root, Publication() as files:
        _print_progress(f"drawing {REAL} real scenes with 5 captions each, in the layout of MS-COCO")
        write_coco_scenes(root / "real", sample_scenes(REAL, seed=1), split=SPLIT_NAME, seed=1)
        references = _build_references(root / "real", encoder)
        scores = {}
        for each in _make_runs(root, encoder, references):
            _print_progress(f"scoring {each.title}")
            scores[each.name] = (each, score(each.source, each.reference, resamples=500, metrics=METRICS))
        _print_progress("writing the report")
        result = _collect_results(references, scores)
        # First, since it marks the folder as a demo's.
        files.add(output / RESULTS).write_text(to_json(result, indent=2) + "\n", encoding="utf-8")
        _draw_plot(files.add(output / PLOT), references, scores)
        _write_report(files.add(output / REPORT), scores, root / "real")
        return result, _format_table(references, scores, output)


def _refuse_foreign(output: Path) -> None:
    """Refuse a folder with files that a demo did not make."""
    if not any(path for path in output.iterdir() if not path.name.endswith(FOLDER_SUFFIX)):
        return
    try:
        made = set(json.loads((output / RESULTS).read_text(encoding="utf-8"))["runs"]) == set(RUNS)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        made = False
    if not made:
        raise ValueError(
            f"--output: {output} holds files that a demo did not make; name a new folder, or an empty one."
        )


def _print_progress(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr)  # noqa: T201 - a command's progress


def _build_references(root: Path, encoder: BaseEncoder) -> dict[str, ReferenceSet]:
    sources = {
        "image": image_source(list_images(root / SPLIT_NAME), encoder),
        "text": caption_source(_write_captions(root), encoder),
    }
    return {name: build_reference(source, dataset="procedural scenes") for name, source in sources.items()}


def _write_captions(root: Path) -> Captions:
    return read_captions(root / "annotations" / f"captions_{SPLIT_NAME}.json")


def _make_runs(root: Path, encoder: BaseEncoder, references: dict[str, ReferenceSet]) -> Sequence[Run]:
    drawn = {
        "images-common": (
            "a generator that draws the common",
            sample_scenes(GENERATED, seed=2, concentration=COMMON),
        ),
        "images-diverse": ("a diverse generator", sample_scenes(GENERATED, seed=3, concentration=DIVERSE)),
        "images-single": (
            "a generator that repeats one scene",
            [_find_average_scene(encoder, references["image"])] * GENERATED,
        ),
    }
    written: dict[str, tuple[str, Callable[[Scene], str]]] = {
        "captions-generic": ("a generic captioner", generic_caption),
        "captions-specific": ("an over-specific captioner", specific_caption),
    }
    runs = []
    for name, (title, scenes) in drawn.items():
        folder = root / name
        folder.mkdir()
        for number, scene in enumerate(scenes):
            draw_scene(scene, seed=10_000 + number).save(folder / f"{number:06d}.png")
        paths = list_images(folder)
        runs.append(Run(name, title, image_source(paths, encoder), references["image"], paths))
    described = sample_scenes(GENERATED, seed=5)
    (root / "described").mkdir()
    shown = [root / "described" / f"{number:06d}.png" for number in range(len(described))]
    for number, (path, scene) in enumerate(zip(shown, described, strict=True)):
        draw_scene(scene, seed=20_000 + number).save(path)
    for name, (title, caption) in written.items():
        file = root / f"{name}.json"
        write_results(
            file,
            range(FIRST_CAPTIONED_ID, FIRST_CAPTIONED_ID + len(described)),
            [caption(scene) for scene in described],
        )
        captions = read_captions(file)
        source = caption_source(captions, encoder)
        runs.append(Run(name, title, source, references["text"], shown, captions.texts))
    return runs


def _find_average_scene(encoder: BaseEncoder, reference: ReferenceSet) -> Scene:
    """Find a scene whose drawings are of average conformity."""
    candidates, drawings = sample_scenes(REAL, seed=1)[:50], 10
    images = [draw_scene(scene, seed=5000 + n) for scene in candidates for n in range(drawings)]
    means = conformity(encoder.encode_image(images), reference).view(-1, drawings).mean(1)
    return candidates[int((means - reference.self_conformity).abs().argmin())]


def _collect_results(references: dict[str, ReferenceSet], scores: dict[str, tuple[Run, Score]]) -> dict[str, Any]:
    about = {
        "image_conformity_mean": float(references["image"].conformities.mean()),
        "text_conformity_mean": float(references["text"].conformities.mean()),
        "image_self_conformity_mean": float(references["image"].self_conformity),
        "text_self_conformity_mean": float(references["text"].self_conformity),
        "image_count": references["image"].count,
        "text_count": references["text"].count,
        "encoder": references["image"].spec,
    }
    return {"reference": about, "runs": {name: result.to_dict() for name, (_, result) in scores.items()}}


def _draw_plot(path: Path, references: dict[str, ReferenceSet], scores: dict[str, tuple[Run, Score]]) -> None:
    from clipconformity import plots

    panels = []
    for modality, reference in references.items():
        lines = {run.title: result.conformities for run, result in scores.values() if run.reference is reference}
        panels.append((modality, reference.conformities, lines))
    plots.save(plots.conformity_panels(panels), path)


def _write_report(path: Path, scores: dict[str, tuple[Run, Score]], real: Path) -> None:
    from clipconformity import report

    runs = [report.Run(run.title.capitalize(), result, run.images, run.captions) for run, result in scores.values()]
    captions = _write_captions(real)
    report.write_report(
        path,
        runs,
        command="clipconformity demo",
        title="Five simulated generators",
        note="Simulated generators on drawn scenes, scored by a tiny CLIP: stand-ins, so that this needs no download.",
        reference_images={image.name: image for image in list_images(real / SPLIT_NAME)},
        reference_captions=dict(zip(captions.ids, captions.texts, strict=True)),
    )


def _format_table(references: dict[str, ReferenceSet], scores: dict[str, tuple[Run, Score]], output: Path) -> str:
    lines = [
        "",
        "The model is a tiny CLIP and the data are drawn scenes: stand-ins, so that this runs with no download.",
        "Typical: conformity to the real set (higher is more common). Alike: self-conformity (lower is more varied).",
        "Variety: mean distance of two samples over that of the real ones, with its 95% interval (low is less varied).",
        "KL: how far the conformity distribution is from the real one, in nats; floor: what noise alone would give.",
        "",
        f"{'':18} {'typical':>8} {'alike':>7} {'variety':>8} {'95% interval':>17} {'KL':>7} {'floor':>7} {'N':>6}",
    ]
    for modality, reference in references.items():
        lines.append(
            f"{'real ' + ('images' if modality == 'image' else 'captions'):18} "
            f"{float(reference.conformities.mean()):8.3f} {float(reference.self_conformity):7.3f} "
            f"{'':8} {'':17} {'':7} {'':7} {reference.count:6d}"
        )
        members = [(run, result) for run, result in scores.values() if run.reference is reference]
        lines += [line for run, result in members for line in _list_rows(run, result)]
        found = compare({run.name: result for run, result in members}, reference)
        lines += ["", *(f"  {one.text()}" for one in found.judged), ""]
    written = ", ".join(str(output / name) for name in (REPORT, RESULTS, PLOT))
    lines += [f"Written: {written}", ""]
    return "\n".join(lines)


def _list_rows(run: Run, result: Score) -> list[str]:
    variety, floor = result.figures["variety_ratio"], result.figures["noise_floor"].text()
    at_least = ">" if result.kl_is_lower_bound else " "
    figures = (
        f"{run.name:18} {result.conformity_mean:8.3f} {result.self_conformity_mean:7.3f} {variety.text():>8} "
        f"{variety.interval_text():>17} {at_least}{result.conformity_kl:6.3f} {floor:>7} {result.count:6d}"
    )
    words = result.sentences
    return [figures, f"  {run.title}: {words['typical']}; {words['varied']}.", *(f"  {note}" for note in result.notes)]
