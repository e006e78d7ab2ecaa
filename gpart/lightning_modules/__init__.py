"""LightningModules for the paper's tasks. They know nothing of any adapter: the method's callback makes the difference."""

from gpart.lightning_modules.nlu import SequenceClassifier

__all__ = ["SequenceClassifier"]
