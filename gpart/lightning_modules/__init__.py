"""LightningModules for the paper's tasks. They know nothing of any adapter: a callback adds the method."""

from gpart.lightning_modules.language.sequence_classifier import SequenceClassifier
from gpart.lightning_modules.mathematics.causal_lm import CausalLM
from gpart.lightning_modules.vision.image_classifier import ImageClassifier

__all__ = ["CausalLM", "ImageClassifier", "SequenceClassifier"]
