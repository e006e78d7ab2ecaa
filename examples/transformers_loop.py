"""Transformers' own ``Trainer``, without Lightning: attach, train, save, load.

    python examples/transformers_loop.py                          # a tiny BERT and drawn sentences
    python examples/transformers_loop.py --model roberta-base --data reviews --d 23040 --epochs 3 --lr 0.01

``--data`` is a folder with train.jsonl and test.jsonl, ``{"text": ..., "label": 0 or 1}`` in each line.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from gpart import GPartAdapter, GPartConfig, attach, load_adapter

GOOD, BAD = ["bright", "fine", "warm", "funny"], ["dull", "slow", "cold", "silly"]
OTHER = ["the", "a", "film", "story", "is", "was", "and", "very", "so"]


def make_data(folder: Path) -> None:
    """Writes sentences: two good words make a good film, two bad ones a bad one."""
    draw = random.Random(0)
    for split, count in {"train": 384, "test": 128}.items():
        rows = []
        for at in range(count):
            first, second = draw.sample(BAD if at % 2 else GOOD, 2)
            text = f"{draw.choice(['the', 'a'])} {draw.choice(['film', 'story'])} {draw.choice(['is', 'was'])}"
            rows.append({"text": f"{text} {draw.choice(['very', 'so'])} {first} and {second}", "label": 1 - at % 2})
        lines = [json.dumps(row) for row in draw.sample(rows, len(rows))]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def make_model(folder: Path) -> None:
    """A random BERT with its tokenizer, as a Transformers folder; it has no classifier, as on the hub."""
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *OTHER, *GOOD, *BAD]) + "\n")
    BertTokenizer(str(vocabulary)).save_pretrained(folder)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    # A wide range and no dropout, so that a base without any training tells words apart.
    more = {"vocab_size": 5 + len(OTHER + GOOD + BAD), "initializer_range": 0.2, "hidden_dropout_prob": 0.0}
    config = BertConfig(max_position_embeddings=32, **sizes, **more)
    BertModel(config).save_pretrained(folder)


def read_rows(file: Path, tokens: Any) -> list[dict[str, Any]]:
    """A split, tokenized."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{**tokens(row["text"], truncation=True), "labels": row["label"]} for row in rows]


class SaveAdapter(TrainerCallback):
    """Writes the adapter folder into each of the Trainer's checkpoints, which hold the whole model besides."""

    def __init__(self, adapter: GPartAdapter) -> None:
        self.adapter = adapter

    def on_save(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """After a checkpoint was written, in the process that writes."""
        if state.is_world_process_zero:
            self.adapter.save(Path(args.output_dir, f"checkpoint-{state.global_step}", "adapter"))


def metrics(prediction: Any) -> dict[str, float]:
    """The accuracy."""
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def main() -> None:
    """Trains, and evaluates what was saved on a base that was read anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a name on the hub, or a folder; default a random tiny BERT")
    parser.add_argument("--data", type=Path, help="default drawn sentences")
    parser.add_argument("--out", type=Path, default=Path("runs/transformers"), help="where everything is written")
    parser.add_argument("--target-modules", nargs="+", default=["query", "value"])
    parser.add_argument("--modules-to-save", nargs="+", default=["classifier"])
    parser.add_argument("--d", type=int, default=500, help="the length of theta")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--lr", type=float, default=0.02)
    arguments = parser.parse_args()
    set_seed(0)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.data is None:
        arguments.data = arguments.out
        make_data(arguments.data)
    if arguments.model is None:
        arguments.model = str(arguments.out / "base")
        Path(arguments.model).mkdir(exist_ok=True)
        make_model(Path(arguments.model))

    tokens = AutoTokenizer.from_pretrained(arguments.model)
    train, test = (read_rows(arguments.data / f"{split}.jsonl", tokens) for split in ("train", "test"))
    model = AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=2)
    # The head is new, so it has to be trained; without modules_to_save attach refuses, and names it.
    config = GPartConfig(
        d=arguments.d, target_modules=arguments.target_modules, modules_to_save=arguments.modules_to_save
    )
    adapter = attach(model, config)
    adapter.print_trainable_parameters()
    settings = TrainingArguments(
        output_dir=str(arguments.out / "checkpoints"),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=32,
        learning_rate=arguments.lr,
        save_strategy="epoch",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    collator = DataCollatorWithPadding(tokens)
    more = {"data_collator": collator, "compute_metrics": metrics, "eval_dataset": test}
    trainer = Trainer(model, settings, train_dataset=train, callbacks=[SaveAdapter(adapter)], **more)
    print(f"before: accuracy {trainer.evaluate()['eval_accuracy']:.4f}")
    trainer.train()
    after = trainer.predict(test)
    print(f"after: accuracy {after.metrics['test_accuracy']:.4f}, |theta| = {adapter.theta.norm():.4f}")
    adapter.save(arguments.out / "adapter")

    # The head of this one is drawn anew, too; the adapter brings its own.
    fresh = AutoModelForSequenceClassification.from_pretrained(arguments.model, num_labels=2)
    load_adapter(fresh, arguments.out / "adapter")
    loaded = Trainer(fresh, settings, **more).predict(test)
    equal = bool((loaded.predictions == after.predictions).all())
    print(f"loaded: accuracy {loaded.metrics['test_accuracy']:.4f}, the same logits to the bit: {equal}")

    # What leaves the house is a plain Transformers folder.
    adapter.merge_and_unload().save_pretrained(arguments.out / "merged")
    merged = AutoModelForSequenceClassification.from_pretrained(arguments.out / "merged")
    batch = collator([{key: row[key] for key in ("input_ids", "attention_mask")} for row in test[:32]])
    with torch.no_grad():
        away = (merged(**batch).logits - torch.from_numpy(after.predictions[:32])).abs().max().item()
    print(f"merged: a folder without gpart, whose logits are at most {away:.1e} away")


if __name__ == "__main__":
    main()
