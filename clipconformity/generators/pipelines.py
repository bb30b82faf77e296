"""A common call for pipelines and functions that make images, and descriptions that identify them."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipconformity.data.images import to_images
from clipconformity.provenance import shorten_paths


def unwrap(generator: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Unwrap a generator from ``functools.partial`` and its bound call, to see weights and options."""
    inner: Any = generator
    given = options
    while isinstance(inner, functools.partial) and not inner.args:
        inner, given = inner.func, inner.keywords | given
    if inspect.ismethod(inner) and inner.__name__ == "__call__":
        inner = inner.__self__
    if _is_pipeline(inner):
        for name, instead in (
            ("prompt", "prompts"),
            ("generator", "seed"),
            ("num_images_per_prompt", "images_per_prompt"),
        ):
            if name in given:
                raise ValueError(f"options: {name!r} is set for every image here; give {instead} instead.")
        return inner, given
    known = _list_parameters(inner)
    named = [p for p in known.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if known and len(named) < 2:
        raise TypeError("generator: expected a pipeline with prompt and generator, or a function of prompts and seeds.")
    return inner, given


def adapt_generator(
    generator: Callable[..., Any], options: dict[str, Any]
) -> tuple[Callable[[list[str], list[int]], list[Image.Image]], bool]:
    """Return a function of prompts and seeds, and whether it takes several prompts at once."""
    if _is_pipeline(generator):
        takes = str(_list_parameters(generator)["generator"].annotation)
        return _adapt_pipeline(generator, options), "list" in takes.lower()
    return (lambda prompts, seeds: _extract_images(generator(prompts, seeds, **options))), True


def _is_pipeline(generator: Callable[..., Any]) -> bool:
    return {"prompt", "generator"} <= set(_list_parameters(generator))


def _list_parameters(generator: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(generator).parameters)
    except ValueError:  # some built-in callables have no signature
        return {}


def _adapt_pipeline(
    pipeline: Callable[..., Any], options: dict[str, Any]
) -> Callable[[list[str], list[int]], list[Image.Image]]:
    def call(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        # On the CPU for any device of the pipeline, so that the noise is the same on every machine.
        noise = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        one = len(noise) == 1
        given = {  # one for each prompt, as Stable Diffusion requires
            name: [value] * len(prompts) if name.startswith("negative_prompt") and isinstance(value, str) else value
            for name, value in options.items()
        }
        return _extract_images(pipeline(prompt=prompts, generator=noise[0] if one else noise, **given))

    return call


def _extract_images(result: Any) -> list[Image.Image]:
    """Extract the images from a pipeline's output object, its tuple, or a list."""
    images = getattr(result, "images", result)
    if isinstance(images, tuple) and images and not isinstance(images[0], Image.Image):
        images = images[0]  # a pipeline's tuple of a batch and its flags
    return to_images(images)


def describe_settings(generator: Callable[..., Any], options: Mapping[str, Any]) -> str:
    """Describe pipeline and options in a line that is the same in every process; tensors by their content."""
    kind = f"{type(generator).__name__} {_describe_model(generator)}" if _is_pipeline(generator) else "function"
    given = {key: _format_plain(value) for key, value in sorted(options.items())}
    return f"{kind} {json.dumps(given, ensure_ascii=False)}"


def _describe_model(pipeline: Any) -> str:
    """Identify checkpoint, adapters and scheduler, by the ends of each weight and the scheduler's config."""
    parts = []
    for name, part in getattr(pipeline, "components", {}).items():
        if isinstance(part, torch.nn.Module):
            parts += [
                f"{name} {_describe_weight(value)}"
                for value in part.state_dict().values()
                if isinstance(value, torch.Tensor)
            ]
        elif name.endswith("scheduler"):
            config = {key: value for key, value in part.config.items() if not key.startswith("_")}
            parts.append(f"{name} {type(part).__name__} {json.dumps(config, sort_keys=True, default=str)}")
    return _hash_bytes("\n".join(sorted(parts)).encode())


def _describe_weight(value: torch.Tensor) -> str:
    """Shape and a few values of a weight; of one on the meta device, the shape."""
    flat = value.detach().flatten()
    if flat.device.type == "meta":
        return str(tuple(value.shape))
    some = torch.cat([flat[:256], flat[-256:]]).double().cpu()
    return f"{tuple(value.shape)} {_hash_bytes(some.numpy().tobytes())}"


def _format_plain(value: Any) -> Any:
    if isinstance(value, (str, Path)):
        text = shorten_paths(str(value))  # stored in the images: the name and a hash identify the path
        return text if text == str(value) else f"{text} {_hash_bytes(str(value).encode(errors='surrogatepass'))}"
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_format_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _format_plain(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {tuple(value.shape)} {_hash_bytes(content)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {_hash_bytes(value.tobytes())}"
    if isinstance(value, Image.Image):
        return f"{value.mode} {value.size} {_hash_bytes(value.tobytes())}"
    return f"{type(value).__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _hash_bytes(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()
