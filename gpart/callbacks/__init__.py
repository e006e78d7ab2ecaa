"""The training framework's callbacks and the checkpoint plugin."""

from gpart.callbacks.baselines import BitFit, FullFineTuning, LinearProbe
from gpart.callbacks.checkpoint import AtomicCheckpointIO, GPartCheckpointIO
from gpart.callbacks.gpart import GPartCallback
from gpart.callbacks.loading import load_from_checkpoint
from gpart.callbacks.metrics import MetricsWriter
from gpart.callbacks.peft import PeftCallback
from gpart.callbacks.predictions import PredictionWriter
from gpart.callbacks.random_states import RandomStates

__all__ = [
    "AtomicCheckpointIO",
    "BitFit",
    "FullFineTuning",
    "GPartCallback",
    "GPartCheckpointIO",
    "LinearProbe",
    "MetricsWriter",
    "PeftCallback",
    "PredictionWriter",
    "RandomStates",
    "load_from_checkpoint",
]
