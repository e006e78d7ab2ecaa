"""What the DataModules for text share: the tokenizer, the padding of a batch, the data loader.

Invariant: tokenizers that do the same to every text have the same fingerprint, in every process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase

from gpart.assets.fetching import gguf, loading
from gpart.datamodules.common.epoch_sampler import EpochSampler, Key
from gpart.datamodules.common.seeded import SeededDataModule
from gpart.errors import GPartError

Example = dict[str, Any]


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Loads a model's tokenizer, and gives it a padding token if it has none.

    Args:
        model: a name on the hub, a folder, a GGUF file, or ``packaged:NAME``.

    Raises:
        GPartFileError: if there is no such model, or it has no tokenizer.
        GPartError: if the tokenizer can't be read, or has neither a padding token nor an end token to pad with.
    """
    with loading(model) as name:
        place, file = gguf(name)
        tokenizer = AutoTokenizer.from_pretrained(place, **file)
    if tokenizer.pad_token is None:  # decoders' tokenizers; the attention mask hides what is padded
        if tokenizer.eos_token is None:
            raise GPartError(f"the tokenizer of {model} has neither a pad nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of what the tokenizer does to a text.

    It is taken over the tokenizer's whole definition if it has a fast backend, else over its class and vocabulary.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        whole = f"{type(tokenizer)}{sorted(tokenizer.get_vocab().items())}"
    else:
        parts = json.loads(backend.to_str())
        # Truncation and padding are set by each call, so that they differ before and after the first one.
        whole = json.dumps({name: part for name, part in parts.items() if name not in ("truncation", "padding")})
    return hashlib.sha256(f"{whole}{tokenizer.padding_side}{tokenizer.truncation_side}".encode()).hexdigest()


@dataclass(frozen=True)
class Collate:
    """Pads a batch to its longest text. It is a class of its own, so that workers can pickle it without the DataModule.

    Args:
        pad: Transformers' collator for the tokenizer's output.
        lists: columns that stay lists, such as row ids and texts.
        labels: whether the batch holds ``labels``, as a tensor: int64 for whole numbers, else float32.
    """

    pad: DataCollatorWithPadding
    lists: tuple[str, ...] = ()
    labels: bool = True

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        """Returns the batch: the padded output of the tokenizer, then the labels and the lists."""
        aside = ("labels", "text", "idx", *self.lists)
        batch = dict(self.pad([{key: value for key, value in one.items() if key not in aside} for one in examples]))
        if self.labels:
            batch["labels"] = torch.tensor([one["labels"] for one in examples])
        return {**batch, **{name: [one[name] for one in examples] for name in self.lists}}


@dataclass(frozen=True, eq=False)
class Keyed(Dataset[Any]):
    """Examples that are indexed by the keys of an :class:`EpochSampler`. Only a key's position is used."""

    examples: Any

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: Key | int) -> Any:
        # Lightning's overfit_batches replaces our sampler by one whose keys are plain positions.
        return self.examples[key if isinstance(key, int) else key[1]]


def mean_label(parts: Mapping[str, Any]) -> float:
    """The mean of the training labels.

    Raises:
        GPartError: if setup("fit") has not made the training split yet.
    """
    if "train" not in parts:
        raise GPartError(f"no part 'train' among {sorted(parts)}: setup('fit') has not run")
    return fmean(parts["train"]["labels"])


def split_loader(
    module: SeededDataModule,
    parts: Mapping[str, Any],
    part: str,
    pad: DataCollatorWithPadding | None,
    lists: tuple[str, ...] = (),
    group_by_length: bool = False,
) -> StatefulDataLoader:
    """Makes a data loader for one split. It can be resumed within an epoch.

    Args:
        module: the DataModule. Its ``batch_size`` and ``num_workers`` are used, and its sampler for ``train``.
        parts: the splits by name, as lists or as Datasets of ``datasets``.
        part: the name of the split. The batches of ``predict`` hold no labels.
        pad: the collator for the tokenizer's output; None before setup.
        lists: columns that stay lists.
        group_by_length: whether a batch of ``train`` and ``test`` has examples of similar length. Those of ``val`` always
            have, since their order changes no score; those of ``predict`` stay in order.

    Raises:
        GPartError: if setup() has not made this split yet.
    """
    if pad is None or part not in parts:
        raise GPartError(f"no part {part!r} among {sorted(parts)}: setup() has not run for this stage")
    sampler: EpochSampler | list[int] | None = None
    if part == "train":
        sampler = module.grouped_sampler(_lengths(parts[part])) if group_by_length else module.sampler(len(parts[part]))
    elif part == "val" or (part == "test" and group_by_length):
        sampler = module.scoring_order(_lengths(parts[part]))
    collate = Collate(pad, lists, labels=part != "predict")
    return module.loader(Keyed(parts[part]), collate, module.hparams["batch_size"], sampler)


def _lengths(rows: Any) -> list[int]:
    # A Dataset's column is read in half the time of its rows.
    texts = [row["input_ids"] for row in rows] if isinstance(rows, list) else rows["input_ids"]
    return [len(tokens) for tokens in texts]
