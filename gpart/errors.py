"""What this package raises where a user can do something about it.

Invariant: an error of one of these types carries both values, what was asked and what was found, and whatever it was
raised about is as it was before. An error of any other type is a fault, of this package or of one below it.
"""

from __future__ import annotations


class GPartError(ValueError):
    """A setting, a file or a model that does not fit.

    Example:
        >>> raise GPartError("d=5 is more than the 4 weights that are adapted")
        Traceback (most recent call last):
            ...
        gpart.errors.GPartError: d=5 is more than the 4 weights that are adapted
    """


class GPartFileError(GPartError, FileNotFoundError):
    """A file or a folder that is not there; also a ``FileNotFoundError``.

    Example:
        >>> isinstance(GPartFileError("no adapter at run/adapter"), FileNotFoundError)
        True
    """
