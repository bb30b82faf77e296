"""A small procedural world: scenes of known frequency, their drawings and their captions.

A scene is one object (shape, colour, size, position) on a background. Every attribute follows a Zipf law of
its own and the attributes are independent, so the exact probability of every scene is known: the ground truth
against which a conformity can be checked. `write_coco_scenes` stores scenes in the MS-COCO layout, so that
code written for COCO runs on them unchanged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipconformity.data.files import replace_file
from clipconformity.data.strict_json import to_json

__all__ = [
    "ATTRIBUTES",
    "ZIPF_EXPONENT",
    "Scene",
    "attribute_probabilities",
    "caption_is_true",
    "draw_scene",
    "generic_caption",
    "list_scenes",
    "sample_scenes",
    "scene_captions",
    "scene_log_frequency",
    "specific_caption",
    "write_coco_scenes",
]

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

ZIPF_EXPONENT: Final = 1.5
"""The value of rank k (from 1) of an attribute has a probability proportional to ``k ** -ZIPF_EXPONENT``."""

# From common to rare.
ATTRIBUTES: Final[dict[str, tuple[str, ...]]] = {
    "shape": ("circle", "square", "triangle", "star", "cross", "ring", "heart", "diamond", "crescent", "bar"),
    "colour": ("red", "blue", "green", "yellow", "orange", "purple", "pink", "cyan"),
    "size": ("large", "small", "tiny"),
    "position": ("middle", "left", "right", "top", "bottom"),
    "background": ("snow", "grass", "sand", "water", "asphalt", "brick"),
}

# The probability that a caption states an attribute; the shape is always stated.
_KEEP: Final = {"colour": 0.75, "size": 0.4, "position": 0.4, "background": 0.5}
_SYNONYMS: Final = {"large": ("large", "big"), "small": ("small", "little"), "middle": ("middle", "centre")}
_OPENINGS: Final = ("", "", "there is ", "a picture of ")

_COLOURS: Final = {
    "red": (220, 30, 35),
    "blue": (35, 70, 225),
    "green": (40, 190, 60),
    "yellow": (245, 225, 45),
    "orange": (245, 135, 25),
    "purple": (130, 45, 170),
    "pink": (250, 140, 195),
    "cyan": (70, 220, 235),
}
_BACKGROUNDS: Final = {
    "snow": (236, 239, 243),
    "grass": (70, 105, 55),
    "sand": (205, 182, 140),
    "water": (65, 110, 140),
    "asphalt": (44, 44, 52),
    "brick": (140, 85, 72),
}
_RADII: Final = {"large": 0.31, "small": 0.20, "tiny": 0.13}  # in units of the image side
_DIRECTIONS: Final = {"middle": (0, 0), "left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}


@dataclass(frozen=True)
class Scene:
    """One object on a background; every field holds a value of `ATTRIBUTES`.

    Raises:
        ValueError: If a field has an unknown value.
    """

    shape: str
    colour: str
    size: str
    position: str
    background: str

    def __post_init__(self) -> None:
        for (name, values), value in zip(ATTRIBUTES.items(), astuple(self), strict=True):
            if value not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}; got {value!r}")


def attribute_probabilities(name: str, *, concentration: float = 1.0) -> Array:
    """Probabilities of an attribute's values, in the order of `ATTRIBUTES`, under p**concentration.

    Example:
        >>> attribute_probabilities("size").round(3).tolist()
        [0.647, 0.229, 0.124]
    """
    ranks = np.arange(1, len(ATTRIBUTES[name]) + 1)
    weights = ranks ** (-ZIPF_EXPONENT * concentration)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def list_scenes() -> Iterator[Scene]:
    """Every scene of the world once.

    Example:
        >>> sum(1 for _ in list_scenes())
        7200
    """
    return (Scene(*values) for values in product(*ATTRIBUTES.values()))


def scene_log_frequency(scene: Scene) -> float:
    """Exact log-probability of a scene in the world, in nats: the sum of its attributes' log-probabilities.

    Example:
        >>> common = Scene("circle", "red", "large", "middle", "snow")
        >>> rare = Scene("bar", "cyan", "tiny", "bottom", "brick")
        >>> scene_log_frequency(common) > scene_log_frequency(rare)
        True
    """
    return sum(
        math.log(attribute_probabilities(name)[values.index(value)])
        for (name, values), value in zip(ATTRIBUTES.items(), astuple(scene), strict=True)
    )


def sample_scenes(count: int, *, seed: int, concentration: float = 1.0) -> list[Scene]:
    """Sample scenes with a probability proportional to ``p ** concentration``.

    Args:
        count: Number of scenes, at least 0.
        seed: Same seed, same scenes.
        concentration: 1 is the world, above 1 a generator that collapses toward common scenes, 0 uniform.

    Raises:
        ValueError: If `count` is negative or `concentration` is not finite.
    """
    if count < 0:
        raise ValueError(f"count must be at least 0; got {count}")
    if not math.isfinite(concentration):
        raise ValueError(f"concentration must be finite; got {concentration}")
    generator = np.random.default_rng(seed)
    columns = []
    for name, values in ATTRIBUTES.items():
        chances = attribute_probabilities(name, concentration=concentration)
        columns.append(generator.choice(values, size=count, p=chances).tolist())
    return [Scene(*values) for values in zip(*columns, strict=True)]


# A shape is a test on coordinates in which it fills about the square from -1 to 1; y points down.
_SHAPES: Final[dict[str, Callable[[Array, Array], Mask]]] = {
    "circle": lambda x, y: np.hypot(x, y) < 1,
    "square": lambda x, y: np.maximum(abs(x), abs(y)) < 0.88,
    "triangle": lambda x, y: (y < 0.85) & (abs(x) < 0.6 * (y + 1)),
    "star": lambda x, y: np.hypot(x, y) < 0.42 + 0.75 * abs(np.cos(2.5 * np.arctan2(x, -y))) ** 3,
    "cross": lambda x, y: (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1),
    "ring": lambda x, y: abs(np.hypot(x, y) - 0.78) < 0.25,
    "heart": lambda x, y: (1.4 * x**2 + 1.4 * y**2 - 1) ** 3 < -4 * x**2 * y**3,
    "diamond": lambda x, y: 1.3 * abs(x) + abs(y) < 1.1,
    "crescent": lambda x, y: (np.hypot(x, y) < 1) & (np.hypot(x - 0.5, y) > 0.8),
    "bar": lambda x, y: (abs(y) < 0.3) & (abs(x) < 1.1),
}


def _paint_background(name: str, x: Array, y: Array) -> Array:
    """Colours in 0..255, shape (H, W, 3), for coordinates in 0..1."""
    mortar = (np.mod(y, 0.25) < 0.05) | (np.mod(x + 0.2 * (np.mod(y, 0.5) < 0.25), 0.4) < 0.05)
    textures = {
        "grass": 22 * np.sin(50 * x),
        "water": 18 * np.sin(40 * y + 2 * np.sin(6 * x)),
        "brick": np.where(mortar, 45.0, 0.0),
    }
    texture = textures.get(name, np.zeros_like(x))
    return np.asarray(_BACKGROUNDS[name] + texture[..., None], dtype=np.float64)


def draw_scene(scene: Scene, *, size: int = 32, seed: int) -> Image.Image:
    """Draw a scene as a square RGB image.

    Place, radius, angle, colour and pixel noise vary a little with the seed: two drawings of a scene differ.

    Args:
        scene: The scene to draw.
        size: Side in pixels, at least 8.
        seed: Same scene, size and seed, same pixels.

    Raises:
        ValueError: `size` is below 8.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels; got {size}")
    generator = np.random.default_rng(seed)
    radius = _RADII[scene.size] * generator.uniform(0.93, 1.07)
    centre = 0.5 + np.array(_DIRECTIONS[scene.position]) * (0.46 - radius) + generator.uniform(-0.03, 0.03, 2)
    angle = generator.uniform(-0.12, 0.12)
    steps = (np.arange(3 * size) + 0.5) / (3 * size)  # 3 x 3 samples a pixel
    x, y = np.meshgrid(steps, steps)
    right, down = (x - centre[0]) / radius, (y - centre[1]) / radius
    u, v = right * math.cos(angle) + down * math.sin(angle), down * math.cos(angle) - right * math.sin(angle)
    inside = _SHAPES[scene.shape]
    canvas = _paint_background(scene.background, x + generator.uniform(0, 0.1), y)
    canvas[inside(u / 1.2, v / 1.2)] = 12  # a dark rim, which keeps green visible on grass
    canvas[inside(u, v)] = np.array(_COLOURS[scene.colour]) + generator.normal(0, 8, 3)
    pixels = canvas.reshape(size, 3, size, 3, 3).mean(axis=(1, 3)) + generator.normal(0, 5, (size, size, 3))
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))


