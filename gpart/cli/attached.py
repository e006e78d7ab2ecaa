"""Loading an adapter onto its base, for the commands that need both."""

from __future__ import annotations

from gpart.adapter import GPartAdapter
from gpart.bases.models import Base
from gpart.cli.message import warnings_told
from gpart.errors import GPartError
from gpart.loading import load_adapter


def attach_to(base: Base, source: str, check_base: bool = True) -> GPartAdapter:
    """Loads an adapter onto a base; a warning is told as the command's own.

    Raises:
        GPartError: if it does not fit.
    """
    with warnings_told():
        try:
            return load_adapter(base.model, source, check_base=check_base)
        except GPartError as error:
            said = str(error).replace("check_base=False loads it", "--no-check-base loads it")
            raise type(error)(said) from error
