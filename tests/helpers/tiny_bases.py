"""Tiny base models in their libraries' real folders, and adapters on them that have learned something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gpart import GPartConfig, attach
from gpart.adapter import GPartAdapter
from gpart.bases.models import quiet

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 60}
SMALL: dict[str, Any] = {**BERT, "max_position_embeddings": 24}


def bert_folder(folder: Path, **settings: Any) -> Path:
    """A bare encoder, as most are published, with what lies beside one."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    with quiet():
        BertModel(BertConfig(**{**SMALL, **settings})).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg"]))
    (folder / "LICENSE").write_text("the base's licence")
    (folder / "modeling_own.py").write_text("raise SystemExit('code of the folder was run')")
    (folder / "pytorch_model.bin").write_bytes(b"weights in another format")
    return folder


def classifier(folder: Path, labels: int = 3, **settings: Any) -> nn.Module:
    """The encoder with a head of its own, as it is built for training."""
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(2)  # of the head
    with quiet():
        model: nn.Module = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels, **settings)
    return model.eval()


def trained(model: nn.Module, folder: Path, **settings: Any) -> GPartAdapter:
    """An adapter with a theta that is not 0, saved in ``folder``."""
    adapter = attach(model, GPartConfig(**{"d": 30, "target_modules": ["query", "value"], **settings}))
    with torch.no_grad():
        adapter.theta.normal_(0, 3, generator=torch.Generator().manual_seed(5))
        for value in adapter.saved_parameters().values():
            value.add_(0.1)
    adapter.save(folder)
    return adapter


def leftovers(above: Path) -> list[str]:
    """What a command left beside its folder."""
    return [path.name for path in above.iterdir() if path.name.startswith(".")]
