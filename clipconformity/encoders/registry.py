"""From a spec to an encoder."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:  # the help of the commands shows the table, without torch
    import torch

    from clipconformity.encoders.base import BaseEncoder

SEE_CARD = "see its card"
"""Licence of weights whose licence is not known here."""
LICENCES = {
    r"timm/.*\.metaclip_": "CC-BY-NC-4.0",
    r"timm/vit-.*-siglip": "Apache-2.0",
    r"timm/pe-core": "Apache-2.0",
    r"laion/clip-(?!.*commonpool)": "MIT",
}
"""Licences of published weights in the cards of their repositories, by the start of their names on the hub."""
TINY = Path(__file__).parent / "tiny_checkpoint"
"""The embedded default: an ordinary transformers checkpoint directory."""


class Package(NamedTuple):
    """The package that a family needs."""

    module: str
    name: str
    """Name in the package index."""
    extra: str | None = None
    """The extra of clipconformity that installs it; None where it comes with the library."""


class Family(NamedTuple):
    """A kind of encoder: one row of ``FAMILIES``."""

    start: str
    """Start of its specs, up to a colon; without a colon, the whole spec."""
    form: str
    """Form of the rest of a spec, for help and errors."""
    loader: str
    """``module:name`` of a function ``(model, *, spec, device, dtype)`` that makes the encoder, imported on use."""
    package: Package | None = None
    place: Path | None = None
    """The model, where the spec does not name it."""
    about: Callable[[], dict[str, Any]] | None = None
    """Makes the entry of ``available_encoders`` beside the package; by default the form of a spec."""
    files: Callable[[str], Iterable[Path]] | None = None
    """Returns the local files that the rest of a spec names; by default all files of a folder."""

    @property
    def name(self) -> str:
        """Name in ``available_encoders``."""
        return self.start.removesuffix(":")

    def model(self, spec: str) -> str | Path | None:
        """Return the model that a spec names; None if it is of another family."""
        fits = spec.startswith(self.start) if self.start.endswith(":") else spec == self.start
        return (self.place or spec.removeprefix(self.start)) if fits else None


def hide_progress_bars() -> None:
    """Keep transformers from drawing a progress bar for every checkpoint that it opens, in the whole process."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def find_encoder_files(spec: str) -> Iterator[Path]:
    """Find the local files that a spec names: a checkpoint, or all files of its folder."""
    family, model = _find_family(spec)
    if family is not None and family.files is not None:
        yield from family.files(str(model))
    else:
        yield from Path(model).rglob("*")


def list_encoder_forms() -> str:
    """List the forms of specs, for help and errors."""
    return f"{', '.join(repr(family.start + family.form) for family in FAMILIES)} or a local directory"


def load_encoder(
    spec: str | Path, device: str | torch.device | None = None, *, dtype: torch.dtype | None = None
) -> BaseEncoder:
    """Load an encoder of raw embeddings.

    Args:
        spec: ``"tiny"``, the small CLIP that comes with the package; ``"open_clip:ViT-B-32/openai"``, a model and its
            pretrained tag or local checkpoint, split at the first ``/``, or ``"open_clip:hf-hub:..."``;
            ``"hf:openai/clip-vit-base-patch32"``, a transformers model; ``"st:all-MiniLM-L6-v2"``, a model of
            sentence-transformers, for texts only, by name or directory; or a local directory of one of the last two.
        device: Device of the model; by default CUDA if present.
        dtype: Precision of the model's arithmetic: float32, the default, or bfloat16 or float16 by autocast;
            embeddings are float32 always.

    Raises:
        ValueError: If the spec or the dtype is unknown, no weights are named, the model is of another kind, or it
            cannot be run.
        FileNotFoundError: If the model cannot be found or downloaded.
        ImportError: If the extra that it needs is not installed.

    Example:
        >>> import clipconformity as cc
        >>> cc.load_encoder("tiny", device="cpu").encode_text(["a red circle"]).shape[0]
        1
    """
    import torch

    dtype = torch.float32 if dtype is None else dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype: expected torch.float32, torch.bfloat16 or torch.float16, got {dtype}.")
    where = _check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = str(spec)
    family, model = _find_family(name)
    if family is not None:
        loader = family.loader
    elif name and Path(name).is_dir():
        loader, model = (SENTENCES if (Path(name) / "modules.json").is_file() else FOLDER), Path(name)
    else:
        raise ValueError(_make_unknown_error(name))
    encoder: BaseEncoder = resolve_name(loader)(model, spec=name, device=where, dtype=dtype)
    return encoder


def _find_family(spec: str) -> tuple[Family | None, str | Path]:
    """Return the family of a spec, and the model that it names; None and the spec where there is no such family."""
    for family in FAMILIES:
        model = family.model(spec)
        if model is not None:
            return family, model
    return None, spec


