"""The encoder that the options name, and how it encodes."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from clipconformity.cli.messages import print_details, print_encoder, report_time
from clipconformity.cli.processes import cores

if TYPE_CHECKING:
    from clipconformity.encoders.protocol import Encoder

MIN_FOR_WORKERS = 512
"""Number of images from which worker processes for decoding pay off."""


def require_spec(spec: str | None) -> str:
    """Return the spec of an encoder that has to be given.

    Raises:
        ValueError: If none is given.
    """
    if spec is None:
        raise ValueError("--encoder: say which encoder to use, such as 'tiny' or 'open_clip:ViT-B-32/openai'.")
    return spec


def open_encoder(options: argparse.Namespace, of_reference: str | None = None) -> Encoder:
    """Load the encoder that the options name.

    Raises:
        ValueError: If they name none, and the reference's encoder does not come with the package.
    """
    import torch

    from clipconformity.encoders import hide_progress_bars, load_encoder
    from clipconformity.encoders.callables import call_function, is_function

    if options.encoder is None and of_reference not in (None, "tiny"):  # data must not decide what is loaded
        raise ValueError(
            f"--encoder: the reference names encoder {of_reference!r}; pass --encoder {of_reference!r} to load it, or "
            "where that is one of your own, --encoder MODULE:FUNCTION, which makes it."
        )
    spec = require_spec(options.encoder or of_reference)
    if options.quiet or not sys.stderr.isatty():
        hide_progress_bars()
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    with report_time(options, "loading the encoder"):
        device = choose_device(options)
        encoder = call_function(spec) if is_function(spec) else load_encoder(spec, device, dtype=dtype)
    print_encoder(options, encoder)
    return encoder


def choose_device(options: argparse.Namespace) -> str | None:
    """The device of the encoder: of several processes on a machine each takes a GPU of its own, in turn."""
    import torch

    device: str | None = options.device
    if options.ranks is None or device not in (None, "cuda") or not torch.cuda.is_available():
        return device
    return f"cuda:{options.ranks.local_rank % torch.cuda.device_count()}"


def choose_image_settings(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """Return the settings for encoding this many images."""
    workers = options.workers
    if workers is None:
        beside = 1 if options.ranks is None else options.ranks.local_world
        workers = min(8, max(1, cores() // beside)) if count >= MIN_FOR_WORKERS else 0
    print_details(options, f"{count} images in batches of {options.batch_size}, decoded by {workers or 'no'} processes")
    return {"batch_size": options.batch_size, "workers": workers, "skip_errors": options.on_error == "skip"}
