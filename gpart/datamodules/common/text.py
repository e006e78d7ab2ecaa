"""What the text DataModules share: the tokenizer, the padding of a batch, the loader.

Invariant: a tokenizer that does the same to every text has the same fingerprint in every process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedTokenizerBase

from gpart.assets.fetching import gguf, loading
from gpart.datamodules.common.epoch_sampler import Key
from gpart.datamodules.common.seeded import SeededDataModule

Example = dict[str, Any]


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer, able to pad.

    Args:
        model: a name on the hub, a folder, a GGUF file, or ``packaged:NAME``.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read, or has neither a padding token nor an end token to pad with.
    """
    with loading(model) as name:
        place, file = gguf(name)
        tokenizer = AutoTokenizer.from_pretrained(place, **file)
    if tokenizer.pad_token is None:  # decoders' tokenizers; the attention mask hides what is padded
        if tokenizer.eos_token is None:
            raise ValueError(f"the tokenizer of {model} has neither a pad nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the tokenizer does to a text: its whole definition where it has one, else its class, name and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        whole = f"{type(tokenizer)}{sorted(tokenizer.get_vocab().items())}"
    else:
        parts = json.loads(backend.to_str())
        # Set by each call, and so another after the first one.
        whole = json.dumps({name: part for name, part in parts.items() if name not in ("truncation", "padding")})
    return hashlib.sha256(f"{whole}{tokenizer.padding_side}{tokenizer.truncation_side}".encode()).hexdigest()


@dataclass(frozen=True)
class Collate:
    """Pads a batch to its longest sentence. An object of its own: spawned workers pickle it without the datamodule.

    Args:
        pad: Transformers' collator for what the tokenizer made.
        lists: columns that stay lists, such as row ids and texts.
        labels: whether the batch holds ``labels``, as a tensor; whole numbers become int64, others float32.
    """

    pad: DataCollatorWithPadding
    lists: tuple[str, ...] = ()
    labels: bool = True

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        """The batch: what the tokenizer made, padded, then labels and lists."""
        aside = ("labels", "text", "idx")
        batch = dict(self.pad([{key: value for key, value in one.items() if key not in aside} for one in examples]))
        if self.labels:
            batch["labels"] = torch.tensor([one["labels"] for one in examples])
        return {**batch, **{name: [one[name] for one in examples] for name in self.lists}}


@dataclass(frozen=True, eq=False)
class Keyed(Dataset[Any]):
    """Takes the keys of an :class:`EpochSampler`, of which a text needs the position only."""

    examples: Any

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, key: Key | int) -> Any:
        # Lightning's overfit_batches replaces the sampler by one that knows no epoch.
        return self.examples[key if isinstance(key, int) else key[1]]


def part_loader(
    module: SeededDataModule,
    parts: Mapping[str, Any],
    part: str,
    pad: DataCollatorWithPadding | None,
    lists: tuple[str, ...] = (),
) -> StatefulDataLoader:
    """A loader that can be resumed within an epoch.

    Args:
        module: whose ``batch_size`` and ``num_workers`` hold, and whose order the part ``train`` has.
        parts: lists, or Datasets of ``datasets``, by name.
        part: which one; ``predict`` has no labels.
        pad: makes a batch of what the tokenizer made; None before setup.
        lists: columns that stay lists.

    Raises:
        ValueError: if setup() has not made that part.
    """
    if pad is None or part not in parts:
        raise ValueError(f"no part {part!r} among {sorted(parts)}: setup() has not run for this stage")
    sampler = module.sampler(len(parts[part])) if part == "train" else None
    collate = Collate(pad, lists, labels=part != "predict")
    return module.loader(Keyed(parts[part]), collate, module.hparams["batch_size"], sampler)
