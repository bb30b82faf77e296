"""Models of open_clip."""

from __future__ import annotations

import difflib
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from clipconformity.data.hub import NOT_REACHED
from clipconformity.data.limits import check_limit
from clipconformity.data.untrusted import check_input, check_unpickling
from clipconformity.encoders.base import BaseEncoder, Preprocess, is_failure, make_code_error, make_unreachable_error
from clipconformity.encoders.checkpoints import check_checkpoint, check_widths, use_hub

LOCAL = "local-dir:"
SELF_CONTAINED = ("hf-hub:", LOCAL)
"""Prefixes of models that bring their own weights."""
SETTINGS = "open_clip_config.json"
"""File of settings of such a model."""
MAX_SIMILAR = 3
"""Largest number of known names in an error about an unknown one."""


def load(model: str, *, spec: str, device: torch.device, dtype: torch.dtype) -> OpenCLIPEncoder:
    """Load the model after ``open_clip:`` in a spec: ``MODEL/PRETRAINED``, split at the first ``/``, or a repository.

    Raises:
        ValueError: If no model is named, or as :class:`OpenCLIPEncoder`.
    """
    pretrained = ""
    if not model.startswith(SELF_CONTAINED):
        model, _, pretrained = model.partition("/")
    if not model:
        raise ValueError(f"{spec}: expected 'open_clip:MODEL/PRETRAINED', such as 'open_clip:ViT-B-32/openai'.")
    return OpenCLIPEncoder(model, pretrained or None, spec=spec, device=device, dtype=dtype)


