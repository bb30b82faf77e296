"""Which encoders can be loaded here."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from clipconformity.encoders.loading import TINY


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
