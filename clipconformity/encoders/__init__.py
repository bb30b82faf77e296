"""Encoders: from images and texts to raw embeddings."""

from clipconformity.encoders.base import BaseEncoder
from clipconformity.encoders.callables import CallableEncoder
from clipconformity.encoders.protocol import Encoder
from clipconformity.encoders.registry import available_encoders, hide_progress_bars, load_encoder

__all__ = ["BaseEncoder", "CallableEncoder", "Encoder", "available_encoders", "hide_progress_bars", "load_encoder"]
