"""Encoders: from images and texts to raw embeddings."""

from clipconformity.encoders.available import available_encoders
from clipconformity.encoders.base import BaseEncoder
from clipconformity.encoders.callables import CallableEncoder
from clipconformity.encoders.loading import hide_progress_bars, load_encoder
from clipconformity.encoders.protocol import Encoder

__all__ = ["BaseEncoder", "CallableEncoder", "Encoder", "available_encoders", "hide_progress_bars", "load_encoder"]
