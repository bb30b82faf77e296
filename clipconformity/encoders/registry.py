"""From a spec to an encoder."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from clipconformity.encoders.base import BaseEncoder

TINY = Path(__file__).parent / "tiny_checkpoint"
"""The embedded default: an ordinary transformers checkpoint directory."""

KINDS = ("tiny", "open_clip:", "hf:")

OPEN_CLIP_FOLDER = "open_clip:local-dir:"


def hide_progress_bars() -> None:
    """Keep transformers from drawing a progress bar for every checkpoint that it opens, in the whole process."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def encoder_files(spec: str) -> Iterator[Path]:
    """Find the local files that a spec names: a checkpoint, or all that lies in the folder of one."""
    if spec.startswith("open_clip:") and not spec.startswith(OPEN_CLIP_FOLDER):
        yield Path(spec.partition("/")[2]).expanduser()
    else:
        named = spec.removeprefix(OPEN_CLIP_FOLDER).removeprefix("hf:")
        yield from (TINY if spec == "tiny" else Path(named)).rglob("*")


def load_encoder(
    spec: str | Path, device: str | torch.device | None = None, *, dtype: torch.dtype = torch.float32
) -> BaseEncoder:
    """Load an encoder that gives raw embeddings.

    Args:
        spec: ``"tiny"``, the small CLIP that comes with the package; ``"open_clip:ViT-B-32/openai"``, a model and its
            pretrained tag or local checkpoint, split at the first ``/``, or ``"open_clip:hf-hub:..."``;
            ``"hf:openai/clip-vit-base-patch32"``, a transformers model; or a local directory of one.
        device: Where to run; CUDA if present.
        dtype: Precision of the model's arithmetic: float32, or bfloat16 or float16 by autocast; embeddings are
            float32 always.

    Raises:
        ValueError: If the spec or the dtype is unknown, no weights are named, or the model is no dual encoder.
        FileNotFoundError: If the model cannot be found or downloaded.
        ImportError: If the extra that it needs is not installed.

    Example:
        >>> import clipconformity as cc
        >>> cc.load_encoder("tiny", device="cpu").encode_text(["a red circle"]).shape[0]
        1
    """
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype: expected torch.float32, torch.bfloat16 or torch.float16, got {dtype}.")
    where = _usable(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    name = str(spec)
    if name.startswith("open_clip:"):
        from clipconformity.encoders.open_clip import OpenCLIPEncoder

        model = name.removeprefix("open_clip:")
        hub = model.startswith(("hf-hub:", "local-dir:"))
        model, _, pretrained = (model, "", "") if hub else model.partition("/")
        if not model:
            raise ValueError(f"{name}: expected 'open_clip:MODEL/PRETRAINED', such as 'open_clip:ViT-B-32/openai'.")
        return OpenCLIPEncoder(model, pretrained or None, spec=name, device=where, dtype=dtype)
    from clipconformity.encoders.transformers import TransformersEncoder

    if name == "tiny":
        return TransformersEncoder(TINY, spec=name, device=where, dtype=dtype)
    if name.startswith("hf:"):
        return TransformersEncoder(name.removeprefix("hf:"), spec=name, device=where, dtype=dtype)
    if Path(name).is_dir():
        return TransformersEncoder(Path(name), spec=name, device=where, dtype=dtype)
    raise ValueError(_unknown(name))


def _usable(device: str | torch.device) -> torch.device:
    """Give a device after a first allocation on it.

    Raises:
        ValueError: If it cannot be used here.
    """
    try:
        return torch.empty(1, device=device).cpu().new_empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:150]
        raise ValueError(f"device {str(device)!r} cannot be used here ({reason}); try 'cpu'.") from None


def _unknown(name: str) -> str:
    known = "'tiny', 'open_clip:MODEL/PRETRAINED', 'hf:ORGANISATION/MODEL' or a local directory"
    message = f"encoder {name!r} is unknown: expected {known}"
    kind, colon, rest = name.partition(":")
    near = difflib.get_close_matches(kind + colon, KINDS, n=1, cutoff=0.5)
    if near:
        return f"{message}; did you mean '{near[0]}{rest}'?"
    if "/" in name:
        return f"{message}; did you mean 'hf:{name}'?"
    return message + "."


def available_encoders() -> dict[str, Any]:
    """Say which kinds of encoder are usable, with dimension and resolution where they are known without a download.

    Returns:
        For each kind its specs, the version of what it rests on, or the extra that is missing.
    """
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    tiny = {"spec": "tiny", "embed_dim": config["projection_dim"], "resolution": config["vision_config"]["image_size"]}
    return {
        "tiny": tiny,
        "hf": _installed("transformers", "transformers", None) | {"spec": "hf:ORGANISATION/MODEL or a local directory"},
        "open_clip": _installed("open_clip", "open_clip_torch", "open_clip") | _open_clip_models(),
    }


def _installed(module: str, package: str, extra: str | None) -> dict[str, Any]:
    try:
        if find_spec(module) is not None:
            return {"installed": version(package)}
    except (PackageNotFoundError, ValueError):
        pass
    name = "clipconformity" if extra is None else f"clipconformity[{extra}]"
    return {"installed": None, "install": f"pip install '{name}'"}


def _open_clip_models() -> dict[str, Any]:
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
            }
        )
    return {"models": models}
