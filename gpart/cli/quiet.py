"""What libraries say on standard error that a user of the command can do nothing about.

Invariant: each is matched by its own words, so that no other warning is lost.
"""

from __future__ import annotations

import logging
import warnings

WARNED = (
    ".*set_vital.*",  # torchdata calls what torch deprecates
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's use of torch's pytree
    ".*overridden `on_before_batch_transfer` in `LightningModule`.*",  # meant: the module checks its labels there
    ".*does not have many workers.*",  # texts are tokenised already, and num_workers is a setting
)
"""Warnings, as regular expressions."""

LOGGED = {
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",  # torchao, when Transformers imports it
}
"""Records by their logger, which shows them while a library is imported."""


def silence_imports() -> None:
    """Leaves out the records of :data:`LOGGED`; called before the import that makes them."""
    for name in LOGGED:
        logging.getLogger(name).addFilter(_is_wanted)


def silence_warnings() -> None:
    """Leaves out :data:`WARNED`, until the filters of warnings are set back."""
    for message in WARNED:
        warnings.filterwarnings("ignore", message)


def _is_wanted(record: logging.LogRecord) -> bool:
    return LOGGED[record.name] not in str(record.msg)
