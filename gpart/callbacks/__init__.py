"""The training framework's callbacks and the checkpoint plugin."""

from gpart.callbacks.baselines import BitFit, FullFineTuning, LinearProbe, PartialFineTuning
from gpart.callbacks.checkpoints.plugin import AtomicCheckpointIO, GPartCheckpointIO
from gpart.callbacks.checkpoints.random_states import RandomStates
from gpart.callbacks.gpart_callback import GPartCallback
from gpart.callbacks.loading import load_from_checkpoint, load_method
from gpart.callbacks.metrics import MetricsWriter
from gpart.callbacks.peft_callback import PeftCallback
from gpart.callbacks.predictions import PredictionWriter
from gpart.callbacks.snapshots import SnapshotWriter

__all__ = [
    "AtomicCheckpointIO",
    "BitFit",
    "FullFineTuning",
    "GPartCallback",
    "GPartCheckpointIO",
    "LinearProbe",
    "MetricsWriter",
    "PartialFineTuning",
    "PeftCallback",
    "PredictionWriter",
    "RandomStates",
    "SnapshotWriter",
    "load_from_checkpoint",
    "load_method",
]
