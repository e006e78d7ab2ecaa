"""LightningModules for the paper's tasks. They know nothing of any adapter: the method's callback makes the difference."""

from gpart.lightning_modules.causal import CausalLM
from gpart.lightning_modules.nlu import SequenceClassifier
from gpart.lightning_modules.vision import ImageClassifier

__all__ = ["CausalLM", "ImageClassifier", "SequenceClassifier"]
