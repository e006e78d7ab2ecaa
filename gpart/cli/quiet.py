"""What libraries say on standard error that a user of the command can do nothing about.

Invariant: each is matched by its own words, so that no other warning is lost.
"""

from __future__ import annotations

import logging
import re
import warnings

WARNED = (
    ".*set_vital.*",  # torchdata calls what torch deprecates
    ".*isinstance.treespec, LeafSpec.*",  # Lightning's use of torch's pytree
    ".*overridden `on_before_batch_transfer` in `LightningModule`.*",  # meant: the module checks its labels there
    ".*Metric `SpearmanCorrcoef` will save all targets.*",  # a held-out part fits into memory
    ".*does not have many workers.*",  # texts are tokenised already, and num_workers is a setting
)
"""Warnings, as regular expressions."""

LOGGED = {
    "torch.utils._pytree": ("is an Enum subclass and is now natively supported",),  # torchao, by Transformers' import
    "lightning.pytorch.utilities.rank_zero": (
        "TPU available: False",
        "GPU available: False",
        "Tip: For seamless",  # advertises a service
        "to estimate number of stepping batches",
    ),
    "huggingface_hub.utils._http": (
        "thrown while requesting",  # two lines for each of its six tries; the error says it in the end
        "Retrying in",
    ),
    "transformers.modeling_utils": ("LOAD REPORT",),  # unless it tells of more than a head: see _only_a_head
}
"""Records by their logger."""

_REPORTED = re.compile(r"^(\S+)\s*\|\s*([A-Z]+)\s*\|", re.MULTILINE)
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_HEADS = ("classifier", "score", "head", "heads", "fc", "pooler", "pre_classifier", "lm_head", "cls", "qa_outputs")
"""Modules that a new task makes anew, or that it leaves behind."""


def silence_imports() -> None:
    """Leaves out the records of :data:`LOGGED`; called before the first import, since some are made by imports."""
    for name in LOGGED:
        logging.getLogger(name).addFilter(_is_wanted)


def silence_warnings() -> None:
    """Leaves out :data:`WARNED`, until the filters of warnings are set back."""
    for message in WARNED:
        warnings.filterwarnings("ignore", message)


def _is_wanted(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    found = next((words for words in LOGGED[record.name] if words in message), None)
    return found is None or (found == "LOAD REPORT" and not _only_a_head(message))


def _only_a_head(report: str) -> bool:
    """Whether Transformers' report on weights tells only of a head that is new, or of one that is left behind."""
    rows = _REPORTED.findall(_COLOUR.sub("", report))
    told = [(name, status) for name, status in rows if name != "Key"]
    return bool(told) and all(
        status in ("MISSING", "UNEXPECTED") and not set(name.split(".")[:2]).isdisjoint(_HEADS) for name, status in told
    )
