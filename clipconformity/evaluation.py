"""The loop from a source of samples to a scored result; the commands and the examples run on it."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clipconformity._files import replacing
from clipconformity.datasets import Captions, read_embeddings
from clipconformity.encoders import BaseEncoder
from clipconformity.encoders.images import open_image
from clipconformity.functional import conformity
from clipconformity.functional._checks import within_range
from clipconformity.metrics import Conformity, ConformityKL, ConformityMetrics
from clipconformity.moments import Groups
from clipconformity.reference import ReferenceSet

ROWS = 4096
"""Rows of an embedding file given to the metrics at once."""


class SourceBatch(NamedTuple):
    """A batch from a source: raw embeddings, the rows' names, and their groups."""

    embeddings: Tensor
    ids: Sequence[str]
    groups: Groups | None = None


@dataclass
class Source:
    """Samples to be measured, as a stream that is read once.

    Attributes:
        batches: The stream.
        count: Number of samples that will come, but for the skipped ones.
        spec: The encoder, if known.
        encoder_id: What the encoder is, if known.
        modality: ``"image"`` or ``"text"``, if known.
        groups: Group ids of all samples, or None.
        skipped: What was left out and why, filled as the stream is read.
        encoder: The encoder at work, if any.
    """

    batches: Iterator[SourceBatch]
    count: int
    spec: str | None = None
    encoder_id: dict[str, str] | None = None
    modality: str | None = None
    groups: Groups | None = None
    skipped: list[dict[str, str]] = field(default_factory=list)
    encoder: BaseEncoder | None = None

    @property
    def remarks(self) -> dict[str, Any]:
        """What was left out or cut, once the stream is read; empty where nothing was."""
        found: dict[str, Any] = {}
        if self.skipped:
            found["skipped"] = {"count": len(self.skipped), "files": self.skipped}
        if self.encoder is not None and self.encoder.truncated:
            found["truncated"] = self.encoder.truncated
        return found

    def __iter__(self) -> Iterator[SourceBatch]:
        """Read the stream, with rate and time left on standard error where that is a terminal."""
        from tqdm import tqdm

        with tqdm(total=self.count, unit="sample", file=sys.stderr, disable=None) as bar:
            for batch in self.batches:
                yield batch
                bar.update(len(batch.ids))


def embedding_source(paths: Sequence[Path], *, spec: str | None = None, modality: str | None = None) -> Source:
    """Read raw embeddings from files, which may say what they are; what is told must agree.

    Raises:
        ValueError: If a file cannot be read, or files and arguments disagree.
    """
    files = [read_embeddings(path) for path in paths]
    known = [file.groups for file in files if file.groups is not None]
    if known and len(known) < len(files):
        raise ValueError("embeddings: some files have groups and some have none; give them for all or for none.")
    ids = [file.encoder_id for file in files if file.encoder_id is not None]
    if any(other != ids[0] for other in ids):
        raise ValueError("embeddings: the files come from different encoders; encode all with the same one.")

    def batches() -> Iterator[SourceBatch]:
        for file in files:
            for start in range(0, len(file.embeddings), ROWS):
                rows = slice(start, start + ROWS)
                groups = None if file.groups is None else file.groups[rows]
                yield SourceBatch(file.embeddings[rows], file.ids[rows], groups)

    return Source(
        batches(),
        sum(len(file.embeddings) for file in files),
        spec=_agreed("encoder", spec, [file.spec for file in files]),
        encoder_id=ids[0] if ids else None,
        modality=_agreed("modality", modality, [file.modality for file in files]),
        groups=torch.cat(known) if known else None,
    )


