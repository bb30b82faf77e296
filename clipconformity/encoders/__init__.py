"""Encoders: from images and texts to raw embeddings."""

from clipconformity.encoders.base import BaseEncoder
from clipconformity.encoders.loading import load_encoder
from clipconformity.encoders.protocol import Encoder

__all__ = ["BaseEncoder", "Encoder", "load_encoder"]
