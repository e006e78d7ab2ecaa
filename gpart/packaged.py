"""Packaged models and data by their public name; the code is in :mod:`gpart.assets`."""

from gpart.assets.fetching import PREFIX, cache_folder, fetch, gguf, loading, resolve

__all__ = ["PREFIX", "cache_folder", "fetch", "gguf", "loading", "resolve"]
