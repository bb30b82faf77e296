"""Text encoders of sentence-transformers."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipconformity.data.hub import NOT_REACHED, is_hub_reachable
from clipconformity.data.untrusted import format_value, read_json
from clipconformity.encoders.base import BaseEncoder, Preprocess, explain_error, is_failure, make_unreachable_error
from clipconformity.encoders.checkpoints import WEIGHTS, check_checkpoint, check_size

ORGANISATION = "sentence-transformers"
"""Default organisation on the hub."""
MODULES = "modules.json"
"""File that names a model's modules, in order."""
SETTINGS = "config_sentence_transformers.json"
"""File of a model's prompts and kind, where it has one."""
KIND = "SentenceTransformer"
KNOWN_MODULES = ("Transformer", "Pooling", "Dense", "LayerNorm", "Dropout", "Normalize")
"""Modules that are loaded; none of them runs code of the checkpoint, once its settings are checked."""
PARTS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.spm")
"""Files that are downloaded."""
OPTIONS = ("torch_dtype", "dtype", "padding_side", "truncation_side", "model_max_length", "add_pooling_layer")
"""Options of transformers that the first module's settings may pass on; others can name code to be fetched and run."""


class SentenceEncoder(BaseEncoder):
    """Raw sentence embeddings: outputs of a model before its last ``Normalize`` module; texts only.

    The model's default prompt, if any, is put before every text.
    """

    modalities = ("text",)

    def __init__(self, location: str | Path, *, spec: str, device: torch.device, dtype: torch.dtype) -> None:
        if find_spec("sentence_transformers") is None:
            raise ImportError(
                f"{spec}: sentence-transformers is not installed; install it with "
                "`pip install 'clipconformity[sentence-transformers]'`."
            )
        folder = Path(location) if Path(location).is_dir() else _download_model(str(location), spec)
        try:
            first = check_modules(folder)
            model = _load_model(folder, first)
        except BaseException as error:  # any error of the library is reported in one line
            if not is_failure(error):
                raise
            raise explain_error(spec, error) from error
        super().__init__(
            model,
            spec=spec,
            device=device,
            dtype=dtype,
            context_length=_read_context_length(model, spec),
            logit_scale=None,
        )
        self.prompt: str = model.prompts.get(model.default_prompt_name) or ""
        self._words: object = getattr(model[0].auto_model.config, "vocab_size", None)
        self._try()

    @property
    def preprocess_images(self) -> Preprocess:
        """Not available: the encoder takes texts only.

        Raises:
            ValueError: Always.
        """
        raise self._make_modality_error("image")

    def _project_image(self, inputs: dict[str, Tensor]) -> Tensor:
        raise self._make_modality_error("image")

    def _project_text(self, texts: list[str]) -> Tensor:
        model: Any = self.model
        lower = getattr(model[0], "do_lower_case", False)
        whole = [self.prompt + (text.lower() if lower else text) for text in texts]
        tokens = model.tokenizer(whole, truncation=False, verbose=False)["input_ids"]
        self._check_tokens(torch.tensor([max(row) for row in tokens]), self._words)
        self._count_cut([len(row) for row in tokens])
        options = {"convert_to_tensor": True, "show_progress_bar": False, "device": str(self.device)}
        found: Tensor = model.encode(texts, batch_size=len(texts), **options)
        return found

    @property
    def _unknown_token(self) -> int | None:
        model: Any = self.model
        token: int | None = model.tokenizer.unk_token_id
        return token

    def _tokenise_words(self, words: list[str]) -> list[list[int]]:
        model: Any = self.model
        tokens: list[list[int]] = model.tokenizer(words, add_special_tokens=False)["input_ids"]
        return tokens

    def _describe_preprocessing(self) -> dict[str, str]:
        model: Any = self.model
        settings = {
            "context_length": self.context_length,
            "lower": bool(getattr(model[0], "do_lower_case", False)),
            "prompt": self.prompt,
            "truncated_to": getattr(model, "truncate_dim", None),
            "modules": [_describe_module(module) for module in model],
        }
        return {"preprocessing": json.dumps(settings, sort_keys=True), "backend": "torch"}


def _describe_module(module: Any) -> str:
    """Describe what the embeddings depend on beside a module's weights, for any version of the library."""
    name = type(module).__name__
    if name == "Pooling":
        modes = module.get_pooling_mode_str() if hasattr(module, "get_pooling_mode_str") else module.pooling_mode
        joined = modes if isinstance(modes, str) else "+".join(modes)
        return f"{name} {joined}{'' if module.include_prompt else ' without the prompt'}"
    return f"{name} {type(module.activation_function).__name__}" if name == "Dense" else name


def _download_model(name: str, spec: str) -> Path:
    """Find a model of the hub in the cache, or download its settings and safetensors."""
    from huggingface_hub import hf_hub_download, snapshot_download

    repository = name if "/" in name else f"{ORGANISATION}/{name}"
    silent = not is_hub_reachable()
    try:
        hf_hub_download(repository, MODULES, local_files_only=silent)  # a folder without it is not downloaded
        return Path(
            snapshot_download(
                repository,
                allow_patterns=list(PARTS),
                ignore_patterns=["onnx/*", "openvino/*"],
                local_files_only=silent,
            )
        )
    except Exception as error:
        if silent and isinstance(error, OSError):
            raise make_unreachable_error(spec, NOT_REACHED) from error
        raise explain_error(spec, error) from error