class _ImageBatches(Dataset[tuple[dict[str, Tensor], list[str], list[tuple[str, str]]]]):
    """Batches of files, decoded and preprocessed: inputs, names, and the files that could not be read."""

    def __init__(self, paths: Sequence[Path], encoder: BaseEncoder, root: Path | None, batch_size: int) -> None:
        self.paths, self.root, self.batch_size = paths, root, batch_size
        self.preprocess = encoder.preprocess_images

    def __len__(self) -> int:
        return -(-len(self.paths) // self.batch_size)

    def __getitem__(self, number: int) -> tuple[dict[str, Tensor], list[str], list[tuple[str, str]]]:
        images, ids, failed = [], [], []
        for path in self.paths[number * self.batch_size : (number + 1) * self.batch_size]:
            name = str(path if self.root is None else path.relative_to(self.root))
            try:
                images.append(open_image(path))
                ids.append(name)
            except (OSError, ValueError) as error:
                failed.append((name, str(error)))
        return (self.preprocess(images) if images else {}), ids, failed


def image_source(
    paths: Sequence[Path],
    encoder: BaseEncoder,
    *,
    root: Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    skip_errors: bool = False,
) -> Source:
    """Encode image files.

    Args:
        paths: The files, in order.
        encoder: Turns them into embeddings.
        root: Folder that ids are relative to.
        batch_size: Images encoded at once.
        workers: Processes that decode and resize ahead of the model; 0 does it in this one.
        skip_errors: Leave out files that cannot be read and list them in ``skipped``, instead of raising.

    Raises:
        ValueError: While reading, if a file is no image or truncated; names the file.
    """
    skipped: list[dict[str, str]] = []
    loader = DataLoader(
        _ImageBatches(paths, encoder, root, batch_size),
        batch_size=None,
        num_workers=workers,
        pin_memory=encoder.device.type == "cuda",
    )

    def batches() -> Iterator[SourceBatch]:
        for inputs, ids, failed in loader:
            if failed and not skip_errors:
                raise ValueError(failed[0][1])
            skipped.extend({"id": name, "reason": reason} for name, reason in failed)
            if ids:
                yield SourceBatch(encoder.project_image(inputs), ids)

    return Source(batches(), len(paths), encoder.spec, encoder.id, "image", skipped=skipped)


def caption_source(captions: Captions, encoder: BaseEncoder, *, batch_size: int = 256) -> Source:
    """Encode captions; those of one image form a group."""

    def batches() -> Iterator[SourceBatch]:
        for start in range(0, len(captions.texts), batch_size):
            rows = slice(start, start + batch_size)
            groups: Any = None if captions.groups is None else captions.groups[rows]
            yield SourceBatch(encoder.encode_text(captions.texts[rows]), captions.ids[rows], groups)

    total = len(captions.texts)
    return Source(batches(), total, encoder.spec, encoder.id, "text", captions.groups, encoder=encoder)


def build_reference(
    source: Source, *, dataset: str | None = None, max_samples: int = 10_000, allow_normalized: bool = False
) -> ReferenceSet:
    """Build a reference set from a source; arguments and errors as of ``ReferenceSet.fit``."""
    reference = ReferenceSet.fit(
        (batch.embeddings for batch in source),
        spec=source.spec,
        modality=source.modality,
        dataset=dataset,
        groups=source.groups,
        max_samples=max_samples,
        allow_normalized=allow_normalized,
    )
    reference.encoder_id = source.encoder_id
    return reference


def _agreed(name: str, told: str | None, found: list[str | None]) -> str | None:
    """Settle what an argument and the files say of the origin, refusing a contradiction."""
    values = sorted({value for value in [told, *found] if value is not None})
    if len(values) > 1:
        raise ValueError(f"{name}: what was told and what the files say disagree: {', '.join(values)}.")
    return values[0] if values else None


class Score(NamedTuple):
    """A scored run."""

    summary: dict[str, Any]
    """Plain numbers, as the command prints them."""
    ids: list[str]
    conformities: Tensor
    """Conformity of every sample to the reference, ``(N,)`` float64."""
    norms: Tensor
    """Norm of every raw embedding, ``(N,)`` float64."""


def score(source: Source, reference: ReferenceSet, *, resamples: int = 1000, allow_normalized: bool = False) -> Score:
    """Score a stream of samples against a reference.

    Args:
        source: The evaluated samples.
        reference: What they are compared with.
        resamples: Bootstrap redraws for the interval and the noise floor.
        allow_normalized: Take L2-normalised embeddings.

    Raises:
        ValueError: If encoder or modality are others than the reference's, the dimension does not fit, there are too
            few samples, or rows are zero, NaN, infinite or L2-normalised.
    """
    check_modality(source.modality, reference)
    remarks = reference.check_encoder(source.spec, source.encoder_id)
    metrics = ConformityMetrics(reference, allow_normalized=allow_normalized)
    ids: list[str] = []
    conformities, norms = [], []
    for batch in source:
        metrics.update(batch.embeddings, groups=batch.groups)
        ids += batch.ids
        rows = batch.embeddings.double().cpu()
        norm = torch.linalg.vector_norm(rows, dim=1)
        fine = within_range(norm)  # the others are reported by compute
        values = torch.full_like(norm, float("nan"))
        if fine.any():
            values[fine] = conformity(rows[fine], reference)
        conformities.append(values)
        norms.append(norm)
    if not ids:
        raise ValueError(f"no sample could be read: {len(source.skipped)} of {source.count} were skipped.")
    summary = summarize(metrics, reference, resamples=resamples)
    summary["measured"] = {"encoder": source.spec or reference.spec, "modality": source.modality, "remarks": remarks}
    return Score(summary | source.remarks, ids, torch.cat(conformities), torch.cat(norms))


def check_modality(modality: str | None, reference: ReferenceSet) -> None:
    """Refuse samples of another modality than the reference's, where both are declared."""
    if modality is not None and reference.modality is not None and modality != reference.modality:
        raise ValueError(
            f"the samples are {modality} and the reference is {reference.modality}: they lie in different "
            f"places, so conformity between them says nothing; give a {modality} reference."
        )


def summarize(metrics: ConformityMetrics, reference: ReferenceSet, *, resamples: int = 1000) -> dict[str, Any]:
    """Read every figure out of the metrics, as plain numbers with the verdict in words."""
    kl, base = metrics["ConformityKL"], metrics["Conformity"]
    assert isinstance(kl, ConformityKL)
    assert isinstance(base, Conformity)
    values = {name: float(value) for name, value in metrics.compute().items()}
    low, high = kl.interval(resamples=resamples)
    summary: dict[str, Any] = {"count": base.num_samples}
    summary |= {name: value for name, value in values.items() if name != "ConformityKL"}
    summary |= {
        "reference_conformity_std": float(reference.conformities.std()),
        "reference_self_conformity": float(reference.self_conformity),
        "reference_self_conformity_se": float(reference.self_conformity_se),
        "conformity_kl": values["ConformityKL"],
        "reverse_kl": float(kl.reverse()),
        "kl_low": float(low),
        "kl_high": float(high),
        "noise_floor": float(kl.noise_floor(resamples=resamples)),
        "kl_is_lower_bound": kl.is_lower_bound,
        "exact": base.exact and reference.exact,
    }
    return summary | {"verdict": verdict(summary), "reference": reference.describe()}


def verdict(summary: dict[str, Any]) -> dict[str, str]:
    """Say in words whether the samples are as typical and as varied as the reference.

    Typicality differs when the KL's interval lies above the noise floor; variety, when the self-conformities are
    more than 1.96 standard errors apart. Otherwise no difference can be told at this N.
    """
    if summary["kl_low"] > summary["noise_floor"]:
        if abs(summary["typicality_shift"]) < 0.1:
            typical = "as typical on average as the reference, but the spread differs"
        else:
            side = "more" if summary["typicality_shift"] > 0 else "less"
            typical = f"{side} typical than the reference"
    else:
        typical = "typicality: cannot tell from the reference's at this N"
    apart = summary["self_conformity_mean"] - summary["reference_self_conformity"]
    error = (summary["self_conformity_se"] ** 2 + summary["reference_self_conformity_se"] ** 2) ** 0.5
    if abs(apart) > 1.96 * error:
        varied = "less varied than the reference" if apart > 0 else "more varied than the reference"
    else:
        varied = "variety: cannot tell from the reference's at this N"
    return {"typical": typical, "varied": varied}


def write_per_sample(path: Path | str, result: Score) -> None:
    """Write id, conformity, norm and rank of every sample as CSV, from the most to the least typical.

    Raises:
        OSError: If the file cannot be written.
    """
    order = result.conformities.argsort(descending=True, stable=True).tolist()
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["id", "conformity", "norm", "rank"])
        for rank, row in enumerate(order, start=1):
            writer.writerow([result.ids[row], f"{result.conformities[row]:.9g}", f"{result.norms[row]:.9g}", rank])
