"""Small models to serve, in the layout in which Transformers keeps them, and adapters for them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpart import GPartConfig, attach
from gpart.adapter import GPartAdapter

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["a", "charming", "film", "dull", "plot", "with", "no", "end", "and", "great", "actors"],
]
TEXT = GPartConfig(d=50, target_modules=["query", "value"], modules_to_save=["classifier"])


class Net(nn.Module):
    """A layer to adapt, BatchNorm, whose buffers training changes, and a head."""

    def __init__(self, base: int = 0, head: int = 2) -> None:
        super().__init__()
        torch.manual_seed(base)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 5)
        self.norm, self.head = nn.BatchNorm1d(5), nn.Linear(5, head)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.second(torch.relu(self.first(x)))))


def store_adapter(folder: Path, number: int, base: int = 0, buffers: bool = False, **settings: Any) -> GPartAdapter:
    """Writes an adapter of :class:`Net` whose values come from its number, and gives it, in eval mode."""
    config = {"d": 7, "target_modules": ["first", "second"], "modules_to_save": ["head"], **settings}
    adapter = attach(Net(base), GPartConfig(**config))
    torch.manual_seed(1000 + number)
    with torch.no_grad():
        adapter.theta.normal_()
        for value in adapter.saved_parameters().values():
            value.normal_()
        if buffers:
            adapter.model.norm.running_mean.normal_()
    adapter.save(folder)
    return adapter


def bert_folder(folder: Path, labels: int = 3, head: bool = True) -> Path:
    """A BERT of two layers with its tokenizer; without a head its checkpoint is of the encoder alone."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=24,
        num_labels=labels,
        initializer_range=0.4,
    )
    torch.manual_seed(5)
    model = BertForSequenceClassification(config) if head else BertModel(config)
    model.save_pretrained(folder)
    BertTokenizer({word: number for number, word in enumerate(WORDS)}, model_max_length=24).save_pretrained(folder)
    return folder


def bert_adapters(base: Path, folder: Path, names: list[str]) -> None:
    """Adapters of a BERT folder, whose values come from their places; one file is written and the others after it."""
    from transformers import AutoModelForSequenceClassification

    adapter = attach(AutoModelForSequenceClassification.from_pretrained(base), TEXT)
    for number, name in enumerate(names):
        fill(adapter, number)
        adapter.save(folder / name)


def fill(adapter: GPartAdapter, number: int) -> None:
    """Values that come from a number."""
    torch.manual_seed(number)
    with torch.no_grad():
        adapter.theta.normal_(std=3.0)
        for value in adapter.saved_parameters().values():
            value.normal_(std=0.5)


def spoil(folder: Path) -> None:
    """Flips a bit of an adapter's numbers."""
    file = folder / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def replace_adapter(old: Path, new: Path) -> None:
    """Puts another adapter in one's place, each file at once, as saving does."""
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(new / name, old / f".{name}")
        (old / f".{name}").replace(old / name)