class OpenCLIPEncoder(BaseEncoder):
    """Raw ``encode_image`` and ``encode_text`` of an open_clip model; CoCa, which normalises by default, included."""

    def __init__(
        self, name: str, pretrained: str | None, *, spec: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        open_clip = _import_open_clip(spec)
        options: dict[str, Any] = {}
        if not name.startswith(SELF_CONTAINED):
            options = _find_weights(open_clip, name, pretrained, spec)
        folder = Path(name.partition(":")[2]) if name.startswith(LOCAL) else None
        if folder is not None and folder.is_dir():
            check_checkpoint(folder)
        # A model named by a local file is not downloaded.
        asked = folder is None and not Path(str(options.get("pretrained"))).is_file()
        with use_hub(asked) as usable:
            model, self.tokenizer = self._load_model(
                open_clip, name, folder, options, spec, absent=asked and not usable
            )
        super().__init__(
            model,
            spec=spec,
            device=device,
            dtype=dtype,
            context_length=int(self.tokenizer.context_length),
            logit_scale=float(model.logit_scale.detach().exp()),
        )
        self._try()

    def _load_model(
        self, open_clip: Any, name: str, folder: Path | None, options: dict[str, Any], spec: str, *, absent: bool
    ) -> tuple[Any, Any]:
        if name.startswith(SELF_CONTAINED) and _allows_own_code(name):
            raise make_code_error(spec)
        try:
            with _silence_logged_errors(), _refuse_questions():
                if folder is not None and (folder / SETTINGS).is_file():
                    check_widths(folder, json.loads((folder / SETTINGS).read_text(encoding="utf-8")))
                model, self.preprocess = open_clip.create_model_from_pretrained(name, **options)
                return model, open_clip.get_tokenizer(name)
        except BaseException as error:  # any error of the library is reported in one line
            if not is_failure(error):
                raise
            if absent and re.search("download|locate|HF Hub|offline", str(error)):
                raise make_unreachable_error(spec, NOT_REACHED) from error
            raise _explain_error(spec, error) from error

    @property
    def preprocess_images(self) -> Preprocess:
        """Converts RGB images to the image tower's inputs."""
        return partial(_stack, self.preprocess)

    def _project_image(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.model.encode_image(inputs["pixels"], normalize=False)  # type: ignore[operator]

    def _project_text(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts)
        self._check_tokens(tokens, getattr(self.model, "vocab_size", None))
        self._count_cut([self._count_tokens(texts[row]) for row in self._find_full_rows(tokens)])
        return self.model.encode_text(tokens.to(self.device), normalize=False)  # type: ignore[operator]

    def _find_full_rows(self, tokens: Tensor) -> list[int]:
        """Find the texts that fill the context without padding; only these can have been cut."""
        inner = getattr(self.tokenizer, "tokenizer", None)
        padding = 0 if inner is None else inner.pad_token_id
        full = tokens[:, -1] != padding
        if inner is not None and padding == inner.eos_token_id:
            full = torch.ones_like(full)
        return full.nonzero().flatten().tolist()

    def _count_tokens(self, text: str) -> int:
        inner: Any = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:
            return len(self.tokenizer.encode(text)) + 2
        clean = getattr(self.tokenizer, "clean_fn", str)
        return len(inner(clean(text), truncation=False, verbose=False)["input_ids"])

    @property
    def _unknown_token(self) -> int | None:
        return getattr(getattr(self.tokenizer, "tokenizer", None), "unk_token_id", None)

    def _tokenise_words(self, words: list[str]) -> list[list[int]]:
        inner: Any = getattr(self.tokenizer, "tokenizer", None)
        if inner is None:
            return [self.tokenizer.encode(word) for word in words]
        clean = getattr(self.tokenizer, "clean_fn", str)
        tokens: list[list[int]] = inner([clean(word) for word in words], add_special_tokens=False)["input_ids"]
        return tokens

    def _describe_preprocessing(self) -> dict[str, str]:
        steps = re.sub(r"<function (\w+) at 0x[0-9a-f]+>", r"\1", " ".join(str(self.preprocess).split()))
        return {"preprocessing": steps, "backend": "pil"}


@contextmanager
def _silence_logged_errors() -> Iterator[None]:
    """Keep open_clip from logging errors, on the root logger, that it raises as well."""

    def below(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    root = logging.getLogger()
    root.addFilter(below)
    try:
        yield
    finally:
        root.removeFilter(below)


@contextmanager
def _refuse_questions() -> Iterator[None]:
    """Keep an answer on standard input from allowing a checkpoint's own Python.

    open_clip loads some text towers and tokenizers by transformers without refusing their code, and transformers then
    asks on standard input. An empty input refuses.
    """
    given = sys.stdin
    sys.stdin = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()):  # the question
            yield
    finally:
        sys.stdin = given


def _allows_own_code(name: str) -> bool:
    """Whether a model's settings let its tokenizer run code, which open_clip passes on to transformers."""
    from huggingface_hub import hf_hub_download

    kind, _, place = name.partition(":")
    try:
        path = Path(place) / SETTINGS if kind == "local-dir" else Path(hf_hub_download(place, SETTINGS))
        content = json.loads(path.read_text(encoding="utf-8"))
        return bool(content["model_cfg"]["text_cfg"]["tokenizer_kwargs"].get("trust_remote_code"))
    except Exception:  # open_clip finds none either, or reports the error
        return False


def _stack(preprocess: Callable[[Image.Image], Tensor], images: list[Image.Image]) -> dict[str, Tensor]:
    return {"pixels": torch.stack([preprocess(image) for image in images])}


def _import_open_clip(spec: str) -> Any:
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(
            f"{spec}: open_clip cannot be imported ({error}); "
            "install it with `pip install 'clipconformity[open_clip]'`."
        ) from error
    return open_clip


def _find_weights(open_clip: Any, name: str, pretrained: str | None, spec: str) -> dict[str, Any]:
    """Find the weights of a built-in architecture; without any, open_clip would initialise random ones.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If the architecture or the tag is unknown, or none is given.
    """
    if open_clip.get_model_config(name) is None:
        similar = _find_similar(name, open_clip.list_models(), "open_clip:")
        raise ValueError(f"{spec}: open_clip knows no model {name!r}; {similar}")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        raise ValueError(
            f"{spec}: without weights the model is random; name them as 'open_clip:{name}/TAG' or "
            f"'open_clip:{name}//path/to/checkpoint'. The tags are: {', '.join(tags) or 'none'}."
        )
    path = Path(pretrained).expanduser()
    if path.exists() and not path.is_dir():
        check_input(path, "checkpoint file")
        check_limit(path, "checkpoint_bytes", path.stat().st_size)
        if path.suffix not in (".safetensors", ".npz", ".npy"):
            check_unpickling(path)
        return {"pretrained": str(path)}
    if pretrained not in tags:
        if path.suffix or path.is_absolute():
            raise FileNotFoundError(f"{spec}: {path}: no such checkpoint file.")
        similar = _find_similar(pretrained, tags, f"open_clip:{name}/")
        raise ValueError(f"{spec}: open_clip has no weights {pretrained!r} for {name}; {similar}")
    # From version 3 on open_clip warns of weights trained with QuickGELU, and runs them with GELU.
    quick = bool(open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu", False))
    return {"pretrained": pretrained, "force_quick_gelu": quick}


def _find_similar(name: str, known: list[str], start: str) -> str:
    """Return the end of an error: the known names near to an unknown one, or how to list those of this start."""
    plain = {one: _strip(one) for one in known}
    near = difflib.get_close_matches(_strip(name), plain.values(), n=MAX_SIMILAR, cutoff=0.75)
    inside = [one for one in known if len(name) > 2 and _strip(name) in plain[one]]
    similar = list(dict.fromkeys([*(one for form in near for one in known if plain[one] == form), *inside]))
    if similar:
        return f"did you mean {' or '.join(repr(one) for one in similar[:MAX_SIMILAR])}?"
    if len(known) <= MAX_SIMILAR:
        return f"it has {', '.join(map(repr, known)) or 'none'}."
    return f"`clipconformity encoders {start}` lists what there is."


def _strip(name: str) -> str:
    """Return the letters and digits of a name alone, in lower case: 'vitb32' is meant for 'ViT-B-32'."""
    return "".join(filter(str.isalnum, name.lower()))


def _explain_error(spec: str, error: BaseException) -> Exception:
    if "trust_remote_code" in str(error):
        return make_code_error(spec)
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    if isinstance(error, OSError) or "download" in reason:
        return make_unreachable_error(spec, reason)
    return ValueError(f"{spec}: open_clip could not load it ({reason}).")
