"""The command ``gpart``: LightningCLI with short class names, a ``method:`` key and shipped recipes."""

from gpart.cli.main import main

__all__ = ["main"]
