"""The training framework's callbacks and the checkpoint plugin."""

from gpart.callbacks.checkpoint import AtomicCheckpointIO, GPartCheckpointIO
from gpart.callbacks.gpart import GPartCallback
from gpart.callbacks.loading import load_from_checkpoint
from gpart.callbacks.predictions import PredictionWriter
from gpart.callbacks.probe import LinearProbe

__all__ = [
    "AtomicCheckpointIO",
    "GPartCallback",
    "GPartCheckpointIO",
    "LinearProbe",
    "PredictionWriter",
    "load_from_checkpoint",
]