def _write_caption(scene: Scene, stated: set[str], opening: str = "", words: dict[str, str] | None = None) -> str:
    """One English caption that states the shape and the named attributes."""
    said = {name: (words or {}).get(value, value) for name, value in vars(scene).items()}
    noun = [said[name] for name in ("size", "colour") if name in stated] + [said["shape"]]
    article = "an" if noun[0][0] in "aeiou" else "a"
    parts = [f"{opening}{article} {' '.join(noun)}"]
    if "position" in stated:
        parts.append(f"at the {said['position']}")
    if "background" in stated:
        parts.append(f"on {said['background']}")
    return " ".join(parts)


def generic_caption(scene: Scene) -> str:
    """The least detailed caption: the shape alone.

    Example:
        >>> generic_caption(Scene("star", "orange", "tiny", "top", "asphalt"))
        'a star'
    """
    return _write_caption(scene, set())


def specific_caption(scene: Scene) -> str:
    """The most detailed caption: every attribute.

    Example:
        >>> specific_caption(Scene("star", "orange", "tiny", "top", "asphalt"))
        'a tiny orange star at the top on asphalt'
    """
    return _write_caption(scene, set(ATTRIBUTES))


def scene_captions(scene: Scene, *, count: int = 5, seed: int) -> list[str]:
    """Captions as several people would write them: each states the shape and leaves out some of the rest.

    Args:
        scene: The described scene.
        count: Number of captions, at least 1; they may repeat.
        seed: Same scene, count and seed, same captions.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1; got {count}")
    generator = np.random.default_rng(seed)
    captions = []
    for _ in range(count):
        stated = {name for name, chance in _KEEP.items() if generator.random() < chance}
        words = {value: str(generator.choice(choices)) for value, choices in _SYNONYMS.items()}
        captions.append(_write_caption(scene, stated, str(generator.choice(_OPENINGS)), words))
    return captions


def caption_is_true(caption: str, scene: Scene) -> bool:
    """Whether every attribute that the caption states is the scene's; other words are ignored.

    Raises:
        ValueError: The caption names no attribute at all.

    Example:
        >>> scene = Scene("circle", "red", "large", "middle", "snow")
        >>> caption_is_true("a big circle", scene), caption_is_true("a blue circle", scene)
        (True, False)
    """
    canonical = {word: value for value, words in _SYNONYMS.items() for word in words}
    known = {value for values in ATTRIBUTES.values() for value in values}
    stated = known.intersection(canonical.get(word, word) for word in re.findall("[a-z]+", caption.lower()))
    if not stated:
        raise ValueError(f"caption names no attribute of a scene: {caption!r}")
    return stated <= set(astuple(scene))


def write_coco_scenes(
    root: str | Path,
    scenes: Sequence[Scene],
    *,
    split: str = "val2017",
    captions_per_image: int = 5,
    seed: int,
) -> None:
    """Draw and caption scenes into the MS-COCO layout.

    Writes ``root/<split>/000000000001.png`` and so on, and ``root/annotations/captions_<split>.json``, whose
    image entries carry ``log_frequency`` (nats) beside COCO's own keys. Ids count from 1. Two calls with the
    same arguments write the same bytes.

    Args:
        root: Directory to write into; made if absent.
        scenes: The scenes to draw, in order.
        split: Name of the image folder, and part of the captions file's name.
        captions_per_image: Number of captions of each image, at least 1.
        seed: Seed of the drawings and the captions.
    """
    root = Path(root)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    (root / split).mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(scenes, start=1):
        draw_seed, caption_seed = np.random.SeedSequence([seed, number]).generate_state(2).tolist()
        image, name = draw_scene(scene, seed=draw_seed), f"{number:012d}.png"
        with replace_file(root / split / name) as temporary:
            image.save(temporary)
        entry = {"id": number, "file_name": name, "height": image.height, "width": image.width}
        images.append({**entry, "log_frequency": scene_log_frequency(scene)})
        for caption in scene_captions(scene, count=captions_per_image, seed=caption_seed):
            annotations.append({"id": len(annotations) + 1, "image_id": number, "caption": caption})
    info = {"description": "Procedural scenes of known frequency", "version": "1.0"}
    content = {"info": info, "images": images, "annotations": annotations}
    (root / "annotations").mkdir(exist_ok=True)
    with replace_file(root / "annotations" / f"captions_{split}.json") as temporary:
        temporary.write_text(to_json(content), encoding="utf-8")