def _check_device(device: str | torch.device) -> torch.device:
    """Return a device after a first allocation on it.

    Raises:
        ValueError: If the device cannot be used here.
    """
    import torch

    try:
        return torch.empty(1, device=device).cpu().new_empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:150]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu'.") from None


def _make_unknown_error(name: str) -> str:
    message = f"encoder {name!r} is unknown: expected {list_encoder_forms()}"
    kind, colon, rest = name.partition(":")
    near = difflib.get_close_matches(kind + colon, [family.start for family in FAMILIES], n=1, cutoff=0.5)
    if near:
        return f"{message}; did you mean '{near[0]}{rest}'?"
    if "/" in name:
        return f"{message}; did you mean 'hf:{name}'?"
    return message + "."


def available_encoders() -> dict[str, Any]:
    """List the kinds of encoder that can be used, with dimension and resolution where known without a download.

    Returns:
        For each kind its specs, the version of its package, or the missing extra.
    """
    found = {}
    for family in FAMILIES:
        about = {"spec": family.start + family.form} if family.about is None else family.about()
        found[family.name] = ({} if family.package is None else _is_installed(family.package)) | about
    return found


def encoder_specs() -> list[dict[str, Any]]:
    """List every complete spec with its licence, and dimension and resolution where known."""
    found = []
    for about in available_encoders().values():
        for model in about.get("models", [about]):
            plain = {name: model[name] for name in ("embed_dim", "resolution") if name in model}
            tags = model.get("pretrained", [""])
            licences = model.get("licences", [model.get("licence", SEE_CARD)] * len(tags))
            found += [
                {"spec": model["spec"].replace("PRETRAINED", tag)} | plain | {"licence": licence}
                for tag, licence in zip(tags, licences, strict=True)
            ]
    return found


def _is_installed(package: Package) -> dict[str, Any]:
    try:
        if find_spec(package.module) is not None:
            return {"installed": version(package.name)}
    except (PackageNotFoundError, ValueError):
        pass
    name = "clipconformity" if package.extra is None else f"clipconformity[{package.extra}]"
    return {"installed": None, "install": f"pip install '{name}'"}


def _load_tiny() -> dict[str, Any]:
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    side = config["vision_config"]["image_size"]
    return {"spec": "tiny", "embed_dim": config["projection_dim"], "resolution": side, "licence": "Apache-2.0"}


def _find_open_clip_files(model: str) -> Iterator[Path]:
    if model.startswith("local-dir:"):
        yield from Path(model.removeprefix("local-dir:")).rglob("*")
    else:
        yield Path(model.partition("/")[2]).expanduser()


def _read_licence(settings: dict[str, Any]) -> str:
    """Return the licence in the card of the weights' repository; for others, a hint to read the card."""
    repository = str(settings.get("hf_hub") or "").lower()
    return next((licence for name, licence in LICENCES.items() if re.match(name, repository)), SEE_CARD)


def _list_open_clip_models() -> dict[str, Any]:
    if find_spec("open_clip") is None:
        return {}
    import open_clip

    models = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        tags = open_clip.list_pretrained_tags_by_model(name)
        vision = config.get("vision_cfg", {})
        models.append(
            {
                "spec": f"open_clip:{name}/PRETRAINED",
                "embed_dim": config.get("embed_dim"),
                "resolution": vision.get("image_size", 224),
                "pretrained": tags,
                "licences": [_read_licence(open_clip.get_pretrained_cfg(name, tag)) for tag in tags],
            }
        )
    return {"models": models}


FOLDER = "clipconformity.encoders.transformers:TransformersEncoder"
"""Loader of a local directory."""
SENTENCES = "clipconformity.encoders.sentence_transformers:SentenceEncoder"
"""Loader of a directory of sentence-transformers, which has a list of modules."""
FAMILIES: tuple[Family, ...] = (
    Family("tiny", "", FOLDER, place=TINY, about=_load_tiny),
    Family("open_clip:", "MODEL/PRETRAINED", "clipconformity.encoders.open_clip:load",
           Package("open_clip", "open_clip_torch", "open_clip"), about=_list_open_clip_models,
           files=_find_open_clip_files),
    Family("hf:", "ORGANISATION/MODEL", FOLDER, Package("transformers", "transformers"),
           about=lambda: {"spec": "hf:ORGANISATION/MODEL or a local directory", "licence": SEE_CARD}),
    Family("st:", "MODEL", SENTENCES,
           Package("sentence_transformers", "sentence-transformers", "sentence-transformers"),
           about=lambda: {"spec": "st:MODEL or a local directory", "licence": SEE_CARD}),
)  # fmt: skip
"""Every kind of encoder. A new one needs only a row here: loading, errors, the list and the help follow."""
