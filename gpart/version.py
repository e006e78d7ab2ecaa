"""The version, in a module that imports nothing, so that building the package needs no torch."""

__version__ = "0.1.0"
