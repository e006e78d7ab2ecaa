"""The project's command: LightningCLI, and nothing of gpart in it."""

from data import Recordings
from lightning.pytorch.cli import LightningCLI
from lit_module import FaultClassifier

if __name__ == "__main__":
    LightningCLI(FaultClassifier, Recordings)
