"""Small checkpoints of the published kinds: real classes of diffusers and transformers, with random weights.

The pictures are noise and the captions mean nothing; files, layouts and calls are those of the published ones.
"""

from __future__ import annotations

import json
from pathlib import Path

from checkpoints import captioners, pipelines


def save(kind: str, folder: Path) -> Path:
    """Save a checkpoint of a kind, named as the function that makes it, in the layout of the published ones."""
    made = getattr(captioners if hasattr(captioners, kind) else pipelines, kind)()
    for part in made if isinstance(made, tuple) else (made,):
        if part is not None:
            part.save_pretrained(folder)
    index = folder / "model_index.json"
    about = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    if "text_proj" in about:  # Karlo's are from before diffusers moved the class
        about["text_proj"][0] = "unclip"
        index.write_text(json.dumps(about), encoding="utf-8")
    return folder
