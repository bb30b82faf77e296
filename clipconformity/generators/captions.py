"""Image to text: captioners into COCO results files, and the human references as their yardstick."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from clipconformity.data import Captions, write_results
from clipconformity.data.brief import format_brief
from clipconformity.data.captions import ImageId
from clipconformity.data.files import check_output, replace_file
from clipconformity.data.images import open_image
from clipconformity.data.locks import hold_lock
from clipconformity.data.results import (
    coco_image_id,
    list_first,
    list_ids,
    read_result_entries,
    refuse_duplicates,
)
from clipconformity.generators.runs import check_split, format_json_line, make_progress_bar, rank_path, split_batches


class TransformersCaptioner:
    """A captioner of transformers as a function from images to texts.

    For BLIP, GIT and LLaVA-like models, ``processor`` is the model's own. A vision-encoder-decoder has an image
    processor and a separate tokenizer: give both. Captions do not depend on the batch size unless they are sampled.

    Args:
        model: A model with ``generate``.
        processor: Converts images, and a prompt, to the model's inputs; it also decodes unless a tokenizer is given.
        tokenizer: Decodes, where the processor does not.
        prompt: Beginning of the caption, or the instruction of a LLaVA-like model, which is inserted into the
            processor's chat template unless it has the image token already. It is removed from the caption.
        options: Further arguments of ``generate``, such as ``{"num_beams": 3}``.
        max_new_tokens: Largest number of tokens of a caption.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        tokenizer: Any = None,
        prompt: str | None = None,
        options: Mapping[str, Any] | None = None,
        max_new_tokens: int = 40,
    ) -> None:
        self.model, self.processor = model, processor
        self.prompt = None if prompt is None else _apply_template(processor, prompt)
        self.tokenizer = processor if tokenizer is None else tokenizer
        self.options = {"max_new_tokens": max_new_tokens} | dict(options or {})

    def __call__(self, images: list[Image.Image]) -> list[str]:
        """Caption images."""
        text: dict[str, Any] = {}
        if self.prompt is not None:  # padded where images of different sizes have different numbers of tokens
            text = {"text": [self.prompt] * len(images), "padding": True}
        inputs = self.processor(images=images, return_tensors="pt", **text)
        moved = {name: self._move_inputs(value) for name, value in inputs.items()}
        with torch.inference_mode():
            tokens = self.model.generate(**moved, **self.options)
        given = moved.get("input_ids")
        start = ""
        if given is not None:
            size = given.shape[1]
            if tokens.shape[1] >= size and torch.equal(tokens[:, :size], given):
                tokens = tokens[:, size:]  # decoder-only models return the prompt
            else:  # others return it as their tokenizer spells it, or not at all
                start = self.tokenizer.batch_decode(given[:1], skip_special_tokens=True)[0].strip()
        texts: list[str] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [_strip_prefix(text.strip(), start) for text in texts]

    def _move_inputs(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(self.model.device, self.model.dtype if value.is_floating_point() else None)


def _apply_template(processor: Any, prompt: str) -> str:
    """Insert an instruction into the chat template of a LLaVA-like model; without a template return it as it is."""
    words = getattr(processor, "tokenizer", None)
    if words is not None:
        words.padding_side = "left"  # the caption begins where the prompt ends
    token = getattr(processor, "image_token", None)
    if getattr(processor, "chat_template", None) is None or token is None or str(token) in prompt:
        return prompt
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    made: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return made


def _strip_prefix(text: str, start: str) -> str:
    """Remove a prefix of whole words."""
    if not start or not text.lower().startswith(start.lower()):
        return text
    rest = text[len(start) :]
    return rest.strip() if not (start[-1].isalnum() and rest[:1].isalnum()) else text


@dataclass
class CaptionRun:
    """Results of this rank.

    Attributes:
        path: The COCO results file.
        captions: The captions in it.
        generated: Images captioned by this call.
        reused: Captions found from an earlier call.
        empty: Images with an empty caption; they are not in the file.
    """

    path: Path
    captions: Captions
    generated: int = 0
    reused: int = 0
    empty: list[ImageId] = field(default_factory=list)

    def __repr__(self) -> str:
        counts = {"generated": self.generated, "reused": self.reused, "empty": len(self.empty)}
        return format_brief(self, path=self.path, captions=len(self.captions.texts), **counts)


def caption_images(
    captioner: Callable[[list[Image.Image]], Sequence[str]],
    paths: Sequence[Path],
    output: Path | str,
    *,
    image_ids: Sequence[ImageId] | None = None,
    batch_size: int = 8,
    rank: int = 0,
    world: int = 1,
    on_empty: Literal["raise", "skip"] = "raise",
    settings: str | None = None,
    progress: bool | None = None,
) -> CaptionRun:
    """Caption images into a COCO results file; captions that are there already are kept.

    Captions are stored in a file of JSON lines beside the output at once, and the results file is written at the end. A
    second call reads these lines, or the results file, and captions the rest. While another process writes the same
    file it waits, with a warning.

    Args:
        captioner: Returns a string for each of a list of RGB images: a :class:`TransformersCaptioner` or any function.
        paths: The image files.
        output: Results file to write (.json). With ``world`` above 1, each process writes its own, with its number in
            the name; :func:`~clipconformity.data.merge_results` joins them.
        image_ids: Ids of the images; by default from their names, by :func:`~clipconformity.data.coco_image_id`.
        batch_size: Images captioned at once.
        rank: Number of this process.
        world: Number of processes; each takes every ``world``-th image.
        on_empty: Whether a caption without words is an error, or left out of the results and counted.
        settings: Description of the captioner, such as checkpoint, prompt and beams; stored beside the results, and a
            later call with others is refused. Without it captioners are not distinguished.
        progress: Whether to show a progress bar on standard error; by default where that is a terminal.

    Raises:
        ValueError: If there is no image, ids come twice, a number does not fit, the captioner returns another number
            of captions, a caption is empty, or the file holds captions of other images or settings.
        TypeError: If a caption is not a string.
    """
    ids = [coco_image_id(path) for path in paths] if image_ids is None else list_ids(image_ids)
    _check_run(paths, ids, batch_size, rank, world, on_empty)
    share = list(zip(ids, paths, strict=True))[rank::world]
    target = rank_path(output, rank, world)
    check_output(target)
    with hold_lock(target.with_name(f".{target.name}.lock"), target):
        _check_settings(target, settings)
        return _run(captioner, share, target, batch_size, on_empty, progress)


def _run(
    captioner: Callable[[list[Image.Image]], Sequence[str]],
    share: list[tuple[ImageId, Path]],
    target: Path,
    batch_size: int,
    on_empty: Literal["raise", "skip"],
    progress: bool | None,
) -> CaptionRun:
    """Caption the missing images of this rank, and write the results."""
    partial = target.with_name(target.name + ".partial.jsonl")
    done = _read_finished(target, partial, [name for name, _ in share])
    todo = [(name, path) for name, path in share if name not in done]
    with (
        partial.open("a", encoding="utf-8") as lines,
        make_progress_bar(len(share), len(share) - len(todo), progress) as bar,
    ):
        for batch in split_batches(todo, batch_size):
            texts = _check_texts(captioner([open_image(path) for _, path in batch]), len(batch))
            for (name, _), text in zip(batch, texts, strict=True):
                done[name] = text
                lines.write(_format_line(name, text))
            lines.flush()
            bar.update(len(batch))
    empty = [name for name, _ in share if not done[name]]
    if empty and on_empty == "raise":
        raise ValueError(
            f"{len(empty)} of {len(share)} captions are empty; the first images are {list_first(empty)}. "
            "Leave them out with on_empty='skip'."
        )
    kept = [name for name, _ in share if done[name]]
    captions = Captions.of_images(kept, [done[name] for name in kept])
    write_results(target, kept, captions.texts)
    if not empty:  # else it still lists the empty ones
        partial.unlink()
    return CaptionRun(target, captions, len(todo), len(share) - len(todo), empty)


def _check_settings(target: Path, settings: str | None) -> None:
    """Store the captioner's settings beside the results, and refuse to resume with others."""
    if settings is None:
        return
    path = target.with_name(target.name + ".settings")
    if path.is_file() and (found := path.read_text(encoding="utf-8")) != settings:
        raise ValueError(
            f"{target}: an earlier call captioned with {found!r:.120}, this one with {settings!r:.120}; name another "
            "file."
        )
    with replace_file(path) as temporary:
        temporary.write_text(settings, encoding="utf-8")


def _check_run(
    paths: Sequence[Path], ids: Sequence[ImageId], batch_size: int, rank: int, world: int, on_empty: str
) -> None:
    check_split(batch_size, rank, world)
    if on_empty not in ("raise", "skip"):
        raise ValueError(f"on_empty: expected 'raise' or 'skip', got {on_empty!r}.")
    if not paths:
        raise ValueError("paths: expected at least one image, got none.")
    if len(ids) != len(paths):
        raise ValueError(f"image_ids: expected one for each of the {len(paths)} images, got {len(ids)}.")
    refuse_duplicates("image_ids", ids)


def _check_texts(texts: Sequence[str], count: int) -> list[str]:
    if isinstance(texts, str) or len(texts) != count:
        got = "a string" if isinstance(texts, str) else f"{len(texts)} captions"
        raise ValueError(f"the captioner returned {got} for {count} images; expected a list with one for each.")
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"the captioner returned {type(text).__name__}; expected strings.")
    return [" ".join(text.split()) for text in texts]


def _read_finished(target: Path, partial: Path, ids: list[ImageId]) -> dict[ImageId, str]:
    """Read the captions of an earlier call; an incomplete last line is removed from the file."""
    done = dict(read_result_entries(target)) if target.is_file() else {}
    if partial.is_file():
        for line in partial.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            done[entry["image_id"]] = entry["caption"]
    wanted = set(ids)
    foreign = [name for name in done if name not in wanted]
    if foreign:
        raise ValueError(
            f"{target}: an earlier call captioned {len(foreign)} other images: {list_first(foreign)}; "
            "name another file."
        )
    with replace_file(partial) as temporary:
        temporary.write_text("".join(_format_line(name, text) for name, text in done.items()), encoding="utf-8")
    return done


def _format_line(name: ImageId, text: str) -> str:
    return format_json_line({"image_id": name, "caption": text})
