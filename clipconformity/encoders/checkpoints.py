"""Checks of checkpoints before a library opens them, and access to a hub that may not respond."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from clipconformity.data.hub import is_hub_reachable
from clipconformity.data.limits import check_limit
from clipconformity.data.untrusted import check_input, check_unpickling, format_value, read_json

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".npz", ".onnx")
"""Suffixes of weights; other files are small."""
SETTINGS = (
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
)
"""Files with a JSON object, where they exist."""
IMAGE_SIZE_SETTINGS = ("size", "image_size", "crop_size", "height", "width", "shortest_edge", "longest_edge")
"""Names of settings for the size of images."""
MAX_BUFFER_VALUES = 2**20
"""Values that a model may have beyond the size of its files: buffers that are not stored."""


def check_checkpoint(folder: Path) -> None:
    """Refuse a folder with files that are not regular or too large, or that describe a model that is too large.

    Raises:
        OSError: If a file is a pipe or a device, or is missing.
        ValueError: If one is over a limit, is broken, or holds a pickle that is not safe to read.
    """
    files = [check_input(path, "file") for path in sorted(folder.iterdir()) if not path.is_dir()]
    weights = [path for path in files if path.suffix in WEIGHTS]
    check_limit(folder, "checkpoint_bytes", sum(path.stat().st_size for path in weights))
    for path in files:
        if path not in weights:
            check_limit(path, "config_bytes", path.stat().st_size)
    if weights and not any(path.suffix == ".safetensors" for path in weights):
        check_unpickling(weights[0])
    for path in files:
        if path.name in SETTINGS:
            content = read_json(path, "file")
            if not isinstance(content, dict):
                raise ValueError(f"{path}: expected settings by name, got {format_value(content)}.")
            _check_settings(path, content)


def _check_settings(path: Path, content: dict[str, Any]) -> None:
    """Refuse settings with too many layers or too large images."""
    processes = "processor" in path.name  # in the settings of a model, width is that of a layer
    todo = [(content, processes)]
    while todo:
        settings, of_images = todo.pop()
        for name, value in settings.items():
            if isinstance(value, dict):
                todo.append((value, of_images or name in ("vision_config", "vision_cfg", "preprocess_cfg")))
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, bool) or not isinstance(number, int | float):
                    continue
                found = int(min(number, 2**60))
                if "layers" in name or name == "depth":
                    check_limit(f"{path}: {name}", "layers", found)
                elif name in IMAGE_SIZE_SETTINGS and (of_images or "image" in name) and (processes or name != "width"):
                    check_limit(f"{path}: {name}", "resolution", found)


def check_size(folder: Path, skeleton: torch.nn.Module) -> None:
    """Refuse a model with more values than its files can hold: the rest would be random, at any size.

    Args:
        folder: Folder of the checkpoint.
        skeleton: The model on the meta device, without values.

    Raises:
        ValueError: If the model is too large.
    """
    _check_held(folder, sum(value.numel() for value in (*skeleton.parameters(), *skeleton.buffers())))


def check_widths(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings of open_clip, which builds a model in memory, whose towers have more values than the files hold.

    Raises:
        ValueError: If they do, or are not as expected.
    """
    model = settings.get("model_cfg")
    if not isinstance(model, dict) or not all(
        isinstance(model.get(f"{name}_cfg"), dict) for name in ("vision", "text")
    ):
        raise ValueError("its open_clip_config.json has no model_cfg with vision_cfg and text_cfg")
    asked = _read_size(model, "embed_dim", 1)
    for tower in (part for name, part in model.items() if name.endswith("_cfg") and isinstance(part, dict)):
        width, words, context = (_read_size(tower, name, 0) for name in ("width", "vocab_size", "context_length"))
        layers = tower.get("layers")
        count = sum(layers) if isinstance(layers, list) else _read_size(tower, "layers", 0)
        wide = max(float(tower.get("mlp_ratio") or 4), 1)
        patches = (_read_size(tower, "image_size", 0) // max(_read_size(tower, "patch_size", 16), 1)) ** 2
        asked += int(count * width**2 * (4 + 2 * wide)) + (words + context + patches) * width + context**2
    _check_held(folder, asked)


def _read_size(settings: Mapping[str, Any], name: str, default: int) -> int:
    value = settings.get(name)
    value = default if value is None else max(value) if isinstance(value, list) and value else value
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**40:
        raise ValueError(f"its {name} is {format_value(value)}; expected a whole number")
    return value


def _check_held(folder: Path, asked: int) -> None:
    held = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in WEIGHTS)
    if asked > 2 * held + MAX_BUFFER_VALUES:  # half a byte each
        raise ValueError(
            f"its configuration asks for {asked:,} values, and its files of {held:,} bytes of weights cannot hold them"
        )


@contextmanager
def use_hub(asked: bool) -> Iterator[bool]:
    """Make the hub's client use its cache alone where the hub is not needed or does not answer.

    By default the client retries for a minute. open_clip does not pass on an option for that.

    Args:
        asked: Whether the user named a model of the hub; a model named by a file is not downloaded.

    Yields:
        Whether the hub can be used.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    usable = asked and is_hub_reachable()
    constants.HF_HUB_OFFLINE = not usable
    try:
        yield usable
    finally:
        constants.HF_HUB_OFFLINE = before