def check_modules(folder: Path) -> Path:
    """Refuse a model whose modules bring code or pickles, are unknown, or lie outside its folder.

    Returns:
        The folder of the first module, a transformer.

    Raises:
        OSError: If a file is not a regular one, or there are no weights.
        ValueError: If it has such a module.
    """
    if not (folder / MODULES).is_file():
        raise ValueError(f"it has no {MODULES}; expected a model of sentence-transformers")
    content = read_json(folder / MODULES, "file")
    if not isinstance(content, list) or not content or not all(isinstance(entry, dict) for entry in content):
        raise ValueError(f"{MODULES}: expected a list of modules, got {format_value(content)}")
    modules = [_parse_module(entry) for entry in content]
    kinds = [name for name, _ in modules]
    if kinds[0] != "Transformer" or kinds.count("Transformer") != 1 or "Pooling" not in kinds:
        raise ValueError(f"{MODULES}: expected a Transformer and its Pooling first, got {', '.join(kinds)}")
    settings = read_json(folder / SETTINGS, "file") if (folder / SETTINGS).is_file() else {}
    if not isinstance(settings, dict) or settings.get("model_type", KIND) != KIND:
        raise ValueError(f"{SETTINGS}: expected a model_type {KIND!r}, got {format_value(settings)}")
    for name, place in modules:
        if (folder / place).is_dir():
            check_checkpoint(folder / place)
            _check_module(folder / place, name)
    return folder / modules[0][1]


def _parse_module(entry: dict[str, Any]) -> tuple[str, str]:
    """Return the name and the folder of a module, which must be known and inside the model's folder."""
    kind, place = str(entry.get("type")), entry.get("path", "")
    package, _, name = kind.rpartition(".")
    if not package.startswith("sentence_transformers.") or name not in KNOWN_MODULES:
        raise ValueError(
            f"{MODULES} names {kind!r}, which is not loaded here; expected modules of sentence-transformers: "
            f"{', '.join(KNOWN_MODULES)}"
        )
    if not isinstance(place, str) or Path(place).is_absolute() or ".." in Path(place).parts:
        raise ValueError(f"{MODULES}: expected folders inside of the model, got {format_value(place)}")
    return name, place


def _check_module(folder: Path, name: str) -> None:
    """Refuse weights that are only in pickles, and settings that name code."""
    weights = [path.suffix for path in folder.iterdir() if path.suffix in WEIGHTS]
    if name == "Transformer" and not weights:
        raise FileNotFoundError("its weights are not there, as after a download that was interrupted")
    if weights and ".safetensors" not in weights:
        raise ValueError(f"the weights of its {name} are in {weights[0]} alone; expected safetensors")
    for path in (*folder.glob("sentence_*_config.json"), folder / "config.json"):
        settings = read_json(path, "file") if path.is_file() else {}
        if not isinstance(settings, dict):
            raise ValueError(f"{path.name}: expected settings by name, got {format_value(settings)}")
        if name == "Dense" and not str(settings.get("activation_function", "torch.nn.")).startswith("torch.nn."):
            raise ValueError(
                f"its Dense has activation {format_value(settings['activation_function'])}; expected torch.nn's"
            )
        if path.name != "config.json":
            passed = [value for key, value in settings.items() if key.endswith(("_args", "_kwargs"))]
            foreign = [
                option for value in passed if isinstance(value, dict) for option in value if option not in OPTIONS
            ]
            if foreign:
                raise ValueError(f"{path.name} passes on {foreign[0]!r}; expected none but {', '.join(OPTIONS)}")


def _load_model(folder: Path, first: Path) -> Any:
    """Load a model without its last ``Normalize``; the checkpoint must have all of its weights."""
    import transformers
    from sentence_transformers import SentenceTransformer

    config = transformers.AutoConfig.from_pretrained(first, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        check_size(first, transformers.AutoModel.from_config(config, trust_remote_code=False))
    model: Any = SentenceTransformer(
        str(folder),
        device="cpu",
        trust_remote_code=False,
        local_files_only=True,
        model_kwargs={"use_safetensors": True},
    )
    _check_weights(transformers, model[0].auto_model, first)
    names = [name for name, _ in model.named_children()]
    if type(model[-1]).__name__ == "Normalize":
        delattr(model, names[-1])
    return model.float()


def _check_weights(transformers: Any, tower: torch.nn.Module, first: Path) -> None:
    """Refuse weights that would be random; BERT's pooler, which is not used, may be missing."""
    _, info = transformers.AutoModel.from_pretrained(
        first, output_loading_info=True, trust_remote_code=False, local_files_only=True, use_safetensors=True
    )
    missing = sorted(set(info["missing_keys"]) & set(tower.state_dict()))
    if any(name.startswith("pooler.") for name in missing):
        tower.pooler = None  # type: ignore[assignment]
        missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:
        raise ValueError(f"the checkpoint lacks {len(missing)} weights, such as {missing[0]}, which would be random")


def _read_context_length(model: Any, spec: str) -> int:
    length = model.max_seq_length
    if length is None:
        raise ValueError(f"{spec}: the model's settings do not give its context length.")
    return int(length)
