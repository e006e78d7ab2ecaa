"""sentence-transformers: its own Trainer, which is no Lightning: ``attach`` in the place of the callback."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from facts import difference, frozen_bits, moved, report
from safetensors.torch import load_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
    losses,
)
from sentence_transformers import models as parts
from transformers import BertConfig, BertModel, BertTokenizerFast, set_seed

from gpart import GPartConfig, attach

WORDS = ["a", "man", "is", "eating", "riding", "playing", "food", "horse", "piano", "the", "woman", "dog"]
PAIRS = Dataset.from_dict(
    {
        "anchor": [f"a {a} is {b}" for a in ("man", "woman", "dog") for b in ("eating", "riding", "playing")],
        "positive": [f"the {a} is {b}" for a in ("man", "woman", "dog") for b in ("eating", "riding", "playing")],
    }
)


class Resumable(SentenceTransformerTrainer):
    """What resuming needs beyond the line: the package's own reads a plain model, without theta, from the folder."""

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        self.model[0].model.load_state_dict(load_file(Path(checkpoint_path, "model.safetensors")))


LINE = GPartConfig(d=20, target_modules=["query", "value"])


def base(folder: str) -> str:
    """A small BERT in a folder, in the place of one from the hub."""
    torch.manual_seed(0)
    path = Path(folder, "base")
    path.mkdir()
    path.joinpath("vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizerFast(str(path / "vocab.txt")).save_pretrained(path)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS) + 5, **sizes)).save_pretrained(path)
    return str(path)


def project(path: str, folder: str, line: bool = True, epochs: int = 2, resume: str | None = None) -> tuple[Any, ...]:
    """As the training overview; returns the model, the adapter, its weights before and the trainer."""
    set_seed(0)
    transformer = parts.Transformer(path)
    model = SentenceTransformer(
        modules=[transformer, parts.Pooling(transformer.get_embedding_dimension())], device="cpu"
    )
    adapter = attach(model, LINE) if line else None  # the line
    before = frozen_bits(adapter) if adapter else {}
    settings = SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    loss = losses.MultipleNegativesRankingLoss(model)
    trainer = (Resumable if resume else SentenceTransformerTrainer)(
        model=model, args=settings, train_dataset=PAIRS, loss=loss
    )
    trainer.train(resume_from_checkpoint=resume)
    return model, adapter, before, trainer


def facts() -> dict[str, Any]:
    """Plain, with the line, resumed, and saved and loaded by the package: adapted, and merged."""
    with tempfile.TemporaryDirectory() as folder:
        path = base(folder)
        plain = project(path, folder + "/plain", line=False, epochs=1)[3].state.log_history[0]["loss"]
        model, adapter, before, trainer = project(path, folder + "/line")
        found, sentences = moved(adapter, before), PAIRS["anchor"]
        expected = model.encode(sentences)
        project(path, folder + "/half", epochs=1)
        half = str(next(Path(folder, "half").glob("checkpoint-*")))
        resumed = project(path, folder + "/resumed", resume=half)[0]
        adapter.merge_and_unload()
        model.save_pretrained(folder + "/saved")
        loaded = SentenceTransformer(folder + "/saved", device="cpu")
        return {
            "model": "SentenceTransformer of a BERT",
            "line": "attach(model, GPartConfig(d=20, target_modules=['query', 'value']))",
            "first loss as without the line": trainer.state.log_history[0]["loss"] == plain,
            **found,
            "resumed, difference": difference(resumed.encode(sentences), expected),
            "own load, difference": difference(loaded.encode(sentences), expected),
        }


if __name__ == "__main__":
    report("sentence-transformers", "accelerate", "transformers", rows=[facts()])
