"""The project's own callbacks. A folder of this name here and one in gpart do not get into each other's way."""

from callbacks.mistakes import MistakesWriter

__all__ = ["MistakesWriter"]
